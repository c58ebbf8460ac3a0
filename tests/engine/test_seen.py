"""Repeated trades are found as a plain set would find them, in chunks of any size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.engine.columns import Batch, Kind, make_batch
from tapewatch.engine.seen import SeenTrades

NOON_NS = 1_700_000_000_000_000_000


def trades(ids: list[int], *, symbols: tuple[str, ...] = ("A",), symbol: int = 0, exchange: str = "N") -> Batch:
    n = len(ids)
    return make_batch(
        symbols=symbols,
        symbol=[symbol] * n,
        ts_ns=[NOON_NS] * n,
        price=[10.0] * n,
        size=[100.0] * n,
        exchange=[ord(exchange)] * n,
        trade_id=ids,
    )


@given(st.lists(st.lists(st.integers(1, 60), max_size=40), max_size=12))
def test_every_repetition_is_found_in_the_order_of_arrival(chunks: list[list[int]]) -> None:
    seen, known = SeenTrades(), set[int]()
    for chunk in chunks:
        expected = []
        for trade_id in chunk:
            expected.append(trade_id in known)
            known.add(trade_id)
        assert seen.repeated(trades(chunk)).tolist() == expected


def test_a_hundred_thousand_trades_and_their_repetition() -> None:
    ids = np.random.default_rng(5).permutation(100_000) + 1
    seen = SeenTrades()
    for part in np.array_split(ids, 7):
        assert not seen.repeated(trades(part.tolist())).any()
    assert seen.repeated(trades(ids.tolist())).all()
    assert not seen.repeated(trades((ids + 100_000).tolist())).any()


def test_feeds_with_dictionaries_of_their_own_agree_on_a_trade() -> None:
    seen = SeenTrades()
    seen.repeated(trades([7, 8], symbols=("A", "B"), symbol=1))
    assert seen.repeated(trades([7, 9], symbols=("B",))).tolist() == [True, False]
    assert seen.repeated(trades([7], symbols=("B", "A"), symbol=1)).tolist() == [False]


@pytest.mark.parametrize("kind", [Kind.CANCEL, Kind.CORRECTION, Kind.HALT, Kind.BID])
def test_a_row_that_is_no_trade_repeats_nothing(kind: Kind) -> None:
    seen = SeenTrades()
    row = trades([7])
    fact = make_batch(symbols=("A",), ts_ns=[NOON_NS], kind=[kind], exchange=[ord("N")], trade_id=[7])
    assert not seen.repeated(fact).any()
    assert not seen.repeated(row).any()
    assert not seen.repeated(fact).any()


def test_rows_outside_the_mask_neither_repeat_nor_are_repeated() -> None:
    seen = SeenTrades()
    assert seen.repeated(trades([7, 7, 7]), np.array([False, True, True])).tolist() == [False, False, True]


def test_memory_is_bounded_and_the_newest_are_remembered() -> None:
    seen = SeenTrades(most=1000)
    for start in range(1, 20_001, 500):
        assert not seen.repeated(trades(list(range(start, start + 500)))).any()
    assert seen.repeated(trades(list(range(19_001, 20_001)))).all()
    assert seen._newest.count + seen._older.count <= 2500
