"""Figures of a running `tapewatch up`: processor, memory, and the time from a tick to a client's screen.

The server is a process of its own on a loopback port; this one is its only client.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import median
from typing import Any
from urllib.request import urlopen

from websockets.asyncio.client import connect

from tapewatch.bench.tapes import hundred_rules

WHAT = "a running server: 10,000 synthetic symbols at 50,000 ticks/s, 100 rules, --scan-interval 100ms, one client"
_SYMBOLS, _TICKS_PER_S, _INTERVAL_MS = 10_000, 50_000, 100
_WARM_UP_S = 90.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
_JIFFIES_PER_S = os.sysconf("SC_CLK_TCK")

FigureRow = tuple[str, float, str, float, float, str]


@dataclass(slots=True)
class _Watched:
    arrivals: list[tuple[float, float]] = field(default_factory=list)
    """Wall clock of an alert's arrival, and its event time, seconds."""
    offsets: list[float] = field(default_factory=list)
    """Wall clock minus event time at which batches entered the server."""
    cpu: list[float] = field(default_factory=list)
    """Share of one core, per interval."""
    rss: list[float] = field(default_factory=list)
    """Megabytes."""
    rows: int = 0


def watch(seconds: float) -> list[FigureRow]:
    """(name, value, unit, min, max, what) each."""
    with tempfile.TemporaryDirectory() as folder:
        rules = Path(folder) / "rules.json"
        rules.write_text(json.dumps([rule.model_dump() for rule in hundred_rules()]))
        command = [sys.executable, "-m", "tapewatch", "up", "--port", "0", "--data-dir", folder, "--rules", str(rules)]
        command += ["--symbols", str(_SYMBOLS), "--ticks-per-second", str(_TICKS_PER_S)]
        command += ["--scan-interval", f"{_INTERVAL_MS}ms"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                line = server.stdout.readline() if server.stdout else ""
                address = re.search(r"http://([\d.:]+)", line)
                if address is None:
                    raise RuntimeError(f"the server did not start: {line!r}")
                watched = asyncio.run(_watch(address[1], server.pid, seconds))
            finally:
                server.send_signal(signal.SIGINT)
    return _figures(watched)


async def _watch(address: str, pid: int, seconds: float) -> _Watched:
    watched = _Watched()
    async with connect(f"ws://{address}/ws", max_size=None) as socket:
        reading = asyncio.create_task(read_alerts(socket, watched.arrivals))
        await asyncio.sleep(_WARM_UP_S)
        watched.arrivals.clear()
        until = time.monotonic() + seconds
        before_s, before = time.monotonic(), cpu_s(pid)
        while time.monotonic() < until:
            await asyncio.sleep(1.0)
            status = await asyncio.to_thread(_status, address)
            now_s, now = time.monotonic(), cpu_s(pid)
            watched.cpu.append((now - before) / (now_s - before_s))
            before_s, before = now_s, now
            watched.rss.append(rss_mb(pid))
            watched.offsets.append(status)
        reading.cancel()
    return watched


async def read_alerts(socket: Any, arrivals: list[tuple[float, float]]) -> None:
    """Of each alert the wall clock of its arrival, and its event time, seconds."""
    async for frame in socket:
        now = time.time()
        message = json.loads(frame)
        if message["type"] == "alert":
            arrivals.append((now, seconds(message["data"]["fired_at"])))


def _status(address: str) -> float:
    with urlopen(f"http://{address}/api/v1/system/status", timeout=5) as response:  # our own loopback server
        status = json.load(response)
        now = time.time()
    return now - float(status["feed"]["age_s"]) - seconds(status["feed"]["market_time"])


def seconds(rfc3339: str) -> float:
    whole, fraction = rfc3339.rstrip("Z").split(".")
    return datetime.fromisoformat(f"{whole}+00:00").timestamp() + float(f"0.{fraction}")


def cpu_s(pid: int) -> float:
    """Processor time that the process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _JIFFIES_PER_S


def rss_mb(pid: int) -> float:
    """Resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE / 1e6


def _figures(watched: _Watched) -> list[FigureRow]:
    # A batch enters the server when its event time has come, late at most; the earliest shows the true difference.
    offset = min(watched.offsets)
    from_scan = sorted((arrival - event - offset) * 1e3 for arrival, event in watched.arrivals)
    p95 = from_scan[int(len(from_scan) * 0.95)] if from_scan else float("nan")
    tenth = max(1, len(watched.rss) // 10)
    growth = median(watched.rss[-tenth:]) - median(watched.rss[:tenth])
    low, high = (from_scan[0], from_scan[-1]) if from_scan else (p95, p95)
    return [
        ("up_cpu", median(watched.cpu), "cores", min(watched.cpu), max(watched.cpu), f"processor time of {WHAT}"),
        ("up_rss", max(watched.rss), "MB", min(watched.rss), max(watched.rss), "highest resident memory of it"),
        ("up_rss_growth", growth, "MB", growth, growth, f"its growth over {len(watched.rss)} s"),
        ("scan_to_client", p95, "ms", low, high, f"p95 from a scan's instant to the client, {len(from_scan)} alerts"),
        (
            "tick_to_client",
            p95 + _INTERVAL_MS,
            "ms",
            low,
            high + _INTERVAL_MS,
            "the same from the tick, every tick counted as if it had waited the whole scan interval",
        ),
    ]
