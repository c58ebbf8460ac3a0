"""The partitions' alerts as the gateway reads them: somewhat back first, then live, each once, without a hole.

A stream may hold an alert twice, because a writer that resumed repeats itself; the ids sent lately are known. Where the
stream has dropped what the gateway had not read, history has it, except what the store did not have yet. A hole that
cannot be filled is told to everybody: all clients are sent away, and come back with places that nothing follows.

Alerts of owners who are not active stay in history, and are frames for nobody.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence

import structlog

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.symbols import partition_of
from tapewatch.errors import PositionLost, Unavailable
from tapewatch.patience import FIRST_WAIT_S, pause
from tapewatch.ports import Alerts, Bus, Clock, Entry, Position, Store
from tapewatch.serve.alert_log import AlertLog, Outgoing, from_entry, from_history, key_of
from tapewatch.serve.past_alerts import MARGIN_S, past_alerts
from tapewatch.serve.places import NOWHERE, Place
from tapewatch.telemetry import ERRORS_TOTAL

BACK_ENTRIES = 1_000
"""What is read of each stream before the gateway begins, so that it can serve clients of one that died."""
MOST_KNOWN = 50_000
"""Alerts and notes that are recognised when they come again."""
MOST_LOST = 5_000
_TRIES = 3

log = structlog.get_logger("tapewatch")
Deliver = Callable[[Iterable[Outgoing]], Awaitable[None]]
Active = Callable[[str], bool]
"""Whether there is such a user who is not disabled."""


class AlertTail:
    """`run` reads; `begun` is set once every partition was read back. `deliver` gets frames in order, of a partition
    one call at a time; `lost` is called when some cannot be had.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        *,
        store: Store | None,
        partitions: int,
        alerts: AlertLog,
        deliver: Deliver,
        lost: Callable[[], None],
        active: Active = lambda _owner: True,
    ) -> None:
        self.begun = asyncio.Event()
        self._bus, self._clock, self._store = bus, clock, store
        self._partitions = partitions
        self._log = alerts
        self._deliver, self._lost, self._active = deliver, lost, active
        self._known: OrderedDict[str, None] = OrderedDict()
        self._fired_ns: dict[int, int] = {}
        self._to_begin = partitions

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for partition in range(self._partitions):
                tasks.create_task(self._follow(partition), name=f"gateway alerts {partition}")

    async def _follow(self, partition: int) -> None:
        stream = f"alerts.filtered:{partition}"
        reached = after = await self._begin(partition, stream)
        wait_s = FIRST_WAIT_S
        lost_before = False
        while True:
            try:
                async for position, entry in self._bus.read(stream, after):
                    if reached is None or position > reached:
                        await self._take(partition, position, entry)
                        reached = after = position
                    wait_s, lost_before = FIRST_WAIT_S, False
            except PositionLost as error:
                ERRORS_TOTAL.labels(where=f"follow:{stream}").inc()
                wait_s = await pause(self._clock, wait_s)
                if lost_before and reached is not None:  # not a server that was about to get its newest entries back
                    log.warning("alerts of the stream lost", stream=stream, why=str(error))
                    await self._fill(partition, reached)
                    after = None
                lost_before = not lost_before
            except Unavailable:
                ERRORS_TOTAL.labels(where=f"follow:{stream}").inc()
                wait_s = await pause(self._clock, wait_s)
            else:
                return

    async def _begin(self, partition: int, stream: str) -> Position | None:
        """Where to read on; what stands before is in the log then."""
        most = max(1, min(BACK_ENTRIES, self._log.max_alerts // self._partitions))
        wait_s = FIRST_WAIT_S
        while True:
            try:
                tail = await self._bus.tail(stream)
                kept = await self._bus.newest(stream, most)
            except Unavailable:
                ERRORS_TOTAL.labels(where=f"follow:{stream}").inc()
                wait_s = await pause(self._clock, wait_s)
            else:
                break
        old: list[Outgoing] = []
        for position, entry in kept:
            old += self._new_of(partition, position, entry)
            await asyncio.sleep(0)
        share = self._log.max_alerts // 2 // self._partitions
        share_bytes = self._log.max_bytes // 2 // self._partitions
        first = len(old)
        while first and len(old) - first < share and share_bytes > 0:
            first -= 1
            share_bytes -= len(old[first].frame)
        after = Place.after_entry(tail)
        if first:
            after = old[first - 1].place
        elif kept:
            epoch, sequence = kept[0][0]
            whole = sequence <= 1 and len(kept) < most
            after = NOWHERE if whole else Place(epoch, max(sequence - 1, 0))
        reached = kept[-1][0] if kept else tail
        self._log.begin(partition, old[first:], after=after, reached=Place.after_entry(reached))
        self._to_begin -= 1
        if not self._to_begin:
            self.begun.set()
        return reached

    async def _take(self, partition: int, position: Position, entry: Entry) -> None:
        await self._deliver(self._new_of(partition, position, entry))
        self._log.reach(partition, Place(*position))

    def _new_of(self, partition: int, position: Position, entry: Entry) -> Iterator[Outgoing]:
        """The frames of those that did not come before, each encoded when it is asked for."""
        if isinstance(entry, Alerts):
            place = Place(*position)
            for nth, alert in enumerate(entry.alerts):
                if self._is_new(partition, key_of(alert), alert.fired_at_ns) and self._active(alert.owner):
                    now_ns = self._clock.now_ns()
                    yield from_entry(entry.alerts, partition=partition, entry=place, nth=nth, sent_ns=now_ns)

    def _is_new(self, partition: int, key: str, fired_at_ns: int) -> bool:
        if key in self._known:
            return False
        self._known[key] = None
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)
        self._fired_ns[partition] = max(fired_at_ns, self._fired_ns.get(partition, fired_at_ns))
        return True

    async def _fill(self, partition: int, reached: Position) -> None:
        """Send what history has and was not sent: it belongs between `reached` and what the stream still holds."""
        place = Place(*reached).beyond()
        missed = await self._from_history(partition, place)
        if missed is None:
            log.error("alerts are missing: clients are sent away", partition=partition)
            self._log.break_at(partition, place)
            self._lost()
        elif missed:
            await self._deliver(missed)

    async def _from_history(self, partition: int, place: Place) -> Sequence[Outgoing] | None:
        fired_ns = self._fired_ns.get(partition)
        if self._store is None or fired_ns is None:
            return None
        wait_s = FIRST_WAIT_S
        for _ in range(_TRIES):
            try:
                alerts = await past_alerts(self._store, since_ns=fired_ns - MARGIN_S * SECOND_NS, most=MOST_LOST)
            except Unavailable:
                ERRORS_TOTAL.labels(where="gateway.history").inc()
                wait_s = await pause(self._clock, wait_s)
                continue
            if alerts is None:
                return None
            now_ns = self._clock.now_ns()
            return [
                frame
                for alert in alerts
                if partition_of(alert.symbol, self._partitions) == partition and self._active(alert.owner)
                for frame in from_history(alert, partition=partition, place=place, sent_ns=now_ns)
                if self._is_new(partition, frame.key, frame.fired_at_ns)
            ]
        return None
