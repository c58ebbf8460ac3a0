"""Alpaca's and Massive's REST as sources, against a server on loopback that speaks the documented shapes."""

import asyncio
import json
import logging
import os
import socket
import sys
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from own_loop import loopback, served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tapewatch.credentials import Credentials
from tapewatch.documents import Split, day_of_number, rfc3339
from tapewatch.engine.columns import OPEN_END_NS, SECOND_NS, Batch, Gap, Kind
from tapewatch.engine.daily import DailyBars
from tapewatch.engine.seen import SeenTrades
from tapewatch.errors import ConfigError, FeedRefused, Invalid, TapewatchError, Unavailable
from tapewatch.feeds.reference.alpaca_rest import AlpacaReference, AlpacaRestSettings
from tapewatch.feeds.reference.backfill import BackfillBounds, backfill
from tapewatch.feeds.reference.massive_rest import MassiveReference, MassiveRestSettings
from tapewatch.feeds.reference.rest import ATTEMPTS, Rest
from tapewatch.ports import Reference

pytestmark = pytest.mark.anyio

KEY, SECRET = "the-key-of-nobody", "a-secret-that-must-not-show"
MARCH_3, MARCH_7 = date(2025, 3, 3), date(2025, 3, 7)
OPEN_NS = 1_741_012_200 * SECOND_NS  # 2025-03-03 09:30 in New York

Answer = Any | Callable[[Request], Any]


class Provider:
    """`answers[path]` is JSON, a `Response`, a list of these for one request after the other, or a function."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.asked: list[Request] = []
        self.address = ""

    def queries(self, path: str) -> list[dict[str, str]]:
        return [dict(request.query_params) for request in self.asked if request.url.path == path]

    async def answer(self, request: Request) -> Response:
        self.asked.append(request)
        answer = self.answers.get(request.url.path, Response(status_code=404))
        if callable(answer) and not isinstance(answer, Response):
            answer = answer(request)
        elif isinstance(answer, InTurn):
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        return answer if isinstance(answer, Response) else JSONResponse(answer)


class InTurn(list[Any]):
    """One answer a request; the last one stays."""


class Quick:
    """A clock that is where its sleepers want it to be."""

    def __init__(self, now_ns: int = 1_741_000_000_000_000_000) -> None:
        self.time_ns = now_ns
        self.slept_s: list[float] = []

    def now_ns(self) -> int:
        return self.time_ns

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.time_ns += round(seconds * 1e9)
        await asyncio.sleep(0)


@asynccontextmanager
async def serving(provider: Provider) -> AsyncIterator[Provider]:
    """On a free port, in the test's own loop."""
    app = Starlette(routes=[Route("/{path:path}", provider.answer)])
    listening, port = loopback()
    config = uvicorn.Config(app, log_level="critical", lifespan="off", ws="none")
    provider.address = f"http://127.0.0.1:{port}"
    async with served(config, listening):
        yield provider


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    async with serving(Provider()) as provider:
        yield provider


@pytest.fixture
def clock() -> Quick:
    return Quick()


@pytest.fixture
async def alpaca(provider: Provider, clock: Quick) -> AsyncIterator[AlpacaReference]:
    settings = AlpacaRestSettings(
        credentials=Credentials(KEY, SECRET), data_address=provider.address, trading_address=provider.address
    )
    source = AlpacaReference(settings, clock)
    yield source
    await source.close()


@pytest.fixture
async def massive(provider: Provider, clock: Quick) -> AsyncIterator[MassiveReference]:
    source = MassiveReference(MassiveRestSettings(credentials=Credentials(KEY), address=provider.address), clock)
    yield source
    await source.close()


def rows_of(bars: DailyBars) -> list[tuple[str, date, float, float]]:
    return [
        (bars.symbols[symbol], day_of_number(day), close, volume)
        for symbol, day, close, volume in zip(
            bars.symbol.tolist(), bars.day.tolist(), bars.close.tolist(), bars.volume.tolist(), strict=True
        )
    ]


async def all_of(pages: AsyncIterator[Batch]) -> list[Batch]:
    return [page async for page in pages]


def prints_of(batch: Batch) -> list[tuple[Any, ...]]:
    return [
        (
            batch.symbols[batch.symbol[row]],
            batch.conditions[batch.condition[row]],
            int(batch.ts_ns[row]) - OPEN_NS,
            float(batch.price[row]),
            float(batch.size[row]),
            chr(batch.tape[row]),
            chr(batch.exchange[row]),
            int(batch.trade_id[row]),
        )
        for row in range(len(batch))
    ]


# -- Alpaca -----------------------------------------------------------------------------------------------------------


def asset(symbol: str, exchange: str, **changes: Any) -> dict[str, Any]:
    return {
        "id": "904837e3-3b76-47ec-b432-046db621571b",
        "class": "us_equity",
        "exchange": exchange,
        "symbol": symbol,
        "name": f"{symbol} Inc. Common Stock",
        "status": "active",
        "tradable": True,
        "marginable": True,
        "shortable": True,
        "easy_to_borrow": True,
        "fractionable": True,
        "attributes": [],
        **changes,
    }


async def test_alpaca_assets_become_securities(alpaca: AlpacaReference, provider: Provider) -> None:
    provider.answers["/v2/assets"] = [
        asset("AAPL", "NASDAQ"),
        asset("BRK.B", "NYSE", name="Berkshire\u200b Hathaway\a"),
        asset("SPY", "ARCA", name=None),
        asset("ZVZZT", "NASDAQ"),
        asset("NEWVENUE", "MOON"),
        asset("BTC/USD", "CRYPTO", **{"class": "crypto"}),
        asset("NOT A SYMBOL", "NYSE"),
    ]
    found = {security.symbol: security for security in await alpaca.securities()}
    assert list(found) == ["AAPL", "BRK.B", "SPY", "ZVZZT", "NEWVENUE"]
    assert {s: (f.exchange, f.tape) for s, f in found.items()} == {
        "AAPL": ("XNAS", "C"),
        "BRK.B": ("XNYS", "A"),
        "SPY": ("ARCX", "B"),
        "ZVZZT": ("XNAS", "C"),
        "NEWVENUE": (None, None),
    }
    assert [s for s, f in found.items() if f.is_test] == ["ZVZZT"]
    assert (found["BRK.B"].name, found["SPY"].name) == ("Berkshire Hathaway", None)
    assert {(f.market_cap, f.type, f.active, f.as_of) for f in found.values()} == {(None, None, True, MARCH_3)}
    assert [security async for security in alpaca.details(["AAPL"])] == []


async def test_alpaca_splits_come_page_by_page(alpaca: AlpacaReference, provider: Provider) -> None:
    forward = {"symbol": "NVDA", "cusip": "67066G104", "new_rate": 10, "old_rate": 1, "ex_date": "2024-06-10"}
    reverse = {
        "symbol": "X",
        "old_cusip": "1",
        "new_cusip": "2",
        "new_rate": 1,
        "old_rate": 20,
        "ex_date": "2024-07-01",
    }
    provider.answers["/v1/corporate-actions"] = InTurn(
        [
            {"corporate_actions": {"forward_splits": [forward]}, "next_page_token": "more"},
            {"corporate_actions": {"reverse_splits": [reverse]}, "next_page_token": None},
        ]
    )
    assert await alpaca.splits(date(2024, 6, 1), date(2024, 7, 31)) == [
        Split(symbol="NVDA", ex_date=date(2024, 6, 10), split_from=1, split_to=10),
        Split(symbol="X", ex_date=date(2024, 7, 1), split_from=20, split_to=1),
    ]
    first, second = provider.queries("/v1/corporate-actions")
    assert first == {
        "types": "forward_split,reverse_split",
        "start": "2024-06-01",
        "end": "2024-07-31",
        "limit": "1000",
    }
    assert second == first | {"page_token": "more"}


def bar(t: str, close: float = 10.0, **changes: Any) -> dict[str, Any]:
    return {"t": t, "o": 9.5, "h": 11, "l": 9, "c": close, "v": 1000, "n": 12, "vw": 10.1, **changes}


async def test_alpaca_daily_bars_are_raw_and_dated_in_new_york(alpaca: AlpacaReference, provider: Provider) -> None:
    provider.answers["/v2/stocks/bars"] = InTurn(
        [
            {
                "bars": {
                    "A": [bar("2025-03-06T05:00:00Z"), bar("2025-03-07T05:00:00Z", 10.5)],
                    "BAD": [bar("2025-03-07T05:00:00Z", 0.0), bar("2025-03-06T05:00:00Z", h=8.0)],
                },
                "next_page_token": "bWFyY2g=",
            },
            {
                "bars": {"B": [bar("2025-03-10T04:00:00Z", v=12.5), bar("2025-03-11T04:00:00Z")]},
                "next_page_token": None,
            },
        ]
    )
    bars = await alpaca.daily_bars(["A", "B", "BAD"], date(2025, 3, 6), date(2025, 3, 10))
    assert rows_of(bars) == [
        ("A", date(2025, 3, 6), 10.0, 1000.0),
        ("A", date(2025, 3, 7), 10.5, 1000.0),
        ("B", date(2025, 3, 10), 10.0, 12.5),  # after the clocks were changed; the next day was not asked for
    ]
    first, second = provider.queries("/v2/stocks/bars")
    assert first | {"adjustment": "raw", "timeframe": "1Day", "symbols": "A,B,BAD", "limit": "10000"} == first
    assert second == first | {"page_token": "bWFyY2g="}


async def test_alpaca_is_asked_for_some_hundred_symbols_at_a_time(alpaca: AlpacaReference, provider: Provider) -> None:
    provider.answers["/v2/stocks/bars"] = {"bars": {}, "next_page_token": None}
    names = [f"S{n:04}" for n in range(1_000)]
    assert len(await alpaca.daily_bars(names, MARCH_3, MARCH_7)) == 0
    asked = [query["symbols"].split(",") for query in provider.queries("/v2/stocks/bars")]
    assert [name for some in asked for name in some] == names
    assert max(len(str(request.url)) for request in provider.asked) < 4_000


async def test_alpaca_minute_bars_become_bars(alpaca: AlpacaReference, provider: Provider) -> None:
    provider.answers["/v2/stocks/bars"] = {
        "bars": {"A": [bar(rfc3339(OPEN_NS)), bar(rfc3339(OPEN_NS + 60 * SECOND_NS), vw=None, n=None)]},
        "next_page_token": None,
    }
    bars = await alpaca.minute_bars(["A"], start_ns=OPEN_NS, end_ns=OPEN_NS + 120 * SECOND_NS)
    assert (bars.symbols, bars.ts_ns.tolist()) == (("A",), [OPEN_NS, OPEN_NS + 60 * SECOND_NS])
    assert bars.vwap.tolist()[0] == 10.1
    assert np.isnan(bars.vwap[1])
    assert bars.trade_count.tolist() == [12, 0]


def alpaca_trade(number: int, **changes: Any) -> dict[str, Any]:
    at = rfc3339(OPEN_NS + number * SECOND_NS)
    return {"t": at, "x": "V", "p": 10.25, "s": 100, "c": ["@"], "i": number, "z": "C", **changes}


async def test_alpaca_trades_look_like_those_of_the_stream(alpaca: AlpacaReference, provider: Provider) -> None:
    provider.answers["/v2/stocks/trades"] = InTurn(
        [
            {
                "trades": {
                    "A": [
                        alpaca_trade(1),
                        alpaca_trade(
                            2, c=[" ", "F"], z="A", x="D", s=0.5, i=52983525027888, t="2025-03-03T14:30:02.5Z"
                        ),
                        alpaca_trade(3, u="canceled"),
                        alpaca_trade(4, u="incorrect"),
                        alpaca_trade(5, u="corrected", c=[], z=""),
                        alpaca_trade(6, p=0.0),
                        alpaca_trade(60),
                    ]
                },
                "next_page_token": "more",
            },
            {"trades": {"B": [alpaca_trade(7)]}, "next_page_token": None},
        ]
    )
    pages = await all_of(alpaca.trades(["A", "B"], start_ns=OPEN_NS, end_ns=OPEN_NS + 60 * SECOND_NS))
    assert [prints_of(page) for page in pages] == [
        [
            ("A", "@", SECOND_NS, 10.25, 100.0, "C", "V", 1),
            ("A", " F", 2_500_000_000, 10.25, 0.5, "A", "D", 52983525027888),
            ("A", "", 5 * SECOND_NS, 10.25, 100.0, "\0", "V", 5),
        ],
        [("B", "@", 7 * SECOND_NS, 10.25, 100.0, "C", "V", 7)],
    ]
    assert set(pages[0].kind.tolist()) == {Kind.TRADE}


# -- Massive ----------------------------------------------------------------------------------------------------------


def ticker(symbol: str, **changes: Any) -> dict[str, Any]:
    return {
        "ticker": symbol,
        "name": f"{symbol} Inc.",
        "market": "stocks",
        "locale": "us",
        "primary_exchange": "XNAS",
        "type": "CS",
        "active": True,
        "currency_name": "usd",
        "cik": "0000320193",
        "composite_figi": "BBG000B9XRY4",
        "last_updated_utc": "2025-03-03T00:00:00Z",
        **changes,
    }


async def test_massive_tickers_follow_the_next_page_only_at_our_own_address(
    massive: MassiveReference, provider: Provider
) -> None:
    elsewhere = "https://api.polygon.io/v3/reference/tickers?cursor=YWN0aXZl&apiKey=" + KEY
    provider.answers["/v3/reference/tickers"] = InTurn(
        [
            {
                "status": "OK",
                "count": 2,
                "results": [ticker("AAPL"), ticker("BACpL", type="PFD")],
                "next_url": elsewhere,
            },
            {
                "status": "OK",
                "results": [ticker("SPY", primary_exchange="ARCX", type="ETF"), ticker("X Y"), ticker("Q", type=None)],
            },
        ]
    )
    found = await massive.securities()
    assert [(s.symbol, s.exchange, s.tape, s.type) for s in found] == [
        ("AAPL", "XNAS", "C", "CS"),
        ("BACpL", "XNAS", "C", "PFD"),
        ("SPY", "ARCX", "B", "ETF"),
        ("Q", "XNAS", "C", None),
    ]
    assert provider.queries("/v3/reference/tickers")[1] == {"cursor": "YWN0aXZl"}
    for request in provider.asked:
        assert request.headers["authorization"] == f"Bearer {KEY}"
        assert KEY not in str(request.url)


async def test_massive_details_bring_market_cap_and_shares(massive: MassiveReference, provider: Provider) -> None:
    provider.answers["/v3/reference/tickers/AAPL"] = {
        "status": "OK",
        "results": ticker(
            "AAPL",
            market_cap=3.5e12,
            share_class_shares_outstanding=15_022_073_000,
            weighted_shares_outstanding=15_022_073_001,
            sic_description="ELECTRONIC COMPUTERS",
            round_lot=100,
        ),
    }
    provider.answers["/v3/reference/tickers/BRK.B"] = {"results": ticker("BRK.B")}
    aapl, brk = [security async for security in massive.details(["AAPL", "GONE", "BRK.B"])]
    assert (aapl.market_cap, aapl.shares_outstanding, aapl.round_lot) == (3.5e12, 15_022_073_000, 100)
    assert aapl.sector == "ELECTRONIC COMPUTERS"
    assert (brk.market_cap, brk.shares_outstanding) == (None, None)


async def test_massive_daily_bars_are_one_request_a_weekday(massive: MassiveReference, provider: Provider) -> None:
    friday, monday = date(2025, 3, 7), date(2025, 3, 10)
    path = "/v2/aggs/grouped/locale/us/market/stocks/"
    row = {"T": "A", "v": 1e6, "vw": 10.0, "o": 9, "c": 10.5, "h": 11, "l": 9, "t": 1741377600000, "n": 5}
    provider.answers[f"{path}{friday}"] = {"status": "OK", "results": [row, row | {"T": "BAD", "c": -1}]}
    provider.answers[f"{path}{monday}"] = {"status": "OK", "resultsCount": 0}
    assert rows_of(await massive.daily_bars([], friday, monday)) == [("A", friday, 10.5, 1e6)]
    assert [request.url.path for request in provider.asked] == [f"{path}{friday}", f"{path}{monday}"]
    assert provider.queries(f"{path}{friday}")[0]["adjusted"] == "false"


async def test_massive_splits_and_conditions(massive: MassiveReference, provider: Provider) -> None:
    split = {"id": "E36416", "ticker": "NVDA", "execution_date": "2024-06-10", "split_from": 1, "split_to": 10}
    provider.answers["/v3/reference/splits"] = {"status": "OK", "results": [split]}
    provider.answers["/v3/reference/conditions"] = Response(b'{"results": [{"id": 2}]}')
    found = await massive.splits(date(2024, 6, 1), date(2024, 6, 30))
    assert found == [Split(symbol="NVDA", ex_date=date(2024, 6, 10), split_from=1, split_to=10)]
    (query,) = provider.queries("/v3/reference/splits")
    assert query["execution_date.gte"] == "2024-06-01"
    assert query["execution_date.lte"] == "2024-06-30"
    assert await massive.conditions() == b'{"results": [{"id": 2}]}'


async def test_massive_minute_bars_become_bars(massive: MassiveReference, provider: Provider) -> None:
    first_ms = OPEN_NS // 1_000_000
    path = f"/v2/aggs/ticker/BRK.B/range/1/minute/{first_ms}/{first_ms + 59_999}"
    row = {"t": first_ms, "o": 1, "h": 2, "l": 1, "c": 1.5, "v": 10.5, "vw": 1.4, "n": 3}
    provider.answers[path] = {"results": [row, row | {"t": first_ms + 60_000}]}
    bars = await massive.minute_bars(["BRK.B"], start_ns=OPEN_NS, end_ns=OPEN_NS + 60 * SECOND_NS)
    assert (bars.symbols, bars.ts_ns.tolist(), bars.volume.tolist()) == (("BRK.B",), [OPEN_NS], [10.5])


def massive_trade(number: int, **changes: Any) -> dict[str, Any]:
    at = OPEN_NS + number * SECOND_NS
    return {
        "sip_timestamp": at,
        "participant_timestamp": at - 1,
        "price": 10.25,
        "size": 100,
        "id": str(number),
        "exchange": 11,
        "tape": 3,
        "sequence_number": number,
        **changes,
    }


async def test_massive_trades_look_like_those_of_the_stream(massive: MassiveReference, provider: Provider) -> None:
    provider.answers["/v3/trades/A"] = {
        "results": [
            massive_trade(1, conditions=[12, 37]),
            massive_trade(2, conditions=[2], tape=1, exchange=4, size=0, decimal_size="0.5", id="71675577320245"),
            massive_trade(3, conditions=[2], correction=1),
            massive_trade(4, correction=8),
            massive_trade(5, correction=0, id="no number"),
        ]
    }
    (page,) = await all_of(massive.trades(["A"], start_ns=OPEN_NS, end_ns=OPEN_NS + 60 * SECOND_NS))
    rows = prints_of(page)
    assert rows[0] == ("A", "TI", SECOND_NS, 10.25, 100.0, "C", "P", 1)
    assert rows[1] == ("A", "B", 2 * SECOND_NS, 10.25, 0.5, "A", "D", 71675577320245)  # the average price, by tape
    assert rows[2][:3] == ("A", "W", 3 * SECOND_NS)
    assert [row[2] for row in rows] == [n * SECOND_NS for n in (1, 2, 3, 5)]
    assert rows[3][7] not in {0, 5}
    (query,) = provider.queries("/v3/trades/A")
    assert query["timestamp.gte"] == str(OPEN_NS)
    assert query["timestamp.lt"] == str(OPEN_NS + 60 * SECOND_NS)


# -- what goes wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403])
async def test_refused_credentials_are_not_tried_again(
    alpaca: AlpacaReference, provider: Provider, status: int
) -> None:
    provider.answers["/v2/assets"] = Response(f"wrong {SECRET}", status)
    with pytest.raises(FeedRefused, match=rf"alpaca /v2/assets was refused \(HTTP {status}\)"):
        await alpaca.securities()
    assert len(provider.asked) == 1


async def test_server_in_trouble_is_asked_a_few_times_in_growing_steps(
    alpaca: AlpacaReference, provider: Provider, clock: Quick
) -> None:
    provider.answers["/v2/assets"] = InTurn(
        [Response(status_code=500), Response(status_code=502), [asset("A", "NYSE")]]
    )
    assert [security.symbol for security in await alpaca.securities()] == ["A"]
    provider.answers["/v2/assets"] = Response(status_code=503)
    provider.asked.clear()
    clock.slept_s.clear()
    with pytest.raises(Unavailable, match=r"alpaca /v2/assets .* HTTP 503"):
        await alpaca.securities()
    assert len(provider.asked) == ATTEMPTS
    waits = [seconds for seconds in clock.slept_s if seconds > 0.3]
    assert waits[-1] > waits[0]


async def test_server_that_is_not_there_is_unavailable(clock: Quick) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    rest = Rest("massive", f"http://127.0.0.1:{port}", headers={}, clock=clock, requests_per_minute=600)
    with pytest.raises(Unavailable, match="massive /v3/x does not answer after 5 attempts: ConnectError"):
        await rest.fetch("/v3/x")
    await rest.close()


@pytest.mark.parametrize(("header", "least_s", "most_s"), [("7", 7, 14), ("100000", 60, 120), ("soon", 0, 2)])
async def test_limit_of_requests_is_waited_for_as_long_as_the_server_says(
    massive: MassiveReference, provider: Provider, clock: Quick, header: str, least_s: float, most_s: float
) -> None:
    limited = Response(status_code=429, headers={"Retry-After": header})
    provider.answers["/v3/reference/splits"] = InTurn([limited, {"results": []}])
    assert await massive.splits(MARCH_3, MARCH_7) == []
    assert least_s <= max(clock.slept_s) <= most_s


async def test_date_of_retry_after_is_understood(massive: MassiveReference, provider: Provider, clock: Quick) -> None:
    limited = Response(status_code=429, headers={"Retry-After": "Mon, 03 Mar 2025 11:07:00 GMT"})
    provider.answers["/v3/reference/splits"] = InTurn([limited, {"results": []}])
    clock.time_ns = 1_740_999_990 * SECOND_NS  # 30 seconds before
    await massive.splits(MARCH_3, MARCH_7)
    assert 29 <= max(clock.slept_s) <= 60


async def test_requests_keep_to_the_rate(provider: Provider, clock: Quick) -> None:
    rest = Rest("alpaca", provider.address, headers={}, clock=clock, requests_per_minute=200)
    provider.answers["/x"] = {}
    times = []
    for _ in range(5):
        await rest.fetch("/x")
        times.append(clock.time_ns)
    assert np.diff(times).tolist() == [300_000_000] * 4
    await asyncio.gather(*(rest.fetch("/x") for _ in range(4)))
    assert clock.time_ns - times[-1] >= 4 * 300_000_000
    await rest.close()


@pytest.mark.parametrize(
    ("body", "field", "why"),
    [
        (b"<html>", "", "not valid JSON"),
        (b"", "", "not valid JSON"),
        (b'{"bars": {"A": [{"t": "2025-03-03T05:00:00Z"}]}}', r"\$.bars\[...\]\[0\]", "missing required field `o`"),
        (b'{"bars": []}', r"\$.bars", "expected `object`, got `array`"),
        (json.dumps({"bars": {"A": [bar("2025-03-03T05:00:00Z", c="ten")]}}).encode(), r"\[0\].c", "expected `float`"),
        (json.dumps({"bars": {"A": [bar("yesterday")]}}).encode(), "field t", "is not a time in UTC"),
        (json.dumps({"bars": {"A": [bar("2025-13-03T05:00:00Z")]}}).encode(), "field t", "is not one of the calendar"),
        (b'{"bars": {"A": [NaN]}}', "", "not valid JSON"),
        (b"[" * 100_000, "", ""),
    ],
)
async def test_answer_that_makes_no_sense_is_named(
    alpaca: AlpacaReference, provider: Provider, body: bytes, field: str, why: str
) -> None:
    provider.answers["/v2/stocks/bars"] = Response(body)
    with pytest.raises(Invalid, match=rf"^alpaca /v2/stocks/bars.*{field}.*{why}") as caught:
        await alpaca.daily_bars(["A"], MARCH_3, MARCH_7)
    assert len(str(caught.value)) < 300
    assert len(provider.asked) == 1


@pytest.mark.parametrize(
    ("ask", "path", "answer", "where"),
    [
        (
            lambda source: source.splits(MARCH_3, MARCH_7),
            "/v3/reference/splits",
            {"results": [{"ticker": "A", "execution_date": "2025-02-30", "split_from": 1, "split_to": 2}]},
            r"massive /v3/reference/splits results\[0\].ex_date",
        ),
        (
            lambda source: source.splits(MARCH_3, MARCH_7),
            "/v3/reference/splits",
            {"results": [{"ticker": "A", "execution_date": "2025-03-03", "split_from": 0, "split_to": 2}]},
            r"massive /v3/reference/splits results\[0\].split_from",
        ),
        (
            lambda source: source.securities(),
            "/v3/reference/tickers",
            {"results": [ticker("A"), ticker("B", market_cap=-5)]},
            r"massive /v3/reference/tickers results\[1\].market_cap",
        ),
        (
            lambda source: source.securities(),
            "/v3/reference/tickers",
            {"results": [ticker("A")], "next_url": "file:etc"},
            "massive field next_url",
        ),
    ],
)
async def test_value_that_cannot_be_is_named(
    massive: MassiveReference,
    provider: Provider,
    ask: Callable[[Reference], Awaitable[Any]],
    path: str,
    answer: Any,
    where: str,
) -> None:
    provider.answers[path] = answer
    with pytest.raises(Invalid, match=where):
        await ask(massive)


async def test_pages_that_do_not_end_are_given_up(massive: MassiveReference, provider: Provider) -> None:
    provider.answers["/v3/reference/splits"] = {"results": [], "next_url": "/v3/reference/splits?cursor=again"}
    with pytest.raises(Invalid, match="its pages do not end"):
        await massive.splits(MARCH_3, MARCH_7)
    assert len(provider.asked) == 2


async def test_redirection_is_not_followed_with_the_key(massive: MassiveReference, provider: Provider) -> None:
    provider.answers["/v3/reference/splits"] = Response(status_code=302, headers={"Location": "/elsewhere"})
    with pytest.raises(Invalid, match="HTTP 302"):
        await massive.splits(MARCH_3, MARCH_7)
    assert [request.url.path for request in provider.asked] == ["/v3/reference/splits"]


@pytest.mark.parametrize("status", [200, 302, 400, 401, 404, 429, 500])
async def test_keys_are_in_no_error_no_log_no_address_and_no_repr(
    alpaca: AlpacaReference, provider: Provider, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    provider.answers["/v2/stocks/bars"] = lambda request: Response(
        f"not json, {request.headers['apca-api-secret-key']}", status
    )
    with pytest.raises(TapewatchError) as caught:
        await alpaca.daily_bars(["A"], MARCH_3, MARCH_7)
    assert {request.headers["apca-api-key-id"] for request in provider.asked} == {KEY}
    settings = AlpacaRestSettings(credentials=Credentials(KEY, SECRET))
    addresses = [str(request.url) for request in provider.asked]
    for text in (
        repr(caught.value),
        repr(caught.value.__cause__),
        caplog.text,
        repr(settings),
        repr(alpaca),
        *addresses,
    ):
        assert KEY not in text
        assert SECRET not in text


@pytest.mark.parametrize("address", ["", "ftp://x", "https://user:secret@x", "https://x?apiKey=1", "https:// x", "x"])
def test_address_that_cannot_be_is_a_configuration_error(address: str, clock: Quick) -> None:
    with pytest.raises(ConfigError, match=r"massive: .* is not an address"):
        Rest("massive", address, headers={}, clock=clock, requests_per_minute=1)


# -- the official clients read the same server ------------------------------------------------------------------------


async def test_official_clients_read_what_our_sources_read(
    alpaca: AlpacaReference, massive: MassiveReference, provider: Provider
) -> None:
    provider.answers["/v2/stocks/bars"] = {"bars": {"A": [bar("2025-03-06T05:00:00Z")]}, "next_page_token": None}
    split = {"id": "E36416", "ticker": "NVDA", "execution_date": "2024-06-10", "split_from": 1, "split_to": 10}
    provider.answers["/v3/reference/splits"] = {"status": "OK", "results": [split]}

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # what they import is their business
        from alpaca.data.historical import StockHistoricalDataClient
        from alpaca.data.requests import StockBarsRequest
        from alpaca.data.timeframe import TimeFrame
        from massive import RESTClient  # type: ignore[import-untyped,unused-ignore]

    def by_the_clients() -> tuple[Any, Any]:
        theirs = StockHistoricalDataClient(KEY, SECRET, url_override=provider.address)
        request = StockBarsRequest(symbol_or_symbols="A", timeframe=TimeFrame.Day)
        return theirs.get_stock_bars(request), list(RESTClient(KEY, base=provider.address, retries=0).list_splits())

    bars, splits = await asyncio.to_thread(by_the_clients)
    ours = await alpaca.daily_bars(["A"], MARCH_3, MARCH_7)
    (theirs,) = bars["A"]
    assert (theirs.close, theirs.volume, theirs.timestamp.date()) == (ours.close[0], ours.volume[0], date(2025, 3, 6))
    (found,) = await massive.splits(date(2024, 6, 1), date(2024, 6, 30))
    assert (splits[0].ticker, splits[0].split_to, splits[0].execution_date) == ("NVDA", 10, str(found.ex_date))


# -- back-fill --------------------------------------------------------------------------------------------------------

GAP = Gap(OPEN_NS, OPEN_NS + 60 * SECOND_NS, "network")


def of_symbols(request: Request) -> Any:
    names = request.query_params["symbols"].split(",")
    return {"trades": {name: [alpaca_trade(3), alpaca_trade(1)] for name in names}, "next_page_token": None}


async def test_backfill_brings_the_gap_by_time_and_known_trades_count_once(
    alpaca: AlpacaReference, provider: Provider
) -> None:
    provider.answers["/v2/stocks/trades"] = of_symbols
    filled = await backfill(GAP, history=alpaca, volumes={"B": 5.0, "A": 7.0})
    assert filled.complete
    assert filled.symbols == 2
    assert (filled.batch.ts_ns - OPEN_NS).tolist() == [SECOND_NS, SECOND_NS, 3 * SECOND_NS, 3 * SECOND_NS]
    assert len(filled.batch.marks_ns) == 0
    seen = SeenTrades()
    live = filled.batch.take(np.array([0, 2]))
    assert not seen.repeats(live).repeated.any()
    assert seen.repeats(filled.batch).repeated.tolist() == [True, False, True, False]


async def test_backfill_takes_the_most_traded_first_and_says_what_it_left_out(
    alpaca: AlpacaReference, massive: MassiveReference, provider: Provider
) -> None:
    provider.answers["/v2/stocks/trades"] = of_symbols
    volumes = {f"S{n:03}": float(n) for n in range(120)}
    filled = await backfill(GAP, history=alpaca, volumes=volumes, bounds=BackfillBounds(symbols=70))
    asked = [query["symbols"].split(",") for query in provider.queries("/v2/stocks/trades")]
    assert [len(some) for some in asked] == [50, 20]
    assert asked[0][0] == "S119"
    assert (filled.symbols, filled.complete, len(filled.batch)) == (70, False, 140)

    few = await backfill(GAP, history=alpaca, volumes=volumes, bounds=BackfillBounds(trades=30))
    assert (len(few.batch), few.complete) == (30, False)

    provider.answers["/v3/trades/A"] = {"results": [massive_trade(1), massive_trade(40)]}
    short = BackfillBounds(span_ns=30 * SECOND_NS)
    late = await backfill(GAP, history=massive, volumes={"A": 1.0}, bounds=short)
    assert ((late.batch.ts_ns - OPEN_NS).tolist(), late.complete) == ([40 * SECOND_NS], False)


async def test_backfill_of_nothing_asks_for_nothing(alpaca: AlpacaReference, provider: Provider) -> None:
    for gap, volumes in ((GAP, {}), (Gap(OPEN_NS, OPEN_NS, "network"), {"A": 1.0})):
        filled = await backfill(gap, history=alpaca, volumes=volumes)
        assert (len(filled.batch), filled.complete) == (0, True)
    with pytest.raises(ValueError, match="not ended"):
        await backfill(Gap(OPEN_NS, OPEN_END_NS, "silent"), history=alpaca, volumes={"A": 1.0})
    assert provider.asked == []


async def test_backfill_passes_on_what_the_source_says(alpaca: AlpacaReference, provider: Provider) -> None:
    provider.answers["/v2/stocks/trades"] = Response(status_code=403)
    with pytest.raises(FeedRefused):
        await backfill(GAP, history=alpaca, volumes={"A": 1.0})


# -- the command ------------------------------------------------------------------------------------------------------


async def test_command_refreshes_the_store_and_says_what_it_brought(provider: Provider, tmp_path: Path) -> None:
    day = "/v2/aggs/grouped/locale/us/market/stocks/"

    def answer(request: Request) -> Any:
        row = {"T": "AAPL", "v": 1e6, "o": 9, "c": 10.5, "h": 11, "l": 9}
        return {"results": [row]} if request.url.path.startswith(day) else Response(status_code=404)

    class Anything(dict[str, Any]):
        def get(self, path: str, default: Any = None) -> Any:
            return answer if path.startswith(day) else super().get(path, default)

    provider.answers = Anything(
        {"/v3/reference/tickers": {"results": [ticker("AAPL")]}, "/v3/reference/splits": {"results": []}}
    )

    async def command(*arguments: str, key: str = KEY) -> tuple[int, str, str]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tapewatch", "reference", "refresh", "massive", "--data-dir", str(tmp_path),
            "--address", provider.address, "--requests-per-minute", "100000", *arguments,
            env={**{k: v for k, v in os.environ.items() if "API_KEY" not in k}, "MASSIVE_API_KEY": key},
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    code, out, err = await command("--json")
    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told | {"securities": 1, "delisted": 0, "splits": 0, "bars": told["days"]} == told
    assert told["days"] > 240
    code, out, err = await command()
    assert (code, out) == (0, "1 securities (0 no longer listed), 0 splits, 2 daily bars of 2 days\n")
    provider.answers["/v3/reference/tickers"] = Response(status_code=401)
    code, out, err = await command()
    assert (code, out) == (1, "")
    assert "was refused (HTTP 401)" in err
    assert err.count("\n") == 1
    assert KEY not in err
