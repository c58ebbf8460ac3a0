"""A running server: the application on a loopback port in the test's own loop, over the embedded adapters."""

import asyncio
import json
import math
import shutil
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from own_loop import loopback, served
from websockets.asyncio.client import ClientConnection, connect

from tapewatch.accounts.tokens import Keys
from tapewatch.adapters.memory import MemoryBus, MemoryHotState
from tapewatch.adapters.sql import SqlStore
from tapewatch.clock import SystemClock
from tapewatch.documents import Alert, Condition, Rule, ruleset
from tapewatch.eligibility import load_profile
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import SECOND_NS, make_batch
from tapewatch.engine.scanner import Scanner
from tapewatch.engine.toplists import SYSTEM_TOPLISTS
from tapewatch.nyse import day_of, trading_days
from tapewatch.ports import Ranked
from tapewatch.roles.explain import ExplainRole
from tapewatch.serve.access import Accounts
from tapewatch.serve.app import create_app
from tapewatch.serve.board_view import BoardView
from tapewatch.serve.explanations import Explanations
from tapewatch.serve.gateway import Gateway
from tapewatch.serve.server import server_config
from tapewatch.serve.services import Services

SECRET = "5f1c0e7a9b3d2846c1f0a7e9d8b35264"  # noqa: S105  # of tests
NOON_NS = 1_380_000_000_000_000_000
OPEN_NS = day_of("2025-03-03")[1]
METRICS = ("price", "change_pct_day", "volume_day", "change_pct_5m")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrations take longer than most tests, so they run once."""
    path = tmp_path_factory.mktemp("store") / "empty.db"

    async def create() -> None:
        store = SqlStore(path)
        await store.upgrade()
        await store.close()

    asyncio.run(create())
    return path


@pytest.fixture
async def store(empty_database: Path, tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(shutil.copy(empty_database, tmp_path / "store.db"))
    yield store
    await store.close()


@pytest.fixture
async def bus() -> AsyncIterator[MemoryBus]:
    bus = MemoryBus()
    yield bus
    await bus.close()


@pytest.fixture
def hot() -> MemoryHotState:
    return MemoryHotState()


@pytest.fixture
def clock() -> SystemClock:
    return SystemClock()


@pytest.fixture
def board(clock: SystemClock) -> BoardView:
    return BoardView(clock)


@pytest.fixture
def gateway_options() -> dict[str, Any]:
    return {}


@pytest.fixture
async def gateway(bus: MemoryBus, clock: SystemClock, gateway_options: dict[str, Any]) -> AsyncIterator[Gateway]:
    gateway = Gateway(bus, clock, toplists=SYSTEM_TOPLISTS, partitions=2, **gateway_options)
    running = asyncio.create_task(gateway.run())
    await asyncio.sleep(0)
    yield gateway
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.fixture
def services(
    *,
    store: SqlStore,
    bus: MemoryBus,
    hot: MemoryHotState,
    clock: SystemClock,
    board: BoardView,
    gateway: Gateway,
    tmp_path: Path,
) -> Services:
    return Services(
        store=store,
        accounts=Accounts(store, clock, bus=bus, keys=Keys.parse(SECRET)),
        hot=hot,
        bus=bus,
        clock=clock,
        board=board,
        gateway=gateway,
        status=lambda: {"feed": "synthetic", "lag_s": math.nan},
        ready=lambda: (True, "running"),
        explanations=Explanations(bus, partitions=1),
        ui=tmp_path / "ui",
    )


@asynccontextmanager
async def serving(services: Services) -> AsyncIterator[str]:
    """Serve the application; yields its host and port."""
    listening, port = loopback()
    config = server_config(create_app(services), host="127.0.0.1", port=port)
    async with served(config, listening):
        yield f"127.0.0.1:{port}"


@pytest.fixture
def serve() -> Callable[[Services], Any]:
    """To serve an application that differs from the one of `address`."""
    return serving


@pytest.fixture
async def address(services: Services) -> AsyncIterator[str]:
    async with serving(services) as address:
        yield address


@pytest.fixture(scope="session")
def tls() -> ssl.SSLContext:
    """Never used, but a client makes one for itself otherwise, and reads all certificates of the machine for it."""
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


@pytest.fixture
async def api(address: str, tls: ssl.SSLContext) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=10, trust_env=False, verify=tls) as client:
        yield client


@pytest.fixture
def dial(address: str) -> Callable[..., Any]:
    """Open a WebSocket and read its welcome."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[ClientConnection]:
        async with connect(f"ws://{address}/ws", proxy=None, **options) as client:
            assert json.loads(await client.recv())["type"] == "welcome"
            yield client

    return opened


@pytest.fixture
def draft() -> dict[str, Any]:
    return {
        "name": "Fast movers",
        "conditions": [{"metric": "change_pct_5m", "operator": ">", "value": 2.0}],
        "cooldown": 60.0,
    }


@pytest.fixture
def rule() -> Rule:
    return Rule(id="movers", name="Movers", conditions=[Condition(metric="price", operator=">", value=1.0)])


@pytest.fixture
def make_alert() -> Callable[..., Alert]:
    def make(number: int, **fields: Any) -> Alert:
        return Alert(**{
            "alert_id": f"{number:032x}",
            "rule_id": "movers",
            "rule_version": 1,
            "rule_name": "Movers",
            "symbol": "AAPL",
            "fired_at_ns": NOON_NS + number * 1_000_000_000,
            "price": 10.0 + number,
            "values": {"change_pct_5m": 2.5, "rsi_14_1m": math.nan},
            "session": "regular",
            **fields,
        })  # fmt: skip

    return make


@pytest.fixture
def make_board() -> Callable[..., BoardRows]:
    def make(*symbols: str, at_ns: int = NOON_NS) -> BoardRows:
        """The first symbol's price is 10 and its five-minute change 1 %, the next one's 20 and 2 %, and so on."""
        n = np.arange(1, len(symbols) + 1, dtype=np.float64)
        values = np.array([10 * n, n / 2, 1000 * n, n])
        values[1, -1] = np.nan
        return BoardRows(ts_ns=at_ns, session="regular", symbols=symbols, metrics=METRICS, values=values)

    return make


@pytest.fixture
def rank_board(hot: MemoryHotState, board: BoardView) -> Callable[[], Awaitable[None]]:
    """Put the five-minute ranking of the board where the toplists role would put it."""

    async def rank() -> None:
        symbols, values = board.column("change_pct_5m")
        ranking = [Ranked(symbol, value) for symbol, value in zip(symbols, values.tolist(), strict=True)]
        await hot.rank("toplist:change_pct:5m", ranking, ttl_s=60)

    return rank


@pytest.fixture
async def answering(bus: MemoryBus) -> AsyncIterator[Callable[..., Any]]:
    """Add a scanner that has seen a print of each symbol, at this price, in the second before it last asked the rules:
    it answers on the bus until the test ends.
    """
    answering: list[asyncio.Task[None]] = []

    async def add(rules: Iterable[Rule], prices: dict[str, float]) -> Scanner:
        scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"))
        scanner.apply(ruleset(1, rules))
        n = len(prices)
        scanner.step(
            make_batch(
                symbols=tuple(prices),
                conditions=("@",),
                symbol=range(n),
                ts_ns=[OPEN_NS + SECOND_NS // 2] * n,
                price=list(prices.values()),
                size=[100.0] * n,
                tape=[ord("C")] * n,
                marks_row=[0, n],
                marks_ns=[OPEN_NS, OPEN_NS + SECOND_NS],
            )
        )
        answering.append(asyncio.create_task(ExplainRole(scanners=partial(list, [scanner]), bus=bus).run()))
        await asyncio.sleep(0)
        return scanner

    yield add
    for task in answering:
        task.cancel()
    await asyncio.gather(*answering, return_exceptions=True)
