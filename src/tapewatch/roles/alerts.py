"""alerts: each alert once, to `alerts.filtered:{p}` at once and to history.

Screens do not wait for the store: alerts are passed on while it is away, and saved in order when it is back. A repeat
is harmless: the id is derived, claimed once in hot state, and unique in the store.
"""

import asyncio

import structlog

from tapewatch.documents import Alert
from tapewatch.errors import Unavailable
from tapewatch.ports import Alerts, Bus, Clock, HotState, Position, Store
from tapewatch.roles.patience import patiently, read_on
from tapewatch.telemetry import ERRORS_TOTAL

_CLAIM_TTL_S = 300.0
_LAST_SAVE_S = 1.5
_MOST_AT_ONCE = 5_000
MOST_PENDING = 50_000
"""Alerts waiting for the store; past that the role stops reading until they are saved."""

log = structlog.get_logger("tapewatch")


class AlertsRole:
    def __init__(
        self,
        *,
        bus: Bus,
        hot: HotState,
        store: Store,
        clock: Clock,
        partition: int = 0,
        most_pending: int = MOST_PENDING,
    ) -> None:
        self._bus, self._hot, self._store, self._clock, self._partition = bus, hot, store, clock, partition
        self._name = f"alerts:{partition}"
        self._most_pending = most_pending
        self._pending: list[tuple[Alert, Position]] = []
        self._arrived = asyncio.Event()
        self._saving = asyncio.Lock()
        self.position: Position | None = None
        """The newest entry that was passed on."""

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            saving = tasks.create_task(self._save_as_they_come(), name="alerts store")
            async for position, entry in read_on(self._bus, self._name, clock=self._clock, where="alerts.read"):
                if isinstance(entry, Alerts):
                    await self._pass_on(entry, position)
                self.position = position
            saving.cancel()
        try:
            async with asyncio.timeout(_LAST_SAVE_S):
                await self._save()
        except TimeoutError:
            log.warning("alerts not saved: the store is away", alerts=len(self._pending))

    async def _pass_on(self, entry: Alerts, position: Position) -> None:
        fresh = tuple([alert for alert in entry.alerts if await self._claim(alert)])
        if not fresh:
            return
        self._pending += [(alert, position) for alert in fresh]
        self._arrived.set()
        await self._bus.publish(f"alerts.filtered:{self._partition}", Alerts(fresh))
        if len(self._pending) > self._most_pending:
            await self._save()

    async def _claim(self, alert: Alert) -> bool:
        try:
            return await self._hot.claim(f"alert:{alert.alert_id}", self._name, ttl_s=_CLAIM_TTL_S)
        except Unavailable:
            ERRORS_TOTAL.labels(where="alerts.claim").inc()
            return True  # twice on a screen is better than not at all, and the store keeps one

    async def _save_as_they_come(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await self._save()

    async def _save(self) -> None:
        """All that is pending, in order; it leaves the list when the store has it."""
        async with self._saving:
            while self._pending:
                some = self._pending[:_MOST_AT_ONCE]
                alerts, position = [alert for alert, _ in some], self._whole_entries(some)
                await patiently(
                    lambda: self._store.save_alerts(alerts, reader=self._name, position=position),  # noqa: B023
                    clock=self._clock,
                    where="alerts.store",
                )
                del self._pending[: len(some)]

    def _whole_entries(self, some: list[tuple[Alert, Position]]) -> Position | None:
        """The newest position of which all alerts are among these."""
        following = self._pending[len(some)][1] if len(self._pending) > len(some) else None
        return next((position for _, position in reversed(some) if position != following), None)
