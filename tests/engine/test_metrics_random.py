"""The whole catalogue on random tapes: against the naive reference, cut in other places, and asked for one by one."""

import math
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import Item, Mark, Naive
from tapes import DAYS, METRICS, STYLES, VENDORS, Style, Vendor, facts_of, make_tape, to_entries, to_facts, trading_days

from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import Batch
from tapewatch.engine.daily import DAILY_FACTS
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.scanner import Scanner

SEEDS = st.integers(0, 2**32 - 1)


def scanner_of(vendor: Vendor, style: Style) -> Scanner:
    return Scanner(days=trading_days(), profile=vendor.profile, scan_interval_ns=style.scan_ns)


def pieces_of(tape: list[Item], random: Random) -> list[tuple[list[Item], Batch]]:
    """The tape cut after some of its marks, so that everybody can look there; the last piece ends with a mark."""
    marks = [at + 1 for at, item in enumerate(tape) if isinstance(item, Mark)]
    cuts = sorted({*random.sample(marks, min(len(marks), 4)), marks[-1]})
    pieces = [tape[start:stop] for start, stop in zip([0, *cuts], cuts, strict=False)]
    batches = [entry for entry in to_entries(tape[: cuts[-1]], set(cuts)) if isinstance(entry, Batch)]
    return list(zip(pieces, batches, strict=True))


def check(board: BoardRows, expected: dict[str, dict[str, float]], *, at: object) -> None:
    for column, symbol in enumerate(board.symbols):
        for row, metric in enumerate(board.metrics):
            value, wanted = float(board.values[row, column]), expected[symbol][metric]
            same = math.isclose(value, wanted, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(value) and math.isnan(wanted))
            assert same, f"{metric} of {symbol} at {at}: {value!r}, not {wanted!r}"


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=SEEDS,
    rows=st.integers(1, 250),
    style=st.sampled_from(STYLES),
    vendor=st.sampled_from(VENDORS),
    told=st.booleans(),
)
def test_catalogue_of_random_tape_equals_naive_catalogue(
    seed: int,
    rows: int,
    style: Style,
    vendor: Vendor,
    told: bool,  # noqa: FBT001  # drawn by hypothesis
) -> None:
    random = Random(seed)
    tape = make_tape(random, style, vendor, rows=rows, symbols=random.choice((1, 3, 6)), wild=True)
    facts = facts_of(random) if told else {}
    scanner = scanner_of(vendor, style)
    scanner.keep(METRICS)
    for entry in to_facts(facts):
        scanner.learn(entry)
    naive = Naive(
        days=DAYS, judge=vendor.judge, scan_ns=style.scan_ns, scans=True, told=facts, reference_names=DAILY_FACTS
    )
    for piece, batch in pieces_of(tape, random):
        scanner.step(batch)
        naive.run(piece)
        check(scanner.board_rows(METRICS), naive.board(naive.newest_mark, METRICS), at=naive.newest_mark)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(seed=SEEDS, rows=st.integers(1, 250), style=st.sampled_from(STYLES), share=st.sampled_from((0.1, 0.5, 1.0)))
def test_catalogue_does_not_depend_on_where_the_tape_is_cut(seed: int, rows: int, style: Style, share: float) -> None:
    random, vendor = Random(seed), VENDORS[0]
    tape = make_tape(random, style, vendor, rows=rows, symbols=6, wild=True)
    cuts = {position for position in range(len(tape)) if random.random() < share}
    boards = []
    for where in (set[int](), cuts):
        scanner = scanner_of(vendor, style)
        scanner.keep(METRICS)
        for entry in to_entries(tape, where):
            assert isinstance(entry, Batch)
            scanner.step(entry)
            if where and random.random() < 0.2:
                scanner.board_rows(random.sample(METRICS, 20))
        boards.append(scanner.board_rows(METRICS))
    one, other = (
        {symbol: np.nan_to_num(board.values[:, at], nan=np.nan).tobytes() for at, symbol in enumerate(board.symbols)}
        for board in boards
    )
    assert one == other


def boards_of(names: tuple[str, ...], asked: tuple[str, ...]) -> list[BoardRows]:
    """What a scanner that keeps `names` says of `asked` in the course of a tape."""
    style = STYLES[1]
    tape = make_tape(Random(5), style, VENDORS[0], rows=400, symbols=3, wild=False)
    scanner = scanner_of(VENDORS[0], style)
    scanner.keep(names)
    boards = []
    for _, batch in pieces_of(tape, Random(1)):
        scanner.step(batch)
        boards.append(scanner.board_rows(asked))
    return boards


KEEPING = tuple(name for name, metric in CATALOGUE.items() if metric.keeps)
AMONG_ALL = boards_of(METRICS, KEEPING)


@pytest.mark.parametrize("metric", KEEPING)
def test_metric_that_is_asked_for_alone_is_what_it_is_among_all(metric: str) -> None:
    """Each declaration says what must be kept for it."""
    row = KEEPING.index(metric)
    for alone, among in zip(boards_of((metric,), (metric,)), AMONG_ALL, strict=True):
        assert np.array_equal(alone.values[0], among.values[row], equal_nan=True)


def test_random_tapes_make_nearly_every_metric_known() -> None:
    """A comparison of two unknown values says nothing."""
    slow = {f"{name}_{n}_1m" for name in ("ema", "sma") for n in (50, 200)}
    unknown = {name for name in METRICS if name not in slow and not name.startswith(("qqq_", "dia_"))}
    for seed in range(60):
        if not unknown:
            break
        random = Random(seed)
        style, vendor = random.choice(STYLES), VENDORS[0]
        tape = make_tape(random, style, vendor, rows=250, symbols=6, wild=True)
        scanner = scanner_of(vendor, style)
        scanner.keep(METRICS)
        for entry in to_facts(facts_of(random)):
            scanner.learn(entry)
        for _, batch in pieces_of(tape, random):
            scanner.step(batch)
            names = tuple(sorted(unknown))
            board = scanner.board_rows(names)
            unknown -= {name for name, values in zip(names, board.values, strict=True) if not np.isnan(values).all()}
    assert unknown == set()
