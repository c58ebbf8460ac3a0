"""A client that dies a hundred times in an alert storm has in the end what is in the database, each alert once."""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any

import pytest

from tapewatch.client import Client, State, connect
from tapewatch.engine.columns import Batch

pytestmark = pytest.mark.anyio
DEATHS = 100
ANY = {"id": "any", "name": "Any", "when": "price > 1", "fire": "level"}


class UnhurriedFeed:
    """Plays its batches, a moment between them."""

    name = "unhurried"

    def __init__(self, begin: asyncio.Event, script: Sequence[Batch]) -> None:
        self.rejected: Mapping[str, int] = MappingProxyType({})
        self._begin, self._script = begin, script

    async def batches(self) -> AsyncIterator[Batch]:
        await self._begin.wait()
        for batch in self._script:
            yield batch
            await asyncio.sleep(0.01)


async def test_client_killed_a_hundred_times_in_a_storm_has_what_is_in_the_database(
    running: Any, stored: Any, market: Any
) -> None:
    draw, begin = random.Random(5), asyncio.Event()  # the same deaths each time
    heard: list[str] = []
    state: State = {"places": {}, "last_id": None, "known": []}

    async def life(url: str, *, seconds: float) -> State:
        """Saves its state with each alert; then its connection is cut in the middle of whatever it was at."""
        async with connect(url, first_wait_s=0.01, proxy=None, **state) as client:
            saved = client.state()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while True:
                        heard.append((await client.next_alert())["alert_id"])
                        saved = client.state()
            cut(client)
        return saved

    def cut(client: Client) -> None:
        if client._socket is not None:
            client._socket.transport.abort()

    async with running(UnhurriedFeed(begin, market.afternoon()), partitions=2) as up:
        await up.save_rule(ANY)
        url = f"ws://{up.address}/ws"
        state = await life(url, seconds=0.2)
        begin.set()
        for _ in range(DEATHS):
            state = await life(url, seconds=draw.uniform(0.001, 0.05))
        await up.played()
        total = len(await up.alerts_over_rest())
        while len(heard) < total:
            before = len(heard)
            state = await life(url, seconds=2.0)
            assert len(heard) > before, f"{total - before} alerts never came"
    _, alerts = await stored([])
    assert len(alerts) > 500
    assert len(set(heard)) == len(heard)
    assert set(heard) == {alert.alert_id for alert in alerts}
