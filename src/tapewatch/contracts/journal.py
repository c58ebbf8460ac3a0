"""What every `Journal` keeps its word about. The fixtures are named by `JournalContract`."""

from collections.abc import Callable

import pytest

from tapewatch.contracts.samples import every_kind_of_entry, number_of, numbered, same, soon
from tapewatch.engine.columns import make_batch
from tapewatch.errors import Unavailable
from tapewatch.ports import Entry, Journal

OpenJournal = Callable[[], Journal]


async def kept(journal: Journal) -> list[tuple[int, Entry]]:
    async def drain() -> list[tuple[int, Entry]]:
        return [item async for item in journal.read()]

    return await soon(drain())


async def numbers(journal: Journal) -> list[int]:
    return [number_of(entry) for _, entry in await kept(journal)]


@pytest.mark.anyio
class JournalContract:
    """Give `open_journal`: each call opens the same place again, as a next life would, and what it opened is closed
    when the test ends; and `kept_rows`, the least number of rows that those journals keep.
    """

    @pytest.fixture
    def open_journal(self) -> OpenJournal:
        raise NotImplementedError

    @pytest.fixture
    def kept_rows(self) -> int:
        raise NotImplementedError

    async def test_journal_begins_empty(self, open_journal: OpenJournal) -> None:
        journal = open_journal()
        assert await kept(journal) == []
        await journal.close()
        assert await kept(open_journal()) == []

    async def test_entries_come_back_in_order_with_the_rows_they_were_given(self, open_journal: OpenJournal) -> None:
        journal = open_journal()
        for number in range(100):
            await journal.append(numbered(number), rows=number * 7)
        found = await kept(journal)
        assert [(rows, number_of(entry)) for rows, entry in found] == [(number * 7, number) for number in range(100)]

    async def test_every_kind_of_entry_survives_to_the_last_bit(self, open_journal: OpenJournal) -> None:
        entries = every_kind_of_entry()
        journal = open_journal()
        for entry in (*entries, *reversed(entries)):
            await journal.append(entry, rows=2**62)
        assert same([entry for _, entry in await kept(journal)], [*entries, *reversed(entries)])
        await journal.close()
        found = await kept(open_journal())
        assert same([entry for _, entry in found], [*entries, *reversed(entries)])
        assert {rows for rows, _ in found} == {2**62}

    async def test_next_life_goes_on_behind_what_the_one_before_wrote(self, open_journal: OpenJournal) -> None:
        for life in range(4):
            journal = open_journal()
            assert await numbers(journal) == list(range(life * 10))
            for number in range(life * 10, life * 10 + 10):
                await journal.append(numbered(number), rows=number)
            assert await numbers(journal) == list(range(life * 10 + 10))
            await journal.close()

    async def test_reader_is_given_what_was_there_when_it_began(self, open_journal: OpenJournal) -> None:
        journal = open_journal()
        for number in range(50):
            await journal.append(numbered(number), rows=number)
        found: list[int] = []
        async for _, entry in journal.read():
            found.append(number_of(entry))
            await journal.append(numbered(1_000 + len(found)), rows=0)
        assert found == list(range(50))
        assert await numbers(journal) == [*range(50), *range(1_001, 1_051)]

    async def test_reader_that_leaves_early_leaves_nothing_behind(self, open_journal: OpenJournal) -> None:
        journal = open_journal()
        for number in range(5):
            await journal.append(numbered(number), rows=number)
        reader = journal.read()
        assert number_of((await soon(anext(reader)))[1]) == 0
        del reader
        assert await numbers(journal) == [0, 1, 2, 3, 4]

    async def test_newest_rows_are_kept_without_holes(self, open_journal: OpenJournal, kept_rows: int) -> None:
        journal = open_journal()
        each = kept_rows // 20
        for number in range(100):
            batch = make_batch(symbols=("A",), ts_ns=range(each), marks_row=[0], marks_ns=[number])
            await journal.append(batch, rows=(number + 1) * each)
            found = await numbers(journal)
            assert found == list(range(number + 1 - len(found), number + 1))
            assert len(found) * each >= min(kept_rows, (number + 1) * each)
        assert len(await numbers(journal)) < 100, "a journal is bounded"

    async def test_closed_journal_is_unavailable_and_may_be_closed_again(self, open_journal: OpenJournal) -> None:
        journal = open_journal()
        await journal.close()
        await journal.close()
        with pytest.raises(Unavailable, match="closed"):
            await journal.append(numbered(0), rows=0)
