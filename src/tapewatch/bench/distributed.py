"""Figures of the distributed system: each role a process of its own, over the Redis and the TimescaleDB that
`TAPEWATCH_BUS` and `TAPEWATCH_STORE` name (`make services` starts both). The database of the bus must be empty, and
is emptied again; the store is used as it is.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
from redis import Redis
from websockets.asyncio.client import connect

from tapewatch.bench.server import FigureRow, cpu_s, read_alerts, rss_mb
from tapewatch.bench.tapes import rules_like
from tapewatch.engine.columns import MINUTE_NS, Bars, Batch
from tapewatch.errors import ConfigError
from tapewatch.ports import Bus, Store

SYMBOLS, TICKS_PER_S, RULES, PARTITIONS = 10_000, 200_000, 1_000, 4
WHAT = (
    f"each role a process, Redis and TimescaleDB on the same machine: {SYMBOLS:,} synthetic symbols at {TICKS_PER_S:,} "
    f"ticks/s, {RULES:,} rules, {PARTITIONS} partitions, one client"
)
BARS_WHAT = "bars a second into TimescaleDB, ten minutes of 10,000 symbols, a call a minute"
_STREAM_MB = 1_000
"""More makes the rewrites of Redis' log longer than a small machine can bear."""
_WARM_UP_S = 60.0
_TICKS = 20
_START_S = 60.0


@dataclass(slots=True)
class _Watched:
    arrivals: list[tuple[float, float]] = field(default_factory=list)
    """Wall clock of an alert's arrival, and its event time, seconds."""
    offsets: list[float] = field(default_factory=list)
    """Wall clock minus event time at which batches entered ingest."""
    lags: list[int] = field(default_factory=list)
    """Entries that the readers had not done, all together."""
    cpu: dict[str, list[float]] = field(default_factory=dict)
    """By process, its share of one core in each second."""
    rss: dict[str, float] = field(default_factory=dict)
    """By process, the most it held, megabytes."""
    redis_cpu: float = 0.0
    """Share of one core."""
    rows_per_s: float = 0.0
    """That ingest put onto the tape."""


def servers() -> tuple[str, str] | None:
    """The addresses of bus and store; None where there are none."""
    bus, store = os.environ.get("TAPEWATCH_BUS"), os.environ.get("TAPEWATCH_STORE")
    return (bus, store) if bus and store else None


def watch(
    seconds: float, *, interval_ms: int = 100, scanners: int = 1, ticks_per_s: float = TICKS_PER_S
) -> list[FigureRow]:
    """(name, value, unit, min, max, what) each."""
    return asyncio.run(_measure(seconds, interval_ms=interval_ms, scanners=scanners, ticks_per_s=ticks_per_s))


async def _measure(seconds: float, *, interval_ms: int, scanners: int, ticks_per_s: float) -> list[FigureRow]:
    found = servers()
    if found is None:
        return []
    from tapewatch.adapters.redis import RedisBus
    from tapewatch.adapters.sql import SqlStore

    with Redis.from_url(found[0]) as client:
        if client.dbsize():
            raise ConfigError("the bus that TAPEWATCH_BUS names is not empty: take another database of it")
    bus, store = RedisBus(found[0]), SqlStore(found[1])
    with tempfile.TemporaryDirectory() as folder:
        try:
            await store.upgrade()
            for rule in rules_like(RULES):
                with contextlib.suppress(Exception):  # it is there from an earlier run
                    await store.save_rule(rule)
            feed = ["--symbols", str(SYMBOLS), "--ticks-per-second", str(ticks_per_s), "--data-dir", folder]
            common = ["--partitions", str(PARTITIONS), "--stream-mb", str(_STREAM_MB)]
            common += ["--scan-interval", f"{interval_ms}ms"]
            roles = ["bars", "indicators", *["scanner"] * scanners, "alerts", "toplists", "api", "ingest"]
            async with _processes(roles, common, feed) as (processes, address):
                watched = await _watch(address, processes, bus, seconds)
        finally:
            await bus.close()
            await store.close()
            with Redis.from_url(found[0]) as client:
                client.flushdb()
    return list(_figures(watched, interval_ms=interval_ms, scanners=scanners))


@asynccontextmanager
async def _processes(roles: list[str], common: list[str], feed: list[str]) -> AsyncIterator[tuple[dict[str, int], str]]:
    """Each role's process id, and where the API is."""
    running: dict[str, subprocess.Popen[str]] = {}
    try:
        for role in roles:
            command = [sys.executable, "-m", "tapewatch", "run", role, *common]
            command += feed if role == "ingest" else []
            command += ["--port", "0"] if role == "api" else []
            process = await asyncio.to_thread(_start, command)
            running[f"{role}-{sum(name.startswith(role) for name in running)}"] = process
        address = ""
        for name, process in running.items():
            line = await asyncio.to_thread(process.stdout.readline) if process.stdout else ""
            if not line:
                raise RuntimeError(f"{name} did not start")
            if name.startswith("api"):
                address = line.split("http://", 1)[1].split()[0]
        yield {name: process.pid for name, process in running.items()}, address
    finally:
        for process in running.values():
            process.send_signal(signal.SIGTERM)
        for process in running.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            if process.stdout:
                process.stdout.close()


def _start(command: list[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


async def _watch(address: str, processes: dict[str, int], bus: Bus, seconds: float) -> _Watched:
    watched = _Watched()
    async with asyncio.timeout(_START_S):
        while not await asyncio.to_thread(_ready, address):  # noqa: ASYNC110  # it tells nobody
            await asyncio.sleep(0.5)
    async with connect(f"ws://{address}/ws", max_size=None) as socket:
        reading = asyncio.create_task(read_alerts(socket, watched.arrivals))
        await asyncio.sleep(_WARM_UP_S)
        watched.arrivals.clear()
        before_s, before = time.monotonic(), {name: cpu_s(pid) for name, pid in processes.items()}
        redis, rows = _redis_cpu_s(), await asyncio.to_thread(_rows, address)
        until = before_s + seconds
        while time.monotonic() < until:
            await asyncio.sleep(1.0)
            now_s, now = time.monotonic(), {name: cpu_s(pid) for name, pid in processes.items()}
            for name, pid in processes.items():
                watched.cpu.setdefault(name, []).append((now[name] - before[name]) / (now_s - before_s))
                watched.rss[name] = max(watched.rss.get(name, 0.0), rss_mb(pid))
            before_s, before = now_s, now
            for _, entry in await bus.newest("ticks:0", 3):
                if isinstance(entry, Batch) and len(entry.marks_ns):
                    watched.offsets.append((entry.received_ns - int(entry.marks_ns[-1])) / 1e9)
            streams = [f"ticks:{p}" for p in range(PARTITIONS)]
            lags = [await bus.lag(reader, streams) for reader in ("scanner", "bars")]
            watched.lags.append(sum(sum(lag.values()) for lag in lags))
        watched.redis_cpu = (_redis_cpu_s() - redis) / seconds
        watched.rows_per_s = (await asyncio.to_thread(_rows, address) - rows) / seconds
        reading.cancel()
    return watched


def _redis_cpu_s() -> float:
    from tapewatch.bench.tape_path import redis_cpu_s

    found = servers()
    return 0.0 if found is None else redis_cpu_s(found[0])


def _rows(address: str) -> int:
    with urlopen(f"http://{address}/api/v1/system/status", timeout=5) as response:  # our own loopback server
        return int(json.load(response)["feed"]["rows"])


def _ready(address: str) -> bool:
    try:
        with urlopen(f"http://{address}/ready", timeout=5):  # our own loopback server
            return True
    except (URLError, OSError):
        return False


def _figures(watched: _Watched, *, interval_ms: int, scanners: int) -> Iterator[FigureRow]:
    suffix = f"{interval_ms}ms" + (f"_{scanners}_scanners" if scanners > 1 else "")
    offset = min(watched.offsets)
    from_scan = np.array([(arrival - event - offset) * 1e3 for arrival, event in watched.arrivals] or [np.nan])
    waited = (np.arange(_TICKS) + 0.5) / _TICKS * interval_ms
    from_tick = from_scan[:, None] + waited
    yield (
        f"many_{suffix}_tick_to_client",
        float(np.percentile(from_tick, 95)),
        "ms",
        float(from_tick.min()),
        float(from_tick.max()),
        (
            f"p95 over {len(watched.arrivals)} alerts, of each {_TICKS} ticks evenly spread over the interval before "
            f"its scan; had each waited all of it, {np.percentile(from_scan, 95) + interval_ms:,.0f}; {WHAT}"
        ),
    )
    tenth = max(1, len(watched.lags) // 10)
    yield (
        f"many_{suffix}_lag",
        median(watched.lags[-tenth:]),
        "entries",
        min(watched.lags),
        max(watched.lags),
        "that scanner and bars had not done at the end (an entry is a tenth of a second of one partition)",
    )
    rate, redis = watched.rows_per_s, watched.redis_cpu
    yield f"many_{suffix}_rate", rate, "ticks/s", rate, rate, "that ingest put onto the tape"
    yield f"many_{suffix}_cpu_redis", redis, "cores", redis, redis, "processor time of Redis"
    total = [sum(shares) for shares in zip(*watched.cpu.values(), strict=True)]
    yield (f"many_{suffix}_cpu", median(total), "cores", min(total), max(total), "processor time of all roles")
    for name, shares in watched.cpu.items():
        yield (
            f"many_{suffix}_cpu_{name}",
            median(shares),
            "cores",
            min(shares),
            max(shares),
            f"of it, and {watched.rss[name]:,.0f} MB at most",
        )


def bars_written() -> Iterator[float]:
    """Rows a second each; nothing without a store."""
    found = servers()
    for minute in range(10 if found else 0):
        yield asyncio.run(_write_minute(found[1] if found else "", minute))


async def _write_minute(address: str, minute: int) -> float:
    from tapewatch.adapters.sql import SqlStore

    store: Store = SqlStore(address)
    try:
        await store.upgrade()
        bars = _bars_of(1_600_000_000 * 1_000_000_000 // MINUTE_NS + int(time.time()) % 100_000 + minute)
        started = time.perf_counter()
        await store.save_bars(bars, reader="bench")
        return len(bars) / (time.perf_counter() - started)
    finally:
        await store.close()


def _bars_of(minute: int) -> Bars:
    draw = np.random.default_rng(minute)
    price = draw.uniform(1, 500, SYMBOLS).round(2)
    count = draw.integers(1, 1_000, SYMBOLS)
    shares = np.asarray(count * 100, np.float64)
    return Bars(
        symbols=tuple(f"B{n:05d}" for n in range(SYMBOLS)),
        symbol=np.arange(SYMBOLS, dtype=np.int32),
        ts_ns=np.full(SYMBOLS, minute * MINUTE_NS),
        open=price,
        high=price + 1,
        low=price - 0.5,
        close=price + 0.5,
        volume=shares,
        vwap=price,
        vwap_volume=shares,
        trade_count=count,
        revision=np.zeros(SYMBOLS, np.int64),
    )
