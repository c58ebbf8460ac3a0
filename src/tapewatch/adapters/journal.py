"""Ingest's journal as files in a folder: numbered segments, which only grow.

Owns the folder (a lock keeps other processes out), what is kept and what the disk has. How entries lie in a segment is
said in `journal_segments`.

An append is one write to the operating system, on the caller's event loop: some 0.1 ms for 1,000 rows. A thread has the
disk keep it, each `SYNC_EACH_S`. When something is full or broken:

- The oldest segments go while there are more than `keep_bytes` and at least `keep_rows` rows of batches remain without
  them, and whatever their rows while there are more than twice `keep_bytes`.
- A write that the disk refuses is `Unavailable` and leaves nothing behind; so is the append after the disk failed to
  keep what it had taken, and the next one begins another segment.
- A last frame that was cut off is left out. Damage anywhere else ends the journal there: what follows is dropped.
"""

import asyncio
import fcntl
import logging
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path

from tapewatch.adapters.journal_segments import (
    BEGINNING,
    ENTRY,
    HEAD,
    SUFFIX,
    Segment,
    framed,
    frames,
    joined,
    open_folder,
    parted,
)
from tapewatch.engine.columns import Batch
from tapewatch.errors import BadBatch, ConfigError, Unavailable
from tapewatch.ports import Entry
from tapewatch.wire import decode, encode

KEEP_BYTES = 256_000_000
KEEP_ROWS = 500_000
SEGMENT_BYTES = 16_000_000
SYNC_EACH_S = 0.1

_TURN = 16
"""A reader lets the others run after this many entries."""

log = logging.getLogger(__name__)


class FileJournal:
    """`Journal` in a folder. Opening it reads and checks all that is there. Belongs to one event loop."""

    def __init__(
        self,
        folder: Path,
        *,
        keep_bytes: int = KEEP_BYTES,
        keep_rows: int = KEEP_ROWS,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> None:
        """`ConfigError` when the folder cannot be used, or another process has it."""
        if min(keep_bytes, keep_rows, segment_bytes) < 1:
            raise ValueError("a journal keeps at least one byte and one row")
        self._folder, self._keep_bytes, self._keep_rows = folder, keep_bytes, keep_rows
        self._segment_bytes = segment_bytes
        self._closed = False
        self._file: int | None = None
        """The newest segment, open for writing; None before the first append, and after the disk failed."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"the journal {folder} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._segments = open_folder(folder)
        except BlockingIOError:
            os.close(self._lock)
            raise ConfigError(f"another process has the journal {folder}: each needs a folder of its own") from None
        except OSError as error:
            os.close(self._lock)
            raise ConfigError(f"the journal {folder} cannot be used: {error.strerror}") from None
        self._next = self._segments[-1].number + 1 if self._segments else 1
        self._disk = _Disk()

    @property
    def kept_bytes(self) -> int:
        return sum(segment.size for segment in self._segments)

    @property
    def kept_rows(self) -> int:
        """Rows of the batches that are kept."""
        return sum(segment.rows for segment in self._segments)

    async def append(self, entry: Entry, *, rows: int) -> None:
        if self._closed:
            raise Unavailable(f"the journal {self._folder} is closed")
        message = encode(entry)
        own_rows = len(entry) if isinstance(entry, Batch) else 0
        try:
            self._check_disk()
            if self._file is None or self._segments[-1].size >= self._segment_bytes:
                self._begin_segment()
            self._write(message, own_rows, rows)
        except OSError as error:
            raise Unavailable(f"the journal {self._folder} cannot be written: {error.strerror or error}") from None

    def read(self) -> AsyncIterator[tuple[int, Entry]]:
        return self._entries([(segment.path, segment.size) for segment in self._segments])

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await asyncio.to_thread(self._disk.close)
            self._file = None
            os.close(self._lock)

    # -- writing ------------------------------------------------------------------------------------------------------

    def _check_disk(self) -> None:
        problem = self._disk.problem()
        if problem is not None:
            self._file = None
            raise problem

    def _begin_segment(self) -> None:
        """A process never goes on in a segment of an earlier one."""
        path = self._folder / f"{self._next:012d}{SUFFIX}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            _write_all(file, [BEGINNING], 0)
        except OSError:
            os.close(file)
            path.unlink(missing_ok=True)
            raise
        self._segments.append(Segment(self._next, path))
        self._next += 1
        self._file = file
        self._disk.keep(file, self._folder)
        self._prune()

    def _write(self, message: bytes, own_rows: int, rows: int) -> None:
        segment, file = self._segments[-1], self._file
        assert file is not None  # noqa: S101  # a segment was begun
        before, head, after = parted(message)
        number = segment.heads.get(head, 0)
        parts: list[bytes | memoryview] = []
        if head and not number:
            number = len(segment.heads) + 1
            parts += framed(HEAD, number, 0, 0, [head])
        parts += framed(ENTRY, number, own_rows, rows, [before, after])
        try:
            written = _write_all(file, parts, segment.size)
        except OSError:
            os.ftruncate(file, segment.size)
            raise
        segment.size += written
        segment.rows += own_rows
        if head:
            segment.heads[head] = number
        self._disk.wrote()

    def _prune(self) -> None:
        kept_bytes, kept_rows = self.kept_bytes, self.kept_rows
        for segment in self._segments[:-1]:
            spare = kept_bytes > self._keep_bytes and kept_rows - segment.rows >= self._keep_rows
            if not spare and kept_bytes <= 2 * self._keep_bytes:
                break
            segment.path.unlink(missing_ok=True)
            self._segments.remove(segment)
            kept_bytes, kept_rows = kept_bytes - segment.size, kept_rows - segment.rows

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _entries(self, segments: list[tuple[Path, int]]) -> AsyncIterator[tuple[int, Entry]]:
        served = 0
        for path, size in segments:
            try:
                content = await asyncio.to_thread(path.read_bytes)
            except FileNotFoundError:  # it was the oldest, and went while the reader was on its way
                continue
            except OSError as error:
                raise Unavailable(f"the journal {self._folder} cannot be read: {error.strerror}") from None
            heads: dict[int, memoryview] = {}
            for frame in frames(memoryview(content)[:size]):
                if frame.kind == HEAD:
                    heads[frame.head] = frame.content
                    continue
                served += 1
                if served % _TURN == 0:
                    await asyncio.sleep(0)
                try:
                    entry = decode(joined(frame, heads))
                except BadBatch as error:
                    log.warning("%s of the journal holds %s; it is read up to there", path.name, error)
                    return
                yield frame.rows, entry


class _Disk:
    """A thread that has the disk keep what was written. The newest file is synced, and closed when another follows."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._files: list[int] = []
        self._folders: set[Path] = set()
        self._dirty = False
        self._closing = False
        self._problem: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="journal disk", daemon=True)
        self._thread.start()

    def keep(self, file: int, folder: Path) -> None:
        """From now on this is the file that is written; the folder has got a new name in it."""
        with self._changed:
            self._files.append(file)
            self._folders.add(folder)
            self._dirty = True
            self._changed.notify()

    def wrote(self) -> None:
        if not self._dirty:  # else it is awake
            with self._changed:
                self._dirty = True
                self._changed.notify()

    def problem(self) -> OSError | None:
        """What the disk said since the last call, if it failed."""
        if self._problem is None:
            return None
        with self._changed:
            problem, self._problem = self._problem, None
        return problem

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._dirty or self._closing)
                closing, files, folders = self._closing, list(self._files), self._folders
                # Before the sync: what is written while it runs wants another.
                self._dirty, self._folders = False, set()
                del self._files[: len(files) if closing else max(0, len(files) - 1)]
            try:
                for file in files:
                    os.fsync(file)
                for folder in folders:
                    _sync_folder(folder)
            except OSError as error:
                log.error("the disk of the journal failed: %s", error)  # noqa: TRY400  # its place says nothing
                with self._changed:
                    self._problem = error
            for file in files if closing else files[:-1]:
                os.close(file)
            if closing:
                return
            with self._changed:
                self._changed.wait_for(lambda: self._closing, SYNC_EACH_S)


def _sync_folder(folder: Path) -> None:
    place = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(place)
    finally:
        os.close(place)


def _write_all(file: int, parts: list[bytes | memoryview], at: int) -> int:
    size = sum(map(len, parts))
    written = os.pwritev(file, parts, at)
    while written < size:
        rest = b"".join(parts)[written:]
        written += os.pwrite(file, rest, at + written)
    return size
