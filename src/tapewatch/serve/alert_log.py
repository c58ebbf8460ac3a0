"""The newest alerts as frames, encoded once for all clients, and up to where they reach back in each partition.

A connected client has a number in the log, the next frame to send. One that comes back has a place in each partition,
and gets from the log what stands after these, as long as the log reaches back that far.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from tapewatch.documents import Alert, rfc3339
from tapewatch.serve.places import NOWHERE, Place

MAX_ALERTS = 20_000
MAX_ALERT_BYTES = 8 * 1024 * 1024


def frame_of(kind: str, data: Any = None, *, at: str | None = None) -> str:
    """NaN becomes null."""
    content: dict[str, Any] = {"type": kind}
    if at is not None:
        content["at"] = at
    if data is not None:
        content["data"] = data
    return msgspec.json.encode(content).decode()


class Outgoing(NamedTuple):
    frame: str
    received_ns: int | None
    """Of an alert: when its trades arrived, 0 in a replay; None for every other frame."""
    partition: int = 0
    place: Place = NOWHERE
    key: str = ""
    """What makes an alert, or a note on it, the same one."""
    fired_at_ns: int = 0
    owner: str = "local"
    """Of an alert: who sees it, unless it is shared."""
    shared: bool = False


def key_of(alert: Alert) -> str:
    """Within this process."""
    return f"{alert.alert_id} {hash(alert.note):x}" if alert.note else alert.alert_id


def outgoing(alert: Alert, *, partition: int, place: Place, at: str | None, sent_ns: int) -> Outgoing:
    """A note is a frame of its own; the alert it belongs to is neither counted nor timed again. `sent_ns` is one stamp
    for all clients.
    """
    kind, received_ns = ("alert_note", None) if alert.note else ("alert", alert.received_ns)
    data = alert.as_json()
    data["latency"]["sent"] = rfc3339(sent_ns) if sent_ns > 0 else None
    return Outgoing(
        frame_of(kind, data, at=at),
        received_ns,
        partition,
        place,
        key_of(alert),
        alert.fired_at_ns,
        alert.owner,
        alert.shared,
    )


def from_entry(alerts: Sequence[Alert], *, partition: int, entry: Place, nth: int, sent_ns: int = 0) -> Outgoing:
    """The frame of one of an entry's alerts, with its place."""
    place = Place(entry.epoch, entry.sequence, nth)
    at = f"{partition}:{place.text(more=nth < len(alerts) - 1)}"
    return outgoing(alerts[nth], partition=partition, place=place, at=at, sent_ns=sent_ns)


def from_history(alert: Alert, *, partition: int, place: Place, sent_ns: int) -> Iterator[Outgoing]:
    """The frames of an alert that comes without a place: as it fired, and its notes as they are now."""
    fired = msgspec.structs.replace(alert, note="")
    yield outgoing(fired, partition=partition, place=place, at=None, sent_ns=sent_ns)
    if alert.note:
        yield outgoing(alert, partition=partition, place=place, at=None, sent_ns=sent_ns)


class AlertLog:
    """The newest alert frames, `alerts` of them and `max_bytes` at most. Full, it drops the oldest, and a client that
    has not taken that one yet is slow.
    """

    def __init__(self, *, alerts: int = MAX_ALERTS, max_bytes: int = MAX_ALERT_BYTES) -> None:
        self.first = 0
        """The number of the oldest frame that is held."""
        self.reached: dict[int, Place] = {}
        """By partition, the place of the newest alert, or of the newest entry once all of it is here."""
        self.max_alerts, self.max_bytes = alerts, max_bytes
        self._begins: dict[int, Place] = {}
        """By partition: nothing is missing after this place."""
        self._newest: dict[int, Place] = {}
        self._frames: deque[Outgoing] = deque()
        self._starts: deque[int] = deque()
        """Where each frame starts, in bytes."""
        self._end_byte = 0

    @property
    def end(self) -> int:
        """The number of the next frame."""
        return self.first + len(self._frames)

    @property
    def _bytes(self) -> int:
        return self._end_byte - self._starts[0] if self._starts else 0

    def is_half_full(self) -> bool:
        """Unless it is, no number that it holds is far back."""
        return 2 * len(self._frames) > self.max_alerts or 2 * self._bytes > self.max_bytes

    def is_far_back(self, number: int) -> bool:
        """Whether more than half of what the log can hold comes from that number on."""
        if number >= self.end:
            return False
        after_bytes = self._end_byte - self._starts[max(number - self.first, 0)]
        return 2 * (self.end - number) > self.max_alerts or 2 * after_bytes > self.max_bytes

    def append(self, new: Outgoing) -> None:
        self._frames.append(new)
        self._starts.append(self._end_byte)
        self._end_byte += len(new.frame)  # frames are nearly all ASCII, so their length is their size
        if new.place > self.reached.get(new.partition, NOWHERE) and new.place.nth <= NOWHERE.nth:
            self.reached[new.partition] = new.place
        self._newest[new.partition] = new.place
        while len(self._frames) > self.max_alerts or self._bytes > self.max_bytes:
            self._drop()

    def begin(self, partition: int, old: Sequence[Outgoing], *, after: Place, reached: Place) -> None:
        """Put what was published before in front, as much of the newest as there is room for: no client is sent it that
        does not ask for it.
        """
        begins = after
        for frame in reversed(old):
            if len(self._frames) >= self.max_alerts or self._bytes + len(frame.frame) > self.max_bytes:
                begins = frame.place
                break
            self._newest.setdefault(partition, frame.place)
            start = (self._starts[0] if self._starts else self._end_byte) - len(frame.frame)
            self._frames.appendleft(frame)
            self._starts.appendleft(start)
            self.first -= 1
        self._begins[partition] = begins
        self.reached[partition] = reached

    def reach(self, partition: int, place: Place) -> None:
        """Everything up to there is in the log."""
        self.reached[partition] = place

    def break_at(self, partition: int, place: Place) -> None:
        """What followed that place directly is lost."""
        self._begins[partition] = place.beyond()

    def at(self, number: int) -> Outgoing:
        return self._frames[number - self.first]

    def lacking(self, places: Mapping[int, Place]) -> list[int]:
        """The partitions in which it does not reach back to that place."""
        return [partition for partition, begin in self._begins.items() if places.get(partition, NOWHERE) < begin]

    def after(self, places: Mapping[int, Place]) -> list[Outgoing] | None:
        """What comes after these places, in the log's order; None if it does not reach back that far."""
        if self.lacking(places):
            return None
        behind = {p for p, newest in self._newest.items() if newest > places.get(p, NOWHERE)}
        missed: list[Outgoing] = []
        for frame in reversed(self._frames):
            if not behind:
                break
            if frame.partition in behind:
                if frame.place > places.get(frame.partition, NOWHERE):
                    missed.append(frame)
                else:
                    behind.discard(frame.partition)
        missed.reverse()
        return missed

    def such_as(self, wanted: Callable[[Outgoing], bool]) -> list[Outgoing]:
        return [frame for frame in self._frames if wanted(frame)]

    def since(self, number: int) -> list[Outgoing]:
        return list(islice(self._frames, max(number - self.first, 0), None))

    def _drop(self) -> None:
        dropped = self._frames.popleft()
        self._starts.popleft()
        self.first += 1
        if dropped.place > self._begins.get(dropped.partition, NOWHERE):
            self._begins[dropped.partition] = dropped.place
