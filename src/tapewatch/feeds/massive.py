"""Massive's stock stream (Polygon.io's before): trades, quotes, bars of a second and a minute, price bands with their
halts.

The server speaks first; we authenticate and subscribe, and it confirms each subscription by itself, or not at all: what
is held already and what it does not publish stay without an answer. So a channel counts as held with its confirmation
or its first message. Facts: Massive, "WebSocket: Stocks". Sizes of quotes stay as they are sent.
"""

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import ClassVar, Literal, TypeAlias

import msgspec
import numpy as np

from tapewatch.engine.columns import F64, I64, MINUTE_NS, U8, Bars, Kind
from tapewatch.engine.conditions import TAPE_CLASS, TAPES
from tapewatch.errors import ConfigError, FeedLost, FeedRefused
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.frames import FrameReader, Message, Run, before, controls
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.rows import MOST_SYMBOLS, RowMaker, decimals, floats, integers, scaled, small, trade_ids
from tapewatch.feeds.session import Received

Channel: TypeAlias = Literal["T", "Q", "A", "AM", "LULD"]
CHANNELS: tuple[Channel, ...] = ("T", "Q", "A", "AM", "LULD")
_MS_NS, _US_NS = 1_000_000, 1_000
_SUBSCRIPTIONS_AT_ONCE = 1_000
_UNKNOWN_LETTER = "?"
_MOST_LISTS = 1_024
"""Distinct lists of condition ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MassiveSettings:
    """What to ask for and as whom."""

    key: str = field(repr=False)
    url: str = "wss://socket.massive.com/stocks"
    """Real time; ``wss://delayed.massive.com/stocks`` is 15 minutes late. The hosts of polygon.io say the same."""
    symbols: tuple[str, ...] = ("*",)
    channels: tuple[Channel, ...] = ("T", "AM", "LULD")
    most_symbols: int = MOST_SYMBOLS

    def __post_init__(self) -> None:
        if not self.channels or not set(self.channels) <= set(CHANNELS):
            raise ConfigError(f"Massive's channels are: {', '.join(CHANNELS)}; at least one must be asked for")
        if not self.symbols:
            raise ConfigError("no symbols are asked for; * asks for all")

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the request that opens the WebSocket: none of ours."""
        return {}

    @property
    def subscriptions(self) -> tuple[str, ...]:
        """The desired set, such as ``T.*``."""
        symbols = ("*",) if "*" in self.symbols else self.symbols
        return tuple(f"{channel}.{symbol}" for channel in self.channels for symbol in symbols)


# -- messages ----------------------------------------------------------------------------------------------------------


class _Ids(msgspec.Struct, array_like=True, frozen=True, gc=False, forbid_unknown_fields=True):
    """Sale conditions: decodes and hashes faster than a list of numbers."""

    a: int = -1
    b: int = -1
    c: int = -1
    d: int = -1
    e: int = -1
    f: int = -1


_NO_IDS = _Ids()


class _Trade(
    Message,
    tag_field="ev",
    tag="T",
    kw_only=True,
    gc=False,
    rename={
        "symbol": "sym", "exchange": "x", "trade_id": "i", "tape": "z", "price": "p", "size": "s", "condition": "c",
        "ts": "t", "exact_size": "ds",
    },
):  # fmt: skip
    unread: ClassVar = frozenset({"q", "trfi", "trft"})
    symbol: str
    exchange: int = 0
    trade_id: str | int = ""
    tape: int = 0
    price: float
    size: float
    condition: _Ids = _NO_IDS
    ts: int
    exact_size: str = ""


class _Quote(
    Message,
    tag_field="ev",
    tag="Q",
    kw_only=True,
    gc=False,
    rename={
        "symbol": "sym", "bid_exchange": "bx", "bid_price": "bp", "bid_size": "bs", "ask_exchange": "ax",
        "ask_price": "ap", "ask_size": "as", "tape": "z", "ts": "t",
    },
):  # fmt: skip
    unread: ClassVar = frozenset({"c", "i", "q"})
    symbol: str
    bid_exchange: int = 0
    bid_price: float = 0.0
    bid_size: float = 0.0
    ask_exchange: int = 0
    ask_price: float = 0.0
    ask_size: float = 0.0
    ts: int
    tape: int = 0


class _Minute(
    Message,
    tag_field="ev",
    tag="AM",
    kw_only=True,
    gc=False,
    rename={
        "symbol": "sym", "volume": "v", "exact_volume": "dv", "vwap": "vw", "open": "o", "close": "c", "high": "h",
        "low": "l", "ts": "s",
    },
):  # fmt: skip
    unread: ClassVar = frozenset({"av", "op", "a", "z", "e", "otc", "dav"})
    symbol: str
    volume: float
    exact_volume: str = ""
    vwap: float = float("nan")
    open: float
    close: float
    high: float
    low: float
    ts: int


class _Second(Message, tag_field="ev", tag="A", gc=False):
    unread: ClassVar = frozenset(
        {"sym", "v", "av", "op", "vw", "o", "c", "h", "l", "a", "z", "s", "e", "otc", "dv", "dav"}
    )


class _Band(
    Message,
    tag_field="ev",
    tag="LULD",
    kw_only=True,
    gc=False,
    rename={"symbol": "T", "high": "h", "low": "l", "indicators": "i", "tape": "z", "ts": "t"},
):
    unread: ClassVar = frozenset({"q"})
    symbol: str
    high: float = 0.0
    low: float = 0.0
    indicators: list[int] = msgspec.field(default_factory=list)
    tape: int = 0
    ts: int


class _Imbalance(Message, tag_field="ev", tag="NOI", gc=False):
    unread: ClassVar = frozenset({"T", "t", "at", "a", "i", "x", "o", "p", "b"})


class _FairValue(Message, tag_field="ev", tag="FMV", gc=False):
    unread: ClassVar = frozenset({"fmv", "val", "sym", "t"})


class _LaunchpadValue(Message, tag_field="ev", tag="LV", gc=False):
    unread: ClassVar = frozenset({"fmv", "val", "sym", "t"})


class _Status(Message, tag_field="ev", tag="status", gc=False):
    control: ClassVar = True
    status: str = ""
    message: str = ""


_MESSAGES: tuple[type[Message], ...] = (
    _Trade, _Quote, _Minute, _Second, _Band, _Imbalance, _FairValue, _LaunchpadValue, _Status,
)  # fmt: skip
_CHANNEL_OF: Mapping[type, Channel] = {_Trade: "T", _Quote: "Q", _Minute: "AM", _Second: "A", _Band: "LULD"}
_HALT, _RESUME = 17, 18
"""Indicators of a price band's message; Massive sends these for listings of Nasdaq only."""
_SUBSCRIBED = re.compile(r"subscribed to: *(.+)", re.IGNORECASE)


# -- the conversation --------------------------------------------------------------------------------------------------


class MassiveSession:
    """Ready when every subscription to trades is confirmed, or a trade came; without trades among the channels, when
    the same holds of all of them.
    """

    def __init__(
        self, settings: MassiveSettings, *, symbols: Dictionary, conditions: Dictionary, quarantine: Quarantine
    ) -> None:
        self.ready = False
        self.quarantine = quarantine
        quarantine.hide(settings.key)
        self._settings = settings
        self._authenticated = False
        self._awaited = {s for s in settings.subscriptions if "T" not in settings.channels or s.startswith("T.")}
        self._notes: Counter[str] = Counter()
        self._reader = FrameReader(_MESSAGES, encoding="json", quarantine=quarantine, notes=self._notes)
        self._rows = RowMaker(
            symbols=symbols,
            conditions=conditions,
            quarantine=quarantine,
            notes=self._notes,
            universe=None if "*" in settings.symbols else frozenset(settings.symbols),
            most_symbols=settings.most_symbols,
        )
        self._conditions = _Conditions(self._rows, quarantine)
        self._bars: list[Bars] = []
        self._bar_ns: dict[str, int] = {}
        """Symbol -> the start of its newest minute bar so far."""
        self._book: Mapping[type, Callable[[Run], None]] = {
            _Trade: self._trades,
            _Quote: self._quotes,
            _Minute: self._minutes,
            _Band: self._bands,
            _Second: lambda run: self._note("second_bar", run),
            _Imbalance: lambda run: self._note("imbalance", run),
            _FairValue: lambda run: self._note("fair_value", run),
            _LaunchpadValue: lambda run: self._note("fair_value", run),
        }

    def opening(self) -> Sequence[str | bytes]:
        return ()

    def receive(self, frames: Sequence[tuple[int, bytes]]) -> Received:
        found = self._reader.read(frames)
        replies: list[str | bytes] = []
        ended: FeedLost | FeedRefused | None = None
        for place, message in controls(found):
            if isinstance(message, _Status):
                ended = self._answer(message, replies)
            if ended is not None:
                found = before(found, place)
                break
        for kind, run in found.items():
            if kind in self._book and len(run):
                self._book[kind](run)
                self._prove(_CHANNEL_OF.get(kind))
        self.ready = self._authenticated and not self._awaited
        bars, self._bars = self._bars, []
        notes = dict(self._notes)
        self._notes.clear()
        return Received(batch=self._rows.batch(), bars=bars, replies=replies, ended=ended, notes=notes)

    def _answer(self, told: _Status, replies: list[str | bytes]) -> FeedLost | FeedRefused | None:
        match told.status:
            case "connected":
                replies.append(_say("auth", self._settings.key))
            case "auth_success":
                self._authenticated = True
                wanted = self._settings.subscriptions
                replies += [
                    _say("subscribe", ",".join(wanted[at : at + _SUBSCRIPTIONS_AT_ONCE]))
                    for at in range(0, len(wanted), _SUBSCRIPTIONS_AT_ONCE)
                ]
            case "success":
                confirmed = _SUBSCRIBED.fullmatch(told.message.strip())
                if confirmed is not None:
                    self._awaited.difference_update(name.strip() for name in confirmed[1].split(","))
            case "auth_failed":
                return FeedRefused("Massive refuses the key")
            case "auth_timeout":
                return FeedLost("Massive waited too long for the authentication")
            case "max_connections":
                return FeedLost("Massive's limit of connections is exceeded", reason="connection_limit")
            case "slow_consumer":
                return FeedLost("Massive says that we read too slowly", reason="slow_consumer")
            case "force_disconnect":
                return FeedLost("Massive ended the connection", reason="closed")
            case "error" if "not authorized" in told.message.lower():
                asked = ", ".join(self._settings.channels)
                return FeedRefused(f"Massive's subscription does not include one of the channels {asked}")
            case "error" if not self.ready:
                return FeedLost("Massive reports an error while we subscribe", reason="protocol")
            case _:
                self._notes["other_status"] += 1
        return None

    def _prove(self, channel: Channel | None) -> None:
        if self._awaited and channel is not None:
            self._awaited = {name for name in self._awaited if name.partition(".")[0] != channel}

    # -- data ----------------------------------------------------------------------------------------------------------

    def _trades(self, run: Run) -> None:
        messages = run.messages
        tapes = small([m.tape for m in messages], provider_codes().tapes)
        self._rows.add(
            run,
            Kind.TRADE,
            symbol=[m.symbol for m in messages],
            ts_ns=scaled(integers([m.ts for m in messages]), _MS_NS),
            price=floats([m.price for m in messages]),
            size=_exact(floats([m.size for m in messages]), [m.exact_size for m in messages]),
            condition=self._conditions.encode([m.condition for m in messages], tapes),
            tape=tapes,
            exchange=_participants([m.exchange for m in messages], tapes),
            trade_id=trade_ids([m.trade_id for m in messages]),
        )

    def _quotes(self, run: Run) -> None:
        messages = run.messages
        tapes = small([m.tape for m in messages], provider_codes().tapes)
        self._rows.add(
            run,
            Kind.BID,
            Kind.ASK,
            symbol=[m.symbol for m in messages],
            ts_ns=scaled(integers([m.ts for m in messages]), _MS_NS),
            price=np.stack([floats([m.bid_price for m in messages]), floats([m.ask_price for m in messages])], axis=1),
            size=np.stack([floats([m.bid_size for m in messages]), floats([m.ask_size for m in messages])], axis=1),
            tape=tapes,
            exchange=np.stack(
                [
                    _participants([m.bid_exchange for m in messages], tapes),
                    _participants([m.ask_exchange for m in messages], tapes),
                ],
                axis=1,
            ),
        )

    def _bands(self, run: Run) -> None:
        kinds = [
            Kind.HALT if _HALT in m.indicators else Kind.RESUME if _RESUME in m.indicators else Kind.BAND_LOW
            for m in run.messages
        ]
        for kind in (Kind.HALT, Kind.RESUME, Kind.BAND_LOW):
            mine = run.only(np.array([found is kind for found in kinds]))
            if not len(mine):
                continue
            messages = mine.messages
            symbol = [m.symbol for m in messages]
            ts_ns = _any_unit(integers([m.ts for m in messages]))
            tape = small([m.tape for m in messages], provider_codes().tapes)
            if kind is Kind.BAND_LOW:
                price = np.stack([floats([m.low for m in messages]), floats([m.high for m in messages])], axis=1)
                self._rows.add(mine, kind, Kind.BAND_HIGH, symbol=symbol, ts_ns=ts_ns, price=price, tape=tape)
            else:
                code = self._rows.condition(f"LULD {_HALT if kind is Kind.HALT else _RESUME}")
                self._rows.add(mine, kind, symbol=symbol, ts_ns=ts_ns, condition=np.full(len(mine), code), tape=tape)

    def _minutes(self, run: Run) -> None:
        messages = run.messages
        symbols = [m.symbol for m in messages]
        ts_ns = scaled(integers([m.ts for m in messages]), _MS_NS)
        bars = self._rows.bars(
            run,
            symbol=symbols,
            ts_ns=ts_ns,
            revision=lambda kept: self._revisions(symbols, ts_ns, kept),
            open=floats([m.open for m in messages]),
            high=floats([m.high for m in messages]),
            low=floats([m.low for m in messages]),
            close=floats([m.close for m in messages]),
            volume=_exact(floats([m.volume for m in messages]), [m.exact_volume for m in messages]),
            vwap=floats([m.vwap for m in messages]),
        )
        if len(bars):
            self._bars.append(bars)

    def _revisions(self, symbols: list[str], ts_ns: I64, kept: I64) -> I64:
        """1 for each bar whose minute this connection has brought before."""
        found = []
        for row in kept.tolist():
            start_ns = int(ts_ns[row])
            newest_ns = self._bar_ns.get(symbols[row], start_ns - MINUTE_NS)
            found.append(int(start_ns <= newest_ns))
            self._bar_ns[symbols[row]] = max(start_ns, newest_ns)
        return np.array(found, np.int64)

    def _note(self, what: str, run: Run) -> None:
        self._notes[what] += len(run)


def _say(action: str, params: str) -> str:
    return msgspec.json.encode({"action": action, "params": params}).decode()


def _exact(sizes: F64, decimal: list[str]) -> F64:
    """Sizes; a decimal one takes the place of the whole one where it is given."""
    if not any(decimal):
        return sizes
    rows = [row for row, text in enumerate(decimal) if text]
    sizes[rows] = decimals([decimal[row] for row in rows])
    return sizes


def _any_unit(times: I64) -> I64:
    """Times in milli-, micro- or nanoseconds, told apart by how large they are, as nanoseconds."""
    unit = np.where(times < 10**14, _MS_NS, np.where(times < 10**17, _US_NS, 1))
    return scaled(times, unit)


# -- the tables --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reference:
    letters: tuple[Mapping[int, str], ...]
    """Per tape class: condition id -> letter."""
    tapes: U8
    """Tape number -> its character; 0 when unknown."""
    exchanges: U8
    """Tape class times 256 plus exchange id -> participant's character; 0 when unknown."""


@cache
def provider_codes() -> _Reference:
    table = tomllib.loads((files("tapewatch") / "reference" / "massive_conditions.toml").read_text(encoding="utf-8"))
    tapes, exchanges = np.zeros(256, np.uint8), np.zeros((TAPES, 256), np.uint8)
    tapes[1:4] = [ord(letter) for letter in "ABC"]
    for tape, participants in enumerate(_by_tape(table["exchanges"])):
        for number, letter in participants.items():
            exchanges[tape, number] = ord(letter)
    return _Reference(letters=_by_tape(table["letters"]), tapes=tapes, exchanges=exchanges.reshape(-1))


def _by_tape(table: Mapping[str, Mapping[str, str]]) -> tuple[Mapping[int, str], ...]:
    """Per tape class; where the tape is not known, the letters of C come before those of A and B."""
    every, cta, utp = ({int(number): letter for number, letter in table[tapes].items()} for tapes in ("all", "AB", "C"))
    return every | cta | utp, every | cta, every | cta, every | utp


def _participants(ids: list[int], tapes: U8) -> U8:
    """Characters of exchanges."""
    found: U8 = provider_codes().exchanges[TAPE_CLASS[tapes] * 256 + small(ids, _SAME)]
    return found


_SAME = np.arange(256, dtype=np.uint8)


class _Conditions:
    """Codes of sale conditions: each distinct list of ids is translated once, for every tape."""

    def __init__(self, rows: RowMaker, quarantine: Quarantine) -> None:
        self._rows, self._quarantine = rows, quarantine
        self._places: dict[_Ids, int] = {}
        self._codes = np.full(TAPES, -1)
        """Place times `TAPES` plus tape class -> the code; the last place is that of what was not learned."""

    def encode(self, conditions: list[_Ids], tapes: U8) -> I64:
        """-1 for what can be none."""
        try:
            places = np.fromiter(map(self._places.__getitem__, conditions), np.int64, len(conditions))
        except KeyError:
            for ids in dict.fromkeys(conditions):
                if ids not in self._places and len(self._places) < _MOST_LISTS:
                    self._learn(ids)
            missing = len(self._places)
            places = np.array([self._places.get(ids, missing) for ids in conditions], np.int64)
        codes: I64 = self._codes[places * TAPES + TAPE_CLASS[tapes]]
        return codes

    def _learn(self, ids: _Ids) -> None:
        said = [number for number in msgspec.structs.astuple(ids) if number != -1]
        texts = ["".join(table.get(number, _UNKNOWN_LETTER) for number in said) for table in provider_codes().letters]
        if _UNKNOWN_LETTER in texts[0]:
            self._quarantine.add("unknown_condition", repr(said), count=0)
        codes = [self._rows.condition(text) for text in texts]
        self._codes = np.concatenate([self._codes[:-TAPES], codes, self._codes[-TAPES:]])
        self._places[ids] = len(self._places)
