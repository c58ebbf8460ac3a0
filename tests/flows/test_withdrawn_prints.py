"""A print that is cancelled or corrected after an alert: the alert says so, on the socket and in history."""

import asyncio
import json
from typing import Any

import pytest

from tapewatch.engine.columns import SECOND_NS, Batch, Kind, make_batch
from tapewatch.nyse import day_of

pytestmark = pytest.mark.anyio
OPEN_NS = day_of("2025-03-03")[1]
CHEAP = {"id": "cheap", "name": "Cheap", "conditions": [{"metric": "price", "operator": "<", "value": 100.0}]}


def rows(at_s: float, *kinds: Kind, **columns: Any) -> Batch:
    """Of AAPL, of the exchange Q, at that second after the open, and a mark right behind."""
    n = len(kinds)
    return make_batch(
        symbols=("AAPL",),
        conditions=("@",),
        kind=kinds,
        symbol=[0] * n,
        ts_ns=[OPEN_NS + round(at_s * SECOND_NS)] * n,
        tape=[ord("C")] * n,
        exchange=[ord("Q")] * n,
        marks_row=[n],
        marks_ns=[OPEN_NS + round(at_s * SECOND_NS) + 1],
        **columns,
    )


@pytest.mark.parametrize(
    ("amendment", "note"),
    [
        (
            rows(5, Kind.CANCEL, trade_id=[8], price=[99.0], size=[100.0]),
            "A print before this alert was cancelled: 100 @ 99.00 at 2025-03-03T14:30:01.500Z.",
        ),
        (
            rows(5, Kind.CORRECTION, trade_id=[8], price=[109.5], size=[40.0]),
            "A print before this alert was corrected: 100 @ 99.00 at 2025-03-03T14:30:01.500Z to 40 @ 109.50.",
        ),
    ],
    ids=["cancelled", "corrected"],
)
async def test_alert_of_a_withdrawn_print_gets_a_note_over_websocket_and_rest(
    running: Any, scripted: Any, amendment: Batch, note: str
) -> None:
    ready, alerted = asyncio.Event(), asyncio.Event()
    script = [
        ready,
        rows(1.0, Kind.TRADE, trade_id=[7], price=[110.0], size=[100.0]),
        rows(1.5, Kind.TRADE, trade_id=[8], price=[99.0], size=[100.0]),
        rows(4.0),
        alerted,
        amendment,
        rows(8.0),
    ]
    async with running(scripted(script)) as up, up.socket() as client:
        await up.save_rule(CHEAP)
        ready.set()
        alert = json.loads(await asyncio.wait_for(client.recv(), 10))
        assert (alert["type"], alert["data"]["price"], alert["data"]["note"]) == ("alert", 99.0, None)
        alerted.set()
        annotated = json.loads(await asyncio.wait_for(client.recv(), 10))
        del annotated["at"]  # its place in the stream
        for told in (alert["data"], annotated["data"]):
            assert told["latency"].pop("sent") is not None
        assert annotated == {"type": "alert_note", "data": {**alert["data"], "note": note}}
        stored: list[dict[str, Any]] = []
        async with asyncio.timeout(10):
            while not stored or stored[0]["note"] is None:  # what clients hear may not be in the store yet
                stored = await up.alerts_over_rest(1)
        assert stored == [{**annotated["data"], "mark": None}]
