"""Candles of all timeframes against a list of prints that is counted again at every look."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import MINUTE, SECOND, rsi
from tapes import DAYS, new_york, trading_days

from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import LATENESS_NS, REACH_MINUTES, BarBuilder
from tapewatch.engine.columns import F64, Batch, Kind, make_batch
from tapewatch.engine.indicators import RECURSIVE
from tapewatch.engine.patterns import PATTERNS
from tapewatch.engine.scanner import Scanner
from tapewatch.engine.series import COLUMNS, Series, View
from tapewatch.engine.studies import STUDIES
from tapewatch.engine.timeframes import BACK, RUNNING, TIMEFRAME_METRICS, TIMEFRAMES, Timeframes

ALL = STUDIES | PATTERNS
STARTS = (
    "2025-03-06 15:53:57",
    "2025-03-07 03:38:30",
    "2025-03-07 09:28:01",
    "2025-03-07 19:20:03",
    "2025-03-10 09:55:30",
    "2025-03-11 19:58:00",
)
OPEN_NS = new_york("2025-03-10 10:00")
HALF_WAY_NS = new_york("2025-03-10 11:30")


@dataclass(frozen=True)
class Line:
    """A print, its withdrawal, or a mark (`price` 0)."""

    ns: int
    price: float = 0.0
    size: float = 100.0
    symbol: str = "A"
    plain: bool = True
    """It may set prices; others count in the volume only."""
    id: int = 0
    kind: Kind = Kind.TRADE


def batch_of(lines: Sequence[Line]) -> Batch:
    rows = [line for line in lines if line.price]
    symbols = tuple(dict.fromkeys(row.symbol for row in rows))
    before = np.cumsum([line.price > 0 for line in lines])
    return make_batch(
        symbols=symbols,
        conditions=("@", "@I"),
        symbol=[symbols.index(row.symbol) for row in rows],
        condition=[0 if row.plain else 1 for row in rows],
        kind=[row.kind for row in rows],
        ts_ns=[row.ns for row in rows],
        price=[row.price for row in rows],
        size=[row.size for row in rows],
        tape=[ord("C")] * len(rows),
        exchange=[ord("N")] * len(rows),
        trade_id=[row.id for row in rows],
        marks_row=[int(before[at]) for at, line in enumerate(lines) if not line.price],
        marks_ns=[line.ns for line in lines if not line.price],
    )


class Player:
    """Bars and timeframes as a scanner drives them, with a look after each mark."""

    def __init__(self, names: Sequence[str] = ()) -> None:
        self.bars = BarBuilder(days=trading_days(), profile=load_profile("alpaca"), minutes=64, kept_trades=1 << 12)
        self.frames = Timeframes(self.bars)
        self.frames.want(names)
        self.names = tuple(names)
        self.lost = 0
        self.now_ns = 0
        self.looks: list[dict[tuple[str, int], F64]] = []

    def play(self, lines: Sequence[Line], cuts: Iterable[int] = (), *, look: bool = False) -> "Player":
        for start, stop in pairwise([0, *sorted(cuts), len(lines)]):
            if stop > start:
                self._step(batch_of(lines[start:stop]), look=look)
        return self

    def _step(self, batch: Batch, *, look: bool) -> None:
        rows, start = self.bars.rows(batch), 0
        first = len(batch.marks_ns) and batch.marks_row[0] == 0
        self.bars.begin(int(batch.marks_ns[0] if first else batch.ts_ns[0]))
        for row, ns in zip(batch.marks_row.tolist(), batch.marks_ns.tolist(), strict=True):
            self._book(rows, start, row)
            start = max(start, row)
            while self.bars.next_close_ns <= ns:
                self.bars.skip_empty(ns)
                if self.bars.next_close_ns <= ns:
                    minute = self.bars.open_minute
                    self.frames.close(minute, self.bars.close_minute().symbol.astype(np.intp))
            self.now_ns = max(self.now_ns, ns)
            if look:
                self.looks.append(self.rows())
        self._book(rows, start, len(batch))

    def _book(self, rows: object, start: int, stop: int) -> None:
        for change in self.bars.book(rows, start, stop) if stop > start else ():  # type: ignore[arg-type]  # BarBuilder's own rows
            for minute, symbols in change.revised.items():
                self.lost += self.frames.revise(minute, symbols)

    def rows(self) -> dict[tuple[str, int], F64]:
        count = len(self.bars.symbols)
        return {
            (name, back): self.frames.row(name, back, self.now_ns)[:count].copy()
            for name in self.names
            for back in range(TIMEFRAME_METRICS[name].back + 1)
        }

    def value(self, name: str, back: int = 0, *, symbol: str = "A") -> float:
        return float(self.frames.row(name, back, self.now_ns)[self.bars.symbols.index(symbol)])


def names_of(*timeframes: str) -> tuple[str, ...]:
    return tuple(name for name, metric in TIMEFRAME_METRICS.items() if metric.timeframe in timeframes)


# -- the same, slowly --------------------------------------------------------------------------------------------------


@dataclass
class Slow:
    """Prints in a list."""

    prints: list[Line] = field(default_factory=list)
    open_minute: int | None = None
    now_ns: int = 0

    def take(self, line: Line) -> None:
        if self.open_minute is None:
            self.open_minute = (line.ns - LATENESS_NS) // MINUTE
        minute = line.ns // MINUTE
        if not line.price:
            self.now_ns = max(self.now_ns, line.ns)
            while (self.open_minute + 1) * MINUTE + LATENESS_NS <= line.ns:
                self.open_minute += 1
        elif line.kind is not Kind.TRADE:
            for at in [at for at, p in enumerate(self.prints) if p.id == line.id]:
                if self.prints[at].ns // MINUTE >= self.open_minute - REACH_MINUTES:
                    right = replace(self.prints[at], price=line.price, size=line.size)
                    self.prints[at : at + 1] = [] if line.kind is Kind.CANCEL else [right]
        elif self.open_minute - REACH_MINUTES <= minute <= self.open_minute + 1:
            self.prints.append(line)

    def candles(self, symbol: str, minutes: int) -> tuple[list[tuple[float, ...]], list[tuple[float, ...]]]:
        """The closed ones that exist, and the running one (if there is any print): o, h, l, c, v, trades."""
        assert self.open_minute is not None
        periods: dict[int, list[Line]] = {}
        for line in self.prints:
            if line.symbol == symbol:
                periods.setdefault(start_of(line.ns // MINUTE, minutes), []).append(line)
        running = start_of(self.open_minute, minutes)
        closed = [
            figures(lines)
            for start, lines in sorted(periods.items())
            if start < running and any(line.plain for line in lines)
        ]
        return closed, [figures(periods[running])] if running in periods else []


def start_of(minute: int, minutes: int) -> int:
    """By the days' table: forwards from 04:00, or backwards from the next 04:00 as far as the last 20:00."""
    night = -(10**9)
    for pre, _, _, post in DAYS.days:
        if minute < pre // MINUTE:
            return max(night, minute - (minute - pre // MINUTE) % minutes)
        if minute < post // MINUTE:
            return minute - (minute - pre // MINUTE) % minutes
        night = post // MINUTE
    return minute - (minute - DAYS.days[-1][0] // MINUTE) % minutes


def figures(lines: Sequence[Line]) -> tuple[float, ...]:
    priced = sorted((line for line in lines if line.plain), key=lambda line: line.ns)
    volume, trades = sum(line.size for line in lines), float(len(lines))
    if not priced:
        return (np.nan, np.nan, np.nan, np.nan, volume, trades)
    prices = [line.price for line in priced]
    return prices[0], max(prices), min(prices), prices[-1], volume, trades


def fresh(candles: Sequence[tuple[float, ...]]) -> dict[str, float]:
    """All studies from a run over just these candles."""
    series, one = Series(1, columns=COLUMNS, depth=64, reach=2), np.zeros(1, np.intp)
    series.run(study.part for study in ALL.values() if study.part is not None)
    for minute, (o, h, low, c, v, n) in enumerate(candles):
        series.close(one, minute, *(np.array([x]) for x in (h, low, c, o, v, n)))
    view = View(series, one)
    return {stem: float(study.of(view)[0]) for stem, study in ALL.items()}


def expected(slow: Slow, symbol: str, timeframe: str) -> dict[tuple[str, int], float]:
    minutes = TIMEFRAMES[timeframe]
    closed, running = slow.candles(symbol, minutes)
    now = running[0] if running else (np.nan,) * 4 + (0.0, 0.0)
    values: dict[tuple[str, int], float] = {}
    for place, stem in enumerate(RUNNING):
        values[f"{stem}_{timeframe}", 0] = now[place]
        for back in range(1, BACK + 1):
            values[f"{stem}_{timeframe}", back] = closed[-back][place] if back <= len(closed) else np.nan
    studies = fresh(closed)
    values |= {(f"{stem}_{timeframe}", 0): value for stem, value in studies.items()}
    assert slow.open_minute is not None
    elapsed_ns = slow.now_ns - start_of(slow.open_minute, minutes) * MINUTE
    end = next(m for m in range(slow.open_minute + 1, 10**12) if start_of(m, minutes) > slow.open_minute)
    length_ns = (end - start_of(slow.open_minute, minutes)) * MINUTE
    usual = studies["candle_volume_avg_10"]
    forecast = now[4] * max(1.0, length_ns / elapsed_ns) if elapsed_ns >= 10 * SECOND else np.nan
    values[f"relative_candle_volume_{timeframe}", 0] = forecast / usual
    return {key: value for key, value in values.items() if key[0] in TIMEFRAME_METRICS}


STEPS_S = ((0.5, 5, 20), (10, 30, 70), (30, 90, 200))


def random_tape(random: Random, rows: int, *, steps_s: Sequence[tuple[float, ...]] = STEPS_S) -> list[Line]:
    """Prints of three symbols, late, withdrawn and corrected ones among them, with quiet stretches of up to days."""
    now, price = new_york(random.choice(STARTS)), 20.0
    steps = random.choice(steps_s)
    tape, named = [Line(now)] if random.random() < 0.5 else [], []
    for number in range(1, rows + 1):
        step = random.choice(steps)
        if random.random() < 0.02:
            step = random.choice((600, 1700, 3000, 5 * 3600, 20 * 3600, 60 * 3600))
        now += round(step * SECOND)
        if random.random() < 0.5:
            tape.append(Line(now))
        price = max(1.0, round(price + random.choice((-0.5, -0.01, 0.0, 0.0, 0.02, 0.5)), 2))
        late = random.choice((0, 0, 0, 1, 5, 100)) if random.random() < 0.8 else random.choice((65, 600, 1500, 1795))
        line = Line(
            now - late * SECOND,
            price,
            random.choice((0.5, 7.0, 100.0, 300.0)),
            random.choice("AAABBC"),
            random.random() < 0.8,
            number,
        )
        tape.append(line)
        named.append(line)
        if random.random() < 0.08:
            tape.append(replace(random.choice(named[-12:]), kind=Kind.CANCEL))
        if random.random() < 0.08:
            wrong = random.choice(named[-12:])
            tape.append(replace(wrong, kind=Kind.CORRECTION, price=wrong.price + random.choice((-0.5, 0.5)), size=50.0))
    return [*tape, *(Line(now + seconds * SECOND) for seconds in (1, 63, 64, 190))]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 150))
def test_random_tapes_give_what_a_list_of_prints_gives(seed: int, rows: int) -> None:
    random = Random(seed)
    tape = random_tape(random, rows)
    timeframes = random.sample(list(TIMEFRAMES), 2)
    player, slow = Player(names_of(*timeframes)), Slow()
    stops = sorted({*random.sample(range(len(tape)), 1), len(tape)})
    for start, stop in pairwise([0, *stops]):
        player.play(tape[start:stop])
        for line in tape[start:stop]:
            slow.take(line)
        if player.bars.first_minute is None or not slow.now_ns:
            continue
        rows_now = player.rows()
        for symbol, timeframe in ((s, t) for s in player.bars.symbols.names for t in timeframes):
            at = player.bars.symbols.index(symbol)
            assert player.frames.count(timeframe)[at] == len(slow.candles(symbol, TIMEFRAMES[timeframe])[0])
            for key, value in expected(slow, symbol, timeframe).items():
                got = float(rows_now[key][at])
                assert got == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), (symbol, key)
    assert player.lost == 0


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 60))
def test_cutting_the_tape_changes_nothing(seed: int, rows: int) -> None:
    random = Random(seed)
    tape = random_tape(random, rows)
    names = random.sample(list(TIMEFRAME_METRICS), 25)
    whole = Player(names).play(tape, look=True)
    pieces = Player(names).play(tape, random.sample(range(len(tape)), len(tape) // 3), look=True)
    assert len(whole.looks) == len(pieces.looks)
    for once, again in zip(whole.looks, pieces.looks, strict=True):
        for key, values in once.items():
            np.testing.assert_array_equal(values[: len(again[key])], again[key], str(key))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), rows=st.integers(20, 80))
def test_what_is_wanted_later_is_the_same_as_long_as_the_ring_holds_all(seed: int, rows: int) -> None:
    random = Random(seed)
    tape = random_tape(random, rows)
    tape = [line for line in tape if line.ns < tape[0].ns + 30 * MINUTE]
    names = random.sample(list(TIMEFRAME_METRICS), 30)
    at = random.randrange(len(tape))
    early, late = Player(names), Player(names[:5])
    early.play(tape)
    late.play(tape[:at])
    late.frames.want(names)
    late.names = tuple(names)
    late.play(tape[at:])
    for key, values in early.rows().items():
        np.testing.assert_allclose(late.rows()[key], values, rtol=1e-12, err_msg=str(key))


PUBLISHED_RSI = {"rsi_14_5m": 5, "rsi_14_15m": 15, "rsi_14_1h": 60}


@settings(max_examples=8, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), rows=st.integers(60, 160))
def test_rsi_of_boards_is_that_of_a_list_of_prints_and_of_rules(seed: int, rows: int) -> None:
    """With late, withdrawn and corrected prints, while other candles are kept or not, and across restarts."""
    random = Random(seed)
    tape = random_tape(random, rows, steps_s=((30, 90, 200), (200, 600, 1500)))
    made_with: dict[str, Any] = {
        "days": trading_days(),
        "profile": load_profile("alpaca"),
        "scan_interval_ns": 15 * MINUTE,
        "kept_trades": 1 << 12,
    }
    boards, asked = Scanner(**made_with, board_interval_ns=15 * MINUTE), Scanner(**made_with)
    asked.keep((*PUBLISHED_RSI, *random.sample(list(TIMEFRAME_METRICS), 3)))
    slow, stops = Slow(), sorted({*random.sample(range(1, len(tape)), 5), len(tape)})
    for start, stop in pairwise([0, *stops]):
        batch = batch_of(tape[start:stop])
        boards.step(batch)
        asked.step(batch)
        if random.random() < 0.4:
            boards = Scanner.thaw(boards.freeze(), **made_with, board_interval_ns=15 * MINUTE)
        for line in tape[start:stop]:
            slow.take(line)
        ours, theirs = (scanner.board_rows(tuple(PUBLISHED_RSI)) for scanner in (boards, asked))
        np.testing.assert_array_equal(ours.values, theirs.values)
        for row, minutes in enumerate(PUBLISHED_RSI.values()):
            for at, symbol in enumerate(ours.symbols):
                expected_ = rsi([candle[3] for candle in slow.candles(symbol, minutes)[0]])
                assert ours.values[row, at] == pytest.approx(expected_, rel=1e-9, abs=1e-9, nan_ok=True), symbol


def test_boards_keep_a_few_closes_of_a_timeframe_and_no_candles() -> None:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), board_interval_ns=SECOND)
    kept = {key: frame.series for key, frame in scanner._state.timeframes._frames.items()}
    assert kept.keys() == {(name, True) for name in ("5m", "15m", "1h")}
    assert all(series.columns == ["close"] for series in kept.values())


# -- worked examples ---------------------------------------------------------------------------------------------------


def at(seconds: float, price: float, **rest: object) -> Line:
    return Line(OPEN_NS + round(seconds * SECOND), price, **rest)  # type: ignore[arg-type]  # passed on as named


def mark(seconds: float) -> Line:
    return Line(OPEN_NS + round(seconds * SECOND))


def tell(*lines: Line) -> list[Line]:
    """Each print right after a mark of its time, unless it is late."""
    told: list[Line] = []
    for line in lines:
        if line.price and told and line.ns > max(before.ns for before in told if not before.price):
            told.append(Line(line.ns))
        told.append(line)
    return told


def each_minute(first: int, last: int, *, start_ns: int = OPEN_NS) -> list[Line]:
    """One print a minute, whose price is 10 and a cent more for each minute."""
    lines = []
    for minute in range(first, last + 1):
        starts_ns = start_ns + minute * MINUTE
        lines += [Line(starts_ns), Line(starts_ns + SECOND, 10.0 + minute / 100), Line(starts_ns + 59 * SECOND)]
    return lines


def test_running_candle_holds_closed_and_open_minutes() -> None:
    player = Player(names_of("5m"))
    player.play(tell(mark(2), at(1, 10.0), at(70, 12.0), mark(125), at(130, 9.0), at(190, 11.0, size=50), mark(200)))
    figures_ = [player.value(f"{stem}_5m") for stem in RUNNING]
    assert figures_ == [10.0, 12.0, 9.0, 11.0, 350.0, 4.0]
    assert player.frames.count("5m").tolist()[:1] == [0]
    assert player.frames.span_ns("5m") == (OPEN_NS, OPEN_NS + 5 * MINUTE)


def test_candle_runs_until_its_last_minute_has_closed() -> None:
    player = Player(names_of("5m")).play(tell(mark(2), at(1, 10.0), at(301, 20.0), mark(301.5)))
    assert [player.value("high_5m", back) for back in (0, 1)] == pytest.approx([10.0, np.nan], nan_ok=True)
    player.play(tell(mark(302)))
    assert [player.value("high_5m", back) for back in (0, 1)] == [20.0, 10.0]


def test_candles_without_a_bar_are_passed_over() -> None:
    player = Player(names_of("2m"))
    player.play(
        tell(mark(2), at(1, 10.0), at(121, 11.0, plain=False), at(601, 12.0), mark(700), at(721, 13.0), mark(722))
    )
    assert [player.value("close_2m", back) for back in range(4)] == pytest.approx(
        [13.0, 12.0, 10.0, np.nan], nan_ok=True
    )
    assert player.value("candle_volume_2m", 1) == 100.0


def test_minute_without_a_price_adds_to_the_volume_of_its_candle() -> None:
    player = Player(names_of("2m")).play(tell(mark(2), at(1, 10.0), at(61, 99.0, plain=False, size=7), mark(123)))
    assert [player.value(f"{stem}_2m", 1) for stem in RUNNING] == [10.0, 10.0, 10.0, 10.0, 107.0, 2.0]


def test_cancel_takes_the_only_candle_away_and_a_late_print_brings_it_back() -> None:
    only = at(1, 10.0, id=7)
    player = Player(names_of("1m", "5m")).play(tell(mark(2), only, at(301, 11.0), mark(700)))
    assert player.frames.count("5m")[0] == 2
    player.play([replace(only, kind=Kind.CANCEL)])
    assert player.frames.count("5m")[0] == player.frames.count("1m")[0] == 1
    assert [player.value("close_5m", back) for back in (1, 2)] == pytest.approx([11.0, np.nan], nan_ok=True)
    player.play([at(2, 12.0)])
    assert [player.value("close_5m", back) for back in (1, 2)] == [11.0, 12.0]


def test_late_print_mends_candles_of_an_hour_and_of_four() -> None:
    noon_ns = new_york("2025-03-10 12:00")
    lines = [Line(noon_ns - 235 * MINUTE), *each_minute(-230, 5, start_ns=noon_ns)]
    player = Player(names_of("1h", "4h")).play(lines)
    assert (player.value("high_1h", 1), player.value("high_4h", 1)) == (9.99, 9.99)
    assert (player.value("candle_trades_1h", 1), player.value("candle_trades_4h", 1)) == (60.0, 230.0)
    player.play([Line(noon_ns - 24 * MINUTE, 50.0)])
    assert (player.value("high_1h", 1), player.value("high_4h", 1)) == (50.0, 50.0)
    assert (player.value("candle_trades_1h", 1), player.value("candle_trades_4h", 1)) == (61.0, 231.0)
    assert (player.value("open_4h", 1), player.value("close_4h", 1)) == (7.7, 9.99)
    assert player.value("candle_volume_1h") == 600.0


@pytest.mark.parametrize(
    ("now", "timeframe", "start", "end"),
    [
        ("2025-03-10 04:00", "4h", "2025-03-10 04:00", "2025-03-10 08:00"),
        ("2025-03-10 15:59", "4h", "2025-03-10 12:00", "2025-03-10 16:00"),
        ("2025-03-10 19:59", "4h", "2025-03-10 16:00", "2025-03-10 20:00"),
        ("2025-03-10 20:00", "4h", "2025-03-10 20:00", "2025-03-11 00:00"),
        ("2025-03-10 03:59", "4h", "2025-03-10 00:00", "2025-03-10 04:00"),
        # Clocks change in this night: 55 hours lie between the two days, and the first candle has three of them.
        ("2025-03-07 20:00", "4h", "2025-03-07 20:00", "2025-03-07 23:00"),
        ("2025-03-10 09:30", "1h", "2025-03-10 09:00", "2025-03-10 10:00"),
        ("2025-03-10 09:44", "15m", "2025-03-10 09:30", "2025-03-10 09:45"),
        ("2025-03-12 21:00", "4h", "2025-03-12 20:00", "2025-03-13 00:00"),
    ],
)
def test_candles_follow_new_yorks_clock(now: str, timeframe: str, start: str, end: str) -> None:
    player = Player(names_of(timeframe)).play([Line(new_york(now) + 5 * SECOND)])
    assert player.frames.span_ns(timeframe) == (new_york(start), new_york(end))


def test_timeframe_wanted_late_knows_candles_that_the_ring_holds_whole() -> None:
    lines = [Line(HALF_WAY_NS - 90 * MINUTE), *each_minute(-90, 0, start_ns=HALF_WAY_NS)]
    player = Player().play(lines)
    held = player.bars.open_minute + 2 - player.bars.candles.rows
    assert held * MINUTE == new_york("2025-03-10 10:28")
    player.frames.want(names_of("5m", "1h", "4h"))
    # The candles of 10:30 to 11:25 have closed; that of 10:25 began before what the ring holds.
    assert player.frames.count("5m")[0] == 12
    assert player.value("open_1h") == 9.7
    assert np.isnan(player.value("open_1h", 1))
    assert np.isnan(player.value("high_4h"))
    assert player.value("open_5m", 10) == 10 - 50 / 100
    player.play(each_minute(1, 45, start_ns=HALF_WAY_NS))
    assert (player.value("open_1h", 1), player.value("open_1h"), player.value("open_4h")) == (9.7, 10.3, 10.3)
    player.play(each_minute(46, 95, start_ns=HALF_WAY_NS))
    assert (player.value("open_1h", 2), player.value("open_1h", 1)) == (9.7, 10.3)
    assert np.isnan(player.value("open_4h", 1))


def test_relative_volume_forecasts_from_the_tenth_second_on() -> None:
    lines = [mark(2)]
    for candle in range(10):
        lines += tell(mark(candle * 300 + 2), at(candle * 300 + 1, 10.0, size=300), mark(candle * 300 + 290))
    player = Player(("relative_candle_volume_5m",)).play(lines)
    player.play(tell(mark(3002), at(3003, 10.0, size=20), mark(3009.9)))
    assert np.isnan(player.value("relative_candle_volume_5m"))
    player.play(tell(mark(3010)))
    assert player.value("relative_candle_volume_5m") == pytest.approx(20 * 30 / 300)
    player.play(tell(mark(3300.5)))
    assert player.value("relative_candle_volume_5m") == pytest.approx(20 / 300)


def test_symbols_that_come_later_make_room() -> None:
    player = Player(names_of("1m", "1h")).play(tell(mark(2), *each_minute(0, 3)))
    player.play([at(245 + i / 1000, 5.0, symbol=f"S{i}") for i in range(150)])
    player.play(tell(mark(310), *each_minute(5, 8)))
    assert player.frames.count("1m")[:2].tolist() == [7, 1]
    assert player.value("close_1m", 1, symbol="S149") == 5.0
    assert player.value("candle_trades_1h") == 8.0
    assert player.value("high_1h", symbol="S149") == 5.0


def test_nothing_is_kept_until_wanted() -> None:
    player = Player(("rsi_14_1m", "price", "volume_5m")).play(tell(mark(2), *each_minute(0, 3)))
    assert player.frames._frames == {}
    with pytest.raises(KeyError):
        player.value("ema_9_5m")


def test_studies_and_old_candles_reach_no_further_than_declared() -> None:
    player = Player(names_of("5m")).play(tell(mark(2), at(1, 10.0)))
    for name, back in (("ema_9_5m", 1), ("close_5m", 11), ("close_5m", -1), ("relative_candle_volume_5m", 1)):
        with pytest.raises(ValueError, match="candles back"):
            player.value(name, back)


def test_table_names_each_metric_with_its_timeframe() -> None:
    assert TIMEFRAME_METRICS.keys().isdisjoint(RECURSIVE)
    assert len(TIMEFRAME_METRICS) == (len(ALL) + len(RUNNING) + 1) * len(TIMEFRAMES) - len(RECURSIVE)
    assert all(name == f"{metric.stem}_{metric.timeframe}" for name, metric in TIMEFRAME_METRICS.items())
    assert all(metric.formula and metric.unit and metric.source for metric in TIMEFRAME_METRICS.values())
