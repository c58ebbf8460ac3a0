"""The tape path alone: one writer, one Redis, three reading processes; batches are written, read and decoded, and
nothing is done with them.
"""

import asyncio
import multiprocessing
import multiprocessing.synchronize
import time
from collections.abc import Iterator
from dataclasses import replace
from multiprocessing.queues import Queue
from statistics import median

import numpy as np
from redis import Redis

from tapewatch.bench.distributed import servers
from tapewatch.bench.server import FigureRow
from tapewatch.engine.columns import SECOND_NS, Batch, make_batch
from tapewatch.ports import Bus

PARTITIONS, READERS, SYMBOLS = 64, 3, 10_000
RATES = (50_000, 200_000, 1_000_000)
"""Ticks a second."""
_FLUSH_S = 0.1
_SECONDS = 20
WHAT = f"the tape path alone: {PARTITIONS} partitions, batches of 100 ms, one Redis, {READERS} reading processes"

_Told = tuple[int, list[float], float]


def watch(_: float) -> list[FigureRow]:
    """(name, value, unit, min, max, what) each."""
    found = servers()
    return [] if found is None else [row for rate in RATES for row in _at(found[0], rate)]


def _at(address: str, rate: int) -> Iterator[FigureRow]:
    context = multiprocessing.get_context("spawn")
    told: Queue[_Told] = context.Queue()
    ready = context.Barrier(READERS + 1)
    readers = [context.Process(target=_read, args=(address, told, ready), daemon=True) for _ in range(READERS)]
    for reader in readers:
        reader.start()
    ready.wait()
    started, redis = time.process_time(), redis_cpu_s(address)
    published, seconds = asyncio.run(_write(address, rate))
    cpu, redis = (time.process_time() - started) / seconds, (redis_cpu_s(address) - redis) / seconds
    answers = [told.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join(10)
    waits = sorted(wait for _, waits, _ in answers for wait in waits)
    rows = min(rows for rows, _, _ in answers)
    name = f"tape_path_{rate // 1_000}k"
    p95 = waits[int(len(waits) * 0.95)] * 1e3
    what = f"p95 from the writer to a decoded batch, {rows:,} of {published:,} rows read; {WHAT}"
    yield name, p95, "ms", waits[0] * 1e3, waits[-1] * 1e3, what
    yield f"{name}_rate", published / seconds, "ticks/s", 0, published / seconds, "that were written"
    yield f"{name}_cpu_writer", cpu, "cores", cpu, cpu, "processor time of the writer"
    yield f"{name}_cpu_redis", redis, "cores", redis, redis, "of the server"
    shares = [share for _, _, share in answers]
    yield f"{name}_cpu_reader", median(shares), "cores", min(shares), max(shares), "of each reader"


def redis_cpu_s(address: str) -> float:
    """Processor time that the server has used."""
    with Redis.from_url(address) as client:
        used = client.info("cpu")
    return float(used["used_cpu_sys"]) + float(used["used_cpu_user"])


async def _write(address: str, rate: int) -> tuple[int, float]:
    from tapewatch.adapters.redis import RedisBus

    bus: Bus = RedisBus(address)
    streams = [f"bench:{p}" for p in range(PARTITIONS)]
    parts = _parts(round(rate * _FLUSH_S))
    try:
        for stream in streams:
            await bus.take_over(stream)
        began, rows = time.perf_counter(), 0
        for turn in range(1, round(_SECONDS / _FLUSH_S) + 1):
            now_ns = time.time_ns()
            await bus.publish_all({s: part.received(now_ns) for s, part in zip(streams, parts, strict=True)})
            rows += sum(map(len, parts))
            await asyncio.sleep(max(0.0, began + turn * _FLUSH_S - time.perf_counter()))
        seconds = time.perf_counter() - began
        last = replace(parts[0].rows(0, 0), received_ns=-1)
        await bus.publish_all(dict.fromkeys(streams, last))
        await asyncio.sleep(1.0)  # the readers take it
        with Redis.from_url(address) as client:
            client.delete(*(key for key in client.scan_iter("bench:*")))
    finally:
        await bus.close()
    return rows, seconds


def _parts(rows: int) -> list[Batch]:
    draw = np.random.default_rng(1)
    each, own = max(1, rows // PARTITIONS), SYMBOLS // PARTITIONS
    return [
        make_batch(
            symbols=tuple(f"S{p:02d}{n:03d}" for n in range(own)),
            conditions=("@", "@ F"),
            symbol=draw.integers(0, own, each),
            condition=draw.integers(0, 2, each),
            ts_ns=np.arange(each) + 1_700_000_000 * SECOND_NS,
            price=draw.uniform(1, 500, each).round(2),
            size=draw.integers(1, 1_000, each),
            trade_id=np.arange(each),
            marks_row=[each],
            marks_ns=[1_700_000_000 * SECOND_NS + each],
        )
        for p in range(PARTITIONS)
    ]


def _read(address: str, told: "Queue[_Told]", ready: "multiprocessing.synchronize.Barrier") -> None:
    told.put(asyncio.run(_follow(address, ready)))


async def _follow(address: str, ready: "multiprocessing.synchronize.Barrier") -> _Told:
    from tapewatch.adapters.redis import RedisBus

    bus = RedisBus(address)
    waits: list[float] = []
    rows = 0

    async def follow(stream: str) -> None:
        nonlocal rows
        async for _, entry in bus.read(stream, await bus.tail(stream)):
            if isinstance(entry, Batch):
                if entry.received_ns < 0:
                    return
                waits.append((time.time_ns() - entry.received_ns) / 1e9)
                rows += len(entry)

    try:
        async with asyncio.TaskGroup() as tasks:
            for p in range(PARTITIONS):
                tasks.create_task(follow(f"bench:{p}"))
            await asyncio.sleep(1.0)
            await asyncio.to_thread(ready.wait)
            began, cpu = time.perf_counter(), time.process_time()
        return rows, waits, (time.process_time() - cpu) / (time.perf_counter() - began)
    finally:
        await bus.close()
