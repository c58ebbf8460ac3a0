"""Massive's REST as a source: tickers and their details, splits, daily and minute bars, trades, sale conditions.

The key travels in the Authorization header. A next page is asked for at the configured address, whatever host
`next_url` names.
"""

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Any
from urllib.parse import parse_qsl, quote, urlsplit

from msgspec import Meta, Struct
from msgspec import field as renamed

from tapewatch.credentials import Credentials
from tapewatch.documents import Security, Split, day_number, parse_document
from tapewatch.engine.columns import Bars, Batch
from tapewatch.engine.conditions import TAPE_CLASS
from tapewatch.engine.daily import DailyBars, join_daily_bars, make_daily_bars
from tapewatch.errors import ConfigError, Invalid, NotFound
from tapewatch.feeds.massive import provider_codes as massive_tables
from tapewatch.feeds.reference.listing import TAPE_OF_MIC, is_symbol, new_york_date, shown
from tapewatch.feeds.reference.prints import Prints, minute_bars
from tapewatch.feeds.reference.rest import Following, Rest
from tapewatch.feeds.rows import decimals, small, trade_ids
from tapewatch.feeds.tape_file import exchange_test_symbols
from tapewatch.ports import Clock

_MILLISECOND_NS = 1_000_000
_STANDING = {None, 0, 1, 2}
"""Codes of `correction` with which a trade stands: regular, or corrected and shown as corrected."""
_DAYS_A_WEEK = 5

Nanoseconds = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Milliseconds = Annotated[int, Meta(ge=0, le=2**43)]


class _Ticker(Struct):
    ticker: str
    name: str | None = None
    primary_exchange: str | None = None
    type: str | None = None
    active: bool = True
    market_cap: float | None = None
    share_class_shares_outstanding: float | None = None
    weighted_shares_outstanding: float | None = None
    sic_description: str | None = None
    round_lot: int | None = None


class _Split(Struct):
    ticker: str
    execution_date: str
    split_from: float
    split_to: float


class _Day(Struct):
    ticker: str = renamed(name="T")
    o: float
    h: float
    l: float  # noqa: E741  # Massive's own name
    c: float
    v: float


class _Minute(Struct):
    t: Milliseconds
    o: float
    h: float
    l: float  # noqa: E741  # Massive's own name
    c: float
    v: float
    vw: float | None = None
    n: int | None = None


class _Trade(Struct):
    sip_timestamp: Nanoseconds
    price: float
    size: float
    id: str
    exchange: int
    conditions: list[int] = renamed(default_factory=list)
    correction: int | None = None
    tape: int = 0
    decimal_size: str | None = None


class _Details(Struct):
    results: _Ticker


class _Tickers(Struct):
    results: list[_Ticker] = renamed(default_factory=list)
    next_url: str | None = None


class _Splits(Struct):
    results: list[_Split] = renamed(default_factory=list)
    next_url: str | None = None


class _Days(Struct):
    results: list[_Day] | None = None


class _Minutes(Struct):
    results: list[_Minute] | None = None
    next_url: str | None = None


class _Trades(Struct):
    results: list[_Trade] | None = None
    next_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MassiveRestSettings:
    """The free plan takes five requests a minute; paid ones ask for fewer than a hundred a second."""

    credentials: Credentials
    address: str = "https://api.massive.com"
    requests_per_minute: float = 600.0

    def __post_init__(self) -> None:
        if not 0 < self.requests_per_minute <= 100_000:
            raise ConfigError(f"massive: {self.requests_per_minute:g} requests a minute are not between 0 and 100000")


class MassiveReference:
    """`Reference` and `TradeHistory` over Massive's REST."""

    name = "massive"
    symbols_per_request = 1

    def __init__(self, settings: MassiveRestSettings, clock: Clock) -> None:
        self._rest = Rest(
            "massive",
            settings.address,
            headers={"Authorization": f"Bearer {settings.credentials.key}"},
            clock=clock,
            requests_per_minute=settings.requests_per_minute,
        )
        self._clock = clock
        self._prints = Prints()

    async def securities(self) -> list[Security]:
        path = "/v3/reference/tickers"
        found = {}
        async for page in self._rest.pages(
            path, _Tickers, _next_url, market="stocks", active="true", sort="ticker", order="asc", limit=1_000
        ):
            for place, ticker in enumerate(page.results):
                if is_symbol(ticker.ticker):
                    found[ticker.ticker] = self._security(ticker, f"massive {path} results[{place}]")
        return list(found.values())

    async def details(self, symbols: Sequence[str]) -> AsyncIterator[Security]:
        for symbol in symbols:
            path = f"/v3/reference/tickers/{quote(symbol, safe='')}"
            try:
                answer = await self._rest.get(path, _Details)
            except NotFound:
                continue
            if answer.results.ticker != symbol:
                raise Invalid(f"massive {path} results.ticker", "is another one than was asked for")
            yield self._security(answer.results, f"massive {path} results")

    async def splits(self, start: date, end: date) -> list[Split]:
        path = "/v3/reference/splits"
        span = {"execution_date.gte": str(start), "execution_date.lte": str(end)}
        found = []
        async for page in self._rest.pages(
            path, _Splits, _next_url, **span, sort="execution_date", order="asc", limit=1_000
        ):
            for place, split in enumerate(page.results):
                if is_symbol(split.ticker):
                    raw = {
                        "symbol": split.ticker,
                        "ex_date": split.execution_date,
                        "split_from": split.split_from,
                        "split_to": split.split_to,
                    }
                    found.append(parse_document(Split, raw, where=f"massive {path} results[{place}]"))
        return found

    async def daily_bars(self, symbols: Sequence[str], start: date, end: date) -> DailyBars:  # noqa: ARG002
        """Of the whole market: one request a weekday."""
        parts = []
        for number in range((end - start).days + 1):
            day = start + timedelta(number)
            if day.weekday() >= _DAYS_A_WEEK:
                continue
            path = f"/v2/aggs/grouped/locale/us/market/stocks/{day}"
            answer = await self._rest.get(path, _Days, adjusted="false", include_otc="false")
            bars = [bar for bar in answer.results or () if is_symbol(bar.ticker)]
            part = make_daily_bars(
                [bar.ticker for bar in bars],
                [day_number(day)] * len(bars),
                open=[bar.o for bar in bars],
                high=[bar.h for bar in bars],
                low=[bar.l for bar in bars],
                close=[bar.c for bar in bars],
                volume=[bar.v for bar in bars],
            )
            parts.append(part.sound())
        return join_daily_bars(parts)

    async def minute_bars(self, symbols: Sequence[str], *, start_ns: int, end_ns: int) -> Bars:
        """Massive's own bars of [start_ns, end_ns), by symbol and time."""
        first_ms, last_ms = -(-start_ns // _MILLISECOND_NS), (end_ns - 1) // _MILLISECOND_NS
        rows: list[Any] = []
        for symbol in symbols:
            path = f"/v2/aggs/ticker/{quote(symbol, safe='')}/range/1/minute/{first_ms}/{last_ms}"
            async for page in self._rest.pages(path, _Minutes, _next_url, adjusted="false", sort="asc", limit=50_000):
                rows += [
                    (symbol, bar.t * _MILLISECOND_NS, bar.o, bar.h, bar.l, bar.c, bar.v, bar.vw, bar.n)
                    for bar in page.results or ()
                    if first_ms <= bar.t <= last_ms
                ]
        return minute_bars(rows)

    async def conditions(self) -> bytes:
        """The table of sale conditions as it is served."""
        return await self._rest.fetch("/v3/reference/conditions", asset_class="stocks", data_type="trade", limit=1_000)

    async def trades(self, symbols: Sequence[str], *, start_ns: int, end_ns: int) -> AsyncIterator[Batch]:
        tables = massive_tables()
        for symbol in symbols:
            path = f"/v3/trades/{quote(symbol, safe='')}"
            span = {"timestamp.gte": start_ns, "timestamp.lt": end_ns}
            async for page in self._rest.pages(
                path, _Trades, _next_url, **span, sort="timestamp", order="asc", limit=50_000
            ):
                trades = [trade for trade in page.results or () if trade.correction in _STANDING]
                tapes = small([trade.tape for trade in trades], tables.tapes)
                classes = TAPE_CLASS[tapes].tolist()
                yield self._prints.batch(
                    [symbol] * len(trades),
                    [
                        "".join(tables.letters[tape].get(number, "?") for number in trade.conditions)
                        for trade, tape in zip(trades, classes, strict=True)
                    ],
                    ts_ns=[trade.sip_timestamp for trade in trades],
                    start_ns=start_ns,
                    end_ns=end_ns,
                    price=[trade.price for trade in trades],
                    size=decimals(trade.decimal_size or f"{trade.size:.9f}" for trade in trades),
                    tape=tapes,
                    exchange=small([trade.exchange for trade in trades], tables.exchanges),
                    trade_id=trade_ids([trade.id for trade in trades]),
                )

    async def close(self) -> None:
        await self._rest.close()

    def _security(self, ticker: _Ticker, where: str) -> Security:
        mic, kind = _fits(ticker.primary_exchange, r"[A-Z0-9]{4}"), _fits(ticker.type, r"[A-Z0-9_]{1,16}")
        return parse_document(
            Security,
            {
                "symbol": ticker.ticker,
                "name": shown(ticker.name),
                "exchange": mic,
                "tape": TAPE_OF_MIC.get(mic or ""),
                "type": kind,
                "is_test": ticker.ticker in exchange_test_symbols(),
                "active": ticker.active,
                "market_cap": ticker.market_cap,
                "shares_outstanding": ticker.share_class_shares_outstanding or ticker.weighted_shares_outstanding,
                "sector": shown(ticker.sic_description),
                "round_lot": ticker.round_lot,
                "as_of": new_york_date(self._clock.now_ns()),
            },
            where=where,
        )


def _fits(text: str | None, pattern: str) -> str | None:
    return text if text is not None and re.fullmatch(pattern, text) else None


def _next_url(page: _Tickers | _Splits | _Minutes | _Trades) -> Following | None:
    if not page.next_url:
        return None
    parts = urlsplit(page.next_url)
    if not parts.path.startswith("/v"):
        raise Invalid("massive field next_url", "is not an address of this interface")
    query = {name: value for name, value in parse_qsl(parts.query) if name != "apiKey"}
    return Following(page.next_url, query, parts.path)
