"""Some roles in a process of their own, over Redis and a database that all share: `tapewatch run ROLE…`.

Roles that share partitions, and those of which one member works, get their work from `Ownership`; each piece of it is
made anew when it is taken over, and takes up where its predecessor ended. A gateway and an API serve beside each other.
"""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any, TypeVar

import structlog

from tapewatch.accounts.secret import load_keys
from tapewatch.accounts.tokens import Keys
from tapewatch.adapters.journal import FileJournal
from tapewatch.adapters.redis import RedisBus
from tapewatch.adapters.redis_hot_state import RedisHotState
from tapewatch.adapters.redis_limits import close_limits, limits_storage
from tapewatch.app.opening import (
    addresses_of,
    check_host,
    feed_of,
    fill,
    open_store_at,
    openid_of,
    reference_of,
    senders_of,
)
from tapewatch.app.program import (
    Server,
    allow_open_files,
    leave_no_core,
    leave_no_ruin,
    listen,
    quieten,
    stopping_signals,
    tune_process,
    url_of,
)
from tapewatch.app.readers import Reader, Readers
from tapewatch.app.status import ProcessStatus
from tapewatch.clock import SystemClock
from tapewatch.config import LIVE_FEEDS, PARTITIONED, SINGLE, RunConfig
from tapewatch.dry_runs import DryRuns
from tapewatch.engine.scanner import Scanner
from tapewatch.engine.toplists import SYSTEM_TOPLISTS
from tapewatch.errors import ConfigError, Unavailable
from tapewatch.nyse import trading_days
from tapewatch.patience import patiently
from tapewatch.ports import Bus, Clock, Feed, HotState, Journal, Store
from tapewatch.roles.deliveries import DeliveriesRole
from tapewatch.roles.explain import ExplainRole
from tapewatch.roles.housekeeping import Housekeeping
from tapewatch.roles.ingest import Ingest
from tapewatch.roles.ownership import Ownership, Run
from tapewatch.roles.parity import ParityRole
from tapewatch.roles.reference import ReferenceRole
from tapewatch.roles.scanner import ScannerRole
from tapewatch.roles.scoreboard import ScoreboardRole
from tapewatch.roles.toplists import ToplistsRole
from tapewatch.serve.access import Accounts
from tapewatch.serve.app import create_app, create_small_app
from tapewatch.serve.board_view import BoardView
from tapewatch.serve.explanations import Explanations
from tapewatch.serve.gateway import Gateway
from tapewatch.serve.rate_limits import RateLimits
from tapewatch.serve.server import server_config
from tapewatch.serve.services import Services

START_S = 30.0
"""So long a process waits at its start for servers that are away."""
_REPORT_S = 1.0
_SERVER_STOP_S = 2
_DRAIN_S = 2.0
_WRITTEN = {
    "bars": ("bars.finalized",),
    "indicators": (),
    "scanner": ("alerts", "board"),
    "alerts": ("alerts.filtered",),
}
"""The topics that a role writes, which it takes over with the partition."""
_AWAITED = frozenset({"ingest", "scanner", "alerts", "gateway", "api"})
"""Roles that stand between a trade and an alert on a screen."""
_NICE = 5

log = structlog.get_logger("tapewatch")
T = TypeVar("T")


async def run_roles(config: RunConfig, *, on_ready: Callable[[str], None]) -> None:
    """Until SIGINT or SIGTERM; `on_ready` gets a line that says what runs."""
    leave_no_core()
    quieten()
    clock = SystemClock()
    with stopping_signals() as stop:
        bus = RedisBus(config.bus, capacity_bytes=config.stream_bytes_each)
        hot = RedisHotState(config.bus)
        store = await _at_start(lambda: open_store_at(config.store, replica=config.replica))
        try:
            await _at_start(partial(check_installation, config, bus, hot, store))
            keys = await _at_start(partial(_keys_of, config, store, clock))
            process = Distributed(config, bus=bus, hot=hot, store=store, clock=clock, keys=keys)
            tune_process(thrifty=False)
            if {"api", "gateway"} & set(config.roles):
                allow_open_files(config.max_clients)
            if not _AWAITED & set(config.roles):
                os.nice(_NICE)  # where cores are short, alerts come first
            await process.run(stop=stop, on_ready=on_ready)
        finally:
            await bus.close()
            await hot.close()
            await store.close()


async def _at_start(attempt: Callable[[], Awaitable[T]]) -> T:
    """Servers may start after us; one that stays away is taken for a wrong address."""
    said = "no answer"
    try:
        async with asyncio.timeout(START_S):
            while True:
                try:
                    return await attempt()
                except Unavailable as error:
                    said = str(error)
                    await asyncio.sleep(0.5)
    except TimeoutError:
        raise ConfigError(f"{said} (asked for {START_S:.0f} seconds)") from None


async def _keys_of(config: RunConfig, store: Store, clock: Clock) -> Keys | None:
    """What signs and verifies access tokens; None where nobody signs in."""
    has_accounts = await check_host(config, store, clock, where="--store URL")
    if not {"api", "gateway"} & set(config.roles):
        return None
    keys = load_keys(config.secret_file)
    if keys is None and has_accounts:
        raise ConfigError(
            "TAPEWATCH_SECRET (or --secret-file) is missing: there are accounts, and each api and gateway needs the "
            "same secret; make one with: openssl rand -hex 32"
        )
    return keys


async def check_installation(config: RunConfig, bus: Bus, hot: HotState, store: Store) -> None:
    """The servers answer, and the installation is the one that this process was configured for."""
    await bus.tail("ticks:0")
    await hot.get(["lease:ingest:0"])
    stored = await store.settle("partitions", str(config.partitions))
    if stored != str(config.partitions):
        raise ConfigError(
            f"--partitions: this installation has {stored} partitions, not {config.partitions}; "
            "the number is fixed when it is first used"
        )


class Distributed:
    """The roles of one process, wired; `run` runs them. The caller opens and closes bus, hot state and store."""

    def __init__(
        self,
        config: RunConfig,
        *,
        bus: Bus,
        hot: HotState,
        store: Store,
        clock: Clock,
        feed: Feed | None = None,
        journal: Journal | None = None,
        keys: Keys | None = None,
    ) -> None:
        """`feed` and `journal` in place of those that the configuration names, for tests."""
        self.bus = bus
        self._config, self._hot, self._store, self._clock = config, hot, store, clock
        self._feed, self._journal = feed, journal
        self._days = trading_days()
        readers = Readers(
            config, bus=bus, hot=hot, store=store, clock=clock, kept_trades=config.kept_trades_each, alone=False
        )
        self._make: dict[str, Callable[[int], Reader]] = {
            "bars": readers.bars,
            "indicators": readers.indicators,
            "scanner": readers.scanner,
            "alerts": readers.alerts,
        }
        self.board = BoardView(clock)
        self.working: dict[str, dict[int, Reader]] = {role: {} for role in config.roles if role in PARTITIONED}
        """By role and partition, what is at work."""
        self.ingest: Ingest | None = None
        self.toplists: ToplistsRole | None = None
        self.parities: list[ParityRole] = []
        works: dict[str, Run] = {
            "ingest": self._run_ingest,
            "toplists": self._run_toplists,
            "deliveries": self._run_deliveries,
            **{role: partial(self._run_reader, role) for role in PARTITIONED},
        }
        self.ownerships = {
            role: Ownership(
                hot,
                clock,
                role=role,
                partitions=0 if role not in works else 1 if role in SINGLE else config.partitions,
                run=works.get(role, _nothing),
                shard=config.shard if role in PARTITIONED else None,
            )
            for role in dict.fromkeys(config.roles)
        }
        serves = bool({"api", "gateway"} & set(config.roles))
        self.accounts = Accounts(store, clock, bus=bus, keys=keys, loopback=config.is_loopback)
        self.gateway = (
            Gateway(
                bus,
                clock,
                toplists=SYSTEM_TOPLISTS,
                partitions=config.partitions,
                store=store,
                accounts=self.accounts,
                active=self.accounts.is_active,
                max_clients=config.max_clients,
                max_of_user=config.max_clients_of_user,
            )
            if serves
            else None
        )
        self._limits = limits_storage(config.bus) if config.rate_limit is not False and "api" in config.roles else None
        self.status = ProcessStatus(self, config, hot=hot, clock=clock)

    @property
    def scanners(self) -> list[Scanner]:
        """Those of this process."""
        return [role.scanner for role in self.working.get("scanner", {}).values() if isinstance(role, ScannerRole)]

    async def run(self, *, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
        """Until `stop` is set; then others can take over at once."""
        servers = self._servers()
        async with asyncio.TaskGroup() as tasks:
            owning = [tasks.create_task(o.run(), name=role) for role, o in self.ownerships.items()]
            beside = [tasks.create_task(work, name="beside") for work in self._beside()]
            serving = [tasks.create_task(s.serve(sockets=[listener]), name="server") for s, listener in servers]
            for task in (*owning, *beside, *serving):
                task.add_done_callback(leave_no_ruin)
            for server, _ in servers:
                await server.serving.wait()
            on_ready(self._says([listener for _, listener in servers]))
            await stop.wait()
            for ownership in self.ownerships.values():
                ownership.stop()
            await asyncio.gather(*owning)
            for server, _ in servers:
                server.should_exit = True
            await asyncio.gather(*serving)
            for task in beside:
                task.cancel()
        if self._limits is not None:
            await close_limits(self._limits)

    async def drain(self) -> None:
        """Until each reader of this process has handled what is on its stream; two seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                for name in PARTITIONED:
                    for role in list(self.working.get(name, {}).values()):
                        while role.position != await self.bus.tail(role.recovery.stream):  # noqa: ASYNC110  # rare
                            await asyncio.sleep(0.01)

    def _says(self, listeners: list[socket.socket]) -> str:
        where = "".join(f"  {url_of(listener)}" for listener in listeners)
        return f"tapewatch runs {', '.join(self.ownerships)}{where}"

    def _beside(self) -> Iterator[Coroutine[Any, Any, None]]:
        """What runs as long as the process, whoever owns what."""
        yield self._report()
        if self.gateway is not None:
            yield self.gateway.run()
            yield self.accounts.follow()
        if "api" in self.ownerships:
            yield self.board.follow(self.bus, self._config.partitions)
            yield self.status.follow()
        if "scanner" in self.ownerships:
            yield ExplainRole(scanners=lambda: self.scanners, bus=self.bus).run()

    # -- pieces of work -----------------------------------------------------------------------------------------------

    async def _run_reader(self, name: str, p: int, leave: asyncio.Event) -> None:
        """One partition of a role, until it is to be left or somebody else has it."""
        role = self._make[name](p)
        for topic in _WRITTEN[name]:
            await patiently(partial(self.bus.take_over, f"{topic}:{p}"), clock=self._clock, where=f"{name}.begin")
        self.working[name][p] = role
        try:
            await role.run(leave)
        finally:
            self.working[name].pop(p, None)

    async def _run_ingest(self, _: int, leave: asyncio.Event) -> None:
        """The tape's only writer, and what brings reference data onto it."""
        config, clock = self._config, self._clock
        feed = self._feed or feed_of(config, clock, begun_ns=await self._market_begun_ns())
        source = reference_of(config, clock)
        journal = self._journal or FileJournal(config.journal or config.data_dir / "journal")
        try:
            self.ingest = ingest = Ingest(
                feed=feed,
                bus=self.bus,
                store=self._store,
                clock=clock,
                partitions=config.partitions,
                fill=None if source is None else lambda gap: fill(gap, source, self.board),
                journal=journal,
            )
            works = [ingest.run()]
            if config.feed in LIVE_FEEDS:
                reference = ReferenceRole(
                    source=source, store=self._store, clock=clock, days=self._days, announce=ingest.announce
                )
                works.append(reference.run())
            if source is not None:
                works.append(self.board.follow(self.bus, config.partitions))
            await _until(leave, works)
        finally:
            self.ingest = None
            if journal is not self._journal:
                await journal.close()
            if source is not None:
                await source.close()

    async def _market_begun_ns(self) -> int | None:
        """When the synthetic market of this installation began: its next ingester must make the same one."""
        if self._config.feed != "synthetic":
            return None
        now = str(self._clock.now_ns())
        return int(
            await patiently(lambda: self._store.settle("synthetic_began", now), clock=self._clock, where="ingest.begin")
        )

    async def _run_toplists(self, _: int, leave: asyncio.Event) -> None:
        """Lists, the scoreboard, parity with the provider's bars, and the store's housekeeping."""
        bus, hot, store, clock, partitions = self.bus, self._hot, self._store, self._clock, self._config.partitions
        self.toplists = toplists = ToplistsRole(bus=bus, hot=hot, clock=clock, partitions=partitions, store=store)
        scoreboard = ScoreboardRole(days=self._days, bus=bus, hot=hot, store=store, clock=clock, partitions=partitions)
        self.parities = parities = [ParityRole(bus=bus, clock=clock, partition=p) for p in range(partitions)]
        try:
            await _until(
                leave,
                [
                    toplists.run(),
                    scoreboard.run(),
                    Housekeeping(store=store, clock=clock, tape_ns=lambda: toplists.ranked_ns).run(),
                    *(parity.run() for parity in parities),
                ],
            )
        finally:
            self.toplists = None
            self.parities = []

    async def _run_deliveries(self, _: int, leave: asyncio.Event) -> None:
        """Alerts to the channels that subscriptions name."""
        config, clock = self._config, self._clock
        role = DeliveriesRole(
            bus=self.bus,
            store=self._store,
            clock=clock,
            sender=senders_of(config, clock),
            partitions=config.partitions,
        )
        await _until(leave, [role.run()])

    # -- what it says -------------------------------------------------------------------------------------------------

    async def _report(self) -> None:
        """Each second: how far each reader has come, and how this process is."""
        while True:
            await self._clock.sleep(_REPORT_S)
            try:
                await self.status.report(self.bus)
            except Unavailable as error:
                log.debug("not reported", why=str(error))

    def _servers(self) -> list[tuple[Server, socket.socket]]:
        config, apps = self._config, []
        hosts = config.hosts
        if "api" in self.ownerships and self.gateway is not None:
            services = Services(
                store=self._store,
                accounts=self.accounts,
                hot=self._hot,
                bus=self.bus,
                clock=self._clock,
                board=self.board,
                gateway=self.gateway,
                status=self.status.describe,
                ready=self.status.ready,
                explanations=Explanations(self.bus, partitions=config.partitions),
                dry_run=DryRuns(
                    self._store,
                    data_dir=config.data_dir,
                    tapes=config.tapes,
                    profile=config.profile,
                    scan_interval_ns=config.scan_interval_ns,
                ),
                addresses=addresses_of(config),
                openid=openid_of(config, self._clock),
                hosts=hosts,
                exports_metrics=config.probe_port is None,
                foreign_origins=frozenset(config.allow_origins),
                limits=None
                if self._limits is None
                else RateLimits(self._limits, applies=lambda: bool(config.rate_limit) or self.accounts.required),
            )
            apps.append((create_app(services), config.port))
        elif self.gateway is not None:
            small = create_small_app(
                self.status.ready, gateway=self.gateway, hosts=hosts, exports_metrics=config.probe_port is None
            )
            apps.append((small, config.port))
        if config.probe_port is not None:
            apps.append((create_small_app(self.status.ready, hosts=hosts), config.probe_port))
        return [
            (
                Server(
                    server_config(
                        app,
                        host=config.host,
                        port=port,
                        timeout_graceful_shutdown=_SERVER_STOP_S,
                        **config.server_options,
                    )
                ),
                listen(config.host, port),
            )
            for app, port in apps
        ]


async def _nothing(_: int, leave: asyncio.Event) -> None:
    await leave.wait()


async def _until(leave: asyncio.Event, works: list[Coroutine[Any, Any, None]]) -> None:
    """Run them beside each other until it is time to leave."""
    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(work) for work in works]
        await leave.wait()
        for task in running:
            task.cancel()
