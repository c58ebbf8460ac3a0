"""Cancels and corrections: afterwards everything stands as if the print had been right from the start."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import SECOND, Mark, Row
from tapes import METRICS, STYLES, VENDORS, make_tape, new_york, trading_days

from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import Batch, Kind, make_batch
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import All, Ruleset, RuleSpec, compare
from tapewatch.engine.scanner import Scanner, Step, Withdrawn

OPEN_NS = new_york("2025-03-06 09:30")
CANDLES = (
    "high_5m",
    "close_5m[1]",
    "candle_volume_5m[1]",
    "sma_5_2m",
    "inside_bar_5m",
    "macd_1m",
    "low_1h",
)
ASKED = (*METRICS, *CANDLES)
EVERYTHING = Ruleset(
    number=1,
    rules=(RuleSpec(id="all", version=1, name="all", when=All(tuple(compare(m, ">", 1e12) for m in ASKED))),),
)


@dataclass(frozen=True)
class Line:
    """A row with its id, or a mark (`row` None)."""

    row: Row | None = None
    trade_id: int = 0
    kind: Kind = Kind.TRADE
    mark_ns: int = 0


def batch_of(lines: Sequence[Line]) -> Batch:
    rows = [(line, line.row) for line in lines if line.row is not None]
    symbols = tuple(dict.fromkeys(row.symbol for _, row in rows))
    conditions = tuple(dict.fromkeys(row.conditions for _, row in rows)) or ("",)
    before = np.cumsum([line.row is not None for line in lines])
    return make_batch(
        symbols=symbols,
        conditions=conditions,
        symbol=[symbols.index(row.symbol) for _, row in rows],
        condition=[conditions.index(row.conditions) for _, row in rows],
        kind=[line.kind for line, _ in rows],
        ts_ns=[row.ts_ns for _, row in rows],
        price=[row.price for _, row in rows],
        size=[row.size for _, row in rows],
        tape=[ord(row.tape or "\0") for _, row in rows],
        exchange=[ord("N")] * len(rows),
        trade_id=[line.trade_id for line, _ in rows],
        marks_row=[int(before[at]) for at, line in enumerate(lines) if line.row is None],
        marks_ns=[line.mark_ns for line in lines if line.row is None],
    )


def withdrawn(steps: Sequence[Step]) -> list[Withdrawn]:
    return [print_ for step in steps for _, print_ in step.withdrawn]


def scanner_after(lines: Sequence[Line], *, cut: int = 1_000_000) -> tuple[Scanner, list[Step]]:
    scanner = Scanner(
        days=trading_days(), profile=load_profile("alpaca"), scan_interval_ns=30 * SECOND, kept_trades=1_000
    )
    scanner.apply(EVERYTHING)
    steps = [scanner.step(batch_of(lines[at : at + cut])) for at in range(0, len(lines), cut)]
    return scanner, steps


def final_bars(steps: Sequence[Step]) -> dict[tuple[str, int], tuple[float, ...]]:
    bars: dict[tuple[str, int], tuple[float, ...]] = {}
    for part in (bars for step in steps for bars in step.bars):
        for i in range(len(part)):
            values = (part.open[i], part.high[i], part.low[i], part.close[i], part.volume[i], part.trade_count[i])
            bars[part.symbols[part.symbol[i]], int(part.ts_ns[i])] = tuple(map(float, values))
    return {key: values for key, values in bars.items() if not math.isnan(values[0])}


def trade(
    second: float, price: float, trade_id: int, *, size: float = 100.0, symbol: str = "A", letters: str = "@"
) -> Line:
    return Line(Row(symbol, OPEN_NS + round(second * SECOND), price, size, letters, "C"), trade_id)


def mark(second: float) -> Line:
    return Line(mark_ns=OPEN_NS + round(second * SECOND))


def cancel(second: float, trade_id: int, *, symbol: str = "A") -> Line:
    return Line(Row(symbol, OPEN_NS + round(second * SECOND), math.nan, math.nan, "", "C"), trade_id, Kind.CANCEL)


def correct(second: float, trade_id: int, price: float, *, size: float = 100.0, letters: str = "@") -> Line:
    row = Row("A", OPEN_NS + round(second * SECOND), price, size, letters, "C")
    return Line(row, trade_id, Kind.CORRECTION)


DAY = [mark(0), trade(1, 10, 1), trade(2, 12, 2), trade(3, 8, 3), trade(4, 11, 4), mark(5), trade(61, 10.5, 5)]


@pytest.mark.parametrize(
    ("gone", "prices"),
    [(1, (12, 12, 8, 11, 300)), (2, (10, 11, 8, 11, 300)), (3, (10, 12, 10, 11, 300)), (4, (10, 12, 8, 8, 300))],
    ids=["open", "high", "low", "close"],
)
def test_cancelled_print_leaves_its_live_bar(gone: int, prices: tuple[float, ...]) -> None:
    _, steps = scanner_after([*DAY, cancel(62, gone), mark(125)])
    assert final_bars(steps)["A", OPEN_NS][:5] == prices


def test_cancel_after_the_close_of_the_minute_revises_its_bar() -> None:
    _, steps = scanner_after([*DAY, mark(70), cancel(71, 2), mark(72)])
    revisions = [(bars.high.tolist(), bars.revision.tolist()) for step in steps for bars in step.bars]
    assert revisions == [([12.0], [0]), ([11.0], [1])]


def test_corrected_print_counts_as_it_should_have_been() -> None:
    scanner, steps = scanner_after([*DAY, mark(70), correct(71, 2, 13.5, size=50), mark(72)])
    assert final_bars(steps)["A", OPEN_NS] == (10, 13.5, 8, 11, 350, 4)
    board = scanner.board_rows(("high_day", "volume_day"))
    assert board.values[:, 0].tolist() == [13.5, 450]


def test_correction_to_an_odd_lot_takes_the_price_away() -> None:
    _, steps = scanner_after([*DAY, correct(62, 2, 12, size=5, letters="@I"), mark(125)])
    assert final_bars(steps)["A", OPEN_NS] == (10, 11, 8, 11, 305, 4)


def test_bar_whose_only_print_is_cancelled_is_withdrawn() -> None:
    _, steps = scanner_after([mark(0), trade(1, 10, 1), mark(62), trade(63, 11, 2), cancel(64, 1), mark(65)])
    last = steps[-1].bars[-1]
    assert math.isnan(last.open[0])
    assert last.volume.tolist() == [0.0]
    assert last.revision.tolist() == [1]
    assert final_bars(steps) == {}


def test_day_extremes_volume_and_price_go_back() -> None:
    scanner, steps = scanner_after([*DAY, trade(62, 99, 6), mark(63), cancel(64, 6), mark(66)])
    names = ("price", "high_day", "low_day", "volume_day", "high_session", "vwap_session")
    assert scanner.board_rows(names).values[:, 0].tolist() == [10.5, 12, 8, 500, 12, pytest.approx(10.3)]
    assert steps[0].withdrawn == [(0, Withdrawn("A", OPEN_NS + 62 * SECOND, 99.0, 100.0, None))]


def test_change_looks_back_at_the_price_without_the_cancelled_print() -> None:
    prints = [mark(0), trade(1, 10, 1), trade(30, 20, 2), mark(40), cancel(41, 2), trade(80, 11, 3), mark(95)]
    scanner, _ = scanner_after(prints)
    assert scanner.board_rows(("change_pct_1m",)).values[0, 0] == pytest.approx(10.0)


@pytest.mark.parametrize(
    ("amendment", "counter"),
    [
        (cancel(62, 99), "amendments_unknown"),
        (cancel(62, 2, symbol="B"), "amendments_unknown"),
        (cancel(62, 0), "amendments_unknown"),
        (correct(62, 2, -1.0), "amendments_refused"),
        (correct(62, 2, math.nan), "amendments_refused"),
        (correct(62, 2, 10.0, size=0.0), "amendments_refused"),
    ],
)
def test_amendment_of_no_known_print_or_to_nonsense_is_counted_and_changes_nothing(
    amendment: Line, counter: str
) -> None:
    scanner, steps = scanner_after([*DAY, amendment, mark(125)])
    assert scanner.tally[counter] == 1
    assert final_bars(steps) == final_bars(scanner_after([*DAY, mark(125)])[1])
    assert steps[0].withdrawn == []


def test_amendment_older_than_the_reach_of_revisions_changes_nothing() -> None:
    later = [mark(60 * minute) for minute in range(2, 40)]
    scanner, steps = scanner_after([*DAY, *later, cancel(2400, 2), mark(2401)])
    assert scanner.tally["amendments_too_late"] == 1
    assert final_bars(steps)["A", OPEN_NS][1] == 12


def test_minute_of_which_a_part_is_no_longer_kept_stays_as_it_is() -> None:
    builder = BarBuilder(days=trading_days(), profile=load_profile("alpaca"), kept_trades=3)
    bars = builder.step(batch_of([*DAY, cancel(62, 4), mark(125)]))
    assert builder.tally["amendments_too_late"] == 1
    assert bars.close.tolist()[0] == 11


def test_print_can_be_corrected_twice_and_then_cancelled() -> None:
    lines = [*DAY, correct(62, 2, 15), correct(63, 2, 14), cancel(64, 2), cancel(65, 2), mark(125)]
    scanner, steps = scanner_after(lines)
    assert final_bars(steps)["A", OPEN_NS][:5] == (10, 11, 8, 11, 300)
    assert scanner.tally["amendments_unknown"] == 1


def in_order(lines: Sequence[Line]) -> list[Line]:
    """The same prints without late ones, and a mark before each, as a live feed sets them: what prints did to samples
    of a time that was not theirs is another question.
    """
    latest, marked = 0, []
    for line in lines:
        latest = max(latest, line.mark_ns if line.row is None else line.row.ts_ns)
        marked.append(Line(mark_ns=latest))
        if line.row is not None:
            marked.append(replace(line, row=replace(line.row, ts_ns=latest)))
    return marked


def amended(random: Random, *, ordered: bool) -> tuple[list[Line], list[Line]]:
    """A tape with amendments, and the tape as it should have been."""
    tape = make_tape(
        random, random.choice(STYLES[:2]), VENDORS[0], rows=random.choice((30, 120)), symbols=3, wild=False
    )
    lines = [
        Line(item, at + 1) if isinstance(item, Row) else Line(mark_ns=item.ns)
        for at, item in enumerate(tape)
        if isinstance(item, Row | Mark)
    ]
    # The same day throughout: what a symbol's price was yesterday is not asked here.
    shift = new_york("2025-03-06 11:00") - next(line.row.ts_ns for line in lines if line.row is not None)
    lines = [
        replace(line, row=replace(line.row, ts_ns=line.row.ts_ns + shift))
        if line.row is not None
        else replace(line, mark_ns=line.mark_ns + shift)
        for line in lines
    ]
    if ordered:
        lines = in_order(lines)
    lines.insert(0, Line(mark_ns=min(line.mark_ns if line.row is None else line.row.ts_ns for line in lines)))
    should: list[Line | None] = list(lines)
    added: list[tuple[int, Line]] = []
    for at in random.sample(range(len(lines)), len(lines) // 5):
        line = lines[at]
        if line.row is None:
            continue
        later = at + random.choice((1, 2, 5, 10))
        if later > len(lines) - 2:
            continue
        if random.random() < 0.5:
            added.append((later, replace(line, kind=Kind.CANCEL)))
            should[at] = None
        else:
            right = replace(line, row=replace(line.row, price=line.row.price + random.choice((-1, 1)), size=200.0))
            added.append((later, replace(right, kind=Kind.CORRECTION)))
            should[at] = right
    for later, line in sorted(added, key=lambda item: -item[0]):
        lines.insert(later, line)
    return lines, [line for line in should if line is not None]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**32), cut=st.sampled_from([1, 3, 17, 1_000_000]), ordered=st.booleans())
def test_amended_tape_equals_the_tape_as_it_should_have_been(seed: int, cut: int, *, ordered: bool) -> None:
    lines, should = amended(Random(seed), ordered=ordered)
    scanner, steps = scanner_after(lines, cut=cut)
    wanted, wanted_steps = scanner_after(should)
    if scanner.tally["amendments_too_late"]:
        return  # out of reach: another test
    bars, wanted_bars = final_bars(steps), final_bars(wanted_steps)
    assert bars.keys() == wanted_bars.keys()
    for key, values in bars.items():
        assert values == pytest.approx(wanted_bars[key]), key
    assert_same_board(scanner, wanted, without=("official",) if ordered else ("official", "change_", "running_"))


def assert_same_board(scanner: Scanner, wanted: Scanner, *, without: Sequence[str]) -> None:
    """A record of an official price is no trade: the next record takes its place. What a scan saw happen, it saw."""
    lasting = [name for name in ASKED if "[" in name or CATALOGUE[name].freshness != "scan"]
    board, other = scanner.board_rows(lasting), wanted.board_rows(lasting)
    for place, symbol in enumerate(other.symbols):
        ours, theirs = board.values[:, board.symbols.index(symbol)], other.values[:, place]
        for name, value, expected in zip(board.metrics, ours.tolist(), theirs.tolist(), strict=True):
            if not any(word in name for word in without):
                assert value == pytest.approx(expected, nan_ok=True), f"{name} of {symbol}"


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40))
def test_cutting_an_amended_tape_changes_nothing(seed: int, cut: int) -> None:
    lines, _ = amended(Random(seed), ordered=False)
    whole, whole_steps = scanner_after(lines)
    pieces, piece_steps = scanner_after(lines, cut=cut)
    assert final_bars(piece_steps) == final_bars(whole_steps)
    assert whole.tally == pieces.tally
    assert withdrawn(piece_steps) == withdrawn(whole_steps)
    assert np.array_equal(pieces.board_rows(ASKED).values, whole.board_rows(ASKED).values, equal_nan=True)


def test_sessions_made_again_include_the_minutes_that_are_settled() -> None:
    lines = [mark(0)]
    for minute in range(100):
        lines += [trade(60 * minute + 1, 10 + minute % 7, minute + 1), mark(60 * minute + 30)]
    lines += [trade(6000, 50, 500), mark(6001), cancel(6002, 500), mark(6063)]
    scanner, _ = scanner_after(lines)
    names = ("volume_day", "high_day", "low_day", "open_day", "price")
    assert scanner.board_rows(names).values[:, 0].tolist() == [10_000, 16, 10, 10, 11]
