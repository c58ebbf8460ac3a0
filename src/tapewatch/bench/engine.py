"""Figures of the engine alone: scan, step, minute close, board. Seeded, single-threaded, no I/O."""

import time
from collections.abc import Iterator

import numpy as np

from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS, Batch, make_batch, pulse
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import All, Comparison, Ruleset, RuleSpec, compare
from tapewatch.engine.rules.tree import ComparisonOperator
from tapewatch.engine.scanner import Scanner
from tapewatch.nyse import day_of, trading_days

SYMBOLS = 10_000
SCAN_WHAT = (
    "one scan cycle in a running scanner: 10,000 symbols x {rules} rules of two conditions (each true of up to 1 % of "
    "symbols), 5,000 trades since the last scan; metrics refreshed, rules asked, edges and cooldowns kept"
)
STEP_WHAT = (
    "trades a second through engine.Scanner.step in batches of 1,000 (20 ms of tape), 10,000 symbols, 100 rules asked "
    "and a whole board made each second of tape"
)
CLOSE_WHAT = "closing a minute in which all 10,000 symbols traded, and recomputing every indicator of each"
BOARD_WHAT = "the board that travels each second, with the metrics of lists and pages, for 10,000 symbols"
CATALOGUE_WHAT = f"refreshing all {len(CATALOGUE)} metrics of 10,000 symbols in a scan, after 70 minutes of tape"

_CONDITIONS = (" ", " F", " I", "@", "@I", " FI")
_METRICS = (
    "price",
    "change_pct_1m",
    "change_pct_5m",
    "change_from_open_pct",
    "volume_1m",
    "volume_day",
    "relative_volume_5m",
    "vwap_distance_pct",
    "rsi_14_1m",
    "ema_20_1m",
    "sma_20_1m",
    "atr_14_1m",
)


class _Tape:
    """Random walks of 10,000 symbols with heavy-tailed activity."""

    def __init__(self, start_ns: int) -> None:
        self.now_ns = start_ns
        self._random = np.random.default_rng(7)
        self._names = tuple(f"S{i:04d}" for i in range(SYMBOLS))
        self._price = np.exp(self._random.normal(3.5, 1.0, SYMBOLS))
        share = 1.0 / np.arange(10, SYMBOLS + 10)
        self._cumulated = np.cumsum(self._random.permutation(share / share.sum()))

    def batch(self, rows: int, duration_ns: int, *, everybody: bool = False) -> Batch:
        draw = self._random
        symbol = np.minimum(np.searchsorted(self._cumulated, draw.random(rows)), SYMBOLS - 1)
        if everybody:
            symbol[:SYMBOLS] = draw.permutation(SYMBOLS)
        moved = np.unique(symbol)
        self._price[moved] *= np.exp(draw.normal(0.0, 0.0003, len(moved)))
        ts_ns = np.sort(draw.integers(self.now_ns, self.now_ns + duration_ns, rows))
        self.now_ns += duration_ns
        return make_batch(
            symbols=self._names,
            conditions=_CONDITIONS,
            symbol=symbol,
            condition=draw.integers(0, len(_CONDITIONS), rows),
            ts_ns=ts_ns,
            price=np.round(self._price[symbol], 2) + 0.01,
            size=draw.integers(1, 400, rows),
            tape=np.full(rows, ord("A")),
            marks_row=[rows],
            marks_ns=[self.now_ns],
        )


def _warm_scanner(rules: int, *, board: bool = False) -> tuple[Scanner, _Tape]:
    """A scanner after half an hour of tape, with rules whose thresholds lie where the board's values lie."""
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), board_interval_ns=SECOND_NS if board else 0)
    tape = _Tape(day_of("2025-03-03")[1])
    scanner.apply(
        _rules(1, scanner, *_METRICS)
    )  # so that every metric of the rules to come has been kept from the start
    for _ in range(30):
        scanner.step(tape.batch(40_000, MINUTE_NS, everybody=True))
    if rules:
        scanner.apply(_rules(rules, scanner))
        scanner.step(tape.batch(5_000, SECOND_NS))
    return scanner, tape


def _rules(count: int, scanner: Scanner, *metrics: str) -> Ruleset:
    draw = np.random.default_rng(11)
    operators: tuple[ComparisonOperator, ...] = (">", "<", ">=", "<=")
    columns: dict[str, np.ndarray[tuple[int], np.dtype[np.float64]]] = {}
    if len(scanner.symbols):
        board = scanner.board_rows(_METRICS)
        columns = {name: values[~np.isnan(values)] for name, values in zip(_METRICS, board.values, strict=True)}

    def comparison(metric: str) -> Comparison:
        values = columns.get(metric)
        operator = operators[int(draw.integers(4))]
        tail = draw.uniform(0.0, 0.01)
        place = tail if operator.startswith("<") else 1.0 - tail
        return compare(metric, operator, float(np.quantile(values, place)) if values is not None else 0.0)

    rules = []
    for i in range(count):
        names = metrics or tuple(str(name) for name in draw.choice(_METRICS, 2, replace=False))
        when = All(tuple(comparison(name) for name in names))
        rules.append(RuleSpec(id=f"r{i}", version=1, name=f"r{i}", when=when, cooldown_ns=MINUTE_NS))
    return Ruleset(number=2 if not metrics else 1, rules=tuple(rules))


def scan_cycles(rules: int) -> Iterator[float]:
    """Milliseconds each."""
    scanner, tape = _warm_scanner(rules)
    for _ in range(15):
        batch = tape.batch(5_000, SECOND_NS)
        scanner.step(batch.rows(0, len(batch) - 1))  # the rows, and with the last row the mark that makes the scan due
        rest = pulse(tape.now_ns)
        started = time.perf_counter()
        step = scanner.step(rest)
        yield (time.perf_counter() - started) * 1e3
        if step.scans != 1:
            raise AssertionError("a cycle must hold one scan")


def steps() -> Iterator[float]:
    """Trades a second each."""
    scanner, tape = _warm_scanner(100, board=True)
    for _ in range(7):
        batches = [tape.batch(1_000, SECOND_NS // 50) for _ in range(250)]
        started = time.perf_counter()
        for batch in batches:
            scanner.step(batch)
        yield 250_000 / (time.perf_counter() - started)


def minute_closes() -> Iterator[float]:
    """Milliseconds each."""
    scanner, tape = _warm_scanner(0)
    scanner.step(pulse(tape.now_ns + 2 * SECOND_NS))
    for _ in range(15):
        started_ns = tape.now_ns
        batch = tape.batch(40_000, MINUTE_NS, everybody=True)
        scanner.step(batch.rows(0, len(batch) - 1))
        before = scanner.bars.open_minute
        scanner.step(pulse(tape.now_ns + SECOND_NS))
        due = pulse(started_ns + MINUTE_NS + 2 * SECOND_NS)
        started = time.perf_counter()
        step = scanner.step(due)
        yield (time.perf_counter() - started) * 1e3
        if scanner.bars.open_minute != before + 1 or len(step.bars[0]) < SYMBOLS // 2:
            raise AssertionError("a run must close one full minute")


def catalogues() -> Iterator[float]:
    """Milliseconds each."""
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"))
    scanner.keep(CATALOGUE)
    tape = _Tape(day_of("2025-03-03")[1])
    for _ in range(70):
        scanner.step(tape.batch(40_000, MINUTE_NS, everybody=True))
    scanner.board.want(CATALOGUE)
    day_start_ns = day_of("2025-03-03")[0]
    for _ in range(15):
        scanner.step(tape.batch(5_000, SECOND_NS))
        started = time.perf_counter()
        scanner.board.refresh(tape.now_ns, day_start_ns=day_start_ns)
        yield (time.perf_counter() - started) * 1e3


def boards() -> Iterator[float]:
    """Milliseconds each."""
    scanner, tape = _warm_scanner(0, board=True)
    for _ in range(15):
        scanner.step(tape.batch(5_000, SECOND_NS))
        started = time.perf_counter()
        scanner.board_rows()
        yield (time.perf_counter() - started) * 1e3
