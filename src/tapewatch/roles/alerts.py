"""alerts: each alert once, to `alerts.filtered:{p}` at once and to history; and what was learned of it later.

Screens do not wait for the store: alerts are passed on while it is away, and saved in order when it is back. A repeat
is harmless: the id is derived, the role knows what it has passed on (after a restart, from its own stream), and the
store keeps an id once.

When a print is withdrawn, all alerts of its symbol that fired since that print get a note, because any of their metrics
may have counted it. They are found in history, so the withdrawal waits in line behind the alerts before it. Then the
annotated alerts go to `alerts.filtered:{p}` once more.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import aclosing

import msgspec
import structlog

from tapewatch.documents import Alert, rfc3339
from tapewatch.engine.scanner import Withdrawn
from tapewatch.errors import Unavailable
from tapewatch.patience import patiently, publish
from tapewatch.ports import Alerts, Bus, Clock, Position, Store
from tapewatch.roles.recovery import Hole, Recovery
from tapewatch.telemetry import ERRORS_TOTAL

KNOWN = 200_000
"""Ids of alerts that were passed on, which a repeat is known by."""
_KNOWN_ENTRIES = 2_000
"""Of its own stream, read after a restart."""
_LAST_SAVE_S = 1.5
_MOST_AT_ONCE = 5_000
MOST_PENDING = 50_000
"""Alerts and withdrawals waiting for the store; past that the role stops reading until they are saved."""

log = structlog.get_logger("tapewatch")


class AlertsRole:
    def __init__(
        self,
        *,
        bus: Bus,
        store: Store,
        clock: Clock,
        partition: int = 0,
        most_pending: int = MOST_PENDING,
        resumes: bool = False,
    ) -> None:
        """With `resumes` it goes on behind what an earlier one saved; else it begins with what the stream retains."""
        self._bus, self._store, self._clock = bus, store, clock
        self._name, self._filtered = f"alerts:{partition}", f"alerts.filtered:{partition}"
        self.recovery = Recovery(self._name, self._name, bus=bus, clock=clock, store=store if resumes else None)
        self._resumes = resumes
        self._most_pending = most_pending
        self._known: OrderedDict[str, None] = OrderedDict()
        self._pending: list[tuple[Alert | Withdrawn, Position]] = []
        self._arrived = asyncio.Event()
        self._saving = asyncio.Lock()

    @property
    def position(self) -> Position | None:
        """The newest entry that was passed on."""
        return self.recovery.position

    async def run(self, leave: asyncio.Event | None = None) -> None:
        """Until the bus closes or `leave` is set."""
        await self.recovery.begin()
        await self._remember()
        async with asyncio.TaskGroup() as tasks:
            saving = tasks.create_task(self._save_as_they_come(), name="alerts store")
            async with aclosing(self.recovery.entries(leave)) as entries:  # type: ignore[type-var]  # a generator
                async for found in entries:
                    if isinstance(found, Hole):
                        continue
                    position, entry = found
                    if isinstance(entry, Alerts):
                        await self._pass_on(entry, position)
                    elif isinstance(entry, Withdrawn):
                        self._queue([entry], position)
                    if len(self._pending) > self._most_pending:
                        await self._save()
                    self.recovery.position = position
            saving.cancel()
        try:
            async with asyncio.timeout(_LAST_SAVE_S):
                await self._save()
        except TimeoutError:
            log.warning("alerts and notes not saved: the store is away", waiting=len(self._pending))

    async def _remember(self) -> None:
        """What an earlier one has passed on."""
        if not self._resumes:
            return
        passed_on = await patiently(
            lambda: self._bus.newest(self._filtered, _KNOWN_ENTRIES), clock=self._clock, where="alerts.begin"
        )
        for _, entry in passed_on:
            if isinstance(entry, Alerts):
                self._know(entry.alerts)

    def _know(self, alerts: Sequence[Alert]) -> None:
        self._known.update(dict.fromkeys(alert.alert_id for alert in alerts))
        while len(self._known) > KNOWN:
            self._known.popitem(last=False)

    async def _pass_on(self, entry: Alerts, position: Position) -> None:
        """To the store goes each of them: one that was passed on before need not have been saved."""
        now_ns = self._clock.now_ns()
        alerts = [msgspec.structs.replace(alert, filtered_ns=now_ns) for alert in entry.alerts]
        first = {alert.alert_id: alert for alert in reversed(alerts) if alert.alert_id not in self._known}
        fresh = tuple(alert for alert in alerts if first.get(alert.alert_id) is alert)
        if fresh:
            await publish(self._bus, self._filtered, Alerts(fresh), clock=self._clock, where="alerts.publish")
            self._know(fresh)
        self._queue(alerts, position)  # now: one that was saved first would not be passed on by a successor

    def _queue(self, work: Sequence[Alert | Withdrawn], position: Position) -> None:
        self._pending += [(item, position) for item in work]
        self._arrived.set()

    async def _save_as_they_come(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await self._save()

    async def _save(self) -> None:
        """All that is pending, in order; it leaves the list when the store has it."""
        async with self._saving:
            while self._pending:
                first, _ = self._pending[0]
                if isinstance(first, Withdrawn):
                    await self._annotate(first)
                else:
                    await self._save_alerts()

    async def _save_alerts(self) -> None:
        """Those up to the next withdrawal."""
        alerts: list[Alert] = []
        for item, _ in self._pending[:_MOST_AT_ONCE]:
            if isinstance(item, Withdrawn):
                break
            alerts.append(item)
        position = self._whole_entries(len(alerts))
        await patiently(
            lambda: self._store.save_alerts(alerts, reader=self._name, position=position, owner=self.recovery.owner),
            clock=self._clock,
            where="alerts.store",
        )
        del self._pending[: len(alerts)]

    async def _annotate(self, withdrawn: Withdrawn) -> None:
        position = self._whole_entries(1)
        changed = await patiently(
            lambda: self._store.annotate_alerts(
                withdrawn.symbol,
                since_ns=withdrawn.ts_ns,
                note=note_of(withdrawn),
                reader=self._name,
                position=position,
                owner=self.recovery.owner,
            ),
            clock=self._clock,
            where="alerts.store",
        )
        del self._pending[:1]
        if not changed:
            return
        try:
            await self._bus.publish(self._filtered, Alerts(tuple(changed)))
        except Unavailable:  # history has the note, and so has every page that is loaded from now on
            ERRORS_TOTAL.labels(where="alerts.publish").inc()

    def _whole_entries(self, count: int) -> Position | None:
        """The newest position of which all work is among the first `count`."""
        following = self._pending[count][1] if len(self._pending) > count else None
        return next((position for _, position in reversed(self._pending[:count]) if position != following), None)


def note_of(withdrawn: Withdrawn) -> str:
    """What people read beside an alert, such as
    ``A print before this alert was cancelled: 100 @ 99.00 at 2025-03-06T14:30:01.000Z.``
    """
    was = f"{_print(withdrawn.price, withdrawn.size)} at {rfc3339(withdrawn.ts_ns)[:-7]}Z"
    if withdrawn.corrected is None:
        return f"A print before this alert was cancelled: {was}."
    return f"A print before this alert was corrected: {was} to {_print(*withdrawn.corrected)}."


def _print(price: float, size: float) -> str:
    return f"{_figure(size, 0)} @ {_figure(price, 2)}"


def _figure(value: float, decimals: int) -> str:
    """With at least so many decimals, and as many more as it has, up to six."""
    whole, _, fraction = f"{value:,.6f}".partition(".")
    fraction = fraction.rstrip("0").ljust(decimals, "0")
    return f"{whole}.{fraction}" if fraction else whole
