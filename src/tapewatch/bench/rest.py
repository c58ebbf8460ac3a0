"""Figures of REST: reads a second that one process answers over loopback, how long one takes, and what it costs.

The server is a `tapewatch up` of its own with a small market, a symbol master, stored bars and the alerts of three
rules; this process is its only client, over connections that stay open, each of which asks again as soon as it
is answered. The client writes bytes and looks for the end of the answer, so that it takes less of the machine than what
it measures.
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
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import median

import numpy as np

from tapewatch.app.opening import open_store
from tapewatch.bench.server import FigureRow, cpu_s
from tapewatch.documents import Security
from tapewatch.engine.columns import MINUTE_NS, Bars
from tapewatch.feeds.synthetic import synthetic_symbols
from tapewatch.nyse import trading_days

_CLIENTS = 16
_SYMBOLS, _TICKS_PER_S = 500, 1_000
_WITH_BARS, _STORED_BARS = 40, 600
_WARM_UP_S, _IDLE_S = 8.0, 2.0
READS = (
    "/api/v1/system/status",
    "/api/v1/rules?limit=50",
    "/api/v1/alerts?limit=50",
    "/api/v1/alerts?limit=50&severity=warning,critical&sort=oldest",
    "/api/v1/alerts/{alert}",
    "/api/v1/symbols?limit=50",
    "/api/v1/symbols/{symbol}",
    "/api/v1/symbols/{symbol}/bars?timeframe=5m&limit=100",
    "/api/v1/toplists/system/volume_day?limit=50",
    "/api/v1/metrics",
    "/api/v1/health",
)
WHAT = f"{len(READS)} typical reads in turn by {_CLIENTS} clients on loopback, {_SYMBOLS} synthetic symbols running"
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


@dataclass(slots=True)
class _Watched:
    times_ms: list[float] = field(default_factory=list)
    """Of each answer."""
    elapsed_s: float = 0.0
    cpu_us: float = 0.0
    """Processor time of the server that one answer takes, without what its market takes."""


def watch(seconds: float) -> list[FigureRow]:
    """(name, value, unit, min, max, what) each."""
    with _server() as (port, pid):
        watched = asyncio.run(_load(port, pid, seconds))
    times_ms = sorted(watched.times_ms)
    per_s = len(times_ms) / watched.elapsed_s
    p99 = times_ms[int(len(times_ms) * 0.99)]
    cpu_us = watched.cpu_us
    return [
        ("rest_reads", per_s, "requests/s", per_s, per_s, WHAT),
        ("rest_reads_p50", median(times_ms), "ms", times_ms[0], times_ms[-1], "half of them are answered within"),
        ("rest_reads_p99", p99, "ms", times_ms[0], times_ms[-1], "99 of 100 are answered within"),
        ("rest_reads_cpu", cpu_us, "us", cpu_us, cpu_us, "processor time of the server for one, beside its market's"),
    ]


@contextmanager
def _server() -> Iterator[tuple[int, int]]:
    """Its port and process."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(_fill(Path(folder)))
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
                yield int(address[1]), server.pid
            finally:
                server.send_signal(signal.SIGINT)


async def _fill(folder: Path) -> None:
    """What a server knows that has run before: who is listed, and the bars before the market's first day."""
    names = synthetic_symbols(seed=1, symbols=_SYMBOLS)
    days = trading_days()
    ended = days.close_ns[days.close_ns <= time.time_ns()]
    n = _WITH_BARS * _STORED_BARS
    price = np.linspace(10.0, 20.0, n)
    bars = Bars(
        symbols=tuple(sorted(names)[:_WITH_BARS]),
        symbol=np.repeat(np.arange(_WITH_BARS, dtype=np.int32), _STORED_BARS),
        ts_ns=np.tile(ended[-2] - MINUTE_NS * np.arange(_STORED_BARS, 0, -1), _WITH_BARS),
        open=price,
        high=price + 0.1,
        low=price - 0.1,
        close=price + 0.05,
        volume=np.full(n, 1_000.0),
        vwap=price + 0.01,
        vwap_volume=np.full(n, 1_000.0),
        trade_count=np.full(n, 10, np.int64),
        revision=np.zeros(n, np.int64),
    )
    listed = [
        Security(
            symbol=name,
            name=f"{name} Holdings Incorporated",
            exchange="XNAS",
            tape="C",
            type="CS",
            market_cap=1e9,
            shares_outstanding=5e7,
            sector="Technology",
            round_lot=100,
            as_of=date(2025, 1, 2),
        )
        for name in names
    ]
    store = await open_store(folder)
    try:
        await store.save_bars(bars, reader="bench")
        await store.save_securities(listed)
    finally:
        await store.close()


async def _load(port: int, pid: int, seconds: float) -> _Watched:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    listed = json.loads(await _answer(reader, writer, f"/api/v1/symbols?limit={_CLIENTS}"))["items"]
    alerts = json.loads(await _answer(reader, writer, f"/api/v1/alerts?limit={_CLIENTS}"))["items"]
    bars = json.loads(await _answer(reader, writer, READS[7].format(symbol=listed[0]["symbol"])))["items"]
    ranked = json.loads(await _answer(reader, writer, READS[8]))["rankings"]
    if len(alerts) < _CLIENTS or len(bars) < 100 or len(ranked) < 50:
        raise RuntimeError("the server has less to show than what is to be measured")
    writer.close()
    before_s, before = time.perf_counter(), cpu_s(pid)
    await asyncio.sleep(_IDLE_S)
    market = (cpu_s(pid) - before) / (time.perf_counter() - before_s)

    watched = _Watched()
    began_s, began = time.perf_counter(), cpu_s(pid)
    clients = []
    for n, (symbol, alert) in enumerate(zip(listed, alerts, strict=True)):
        paths = [path.format(symbol=symbol["symbol"], alert=alert["alert_id"]) for path in READS]
        turned = paths[n % len(paths) :] + paths[: n % len(paths)]
        clients.append(_client(port, turned, seconds, watched.times_ms))
    await asyncio.gather(*clients)
    watched.elapsed_s = time.perf_counter() - began_s
    worked_s = cpu_s(pid) - began - market * watched.elapsed_s
    watched.cpu_us = worked_s / len(watched.times_ms) * 1e6
    return watched


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
