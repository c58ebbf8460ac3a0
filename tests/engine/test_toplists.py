"""Ranking against `sorted`, and users' lists against themselves made symbol by symbol."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapewatch.engine.board import BoardRows
from tapewatch.engine.metrics import CATALOGUE, PUBLISHED
from tapewatch.engine.rules.text import parse_condition
from tapewatch.engine.rules.tree import (
    All,
    AnyOf,
    Arithmetic,
    Attribute,
    Between,
    Comparison,
    Condition,
    Function,
    InSession,
    InWatchlist,
    Not,
    Number,
    Operand,
    Value,
)
from tapewatch.engine.toplists import (
    SYSTEM_TOPLISTS,
    RankedBy,
    Surroundings,
    UserRankings,
    list_events,
    marks,
    rank,
    system_toplist,
)

NUMBERS = st.one_of(
    st.sampled_from((math.nan, 0.0, -0.0, 1.0, -1.0, math.inf, -math.inf)), st.floats(-5, 5), st.integers(-2, 2)
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    values=st.lists(NUMBERS.map(float), max_size=60),
    descending=st.booleans(),
    limit=st.integers(0, 70),
    offset=st.integers(0, 70),
)
def test_rank_of_random_values_equals_sorted(values: list[float], descending: bool, limit: int, offset: int) -> None:  # noqa: FBT001
    known = [i for i, value in enumerate(values) if not math.isnan(value)]
    expected = sorted(known, key=lambda i: -values[i] if descending else values[i])[offset : offset + limit]
    assert rank(np.array(values, float), descending=descending, limit=limit, offset=offset).tolist() == expected


def test_rank_of_ties_keeps_the_order_of_symbols() -> None:
    values = np.array([2.0, 1.0, 2.0, 1.0, 2.0])
    assert rank(values, descending=True, limit=4).tolist() == [0, 2, 4, 1]
    assert rank(values, descending=False, limit=3).tolist() == [1, 3, 0]


def test_pages_of_a_rank_add_up_to_the_whole() -> None:
    values = np.random.default_rng(1).integers(0, 9, 100).astype(float)
    whole = rank(values, descending=True, limit=100).tolist()
    pages = [rank(values, descending=True, limit=7, offset=at).tolist() for at in range(0, 105, 7)]
    assert [i for page in pages for i in page] == whole


@pytest.mark.parametrize("descending", [True, False])
def test_rank_leaves_unknown_values_out(descending: bool) -> None:  # noqa: FBT001
    values = np.array([np.nan, 3.0, np.nan])
    assert rank(values, descending=descending, limit=10).tolist() == [1]
    assert rank(values[:1], descending=descending, limit=10).tolist() == []


def test_system_toplists_name_metrics_of_the_catalogue_and_share_keys_with_their_twins() -> None:
    assert {toplist.metric for toplist in SYSTEM_TOPLISTS.values()} <= set(CATALOGUE)
    for toplist in SYSTEM_TOPLISTS.values():
        twins = [other for other in SYSTEM_TOPLISTS.values() if other.key == toplist.key]
        assert {other.metric for other in twins} == {toplist.metric}
        assert len({other.descending for other in twins}) == len(twins)


# -- users' lists -----------------------------------------------------------------------------------------------------

METRICS = ("price", "volume_day", "change_pct_5m")
NAMES = ("A", "B", "C", "D", "E", "F", "G")
FILTERS = (
    None,
    "price > 1",
    "price between -1 and 2 and volume_day >= 0",
    "not (price > change_pct_5m)",
    "price > 1 or volume_day < 0 or symbol in (A, C)",
    "exchange is XNAS",
    "not exchange is XNAS and symbol in watchlist mine",
    "abs(price - volume_day) / change_pct_5m > 0.5",
    "gap_pct > 0 or price > 0",
    "session is regular and price != 0",
)
EXCHANGES = {"A": "XNAS", "B": "XNYS", "C": "XNAS", "D": "", "F": "XNYS"}
MINE = frozenset({"B", "E", "F"})
AROUND = Surroundings(labels={"exchange": EXCHANGES}, watchlists={"mine": MINE})


def truth(condition: Condition, row: dict[str, float], symbol: str) -> bool | None:
    """One symbol at a time; None is unknown."""
    match condition:
        case Comparison(left, operator, right):
            a, b = number(left, row), number(right, row)
            if math.isnan(a) or math.isnan(b):
                return None
            return {">": a > b, "<": a < b, ">=": a >= b, "<=": a <= b, "==": a == b, "!=": a != b}[operator]
        case Between(value, low, high):
            parts = (Comparison(value, ">=", low), Comparison(value, "<=", high))
            return truth(All(parts), row, symbol)
        case All(parts):
            known = [truth(part, row, symbol) for part in parts]
            return False if False in known else None if None in known else True
        case AnyOf(parts):
            known = [truth(part, row, symbol) for part in parts]
            return True if True in known else None if None in known else False
        case Not(part):
            inner = truth(part, row, symbol)
            return None if inner is None else not inner
        case Attribute("symbol", values):
            return symbol in values
        case Attribute(_, values):
            return EXCHANGES[symbol] in values if EXCHANGES.get(symbol) else None
        case InWatchlist():
            return symbol in MINE
        case InSession(sessions):
            return "regular" in sessions
    raise AssertionError(condition)


def number(value: Value, row: dict[str, float]) -> float:
    match value:
        case Number(known):
            return known
        case Operand():
            return row.get(value.name, math.nan)
        case Arithmetic(operator, left, right):
            a, b = np.float64(number(left, row)), np.float64(number(right, row))
            with np.errstate(all="ignore"):
                found = {"+": a + b, "-": a - b, "*": a * b, "/": a / b}[operator]
            return float(found) if np.isfinite(found) else math.nan
        case Function("abs", (part,)):
            size = abs(number(part, row))
            return size if math.isfinite(size) else math.nan
    raise AssertionError(value)


LISTS = st.builds(
    RankedBy,
    metric=st.sampled_from((*METRICS, "gap_pct")),
    descending=st.booleans(),
    where=st.sampled_from([None if text is None else parse_condition(text) for text in FILTERS]),
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    columns=st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), max_size=len(NAMES)),
    lists=st.lists(LISTS, max_size=12),
    limit=st.integers(0, 9),
)
def test_rankings_of_random_lists_equal_those_made_symbol_by_symbol(
    columns: list[tuple[float, float, float]], lists: list[RankedBy], limit: int
) -> None:
    names = NAMES[: len(columns)]
    board = BoardRows(
        ts_ns=1,
        session="regular",
        symbols=names,
        metrics=METRICS,
        values=np.array(columns, float).reshape(len(names), 3).T,
    )
    rankings = UserRankings(lists, AROUND)
    for _ in range(2):  # a board after another
        for one, ranking in zip(lists, rankings.rank(board, limit=limit), strict=True):
            known: list[tuple[float, str]] = []
            for name, column in zip(names, columns, strict=True):
                row = dict(zip(METRICS, map(float, column), strict=True))
                value = row.get(one.metric, math.nan)
                if not math.isnan(value) and (one.where is None or truth(one.where, row, name) is True):
                    known.append((-value if one.descending else value, name))
            expected = [name for _, name in sorted(known)]
            assert [names[i] for i in ranking.symbols.tolist()] == expected[:limit]
            assert ranking.total == len(expected)


def test_rankings_follow_symbols_that_come() -> None:
    rankings = UserRankings([RankedBy(metric="price", where=parse_condition("exchange is XNAS"))], AROUND)
    for names, expected in ((("A", "B"), ["A"]), (("B", "A"), ["A"]), (("A", "B", "C"), ["C", "A"])):
        prices = np.arange(1.0, len(names) + 1).reshape(1, -1)
        board = BoardRows(ts_ns=1, session="regular", symbols=names, metrics=("price",), values=prices)
        (ranking,) = rankings.rank(board, limit=5)
        assert [names[i] for i in ranking.symbols.tolist()] == expected


def test_list_that_would_remember_is_refused() -> None:
    with pytest.raises(ValueError, match="remember"):
        UserRankings([RankedBy(metric="price", where=parse_condition("price crosses_above 5"))])


@pytest.mark.parametrize(
    ("before", "after", "jump", "events"),
    [
        ("", "AB", 1, [("entered", "A", 1, None), ("entered", "B", 2, None)]),
        ("AB", "AB", 1, []),
        ("ABC", "BCA", 2, [("jumped", "A", 3, 1)]),
        ("ABC", "CAB", 1, [("jumped", "C", 1, 3), ("jumped", "A", 2, 1), ("jumped", "B", 3, 2)]),
        ("AB", "CB", 1, [("entered", "C", 1, None), ("left", "A", None, 1)]),
        ("AB", "", 1, [("left", "A", None, 1), ("left", "B", None, 2)]),
    ],
)
def test_events_between_two_rankings(before: str, after: str, jump: int, events: list[tuple[object, ...]]) -> None:
    assert [tuple(event) for event in list_events(before, after, jump_ranks=jump)] == events


def test_stale_is_older_than_a_minute_and_unknown_is_not() -> None:
    ages, halted = np.array([0.0, 60.0, 60.5, np.nan]), np.array([0.0, 1.0, np.nan, 0.0])
    stale, stopped = marks(ages, halted, covered=True)
    assert (stale.tolist(), stopped.tolist()) == ([False, False, True, False], [False, True, False, False])
    assert marks(ages, halted, covered=False)[0].all()


def test_system_lists_are_found_by_either_spelling_of_their_window() -> None:
    for asked, found in (("gainers_1d", "gainers_day"), ("volume_day", "volume_day"), ("rsi_low_1m", "rsi_low")):
        toplist = system_toplist(asked)
        assert toplist is not None
        assert toplist.id == found
    assert system_toplist("gainers_2m") is system_toplist("1d") is None
    assert {toplist.metric for toplist in SYSTEM_TOPLISTS.values()} <= set(PUBLISHED)


@pytest.mark.parametrize("window", ["1m", "5m", "15m", "1h", "1d"])
def test_each_window_has_lists_of_both_ends_of_a_ranking(window: str) -> None:
    for top, bottom in (("gainers", "losers"), ("rsi_high", "rsi_low"), ("vwap_above", "vwap_below")):
        first, last = system_toplist(f"{top}_{window}"), system_toplist(f"{bottom}_{window}")
        assert first is not None
        assert last is not None
        assert (first.metric, first.key, first.descending) == (last.metric, last.key, not last.descending)
        assert CATALOGUE[first.metric].timeframe == first.window == last.window == window.replace("1d", "day")
    assert system_toplist(f"volume_{window}") is not None
