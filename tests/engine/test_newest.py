"""Prices that stand alone are flagged: in worked examples, on random tapes against a list, cut anywhere, amended."""

import math
from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import SECOND
from tapes import new_york, trading_days

from tapewatch.eligibility import load_profile
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import Batch, Kind, make_batch, pulse
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules import Ruleset, RuleSpec
from tapewatch.engine.rules.text import parse_condition
from tapewatch.engine.scanner import Scanner

OPEN_NS = new_york("2025-03-06 09:30")
SYMBOLS = ("A", "B", "C")


def scanner_of(*metrics: str, kept_trades: int = 10_000) -> Scanner:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), kept_trades=kept_trades)
    scanner.step(pulse(OPEN_NS))
    scanner.keep(metrics)
    return scanner


def prints(*prices: float, second: float = 1.0, first_id: int = 1, letters: str = "@") -> Batch:
    """Prints of A, a millisecond apart, and time passes."""
    n = len(prices)
    return make_batch(
        symbols=SYMBOLS,
        conditions=(letters,),
        ts_ns=[OPEN_NS + round(second * SECOND) + at * 1_000_000 for at in range(n)],
        price=prices,
        size=[100.0] * n,
        tape=[ord("C")] * n,
        exchange=[ord("N")] * n,
        trade_id=range(first_id, first_id + n),
        marks_row=[n],
        marks_ns=[OPEN_NS + round((second + 1) * SECOND)],
    )


def amendment(kind: Kind, trade_id: int, price: float = math.nan, *, second: float) -> Batch:
    row = prints(price, second=second, first_id=trade_id)
    return replace(row, kind=np.array([kind], np.uint8))


def outlier(scanner: Scanner) -> float:
    return float(scanner.board_rows(("outlier",)).values[0, 0])


# -- worked examples ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prices", "flag"),
    [
        ((100,), math.nan),
        ((100, 149.99), 0.0),
        ((100, 150), 1.0),
        ((100, 50), 1.0),
        ((100, 50.01), 0.0),
        ((100, 100, 200), 1.0),
        ((100, 100, 200, 201), 0.0),  # confirmed by the next
        ((100, 100, 200, 100), 0.0),  # back where it was
        ((100, 100, 200, 100, 100), 0.0),
        ((100, 100, 200, 100, 205), 0.0),  # of three prints two agree
        ((100, 100, 200, 100, 100, 205), 1.0),
        ((100, 100, 200, 900), 1.0),  # another one
        ((100, 100, 200, 900, 890), 0.0),
        ((100, 140, 200), 0.0),  # in steps
    ],
)
def test_price_that_stands_alone_is_flagged(prices: tuple[float, ...], flag: float) -> None:
    scanner = scanner_of("outlier")
    scanner.step(prints(*prices))
    assert outlier(scanner) == pytest.approx(flag, nan_ok=True)


def test_trade_that_may_not_set_the_price_neither_is_flagged_nor_confirms() -> None:
    scanner = scanner_of("outlier")
    scanner.step(prints(100, 100))
    scanner.step(prints(300, second=2, letters="@I"))
    assert outlier(scanner) == 0
    scanner.step(prints(200, second=3))
    scanner.step(prints(201, second=4, letters="@I"))
    assert outlier(scanner) == 1


def test_late_print_takes_its_place_and_can_confirm() -> None:
    scanner = scanner_of("outlier")
    scanner.step(prints(100, 100, 200, second=10))
    assert outlier(scanner) == 1
    scanner.step(prints(190, second=2))  # long before
    assert outlier(scanner) == 1
    scanner.step(prints(190, second=10.0015))
    assert outlier(scanner) == 0


def test_cancelled_outlier_is_none_and_a_cancelled_confirmation_none_either() -> None:
    scanner = scanner_of("outlier")
    scanner.step(prints(100, 100, 200, 201))
    scanner.step(amendment(Kind.CANCEL, 4, second=3))
    assert outlier(scanner) == 1
    scanner.step(amendment(Kind.CORRECTION, 3, 120, second=4))
    assert outlier(scanner) == 0
    scanner.step(amendment(Kind.CORRECTION, 3, 20, second=5))
    assert outlier(scanner) == 1
    scanner.step(amendment(Kind.CANCEL, 3, second=6))
    assert outlier(scanner) == 0
    scanner.step(amendment(Kind.CANCEL, 2, second=7))
    assert math.isnan(outlier(scanner))


def test_of_prints_that_are_no_longer_kept_those_that_stand_count_on() -> None:
    scanner = scanner_of("outlier", kept_trades=1)
    scanner.step(prints(100, 300, second=1))
    scanner.step(prints(310, second=61))  # the others have fallen out
    assert outlier(scanner) == 0
    scanner.step(amendment(Kind.CORRECTION, 1, 100, second=62))
    assert scanner.tally["amendments_refused"] + scanner.tally["amendments_too_late"] == 0
    assert outlier(scanner) == 0  # near the first
    scanner.step(amendment(Kind.CORRECTION, 1, 900, second=63))
    assert outlier(scanner) == 1
    scanner.step(amendment(Kind.CANCEL, 1, second=64))
    assert outlier(scanner) == 1  # 300 after 100


def test_rule_that_asks_for_confirmation_waits_for_it() -> None:
    def fired(text: str) -> list[int]:
        scanner = scanner_of()
        rule = RuleSpec(id="r", version=1, name="r", when=parse_condition(text))
        scanner.apply(Ruleset(number=1, rules=(rule,)))
        steps = [
            scanner.step(prints(*some, second=at))
            for at, some in enumerate([(99, 99), (250,), (99.5, 99), (260,), (261,)], start=1)
        ]
        return [at for at, step in enumerate(steps, start=1) for _ in step.matches]

    assert fired("price > 100") == [2, 4]
    assert fired("price > 100 and outlier == 0") == [5]


def test_it_is_unknown_for_lack_of_trades() -> None:
    scanner = scanner_of("outlier")
    scanner.step(prints(math.nan))
    scanner.board_rows(("outlier",))
    assert scanner.board.reason("outlier", 0) == "no trade yet"
    scanner.step(prints(100, second=3))
    scanner.board_rows(("outlier",))
    assert scanner.board.reason("outlier", 0) == "warming"


def test_boards_do_not_show_it() -> None:
    assert not CATALOGUE["outlier"].published


# -- random tapes ------------------------------------------------------------------------------------------------------


class Line:
    """A print as it stands, or stood."""

    def __init__(self, symbol: int, ts_ns: int, price: float) -> None:
        self.symbol, self.ts_ns, self.price, self.stands = symbol, ts_ns, price, True


def naive_outlier(lines: Sequence[Line], symbol: int) -> float:
    mine = [line for line in lines if line.symbol == symbol and line.stands]
    prices = [line.price for line in sorted(mine, key=lambda line: line.ts_ns)]
    if len(prices) < 2:
        return math.nan
    return float(all(abs(prices[-1] - price) >= 0.5 * price for price in prices[-3:-1]))


def wild_tape(random: Random, rows: int, *, ordered: bool) -> tuple[list[Batch], list[list[float]]]:
    """One row a batch, and what is true of each symbol after it."""
    lines: list[Line] = []
    batches, wanted = [], []
    for at in range(rows):
        now_ns = OPEN_NS + (at + 1) * 200_000_000
        kind, trade_id = Kind.TRADE, len(lines) + 1
        late = 0 if ordered else random.choice((0, 0, 0, 1, 2, 5, 40)) * SECOND
        line = Line(random.randrange(3), now_ns - now_ns % SECOND - late, random.choice((10, 14, 15, 20, 31, 62, 5, 4)))
        if lines and random.random() < 0.25:
            trade_id = random.randrange(len(lines)) + 1
            line = lines[trade_id - 1]
            kind = random.choice((Kind.CANCEL, Kind.CORRECTION))
            if kind == Kind.CANCEL:
                line.stands = False
            elif line.stands:
                line.price = random.choice((10, 14, 20, 31))
        else:
            lines.append(line)
        batches.append(
            make_batch(
                symbols=SYMBOLS,
                symbol=[line.symbol],
                kind=[kind],
                ts_ns=[line.ts_ns],
                price=[line.price],
                size=[100.0],
                exchange=[ord("N")],
                trade_id=[trade_id],
                marks_row=[1],
                marks_ns=[now_ns],
            )
        )
        wanted.append([naive_outlier(lines, symbol) for symbol in range(3)])
    return batches, wanted


def joined(batches: Sequence[Batch]) -> Batch:
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(batch, name) for batch in batches])
        for name in ("symbol", "condition", "kind", "ts_ns", "price", "size", "tape", "exchange", "trade_id")
    }
    return make_batch(
        symbols=SYMBOLS,
        marks_row=range(1, len(batches) + 1),
        marks_ns=[int(batch.marks_ns[0]) for batch in batches],
        **columns,
    )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 120), ordered=st.booleans(), cut=st.sampled_from((1, 2, 9, 200)))
def test_flags_of_a_random_tape_are_those_of_a_list(seed: int, rows: int, cut: int, *, ordered: bool) -> None:
    random = Random(seed)
    batches, wanted = wild_tape(random, rows, ordered=ordered)
    scanner = scanner_of("outlier", "price")
    flagged = 0
    for start in range(0, rows, cut):
        part = batches[start : start + cut]
        scanner.step(joined(part))
        if random.random() < 0.2:
            scanner = Scanner.thaw(
                scanner.freeze(), days=trading_days(), profile=load_profile("alpaca"), kept_trades=10_000
            )
        board: BoardRows = scanner.board_rows(("outlier",))
        told = dict(zip(board.symbols, board.values[0].tolist(), strict=True))
        expected = wanted[start + len(part) - 1]
        for symbol, flag in zip(SYMBOLS, expected, strict=True):
            assert told.get(symbol, math.nan) == pytest.approx(flag, nan_ok=True), (start, symbol)
            flagged += flag == 1
    assert flagged or rows < 60 or cut > 1
