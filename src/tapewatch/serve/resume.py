"""What a client missed while it was away: from the gateway's log, else from the streams, else from history.

It answers for all partitions at once, and so that the caller can go on from the log's end without a hole as long as it
does not wait in between. Work is bounded: by the number of alerts, by their bytes, by how many of others it reads over,
and by how many clients are served from streams and history at a time.
"""

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal, NamedTuple

from tapewatch.accounts.roles import LOCAL, Principal
from tapewatch.documents import Alert
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Invalid, NotFound, PositionLost, Unavailable
from tapewatch.ports import Alerts, Bus, Clock, Store
from tapewatch.serve.alert_log import MAX_ALERT_BYTES, AlertLog, Outgoing, from_entry, from_history
from tapewatch.serve.alert_tail import Active
from tapewatch.serve.past_alerts import MARGIN_S, past_alerts
from tapewatch.serve.places import NOWHERE, Place

MOST_MISSED = 5_000
"""A client that missed more asks history itself."""
MOST_OF_OTHERS = 50_000
"""That are read over in the streams: history has an index of what somebody sees."""
_AT_ONCE = 8
_TRIES = 3
_PARTITION = re.compile(r"0|[1-9]\d{0,3}", re.ASCII)


class Missed(NamedTuple):
    """`recovered` as the protocol has it. When it is False, `why` is for people and `frames` is empty."""

    recovered: Literal[True, False, "history"]
    frames: list[Outgoing]
    why: str = ""


class _TooManyError(Exception):
    """More than may be sent at once."""


def parse_places(places: Mapping[str, str], partitions: int) -> dict[int, Place]:
    """`Invalid` if no server gave these."""
    parsed: dict[int, Place] = {}
    for name, text in places.items():
        place = Place.parse(text)
        if not _PARTITION.fullmatch(name) or int(name) >= partitions or place is None:
            raise Invalid("places", "are not what this server gave")
        parsed[int(name)] = place
    return parsed


class Resumes:
    def __init__(
        self,
        bus: Bus,
        alerts: AlertLog,
        clock: Clock,
        *,
        store: Store | None,
        partitions: int,
        most: int = MOST_MISSED,
        most_of_others: int = MOST_OF_OTHERS,
        active: Active = lambda _owner: True,
    ) -> None:
        self._bus, self._log, self._clock, self._store, self._active = bus, alerts, clock, store, active
        self._most_of_others = most_of_others
        self._partitions = partitions
        self._most = most
        self._slots = asyncio.Semaphore(_AT_ONCE)

    async def find(self, places: Mapping[int, Place], last_id: str | None, principal: Principal = LOCAL) -> Missed:
        """Of what they see. `Unavailable` if nobody can say now. The caller limits how long it waits."""
        try:
            found = await self._by_places(places, principal)
            if found is not None:
                return Missed(recovered=True, frames=self._bounded(found))
            if last_id is None:
                return Missed(recovered=False, frames=[], why="the streams do not reach back that far")
            found = await self._by_history(last_id, principal)
        except _TooManyError:
            return Missed(recovered=False, frames=[], why=f"more than {self._most} alerts were missed")
        if found is None:
            return Missed(recovered=False, frames=[], why="history does not know the last alert")
        return Missed(recovered="history", frames=found)

    async def _by_places(self, places: Mapping[int, Place], principal: Principal) -> list[Outgoing] | None:
        if len(places) < self._partitions or await self._are_beyond_the_tail(places):
            return None
        found = self._log.after(places)
        if found is not None:
            return _seen(found, principal)
        async with self._slots:
            with suppress(PositionLost):
                read: list[Outgoing] = []
                reached = dict(places)
                for _ in range(_TRIES):  # the log moves on, and may drop what it held, while the streams are read
                    for partition in self._log.lacking(reached):
                        until = self._log.reached[partition]
                        read += await self._read(partition, reached[partition], until, principal)
                        reached[partition] = Place(*until.position)
                        self._bounded(read)
                    rest = self._log.after(reached)
                    if rest is not None:
                        return read + _seen(rest, principal)
        return None

    async def _are_beyond_the_tail(self, places: Mapping[int, Place]) -> bool:
        """Another gateway may have been ahead of this one; but nobody was ahead of the stream."""
        for partition, place in places.items():
            reached = self._log.reached.get(partition, NOWHERE)
            if place.position > reached.position:
                tail = await self._bus.tail(f"alerts.filtered:{partition}")
                if tail is None or place.position > tail:
                    return True
        return False

    async def _read(self, partition: int, after: Place, until: Place, principal: Principal) -> list[Outgoing]:
        """The entries after a place, up to and with that of another. `PositionLost` if some are gone, or too many are
        of others.
        """
        start = after.position if after.is_whole else after.position._replace(sequence=after.sequence - 1)
        from_the_beginning = after == NOWHERE
        read: list[Outgoing] = []
        of_others = 0
        async for position, entry in self._bus.read(
            f"alerts.filtered:{partition}", None if from_the_beginning else start
        ):
            if from_the_beginning and not read and position.sequence > 1:
                raise PositionLost(f"alerts.filtered:{partition} does not go back to its beginning")
            from_the_beginning = False
            if isinstance(entry, Alerts):
                place, now_ns = Place(*position), self._clock.now_ns()
                theirs = [nth for nth, alert in enumerate(entry.alerts) if self._is_for(alert, principal)]
                read += [
                    from_entry(entry.alerts, partition=partition, entry=place, nth=nth, sent_ns=now_ns)
                    for nth in theirs
                    if Place(*position, nth) > after
                ]
                of_others += len(entry.alerts) - len(theirs)
                if len(read) > self._most:
                    raise _TooManyError
                if of_others > self._most_of_others:
                    raise PositionLost(f"alerts.filtered:{partition} holds too many alerts of others")
            if position >= until.position:
                return read
        raise Unavailable("the bus is closed")

    def _is_for(self, alert: Alert, principal: Principal) -> bool:
        return principal.sees(alert.owner, shared=alert.shared) and self._active(alert.owner)

    async def _by_history(self, last_id: str, principal: Principal) -> list[Outgoing] | None:
        if self._store is None:
            return None
        async with self._slots:
            try:
                last = await self._store.alert(last_id)
            except NotFound:
                return None
            if not principal.sees(last.owner, shared=last.shared):
                return None
            since_ns = last.fired_at_ns - MARGIN_S * SECOND_NS
            viewer = None if principal.role == "admin" else principal.user_id
            alerts = await past_alerts(self._store, since_ns=since_ns, most=self._most, viewer=viewer)
        if alerts is None:
            raise _TooManyError
        now_ns = self._clock.now_ns()
        found = [
            frame
            for alert in alerts
            if self._active(alert.owner)
            for frame in from_history(alert, partition=0, place=NOWHERE, sent_ns=now_ns)
        ]
        known = {frame.key for frame in found}
        # Those that went out before the store had them.
        late = self._log.such_as(lambda frame: frame.fired_at_ns >= since_ns and frame.key not in known)
        found += _seen(late, principal)
        return self._bounded(found)

    def _bounded(self, frames: list[Outgoing]) -> list[Outgoing]:
        if len(frames) > self._most or sum(len(frame.frame) for frame in frames) > MAX_ALERT_BYTES:
            raise _TooManyError
        return frames


def _seen(frames: list[Outgoing], principal: Principal) -> list[Outgoing]:
    return [frame for frame in frames if principal.sees(frame.owner, shared=frame.shared)]
