"""Gateways over one bus that can be killed and started again on their port, and somebody who publishes."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute

from tapewatch.clock import SystemClock
from tapewatch.documents import Alert
from tapewatch.engine.symbols import partition_of
from tapewatch.engine.toplists import SYSTEM_TOPLISTS
from tapewatch.ports import Alerts, Bus, Position
from tapewatch.serve.gateway import Gateway
from tapewatch.serve.server import server_config

MakeAlert = Callable[..., Alert]


class House:
    """One gateway at a time, on one port. `options` are those of the gateway."""

    def __init__(self, bus: Bus, *, partitions: int = 2, **options: Any) -> None:
        self.bus, self.partitions, self.options = bus, partitions, options
        self.port = 0
        self._server: uvicorn.Server | None = None
        self._running: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/ws"

    async def start(self) -> Gateway:
        listening = socket.create_server(("127.0.0.1", self.port))
        self.port = listening.getsockname()[1]
        options = {"clock": SystemClock(), **self.options}
        self.gateway = Gateway(self.bus, toplists=SYSTEM_TOPLISTS, partitions=self.partitions, **options)
        self._running = asyncio.create_task(self.gateway.run())
        app = Starlette(routes=[WebSocketRoute("/ws", self.gateway.connect)])
        config = server_config(app, host="127.0.0.1", port=self.port)
        config.load()
        self._server = uvicorn.Server(config)
        self._server.lifespan = config.lifespan_class(config)
        await self._server.startup(sockets=[listening])
        return self.gateway

    def cut(self) -> None:
        """Every connection ends without a goodbye."""
        assert self._server is not None
        for connection in list(self._server.server_state.connections):
            connection.transport.abort()

    async def kill(self) -> None:
        assert self._server is not None
        assert self._running is not None
        self._running.cancel()
        for listener in self._server.servers:
            listener.close()
        await asyncio.gather(self._running, return_exceptions=True)
        while self._server.server_state.connections or self._server.server_state.tasks:
            self.cut()
            await asyncio.sleep(0.001)
        self._server = None

    async def close(self) -> None:
        if self._server is not None:
            await self.kill()


@asynccontextmanager
async def house(bus: Bus, *, partitions: int = 2, **options: Any) -> AsyncIterator[House]:
    """One that is running."""
    made = House(bus, partitions=partitions, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.close()


class Publisher:
    """Alerts with rising numbers; those of a partition are of one symbol, which belongs there."""

    def __init__(self, bus: Bus, make_alert: MakeAlert, *, partitions: int = 2) -> None:
        self.ids: dict[int, list[str]] = {partition: [] for partition in range(partitions)}
        self.alerts: list[Alert] = []
        self._bus, self._make = bus, make_alert
        self._symbols = {partition_of(f"S{n}", partitions): f"S{n}" for n in range(40)}

    async def publish(self, partition: int, count: int = 1, **fields: Any) -> Position:
        new = [self._make(len(self.alerts) + n, symbol=self._symbols[partition], **fields) for n in range(count)]
        self.alerts += new
        self.ids[partition] += [alert.alert_id for alert in new]
        return await self._bus.publish(f"alerts.filtered:{partition}", Alerts(tuple(new)))

    def partition_of(self, alert_id: str) -> int:
        return next(partition for partition, ids in self.ids.items() if alert_id in ids)

    def by_partition(self, ids: Sequence[str]) -> dict[int, list[str]]:
        """Those ids in their order; each belongs to some partition."""
        return {partition: [one for one in ids if one in set(known)] for partition, known in self.ids.items()}
