"""Figures of REST: reads a second that one process answers over loopback, and how long one takes.

The server is a `tapewatch up` of its own with a small market and stored alerts; this process is its only client, over
connections that stay open, each of which asks again as soon as it is answered.
"""

import asyncio
import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tapewatch.bench.server import FigureRow

_CLIENTS = 16
_SYMBOLS, _TICKS_PER_S = 500, 1_000
_WARM_UP_S = 8.0
READS = (
    "/api/v1/system/status",
    "/api/v1/rules?limit=50",
    "/api/v1/alerts?limit=50",
    "/api/v1/alerts?limit=50&severity=warning,critical&sort=oldest",
    "/api/v1/symbols?limit=50",
    "/api/v1/symbols/{symbol}",
    "/api/v1/symbols/{symbol}/bars?timeframe=5m&limit=100",
    "/api/v1/toplists/system/gainers_5m?limit=50",
    "/api/v1/metrics",
    "/api/v1/health",
)
WHAT = f"{len(READS)} typical reads in turn by {_CLIENTS} clients on loopback, {_SYMBOLS} synthetic symbols running"
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


def watch(seconds: float) -> list[FigureRow]:
    """(name, value, unit, min, max, what) each."""
    with _server() as port:
        times_ms, elapsed_s = asyncio.run(_load(port, seconds))
    times_ms.sort()
    per_s = len(times_ms) / elapsed_s
    p99 = times_ms[int(len(times_ms) * 0.99)]
    return [
        ("rest_reads", per_s, "requests/s", per_s, per_s, WHAT),
        ("rest_reads_p50", median(times_ms), "ms", times_ms[0], times_ms[-1], "half of them are answered within"),
        ("rest_reads_p99", p99, "ms", times_ms[0], times_ms[-1], "99 of 100 are answered within"),
    ]


@contextmanager
def _server() -> Iterator[int]:
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.json"
        asks = [{"metric": "price", "operator": ">", "value": 5.0}]
        severities = ("info", "warning", "critical")
        rules.write_text(
            json.dumps(
                [{"id": f"r{n}", "name": f"R {n}", "conditions": asks, "severity": s} for n, s in enumerate(severities)]
            )
        )
        command = [sys.executable, "-m", "tapewatch", "up", "--port", "0", "--data-dir", folder, "--rules", str(rules)]
        command += ["--symbols", str(_SYMBOLS), "--ticks-per-second", str(_TICKS_PER_S)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
            try:
                line = server.stdout.readline() if server.stdout else ""
                address = _ADDRESS.search(line)
                if address is None:
                    raise RuntimeError(f"the server did not start: {line!r}")
                time.sleep(_WARM_UP_S)
                yield int(address[1])
            finally:
                server.send_signal(signal.SIGINT)


async def _load(port: int, seconds: float) -> tuple[list[float], float]:
    """The time of each answer, milliseconds, and how long it all took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    listed = json.loads(await _answer(reader, writer, "/api/v1/symbols?limit=1"))
    writer.close()
    paths = [path.format(symbol=listed["items"][0]["symbol"]) for path in READS]
    times_ms: list[float] = []
    began = time.perf_counter()
    await asyncio.gather(
        *(_client(port, paths[n % len(paths) :] + paths[: n % len(paths)], seconds, times_ms) for n in range(_CLIENTS))
    )
    return times_ms, time.perf_counter() - began


async def _client(port: int, paths: list[str], seconds: float, times_ms: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    until = time.perf_counter() + seconds
    turn = 0
    while (asked := time.perf_counter()) < until:
        await _answer(reader, writer, paths[turn % len(paths)])
        times_ms.append((time.perf_counter() - asked) * 1e3)
        turn += 1
    writer.close()


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str) -> bytes:
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    head = await reader.readuntil(b"\r\n\r\n")
    length = _LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 200 ") or length is None:
        raise RuntimeError(f"{path} was answered with {head[:40]!r}")
    return await reader.readexactly(int(length[1]))
