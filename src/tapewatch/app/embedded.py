"""Every role and the server in one process, over a store, a feed and a clock: `tapewatch up`.

It stops first-in first-out: the feed, then the readers, each when it has handled what is there, then the bus, at whose
end the roles save what is pending, then the store.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from limits.aio.storage import MemoryStorage

from tapewatch.accounts.secret import kept_keys, load_keys
from tapewatch.accounts.tokens import Keys
from tapewatch.adapters.memory import MemoryBus, MemoryHotState
from tapewatch.app.opening import (
    addresses_of,
    check_host,
    feed_of,
    fill,
    open_store,
    openid_of,
    reference_of,
    senders_of,
)
from tapewatch.app.program import (
    Server,
    allow_open_files,
    leave_no_core,
    listen,
    quieten,
    stopping_signals,
    tune_process,
    url_of,
)
from tapewatch.app.readers import Reader, Readers
from tapewatch.app.status import EmbeddedStatus
from tapewatch.clock import SystemClock
from tapewatch.config import LIVE_FEEDS, UpConfig
from tapewatch.dry_runs import DryRuns
from tapewatch.engine.scanner import Scanner
from tapewatch.engine.toplists import SYSTEM_TOPLISTS
from tapewatch.errors import Unavailable, VersionConflict
from tapewatch.nyse import trading_days
from tapewatch.ports import Clock, Feed, Store
from tapewatch.roles.deliveries import DeliveriesRole
from tapewatch.roles.explain import ExplainRole
from tapewatch.roles.housekeeping import Housekeeping
from tapewatch.roles.ingest import Ingest
from tapewatch.roles.parity import ParityRole
from tapewatch.roles.reference import ReferenceRole
from tapewatch.roles.scanner import ScannerRole
from tapewatch.roles.scoreboard import ScoreboardRole
from tapewatch.roles.toplists import ToplistsRole
from tapewatch.rules_as_code import InStore, changes, read_rule_book
from tapewatch.serve.access import Accounts
from tapewatch.serve.app import create_app
from tapewatch.serve.board_view import BoardView
from tapewatch.serve.explanations import Explanations
from tapewatch.serve.gateway import Gateway
from tapewatch.serve.rate_limits import RateLimits
from tapewatch.serve.server import server_config
from tapewatch.serve.services import Services

if TYPE_CHECKING:
    from tapewatch.app.opening import RestSource

log = structlog.get_logger("tapewatch")

_DRAIN_S = 2.0
_SERVER_STOP_S = 2
_ROLES_STOP_S = 6.0


async def run_up(config: UpConfig, *, on_ready: Callable[[str], None]) -> None:
    """Everything in one process until SIGINT or SIGTERM; `on_ready` gets the page's address."""
    leave_no_core()
    quieten()
    clock = SystemClock()
    with stopping_signals() as stop, listen(config.host, config.port) as listener:
        store = await open_store(config.data_dir)
        try:
            keys = load_keys(config.secret_file) or kept_keys(config.data_dir)
            await check_host(config, store, clock, where=f"--data-dir {config.data_dir}")
            if config.rules is not None:
                await _save_rules(store, config.rules, clock)
            embedded = Embedded(
                config,
                store=store,
                feed=feed_of(config, clock),
                clock=clock,
                source=reference_of(config, clock),
                keys=keys,
            )
            tune_process(thrifty=True)
            allow_open_files(config.max_clients)
            await embedded.run(listener, stop=stop, on_ready=on_ready)
        finally:
            await store.close()


class Embedded:
    """Every role and the server, wired; `run` runs them. The caller opens and closes the store."""

    def __init__(
        self,
        config: UpConfig,
        *,
        store: Store,
        feed: Feed,
        clock: Clock,
        partitions: int = 1,
        source: "RestSource | None" = None,
        keys: Keys | None = None,
    ) -> None:
        days = trading_days()
        bus, hot = MemoryBus(epoch=clock.now_ns()), MemoryHotState()
        self.bus, self.hot = bus, hot
        self.board = BoardView(clock)
        self.ingest = Ingest(
            feed=feed,
            bus=bus,
            store=store,
            clock=clock,
            partitions=partitions,
            fill=None if source is None else lambda gap: fill(gap, source, self.board),
        )
        self._source = source
        self._reference = (
            ReferenceRole(source=source, store=store, clock=clock, days=days, announce=self.ingest.announce)
            if config.feed in LIVE_FEEDS
            else None
        )
        self._scanning: list[ScannerRole] = []
        self._readers: list[tuple[str, Reader]] = []
        """With the stream that each reads; those come first whose writing others read."""
        readers = Readers(
            config, bus=bus, hot=hot, store=store, clock=clock, kept_trades=config.kept_trades, alone=True
        )
        for p in range(partitions):
            scanning = readers.scanner(p)
            self._scanning.append(scanning)
            self._readers += [
                (f"ticks:{p}", readers.bars(p)),
                (f"ticks:{p}", scanning),
                (f"bars.finalized:{p}", readers.indicators(p)),
                (f"alerts:{p}", readers.alerts(p)),
            ]
        self._explaining = ExplainRole(scanners=lambda: self.scanners, bus=bus)
        self.scoreboard = ScoreboardRole(days=days, bus=bus, hot=hot, store=store, clock=clock, partitions=partitions)
        self._housekeeping = Housekeeping(store=store, clock=clock, tape_ns=lambda: self.ingest.watermark_ns)
        self.parities = [ParityRole(bus=bus, clock=clock, partition=p) for p in range(partitions)]
        self.toplists = ToplistsRole(bus=bus, hot=hot, clock=clock, partitions=partitions, store=store)
        self.deliveries = DeliveriesRole(
            bus=bus,
            store=store,
            clock=clock,
            sender=senders_of(config, clock),
            partitions=partitions,
            resumes=False,
        )
        self.accounts = Accounts(store, clock, bus=bus, keys=keys, loopback=config.is_loopback)
        self.gateway = Gateway(
            bus,
            clock,
            toplists=SYSTEM_TOPLISTS,
            partitions=partitions,
            store=store,
            accounts=self.accounts,
            active=self.accounts.is_active,
            max_clients=config.max_clients,
            max_of_user=config.max_clients_of_user,
        )
        status = EmbeddedStatus(self, config, feed.name, clock)
        app = create_app(
            Services(
                store=store,
                accounts=self.accounts,
                hot=hot,
                bus=bus,
                clock=clock,
                board=self.board,
                gateway=self.gateway,
                status=status.describe,
                ready=status.ready,
                explanations=Explanations(bus, partitions=partitions),
                dry_run=DryRuns(
                    store,
                    data_dir=config.data_dir,
                    tapes=config.tapes,
                    profile=config.profile,
                    scan_interval_ns=config.scan_interval_ns,
                ),
                addresses=addresses_of(config),
                openid=openid_of(config, clock),
                hosts=config.hosts,
                foreign_origins=frozenset(config.allow_origins),
                limits=None
                if config.rate_limit is False
                else RateLimits(
                    MemoryStorage(wrap_exceptions=True),
                    applies=lambda: bool(config.rate_limit) or self.accounts.required,
                ),
            )
        )
        self._partitions = partitions
        self._ended = False
        self._server = Server(
            server_config(
                app,
                host=config.host,
                port=config.port,
                timeout_graceful_shutdown=_SERVER_STOP_S,
                **config.server_options,
            )
        )

    @property
    def scanners(self) -> list[Scanner]:
        return [role.scanner for role in self._scanning]

    async def run(self, listener: socket.socket, *, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
        """Until `stop` is set; when it returns, what was on the tape is in the store."""
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self.gateway.run(), name="gateway"),
                tasks.create_task(self.accounts.follow(), name="accounts"),
                tasks.create_task(self.board.follow(self.bus, self._partitions), name="board view"),
                tasks.create_task(self.toplists.run(), name="toplists"),
                *(tasks.create_task(self._until_the_end(role), name=type(role).__name__) for _, role in self._readers),
                *(tasks.create_task(role.run(), name="parity") for role in self.parities),
                tasks.create_task(self._explaining.run(), name="explain"),
                tasks.create_task(self.deliveries.run(), name="deliveries"),
                tasks.create_task(self.scoreboard.run(), name="scoreboard"),
            ]
            keeping = tasks.create_task(self._housekeeping.run(), name="housekeeping")
            referring = None if self._reference is None else tasks.create_task(self._reference.run(), name="reference")
            feeding = tasks.create_task(self.ingest.run(), name="ingest")
            serving = tasks.create_task(self._server.serve(sockets=[listener]), name="server")
            await self._server.serving.wait()
            on_ready(url_of(listener))
            await stop.wait()
            feeding.cancel()
            keeping.cancel()
            if referring is not None:
                referring.cancel()
            self._server.should_exit = True
            await self.drain()
            await serving
            self._ended = True
            await self.bus.close()
            _, late = await asyncio.wait(running, timeout=_ROLES_STOP_S)
            for task in late:  # it waits for a store that is away
                log.warning("stopped before all of its work was saved", role=task.get_name())
                task.cancel()
        await self.hot.close()
        if self._source is not None:
            await self._source.close()

    async def _until_the_end(self, role: Reader) -> None:
        """A reader that is behind when everything ends finds nobody to write to."""
        try:
            await role.run()
        except Unavailable:
            if not self._ended:
                raise
            log.warning("stopped before all of the tape was read", role=type(role).__name__)

    async def drain(self) -> None:
        """Until each reader has handled what is on its stream; two seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_DRAIN_S):
                for stream, role in self._readers:
                    while role.position != await self.bus.tail(stream):  # noqa: ASYNC110  # twice in a life
                        await asyncio.sleep(0.002)


async def _save_rules(store: Store, path: Path, clock: Clock) -> None:
    """Rules of files become the store's: new ones are created, changed ones get a new version. What was deleted stays
    deleted.
    """
    wanted = await asyncio.to_thread(read_rule_book, [path])
    installed = InStore(store, clock)
    for change in changes(wanted, await installed.found()):
        if change.kind in {"new", "changed"}:
            try:
                await installed.save(change)
            except VersionConflict:
                log.warning("a rule of the file was deleted earlier and stays so", what=change.what, id=change.id)
