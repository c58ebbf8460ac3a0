"""Frames to typed messages: a whole frame at once, and message by message where a frame does not fit its types, so that
a bad message costs only itself. Which messages there are is the session's knowledge; what their fields may hold is
checked in `rows`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import or_
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from tapewatch.engine.columns import I64, Bool
from tapewatch.feeds.quarantine import Quarantine

Encoding = Literal["json", "msgpack"]

_LARGEST_FRAME = 1 << 24
_LOOKED_AT = 128
"""One frame in so many is compared with the fields that we know: the price of it stays below noise."""
_UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, OverflowError, RecursionError)
_FIELD = re.compile(r"required field `(\w+)`|`\$\.(\w+)")
_FLAT_OBJECT = re.compile(rb"\{[^{}]*\}")


class Message(msgspec.Struct, gc=False):
    """What a provider says in one object; subclasses name their tag and their fields."""

    unread: ClassVar[frozenset[str]] = frozenset()
    """Fields that the provider documents and we do not decode."""
    control: ClassVar[bool] = False
    """Part of the handshake: never shown in a sample."""


@dataclass(frozen=True, slots=True)
class Run:
    """Messages of one type."""

    messages: list[Any]
    at: I64
    """Shape (n,): their places among all messages of the call, ascending."""
    received_ns: I64
    """Shape (n,): when each arrived."""

    def __len__(self) -> int:
        return len(self.messages)

    def only(self, keep: Bool) -> "Run":
        rows = np.flatnonzero(keep)
        return Run([self.messages[row] for row in rows.tolist()], self.at[rows], self.received_ns[rows])


def _runs(messages: list[Any], received_ns: I64) -> dict[type, Run]:
    kinds = set(map(type, messages))
    if len(kinds) <= 1:
        return {kind: Run(messages, np.arange(len(messages)), received_ns) for kind in kinds}
    places: dict[type, list[int]] = {}
    for place, kind in enumerate(map(type, messages)):
        places.setdefault(kind, []).append(place)
    return {
        kind: Run([messages[place] for place in mine], np.array(mine), received_ns[mine])
        for kind, mine in places.items()
    }


def controls(found: dict[type, Run]) -> list[tuple[int, Message]]:
    """Messages of the handshake with their places, in the order of arrival."""
    told = [
        (int(place), message)
        for kind, run in found.items()
        if issubclass(kind, Message) and kind.control
        for place, message in zip(run.at, run.messages, strict=True)
    ]
    return sorted(told, key=lambda pair: pair[0])


def before(found: dict[type, Run], place: int) -> dict[type, Run]:
    """The messages that came before a place."""
    return {kind: run.only(run.at < place) for kind, run in found.items()}


class FrameReader:
    """Reads arrays of tagged objects. Counts what it cannot use in `quarantine`, by the name of the field at fault, and
    fields that nobody knows in `notes`.
    """

    def __init__(
        self, kinds: Sequence[type[Message]], *, encoding: Encoding, quarantine: Quarantine, notes: Counter[str]
    ) -> None:
        codec: Any = msgspec.json if encoding == "json" else msgspec.msgpack
        union: Any = reduce(or_, kinds)
        self._many, self._one = codec.Decoder(list[union]), codec.Decoder(union)
        self._raw, self._any = codec.Decoder(list[msgspec.Raw]), codec.Decoder()
        self._is_json = encoding == "json"
        self._quarantine, self._notes = quarantine, notes
        self._tag_field = str(kinds[0].__struct_config__.tag_field)
        self._kinds = {str(kind.__struct_config__.tag): kind for kind in kinds}
        self._control_tags = [tag.encode() for tag, kind in self._kinds.items() if kind.control]
        self._names = {
            kind: {field.encode_name: field.name for field in msgspec.structs.fields(kind)} for kind in kinds
        }
        self._frames = 0

    def read(self, frames: Sequence[tuple[int, bytes]]) -> dict[type, Run]:
        """The messages of all frames by type, in the order of arrival; what cannot be read is left out."""
        messages: list[Any] = []
        counts = []
        for _, frame in frames:
            before = len(messages)
            messages += self._frame(frame)
            counts.append(len(messages) - before)
        return _runs(messages, np.repeat(np.array([arrived for arrived, _ in frames], np.int64), counts))

    def _frame(self, frame: bytes) -> list[Any]:
        if len(frame) > _LARGEST_FRAME:
            self._quarantine.add("frame_size", frame[:300])
            return []
        try:
            messages: list[Any] = self._many.decode(frame)
        except _UNREADABLE:
            return self._piecemeal(frame)
        if messages and not messages[0].control:
            if self._frames % _LOOKED_AT == 0:
                self._look_closely(frame)
            self._frames += 1
        return messages

    def _piecemeal(self, frame: bytes) -> list[Any]:
        """Message by message. Of JSON that is cut or broken somewhere the other messages remain."""
        pieces: Iterable[bytes]
        refused = self._quarantine.counts.total()
        try:
            pieces, whole = [bytes(raw) for raw in self._raw.decode(frame)], True
        except _UNREADABLE:
            pieces, whole = _FLAT_OBJECT.findall(frame) if self._is_json else (), False
        messages = [message for message in map(self._message, pieces) if message is not None]
        if not whole and self._quarantine.counts.total() == refused:
            self._quarantine.add("frame", self._sample(frame))
        return messages

    def _message(self, piece: bytes) -> Any:
        try:
            message = self._one.decode(piece)
        except _UNREADABLE as error:
            self._blame(piece, str(error))
            return None
        if not message.control:
            self._look_closely(piece)
        return message

    def _blame(self, piece: bytes, error: str) -> None:
        """Count a message by what is wrong with it."""
        try:
            told = self._any.decode(piece)
        except _UNREADABLE:
            self._quarantine.add("malformed", self._sample(piece))
            return
        reason, kind = "malformed", self._kind(told)
        if kind is None:
            named = isinstance(told, dict) and isinstance(told.get(self._tag_field), str)
            reason = "unknown_type" if named else "malformed"
        elif field := _FIELD.search(error):
            reason = self._names[kind].get(field[1] or field[2], "malformed")
        self._quarantine.add("ts_ns" if reason == "ts" else reason, self._sample(piece))

    def _sample(self, piece: bytes) -> object:
        """As a person can read it. What may belong to the handshake, and so hold half a secret, is not shown."""
        if any(tag in piece for tag in self._control_tags):
            return "something of the handshake"
        try:
            return piece if self._is_json else repr(self._any.decode(piece))
        except _UNREADABLE:
            return piece

    def _look_closely(self, readable: bytes) -> None:
        """Note fields that we do not know in a frame or a message that could be read by its types."""
        try:
            told = self._any.decode(readable)
        except _UNREADABLE:
            return  # what stands in fields that nobody reads
        for message in told if isinstance(told, list) else [told]:
            kind = self._kind(message)
            if kind is None or kind.control:
                continue
            unknown = message.keys() - self._names[kind].keys() - kind.unread - {self._tag_field}
            if unknown:
                self._notes["unknown_field"] += 1
                names = ", ".join(sorted(map(str, unknown)))
                self._quarantine.add("unknown_field", f"{message[self._tag_field]}: {names}", count=0)

    def _kind(self, told: Any) -> type[Message] | None:
        tag = told.get(self._tag_field) if isinstance(told, dict) else None
        return self._kinds.get(tag) if isinstance(tag, str) else None
