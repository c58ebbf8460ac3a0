"""The composition root: the only place that knows which adapter stands behind which port.

`Embedded` is every role and the server in one process, over a store, a feed and a clock that it is given; `run_up`
gives it those of `tapewatch up`. It stops first-in first-out: the feed, then the readers, each when it has handled what
is there, then the bus, at whose end the roles save what is pending, then the store.
"""

import asyncio
import contextlib
import ctypes
import gc
import logging
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import uvicorn

from tapewatch import __version__
from tapewatch.adapters.memory import MemoryBus, MemoryHotState
from tapewatch.adapters.sql import SqlStore
from tapewatch.clock import SystemClock
from tapewatch.config import LIVE_FEEDS, UpConfig
from tapewatch.documents import rfc3339
from tapewatch.dry_runs import DryRuns
from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import SECOND_NS, Batch, Gap
from tapewatch.engine.indicators import Indicators
from tapewatch.engine.scanner import Scanner
from tapewatch.engine.toplists import SYSTEM_TOPLISTS
from tapewatch.errors import ConfigError, Unavailable, VersionConflict
from tapewatch.feeds.synthetic import SyntheticFeed, TradingDay
from tapewatch.nyse import trading_days
from tapewatch.ports import Clock, Feed, FeedStatus, Store
from tapewatch.roles.alerts import AlertsRole
from tapewatch.roles.bars import BarsRole
from tapewatch.roles.explain import ExplainRole
from tapewatch.roles.housekeeping import Housekeeping
from tapewatch.roles.indicators import IndicatorsRole
from tapewatch.roles.ingest import Ingest
from tapewatch.roles.parity import ParityRole
from tapewatch.roles.reference import ReferenceRole
from tapewatch.roles.scanner import ScannerRole
from tapewatch.roles.scoreboard import ScoreboardRole
from tapewatch.roles.toplists import ToplistsRole
from tapewatch.rules_as_code import InStore, changes, read_rule_book
from tapewatch.serve.app import create_app
from tapewatch.serve.board_view import BoardView
from tapewatch.serve.explanations import Explanations
from tapewatch.serve.gateway import Gateway
from tapewatch.serve.server import server_config
from tapewatch.serve.services import Services

if TYPE_CHECKING:  # 20 MB that a feed without reference data does without
    from tapewatch.feeds.reference.alpaca_rest import AlpacaReference
    from tapewatch.feeds.reference.massive_rest import MassiveReference

    RestSource = AlpacaReference | MassiveReference

log = structlog.get_logger("tapewatch")

_BOARD_INTERVAL_NS = SECOND_NS
_STALE_S = 5.0
_DRAIN_S = 2.0
_SERVER_STOP_S = 2
_ROLES_STOP_S = 2.0
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_QUIET = ("alembic", "uvicorn", "httpx")
"""Libraries whose news is of no use to a trader; their warnings are."""


async def run_up(config: UpConfig, *, on_ready: Callable[[str], None]) -> None:
    """Everything in one process until SIGINT or SIGTERM; `on_ready` gets the page's address."""
    _quieten()
    clock = SystemClock()
    with _stopping_signals() as stop, _listen(config.host, config.port) as listener:
        store = await open_store(config.data_dir)
        try:
            if config.rules is not None:
                await _save_rules(store, config.rules, clock)
            embedded = Embedded(
                config, store=store, feed=_feed(config, clock), clock=clock, source=_reference(config, clock)
            )
            _tune_process()
            await embedded.run(listener, stop=stop, on_ready=on_ready)
        finally:
            await store.close()


def _tune_process() -> None:
    """For a process that must answer within milliseconds beside the store's thread, for days.

    1. Nothing that lives now will ever be garbage; to look through it again and again would stop the loop for a tenth
       of a second.
    2. The thread that saves ten thousand bars gives the loop its turn after half a millisecond, not five.
    3. Columns of ten thousand symbols come from the kernel and go back to it. In the heap they would settle between
       small arrays that live for minutes, and memory would grow by a quarter in ten minutes.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    sys.setswitchinterval(0.0005)
    with contextlib.suppress(OSError, AttributeError):  # only glibc has these knobs
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, 64 * 1024)
        libc.mallopt(_M_ARENA_MAX, 2)


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
    ) -> None:
        profile, days = load_profile(config.profile), trading_days()
        bus, hot = MemoryBus(epoch=clock.now_ns()), MemoryHotState()
        self.bus, self.hot = bus, hot
        self.board = BoardView(clock)
        self.ingest = Ingest(
            feed=feed,
            bus=bus,
            store=store,
            clock=clock,
            partitions=partitions,
            fill=None if source is None else lambda gap: _fill(gap, source, self.board),
        )
        self._source = source
        self._reference = (
            ReferenceRole(source=source, store=store, clock=clock, days=days, announce=self.ingest.announce)
            if config.feed in LIVE_FEEDS
            else None
        )
        self.scanners: list[Scanner] = []
        self._readers: list[tuple[str, BarsRole | ScannerRole | IndicatorsRole | AlertsRole]] = []
        """With the stream that each reads; those come first whose writing others read."""
        for p in range(partitions):
            builder = BarBuilder(days=days, profile=profile, kept_trades=config.kept_trades)
            scanner = Scanner(
                days=days,
                profile=profile,
                scan_interval_ns=config.scan_interval_ns,
                board_interval_ns=_BOARD_INTERVAL_NS,
                kept_trades=config.kept_trades,
            )
            indicators = Indicators(days)
            self.scanners.append(scanner)
            self._readers += [
                (f"ticks:{p}", BarsRole(builder=builder, bus=bus, hot=hot, store=store, clock=clock, partition=p)),
                (f"ticks:{p}", ScannerRole(scanner=scanner, bus=bus, clock=clock, partition=p)),
                (
                    f"bars.finalized:{p}",
                    IndicatorsRole(indicators=indicators, bus=bus, hot=hot, clock=clock, partition=p),
                ),
                (f"alerts:{p}", AlertsRole(bus=bus, hot=hot, store=store, clock=clock, partition=p)),
            ]
        self._explaining = [ExplainRole(scanner=scanner, bus=bus) for scanner in self.scanners]
        self.scoreboard = ScoreboardRole(days=days, bus=bus, hot=hot, store=store, clock=clock, partitions=partitions)
        self._housekeeping = Housekeeping(store=store, clock=clock)
        self.parities = [ParityRole(bus=bus, clock=clock, partition=p) for p in range(partitions)]
        self.toplists = ToplistsRole(bus=bus, hot=hot, clock=clock, partitions=partitions)
        self.gateway = Gateway(bus, clock, toplists=SYSTEM_TOPLISTS, partitions=partitions)
        status = _Status(self, config, feed.name, clock)
        app = create_app(
            Services(
                store=store,
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
                hosts=frozenset({"127.0.0.1", "localhost", "[::1]", "::1"}),
            )
        )
        self._partitions = partitions
        self._ended = False
        self._server = _Server(
            server_config(app, host=config.host, port=config.port, timeout_graceful_shutdown=_SERVER_STOP_S)
        )

    async def run(self, listener: socket.socket, *, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
        """Until `stop` is set; when it returns, what was on the tape is in the store."""
        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self.gateway.run(), name="gateway"),
                tasks.create_task(self.board.follow(self.bus, self._partitions), name="board view"),
                tasks.create_task(self.toplists.run(), name="toplists"),
                *(tasks.create_task(self._until_the_end(role), name=type(role).__name__) for _, role in self._readers),
                *(tasks.create_task(role.run(), name="parity") for role in self.parities),
                *(tasks.create_task(role.run(), name="explain") for role in self._explaining),
                tasks.create_task(self.scoreboard.run(), name="scoreboard"),
            ]
            keeping = tasks.create_task(self._housekeeping.run(), name="housekeeping")
            referring = None if self._reference is None else tasks.create_task(self._reference.run(), name="reference")
            feeding = tasks.create_task(self.ingest.run(), name="ingest")
            serving = tasks.create_task(self._server.serve(sockets=[listener]), name="server")
            await self._server.serving.wait()
            on_ready(_url(listener))
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

    async def _until_the_end(self, role: "BarsRole | ScannerRole | IndicatorsRole | AlertsRole") -> None:
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


class _Server(uvicorn.Server):
    """uvicorn that says when it listens, and leaves signals to `run_up`: its own way ends the process before the roles
    have saved what is pending.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Status:
    """What `/ready` and `/api/v1/system/status` say."""

    def __init__(self, embedded: Embedded, config: UpConfig, feed: str, clock: Clock) -> None:
        self._embedded, self._config, self._feed, self._clock = embedded, config, feed, clock
        self._started_ns = clock.now_ns()

    def ready(self) -> tuple[bool, str]:
        ingest = self._embedded.ingest
        scanned = self._embedded.board.as_of() is not None
        if ingest.state in {"lost", "refused"}:
            return scanned, f"the feed {'is lost' if ingest.state == 'lost' else 'refused'}: {ingest.problem}"
        away = [feed for feed in ingest.feeds() if feed.problem and feed.state != "running"]
        if away:
            where = "no feed delivers" if len(away) == len(ingest.feeds()) else "one feed is away"
            return scanned, f"{where}; " + "; ".join(f"{feed.name}: {feed.problem}" for feed in away)
        return scanned, "running" if scanned else "waiting for the first scan"

    def describe(self) -> dict[str, Any]:
        embedded, ingest, now_ns = self._embedded, self._embedded.ingest, self._clock.now_ns()
        gap = ingest.gap
        age_s = (now_ns - ingest.batch_ns) / SECOND_NS if ingest.batch_ns else None
        live, phase = self.ready()
        state: str = ingest.state
        if state == "running":
            state = "starting" if not live else "stale" if age_s is not None and age_s > _STALE_S else "running"
        if state == "running" and phase != "running":
            state = "degraded"
        scanners = embedded.scanners
        return {
            "version": __version__,
            "state": state,
            "phase": phase,
            "uptime_s": round((now_ns - self._started_ns) / SECOND_NS, 1),
            "feed": {
                "name": self._feed,
                "state": ingest.state,
                "problem": ingest.problem or None,
                "age_s": age_s,
                "market_time": rfc3339(ingest.watermark_ns) if ingest.watermark_ns else None,
                "rows": ingest.rows,
                "duplicates": ingest.duplicates,
                "gap": None if gap is None else {"since": rfc3339(gap.start_ns), "reason": gap.reason},
                "connections": [_connection(feed) for feed in ingest.feeds()],
            },
            "parity": [parity.describe() for parity in embedded.parities],
            "scanner": {
                "symbols": sum(len(scanner.symbols) for scanner in scanners),
                "rules": len(scanners[0].ruleset.rules),
                "ruleset": scanners[0].ruleset.number,
                "scan_interval_s": self._config.scan_interval_ns / SECOND_NS,
                "cooled_down": sum(scanner.cooled_down for scanner in scanners),
                "gated": sum(scanner.plan.gated for scanner in scanners),
                "crowded": dict(sorted(sum((scanner.plan.crowded for scanner in scanners), Counter()).items())),
                "rows": dict(sorted(sum((scanner.tally for scanner in scanners), Counter()).items())),
            },
            "gateway": {"clients": embedded.gateway.clients},
        }


def _connection(feed: FeedStatus) -> dict[str, Any]:
    return {
        "name": feed.name,
        "role": feed.role,
        "state": feed.state,
        "circuit": feed.circuit,
        "problem": feed.problem or None,
        "reason": feed.reason or None,
        "failures": feed.failures,
        "connects": feed.connects,
        "losses": dict(feed.losses),
        "age_s": feed.last_data_age_s,
        "rows": feed.rows,
        "overflow_frames": feed.overflow_frames,
        "rejected": dict(feed.rejected),
        "samples": {reason: list(samples) for reason, samples in feed.samples.items()},
    }


async def _fill(gap: Gap, source: "RestSource", board: BoardView) -> tuple[Batch, bool]:
    """The trades of a gap, those of the most traded symbols first."""
    from tapewatch.feeds.reference.backfill import backfill

    symbols, volume = board.column("volume_day")
    known = {name: value for name, value in zip(symbols, volume.tolist(), strict=True) if value > 0}
    filled = await backfill(gap, history=source, volumes=known)
    return filled.batch, filled.complete


def _reference(config: UpConfig, clock: Clock) -> "RestSource | None":
    if config.reference_source is None:
        return None
    from tapewatch.feeds.reference.sources import rest_source

    return rest_source(config.reference_source, clock, secrets=config.secrets)


def _feed(config: UpConfig, clock: Clock) -> Feed:
    if config.feed in LIVE_FEEDS:
        return _live_feed(config, clock)
    if config.feed == "replay":
        from tapewatch.feeds.replay import ReplayFeed  # and pyarrow with it: 70 MB that the synthetic feed does without

        column = load_profile(config.profile).column
        return ReplayFeed(config.tapes, clock=clock, speed=config.speed, conditions_column=column)
    days = trading_days()
    now_ns = clock.now_ns()
    first = max(int((days.close_ns <= now_ns).sum()) - 1, 0)
    sessions = [
        TradingDay(pre_ns=int(pre), open_ns=int(open_), close_ns=int(close), post_ns=int(post))
        for pre, open_, close, post in zip(
            days.pre_ns[first : first + 250],
            days.open_ns[first : first + 250],
            days.close_ns[first : first + 250],
            days.post_ns[first : first + 250],
            strict=True,
        )
    ]
    return SyntheticFeed(
        seed=config.seed,
        symbols=config.symbols,
        ticks_per_s=config.ticks_per_s,
        days=sessions,
        start_ns=sessions[0].open_ns,
        speed=config.speed,
        clock=clock,
    )


def _live_feed(config: UpConfig, clock: Clock) -> Feed:
    from tapewatch.feeds.failover import FailoverFeed
    from tapewatch.feeds.providers import ProviderOptions, open_feed

    def opened(name: str, url: str | None, plan: str | None) -> Feed:
        options = ProviderOptions(
            name=name, url=url, plan=plan, symbols=config.watch, quotes=config.quotes, secrets=config.secrets
        )
        return open_feed(options, clock=clock, days=trading_days())

    primary = opened(config.feed, config.feed_url, config.plan)
    fallback = None if config.fallback is None else opened(config.fallback, config.fallback_url, None)
    return FailoverFeed(primary, fallback, clock)


def _quieten() -> None:
    for library in _QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)


@contextlib.contextmanager
def _stopping_signals() -> Iterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # at once: until somebody listens, a second process can bind the same port
    except OSError as error:
        listener.close()
        raise ConfigError(f"--port: cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


async def open_store(data_dir: Path) -> Store:
    """The embedded store of a data directory, upgraded."""
    _quieten()
    try:
        await asyncio.to_thread(data_dir.mkdir, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--data-dir: cannot use {data_dir}: {error.strerror}") from None
    store = SqlStore(data_dir / "tapewatch.db")
    try:
        await store.upgrade()
    except BaseException:
        await store.close()
        raise
    return store


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
