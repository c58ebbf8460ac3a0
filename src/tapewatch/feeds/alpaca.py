"""Alpaca's stock stream, version 2: trades with their corrections and cancels, quotes, bars, halts and price bands.

The server speaks first; we authenticate and subscribe, and each of its acknowledgements is the full state of what we
have. Facts: Alpaca, "Real-time Stock Data". Sizes of quotes stay as they are sent.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa

from tapewatch.engine.columns import I64, SECOND_NS, Bars, Kind
from tapewatch.errors import ConfigError, FeedLoss, FeedLost, FeedRefused
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.frames import Encoding, FrameReader, Message, Run, before, controls
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.rows import MOST_SYMBOLS, PARTICIPANTS, TAPES, RowMaker, floats, letters, scaled, trade_ids
from tapewatch.feeds.session import Received

Channel: TypeAlias = Literal["trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds"]
CHANNELS: tuple[Channel, ...] = ("trades", "quotes", "bars", "updatedBars", "dailyBars", "statuses", "lulds")
FEEDS = {
    "sip": "v2/sip",
    "iex": "v2/iex",
    "delayed": "v2/delayed_sip",
    "overnight": "v1beta1/overnight",
    "boats": "v1beta1/boats",
    "test": "v2/test",
}
"""Our name of a feed -> its place on the server."""
_HOST = "wss://stream.data.alpaca.markets"
_SYMBOLS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class AlpacaSettings:
    """What to ask for and as whom. Trades bring their corrections and cancels by themselves."""

    key: str = field(repr=False)
    secret: str = field(repr=False)
    feed: str = "sip"
    symbols: tuple[str, ...] = ("*",)
    channels: tuple[Channel, ...] = ("trades", "bars", "updatedBars", "statuses", "lulds")
    encoding: Encoding = "msgpack"
    host: str = _HOST
    """Scheme and host, and a port where it is not the usual one."""
    most_symbols: int = MOST_SYMBOLS

    def __post_init__(self) -> None:
        if self.feed not in FEEDS:
            raise ConfigError(f"{self.feed!r} is not a feed of Alpaca; there are: {', '.join(FEEDS)}")
        if not self.channels or not set(self.channels) <= set(CHANNELS):
            raise ConfigError(f"Alpaca's channels are: {', '.join(CHANNELS)}; at least one must be asked for")
        if not self.symbols:
            raise ConfigError("no symbols are asked for; * asks for all")

    @property
    def url(self) -> str:
        return f"{self.host.rstrip('/')}/{FEEDS[self.feed]}"

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the request that opens the WebSocket; the server frames accordingly."""
        return {"Content-Type": f"application/{self.encoding}"}


# -- messages ----------------------------------------------------------------------------------------------------------


class _Letters(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Sale conditions: decodes and hashes faster than a list of texts."""

    a: str = ""
    b: str = ""
    c: str = ""
    d: str = ""
    e: str = ""
    f: str = ""


class _Trade(
    Message,
    tag_field="T",
    tag="t",
    kw_only=True,
    gc=False,
    rename={
        "trade_id": "i", "symbol": "S", "exchange": "x", "price": "p", "size": "s", "ts": "t", "condition": "c",
        "tape": "z",
    },
):  # fmt: skip
    trade_id: int
    symbol: str
    exchange: str = ""
    price: float
    size: float
    ts: msgspec.Raw
    condition: _Letters | None = None
    tape: str = ""


class _Correction(
    Message,
    tag_field="T",
    tag="c",
    kw_only=True,
    gc=False,
    rename={
        "symbol": "S", "exchange": "x", "trade_id": "oi", "price": "cp", "size": "cs", "condition": "cc", "tape": "z",
        "ts": "t",
    },
):  # fmt: skip
    unread: ClassVar = frozenset({"op", "os", "oc", "ci"})
    symbol: str
    exchange: str = ""
    trade_id: int
    price: float
    size: float
    condition: _Letters | None = None
    tape: str = ""
    ts: msgspec.Raw


class _Cancel(
    Message,
    tag_field="T",
    tag="x",
    kw_only=True,
    gc=False,
    rename={"symbol": "S", "trade_id": "i", "exchange": "x", "price": "p", "size": "s", "tape": "z", "ts": "t"},
):
    unread: ClassVar = frozenset({"a"})
    symbol: str
    trade_id: int
    exchange: str = ""
    price: float
    size: float
    tape: str = ""
    ts: msgspec.Raw


class _Quote(
    Message,
    tag_field="T",
    tag="q",
    kw_only=True,
    gc=False,
    rename={
        "symbol": "S", "ask_exchange": "ax", "ask_price": "ap", "ask_size": "as", "bid_exchange": "bx",
        "bid_price": "bp", "bid_size": "bs", "tape": "z", "ts": "t",
    },
):  # fmt: skip
    unread: ClassVar = frozenset({"c"})
    symbol: str
    ask_exchange: str = ""
    ask_price: float
    ask_size: float
    bid_exchange: str = ""
    bid_price: float
    bid_size: float
    tape: str = ""
    ts: msgspec.Raw


_BAR_NAMES = {
    "symbol": "S", "open": "o", "high": "h", "low": "l", "close": "c", "volume": "v", "vwap": "vw", "count": "n",
    "ts": "t",
}  # fmt: skip


class _Bar(Message, tag_field="T", tag="b", kw_only=True, gc=False, rename=_BAR_NAMES):
    symbol: str
    open: float
    high: float
    low: float
    close: float
    volume: float
    vwap: float = float("nan")
    count: float = float("nan")
    ts: msgspec.Raw


class _UpdatedBar(_Bar, tag_field="T", tag="u", kw_only=True, gc=False, rename=_BAR_NAMES):
    pass


class _DailyBar(Message, tag_field="T", tag="d", gc=False):
    unread: ClassVar = frozenset(_BAR_NAMES.values())


class _Imbalance(Message, tag_field="T", tag="i", gc=False):
    unread: ClassVar = frozenset({"S", "p", "z", "t"})


class _Band(
    Message,
    tag_field="T",
    tag="l",
    kw_only=True,
    gc=False,
    rename={"symbol": "S", "high": "u", "low": "d", "tape": "z", "ts": "t"},
):
    unread: ClassVar = frozenset({"i"})
    symbol: str
    high: float
    low: float
    tape: str = ""
    ts: msgspec.Raw


class _Status(
    Message,
    tag_field="T",
    tag="s",
    kw_only=True,
    gc=False,
    rename={"symbol": "S", "status": "sc", "reason": "rc", "tape": "z", "ts": "t"},
):
    unread: ClassVar = frozenset({"sm", "rm"})
    symbol: str
    status: str
    reason: str = ""
    tape: str = ""
    ts: msgspec.Raw


class _Success(Message, tag_field="T", tag="success", gc=False):
    control: ClassVar = True
    msg: str = ""


class _Error(Message, tag_field="T", tag="error", gc=False):
    control: ClassVar = True
    code: int = 0


class _Subscription(Message, tag_field="T", tag="subscription", rename="camel"):
    control: ClassVar = True
    trades: list[str] = msgspec.field(default_factory=list)
    quotes: list[str] = msgspec.field(default_factory=list)
    bars: list[str] = msgspec.field(default_factory=list)
    updated_bars: list[str] = msgspec.field(default_factory=list)
    daily_bars: list[str] = msgspec.field(default_factory=list)
    statuses: list[str] = msgspec.field(default_factory=list)
    lulds: list[str] = msgspec.field(default_factory=list)

    def covers(self, channel: Channel, symbols: Sequence[str]) -> bool:
        held = set(getattr(self, "".join(f"_{c.lower()}" if c.isupper() else c for c in channel)))
        return "*" in held or held.issuperset(symbols)


_MESSAGES: tuple[type[Message], ...] = (
    _Trade, _Quote, _Bar, _UpdatedBar, _DailyBar, _Correction, _Cancel, _Band, _Status, _Imbalance, _Success, _Error,
    _Subscription,
)  # fmt: skip

_HALTS = {
    **dict.fromkeys([("A", "2"), ("B", "2"), ("C", "H"), ("C", "P")], Kind.HALT),
    **dict.fromkeys([("A", "3"), ("B", "3"), ("C", "T")], Kind.RESUME),
}
"""Tape and status code -> what it says. CTA: 2 halt, 3 resume. UTP: H halt, P volatility pause, T trading resumes (Q,
quotes resume, is still a halt)."""

_REFUSED: Mapping[int, str] = {
    400: "Alpaca does not understand what was asked for (400)",
    401: "Alpaca says that this connection is not authenticated (401)",
    402: "Alpaca refuses the key or the secret (402)",
    405: "Alpaca's limit of symbols for this subscription is exceeded (405); ask for fewer symbols",
    408: "Alpaca has not enabled this stream for the account (408)",
    409: "Alpaca's subscription does not include this feed (409)",
    410: "Alpaca does not offer one of the channels on this feed (410)",
}
_LOST: Mapping[int, tuple[str, FeedLoss]] = {
    404: ("Alpaca waited too long for the authentication (404)", "network"),
    406: ("Alpaca's limit of connections is exceeded (406)", "connection_limit"),
    407: ("Alpaca says that we read too slowly (407)", "slow_consumer"),
    500: ("Alpaca has an internal error (500)", "network"),
}


# -- the conversation --------------------------------------------------------------------------------------------------


class AlpacaSession:
    def __init__(
        self, settings: AlpacaSettings, *, symbols: Dictionary, conditions: Dictionary, quarantine: Quarantine
    ) -> None:
        self.ready = False
        self.quarantine = quarantine
        quarantine.hide(settings.key, settings.secret)
        self._settings = settings
        self._notes: Counter[str] = Counter()
        self._reader = FrameReader(_MESSAGES, encoding=settings.encoding, quarantine=quarantine, notes=self._notes)
        self._rows = RowMaker(
            symbols=symbols,
            conditions=conditions,
            quarantine=quarantine,
            notes=self._notes,
            universe=None if "*" in settings.symbols else frozenset(settings.symbols),
            most_symbols=settings.most_symbols,
        )
        self._conditions = _Conditions(self._rows)
        self._times = _msgpack_times if settings.encoding == "msgpack" else _json_times
        self._bars: list[Bars] = []
        self._book: Mapping[type, Callable[[Run], None]] = {
            _Trade: self._trades,
            _Correction: self._corrections,
            _Cancel: self._cancels,
            _Quote: self._quotes,
            _Status: self._statuses,
            _Band: self._bands,
            _Bar: lambda run: self._vendor_bars(run, revision=0),
            _UpdatedBar: lambda run: self._vendor_bars(run, revision=1),
            _DailyBar: lambda run: self._note("daily_bar", run),
            _Imbalance: lambda run: self._note("imbalance", run),
        }

    def opening(self) -> Sequence[str | bytes]:
        return ()

    def receive(self, frames: Sequence[tuple[int, bytes]]) -> Received:
        found = self._reader.read(frames)
        replies: list[str | bytes] = []
        ended: FeedLost | FeedRefused | None = None
        for place, message in controls(found):
            ended = self._answer(message, replies)
            if ended is not None:
                found = before(found, place)
                break
        for kind, run in found.items():
            if kind in self._book and len(run):
                self._book[kind](run)
        bars, self._bars = self._bars, []
        notes = dict(self._notes)
        self._notes.clear()
        return Received(batch=self._rows.batch(), bars=bars, replies=replies, ended=ended, notes=notes)

    def _answer(self, message: Message, replies: list[str | bytes]) -> FeedLost | FeedRefused | None:
        match message:
            case _Success(msg="connected"):
                replies.append(self._say(action="auth", key=self._settings.key, secret=self._settings.secret))
            case _Success(msg="authenticated") | _Error(code=403):
                replies += self._requests()
            case _Subscription():
                wanted = self._settings
                self.ready = all(message.covers(channel, wanted.symbols) for channel in wanted.channels)
            case _Error(code=code) if code in _REFUSED:
                return FeedRefused(_REFUSED[code])
            case _Error(code=code):
                text, reason = _LOST.get(code, (f"Alpaca reports an error that is not known ({code})", "protocol"))
                return FeedLost(text, reason=reason)
        return None

    def _say(self, **message: Any) -> str | bytes:
        if self._settings.encoding == "msgpack":
            return msgspec.msgpack.encode(message)
        return msgspec.json.encode(message).decode()

    def _requests(self) -> list[str | bytes]:
        """The whole desired set, in pieces that no server finds too long; asking twice changes nothing."""
        symbols = ["*"] if "*" in self._settings.symbols else list(self._settings.symbols)
        pieces = [symbols[at : at + _SYMBOLS_AT_ONCE] for at in range(0, len(symbols), _SYMBOLS_AT_ONCE)]
        return [self._say(action="subscribe", **dict.fromkeys(self._settings.channels, piece)) for piece in pieces]

    # -- data ----------------------------------------------------------------------------------------------------------

    def _prints(self, run: Run, kind: Kind, *, conditions: bool) -> None:
        messages = run.messages
        self._rows.add(
            run,
            kind,
            symbol=[m.symbol for m in messages],
            ts_ns=self._times([m.ts for m in messages]),
            price=floats([m.price for m in messages]),
            size=floats([m.size for m in messages]),
            condition=self._conditions.encode([m.condition for m in messages]) if conditions else None,
            tape=letters([m.tape for m in messages], TAPES),
            exchange=letters([m.exchange for m in messages], PARTICIPANTS),
            trade_id=trade_ids([m.trade_id for m in messages]),
        )

    def _trades(self, run: Run) -> None:
        self._prints(run, Kind.TRADE, conditions=True)

    def _corrections(self, run: Run) -> None:
        self._prints(run, Kind.CORRECTION, conditions=True)

    def _cancels(self, run: Run) -> None:
        self._prints(run, Kind.CANCEL, conditions=False)

    def _quotes(self, run: Run) -> None:
        messages = run.messages
        self._rows.add(
            run,
            Kind.BID,
            Kind.ASK,
            symbol=[m.symbol for m in messages],
            ts_ns=self._times([m.ts for m in messages]),
            price=np.stack([floats([m.bid_price for m in messages]), floats([m.ask_price for m in messages])], axis=1),
            size=np.stack([floats([m.bid_size for m in messages]), floats([m.ask_size for m in messages])], axis=1),
            tape=letters([m.tape for m in messages], TAPES),
            exchange=np.stack(
                [
                    letters([m.bid_exchange for m in messages], PARTICIPANTS),
                    letters([m.ask_exchange for m in messages], PARTICIPANTS),
                ],
                axis=1,
            ),
        )

    def _bands(self, run: Run) -> None:
        messages = run.messages
        self._rows.add(
            run,
            Kind.BAND_LOW,
            Kind.BAND_HIGH,
            symbol=[m.symbol for m in messages],
            ts_ns=self._times([m.ts for m in messages]),
            price=np.stack([floats([m.low for m in messages]), floats([m.high for m in messages])], axis=1),
            tape=letters([m.tape for m in messages], TAPES),
        )

    def _statuses(self, run: Run) -> None:
        said = [_HALTS.get((m.tape, m.status)) for m in run.messages]
        self._note("status", run.only(np.array([kind is None for kind in said])))
        for kind in (Kind.HALT, Kind.RESUME):
            mine = run.only(np.array([found is kind for found in said]))
            if len(mine):
                self._rows.add(
                    mine,
                    kind,
                    symbol=[m.symbol for m in mine.messages],
                    ts_ns=self._times([m.ts for m in mine.messages]),
                    condition=np.array([self._rows.condition(m.reason) for m in mine.messages], np.int64),
                    tape=letters([m.tape for m in mine.messages], TAPES),
                )

    def _vendor_bars(self, run: Run, *, revision: int) -> None:
        messages = run.messages
        bars = self._rows.bars(
            run,
            symbol=[m.symbol for m in messages],
            ts_ns=self._times([m.ts for m in messages]),
            revision=revision,
            open=floats([m.open for m in messages]),
            high=floats([m.high for m in messages]),
            low=floats([m.low for m in messages]),
            close=floats([m.close for m in messages]),
            volume=floats([m.volume for m in messages]),
            vwap=floats([m.vwap for m in messages]),
            trade_count=floats([m.count for m in messages]),
        )
        if len(bars):
            self._bars.append(bars)

    def _note(self, what: str, run: Run) -> None:
        if len(run):
            self._notes[what] += len(run)


class _Conditions:
    """Codes of sale conditions: each distinct one is put together once."""

    def __init__(self, rows: RowMaker) -> None:
        self._rows = rows
        self._codes: dict[_Letters | None, int] = {}

    def encode(self, conditions: list[_Letters | None]) -> I64:
        """-1 for what can be none."""
        try:
            return np.fromiter(map(self._codes.__getitem__, conditions), np.int64, len(conditions))
        except KeyError:
            for condition in set(conditions) - self._codes.keys():
                texts = () if condition is None else msgspec.structs.astuple(condition)
                code = self._rows.condition("".join(texts)) if all(len(text) <= 1 for text in texts) else -1
                if code >= 0:
                    self._codes[condition] = code
            return np.array([self._codes.get(condition, -1) for condition in conditions], np.int64)


# -- times -------------------------------------------------------------------------------------------------------------

_FIXED_EXT_8 = 0xD7FF
"""Eight bytes of extension type -1: the timestamp that has nanoseconds."""
_EXT = msgspec.msgpack.Decoder(msgspec.msgpack.Ext)
_SECONDS_BITS = 34


def _msgpack_times(raws: list[msgspec.Raw]) -> I64:
    """Timestamps of MessagePack as nanoseconds; -1 for what is none."""
    joined = b"".join(raws)
    if len(joined) == 10 * len(raws):
        both = np.frombuffer(joined, [("head", ">u2"), ("value", ">u8")])
        if np.all(both["head"] == _FIXED_EXT_8):
            value = both["value"].astype(np.uint64)
            return _instants(
                (value & np.uint64(2**_SECONDS_BITS - 1)).astype(np.int64), value >> np.uint64(_SECONDS_BITS)
            )
    parts = np.array([_timestamp(bytes(raw)) for raw in raws], np.int64).reshape(-1, 2)
    return _instants(parts[:, 0], parts[:, 1].astype(np.uint64))


def _instants(seconds: I64, nanoseconds: Any) -> I64:
    whole = scaled(seconds, SECOND_NS)
    return np.where((whole > 0) & (nanoseconds < SECOND_NS), whole + nanoseconds.astype(np.int64), -1)


def _timestamp(raw: bytes) -> tuple[int, int]:
    """Seconds and nanoseconds; (-1, 0) for what is none."""
    try:
        ext = _EXT.decode(raw)
    except (msgspec.MsgspecError, ValueError):
        return -1, 0
    data = bytes(ext.data)
    value = int.from_bytes(data)
    match ext.code, len(data):
        case -1, 4:
            return value, 0
        case -1, 8:
            return value & (2**_SECONDS_BITS - 1), value >> _SECONDS_BITS
        case -1, 12:
            return min(value & (2**64 - 1), 2**63 - 1), value >> 64
    return -1, 0


def _json_times(raws: list[msgspec.Raw]) -> I64:
    """RFC 3339 as nanoseconds; -1 for what is none."""
    texts = b"".join(raws)[1:-1].split(b'""')
    if len(texts) == len(raws):
        try:
            return _rfc3339(texts)
        except ValueError:
            pass
    return np.array([_one_rfc3339(bytes(raw)) for raw in raws], np.int64)


def _rfc3339(texts: list[bytes]) -> I64:
    column = pa.array(texts, pa.string()).cast(pa.timestamp("ns", "UTC")).cast(pa.int64())
    return np.asarray(column.to_numpy(), np.int64)


def _one_rfc3339(raw: bytes) -> int:
    try:
        return int(_rfc3339([raw[1:-1]])[0]) if raw[:1] == b'"' else -1
    except ValueError:
        return -1
