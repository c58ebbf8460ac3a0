"""Figures of the gateway under load: thousands of WebSocket clients of one `tapewatch run gateway`.

The gateway is a process of its own with accounts, over the Redis that `TAPEWATCH_BUS` names, whose database must be
empty and is emptied again; the clients are one other process (`bench/gateway_clients.py`). This one publishes what the
roles would: all lists at once each second, as the toplists role does, and an alert for everybody at any instant of each
second. Half way some clients that follow many lists stop reading, and read on once the gateway has given them up.
"""

import asyncio
import multiprocessing
import os
import re
import resource
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
from redis import Redis

from tapewatch.accounts.tokens import new_api_token
from tapewatch.accounts.users import ApiToken, User
from tapewatch.bench.gateway_clients import Dial, Expected, Heard, dial_and_listen
from tapewatch.bench.server import FigureRow, cpu_s, rss_mb
from tapewatch.commands.terminal import progress
from tapewatch.documents import Alert, rfc3339
from tapewatch.engine.board import BoardRows
from tapewatch.engine.symbols import partition_of
from tapewatch.engine.toplists import MARKS, SYSTEM_TOPLISTS
from tapewatch.errors import ConfigError
from tapewatch.ports import Alerts, Bus
from tapewatch.toplist_documents import Toplist
from tapewatch.toplist_frames import Rows, toplist_frame

CLIENTS, LISTS, STALLED, PARTITIONS = 5_000, 50, 3, 4
WHAT = (
    f"{CLIENTS:,} WebSocket clients of one gateway process, of {LISTS} users, each with all alerts and one of {LISTS} "
    "toplists; each second an alert, and all lists at once"
)
_CONNECTS_PER_S = 150.0
_OTHER_FILES = 256
_MANY = 15
"""Lists of a client that will stall: so many fill its buffers within seconds."""
_WARM_UP_S, _SETTLE_S = 5.0, 3.0
_GIVEN_UP_S = 60.0
_ROWS, _COLUMNS = 50, ("price", "change_pct_day", "volume_day")
_ADDRESS = re.compile(r"http://127\.0\.0\.1:(\d+)")
_SLOW = re.compile(r'^websocket_endings_total\{code="4008"\} ([0-9.]+)$', re.MULTILINE)


@dataclass(slots=True)
class _Measured:
    heard: Heard = field(default_factory=Heard)
    alone_mb: float = 0.0
    """The gateway's resident memory before the first client."""
    connected_mb: float = 0.0
    stalled_mb: float = 0.0
    """The most while clients stall."""
    read_s: float = 1.0
    """How long all clients read."""
    cpu_s: dict[str, float] = field(default_factory=dict)
    """What the processes used in that time."""
    given_up_s: float = float("nan")
    """From the last read of those that stall until the gateway ended the last of them."""
    alerts: int = 0
    bytes_each: float = 0.0
    """Of a list's frame."""


def watch(seconds: float) -> list[FigureRow]:
    """(name, value, unit, min, max, what) each."""
    bus = os.environ.get("TAPEWATCH_BUS")
    if not bus:
        return []
    _allow_open_files(CLIENTS + STALLED)
    with Redis.from_url(bus) as client:
        if client.dbsize():
            raise ConfigError("the bus that TAPEWATCH_BUS names is not empty: take another database of it")
        try:
            measured = asyncio.run(_measure(bus, seconds))
        finally:
            client.flushdb()
    return list(_figures(measured))


def _allow_open_files(sockets: int) -> None:
    """For this process and those that it starts."""
    wanted = sockets + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise ConfigError(f"this figure needs {wanted} open files, and a process may have {hard}: raise ulimit -Hn")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


async def _measure(address: str, seconds: float) -> _Measured:
    from tapewatch.adapters.redis import RedisBus

    bus = RedisBus(address)
    with tempfile.TemporaryDirectory() as folder:
        dials = await _people(Path(folder))
        try:
            for p in range(PARTITIONS):
                await bus.take_over(f"alerts.filtered:{p}")
            with _gateway(address, folder) as (port, pid):
                measured = _Measured(alone_mb=rss_mb(pid))
                with _clients(port, dials) as (pipe, clients):
                    await _connected(pipe, len(dials))
                    await _load(bus, pipe, measured, port, {"gateway": pid, "clients": clients}, seconds)
                return measured
        finally:
            await bus.close()


async def _people(folder: Path) -> list[Dial]:
    """Users with a token each; those beyond the system's lists have one of their own. Who stalls comes last."""
    from tapewatch.app.opening import open_store

    store = await open_store(folder)
    dials: list[Dial] = []
    try:
        for n in range(LISTS):
            user = f"u{n:016x}"
            await store.add_user(
                User(user_id=user, name=f"trader{n}", role="trader", password_hash="", created_at_ns=time.time_ns())
            )
            token_id, secret_hash, token = new_api_token()
            await store.add_token(
                ApiToken(
                    token_id=token_id,
                    user_id=user,
                    name="bench",
                    secret_hash=secret_hash,
                    scopes=None,
                    created_at_ns=time.time_ns(),
                )
            )
            if n >= len(SYSTEM_TOPLISTS):
                await store.save_toplist(Toplist(id=_list_of(n), owner=user, name=f"List {n}", metric="change_pct_5m"))
            dials.append(Dial(token, (_list_of(n),)))
    finally:
        await store.close()
    many = [Dial(dial.token, tuple(SYSTEM_TOPLISTS)[:_MANY], will_stall=True) for dial in dials[:STALLED]]
    return [dials[n % LISTS] for n in range(CLIENTS)] + many


def _list_of(n: int) -> str:
    return [*SYSTEM_TOPLISTS][n] if n < len(SYSTEM_TOPLISTS) else f"list-{n}"


@contextmanager
def _gateway(bus: str, folder: str) -> Iterator[tuple[int, int]]:
    """Its port and its process id."""
    command = [sys.executable, "-m", "tapewatch", "run", "gateway", "--store", folder, "--port", "0"]
    command += ["--partitions", str(PARTITIONS), "--max-clients", str(CLIENTS + STALLED)]
    command += ["--max-clients-of-user", str(CLIENTS)]
    environment = {**os.environ, "TAPEWATCH_BUS": bus, "TAPEWATCH_SECRET": secrets.token_hex(32)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            address = _ADDRESS.search(line)
            if address is None:
                raise RuntimeError(f"the gateway did not start: {line!r}")
            time.sleep(1.0)
            yield int(address[1]), process.pid
        finally:
            process.send_signal(signal.SIGTERM)


@contextmanager
def _clients(port: int, dials: Sequence[Dial]) -> Iterator[tuple[Connection, int]]:
    """The pipe to their process, and its id."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=dial_and_listen, args=(there, port, dials, _CONNECTS_PER_S), daemon=True)
    process.start()
    there.close()
    try:
        yield here, process.pid or 0
    finally:
        process.join(5)
        process.kill()
        here.close()


async def _connected(pipe: Connection, count: int) -> None:
    with progress("clients that connect") as show:
        connected = 0
        while connected < count:
            connected = await asyncio.to_thread(pipe.recv)
            show(connected, count)


async def _load(
    bus: Bus, pipe: Connection, measured: _Measured, port: int, processes: dict[str, int], seconds: float
) -> None:
    """A warm-up, a half in which everybody reads, a half in which some do not, and the end."""
    publisher = _Publisher(bus)
    publishing = asyncio.create_task(publisher.run())
    pid = processes["gateway"]
    await asyncio.sleep(_WARM_UP_S)
    measured.connected_mb = rss_mb(pid)
    pipe.send(("phase", "all read"))
    before = {name: cpu_s(process) for name, process in processes.items()}
    began_s = time.monotonic()
    await asyncio.sleep(seconds / 2)
    measured.cpu_s = {name: cpu_s(process) - before[name] for name, process in processes.items()}
    measured.read_s = time.monotonic() - began_s
    pipe.send(("phase", "some stall"))
    pipe.send(("stall", None))
    began_s = time.monotonic()
    until_s, most_s = began_s + seconds / 2, began_s + max(_GIVEN_UP_S, seconds / 2)
    given_up = False
    while time.monotonic() < (until_s if given_up else most_s):
        await asyncio.sleep(0.5)
        measured.stalled_mb = max(measured.stalled_mb, rss_mb(pid))
        if not given_up and await asyncio.to_thread(_ended_as_slow, port) >= STALLED:
            given_up = True
            measured.given_up_s = time.monotonic() - began_s
            pipe.send(("read on", None))
    publisher.leave = True
    await publishing
    await asyncio.sleep(_SETTLE_S)
    pipe.send(("end", publisher.expected()))
    measured.heard = await asyncio.to_thread(pipe.recv)
    measured.alerts, measured.bytes_each = len(publisher.alerts), publisher.bytes / max(1, publisher.frames)


def _ended_as_slow(port: int) -> int:
    """Connections that the gateway has ended because the client was slow."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as response:  # our own loopback server
            found = _SLOW.search(response.read().decode())
    except OSError:  # it is too busy: ask again
        return 0
    return int(float(found[1])) if found else 0


class _Publisher:
    def __init__(self, bus: Bus) -> None:
        self.leave = False
        """Publish no more."""
        self.alerts: set[bytes] = set()
        self.bytes = self.frames = 0
        self._newest: dict[str, bytes] = {}
        self._updates: dict[str, int] = {}
        self._bus = bus
        self._numbers = np.random.default_rng(1)
        self._symbols = tuple(f"S{n:04d}" for n in range(1_000))
        self._boards = [self._board(n) for n in range(LISTS)]

    async def run(self) -> None:
        """Each second all lists, and in the midst of it an alert."""
        second = 0
        began_s = asyncio.get_running_loop().time()
        while not self.leave:
            second += 1
            alert_s = float(self._numbers.uniform())
            await self._rank()
            await _until(began_s + second - 1 + alert_s)
            await self._fire(second)
            await _until(began_s + second)

    async def _rank(self) -> None:
        for n in range(LISTS):
            now_ns = time.time_ns()
            toplist = _list_of(n)
            frame = self._frame(n, toplist, now_ns)
            self._newest[toplist] = rfc3339(now_ns).encode()
            self._updates[toplist] = self._updates.get(toplist, 0) + 1
            self.frames += 1
            self.bytes += len(frame)
            await self._bus.notify("toplists.updated", frame)

    async def _fire(self, number: int) -> None:
        symbol = self._symbols[number % len(self._symbols)]
        now_ns = time.time_ns()
        self.alerts.add(rfc3339(now_ns).encode())
        alert = Alert(
            alert_id=f"{number:032x}",
            rule_id="fast-movers-1a2b3c4d",
            rule_version=1,
            rule_name="Fast movers",
            symbol=symbol,
            fired_at_ns=now_ns,
            price=486.75,
            values={"change_pct_5m": 2.31, "rsi_14_1m": 61.5},
            session="regular",
            received_ns=now_ns,
            ages_s={"change_pct_5m": 0.41, "rsi_14_1m": 1.0},
            owner=f"u{0:016x}",
            shared=True,
            scanned_ns=now_ns,
            filtered_ns=now_ns,
        )
        await self._bus.publish(f"alerts.filtered:{partition_of(symbol, PARTITIONS)}", Alerts((alert,)))

    def expected(self) -> Expected:
        return Expected(frozenset(self.alerts), self._newest, self._updates)

    def _frame(self, n: int, toplist: str, now_ns: int) -> bytes:
        system = SYSTEM_TOPLISTS.get(toplist)
        head: dict[str, Any] = {"toplist_id": toplist, "toplist_type": "user" if system is None else "system"}
        head |= {"title": f"List {n}", "metric": "change_pct_5m" if system is None else system.metric}
        rows = Rows(replace(self._boards[n], ts_ns=now_ns))
        symbols = self._numbers.permutation(len(self._symbols))[:_ROWS]
        return toplist_frame(head, rows, symbols, _COLUMNS, missing=0)

    def _board(self, n: int) -> BoardRows:
        system = SYSTEM_TOPLISTS.get(_list_of(n))
        metrics = tuple(dict.fromkeys((*_COLUMNS, *MARKS, "change_pct_5m" if system is None else system.metric)))
        values = self._numbers.uniform(0, 50, (len(metrics), len(self._symbols))).round(2)
        return BoardRows(ts_ns=0, session="regular", symbols=self._symbols, metrics=metrics, values=values)


async def _until(when_s: float) -> None:
    """By the loop's clock."""
    await asyncio.sleep(max(0.0, when_s - asyncio.get_running_loop().time()))


def _figures(measured: _Measured) -> Iterator[FigureRow]:
    heard = measured.heard
    waits = {
        (phase, what): np.array(found or [np.nan]) * 1e3
        for phase, by_kind in heard.waits_s.items()
        for what, found in by_kind.items()
    }
    for phase, name in (("all read", "gateway_5000"), ("some stall", "gateway_5000_stall")):
        both = np.concatenate([waits[phase, "alerts"], waits[phase, "toplists"]])
        p99 = [float(np.percentile(found, 99)) for found in (both, waits[phase, "alerts"], waits[phase, "toplists"])]
        note = "" if phase == "all read" else f"the same while {STALLED} more clients do not read; "
        yield (
            name,
            p99[0],
            "ms",
            float(both.min()),
            float(both.max()),
            (
                f"{note}p99 from publication to the client, {len(both):,} frames (alerts {p99[1]:,.0f}, toplists of "
                f"{measured.bytes_each / 1e3:.1f} kB {p99[2]:,.0f}; half within {np.median(both):,.0f}); {WHAT}"
            ),
        )
    clients = CLIENTS - sum(heard.lost.values())
    missing = heard.alerts_missing + heard.stale
    yield (
        "gateway_5000_missing",
        missing,
        "frames",
        missing,
        missing,
        (
            f"not delivered: {heard.alerts_missing} of {measured.alerts * CLIENTS:,} alerts, the newest list of "
            f"{heard.stale} clients; {heard.doubled} came twice, {heard.passed_over:,} updates were passed over for "
            f"newer ones, {clients:,} clients stayed to the end{_codes(heard.lost)}"
        ),
    )
    kb = (measured.connected_mb - measured.alone_mb) * 1e3 / CLIENTS
    low, high = measured.alone_mb, measured.connected_mb
    yield "gateway_5000_memory", kb, "kB", kb, kb, f"a connection: from {low:,.0f} to {high:,.0f} MB of resident memory"
    for name, used_s in measured.cpu_s.items():
        share = used_s / measured.read_s
        each_us = used_s * 1e6 / sum(map(len, heard.waits_s["all read"].values()))
        what = f"processor time of their process, {each_us:.0f} us a frame"
        yield f"gateway_5000_cpu_{name}", share, "cores", share, share, what
    growth = measured.stalled_mb - measured.connected_mb
    codes = ", ".join(map(str, sorted(heard.stalled)))
    yield (
        "gateway_5000_stall_rss",
        growth,
        "MB",
        growth,
        growth,
        f"growth while {STALLED} do not read; after {measured.given_up_s:.0f} s they were given up, and read: {codes}",
    )


def _codes(lost: dict[int, int]) -> str:
    return "".join(f", {count} were closed with {code}" for code, count in sorted(lost.items()))
