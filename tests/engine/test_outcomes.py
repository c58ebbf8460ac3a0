"""What the price did after an alert: against a slow and obvious version of itself, however bars and alerts arrive."""

import math
from collections.abc import Iterator, Sequence
from statistics import mean, median
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS, Bars
from tapewatch.engine.outcomes import (
    AFTER_MINUTES,
    OUTCOMES,
    Fired,
    Followed,
    Outcomes,
    RuleKey,
    join,
)
from tapewatch.engine.scores import FEWEST_SYMBOLS, MOST_A_DAY, Scores, too_broad

DAYS = TradingDays(
    *(
        np.array([first, second, *(pre + after for pre in range(700, 5_000, 300))]) * MINUTE_NS
        for first, second, after in ((100, 400, 0), (130, 430, 30), (230, 500, 130), (280, 560, 180))
    )
)
"""Short days in minutes: pre-market, open, close, end of the post-market; the second closes early."""
AFTER_ALL_DAYS = 6_000
RULE, OTHER = RuleKey("gap", 1), RuleKey("gap", 2)
REACH = 30


class Bar(NamedTuple):
    symbol: str
    minute: int
    high: float
    low: float
    close: float
    revision: int = 0


def bars_of(rows: Sequence[Bar]) -> Bars:
    symbols = tuple(dict.fromkeys(row.symbol for row in rows))
    n = len(rows)
    return Bars(
        symbols=symbols,
        symbol=np.array([symbols.index(row.symbol) for row in rows], np.int32),
        ts_ns=np.array([row.minute * MINUTE_NS for row in rows], np.int64),
        open=np.full(n, 1.0),
        high=np.array([row.high for row in rows]),
        low=np.array([row.low for row in rows]),
        close=np.array([row.close for row in rows]),
        volume=np.full(n, 1.0),
        vwap=np.full(n, 1.0),
        vwap_volume=np.full(n, 1.0),
        trade_count=np.full(n, 1, np.int64),
        revision=np.array([row.revision for row in rows], np.int64),
    )


def alert(minute: float, *, symbol: str = "A", price: float = 100.0, rule: RuleKey = RULE) -> Fired:
    return Fired(rule, symbol, round(minute * 60) * SECOND_NS, price)


def flat(symbol: str, minute: int, price: float, revision: int = 0) -> Bar:
    return Bar(symbol, minute, price, price, price, revision)


# -- the obvious version ----------------------------------------------------------------------------------------------


def naive(alerts: Sequence[Fired], bars: Sequence[Bar]) -> list[list[float]]:
    """One row an alert: everything from the final bars, by reading the definitions aloud."""
    final: dict[tuple[str, int], Bar] = {}
    for bar in bars:
        if bar.revision >= final.get((bar.symbol, bar.minute), bar).revision:
            final[bar.symbol, bar.minute] = bar
    reached_ns = (max(bar.minute for bar in bars) + 1) * MINUTE_NS if bars else 0
    return [
        naive_row(
            fired, [b for b in final.values() if b.symbol == fired.symbol and not math.isnan(b.close)], reached_ns
        )
        for fired in alerts
    ]


def naive_row(fired: Fired, bars: list[Bar], reached_ns: int) -> list[float]:
    bars = sorted(bars, key=lambda bar: bar.minute)
    at_ns = fired.fired_at_ns
    day = next(d for d in range(len(DAYS.post_ns)) if at_ns <= DAYS.post_ns[d])
    opens_ns, closes_ns, ends_ns = (int(edges[day]) for edges in (DAYS.open_ns, DAYS.close_ns, DAYS.post_ns))
    row: list[float] = []
    for minutes in AFTER_MINUTES:
        due_ns = at_ns + minutes * MINUTE_NS
        price = fired.price
        for bar in bars:
            if at_ns < (bar.minute + 1) * MINUTE_NS <= due_ns:
                price = bar.close
        come = due_ns // MINUTE_NS * MINUTE_NS <= reached_ns
        row.append(price if come and due_ns <= ends_ns else math.nan)
    price = fired.price if opens_ns <= at_ns < closes_ns else math.nan
    for bar in bars:
        if at_ns < (bar.minute + 1) * MINUTE_NS and opens_ns <= bar.minute * MINUTE_NS < closes_ns:
            price = bar.close
    row.append(price if at_ns < closes_ns <= reached_ns else math.nan)
    stop_ns = closes_ns if at_ns < closes_ns else ends_ns
    after = [bar for bar in bars if at_ns <= bar.minute * MINUTE_NS < stop_ns]
    row += [max(bar.high for bar in after), min(bar.low for bar in after)] if after else [math.nan] * 2
    return [(value / fired.price - 1) * 100 for value in row]


# -- any tape ---------------------------------------------------------------------------------------------------------

Event = Bar | Fired
PRICES = st.integers(50, 200).map(float)


@st.composite
def tapes(draw: st.DrawFn) -> list[Event]:
    """Bars of three symbols as they close and are revised, and alerts that arrive up to half an hour after the fact."""
    events: list[Event] = []
    minute = draw(st.sampled_from([95, 125, 180, 225, 270, 395, 490]))
    revisions: dict[tuple[str, int], int] = {}
    fired: set[tuple[RuleKey, str, int]] = set()
    for _ in range(draw(st.integers(1, 25))):
        minute += draw(st.sampled_from([1, 1, 1, 2, 5, 29, 31, 60, 150]))
        closing = draw(st.lists(st.sampled_from("ABC"), min_size=1, unique=True))
        late = draw(st.lists(st.tuples(st.sampled_from("ABC"), st.integers(0, REACH - 1)), max_size=4))
        for symbol, back in [*((symbol, 0) for symbol in closing), *late]:
            low, close, high = sorted(draw(st.tuples(PRICES, PRICES, PRICES)))
            revision = revisions.get((symbol, minute - back), -1) + draw(st.integers(1, 2))
            revisions[symbol, minute - back] = revision
            withdrawn = revision > 0 and draw(st.integers(0, 3)) == 0
            numbers = (math.nan,) * 3 if withdrawn else (high, low, close)
            events.append(Bar(symbol, minute - back, *numbers, revision))
            # A bar may come again with other numbers, or an older revision of it behind the newer one.
            if draw(st.integers(0, 5)) == 0:
                events.append(Bar(symbol, minute - back, high, low, low, max(0, revision - 1)))
        for second, symbol, rule in draw(
            st.lists(
                st.tuples(
                    st.one_of(st.integers(-REACH * 60, 120), st.just(0), st.just(60)),
                    st.sampled_from("ABC"),
                    st.sampled_from([RULE, OTHER]),
                ),
                max_size=3,
            )
        ):
            key = (rule, symbol, (minute * 60 + second) * SECOND_NS)
            if key not in fired:
                fired.add(key)
                events.append(Fired(*key, draw(PRICES)))
    return events


def runs(events: Sequence[Event], cuts: Sequence[int]) -> Iterator[list[Event]]:
    """The events in pieces: at these places, and where alerts and bars follow each other."""
    piece: list[Event] = []
    for place, event in enumerate(events):
        if piece and (place in cuts or type(event) is not type(piece[-1])):
            yield piece
            piece = []
        piece.append(event)
    yield piece


def follow(events: Sequence[Event], cuts: Sequence[int] = ()) -> tuple[Outcomes, Followed]:
    outcomes, left = Outcomes(DAYS), []
    for piece in runs(events, cuts):
        outcomes.fired(event for event in piece if isinstance(event, Fired))
        outcomes.bars(bars_of([event for event in piece if isinstance(event, Bar)]))
        left.append(outcomes.left())
    return outcomes, join([*left, outcomes.open()])


@settings(max_examples=80, deadline=None)
@given(tapes())
def test_outcomes_equal_the_naive_ones(events: list[Event]) -> None:
    outcomes, rows = follow(events)
    alerts = [event for event in events if isinstance(event, Fired)]
    expected = naive(alerts, [event for event in events if isinstance(event, Bar)])
    assert rows.followed.all()
    assert outcomes.tally["late_bars"] == 0
    told = [(rows.rules[r], rows.symbols[s]) for r, s in zip(rows.rule.tolist(), rows.symbol.tolist(), strict=True)]
    assert told == [(fired.rule, fired.symbol) for fired in alerts]
    assert rows.fired_at_ns.tolist() == [fired.fired_at_ns for fired in alerts]
    np.testing.assert_array_equal(rows.values.T, np.array(expected).reshape(len(alerts), len(OUTCOMES)))


@settings(max_examples=80, deadline=None)
@given(tapes(), st.lists(st.integers(1, 120), max_size=20))
def test_however_the_tape_is_cut_outcomes_are_the_same_bytes(events: list[Event], cuts: list[int]) -> None:
    (whole, one), (pieces, other) = follow(events), follow(events, cuts)
    for name in ("number", "rule", "symbol", "fired_at_ns", "price", "day", "followed", "values"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes(), name
    assert (pieces.tally, pieces.reached_ns, pieces.traded()) == (whole.tally, whole.reached_ns, whole.traded())


@settings(max_examples=80, deadline=None)
@given(tapes())
def test_alerts_may_come_long_before_their_bars(events: list[Event]) -> None:
    """Bars keep their own order, as one stream does; alerts come on another."""
    ahead = sorted(events, key=lambda event: isinstance(event, Bar))
    np.testing.assert_array_equal(follow(ahead)[1].values, follow(events)[1].values)


@settings(max_examples=80, deadline=None)
@given(tapes())
def test_scores_equal_those_of_a_list_of_numbers(events: list[Event]) -> None:
    _, rows = follow(events)
    half = len(rows) // 2
    scores = Scores()
    scores.add(rows.take(np.arange(half)))
    table = scores.plus(rows.take(np.arange(half, len(rows)))).table()
    assert sum(score.alerts for score in scores.table().values()) == half
    for key in {rows.rules[r] for r in rows.rule.tolist()}:
        mine = rows.take(rows.rule == rows.rules.index(key))
        assert table[key].alerts == len(mine)
        assert table[key].symbols == len(set(mine.symbol.tolist()))
        assert table[key].symbol_days == len(set(zip(mine.symbol.tolist(), mine.day.tolist(), strict=True)))
        for name, values in zip(OUTCOMES, mine.values.tolist(), strict=True):
            score, known = table[key].outcomes[name], [value for value in values if not math.isnan(value)]
            assert score.known == len(known)
            if not known:
                assert all(math.isnan(v) for v in (score.mean_pct, score.positive_pct, score.median_pct))
                continue
            assert score.positive_pct == pytest.approx(100 * sum(value > 0 for value in known) / len(known))
            assert score.mean_pct == pytest.approx(mean(known), abs=1e-9)
            assert score.median_pct == pytest.approx(median(known), abs=1e-9)
            assert (score.lowest_pct, score.highest_pct) == (min(known), max(known))
    assert sum(score.alerts for score in table.values()) == len(rows)


# -- one alert --------------------------------------------------------------------------------------------------------


def outcome(fired: Fired, *bars: Bar) -> dict[str, float | None]:
    outcomes = Outcomes(DAYS)
    outcomes.fired([fired])
    for bar in bars:
        outcomes.bars(bars_of([bar]))
    (values,) = join([outcomes.left(), outcomes.open()]).values.T.tolist()
    return {name: None if math.isnan(v) else round(v, 9) for name, v in zip(OUTCOMES, values, strict=True)}


def test_the_alerts_own_minute_gives_a_close_but_no_best_and_no_worst() -> None:
    told = outcome(alert(150.5), Bar("A", 150, 120.0, 80.0, 101.0))
    assert told["return_pct_1m"] == 1.0
    assert (told["best_pct"], told["worst_pct"]) == (None, None)
    assert told["return_pct_5m"] is None


def test_price_stands_while_nothing_trades() -> None:
    told = outcome(alert(150.5), flat("A", 149, 90.0), flat("B", 156, 1.0))
    assert [told["return_pct_1m"], told["return_pct_5m"], told["return_pct_15m"]] == [0.0, 0.0, None]


def test_horizon_takes_the_last_bar_that_has_ended_and_none_after() -> None:
    told = outcome(alert(150.5), *(flat("A", minute, float(minute)) for minute in range(150, 170)))
    assert told["return_pct_1m"] == 50.0  # 151.5 is due: the bar of 150 has ended, that of 151 has not
    assert told["return_pct_5m"] == 54.0
    on_the_minute = outcome(alert(150.0), *(flat("A", minute, float(minute)) for minute in range(150, 170)))
    assert on_the_minute["return_pct_1m"] == 50.0
    assert on_the_minute["best_pct"] == 69.0


@pytest.mark.parametrize(("minute", "known"), [(229.9, True), (230.0, False), (240.0, False), (129.0, True)])
def test_close_is_for_alerts_before_it(minute: float, known: bool) -> None:  # noqa: FBT001  # parametrized
    told = outcome(alert(minute), *(flat("A", m, 100.0 + m) for m in (130, 229, 230, 250)), flat("B", 270, 1.0))
    assert told["return_pct_close"] == (229.0 if known else None)


def test_close_is_known_once_its_minute_has_closed() -> None:
    bars = [flat("A", 228, 101.0), flat("B", 229, 1.0)]
    assert outcome(alert(200.0), bars[0])["return_pct_close"] is None
    assert outcome(alert(200.0), *bars)["return_pct_close"] == 1.0


def test_bar_that_ends_as_the_alert_fires_is_not_after_it() -> None:
    told = outcome(alert(150.0), flat("A", 149, 90.0), flat("B", 170, 1.0))
    assert (told["return_pct_1m"], told["return_pct_15m"]) == (0.0, 0.0)


def test_alert_in_the_pre_market_has_no_close_when_nothing_traded_in_the_regular_session() -> None:
    told = outcome(alert(110.0), flat("A", 111, 101.0), flat("B", 240, 1.0))
    assert told["return_pct_close"] is None
    assert told["best_pct"] == 1.0


def test_horizon_beyond_the_day_is_unknown() -> None:
    told = outcome(alert(265.0), flat("A", 266, 101.0), flat("A", 401, 150.0), flat("A", 450, 150.0))
    assert told == {
        "return_pct_1m": 0.0, "return_pct_5m": 1.0, "return_pct_15m": 1.0, "return_pct_60m": None,
        "return_pct_close": None, "best_pct": 1.0, "worst_pct": 1.0,
    }  # fmt: skip


def test_extremes_end_at_the_close_for_alerts_before_it_and_with_the_day_for_others() -> None:
    bars = [Bar("A", 229, 110.0, 90.0, 100.0), Bar("A", 230, 150.0, 50.0, 100.0), Bar("A", 300, 500.0, 5.0, 9.0)]
    before, after = outcome(alert(200.0), *bars), outcome(alert(230.0), *bars)
    assert (before["best_pct"], before["worst_pct"]) == (10.0, -10.0)
    assert (after["best_pct"], after["worst_pct"]) == (50.0, -50.0)


def test_revision_takes_back_a_high_and_a_withdrawn_bar_its_close() -> None:
    told = outcome(
        alert(150.0),
        flat("A", 150, 101.0),
        Bar("A", 151, 300.0, 99.0, 102.0),
        flat("A", 155, 103.0),
        Bar("A", 151, 104.0, 99.0, 102.0, revision=1),
        Bar("A", 155, math.nan, math.nan, math.nan, revision=1),
        flat("B", 170, 1.0),
    )
    assert (told["return_pct_5m"], told["return_pct_15m"], told["best_pct"]) == (2.0, 2.0, 4.0)


@pytest.mark.parametrize("price", [math.nan, 0.0, -1.0, math.inf])
def test_alert_without_a_price_counts_and_has_no_outcome(price: float) -> None:
    told = outcome(alert(150.0, price=price), *(flat("A", minute, 101.0) for minute in range(150, 250)))
    assert set(told.values()) == {None}


# -- bounds -----------------------------------------------------------------------------------------------------------


def test_alerts_leave_when_nothing_of_their_day_can_change() -> None:
    outcomes = Outcomes(DAYS)
    outcomes.fired([alert(150.0), alert(279.0), alert(290.0)])
    outcomes.bars(bars_of([flat("A", 279, 101.0)]))
    assert (len(outcomes), len(outcomes.left())) == (3, 0)
    outcomes.reach(312 * MINUTE_NS)
    assert len(outcomes) == 3
    outcomes.reach(313 * MINUTE_NS)
    left = outcomes.left()
    assert (len(outcomes), left.number.tolist(), left.day.tolist()) == (1, [0, 1], [0, 0])
    assert left.values[0].tolist() == pytest.approx([0.0, 1.0])
    assert len(outcomes.left()) == 0


def test_alert_at_the_very_end_of_a_day_belongs_to_it() -> None:
    outcomes = Outcomes(DAYS)
    outcomes.fired([alert(280.0), alert(280.5)])
    assert outcomes.open().day.tolist() == [0, 1]


def test_more_alerts_than_the_bound_are_counted_and_have_no_outcome() -> None:
    outcomes = Outcomes(DAYS, most_open=2)
    outcomes.fired([alert(150.0), alert(151.0), alert(152.0, rule=OTHER)])
    outcomes.fired([alert(153.0, rule=OTHER)])
    outcomes.bars(bars_of([flat("A", minute, 101.0) for minute in range(150, 200)]))
    left = outcomes.left()
    assert (len(outcomes), outcomes.tally["too_many"], left.number.tolist()) == (2, 2, [2, 3])
    assert np.isnan(left.values).all()
    scores = Scores()
    scores.add(left)
    table = scores.plus(outcomes.open()).table()
    assert [(s.alerts, s.unfollowed, s.outcomes["return_pct_1m"].known) for s in table.values()] == [
        (2, 0, 2),
        (2, 2, 0),
    ]
    assert table[OTHER].symbols == 1


def test_alert_that_comes_after_its_minutes_have_settled_is_counted() -> None:
    outcomes = Outcomes(DAYS)
    outcomes.reach(200 * MINUTE_NS)
    outcomes.fired([alert(166.9), alert(167.0)])
    assert (outcomes.tally["too_late"], len(outcomes)) == (1, 1)


def test_alert_after_the_last_known_day_is_counted() -> None:
    outcomes = Outcomes(DAYS)
    outcomes.fired([alert(AFTER_ALL_DAYS)])
    outcomes.bars(bars_of([flat("A", AFTER_ALL_DAYS + 5, 1.0)]))
    assert (outcomes.tally["too_late"], len(outcomes), outcomes.traded()) == (1, 0, {})


def test_alert_that_comes_again_counts_once() -> None:
    outcomes = Outcomes(DAYS)
    outcomes.fired([alert(150.0), alert(150.0)])
    outcomes.fired([alert(150.0), alert(150.0, rule=OTHER), alert(150.0, symbol="B")])
    assert (len(outcomes), outcomes.tally["repeated"]) == (3, 2)


def test_bar_older_than_any_revision_changes_nothing_and_is_counted() -> None:
    outcomes = Outcomes(DAYS)
    outcomes.fired([alert(150.0)])
    outcomes.bars(bars_of([flat("A", 150, 101.0), flat("A", 200, 102.0), flat("A", 150, 500.0, revision=1)]))
    assert outcomes.tally["late_bars"] == 1
    assert outcomes.open().values[0].tolist() == pytest.approx([1.0])


def test_symbols_that_traded_are_counted_by_day_without_the_night() -> None:
    outcomes = Outcomes(DAYS)
    outcomes.bars(bars_of([flat("A", 110, 1.0), flat("B", 279, 1.0), flat("A", 279, 1.0), flat("C", 300, 1.0)]))
    assert outcomes.traded() == {0: 2}
    outcomes.bars(bars_of([flat(f"S{i}", 410, 1.0) for i in range(200)]))
    assert outcomes.traded() == {0: 2, 1: 200}


@pytest.mark.parametrize(
    ("alerts", "symbol_days", "traded", "says"),
    [
        (2 * MOST_A_DAY, 1, {0: 1_000, 1: 1_000}, ""),
        (2 * MOST_A_DAY + 2, 1, {0: 1_000, 1: 1_000}, "fires 501 times a day (more than 500)"),
        (400, 400, {0: 1_000, 1: 1_000}, ""),
        (402, 402, {0: 1_000, 1: 1_000}, "fires for 20% of the symbols that trade in a day (more than 20%)"),
        (9, 9, {0: FEWEST_SYMBOLS - 1}, ""),
        (11, 11, {0: FEWEST_SYMBOLS}, "fires for 22% of the symbols that trade in a day (more than 20%)"),
        (0, 0, {}, ""),
    ],
)
def test_rule_is_too_broad_by_alerts_a_day_or_by_its_share_of_the_market(
    alerts: int, symbol_days: int, traded: dict[int, int], says: str
) -> None:
    assert too_broad(alerts=alerts, symbol_days=symbol_days, traded=traded) == says
