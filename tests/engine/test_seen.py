"""Repeated trades are found as a plain dictionary would find them, in chunks of any size."""

from dataclasses import replace

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
        assert seen.repeats(trades(chunk)).repeated.tolist() == expected


CONTENTS = (10.0, 100.0, 0), (10.01, 100.0, 0), (10.0, 200.0, 0), (10.0, 100.0, 1_000_000), (100.0, 10.0, 0)
"""Price, size and nanoseconds: no two say the same."""


def said(trades_: list[tuple[int, int]], *, exchange: str = "N") -> Batch:
    """Trade ids, each with the number of its content."""
    price, size, later_ns = (np.array([CONTENTS[number][part] for _, number in trades_]) for part in range(3))
    named = trades([trade_id for trade_id, _ in trades_], exchange=exchange)
    return replace(named, price=price.astype(float), size=size.astype(float), ts_ns=named.ts_ns + later_ns.astype(int))


IDS = st.tuples(st.integers(1, 60), st.sampled_from((0, 0, 0, 1, 2, 3, 4)))


@given(st.lists(st.lists(IDS, max_size=40), max_size=12), st.sampled_from((None, 20)))
def test_conflicts_are_repetitions_of_another_content_than_the_first(
    chunks: list[list[tuple[int, int]]], most: int | None
) -> None:
    seen, newest, older = SeenTrades(most=most), dict[int, int](), dict[int, int]()
    for chunk in chunks:
        expected = []
        found_before = {trade_id for trade_id, _ in chunk if trade_id in older}
        for trade_id, number in chunk:
            known = older if trade_id in found_before else newest
            expected.append((trade_id in known, known.setdefault(trade_id, number) != number))
        again = seen.repeats(said(chunk))
        assert list(zip(again.repeated.tolist(), again.conflicting.tolist(), strict=True)) == expected
        if most is not None and len(newest) >= most:
            newest, older = {}, newest


def test_conflicts_with_trades_of_before_the_table_grew_are_found() -> None:
    ids = np.random.default_rng(5).permutation(50_000) + 1
    seen = SeenTrades()
    for part in np.array_split(ids, 7):
        assert not seen.repeats(said([(i, 0) for i in part.tolist()])).conflicting.any()
    assert not seen.repeats(said([(i, 0) for i in ids.tolist()])).conflicting.any()
    # one in 65,536 passes for a plain repetition
    assert np.count_nonzero(seen.repeats(said([(i, 1) for i in ids.tolist()])).conflicting) > 49_980


def test_microseconds_make_no_conflict_and_another_trade_of_a_facility_makes_none() -> None:
    seen = SeenTrades()
    first = trades([7, 8])
    seen.repeats(first)
    again = seen.repeats(replace(first, ts_ns=first.ts_ns + np.array([999_999, 1_000_000])))
    assert (again.repeated.tolist(), again.conflicting.tolist()) == ([True, True], [False, True])
    reported = seen.repeats(said([(7, 0), (7, 1), (7, 2), (7, 3), (7, 0)], exchange="D"))
    assert reported.repeated.tolist() == [False, False, False, False, True]
    assert not reported.conflicting.any()


def test_a_hundred_thousand_trades_and_their_repetition() -> None:
    ids = np.random.default_rng(5).permutation(100_000) + 1
    seen = SeenTrades()
    for part in np.array_split(ids, 7):
        assert not seen.repeats(trades(part.tolist())).repeated.any()
    assert seen.repeats(trades(ids.tolist())).repeated.all()
    assert not seen.repeats(trades((ids + 100_000).tolist())).repeated.any()


def test_feeds_with_dictionaries_of_their_own_agree_on_a_trade() -> None:
    seen = SeenTrades()
    seen.repeats(trades([7, 8], symbols=("A", "B"), symbol=1))
    assert seen.repeats(trades([7, 9], symbols=("B",))).repeated.tolist() == [True, False]
    assert seen.repeats(trades([7], symbols=("B", "A"), symbol=1)).repeated.tolist() == [False]


@pytest.mark.parametrize("kind", [Kind.CANCEL, Kind.CORRECTION, Kind.HALT, Kind.BID])
def test_a_row_that_is_no_trade_repeats_nothing(kind: Kind) -> None:
    seen = SeenTrades()
    row = trades([7])
    fact = make_batch(symbols=("A",), ts_ns=[NOON_NS], kind=[kind], exchange=[ord("N")], trade_id=[7])
    assert not seen.repeats(fact).repeated.any()
    assert not seen.repeats(row).repeated.any()
    assert not seen.repeats(fact).repeated.any()


def test_rows_outside_the_mask_neither_repeat_nor_are_repeated() -> None:
    seen = SeenTrades()
    assert seen.repeats(trades([7, 7, 7]), np.array([False, True, True])).repeated.tolist() == [False, False, True]


def test_memory_is_bounded_and_the_newest_are_remembered() -> None:
    seen = SeenTrades(most=1000)
    for start in range(1, 20_001, 500):
        assert not seen.repeats(trades(list(range(start, start + 500)))).repeated.any()
    assert seen.repeats(trades(list(range(19_001, 20_001)))).repeated.all()
    assert seen._newest.count + seen._older.count <= 2500
