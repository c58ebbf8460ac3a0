"""Random tapes through the engine and through the naive reference; and the same tape cut in other places."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive import SECOND, Item, Mark, Memory, Naive, NaiveMatch, NaiveRule, Rules
from tapes import DAYS, METRICS, STYLES, VENDORS, Style, Vendor, make_rules, make_tape, spec, to_entries, trading_days

from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import BAR_COLUMNS, Bars, Batch
from tapewatch.engine.daily import DAILY_FACTS
from tapewatch.engine.metrics import CATALOGUE, PUBLISHED
from tapewatch.engine.rules import Match, Plan, Ruleset
from tapewatch.engine.scanner import Scanner
from tapewatch.replay import final_bars

SEEDS = st.integers(0, 2**32 - 1)
LATENESS = st.sampled_from((0, 2 * SECOND, 59 * SECOND))


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )


@dataclass
class Ran:
    bars: Bars
    matches: list[Match]
    boards: list[BoardRows]
    last: BoardRows
    tally: dict[str, int]
    cooled_down: int


COMPARED = tuple(name for name in PUBLISHED if not CATALOGUE[name].candles)
"""What boards show but of longer candles, which test_timeframes.py compares."""


def run(
    entries: Iterable[Batch | Ruleset], vendor: Vendor, *, scan_ns: int, lateness_ns: int = 2 * SECOND, boards: bool
) -> Ran:
    scanner = Scanner(
        days=trading_days(),
        profile=vendor.profile,
        scan_interval_ns=scan_ns,
        board_interval_ns=scan_ns if boards else 0,
        lateness_ns=lateness_ns,
    )
    parts: list[Bars] = []
    matches: list[Match] = []
    seen: list[BoardRows] = []
    for entry in entries:
        if isinstance(entry, Ruleset):
            scanner.apply(entry)
            continue
        step = scanner.step(entry)
        parts, matches, seen = parts + step.bars, matches + step.matches, seen + step.boards
    return Ran(
        bars=final_bars(parts),
        matches=matches,
        boards=seen,
        last=scanner.board_rows(COMPARED),
        tally=dict(+scanner.tally),
        cooled_down=scanner.cooled_down,
    )


def naive_run(
    tape: Sequence[Item], vendor: Vendor, *, scan_ns: int, lateness_ns: int = 2 * SECOND, boards: bool
) -> Naive:
    wanted = COMPARED if boards else ()
    naive = Naive(
        days=DAYS,
        judge=vendor.judge,
        scan_ns=scan_ns,
        lateness_ns=lateness_ns,
        boards=wanted,
        reference_names=DAILY_FACTS,
    )
    naive.run(tape)
    return naive


def equal(left: float, right: float, relative: float = 0.0) -> bool:
    if math.isnan(left) or math.isnan(right):
        return math.isnan(left) and math.isnan(right)
    return left == right or math.isclose(left, right, rel_tol=relative, abs_tol=1e-9 if relative else 0.0)


def check_bars(bars: Bars, naive: Naive) -> None:
    expected = naive.bars()
    given_ = [(bars.symbols[s], int(ts)) for s, ts in zip(bars.symbol, bars.ts_ns, strict=True)]
    assert given_ == sorted(expected), "other bars than the naive ones"
    for i, key in enumerate(given_):
        for name in ("open", "high", "low", "close", "volume", "trade_count", "revision"):
            assert getattr(bars, name)[i] == getattr(expected[key], name), (key, name)
        assert equal(bars.vwap[i], expected[key].vwap, 1e-12), (key, "vwap")


def check_board(board: BoardRows, expected: dict[str, dict[str, float]], *, at: object = "") -> None:
    for column, symbol in enumerate(board.symbols):
        for metric in COMPARED:
            row = board.metrics.index(metric)
            value = float(board.values[row, column])
            wanted = expected[symbol][metric] if symbol in expected else math.nan
            assert equal(value, wanted, 1e-9), f"{metric} of {symbol} at {at}: {value!r}, not {wanted!r}"


def check_boards(boards: Sequence[BoardRows], naive: Naive) -> None:
    """Each board is the naive one; an instant without a board is one at which nothing but the clock had moved."""
    given_ = {board.ts_ns: board for board in boards}
    assert set(given_) <= set(naive.boards)
    before: dict[str, dict[str, float]] = {}
    for ns, expected in naive.boards.items():
        if ns in given_:
            check_board(given_[ns], expected, at=ns)
        else:
            for symbol, values in expected.items():
                for metric, value in values.items():
                    is_still = CATALOGUE[metric].freshness == "clock" or equal(value, before[symbol][metric], 1e-9)
                    assert is_still, f"no board at {ns}, yet {metric} changed"
        before = expected


def check_matches(matches: Sequence[Match], expected: Sequence[NaiveMatch]) -> None:
    assert [(m.rule.id, m.symbol, m.fired_at_ns) for m in matches] == [(m.rule_id, m.symbol, m.at_ns) for m in expected]
    for match, other in zip(matches, expected, strict=True):
        assert match.alert_id == other.alert_id
        assert match.session == other.session
        assert equal(match.price, other.price)
        assert list(match.values) == list(other.values)
        for metric, value in match.values.items():
            assert equal(value, other.values[metric], 1e-9), (match, metric)


def with_rules(tape: list[Item], random: Random, *, count: int, metrics: Sequence[str]) -> list[Item]:
    """The tape with a ruleset at its start, and in half of the cases others in its course."""
    first = make_rules(random, count, metrics)
    out: list[Item] = [Rules(first), *tape]
    if random.random() < 0.5:
        kept = tuple(rule for rule in first if random.random() < 0.6)
        changed = tuple(NaiveRule(r.id, 2, r.conditions, r.cooldown_ns) for r in first if r not in kept)
        for rules in (kept, changed[::2] + kept, first):
            out.insert(random.randrange(1, len(out)), Rules(rules))
    return out


def some_tape(seed: int, rows: int, style: Style, vendor: Vendor, *, wild: bool = True) -> tuple[list[Item], Random]:
    random = Random(seed)
    return make_tape(random, style, vendor, rows=rows, symbols=random.choice((1, 3, 6)), wild=wild), random


# -- against the naive reference ---------------------------------------------------------------------------------------


@bounded(120)
@given(
    seed=SEEDS,
    rows=st.integers(1, 400),
    style=st.sampled_from(STYLES),
    vendor=st.sampled_from(VENDORS),
    lateness_ns=LATENESS,
)
def test_bars_of_random_tape_equal_naive_bars(
    seed: int, rows: int, style: Style, vendor: Vendor, lateness_ns: int
) -> None:
    tape, _ = some_tape(seed, rows, style, vendor)
    naive = naive_run(tape, vendor, scan_ns=3600 * SECOND, lateness_ns=lateness_ns, boards=False)
    entries = to_entries(tape, set())
    check_bars(run(entries, vendor, scan_ns=0, lateness_ns=lateness_ns, boards=False).bars, naive)
    builder = BarBuilder(days=trading_days(), profile=vendor.profile, lateness_ns=lateness_ns)
    steps = [builder.step(batch) for batch in entries if isinstance(batch, Batch)]
    check_bars(final_bars([step for step in steps if len(step)]), naive)


@bounded(30)
@given(
    seed=SEEDS,
    rows=st.integers(1, 300),
    style=st.sampled_from(STYLES),
    vendor=st.sampled_from(VENDORS),
    lateness_ns=LATENESS,
)
def test_boards_of_random_tape_equal_naive_boards(
    seed: int, rows: int, style: Style, vendor: Vendor, lateness_ns: int
) -> None:
    tape, random = some_tape(seed, rows, style, vendor)
    if random.random() < 0.7:
        tape = with_rules(tape, random, count=8, metrics=METRICS)
    ran = run(to_entries(tape, set()), vendor, scan_ns=style.scan_ns, lateness_ns=lateness_ns, boards=True)
    naive = naive_run(tape, vendor, scan_ns=style.scan_ns, lateness_ns=lateness_ns, boards=True)
    check_boards(ran.boards, naive)
    check_matches(ran.matches, naive.matches)
    assert ran.cooled_down == naive.memory.cooled_down
    marks = [item.ns for item in tape if isinstance(item, Mark)]
    assert ran.last.ts_ns == marks[-1]
    check_board(ran.last, naive.board(marks[-1], COMPARED), at="the end")


@bounded(80)
@given(
    seed=SEEDS,
    rows=st.integers(1, 300),
    style=st.sampled_from(STYLES),
    vendor=st.sampled_from(VENDORS),
    count=st.integers(1, 60),
    metrics=st.lists(st.sampled_from(METRICS), min_size=1, max_size=60),
)
def test_matches_of_random_tape_equal_naive_matches(
    seed: int, rows: int, style: Style, vendor: Vendor, count: int, metrics: list[str]
) -> None:
    tape, random = some_tape(seed, rows, style, vendor)
    tape = with_rules(tape, random, count=count, metrics=metrics)
    ran = run(to_entries(tape, set()), vendor, scan_ns=style.scan_ns, boards=False)
    naive = naive_run(tape, vendor, scan_ns=style.scan_ns, boards=False)
    check_matches(ran.matches, naive.matches)
    assert ran.cooled_down == naive.memory.cooled_down


# -- cutting -----------------------------------------------------------------------------------------------------------


def same_bytes(left: Bars, right: Bars) -> bool:
    names = [left.symbols[s] for s in left.symbol] == [right.symbols[s] for s in right.symbol]
    columns = [name for name in BAR_COLUMNS if name != "symbol"]
    return names and all(getattr(left, name).tobytes() == getattr(right, name).tobytes() for name in columns)


def by_symbol(board: BoardRows) -> dict[str, bytes]:
    """Each symbol's column, bit for bit; those of which nothing is known yet are left out."""
    columns = {symbol: board.values[:, i] for i, symbol in enumerate(board.symbols)}
    return {s: np.where(np.isnan(v), np.nan, v).tobytes() for s, v in columns.items() if not np.isnan(v).all()}


def check_same(one: Ran, other: Ran) -> None:
    assert same_bytes(one.bars, other.bars)
    assert [m.alert_id for m in one.matches] == [m.alert_id for m in other.matches]
    assert [m.values for m in one.matches] == [m.values for m in other.matches]
    assert [(b.ts_ns, b.session, by_symbol(b)) for b in one.boards] == [
        (b.ts_ns, b.session, by_symbol(b)) for b in other.boards
    ]
    assert (one.last.ts_ns, by_symbol(one.last)) == (other.last.ts_ns, by_symbol(other.last))
    assert one.tally == other.tally
    assert one.cooled_down == other.cooled_down


@bounded(20)
@given(
    seed=SEEDS,
    rows=st.integers(1, 300),
    style=st.sampled_from(STYLES),
    vendor=st.sampled_from(VENDORS),
    share=st.sampled_from((0.02, 0.3, 1.0)),
    boards=st.booleans(),
)
def test_tape_cut_elsewhere_gives_the_same(
    seed: int,
    rows: int,
    style: Style,
    vendor: Vendor,
    share: float,
    boards: bool,  # noqa: FBT001
) -> None:
    tape, random = some_tape(seed, rows, style, vendor)
    tape = with_rules(tape, random, count=12, metrics=METRICS) if boards else [Rules(make_rules(random, 12)), *tape]
    cuts = {position for position in range(len(tape)) if random.random() < share}
    whole = run(to_entries(tape, set()), vendor, scan_ns=style.scan_ns, boards=boards)
    again = run(to_entries(tape, set()), vendor, scan_ns=style.scan_ns, boards=boards)
    cut = run(to_entries(tape, cuts), vendor, scan_ns=style.scan_ns, boards=boards)
    shuffled = run(to_entries(tape, cuts, random), vendor, scan_ns=style.scan_ns, boards=boards)
    for other in (again, cut, shuffled):
        check_same(whole, other)


@bounded(25)
@given(seed=SEEDS, rows=st.integers(1, 200), style=st.sampled_from(STYLES), pieces=st.integers(1, 30))
def test_batch_in_pieces_gives_the_same(seed: int, rows: int, style: Style, pieces: int) -> None:
    vendor = VENDORS[0]
    tape, random = some_tape(seed, rows, style, vendor)
    ruleset, *batches = to_entries([Rules(make_rules(random, 12)), *tape], set())
    (batch,) = batches
    assert isinstance(batch, Batch)
    edges = sorted({0, len(batch), *(random.randrange(len(batch)) for _ in range(pieces))})
    parts = [batch.rows(start, stop) for start, stop in pairwise(edges)]
    assert sum(map(len, parts)) == len(batch)
    assert sum(len(part.marks_ns) for part in parts) == len(batch.marks_ns)
    one = run([ruleset, batch], vendor, scan_ns=style.scan_ns, boards=True)
    check_same(one, run([ruleset, *parts], vendor, scan_ns=style.scan_ns, boards=True))


# -- rules on boards ---------------------------------------------------------------------------------------------------

BOARD_METRICS = ("price", "volume_1m", "rsi_14_1m", "gap_pct", "change_pct_5m")


def small_rules(random: Random, count: int) -> tuple[NaiveRule, ...]:
    """Rules whose thresholds are often met to the digit."""
    return tuple(
        NaiveRule(
            f"r{i}",
            1,
            tuple(
                (random.choice(BOARD_METRICS), random.choice((">", "<", ">=", "<=", "==", "!=")), random.randrange(4))
                for _ in range(random.choice((1, 1, 2, 4)))
            ),
            random.choice((0, 0, 3 * SECOND)),
        )
        for i in range(count)
    )


def ask_both(seed: int, *, counts: Sequence[int], rules: int, moving: float) -> None:
    """The plan and the interpreter over the same boards, one a second, of as many symbols as `counts` says."""
    random = Random(seed)
    noise = np.random.default_rng(seed)
    names = [f"S{i:05d}" for i in range(max(counts))]
    asked = small_rules(random, rules)
    plan, memory = Plan(Ruleset(number=0, rules=())), Memory()
    before: np.ndarray[tuple[int, int], np.dtype[np.float64]] | None = None
    values = np.zeros((len(BOARD_METRICS), 0))
    fired = 0
    for second, count in enumerate(counts):
        if second in (0, len(counts) // 2):
            if second:
                asked = tuple(
                    NaiveRule(r.id, random.choice((1, 1, 2)), r.conditions, r.cooldown_ns)
                    for r in random.sample(asked, len(asked))
                )
            plan = Plan(Ruleset(number=second, rules=tuple(map(spec, asked))), previous=plan)
            plan.bind({name: row for row, name in enumerate(BOARD_METRICS)})
            memory.apply(asked)
            before = None
        fresh = noise.integers(0, 4, (len(BOARD_METRICS), count)).astype(float)
        fresh[noise.random(fresh.shape) < 0.25] = np.nan
        known = values.shape[1]
        stays = noise.random(fresh[:, :known].shape) > moving
        fresh[:, :known] = np.where(stays, values, fresh[:, :known])
        values = fresh
        changed = None
        if before is not None and before.shape == values.shape and random.random() < 0.5:
            changed = (before.view(np.int64) != values.view(np.int64)).any(axis=1)
        before = values.copy()
        now_ns = second * SECOND
        matches = plan.scan(
            values, now_ns=now_ns, symbols=names[:count], price=values[0], session="regular", changed=changed
        )
        board = {
            names[s]: {name: float(values[row, s]) for row, name in enumerate(BOARD_METRICS)} for s in range(count)
        }
        check_matches(matches, memory.scan(board, now_ns, "regular"))
        fired += len(matches)
    assert plan.cooled_down == memory.cooled_down
    assert fired or not rules or moving == 0.0 or len(counts) < 3


@bounded(60)
@given(
    seed=SEEDS,
    counts=st.lists(st.sampled_from((1, 7, 63, 64, 65, 130)), min_size=1, max_size=14).map(sorted),
    rules=st.integers(0, 30),
    moving=st.sampled_from((0.0, 0.01, 0.3, 1.0)),
)
def test_plan_of_few_symbols_agrees_with_interpreter(seed: int, counts: list[int], rules: int, moving: float) -> None:
    ask_both(seed, counts=counts, rules=rules, moving=moving)


@pytest.mark.parametrize(
    ("counts", "rules"),
    [((65,) * 6, 3_000), ((1, 64, 65, 1_000, 1_000, 1_000), 400), ((7, 7, 7, 7), 5_000)],
    ids=["3000 rules", "1000 symbols", "5000 rules"],
)
def test_plan_of_many_agrees_with_interpreter(counts: tuple[int, ...], rules: int) -> None:
    ask_both(5, counts=counts, rules=rules, moving=0.2)
