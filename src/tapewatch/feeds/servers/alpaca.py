"""A replay server that speaks Alpaca's stock stream, version 2: JSON, or msgpack if the upgrade asks for it."""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np
from websockets.http11 import Request

from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import I64, SECOND_NS, Batch, Kind
from tapewatch.feeds.servers.access import Credentials
from tapewatch.feeds.servers.connections import ReplayServer, Reply, Talk
from tapewatch.feeds.servers.faults import Faults, Payload
from tapewatch.feeds.servers.play import Beside
from tapewatch.feeds.servers.whole_tape import Rows
from tapewatch.nyse import trading_days

FEEDS = ("/v2/sip", "/v2/iex", "/v2/delayed_sip", "/v2/test", "/v1beta1/overnight", "/v1beta1/boats")
"""Paths that are served; the tape is the same on each."""
CHANNELS = ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds", "imbalances")
_LISTED = ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds")
_COUNTED = ("trades", "quotes")
"""Channels whose symbols count towards the limit."""
_AUTH_WITHIN_S = 10.0
_ERRORS = {
    400: "invalid syntax",
    401: "not authenticated",
    402: "auth failed",
    403: "already authenticated",
    404: "auth timeout",
    405: "symbol limit exceeded",
    406: "connection limit exceeded",
    407: "slow client",
    409: "insufficient subscription",
}
_FAREWELLS = {"connection_limit": 406, "slow_consumer": 407, "auth_timeout": 404}
_EXTENSION = -1
"""msgpack's own timestamp."""
_STRANGE: Sequence[Any] = (
    [{"T": "t", "S": 7, "p": "much", "s": None, "t": True}],
    [{"T": "t", "S": "A\nB", "i": -1, "x": "", "p": -1.5, "s": 2**62, "c": "@", "z": "", "t": 0}],
    {"T": "t", "S": "AAPL"},
    [[], None, 5],
    [{"T": "zz", "S": "AAPL"}],
)
_Message = dict[str, Any]


class AlpacaServer(ReplayServer):
    """Trades with cancels and corrections, minute bars and their updates, as on ``/v2/sip``. The other channels can be
    subscribed to and stay silent: a tape file has nothing for them.
    """

    path = "/v2/sip"
    over_the_limit: ClassVar[Literal["newcomer", "oldest"]] = "newcomer"

    def _talk(self, request: Request) -> Talk:
        return AlpacaTalk(dict(request.headers.raw_items()), self.credentials, self.faults)

    def _serves(self, path: str) -> bool:
        return path in FEEDS

    def _bar_messages(self) -> Callable[[Batch], Sequence[Beside]]:
        builder = BarBuilder(days=trading_days(), profile=load_profile("alpaca"))

        def make(batch: Batch) -> Sequence[Beside]:
            bars = builder.step(batch)
            columns = (bars.symbol, bars.ts_ns, bars.open, bars.high, bars.low, bars.close, bars.volume)
            more = (bars.trade_count, bars.vwap, bars.revision)
            messages: list[Beside] = []
            for at, ts_ns, o, h, low, c, v, n, vw, revision in zip(
                *(column.tolist() for column in (*columns, *more)), strict=True
            ):
                if np.isnan(vw):
                    continue
                kind, channel = ("u", "updatedBars") if revision else ("b", "bars")
                symbol = bars.symbols[at]
                fields = {"o": o, "h": h, "l": low, "c": c, "v": _plain(v), "t": ts_ns, "n": n, "vw": vw}
                messages.append((channel, symbol, {"T": kind, "S": symbol, **fields}))
            return messages

        return make


class AlpacaTalk(Talk):
    """Answers as the provider does: errors leave the connection open, an acknowledgement is the whole state."""

    def __init__(self, headers: Mapping[str, str], credentials: Credentials, faults: Faults) -> None:
        self._headers = {name.lower(): value for name, value in headers.items()}
        self._packed = self._headers.get("content-type", "") == "application/msgpack"
        self._credentials, self._faults = credentials, faults
        self._channels: dict[str, set[str]] = {}
        self.hello_within_s = _AUTH_WITHIN_S
        self.strange = [self._pack(message) for message in _STRANGE]

    # -- what is said -------------------------------------------------------------------------------------------------

    def opening(self) -> Reply:
        said = [self._pack([{"T": "success", "msg": "connected"}])]
        brought = _from_headers(self._headers)
        return Reply(frames=said if brought is None else [*said, self._authenticate(*brought)])

    def farewell(self, reason: str) -> Payload:
        return self._error(_FAREWELLS[reason])

    def hear(self, message: Payload) -> Reply:
        return Reply(frames=[self._hear(message)])

    def _hear(self, message: Payload) -> Payload:
        try:
            said = self._unpack(message)
        except (msgspec.DecodeError, UnicodeDecodeError):
            return self._error(400)
        if not isinstance(said, dict):
            return self._error(400)
        match said.get("action"):
            case "auth":
                if self.authenticated:
                    return self._error(403)
                key, secret = said.get("key"), said.get("secret")
                if not isinstance(key, str) or not isinstance(secret, str):
                    return self._error(400)
                return self._authenticate(key, secret)
            case "subscribe" | "unsubscribe" if not self.authenticated:
                return self._error(401)
            case "subscribe" | "unsubscribe" as action:
                return self._subscribe(said, remove=action == "unsubscribe")
            case _:
                return self._error(400 if self.authenticated else 401)

    def _authenticate(self, key: str, secret: str) -> Payload:
        self.hello_within_s = None
        if key in {"oauth", "access_token"}:
            accepted = self._credentials.accept(self._credentials.key, secret)
        else:
            accepted = self._credentials.accept(key, secret)
        if not accepted:
            return self._error(402)
        if self._faults.no_plan:
            return self._error(409)
        self.authenticated = True
        return self._pack([{"T": "success", "msg": "authenticated"}])

    def _subscribe(self, said: _Message, *, remove: bool) -> Payload:
        asked = {name: symbols for name, symbols in said.items() if name != "action"}
        if not asked or any(name not in CHANNELS or not _is_list_of_symbols(asked[name]) for name in asked):
            return self._error(400)
        channels = {name: set(symbols) for name, symbols in self._channels.items()}
        for name, symbols in asked.items():
            held = channels.setdefault(name, set())
            held.difference_update(symbols) if remove else held.update(symbols)
        limit = self._faults.max_symbols
        counted = [channels.get(name, set()) for name in _COUNTED]
        if limit is not None and not remove and any(len(held) > limit or "*" in held for held in counted):
            return self._error(405)
        self._channels = {name: held for name, held in channels.items() if held}
        self.forget()
        return self._pack([{"T": "subscription", **self._state()}])

    def _state(self) -> dict[str, list[str]]:
        if not self._channels:
            return {}
        state = {name: sorted(self._channels.get(name, ())) for name in _LISTED}
        if "imbalances" in self._channels:
            state["imbalances"] = sorted(self._channels["imbalances"])
        return {**state, "corrections": state["trades"], "cancelErrors": state["trades"]}

    def _error(self, code: int) -> Payload:
        return self._pack([{"T": "error", "code": code, "msg": _ERRORS[code]}])

    # -- what is sent -------------------------------------------------------------------------------------------------

    @property
    def subscribed(self) -> bool:
        return bool(self._channels)

    def wants(self, channel: str, symbol: str) -> bool:
        held = self._channels.get(channel, ())
        return symbol in held or "*" in held

    def encode(self, rows: Rows, index: I64) -> Payload:
        batch = rows.batch
        names, conditions = batch.symbols, batch.conditions
        columns = (
            batch.kind[index].tolist(),
            [names[code] for code in batch.symbol[index].tolist()],
            batch.trade_id[index].tolist(),
            [_letter(code) for code in batch.exchange[index].tolist()],
            batch.price[index].tolist(),
            [_plain(size) for size in batch.size[index].tolist()],
            [conditions[code] for code in batch.condition[index].tolist()],
            [_letter(code) for code in batch.tape[index].tolist()],
            self._times(batch.ts_ns[index]),
        )
        messages: list[_Message] = []
        for place, (kind, symbol, i, x, p, s, c, z, t) in zip(
            rows.places[index].tolist(), zip(*columns, strict=True), strict=True
        ):
            if kind == Kind.TRADE:
                messages.append({"T": "t", "S": symbol, "i": i, "x": x, "p": p, "s": s, "c": list(c), "z": z, "t": t})
            elif kind == Kind.CANCEL:
                messages.append({"T": "x", "S": symbol, "i": i, "x": x, "p": p, "s": s, "a": c, "z": z, "t": t})
            else:
                was = rows.originals[place]
                original = {"oi": i, "op": was.price, "os": _plain(was.size), "oc": list(was.condition)}
                corrected = {"ci": i, "cp": p, "cs": s, "cc": list(c)}
                messages.append({"T": "c", "S": symbol, "x": x, **original, **corrected, "z": z, "t": t})
        return self._pack(messages)

    def encode_beside(self, messages: Sequence[Beside]) -> Payload:
        times = self._times(np.array([message["t"] for _, _, message in messages], np.int64))
        return self._pack([{**message, "t": t} for (_, _, message), t in zip(messages, times, strict=True)])

    def _times(self, ts_ns: I64) -> list[Any]:
        """RFC 3339 without trailing zeros, or msgpack's timestamps in the shorter of their forms."""
        if not self._packed:
            texts = np.datetime_as_string(ts_ns.astype("datetime64[ns]")).tolist()
            return [f"{text.rstrip('0').rstrip('.')}Z" for text in texts]
        seconds, fraction = np.divmod(ts_ns, SECOND_NS)
        packed = ((fraction.astype(np.uint64) << np.uint64(34)) | seconds.astype(np.uint64)).astype(">u8").tobytes()
        return [
            msgspec.msgpack.Ext(
                _EXTENSION, packed[at : at + 8] if packed[at : at + 4] != bytes(4) else packed[at + 4 : at + 8]
            )
            for at in range(0, len(packed), 8)
        ]

    def _pack(self, message: Any) -> Payload:
        return msgspec.msgpack.encode(message) if self._packed else msgspec.json.encode(message).decode()

    def _unpack(self, message: Payload) -> Any:
        content = message.encode() if isinstance(message, str) else message
        return msgspec.msgpack.decode(content) if self._packed else msgspec.json.decode(content)


def _from_headers(headers: Mapping[str, str]) -> tuple[str, str] | None:
    """Key and secret that came with the upgrade; `headers` by lower-case name."""
    if "apca-api-key-id" in headers:
        return headers["apca-api-key-id"], headers.get("apca-api-secret-key", "")
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme == "Bearer":
        return "oauth", value
    if scheme == "Basic":
        try:
            key, _, secret = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return "", ""
        return key, secret
    return None


def _is_list_of_symbols(symbols: Any) -> bool:
    return isinstance(symbols, list) and bool(symbols) and all(isinstance(symbol, str) and symbol for symbol in symbols)


def _letter(code: int) -> str:
    return chr(code) if code else ""


def _plain(size: float) -> float:
    """A whole number of shares as an integer."""
    return int(size) if size.is_integer() else size
