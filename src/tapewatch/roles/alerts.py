"""alerts: each alert once, to `alerts.filtered:{p}` at once and to history.

Publishing comes first, so that alerts reach screens while the store is away. A repeat is harmless: the id is derived,
claimed once in hot state, and unique in the store.
"""

import asyncio

from tapewatch.documents import Alert
from tapewatch.ports import Alerts, Bus, HotState, Position, Store

_CLAIM_TTL_S = 3600.0
_MOST_PENDING = 50_000
"""Alerts waiting for the store; past that the role stops reading until they are saved."""


class AlertsRole:
    def __init__(self, *, bus: Bus, hot: HotState, store: Store, partition: int = 0) -> None:
        self._bus, self._hot, self._store, self._partition = bus, hot, store, partition
        self._pending: list[Alert] = []
        self._position: Position | None = None
        self._arrived = asyncio.Event()
        self._saving = asyncio.Lock()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            saving = tasks.create_task(self._save_as_they_come(), name="alerts store")
            async for position, entry in self._bus.read(f"alerts:{self._partition}"):
                if isinstance(entry, Alerts):
                    await self._pass_on(entry, position)
            saving.cancel()
        await self._save()

    async def _pass_on(self, entry: Alerts, position: Position) -> None:
        token = f"alerts:{self._partition}"
        fresh = tuple(
            [a for a in entry.alerts if await self._hot.claim(f"alert:{a.alert_id}", token, ttl_s=_CLAIM_TTL_S)]
        )
        if not fresh:
            return
        await self._bus.publish(f"alerts.filtered:{self._partition}", Alerts(fresh))
        self._pending += fresh
        self._position = position
        self._arrived.set()
        if len(self._pending) > _MOST_PENDING:
            await self._save()

    async def _save_as_they_come(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            await self._save()

    async def _save(self) -> None:
        async with self._saving:
            if self._pending:
                alerts, position = self._pending, self._position
                self._pending = []
                await self._store.save_alerts(alerts, reader=f"alerts:{self._partition}", position=position)
