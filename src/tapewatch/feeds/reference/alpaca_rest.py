"""Alpaca's REST as a source: assets, corporate actions, daily and minute bars, trades.

Alpaca knows neither market capitalisation nor shares outstanding nor types of securities. The key travels in headers.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct
from msgspec import field as renamed

from tapewatch.credentials import Credentials
from tapewatch.documents import Security, Split, day_number, parse_document, rfc3339
from tapewatch.engine.columns import Bars, Batch
from tapewatch.engine.daily import DailyBars, join_daily_bars, make_daily_bars
from tapewatch.errors import ConfigError
from tapewatch.feeds.reference.listing import TAPE_OF_MIC, is_symbol, new_york_date, shown
from tapewatch.feeds.reference.prints import Prints, minute_bars, parse_times
from tapewatch.feeds.reference.rest import Following, Rest
from tapewatch.feeds.rows import PARTICIPANTS, TAPES, letters
from tapewatch.feeds.tape_file import exchange_test_symbols
from tapewatch.ports import Clock

_MIC_OF: Mapping[str, str] = {
    "NYSE": "XNYS",
    "NASDAQ": "XNAS",
    "AMEX": "XASE",
    "ARCA": "ARCX",
    "BATS": "BATS",
    "IEX": "IEXG",
    "OTC": "OTCM",
}
_PAGE = 10_000
_SYMBOLS_A_REQUEST = 400
"""Some 2.5 kB of address; servers take 8 kB."""
_CANCELLED = {"canceled", "cancelled", "incorrect"}

TradeId = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class _Asset(Struct):
    symbol: str
    exchange: str
    status: str
    name: str | None = None
    asset_class: str = renamed(default="us_equity", name="class")


class _SplitAction(Struct):
    symbol: str
    new_rate: float
    old_rate: float
    ex_date: str


class _Actions(Struct):
    forward_splits: list[_SplitAction] = renamed(default_factory=list)
    reverse_splits: list[_SplitAction] = renamed(default_factory=list)


class _ActionsPage(Struct):
    corporate_actions: _Actions
    next_page_token: str | None = None


class _Bar(Struct):
    t: str
    o: float
    h: float
    l: float  # noqa: E741  # Alpaca's own name
    c: float
    v: float
    n: int | None = None
    vw: float | None = None


class _BarsPage(Struct):
    bars: dict[str, list[_Bar]]
    next_page_token: str | None = None


class _Trade(Struct):
    t: str
    x: str
    p: float
    s: float
    i: TradeId
    c: list[str] = renamed(default_factory=list)
    z: str = ""
    u: str | None = None


class _TradesPage(Struct):
    trades: dict[str, list[_Trade]]
    next_page_token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AlpacaRestSettings:
    """The free plan takes 200 requests a minute, and sip data only when older than 15 minutes."""

    credentials: Credentials
    data_address: str = "https://data.alpaca.markets"
    trading_address: str = "https://paper-api.alpaca.markets"
    """Where the key is from: ``https://api.alpaca.markets`` for a live account."""
    feed: Literal["sip", "iex", "otc", "boats"] = "sip"
    requests_per_minute: float = 200.0

    def __post_init__(self) -> None:
        if not 0 < self.requests_per_minute <= 100_000:
            raise ConfigError(f"alpaca: {self.requests_per_minute:g} requests a minute are not between 0 and 100000")


class AlpacaReference:
    """`Reference` and `TradeHistory` over Alpaca's REST."""

    name = "alpaca"
    symbols_per_request = 50
    """A page of trades of many symbols would end before the end of the span too often."""

    def __init__(self, settings: AlpacaRestSettings, clock: Clock) -> None:
        keys = {
            "APCA-API-KEY-ID": settings.credentials.key,
            "APCA-API-SECRET-KEY": settings.credentials.secret,
        }
        rate = settings.requests_per_minute
        self._data = Rest("alpaca", settings.data_address, headers=keys, clock=clock, requests_per_minute=rate)
        self._trading = Rest("alpaca", settings.trading_address, headers=keys, clock=clock, requests_per_minute=rate)
        self._feed, self._clock = settings.feed, clock
        self._prints = Prints()

    async def securities(self) -> list[Security]:
        path = "/v2/assets"
        assets = await self._trading.get(path, list[_Asset], status="active", asset_class="us_equity")
        as_of, tests = new_york_date(self._clock.now_ns()), exchange_test_symbols()
        found = {}
        for place, asset in enumerate(assets):
            if asset.asset_class != "us_equity" or not is_symbol(asset.symbol):
                continue
            mic = _MIC_OF.get(asset.exchange)
            found[asset.symbol] = parse_document(
                Security,
                {
                    "symbol": asset.symbol,
                    "name": shown(asset.name),
                    "exchange": mic,
                    "tape": TAPE_OF_MIC.get(mic or ""),
                    "is_test": asset.symbol in tests,
                    "active": asset.status == "active",
                    "as_of": as_of,
                },
                where=f"alpaca {path} [{place}]",
            )
        return list(found.values())

    async def details(self, symbols: Sequence[str]) -> AsyncIterator[Security]:  # noqa: ARG002
        nothing: Sequence[Security] = ()
        for security in nothing:
            yield security

    async def splits(self, start: date, end: date) -> list[Split]:
        path = "/v1/corporate-actions"
        query: dict[str, str | int] = {
            "types": "forward_split,reverse_split",
            "start": str(start),
            "end": str(end),
            "limit": 1_000,
        }
        found = []
        async for page in self._data.pages(path, _ActionsPage, _next_token, **query):
            actions = page.corporate_actions
            for kind in ("forward_splits", "reverse_splits"):
                for place, action in enumerate(getattr(actions, kind)):
                    if is_symbol(action.symbol):
                        raw = {
                            "symbol": action.symbol,
                            "ex_date": action.ex_date,
                            "split_from": action.old_rate,
                            "split_to": action.new_rate,
                        }
                        found.append(parse_document(Split, raw, where=f"alpaca {path} {kind}[{place}]"))
        return found

    async def daily_bars(self, symbols: Sequence[str], start: date, end: date) -> DailyBars:
        parts = []
        # `end` is midnight in New York of the day after: a bar of that instant is another day's.
        span = {"start": f"{start}T00:00:00Z", "end": f"{end + timedelta(1)}T03:59:59Z"}
        async for where, names, bars in self._bars(symbols, timeframe="1Day", **span):
            times = parse_times([bar.t for bar in bars], where=where)
            days = [day_number(new_york_date(ts_ns)) for ts_ns in times.tolist()]
            part = make_daily_bars(
                names,
                days,
                open=[bar.o for bar in bars],
                high=[bar.h for bar in bars],
                low=[bar.l for bar in bars],
                close=[bar.c for bar in bars],
                volume=[bar.v for bar in bars],
            )
            parts.append(part.take((part.day >= day_number(start)) & (part.day <= day_number(end))).sound())
        return join_daily_bars(parts)

    async def minute_bars(self, symbols: Sequence[str], *, start_ns: int, end_ns: int) -> Bars:
        """Alpaca's own bars of [start_ns, end_ns), by symbol and time."""
        rows: list[Any] = []
        async for where, names, bars in self._bars(
            symbols, timeframe="1Min", start=rfc3339(start_ns), end=rfc3339(end_ns - 1)
        ):
            times = parse_times([bar.t for bar in bars], where=where).tolist()
            rows += [
                (name, ts_ns, bar.o, bar.h, bar.l, bar.c, bar.v, bar.vw, bar.n)
                for name, ts_ns, bar in zip(names, times, bars, strict=True)
            ]
        return minute_bars(rows)

    async def trades(self, symbols: Sequence[str], *, start_ns: int, end_ns: int) -> AsyncIterator[Batch]:
        path = "/v2/stocks/trades"
        query: dict[str, str | int] = {
            "symbols": ",".join(symbols),
            "start": rfc3339(start_ns),
            "end": rfc3339(end_ns - 1),
            "feed": self._feed,
            "limit": _PAGE,
        }
        async for page in self._data.pages(path, _TradesPage, _next_token, **query):
            rows = [
                (name, trade)
                for name, trades in page.trades.items()
                if is_symbol(name)
                for trade in trades
                if trade.u not in _CANCELLED
            ]
            prints = [trade for _, trade in rows]
            yield self._prints.batch(
                [name for name, _ in rows],
                ["".join(trade.c) for trade in prints],
                ts_ns=parse_times([trade.t for trade in prints], where=f"alpaca {path} field t"),
                start_ns=start_ns,
                end_ns=end_ns,
                price=[trade.p for trade in prints],
                size=[trade.s for trade in prints],
                tape=letters([trade.z for trade in prints], TAPES),
                exchange=letters([trade.x for trade in prints], PARTICIPANTS),
                trade_id=[trade.i for trade in prints],
            )

    async def close(self) -> None:
        await self._data.close()
        await self._trading.close()

    async def _bars(
        self, symbols: Sequence[str], *, timeframe: str, start: str, end: str
    ) -> AsyncIterator[tuple[str, list[str], list[_Bar]]]:
        """Page by page: the place to name in an error, and symbols and bars side by side."""
        path = "/v2/stocks/bars"
        for first in range(0, len(symbols), _SYMBOLS_A_REQUEST):
            query: dict[str, str | int] = {
                "symbols": ",".join(symbols[first : first + _SYMBOLS_A_REQUEST]),
                "timeframe": timeframe,
                "start": start,
                "end": end,
                "adjustment": "raw",
                "feed": self._feed,
                "limit": _PAGE,
            }
            async for page in self._data.pages(path, _BarsPage, _next_token, **query):
                rows = [(name, bar) for name, bars in page.bars.items() if is_symbol(name) for bar in bars]
                yield f"alpaca {path} field t", [name for name, _ in rows], [bar for _, bar in rows]


def _next_token(page: _ActionsPage | _BarsPage | _TradesPage) -> Following | None:
    token = page.next_page_token
    return Following(token, {"page_token": token}) if token else None
