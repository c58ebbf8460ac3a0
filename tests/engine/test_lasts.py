"""Lasts that depend on the trades before: runs cut anywhere, against a list gone through again for each trade."""

from itertools import pairwise
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import MINUTE, POST, REGULAR, Naive, NaiveDays, Row, SymbolFacts, sip
from tapes import DAYS, trading_days

from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import U16
from tapewatch.engine.conditions import Effect
from tapewatch.engine.lasts import Lasts

CONDITIONS = ("@", " ", "L", "P", "Z", "4", "G", "LZ", "9", "T", "U", "TZ", "UL", "TL", "I", "B")


def rows_around_the_night(random: Random, count: int) -> list[Row]:
    """Trades of few symbols and venues, mostly around 20:00, where the trading day changes; some of them late."""
    now = DAYS.days[0][2] - 2 * MINUTE
    rows = []
    for _ in range(count):
        now += random.choice((0, 0, 1, 5_000_000_000, MINUTE, MINUTE, 60 * MINUTE))
        late = random.choice((0, 0, 0, 0, 10, 29)) * MINUTE
        tape, exchange = random.choice("AABC"), random.choice(("N", "P", "Q", "D", ""))
        symbol, conditions = random.choice("XYZ"), random.choice(CONDITIONS)
        rows.append(Row(symbol, now - late, conditions=conditions, tape=tape, exchange=exchange))
    return rows


def settled(rows: list[Row], edges: list[int]) -> list[tuple[bool, bool]]:
    """(open, last) of each trade, by the engine, in runs between these edges."""
    profile = load_profile("sip")
    days = trading_days()
    lasts = Lasts(days=days, profile=profile, capacity=2)
    lasts.resize(64)
    effects: list[U16] = []
    for start, stop in pairwise(edges):
        run = rows[start:stop]
        minute = np.array([row.ts_ns // MINUTE for row in run], np.int64)
        effect = [
            int(profile.effect(row.conditions, row.tape, days.at(int(m) * MINUTE).phase(int(m))))
            for row, m in zip(run, minute, strict=True)
        ]
        effects.append(
            lasts.settle(
                np.array(effect, np.uint16),
                symbol=np.array(["XYZ".index(row.symbol) for row in run], np.intp),
                ts_ns=np.array([row.ts_ns for row in run], np.int64),
                minute=minute,
                exchange=np.array([ord(row.exchange or "\0") for row in run], np.uint8),
                tape=np.array([ord(row.tape) for row in run], np.uint8),
            )
        )
    return [(bool(e & Effect.OPEN), bool(e & Effect.LAST)) for e in np.concatenate(effects).tolist()]


def settled_naively(rows: list[Row], days: NaiveDays = DAYS) -> list[tuple[bool, bool]]:
    naive = Naive(days=days, judge=sip, scan_ns=MINUTE)
    facts = {symbol: SymbolFacts() for symbol in "XYZ"}
    out = []
    for row in rows:
        minute, mine = row.ts_ns // MINUTE, facts[row.symbol]
        day = days.trade_day(minute * MINUTE)
        words = naive._settle(mine, row, day, sip(row.conditions, row.tape, days.phase(minute)))
        if "last" in words:
            mine.lasts.append((day, row.exchange, "extended" in words))
        out.append(("open" in words, "last" in words))
    return out


@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 120), share=st.sampled_from((0.0, 0.05, 0.5, 1.0)))
def test_lasts_of_runs_cut_anywhere_equal_those_of_one_trade_at_a_time(seed: int, count: int, share: float) -> None:
    random = Random(seed)
    rows = rows_around_the_night(random, count)
    edges = [0, *(place for place in range(1, count) if random.random() < share), count]
    assert settled(rows, edges) == settled_naively(rows)


def test_random_trades_meet_both_outcomes() -> None:
    rows = rows_around_the_night(Random(3), 400)
    outcome = dict.fromkeys(("@", "L", "T", "TL"), (0, 0))
    for row, (_, last) in zip(rows, settled_naively(rows), strict=True):
        if row.conditions in outcome and DAYS.phase(row.ts_ns // MINUTE) in (REGULAR, POST):
            no, yes = outcome[row.conditions]
            outcome[row.conditions] = (no + (not last), yes + last)
    assert all(yes for _, yes in outcome.values())
    assert all(no for code, (no, _) in outcome.items() if code in ("L", "TL"))


@pytest.mark.parametrize("count", [1, 3])
def test_plain_trades_are_given_back_as_they_are(count: int) -> None:
    lasts = Lasts(days=trading_days(), profile=load_profile("sip"), capacity=64)
    effect = np.full(count, 15, np.uint16)
    ts_ns = np.full(count, DAYS.days[0][1], np.int64)
    ids = np.zeros(count, np.uint8)
    same = lasts.settle(
        effect, symbol=np.zeros(count, np.intp), ts_ns=ts_ns, minute=ts_ns // MINUTE, exchange=ids, tape=ids
    )
    assert same.tolist() == [15] * count
