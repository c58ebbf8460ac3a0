"""The composition root: the only place that knows which adapter stands behind which port.

`run_up` opens the adapters, starts every role and the server in one group, and stops them last-in first-out: the feed
first, then the bus, whose readers end when they have read what is there, then the store.
"""

import asyncio
import contextlib
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog
import uvicorn

from tapewatch import __version__
from tapewatch.adapters.memory import MemoryBus, MemoryHotState
from tapewatch.adapters.sql import SqlStore
from tapewatch.clock import SystemClock
from tapewatch.config import UpConfig
from tapewatch.documents import load_rules, rfc3339
from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.indicators import Indicators
from tapewatch.engine.scanner import Scanner
from tapewatch.engine.toplists import SYSTEM_TOPLISTS
from tapewatch.errors import ConfigError, Invalid, NotFound
from tapewatch.feeds.replay import ReplayFeed
from tapewatch.feeds.synthetic import SyntheticFeed, TradingDay
from tapewatch.nyse import trading_days
from tapewatch.ports import Bus, Clock, Feed, Store
from tapewatch.roles.alerts import AlertsRole
from tapewatch.roles.bars import BarsRole
from tapewatch.roles.indicators import IndicatorsRole
from tapewatch.roles.ingest import Ingest
from tapewatch.roles.scanner import ScannerRole
from tapewatch.roles.toplists import ToplistsRole
from tapewatch.serve.app import create_app
from tapewatch.serve.board_view import BoardView
from tapewatch.serve.gateway import Gateway
from tapewatch.serve.server import server_config
from tapewatch.serve.services import Services

log = structlog.get_logger("tapewatch")

_BOARD_INTERVAL_NS = SECOND_NS
_STALE_S = 5.0


async def run_up(config: UpConfig, *, on_ready: Callable[[str], None]) -> None:
    """Everything in one process until it is told to stop; `on_ready` gets the page's address."""
    clock = SystemClock()
    listener = _listen(config.host, config.port)
    store = SqlStore(_database(config.data_dir))
    bus, hot = MemoryBus(epoch=clock.now_ns()), MemoryHotState()
    async with contextlib.AsyncExitStack() as closing:
        closing.callback(listener.close)
        closing.push_async_callback(store.close)
        closing.push_async_callback(hot.close)
        await store.upgrade()
        if config.rules is not None:
            await _save_rules(store, config.rules, clock)
        profile, days = load_profile(config.eligibility), trading_days()
        ingest = Ingest(feed=_feed(config, clock), bus=bus, store=store, clock=clock)
        scanner = Scanner(
            days=days,
            profile=profile,
            scan_interval_ns=config.scan_interval_ns,
            board_interval_ns=_BOARD_INTERVAL_NS,
        )
        builder = BarBuilder(days=days, profile=profile)
        board = BoardView(clock)
        gateway = Gateway(bus, clock, toplists=SYSTEM_TOPLISTS)
        status = _Status(config, ingest, scanner, board, gateway, bus, clock)
        app = create_app(
            Services(
                store=store,
                hot=hot,
                bus=bus,
                clock=clock,
                board=board,
                gateway=gateway,
                status=status.describe,
                ready=status.ready,
                hosts=frozenset({"127.0.0.1", "localhost", "[::1]", "::1"}),
            )
        )
        server = _Server(server_config(app, host=config.host, port=config.port))
        url = f"http://{'127.0.0.1' if config.host == 'localhost' else config.host}:{listener.getsockname()[1]}"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(gateway.run(), name="gateway")
            tasks.create_task(board.follow(bus, 1), name="board view")
            tasks.create_task(ToplistsRole(bus=bus, hot=hot).run(), name="toplists")
            tasks.create_task(AlertsRole(bus=bus, hot=hot, store=store).run(), name="alerts")
            tasks.create_task(ScannerRole(scanner=scanner, bus=bus, clock=clock).run(), name="scanner")
            tasks.create_task(IndicatorsRole(indicators=Indicators(days), bus=bus, hot=hot).run(), name="indicators")
            tasks.create_task(BarsRole(builder=builder, bus=bus, hot=hot, store=store, clock=clock).run(), name="bars")
            feeding = tasks.create_task(ingest.run(), name="ingest")
            serving = tasks.create_task(server.serve(sockets=[listener]), name="server")
            await server.serving.wait()
            on_ready(url)
            await serving
            feeding.cancel()
            await bus.close()


class _Server(uvicorn.Server):
    """uvicorn that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()


class _Status:
    """What `/ready` and `/api/v1/system/status` say."""

    def __init__(
        self,
        config: UpConfig,
        ingest: Ingest,
        scanner: Scanner,
        board: BoardView,
        gateway: Gateway,
        bus: Bus,
        clock: Clock,
    ) -> None:
        self._config, self._ingest, self._scanner, self._board = config, ingest, scanner, board
        self._gateway, self._bus, self._clock = gateway, bus, clock
        self._started_ns = clock.now_ns()

    def ready(self) -> tuple[bool, str]:
        if self._board.as_of() is None:
            return False, "waiting for the first scan"
        return True, "running"

    def describe(self) -> dict[str, Any]:
        now_ns = self._clock.now_ns()
        age_s = (now_ns - self._ingest.batch_ns) / SECOND_NS if self._ingest.batch_ns else None
        live, phase = self.ready()
        state = "ended" if self._ingest.ended else "running" if live else "starting"
        if state == "running" and age_s is not None and age_s > _STALE_S:
            state = "stale"
        return {
            "version": __version__,
            "state": state,
            "phase": phase,
            "uptime_s": round((now_ns - self._started_ns) / SECOND_NS, 1),
            "feed": {
                "name": self._config.feed,
                "age_s": age_s,
                "market_time": rfc3339(self._ingest.watermark_ns) if self._ingest.watermark_ns else None,
                "rows": self._ingest.rows,
            },
            "scanner": {
                "symbols": len(self._scanner.symbols),
                "rules": len(self._scanner.ruleset.rules),
                "ruleset": self._scanner.ruleset.number,
                "scan_interval_s": self._config.scan_interval_ns / SECOND_NS,
                "cooled_down": self._scanner.cooled_down,
                "rows": dict(sorted(self._scanner.tally.items())),
            },
            "gateway": {"clients": self._gateway.clients},
        }


def _feed(config: UpConfig, clock: Clock) -> Feed:
    if config.feed == "replay":
        column = load_profile(config.eligibility).column
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


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"--port: cannot listen on {host}:{port}: {error.strerror}") from None
    listener.set_inheritable(True)
    return listener


def _database(data_dir: Path) -> Path:
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--data-dir: cannot use {data_dir}: {error.strerror}") from None
    return data_dir / "tapewatch.db"


async def open_store(data_dir: Path) -> Store:
    """The embedded store of a data directory, upgraded."""
    store = SqlStore(_database(data_dir))
    await store.upgrade()
    return store


async def _save_rules(store: Store, path: Path, clock: Clock) -> None:
    """Rules of a file become the store's: new ones are created, changed ones get a new version."""
    try:
        rules = load_rules(path.read_bytes(), where=str(path))
    except OSError as error:
        raise Invalid(str(path), f"cannot be read: {error.strerror}") from None
    stamp = datetime.fromtimestamp(clock.now_ns() // SECOND_NS, UTC).isoformat().replace("+00:00", "Z")
    for rule in rules:
        try:
            stored = await store.rule(rule.id)
        except NotFound:
            await store.save_rule(rule.model_copy(update={"version": 1, "created_at": stamp, "updated_at": stamp}))
            continue
        if stored.spec().conditions != rule.spec().conditions or stored.cooldown != rule.cooldown:
            await store.save_rule(rule.model_copy(update={"version": stored.version + 1, "updated_at": stamp}))
