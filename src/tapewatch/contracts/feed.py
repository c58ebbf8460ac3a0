"""What every `Feed` keeps its word about. The fixture is named by `FeedContract`."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from tapewatch.contracts.samples import same, soon
from tapewatch.engine.columns import ROW_COLUMNS, Batch, Kind
from tapewatch.ports import Feed

OpenFeed = Callable[[], Feed]

COLUMN_TYPES = {
    "symbol": np.int32,
    "condition": np.uint16,
    "kind": np.uint8,
    "ts_ns": np.int64,
    "price": np.float64,
    "size": np.float64,
    "tape": np.uint8,
    "exchange": np.uint8,
    "trade_id": np.int64,
    "marks_row": np.int64,
    "marks_ns": np.int64,
}


async def collect(feed: Feed) -> list[Batch]:
    async def drain() -> list[Batch]:
        return [batch async for batch in feed.batches() if isinstance(batch, Batch)]

    return await soon(drain())


def plain(batches: list[Batch]) -> dict[str, list[Any]]:
    """The whole tape as columns, however it was cut: words instead of indices, marks by their place in the whole."""
    tape: dict[str, list[Any]] = {name: [] for name in (*ROW_COLUMNS, "marks_row", "marks_ns")}
    for batch in batches:
        start = len(tape["ts_ns"])
        for name in ROW_COLUMNS:
            tape[name] += getattr(batch, name).tolist()
        tape["symbol"][start:] = [batch.symbols[index] for index in batch.symbol]
        tape["condition"][start:] = [batch.conditions[index] for index in batch.condition]
        tape["marks_row"] += (batch.marks_row + start).tolist()
        tape["marks_ns"] += batch.marks_ns.tolist()
    return tape


@pytest.mark.anyio
class FeedContract:
    """Give `open_feed`: each call makes a fresh feed of the same data, which ends and has at least one row."""

    @pytest.fixture
    def open_feed(self) -> OpenFeed:
        raise NotImplementedError

    async def test_columns_have_their_types_and_one_length(self, open_feed: OpenFeed) -> None:
        batches = await collect(open_feed())
        assert sum(map(len, batches)) > 0
        for batch in batches:
            for name, dtype in COLUMN_TYPES.items():
                assert getattr(batch, name).dtype == dtype, name
            assert {getattr(batch, name).shape for name in ROW_COLUMNS} == {(len(batch),)}
            assert batch.marks_row.shape == batch.marks_ns.shape == (len(batch.marks_ns),)

    async def test_indices_are_inside_their_dictionaries(self, open_feed: OpenFeed) -> None:
        for batch in await collect(open_feed()):
            assert len(set(batch.symbols)) == len(batch.symbols)
            assert ((batch.symbol >= 0) & (batch.symbol < len(batch.symbols))).all()
            assert (batch.condition < len(batch.conditions)).all()
            assert np.isin(batch.kind, [int(kind) for kind in Kind]).all()

    async def test_marks_ascend_and_stand_between_the_rows(self, open_feed: OpenFeed) -> None:
        watermark_ns = np.iinfo(np.int64).min
        marks = 0
        for batch in await collect(open_feed()):
            assert (np.diff(batch.marks_row) >= 0).all()
            assert ((batch.marks_row >= 0) & (batch.marks_row <= len(batch))).all()
            for mark_ns in batch.marks_ns.tolist():
                assert mark_ns >= watermark_ns
                watermark_ns = mark_ns
                marks += 1
        assert marks > 0, "without a mark no minute ever closes"

    async def test_trades_have_a_price_and_a_size(self, open_feed: OpenFeed) -> None:
        for batch in await collect(open_feed()):
            trades = batch.kind == Kind.TRADE
            assert (np.isfinite(batch.price[trades]) & (batch.price[trades] > 0)).all()
            assert (np.isfinite(batch.size[trades]) & (batch.size[trades] >= 0)).all()

    async def test_arrays_cannot_be_written(self, open_feed: OpenFeed) -> None:
        for batch in await collect(open_feed()):
            for field in fields(batch):
                value = getattr(batch, field.name)
                assert not (isinstance(value, np.ndarray) and value.flags.writeable), field.name

    async def test_two_fresh_feeds_give_equal_tapes(self, open_feed: OpenFeed) -> None:
        one, other = open_feed(), open_feed()
        assert same(plain(await collect(one)), plain(await collect(other)))
        assert dict(one.rejected) == dict(other.rejected)

    async def test_feed_has_a_name_and_counts_what_it_left_out(self, open_feed: OpenFeed) -> None:
        feed = open_feed()
        await collect(feed)
        assert feed.name
        assert all(reason and count > 0 for reason, count in feed.rejected.items())
