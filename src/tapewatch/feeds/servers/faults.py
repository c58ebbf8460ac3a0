"""What is to go wrong on a replay server, on request, and when.

A fault is asked for as a text, ``kind:option=value,option=value``; `KINDS` lists what there is. Chance is drawn from
the seed and the place in the tape, so a run with the same tape, speed and seed goes wrong in the same way. The
servers carry out what `Disturbance` tells them to.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np

from tapewatch.engine.columns import I64, SECOND_NS, Bool
from tapewatch.errors import ConfigError

Payload = str | bytes

_NEW_YORK = ZoneInfo("America/New_York")
_WHEN = ("every", "p", "at", "seconds")

KINDS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "drop": (_WHEN, "reset the TCP connection"),
    "stall": ((*_WHEN, "for"), "say nothing on the open connection, for so many seconds or for good"),
    "malformed": (_WHEN, "send a frame that makes no sense, besides the good ones"),
    "duplicate": (_WHEN, "send a frame twice"),
    "reorder": (("window", "p"), "shuffle each so many frames"),
    "withhold": (("from", "to"), "leave out the trades from one time of day to another"),
    "refuse": (("first", "p", "status"), "refuse the first connections, or some, with an HTTP status"),
    "no-plan": ((), "answer that the subscription does not include this feed"),
    "connection-limit": (("max",), "allow so many connections, as the provider does"),
    "symbol-limit": (("max",), "allow so many symbols"),
    "slow-consumer": (("after",), "cut a client that takes nothing for so many seconds"),
}
"""Kind -> its options, and what it does. ``every`` counts rows sent on a connection, ``p`` is the chance of each frame,
``at`` a time of day in New York on the tape, ``seconds`` the clock since the subscription."""

_REQUIRED: Mapping[str, str | tuple[str, ...]] = {
    **dict.fromkeys(("drop", "stall", "malformed", "duplicate"), _WHEN),
    "withhold": ("from to",),
    "refuse": ("first", "p"),
    "connection-limit": ("max",),
    "symbol-limit": ("max",),
    "slow-consumer": ("after",),
}
_DEFAULTS: Mapping[str, float] = {"window": 4, "status": 503}


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,11}", text):
        raise ValueError("is not a whole number above zero")
    return int(text)


def _chance(text: str) -> float:
    if not re.fullmatch(r"0?\.[0-9]{1,12}|1", text) or not float(text):
        raise ValueError("is not a chance above 0 and up to 1")
    return float(text)


def _seconds(text: str) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", text) or not float(text):
        raise ValueError("is not a number of seconds")
    return float(text)


def _status(text: str) -> int:
    if not re.fullmatch(r"[45][0-9]{2}", text):
        raise ValueError("is not an HTTP status from 400 to 599")
    return int(text)


def _time_of_day(text: str) -> int:
    """Nanoseconds since midnight."""
    match = re.fullmatch(r"([01][0-9]|2[0-3]):([0-5][0-9])(?::([0-5][0-9])(\.[0-9]{1,9})?)?", text)
    if match is None:
        raise ValueError("is not a time of day such as 09:31:30")
    hours, minutes, seconds, fraction = match.groups()
    whole = int(hours) * 3600 + int(minutes) * 60 + int(seconds or 0)
    return whole * SECOND_NS + int(((fraction or ".0")[1:]).ljust(9, "0"))


_READ: Mapping[str, Callable[[str], float]] = {
    "every": _count,
    "window": _count,
    "max": _count,
    "first": _count,
    "p": _chance,
    "seconds": _seconds,
    "for": _seconds,
    "after": _seconds,
    "status": _status,
    "at": _time_of_day,
    "from": _time_of_day,
    "to": _time_of_day,
}


@dataclass(frozen=True, slots=True)
class Fault:
    kind: str
    options: Mapping[str, float]

    @classmethod
    def parse(cls, text: str) -> "Fault":
        """`ConfigError` with one line that says what is wrong."""
        kind, _, rest = text.partition(":")
        if kind not in KINDS:
            raise ConfigError(f"--fault: unknown fault {kind!r}; there are: {', '.join(KINDS)}")
        allowed = KINDS[kind][0]
        options: dict[str, float] = {}
        for part in rest.split(",") if rest else ():
            name, _, value = part.partition("=")
            if name not in allowed:
                known = f"it takes: {', '.join(allowed)}" if allowed else "it takes none"
                raise ConfigError(f"--fault {kind}: unknown option {name!r}; {known}")
            if name in options:
                raise ConfigError(f"--fault {kind}: {name} is given twice")
            try:
                options[name] = _READ[name](value)
            except ValueError as error:
                raise ConfigError(f"--fault {kind}: {name}: {value!r} {error}") from None
        wanted = _REQUIRED.get(kind, ())
        if wanted and not any(set(choice.split()) <= options.keys() for choice in wanted):
            raise ConfigError(f"--fault {kind}: needs {' or '.join(wanted).replace(' to', ' and to')}")
        return cls(kind, {name: value for name, value in _DEFAULTS.items() if name in allowed} | options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """What is to go out at once."""

    places: I64
    """Places in the tape of its rows; not empty."""
    first_ns: int
    last_ns: int
    """The tape's time with its first and with its last row."""
    payload: Payload


@dataclass(frozen=True, slots=True)
class Send:
    frame: Frame
    fault: str = ""
    """``duplicate`` for a repetition."""


@dataclass(frozen=True, slots=True)
class Garble:
    payload: Payload


@dataclass(frozen=True, slots=True)
class Stall:
    for_s: float | None
    """None: for good."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The last act of a connection."""


Act = Send | Garble | Stall | Drop


class Faults:
    """All that is to go wrong on one server."""

    def __init__(self, texts: Sequence[str] = (), *, seed: int = 1) -> None:
        """`ConfigError` for a text that names no fault."""
        self.seed = seed
        self.faults = [Fault.parse(text) for text in texts]

    def _option(self, kind: str, name: str) -> float | None:
        return next((fault.options[name] for fault in self.faults if fault.kind == kind), None)

    @property
    def max_connections(self) -> int | None:
        limit = self._option("connection-limit", "max")
        return None if limit is None else int(limit)

    @property
    def max_symbols(self) -> int | None:
        limit = self._option("symbol-limit", "max")
        return None if limit is None else int(limit)

    @property
    def slow_after_s(self) -> float | None:
        return self._option("slow-consumer", "after")

    @property
    def no_plan(self) -> bool:
        return any(fault.kind == "no-plan" for fault in self.faults)

    def refuses(self, connection: int) -> int | None:
        """The status with which the connection of that number, from 1, is refused; None if it is not."""
        for index, fault in enumerate(self.faults):
            if fault.kind == "refuse":
                chance = Random(f"{self.seed}/{index}/{connection}").random()  # noqa: S311
                if connection <= fault.options.get("first", 0) or chance < fault.options.get("p", 0):
                    return int(fault.options["status"])
        return None

    def withheld(self, ts_ns: I64) -> Bool:
        """Shape of `ts_ns`: which rows are never sent. The times are of about the same hour."""
        withheld = np.zeros(len(ts_ns), np.bool_)
        for fault in self.faults:
            if fault.kind == "withhold" and len(ts_ns):
                time = ts_ns - _midnight_ns(int(ts_ns[0]))
                withheld |= (time >= fault.options["from"]) & (time < fault.options["to"])
        return withheld

    def disturb(self, strange: Sequence[Payload] = ()) -> "Disturbance":
        """For one connection; `strange` are frames that are well-formed and make no sense."""
        return Disturbance(self, strange)


class Disturbance:
    """Turns the frames of one connection into what happens on it. Nothing is lost: a drop or a stall comes after all
    frames that were taken before it.
    """

    def __init__(self, faults: Faults, strange: Sequence[Payload]) -> None:
        self._faults, self._strange = faults, strange
        self._rows = 0
        self._elapsed_s = 0.0
        self._last_ns: int | None = None
        self._held: list[Frame] = []
        self._window = next((f for f in enumerate(faults.faults) if f[1].kind == "reorder"), None)

    def take(self, frame: Frame, *, elapsed_s: float) -> list[Act]:
        """`elapsed_s`: the clock since the subscription."""
        acts: list[Act] = []
        ends: list[Act] = []
        if self._window is None:
            acts.append(Send(frame))
        else:
            self._held.append(frame)
            if len(self._held) >= self._window[1].options["window"]:
                acts += self.flush()
        for index, fault in enumerate(self._faults.faults):
            if not self._is_due(index, fault, frame, elapsed_s):
                continue
            match fault.kind:
                case "duplicate":
                    acts.append(Send(frame, "duplicate"))
                case "malformed":
                    acts.append(Garble(self._garbled(index, frame)))
                case "stall":
                    ends.append(Stall(fault.options.get("for")))
                case "drop":
                    ends.append(Drop())
        self._rows += len(frame.places)
        self._elapsed_s, self._last_ns = elapsed_s, frame.last_ns
        return [*acts, *self.flush(), *ends] if ends else acts

    def flush(self) -> list[Act]:
        """What is still held back."""
        held, self._held = self._held, []
        if self._window is not None and held:
            index, fault = self._window
            random = self._random(index, held[0])
            if random.random() < fault.options.get("p", 1):
                random.shuffle(held)
        return [Send(frame) for frame in held]

    def _is_due(self, index: int, fault: Fault, frame: Frame, elapsed_s: float) -> bool:
        if fault.kind not in {"drop", "stall", "malformed", "duplicate"}:
            return False
        options = fault.options
        every, at_ns, seconds, p = (options.get(name) for name in ("every", "at", "seconds", "p"))
        if every is not None and (self._rows + len(frame.places)) // every > self._rows // every:
            return True
        if seconds is not None and elapsed_s // seconds > self._elapsed_s // seconds:
            return True
        if at_ns is not None:
            midnight_ns = _midnight_ns(frame.last_ns)
            before_ns = frame.first_ns - 1 if self._last_ns is None else self._last_ns
            if before_ns - midnight_ns < at_ns <= frame.last_ns - midnight_ns:
                return True
        return p is not None and self._random(index, frame).random() < p

    def _garbled(self, index: int, frame: Frame) -> Payload:
        payload = frame.payload
        half = payload[: len(payload) // 2]
        noise: Payload = "\x00}{not a frame" if isinstance(payload, str) else b"\xc1\xff\x00not a frame"
        random = self._random(index, frame)
        random.random()  # the draw that brought this about
        return random.choice([half, noise, *self._strange])

    def _random(self, index: int, frame: Frame) -> Random:
        return Random(f"{self._faults.seed}/{index}/{frame.places[0]}")  # noqa: S311


def _midnight_ns(ts_ns: int) -> int:
    """New York's clock at an instant shows the time since here."""
    offset: Any = datetime.fromtimestamp(ts_ns // SECOND_NS, _NEW_YORK).utcoffset()
    shift_ns = int(offset.total_seconds()) * SECOND_NS
    return (ts_ns + shift_ns) // (86_400 * SECOND_NS) * (86_400 * SECOND_NS) - shift_ns
