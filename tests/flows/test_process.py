"""`tapewatch up` as a process: how it ends, what it leaves in the store, and what it says on the terminal."""

import asyncio
import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tapewatch.adapters.sql import SqlStore
from tapewatch.documents import rfc3339
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.ports import AlertQuery

ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
START_S = 30.0
STOP_S = 5.0
LOAD = ("--symbols", "500", "--ticks-per-second", "1000", "--speed", "25")
RULES = [
    {
        "id": f"rule-{n}",
        "name": "Moves",
        "conditions": [{"metric": "price", "operator": ">" if n % 2 else "<", "value": 20.0 + n}],
    }
    for n in range(10)
]


@contextmanager
def started(folder: Path, *options: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A `tapewatch up` and its address."""
    command = [sys.executable, "-m", "tapewatch", "up", "--data-dir", str(folder / "data"), *options]
    with (folder / "stderr.txt").open("w") as stderr:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    reading = threading.Thread(target=lambda: deque(map(lines.put, process.stdout or ())), daemon=True)
    reading.start()
    try:
        found = ADDRESS.search(lines.get(timeout=START_S))
        assert found is not None
        yield process, found[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reading.join()
        process.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl+C"])
def test_end_under_load_takes_seconds_saves_everything_and_complains_of_nothing(
    tmp_path: Path, number: signal.Signals
) -> None:
    (tmp_path / "rules.json").write_text(json.dumps(RULES))
    heard: list[Any] = []
    with started(tmp_path, "--port", "0", "--rules", str(tmp_path / "rules.json"), *LOAD) as (process, address):
        with (
            connect(address.replace("http", "ws") + "/ws", proxy=None, max_size=None) as client,
            _stalled(address) as _,
        ):
            market_time = ""
            while market_time[14:16] < "32":  # two minutes after the open: bars have closed
                message = json.loads(client.recv(timeout=START_S))
                if message["type"] == "alert":
                    heard.append(message["data"])
                    market_time = message["data"]["fired_at"]
            status = httpx.get(f"{address}/api/v1/system/status", trust_env=False).json()
            asked_s = time.perf_counter()
            process.send_signal(number)
            with suppress(ConnectionClosed):
                while True:
                    message = json.loads(client.recv(timeout=STOP_S))
                    heard += [message["data"]] if message["type"] == "alert" else []
        assert process.wait(timeout=STOP_S) == 0
        assert time.perf_counter() - asked_s < STOP_S
    assert (tmp_path / "stderr.txt").read_text() == ""
    alerts, minutes = asyncio.run(_stored(tmp_path / "data" / "tapewatch.db", heard[0]["symbol"]))
    assert len(alerts) > 500
    assert {alert["alert_id"] for alert in heard} <= alerts
    closed_ns = minutes[-1] + MINUTE_NS + 2 * SECOND_NS
    assert rfc3339(closed_ns + MINUTE_NS) > status["feed"]["market_time"]


@contextmanager
def _stalled(address: str) -> Iterator[socket.socket]:
    """A client that asks for the socket and never reads from it."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            f"GET /ws HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        yield client


async def _stored(database: Path, symbol: str) -> tuple[set[str], list[int]]:
    store = SqlStore(database)
    alerts = await store.alerts(AlertQuery(limit=1_000_000))
    bars = await store.bars(symbol)
    await store.close()
    return {alert.alert_id for alert in alerts}, bars.ts_ns.tolist()


def test_second_start_on_the_same_port_is_one_line_and_exit_2(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "tapewatch", "up", "--data-dir", str(tmp_path), "--port", port]
        second = subprocess.run(command, capture_output=True, text=True, timeout=START_S, check=False)
    assert second.returncode == 2
    assert second.stdout == ""
    assert second.stderr == f"tapewatch: --port: cannot listen on 127.0.0.1:{port}: Address already in use\n"
