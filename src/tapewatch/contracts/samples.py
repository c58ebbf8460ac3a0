"""Entries, alerts and rules that are hard to carry, and what it means for two of them to be equal.

Texts hold quotes, other alphabets and patterns of SQL and SIP; numbers hold NaN and both ends of 64 bits. No text holds
NUL, control characters or half a surrogate pair, which no document of this product may have.
"""

import asyncio
import math
from collections.abc import Awaitable, Sequence
from dataclasses import fields, is_dataclass
from datetime import date
from typing import Any, TypeVar

import msgspec
import numpy as np

from tapewatch.documents import Alert, Rule, Security, Split, Watchlist, day_number
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import BAR_COLUMNS, MINUTE_NS, SECOND_NS, Bars, Batch, Facts, Kind, make_batch, pulse
from tapewatch.engine.daily import DailyBars, make_daily_bars
from tapewatch.engine.rules import Ruleset, RuleSpec, compare
from tapewatch.engine.scanner import Withdrawn
from tapewatch.ports import Alerts, Entry
from tapewatch.toplist_documents import Toplist

T = TypeVar("T")

NOON_NS = 1_381_161_600 * SECOND_NS
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1
PATIENCE_S = 20.0

HOSTILE_TEXTS = (
    "",
    " ",
    "BRK.B",
    "'; DROP TABLE bars_1m; --",
    '"quoted" \\ back\\slash',
    "100%s %d {0} :name ? $1 %(x)s",
    "*",
    "a:b:{c}",
    "İstanbul ß Ω 日本語 עברית",
    "👩‍🚀🚀",
    "e\N{COMBINING ACUTE ACCENT}",
    "x" * 100_000,
)


async def soon(awaitable: Awaitable[T]) -> T:
    """The result, or a failure instead of a test that hangs."""
    async with asyncio.timeout(PATIENCE_S):
        return await awaitable


def make_bars(
    rows: Sequence[tuple[str, int]],
    *,
    close: float = 10.0,
    revision: int = 0,
    trade_count: int = 7,
    vwap: float = 10.25,
) -> Bars:
    """Bars of (symbol, ts_ns), all with the same numbers."""
    symbols = tuple(dict.fromkeys(symbol for symbol, _ in rows))
    n = len(rows)
    return Bars(
        symbols=symbols,
        symbol=np.array([symbols.index(symbol) for symbol, _ in rows], np.int32),
        ts_ns=np.array([ts_ns for _, ts_ns in rows], np.int64),
        open=np.full(n, 9.5),
        high=np.full(n, 11.0),
        low=np.full(n, 9.0),
        close=np.full(n, close),
        volume=np.full(n, 1_234.5),
        vwap=np.full(n, vwap),
        vwap_volume=np.full(n, 1_200.5),
        trade_count=np.full(n, trade_count, np.int64),
        revision=np.full(n, revision, np.int64),
    )


def bar_rows(bars: Bars) -> list[tuple[Any, ...]]:
    """The bars as plain rows, an unknown number as None."""
    names = (bars.symbols[index] for index in bars.symbol)
    columns = [
        [None if math.isnan(value) else value for value in getattr(bars, name).tolist()] for name in BAR_COLUMNS[1:]
    ]
    return list(zip(names, *columns, strict=True))


def make_alert(number: int, **changes: Any) -> Alert:
    alert = Alert(
        alert_id=f"{number:032x}",
        rule_id="gapper",
        rule_version=1,
        rule_name="Gapper",
        symbol="AAPL",
        fired_at_ns=NOON_NS + number * SECOND_NS,
        price=101.25,
        values={"price": 101.25, "change_pct_5m": 2.5},
        session="regular",
        received_ns=NOON_NS + number * SECOND_NS + 1,
        ages_s={"price": 0.25, "change_pct_5m": 60.0},
        severity="warning",
        tags=("gap", "B.c-d_1"),
    )
    return msgspec.structs.replace(alert, **changes)


def make_rule(rule_id: str, *, version: int = 1, **changes: Any) -> Rule:
    asks = [
        {"metric": "change_pct_5m", "operator": ">", "value": 0.1 + 0.2},
        {"metric": "price", "operator": "<=", "value": 1e15},
    ]
    return Rule(
        **{
            "id": rule_id,
            "version": version,
            "name": f"Rule {rule_id}",
            "description": "«'\";-- 100% :x ? 🚀»",
            **({} if "when" in changes else {"conditions": asks}),
            "cooldown": 60.5,
            "created_at": f"2013-10-07T12:00:{version:02d}.000000000Z",
            "updated_at": f"2013-10-07T12:00:{version:02d}.000000000Z",
            **changes,
        }
    )


EVERY_NODE = """
(abs(price - vwap_session) / max(atr_14_1m, 0.01, -price) > 2 * price + 1 or close_day[1] between 5 and 50)
and (price crosses_above vwap_session then volume_1m > 5 within 10m)
and not halted and symbol in (AAPL, BRK.B) and exchange is XNAS and type is CS and sector is "Services: «日本»"
and symbol in watchlist mine and session in (pre, regular) and time > 09:45
and rsi_14_1m < 30 for 30s and change_pct_5m > 0.3 within 90s and price crosses_below 7.5
and largest_trade_1m > 3 4 times in a row
"""


def make_rule_of_every_node(rule_id: str, **changes: Any) -> Rule:
    """A rule in whose conditions each kind of node stands."""
    return make_rule(
        rule_id,
        **{
            "when": EVERY_NODE,
            "gate": "symbol in watchlist gate",
            "rearm": "price < 3 or symbol in watchlist mine",
            "severity": "critical",
            "tags": ["a", "B.c-d_1"],
            **changes,
        },
    )


def make_watchlist(watchlist_id: str, *, version: int = 1, **changes: Any) -> Watchlist:
    return Watchlist(
        **{
            "id": watchlist_id,
            "version": version,
            "name": "«'\";-- 100% :x ? 🚀»",
            "symbols": ["AAPL", "BRK.B", "Zp$+=^_:-."],
            "created_at": f"2013-10-07T12:00:{version:02d}.000000000Z",
            "updated_at": f"2013-10-07T12:00:{version:02d}.000000000Z",
            **changes,
        }
    )


def make_security(symbol: str, **changes: Any) -> Security:
    return Security(
        **{
            "symbol": symbol,
            "name": "«'\";-- 100% :x ? 🚀»",
            "exchange": "XNAS",
            "tape": "C",
            "type": "CS",
            "market_cap": 0.1 + 0.2,
            "shares_outstanding": 1e15,
            "sector": "Services: 日本",
            "round_lot": 100,
            "as_of": date(2025, 3, 3),
            **changes,
        }
    )


def make_split(symbol: str, ex_date: date, split_from: float, split_to: float) -> Split:
    return Split(symbol=symbol, ex_date=ex_date, split_from=split_from, split_to=split_to)


def daily_bars_of(rows: Sequence[tuple[str, date]], *, close: float = 10.0) -> DailyBars:
    """Bars of (symbol, day), all with the same numbers."""
    n = len(rows)
    return make_daily_bars(
        [symbol for symbol, _ in rows],
        [day_number(day) for _, day in rows],
        open=np.full(n, 9.5),
        high=np.full(n, close + 1),
        low=np.full(n, 0.1 + 0.2),
        close=np.full(n, close),
        volume=np.full(n, 1_234.5),
    )


def numbered(number: int) -> Batch:
    """An entry that says which one it is."""
    return pulse(number)


def number_of(entry: Entry) -> int:
    assert isinstance(entry, Batch)
    return int(entry.marks_ns[0])


def every_kind_of_entry() -> list[Entry]:
    texts = HOSTILE_TEXTS[1:]
    n = len(texts)
    trades = make_batch(
        symbols=texts,
        conditions=("", "@ FT", "日本"),
        symbol=range(n),
        condition=[index % 3 for index in range(n)],
        kind=[Kind.TRADE] * (n - 1) + [Kind.HALT],
        ts_ns=[INT64_MIN, INT64_MAX, *([NOON_NS] * (n - 2))],
        price=[np.nan, np.inf, -np.inf, 5e-324, *([0.1 + 0.2] * (n - 4))],
        size=[0.0] * n,
        tape=[ord("A")] * n,
        exchange=[255] * n,
        trade_id=[INT64_MAX, INT64_MIN, *([0] * (n - 2))],
        marks_row=[0, 3, 3, n],
        marks_ns=[1, 2, 2, INT64_MAX],
        received_ns=INT64_MAX,
    )
    rule = RuleSpec(id="r", version=2**31, name=texts[-2], when=compare("price", "!=", -1e15), cooldown_ns=1)
    every_node = make_rule_of_every_node("every-node").spec()
    alert = make_alert(
        1,
        values={"price": np.nan, "rsi_14_1m": -0.0},
        ages_s={"price": 0.0, "rsi_14_1m": np.nan},
        tags=texts,
        rule_name=texts[3],
        symbol=texts[4],
    )
    return [
        trades,
        pulse(INT64_MIN),
        make_batch(),
        Facts(
            day_start_ns=INT64_MAX,
            symbols=texts[:2],
            names=("close_prev_day",),
            values=np.array([[np.nan, -0.0]]),
            labels={"exchange": ("", "XNAS"), "sector": texts[2:4]},
        ),
        Ruleset(
            number=INT64_MAX,
            rules=(rule, every_node),
            watchlists={"mine": frozenset(texts[:3]), "gate": frozenset()},
        ),
        Ruleset(number=0, rules=()),
        make_bars([(text, NOON_NS + index * MINUTE_NS) for index, text in enumerate(texts)], vwap=np.nan),
        make_bars([]),
        BoardRows(
            ts_ns=NOON_NS,
            session="regular",
            symbols=("A", "B", "C"),
            metrics=("price", "volume_day"),
            values=np.array([[1.0, np.nan, -0.0], [np.inf, 1e300, 3.0]]),
        ),
        Alerts((alert, make_alert(2, note=f"{texts[3]}\n{texts[-1]}"))),
        Withdrawn(symbol=texts[4], ts_ns=INT64_MIN, price=5e-324, size=np.inf, corrected=None),
        Withdrawn(symbol="A", ts_ns=INT64_MAX, price=-0.0, size=0.1 + 0.2, corrected=(np.nan, 0.0)),
    ]


def same(left: Any, right: Any) -> bool:
    """Equal to the last bit of every number and letter of every text; unknown (NaN) equals unknown."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return bool(left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes())
    if is_dataclass(left):
        return all(same(getattr(left, field.name), getattr(right, field.name)) for field in fields(left))
    if isinstance(left, msgspec.Struct):
        return all(same(getattr(left, name), getattr(right, name)) for name in left.__struct_fields__)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, float):
        return np.float64(left).tobytes() == np.float64(right).tobytes() or (math.isnan(left) and math.isnan(right))
    return bool(left == right)


def make_toplist(toplist_id: str, *, version: int = 1, **changes: Any) -> Toplist:
    return Toplist(
        **{
            "id": toplist_id,
            "version": version,
            "name": "«'\";-- 100% :x ? 🚀»",
            "metric": "change_pct",
            "time_window": "5m",
            "created_at": f"2013-10-07T12:00:{version:02d}.000000000Z",
            "updated_at": f"2013-10-07T12:00:{version:02d}.000000000Z",
            **changes,
        }
    )
