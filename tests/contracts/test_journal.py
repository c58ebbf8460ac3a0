"""The journal in a folder under its contract, and what only it promises: kills, torn writes, damage, bounds, a lock."""

import asyncio
import logging
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapewatch.adapters import journal as journal_module
from tapewatch.adapters.journal import FileJournal
from tapewatch.contracts.journal import JournalContract, OpenJournal, kept, numbers
from tapewatch.contracts.samples import number_of, numbered, same
from tapewatch.engine.columns import Batch, make_batch
from tapewatch.errors import ConfigError, Unavailable

pytestmark = pytest.mark.anyio

ROWS = 20_000
PATIENCE_S = 20.0

WRITER = """
import asyncio, sys
from pathlib import Path
from tapewatch.adapters.journal import FileJournal
from tapewatch.engine.columns import make_batch

async def write(folder):
    journal = FileJournal(folder, segment_bytes=20_000)
    number = 0
    while True:
        batch = make_batch(symbols=("A", "B"), ts_ns=range(number % 50), marks_row=[0], marks_ns=[number])
        await journal.append(batch, rows=number)
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()
        number += 1

asyncio.run(write(Path(sys.argv[1])))
"""


@pytest.fixture
async def journals() -> AsyncIterator[list[FileJournal]]:
    """All that a test opened; they are closed at its end."""
    opened: list[FileJournal] = []
    yield opened
    for journal in opened:
        await journal.close()


class TestFileJournal(JournalContract):
    @pytest.fixture
    def kept_rows(self) -> int:
        return ROWS

    @pytest.fixture
    def open_journal(self, tmp_path: Path, journals: list[FileJournal]) -> OpenJournal:
        def opened() -> FileJournal:
            folder = tmp_path / "a" / "journal"
            journal = FileJournal(folder, keep_bytes=1_000_000, keep_rows=ROWS, segment_bytes=50_000)
            journals.append(journal)
            return journal

        return opened


def opened(folder: Path, journals: list[FileJournal], **settings: Any) -> FileJournal:
    journal = FileJournal(folder, **settings)
    journals.append(journal)
    return journal


async def written(folder: Path, count: int, **settings: Any) -> list[Path]:
    """A closed journal of so many numbered entries; its segments, oldest first."""
    journal = FileJournal(folder, **settings)
    for number in range(count):
        await journal.append(numbered(number), rows=number)
    await journal.close()
    return segments(folder)


def segments(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.journal"))


async def test_what_was_appended_survives_the_kill_of_the_process(tmp_path: Path, journals: list[FileJournal]) -> None:
    expected = 0
    for told in (1, 40, 400):
        writer = await asyncio.create_subprocess_exec(
            sys.executable, "-c", WRITER, str(tmp_path), stdout=asyncio.subprocess.PIPE
        )
        assert writer.stdout is not None
        async with asyncio.timeout(PATIENCE_S):
            for number in range(told):
                assert int(await writer.stdout.readline()) == number
            writer.send_signal(signal.SIGKILL)
            rest = [int(line) for line in (await writer.stdout.read()).split(b"\n")[:-1]]
            assert await writer.wait() == -signal.SIGKILL
        last = rest[-1] if rest else told - 1
        journal = opened(tmp_path, journals)
        found = await kept(journal)
        here = [number_of(entry) for _, entry in found][expected:]
        assert here == list(range(len(here)))
        assert len(here) in (last + 1, last + 2), "all that it told, and at most the one that it had not told yet"
        assert all(isinstance(entry, Batch) and len(entry) == number_of(entry) % 50 for _, entry in found)
        expected = len(found)
        await journal.close()


@pytest.mark.parametrize("missing", [1, 10, 24, 25, 26, 60, 100])
async def test_last_entry_that_was_cut_off_is_none(
    tmp_path: Path, journals: list[FileJournal], caplog: pytest.LogCaptureFixture, missing: int
) -> None:
    (path,) = await written(tmp_path, 10)
    one = (path.stat().st_size - 8) // 10
    os.truncate(path, path.stat().st_size - missing)
    with caplog.at_level(logging.INFO):
        journal = opened(tmp_path, journals)
    whole = 10 - -(-missing // one)
    assert await numbers(journal) == list(range(whole))
    assert [record.levelname for record in caplog.records] == ["INFO"]
    await journal.append(numbered(77), rows=0)
    await journal.close()
    caplog.clear()
    assert await numbers(opened(tmp_path, journals)) == [*range(whole), 77]
    assert not caplog.records


async def test_segment_that_was_only_begun_is_none(tmp_path: Path, journals: list[FileJournal]) -> None:
    (path,) = await written(tmp_path, 3)
    for content in (b"", b"TWJ", path.read_bytes()[:8]):
        (tmp_path / "000000000002.journal").write_bytes(content)
        journal = opened(tmp_path, journals)
        assert await numbers(journal) == [0, 1, 2]
        await journal.close()


async def test_damage_in_the_middle_keeps_what_is_before_and_says_so(
    tmp_path: Path, journals: list[FileJournal], caplog: pytest.LogCaptureFixture
) -> None:
    paths = await written(tmp_path, 60, segment_bytes=1_000)
    assert len(paths) > 4
    content = bytearray(paths[2].read_bytes())
    content[len(content) // 2] ^= 0x40
    paths[2].write_bytes(content)
    journal = opened(tmp_path, journals)
    found = await numbers(journal)
    assert found == list(range(len(found)))
    assert 60 * 2 // len(paths) - 2 <= len(found) <= 60 * 3 // len(paths) + 2
    assert "000000000003.journal is damaged at byte" in caplog.text
    assert segments(tmp_path) == paths[:3]
    await journal.append(numbered(99), rows=5)
    await journal.close()
    assert await numbers(opened(tmp_path, journals)) == [*found, 99]


async def test_every_flipped_byte_costs_entries_but_never_makes_one_up(
    tmp_path: Path, journals: list[FileJournal]
) -> None:
    (path,) = await written(tmp_path / "whole", 4)
    content = path.read_bytes()
    before = [item async for item in opened(tmp_path / "whole", journals).read()]
    for at in range(0, len(content), 11):
        folder = tmp_path / str(at)
        folder.mkdir()
        flipped = bytearray(content)
        flipped[at] ^= 1 << (at % 8)
        (folder / path.name).write_bytes(flipped)
        journal = FileJournal(folder)
        found = await kept(journal)
        await journal.close()
        assert len(found) < 4
        assert same(found, before[: len(found)])


async def test_missing_segment_ends_the_journal_there(
    tmp_path: Path, journals: list[FileJournal], caplog: pytest.LogCaptureFixture
) -> None:
    paths = await written(tmp_path, 60, segment_bytes=1_000)
    paths[1].unlink()
    found = await numbers(opened(tmp_path, journals))
    assert found == list(range(len(found)))
    assert 0 < len(found) < 60 // len(paths) + 2
    assert "segment 2 is missing" in caplog.text


async def test_one_process_at_a_time_and_the_refusal_names_the_folder(
    tmp_path: Path, journals: list[FileJournal]
) -> None:
    first = opened(tmp_path, journals)
    with pytest.raises(ConfigError, match=str(tmp_path)):
        FileJournal(tmp_path)
    assert "ConfigError: another process has the journal" in await opening_elsewhere(tmp_path)
    await first.close()
    assert await opening_elsewhere(tmp_path) == ""


async def opening_elsewhere(folder: Path) -> str:
    """What another process complains of."""
    program = (
        "import sys, pathlib; from tapewatch.adapters.journal import FileJournal as J; J(pathlib.Path(sys.argv[1]))"
    )
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, str(folder), stderr=asyncio.subprocess.PIPE
    )
    _, said = await other.communicate()
    return said.decode()


async def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(ConfigError, match="file/journal cannot be used"):
        FileJournal(tmp_path / "file" / "journal")


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """The operating system refuses to let a file grow beyond that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


async def test_disk_that_takes_only_half_an_entry_is_unavailable_and_nothing_of_it_stays(
    tmp_path: Path, journals: list[FileJournal]
) -> None:
    journal = opened(tmp_path, journals)
    big = make_batch(symbols=("A",), ts_ns=range(1_000), marks_row=[0], marks_ns=[1])
    await journal.append(numbered(0), rows=0)
    size = journal.kept_bytes
    with files_of_at_most(20_000):
        for _ in range(2):
            with pytest.raises(Unavailable, match="cannot be written: File too large"):
                await journal.append(big, rows=1_000)
    (path,) = segments(tmp_path)
    assert path.stat().st_size == journal.kept_bytes == size
    await journal.append(big, rows=1_000)
    await journal.append(numbered(2), rows=2)
    await journal.close()
    assert await numbers(opened(tmp_path, journals)) == [0, 1, 2]


async def test_disk_without_room_for_another_segment_is_unavailable_until_there_is(
    tmp_path: Path, journals: list[FileJournal]
) -> None:
    journal = opened(tmp_path, journals, segment_bytes=100)
    await journal.append(numbered(0), rows=0)
    with files_of_at_most(4), pytest.raises(Unavailable, match="File too large"):
        await journal.append(numbered(1), rows=1)
    await journal.append(numbered(1), rows=1)
    assert await numbers(journal) == [0, 1]


async def test_disk_that_fails_to_keep_what_it_took_is_told_once_and_another_segment_begun(
    tmp_path: Path, journals: list[FileJournal], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = opened(tmp_path, journals)
    sync, failed = os.fsync, asyncio.Event()
    loop = asyncio.get_running_loop()

    def fail(file: int) -> None:
        monkeypatch.setattr(os, "fsync", sync)
        loop.call_soon_threadsafe(failed.set)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    await journal.append(numbered(0), rows=0)
    async with asyncio.timeout(PATIENCE_S):
        await failed.wait()
        while journal._disk._problem is None:  # noqa: ASYNC110  # the thread is about to say it
            await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="Input/output error"):
        await journal.append(numbered(1), rows=1)
    await journal.append(numbered(1), rows=1)
    assert await numbers(journal) == [0, 1]
    assert len(segments(tmp_path)) == 2


async def test_disk_is_asked_to_keep_what_was_written(
    tmp_path: Path, journals: list[FileJournal], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    done = asyncio.Event()
    loop, sync = asyncio.get_running_loop(), os.fsync

    def watched(file: int) -> None:
        size = os.fstat(file).st_size
        sync(file)
        sizes.append(size)
        loop.call_soon_threadsafe(done.set)

    monkeypatch.setattr(os, "fsync", watched)
    journal = opened(tmp_path, journals)
    for number in range(3):
        await journal.append(numbered(number), rows=number)
        async with asyncio.timeout(PATIENCE_S):
            while journal.kept_bytes not in sizes:
                done.clear()
                await done.wait()


async def test_old_segments_go_when_both_bounds_allow(tmp_path: Path, journals: list[FileJournal]) -> None:
    def batch(number: int) -> Batch:
        return make_batch(symbols=("A",), ts_ns=range(100), marks_row=[0], marks_ns=[number])

    rows = opened(tmp_path / "rows", journals, keep_bytes=60_000, keep_rows=1_500, segment_bytes=5_000)
    both = opened(tmp_path / "both", journals, keep_bytes=60_000, keep_rows=100, segment_bytes=5_000)
    bytes_ = opened(tmp_path / "bytes", journals, keep_bytes=30_000, keep_rows=10**9, segment_bytes=5_000)
    for number in range(200):
        for journal in (rows, both, bytes_):
            await journal.append(batch(number), rows=number * 100)
    assert 1_500 <= rows.kept_rows <= 1_800
    assert 60_000 < rows.kept_bytes < 120_000
    assert 50_000 < both.kept_bytes <= 60_000 + 12_000
    assert 50_000 < bytes_.kept_bytes <= 2 * 30_000 + 12_000
    for journal, folder in ((rows, "rows"), (both, "both"), (bytes_, "bytes")):
        assert journal.kept_bytes == sum(path.stat().st_size for path in segments(tmp_path / folder))
        found = await numbers(journal)
        assert found == list(range(200 - len(found), 200))
        assert journal.kept_rows == 100 * len(found)
        before = journal.kept_rows, journal.kept_bytes
        await journal.close()
        again = opened(tmp_path / folder, journals)
        assert (again.kept_rows, again.kept_bytes) == before


async def test_reader_goes_on_over_a_segment_that_went_meanwhile(tmp_path: Path, journals: list[FileJournal]) -> None:
    journal = opened(tmp_path, journals, keep_bytes=4_000, keep_rows=1, segment_bytes=1_000)
    for number in range(40):
        await journal.append(numbered(number), rows=number)
    reader = journal.read()
    first = number_of((await anext(reader))[1])
    for number in range(40, 43):
        await journal.append(numbered(number), rows=number)
    rest = [number_of(entry) async for _, entry in reader]
    assert rest == sorted(rest)
    assert rest[-1] == 39
    assert first < rest[0]


async def test_names_that_many_batches_share_are_kept_once_in_a_segment(
    tmp_path: Path, journals: list[FileJournal]
) -> None:
    symbols = tuple(f"S{number:05}" for number in range(10_000))
    journal = opened(tmp_path, journals, segment_bytes=400_000)
    batches = [
        make_batch(symbols=symbols, conditions=("@",), symbol=range(100), ts_ns=np.arange(100) + number)
        for number in range(200)
    ]
    for batch in batches:
        await journal.append(batch, rows=1)
    files = len(segments(tmp_path))
    assert 2 <= files <= 5
    assert journal.kept_bytes < files * 120_000 + 200 * 100 * 50
    assert same([entry for _, entry in await kept(journal)], batches)


async def test_segment_of_a_release_that_wrote_other_messages_is_dropped(
    tmp_path: Path, journals: list[FileJournal], caplog: pytest.LogCaptureFixture
) -> None:
    (path,) = await written(tmp_path, 5)
    content = bytearray(path.read_bytes())
    content[4] += 1
    path.write_bytes(content)
    journal = opened(tmp_path, journals)
    assert await numbers(journal) == []
    assert "is damaged at byte 0" in caplog.text
    await journal.append(numbered(1), rows=1)
    assert await numbers(journal) == [1]


@pytest.mark.parametrize("wrong", [{"keep_bytes": 0}, {"keep_rows": 0}, {"segment_bytes": 0}])
def test_journal_without_room_is_refused(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        FileJournal(tmp_path, **wrong)


def test_defaults_hold_half_a_million_rows() -> None:
    assert (journal_module.KEEP_BYTES, journal_module.KEEP_ROWS) == (256_000_000, 500_000)
