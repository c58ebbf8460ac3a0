"""A replay server that speaks Massive's (Polygon.io's) stocks cluster: JSON text."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from websockets.http11 import Request

from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import REACH_MINUTES, BarBuilder
from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import I64, MINUTE_NS, Bars, Batch, Bool, Kind
from tapewatch.feeds.servers.access import Credentials
from tapewatch.feeds.servers.connections import Reason, ReplayServer, Reply, Talk
from tapewatch.feeds.servers.faults import Faults, Payload
from tapewatch.feeds.servers.play import Beside
from tapewatch.feeds.servers.whole_tape import Rows
from tapewatch.nyse import trading_days

_MS_NS = 1_000_000
_CHANNELS = {"T": "trades", "AM": "bars", "A": "seconds", "Q": "quotes", "LULD": "bands", "NOI": "imbalances"}
"""What is confirmed, by the word of the subscription; only the first two have something to say."""
_EXCHANGES = {
    **dict(zip("ABCDIJKMNP", (1, 2, 3, 4, 6, 7, 8, 9, 10, 11), strict=True)),
    **dict(zip("TQSLVWXYZHU", (12, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21), strict=True)),
}
_TAPES = {"A": 1, "B": 2, "C": 3}
_CONDITIONS = {
    "A": 1,
    "W": 2,
    "E": 3,
    "B": 4,
    "G": 5,
    "C": 7,
    "6": 8,
    "X": 9,
    "4": 10,
    "D": 11,
    "T": 12,
    "U": 13,
    "F": 14,
    "M": 15,
    "Q": 16,
    "N": 20,
    "H": 21,
    "P": 22,
    "K": 23,
    "O": 25,
    "1": 27,
    "5": 28,
    "R": 29,
    "L": 30,
    "Z": 33,
    "S": 34,
    "Y": 36,
    "I": 37,
    "9": 38,
    "V": 52,
    "7": 53,
}
"""Ids by the letters of tape C; the regular sale, ``@`` or a space, is not listed in a trade. On tapes A and B the
letter B is an average price, which tape C calls W."""
_FAREWELLS = {
    "connection_limit": (
        "max_connections",
        "Maximum number of websocket connections exceeded. You have reached the connection limit for your account.",
    ),
    "slow_consumer": ("slow_consumer", "disconnecting slow consumer"),
    "auth_timeout": ("auth_timeout", "authentication timed out"),
}
_STRANGE: Sequence[Any] = (
    [{"ev": "T", "sym": 7, "p": "much", "s": None, "t": True}],
    [{"ev": "T", "sym": "A\nB", "x": -1, "i": 5, "z": 9, "p": -1.5, "s": 2**62, "c": "@", "t": 0}],
    {"ev": "T", "sym": "AAPL"},
    [[], None, 5],
    [{"ev": "ZZ", "sym": "AAPL"}],
)
_Message = dict[str, Any]


class MassiveServer(ReplayServer):
    """Trades and minute bars, as on ``/stocks``. Quotes, bands and second bars can be subscribed to and stay silent: a
    tape file has nothing for them. Cancels and corrections are not part of this stream.

    The sequence number of a trade is its place in the tape, so it grows per ticker, with gaps.
    """

    path = "/stocks"
    over_the_limit: ClassVar[Literal["newcomer", "oldest"]] = "oldest"

    def _talk(self, request: Request) -> Talk:
        del request
        return MassiveTalk(self.credentials, self.faults)

    def _serves(self, path: str) -> bool:
        return path == self.path

    def _bar_messages(self) -> Callable[[Batch], Sequence[Beside]]:
        days = trading_days()
        builder, totals = BarBuilder(days=days, profile=load_profile("massive")), _DayTotals(days)

        def make(batch: Batch) -> Sequence[Beside]:
            return totals.messages(builder.step(batch))

        return make


class _DayTotals:
    """What a minute bar tells of its day: volume, VWAP and the official open."""

    def __init__(self, days: TradingDays) -> None:
        self._days = days
        self._day = -1
        self._totals: dict[str, _Figures] = {}
        self._opens: dict[str, float] = {}
        self._booked: dict[int, dict[str, _Figures]] = {}
        """Start of a minute -> what its bars brought into the totals, as far back as bars can be revised."""

    def messages(self, bars: Bars) -> Sequence[Beside]:
        columns = (bars.symbol, bars.ts_ns, bars.open, bars.high, bars.low, bars.close, bars.volume, bars.vwap)
        more = (bars.vwap_volume, bars.trade_count)
        messages: list[Beside] = []
        for at, ts_ns, o, h, low, c, v, vw, weight, count in zip(
            *(column.tolist() for column in (*columns, *more)), strict=True
        ):
            if not weight:
                continue
            symbol = bars.symbols[at]
            volume, value, shares = self._book(symbol, ts_ns, (v, vw * weight, weight), opened=o)
            ends = {"s": ts_ns // _MS_NS, "e": (ts_ns + MINUTE_NS) // _MS_NS}
            prices = {"o": o, "c": c, "h": h, "l": low, "vw": round(vw, 4), "a": round(value / shares, 4)}
            volumes = {"v": int(v), "av": int(volume), "z": int(v / count), "dv": _decimal(v), "dav": _decimal(volume)}
            official = {"op": self._opens[symbol]} if symbol in self._opens else {}
            messages.append(("bars", symbol, {"ev": "AM", "sym": symbol, **volumes, **official, **prices, **ends}))
        return messages

    def _book(self, symbol: str, ts_ns: int, brought: "_Figures", *, opened: float) -> "_Figures":
        """The day's figures with this bar in them, in place of what it was before."""
        day = int(np.searchsorted(self._days.pre_ns, ts_ns, side="right")) - 1
        if day > self._day:
            self._day, self._totals, self._opens = day, {}, {}
        if ts_ns not in self._booked:
            reach_ns = ts_ns - REACH_MINUTES * MINUTE_NS
            self._booked = {minute: figures for minute, figures in self._booked.items() if minute >= reach_ns}
        minute = self._booked.setdefault(ts_ns, {})
        before, minute[symbol] = minute.get(symbol, _NO_FIGURES), brought
        total = self._totals.get(symbol, _NO_FIGURES)
        volume, value, shares = (t - b + n for t, b, n in zip(total, before, brought, strict=True))
        self._totals[symbol] = volume, value, shares
        if self._days.open_ns[day] <= ts_ns < self._days.close_ns[day]:
            self._opens.setdefault(symbol, opened)
        return self._totals[symbol]


_Figures = tuple[float, float, float]
"""Volume; shares times price behind the VWAP; these shares."""
_NO_FIGURES: _Figures = (0.0, 0.0, 0.0)


class MassiveTalk(Talk):
    """Answers as the provider does: one status a subscription, none for what is held already or unheard of."""

    def __init__(self, credentials: Credentials, faults: Faults) -> None:
        self._credentials, self._faults = credentials, faults
        self._held: set[str] = set()
        """Such as ``T.AAPL`` and ``AM.*``."""
        self._by_channel: dict[str, set[str]] = {}
        self.strange = [_pack(message) for message in _STRANGE]

    # -- what is said -------------------------------------------------------------------------------------------------

    def opening(self) -> Reply:
        return Reply(frames=[_pack([_status("connected", "Connected Successfully")])])

    def farewell(self, reason: Reason) -> Payload:
        return _pack([_status(*_FAREWELLS[reason])])

    def hear(self, message: Payload) -> Reply:
        try:
            said = msgspec.json.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return _error("malformed request")
        params = said.get("params") if isinstance(said, dict) else None
        if not isinstance(said, dict) or not isinstance(params, str):
            return _error("malformed request")
        match said.get("action"):
            case "auth" if self._credentials.accept(params):
                self.authenticated = True
                return Reply(frames=[_pack([_status("auth_success", "authenticated")])])
            case "auth":
                return Reply(frames=[_pack([_status("auth_failed", "authentication failed")])], ended="auth_failed")
            case "subscribe" | "unsubscribe" if not self.authenticated or self._faults.no_plan:
                return _error("not authorized")
            case "subscribe":
                return self._subscribe(params.split(","))
            case "unsubscribe":
                return self._unsubscribe(params.split(","))
            case _:
                return _error("unknown action")

    def _subscribe(self, names: Sequence[str]) -> Reply:
        fresh = [name for name in dict.fromkeys(names) if name not in self._held and _is_subscription(name)]
        limit = self._faults.max_symbols
        if limit is not None and len({name.partition(".")[2] for name in (*self._held, *fresh)} - {"*"}) > limit:
            return _error("not authorized")
        return self._hold(self._held.union(fresh), "subscribed to", fresh)

    def _unsubscribe(self, names: Sequence[str]) -> Reply:
        gone = [name for name in dict.fromkeys(names) if name in self._held]
        return self._hold(self._held.difference(gone), "unsubscribed to", gone)

    def _hold(self, held: set[str], verb: str, names: Sequence[str]) -> Reply:
        self._held, self._by_channel = held, {}
        for name in held:
            word, _, symbol = name.partition(".")
            self._by_channel.setdefault(_CHANNELS[word], set()).add(symbol)
        self.forget()
        return Reply(frames=[_pack([_status("success", f"{verb}: {name}") for name in names])] if names else [])

    # -- what is sent -------------------------------------------------------------------------------------------------

    @property
    def subscribed(self) -> bool:
        return bool(self._held)

    def wants(self, channel: str, symbol: str) -> bool:
        held = self._by_channel.get(channel, ())
        return symbol in held or "*" in held

    def wanted(self, batch: Batch) -> Bool:
        trades: Bool = super().wanted(batch) & (batch.kind == Kind.TRADE)
        return trades

    def encode(self, rows: Rows, index: I64) -> Payload:
        batch = rows.batch
        names = batch.symbols
        conditions = [_ids_of(letters) for letters in batch.conditions]
        bunched = [_ids_of(letters.replace("B", "W")) for letters in batch.conditions]
        tapes = [_TAPES.get(chr(code), 0) for code in batch.tape[index].tolist()]
        messages: list[_Message] = []
        for symbol, i, x, p, s, condition, z, t, q in zip(
            batch.symbol[index].tolist(),
            batch.trade_id[index].tolist(),
            batch.exchange[index].tolist(),
            batch.price[index].tolist(),
            batch.size[index].tolist(),
            batch.condition[index].tolist(),
            tapes,
            (batch.ts_ns[index] // _MS_NS).tolist(),
            (rows.places[index] + 1).tolist(),
            strict=True,
        ):
            message = {"ev": "T", "sym": names[symbol], "x": _EXCHANGES.get(chr(x), 0), "i": str(i), "z": z, "p": p}
            message |= {"s": int(s), "ds": _decimal(s), "t": t, "q": q}
            ids = (conditions if z == _TAPES["C"] else bunched)[condition]
            if ids:
                message["c"] = ids
            messages.append(message)
        return _pack(messages)

    def encode_beside(self, messages: Sequence[Beside]) -> Payload:
        return _pack([message for _, _, message in messages])


def _ids_of(letters: str) -> list[int]:
    """Ids of a trade's sale conditions as on tape C; a letter that has none is left out."""
    return [_CONDITIONS[letter] for letter in letters if letter in _CONDITIONS]


def _is_subscription(name: str) -> bool:
    word, _, symbol = name.partition(".")
    return word in _CHANNELS and bool(symbol)


def _status(status: str, message: str) -> _Message:
    return {"ev": "status", "status": status, "message": message}


def _error(message: str) -> Reply:
    return Reply(frames=[_pack([_status("error", message)])])


def _pack(message: Any) -> str:
    return msgspec.json.encode(message).decode()


def _decimal(size: float) -> str:
    """Shares as a decimal number, without an exponent."""
    return str(int(size)) if size.is_integer() else np.format_float_positional(size, trim="-")
