"""Candles and indicators of what is stored, the search for symbols, what one is doing now, and data quality."""

import math
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapewatch.adapters.memory import MemoryHotState
from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import daily_bars_of, make_security
from tapewatch.documents import rfc3339
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import MINUTE_NS, Bars
from tapewatch.engine.indicators import INDICATORS, Indicators, by_minute
from tapewatch.nyse import day_of, trading_days
from tapewatch.serve import history
from tapewatch.serve.board_view import BoardView
from tapewatch.serve.quality import quality
from tapewatch.serve.services import Services

pytestmark = pytest.mark.anyio
OPEN_NS = day_of("2025-03-03")[1]
SYMBOL = "/api/v1/symbols/AAPL"


def some_bars(minutes: list[int], *, seed: int = 1) -> Bars:
    """Of AAPL, minutes counted from the open."""
    random = np.random.default_rng(seed)
    n = len(minutes)
    close = 100 + np.cumsum(random.normal(0, 0.1, n)).round(2)
    volume = random.integers(1, 5_000, n).astype(float)
    weight = np.where(random.random(n) < 0.1, 0.0, volume)
    return Bars(
        symbols=("AAPL",),
        symbol=np.zeros(n, np.int32),
        ts_ns=OPEN_NS + np.array(minutes, np.int64) * MINUTE_NS,
        open=close - 0.01,
        high=close + 0.05,
        low=close - 0.07,
        close=close,
        volume=volume,
        vwap=np.where(weight > 0, close + 0.003, math.nan),
        vwap_volume=weight,
        trade_count=random.integers(1, 90, n),
        revision=random.integers(0, 3, n),
    )


def naive_candles(bars: Bars, minutes: int) -> list[dict[str, Any]]:
    """The obvious version."""
    candles: dict[int, list[int]] = {}
    for row, ts_ns in enumerate(bars.ts_ns.tolist()):
        candles.setdefault(ts_ns - ts_ns % (minutes * MINUTE_NS), []).append(row)
    found = []
    for start_ns, rows in sorted(candles.items()):
        weight = sum(bars.vwap_volume[row] for row in rows)
        value = sum(bars.vwap[row] * bars.vwap_volume[row] for row in rows if bars.vwap_volume[row] > 0)
        found.append(
            {
                "ts": rfc3339(start_ns),
                "open": bars.open[rows[0]],
                "high": max(bars.high[rows]),
                "low": min(bars.low[rows]),
                "close": bars.close[rows[-1]],
                "volume": sum(bars.volume[rows]),
                "vwap": pytest.approx(value / weight, rel=1e-12) if weight else None,
                "trade_count": sum(bars.trade_count[rows]),
                "revision": max(bars.revision[rows]),
            }
        )
    return found


async def walk(api: httpx.AsyncClient, path: str, **params: Any) -> list[dict[str, Any]]:
    """All pages, oldest item first."""
    items: list[dict[str, Any]] = []
    while True:
        answer = await api.get(path, params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["items"]) <= params["limit"]
        items = page["items"] + items
        if page["next_cursor"] is None:
            return items
        params["cursor"] = page["next_cursor"]


@settings(max_examples=60, deadline=None)
@given(
    minutes=st.lists(st.integers(-400, 700), min_size=1, max_size=80, unique=True).map(sorted),
    length=st.sampled_from([1, 5, 15, 60]),
    seed=st.integers(0, 9),
)
def test_folded_bars_are_the_obvious_candles(minutes: list[int], length: int, seed: int) -> None:
    bars = some_bars(minutes, seed=seed)
    folded = history.folded(bars, length)
    expected = naive_candles(bars, length)
    assert [rfc3339(ts_ns) for ts_ns in folded.ts_ns.tolist()] == [candle["ts"] for candle in expected]
    for name in ("open", "high", "low", "close", "volume", "trade_count", "revision"):
        assert getattr(folded, name).tolist() == [candle[name] for candle in expected]
    vwap = [None if math.isnan(value) else value for value in folded.vwap.tolist()]
    assert vwap == [candle["vwap"] for candle in expected]


@pytest.mark.parametrize(("timeframe", "minutes"), [("1m", 1), ("5m", 5), ("15m", 15), ("1h", 60)])
async def test_bars_are_paged_back_in_time_and_whole_at_every_edge(
    api: httpx.AsyncClient, store: SqlStore, monkeypatch: pytest.MonkeyPatch, timeframe: str, minutes: int
) -> None:
    bars = some_bars([n for n in range(-300, 500) if n % 7 and not 100 < n < 170])
    await store.save_bars(bars, reader="test")
    expected = naive_candles(bars, minutes)
    for piece, limit in ((2_000, 500), (37, 3 if minutes > 1 else 111)):
        monkeypatch.setattr(history, "_PIECE", piece)
        assert await walk(api, f"{SYMBOL}/bars", timeframe=timeframe, limit=limit) == expected
    start_ns, end_ns = OPEN_NS + 61 * MINUTE_NS + 1, OPEN_NS + 301 * MINUTE_NS
    span = {"start": rfc3339(start_ns), "end": rfc3339(end_ns)}
    inside = [candle for candle in expected if span["start"] <= candle["ts"] < span["end"]]
    assert await walk(api, f"{SYMBOL}/bars", timeframe=timeframe, limit=50, **span) == inside


async def test_days_come_from_the_daily_history(api: httpx.AsyncClient, store: SqlStore) -> None:
    days = [date(2025, 3, day) for day in (3, 4, 5, 6, 7, 10)]
    await store.save_daily_bars(daily_bars_of([("AAPL", day) for day in days]))
    items = await walk(api, f"{SYMBOL}/bars", timeframe="1d", limit=2)
    midnights = [f"2025-03-{day:02}T05:00:00.000000000Z" for day in (3, 4, 5, 6, 7)] + [
        "2025-03-10T04:00:00.000000000Z"
    ]
    assert [item["ts"] for item in items] == midnights
    assert items[0] | {"open": 9.5, "close": 10.0, "volume": 1234.5, "vwap": None, "trade_count": None} == items[0]
    span = {"start": midnights[1], "end": midnights[4]}
    assert [item["ts"] for item in await walk(api, f"{SYMBOL}/bars", timeframe="1d", limit=9, **span)] == midnights[1:4]


async def test_indicators_are_the_engines_own_after_warming_up(
    api: httpx.AsyncClient, store: SqlStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    bars = some_bars([n for n in range(330) if n % 11])
    await store.save_bars(bars, reader="test")
    engine = Indicators(trading_days())
    first_seen = replace(bars, revision=np.zeros(len(bars), np.int64))
    rows = [engine.update(one).values[:, 0].tolist() for one in by_minute(first_seen)]
    expected: list[dict[str, Any]] = [
        {
            "ts": rfc3339(ts_ns),
            "values": {n: None if math.isnan(v) else v for n, v in zip(INDICATORS, row, strict=True)},
        }
        for ts_ns, row in zip(bars.ts_ns.tolist(), rows, strict=True)
    ]
    assert await walk(api, f"{SYMBOL}/indicators", limit=120) == expected
    wanted = {"indicator": "vwap_day,rsi_14_1m", "start": expected[250]["ts"], "limit": 20}
    items = await walk(api, f"{SYMBOL}/indicators", **wanted)
    assert items == [
        {"ts": row["ts"], "values": {name: row["values"][name] for name in ("vwap_day", "rsi_14_1m")}}
        for row in expected[250:]
    ]
    page = (await api.get(f"{SYMBOL}/indicators", params={"limit": 100})).json()
    assert page["warm_up_bars"] == len(bars) - 100
    monkeypatch.setattr(history, "WARM_UP_BARS", 50)
    short = (await api.get(f"{SYMBOL}/indicators", params={"limit": 100})).json()
    assert short["warm_up_bars"] == 50
    assert short["items"][0]["values"]["sma_200_1m"] is None


async def test_history_of_nothing_is_empty(api: httpx.AsyncClient) -> None:
    for path in (
        "bars",
        "bars?timeframe=1h",
        "bars?timeframe=1d",
        "indicators",
        "indicators?start=2025-03-03T00:00:00Z",
    ):
        page = (await api.get(f"/api/v1/symbols/NEVER/{path}")).json()
        assert (page["items"], page["next_cursor"]) == ([], None)


@pytest.mark.parametrize(
    "query",
    [
        "bars?timeframe=2m",
        "bars?timeframe=",
        "bars?limit=501",
        "bars?limit=1_0",
        "bars?start=1970-01-01T00:00:00Z&end=9999-12-31T00:00:00Z",
        "bars?cursor=x",
        "bars?cursor=aGlzdG9yeTo5OTk5OTk5OTk5OTk5OTk5OTk5",
        "bars?offset=1000000000",
        "indicators?indicator=rsi",
        "indicators?indicator=",
        "indicators?indicator=rsi_14_1m,rsi_14_1m;drop",
        "indicators?timeframe=5m",
        "indicators?start=yesterday",
    ],
)
async def test_history_hostile_is_422(api: httpx.AsyncClient, query: str) -> None:
    answer = await api.get(f"{SYMBOL}/{query}")
    assert answer.status_code == 422, answer.text
    assert answer.json()["where"].startswith("query.")


async def test_symbols_are_found_by_name_and_kind_traded_or_not(
    api: httpx.AsyncClient, store: SqlStore, board: BoardView, make_board: Callable[..., BoardRows]
) -> None:
    board.show(0, make_board("AAPL", "APPN"))
    await store.save_securities(
        [
            make_security("AAPL", name="Apple Inc.", sector="Technology"),
            make_security("APP", name="AppLovin 100%", exchange="XNYS", sector="Technology"),
            make_security("PINE", name="Pineapple Energy", type="ETF", sector="Energy"),
        ]
    )

    async def found(**params: str | int) -> list[str]:
        answer = (await api.get("/api/v1/symbols", params=params)).json()
        assert answer["total"] >= len(answer["items"])
        return [item["symbol"] for item in answer["items"]]

    assert await found() == ["AAPL", "APPN"]
    assert await found(q="app") == ["APP", "APPN", "AAPL", "PINE"]
    assert await found(q="app", limit=2, offset=1) == ["APPN", "AAPL"]
    assert await found(q="apple inc") == ["AAPL"]
    assert await found(q="%") == ["APP"]
    assert await found(exchange="XNAS") == ["AAPL", "PINE"]
    assert await found(type="ETF", q="app") == ["PINE"]
    assert await found(sector="Technology", prefix="AP") == ["APP"]
    assert await found(sector="'; DROP TABLE symbols; --") == []
    for query in ("exchange=xnas", "type=cs", "q=", "q=%00", "sector=%E2%80%AE", "sort=price"):
        assert (await api.get(f"/api/v1/symbols?{query}")).status_code == 422


async def test_symbol_shows_the_running_minute_and_its_indicators(
    api: httpx.AsyncClient, store: SqlStore, hot: MemoryHotState
) -> None:
    await store.save_bars(some_bars([0]), reader="test")
    bare = (await api.get(SYMBOL)).json()
    assert (bare["live_bar"], bare["indicators"]) == (None, None)
    numbers = {"open": 1.0, "high": 2.0, "low": 1.0, "close": None, "volume": 5.0, "vwap": None, "trade_count": 2}
    live = {"symbol": "AAPL", "ts": rfc3339(OPEN_NS), **numbers}
    values = dict.fromkeys(INDICATORS, 1.5)
    indicators = {"symbol": "AAPL", "ts": rfc3339(OPEN_NS), **values}
    facts = {"livebar:AAPL": live, "ind:AAPL": indicators}
    await hot.put({key: msgspec.json.encode(fact) for key, fact in facts.items()}, ttl_s=60)
    detail = (await api.get(SYMBOL)).json()
    assert detail["live_bar"] == {"ts": rfc3339(OPEN_NS), **numbers}
    assert detail["indicators"] == {"ts": rfc3339(OPEN_NS), "values": values}


STATUS: dict[str, Any] = {
    "state": "degraded",
    "feed": {
        "name": "alpaca",
        "state": "running",
        "age_s": 0.1,
        "market_time": "2025-03-03T14:30:00.000000000Z",
        "rows": 100,
        "duplicates": 3,
        "conflicts": 1,
        "gap": {"since": "2025-03-03T14:29:00.000000000Z", "reason": "network"},
        "connections": [
            {"losses": {"network": 2}, "overflow_frames": 1, "rejected": {"price": 4}, "samples": {"price": ["a"]}},
            {"losses": {"network": 1, "silent": 1}, "rejected": {"price": 1, "time": 2}},
        ],
    },
    "parity": [
        {"compared": 10, "equal": 9, "differing": {"volume": 1}, "samples": ["AAPL"]},
        {"compared": 10, "equal": 10, "differing": {}, "samples": []},
    ],
    "scanner": {"rows": {"trades": 90, "late": 5, "too_late": 1, "rejected_size": 6, "unknown_condition": 1}},
    "partitions": {"of": 16, "missing": {"bars": [3, 7]}},
}  # fmt: skip


async def test_quality_is_one_document_of_what_the_status_knows(
    services: Services, serve: Callable[[Services], Any]
) -> None:
    async with (
        serve(replace(services, status=lambda: STATUS)) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api,
    ):
        found = (await api.get("/api/v1/system/quality")).json()
    assert found["losses"] == {"network": 3, "silent": 1}
    assert found["rejected"] == {"price": 5, "size": 6, "time": 2, "unknown_condition": 1}
    assert (found["duplicates"], found["conflicts"]) == (3, 1)
    assert (found["rows"], found["overflow_frames"]) == (100, 1)
    assert found["late"] == {"late": 5, "too_late": 1, "future": 0}
    assert found["parity"] == {
        "compared": 20, "equal": 19, "equal_share": 0.95, "differing": {"volume": 1}, "samples": ["AAPL"],
    }  # fmt: skip
    assert found["partitions"] == {"of": 16, "missing": {"bars": [3, 7]}}
    assert found["troubles"] == [
        "a gap since 2025-03-03T14:29:00.000000000Z: network",
        "no bars works on partitions 3, 7",
        "some of our bars differ from the provider's",
    ]


def test_quality_before_anything_runs_is_empty() -> None:
    found = quality({})
    assert (found["troubles"], found["rejected"], found["parity"]["equal_share"]) == ([], {}, None)
