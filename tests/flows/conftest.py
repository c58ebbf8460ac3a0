"""The whole system in the test's own loop, in one process and over real servers: scripted feeds, a real port."""

import asyncio
import json
import shutil
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import pytest
from postgres_server import PostgresProgram
from servers import RedisProgram
from websockets.asyncio.client import ClientConnection, connect

from tapewatch.adapters.redis import RedisBus
from tapewatch.adapters.redis_hot_state import RedisHotState
from tapewatch.adapters.sql import SqlStore
from tapewatch.app.distributed import Distributed
from tapewatch.app.embedded import Embedded
from tapewatch.app.readers import BOARD_INTERVAL_NS, BOARD_OFFSET_NS
from tapewatch.clock import SystemClock
from tapewatch.config import ROLES, RunConfig, UpConfig
from tapewatch.documents import Alert, Rule
from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import SECOND_NS, Bars, Batch, make_batch, pulse
from tapewatch.engine.rules import Ruleset
from tapewatch.engine.scanner import Scanner
from tapewatch.nyse import day_of, trading_days
from tapewatch.ports import AlertQuery, Clock, Entry, Feed, Store
from tapewatch.replay import final_bars
from tapewatch.roles.alerts import note_of

OPEN_NS = day_of("2025-03-03")[1]
PATIENCE_S = 20.0


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that tells nobody when it happens."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


class ScriptedFeed:
    """Plays its script. A batch is delivered, an error raised (the next call goes on behind it), an event awaited."""

    name = "scripted"

    def __init__(self, script: Iterable[Batch | Exception | asyncio.Event]) -> None:
        self.rejected: Mapping[str, int] = MappingProxyType({})
        self._script = list(script)

    async def batches(self) -> AsyncIterator[Batch]:
        while self._script:
            step = self._script.pop(0)
            if isinstance(step, Exception):
                raise step
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                yield step


class Market:
    """Batches by hand; seconds count from the open of 3 March 2025."""

    symbols = ("AAPL", "BRK.B", "C", "MSFT", "TSLA", "ZZZ")

    def prints(self, second: float, prices: Mapping[str, float], *, size: float = 100.0) -> Batch:
        """One trade a symbol at that second, and the watermark right behind."""
        ts_ns = OPEN_NS + round(second * SECOND_NS)
        n = len(prices)
        return make_batch(
            symbols=self.symbols,
            conditions=("@",),
            symbol=[self.symbols.index(symbol) for symbol in prices],
            ts_ns=[ts_ns] * n,
            price=list(prices.values()),
            size=[size] * n,
            tape=[ord("C")] * n,
            marks_row=[n],
            marks_ns=[ts_ns + 1],
        )

    def quiet(self, second: float) -> Batch:
        return pulse(OPEN_NS + round(second * SECOND_NS))

    def late_start(self) -> Batch:
        """A tape that begins with a print of half a minute ago."""
        ts_ns = [OPEN_NS - 30 * SECOND_NS, OPEN_NS]
        facts: dict[str, Any] = {
            "symbol": [4, 0],
            "ts_ns": ts_ns,
            "price": [250.0, 100.0],
            "size": [10.0, 20.0],
            "tape": [67, 67],
        }
        return make_batch(symbols=self.symbols, conditions=("@",), marks_row=[2], marks_ns=[OPEN_NS], **facts)

    def afternoon(self) -> list[Batch]:
        """Four minutes: prices that rise and fall, a late print, a symbol that trades once, and time to close bars."""
        script: list[Batch] = []
        for second in range(200):
            wave = (second * 7) % 40
            prices = {"AAPL": 100.0 + wave, "MSFT": 400.0 - wave, "BRK.B": 50.0 + (second % 3)}
            if second % 5 == 0:
                prices["C"] = 10.0 + second / 100
            if second == 90:
                prices["ZZZ"] = 1.0
            script.append(self.prints(second, prices, size=100.0 + second))
        late = self.prints(20, {"TSLA": 250.0})
        script.append(make_batch(**{**_columns(late), "marks_row": (), "marks_ns": ()}))
        script += [self.quiet(second) for second in range(200, 250)]
        return script


def _columns(batch: Batch) -> dict[str, Any]:
    names = ("symbols", "conditions", "symbol", "ts_ns", "price", "size", "tape")
    return {name: getattr(batch, name) for name in names}


@dataclass(frozen=True)
class Engine:
    """What the engine alone makes of a tape."""

    bars: dict[tuple[str, int], tuple[float, ...]]
    alerts: list[Alert]
    """In the order of firing, with the notes that they have in the end."""
    notes: int
    """How often one of them was given a line of note."""
    boards: dict[int, BoardRows]


def engine_over(tape: Iterable[Entry]) -> Engine:
    profile, days = load_profile("alpaca"), trading_days()
    builder = BarBuilder(days=days, profile=profile)
    boards_at = {"board_interval_ns": BOARD_INTERVAL_NS, "board_offset_ns": BOARD_OFFSET_NS}
    scanner = Scanner(days=days, profile=profile, scan_interval_ns=SECOND_NS, **boards_at)
    parts: list[Bars] = []
    alerts: list[Alert] = []
    boards: dict[int, BoardRows] = {}
    notes = 0
    for entry in tape:
        if isinstance(entry, Ruleset):
            scanner.apply(entry)
        elif isinstance(entry, Batch):
            parts.append(builder.step(entry))
            step = scanner.step(entry)
            told = 0
            for before, withdrawn in step.withdrawn:
                alerts += map(Alert.of, step.matches[told:before])
                told = before
                for place, alert in enumerate(alerts):
                    if alert.symbol == withdrawn.symbol and alert.fired_at_ns >= withdrawn.ts_ns:
                        alerts[place] = alert.annotated(note_of(withdrawn))
                        notes += 1
            alerts += map(Alert.of, step.matches[told:])
            boards |= {board.ts_ns: board for board in step.boards}
    return Engine(bar_facts(final_bars([part for part in parts if len(part)])), alerts, notes, boards)


def bar_facts(bars: Bars) -> dict[tuple[str, int], tuple[float, ...]]:
    names = ("open", "high", "low", "close", "volume", "vwap", "trade_count", "revision")
    columns = [getattr(bars, name).tolist() for name in names]
    keys = zip((bars.symbols[i] for i in bars.symbol.tolist()), bars.ts_ns.tolist(), strict=True)
    return {key: tuple(map(float, facts)) for key, facts in zip(keys, zip(*columns, strict=True), strict=True)}


@dataclass
class Up:
    """A running system."""

    system: Embedded | Distributed
    store: Store
    address: str
    api: httpx.AsyncClient
    _closing: list[Any] = field(default_factory=list)

    async def played(self) -> None:
        """The feed has ended, and every role has handled what is there."""
        await until(lambda: self.system.ingest is not None and self.system.ingest.state in {"ended", "refused"})
        await self.system.drain()
        wanted: tuple[Any, ...] = ()
        shown: tuple[Any, ...] = ()
        try:
            async with asyncio.timeout(PATIENCE_S):
                # A scanner that begins again adds a board.
                while (wanted := await self._newest_board()) and wanted != (shown := self._shown_board()):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        except TimeoutError:
            reached = [scanner.watermark_ns for scanner in self.system.scanners]
            raise AssertionError(f"{wanted} is not shown: {shown}; scanners have reached {reached}") from None

    async def _newest_board(self) -> tuple[Any, ...]:
        """Its event time, as lists and API are to have it; nothing if there is none."""
        newest = await self.system.bus.newest("board:0", 1)
        return (newest[-1][1].ts_ns, 0, newest[-1][1].ts_ns) if newest else ()  # type: ignore[union-attr]

    def _shown_board(self) -> tuple[Any, ...]:
        toplists = self.system.toplists
        ranked = (None, 0) if toplists is None else (toplists.ranked_ns, toplists.missing)
        return (*ranked, (self.system.board.as_of() or (0, ""))[0])

    async def status(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The system status, once it is as it should be: processes tell each other each second."""
        told: dict[str, Any] = {}
        try:
            async with asyncio.timeout(PATIENCE_S):
                while not wanted(told := await self.get("system/status")):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"the status stayed {json.dumps(told)}") from None
        return told

    async def tape(self, partition: int = 0, *, topic: str = "ticks") -> list[Any]:
        """Everything that ingest wrote, or what another topic still holds."""
        stream = f"{topic}:{partition}"
        end = await self.system.bus.tail(stream)
        entries: list[Entry] = []
        if end is None:
            return entries
        async for position, entry in self.system.bus.read(stream):
            entries.append(entry)
            if position == end:
                break
        return entries

    async def alerts_over_rest(self, least: int = 0) -> list[dict[str, Any]]:
        """All pages, oldest first, once the store has that many."""
        async with asyncio.timeout(PATIENCE_S):
            while len(items := await self._pages()) < least:  # noqa: ASYNC110  # REST tells nobody
                await asyncio.sleep(0.01)
        return items

    async def _pages(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            page = await self.get("alerts", limit=100, **({"cursor": cursor} if cursor else {}))
            items += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return items[::-1]

    async def get(self, path: str, **query: Any) -> Any:
        return (await self.api.get(f"/api/v1/{path}", params=query)).raise_for_status().json()

    async def save_rule(self, rule: dict[str, Any]) -> dict[str, Any]:
        """Create it, or replace it; returns when it is on the tape."""
        number = self.system.scanners[0].ruleset.number
        answer = await self.api.put(f"/api/v1/rules/{rule['id']}", json={k: v for k, v in rule.items() if k != "id"})
        if answer.status_code == 404:
            answer = await self.api.post("/api/v1/rules", json=rule)
        saved: dict[str, Any] = answer.raise_for_status().json()
        await until(lambda: all(scanner.ruleset.number > number for scanner in self.system.scanners))
        return saved

    @asynccontextmanager
    async def socket(self) -> AsyncIterator[ClientConnection]:
        async with connect(f"ws://{self.address}/ws", proxy=None, max_size=None) as client:
            assert json.loads(await client.recv())["type"] == "welcome"
            yield client


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Migrations take longer than most tests, so they run once."""
    path = tmp_path_factory.mktemp("store") / "tapewatch.db"
    asyncio.run(_upgrade(path))
    return path


async def _upgrade(address: str | Path) -> None:
    store = SqlStore(address)
    await store.upgrade()
    await store.close()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Servers"]:
    """Redis and TimescaleDB, for all tests that ask for them."""
    redis, postgres = RedisProgram(tmp_path_factory.mktemp("redis")), PostgresProgram()
    redis.start()
    template = asyncio.run(postgres.new_database())
    asyncio.run(_upgrade(postgres.url_of(template)))
    yield Servers(redis, postgres, template)
    redis.kill()
    postgres.remove()


@dataclass(frozen=True)
class Servers:
    redis: RedisProgram
    postgres: PostgresProgram
    template: str
    """A database with an empty store in it."""


@pytest.fixture(params=["embedded", "distributed"])
def mode(request: pytest.FixtureRequest) -> str:
    """Everything over the adapters of one process, or over real servers."""
    return str(request.param)


@pytest.fixture
def address(mode: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[str | Path]:
    """Of a store of the test's own."""
    if mode == "embedded":
        yield Path(shutil.copy(request.getfixturevalue("empty_database"), tmp_path / "tapewatch.db"))
        return
    servers: Servers = request.getfixturevalue("servers")
    servers.redis.empty()
    name = asyncio.run(servers.postgres.new_database(template=servers.template))
    yield servers.postgres.app_url_of(name)
    asyncio.run(servers.postgres.drop_database(name))


@pytest.fixture
def running(address: str | Path, tmp_path: Path, mode: str, request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Start the system over a feed; it stops as `tapewatch up` and `tapewatch run` do when the block ends."""

    @asynccontextmanager
    async def start(
        feed: Feed,
        *,
        partitions: int = 1,
        clock: Clock | None = None,
        wrap: Callable[[Store], Any] = lambda store: store,
        before: Iterable[Rule] = (),
        webhooks_to: tuple[str, ...] = (),
    ) -> AsyncIterator[Up]:
        """`before`: rules that the store has when the system starts. `webhooks_to`: networks that may be told."""
        store = SqlStore(address)
        for rule in before:
            await store.save_rule(rule)
        system: Embedded | Distributed
        listening: list[str] = []
        stop, ready = asyncio.Event(), asyncio.Event()

        def on_ready(says: str) -> None:
            listening.append(says.partition("http://")[2])
            ready.set()

        closing: list[Callable[[], Awaitable[None]]] = [store.close]
        if mode == "embedded":
            system = Embedded(
                UpConfig(data_dir=tmp_path, webhook_networks=webhooks_to),
                store=wrap(store),
                feed=feed,
                clock=clock or SystemClock(),
                partitions=partitions,
            )
            listener = socket.create_server(("127.0.0.1", 0))
            task = asyncio.create_task(system.run(listener, stop=stop, on_ready=on_ready))
        else:
            url = request.getfixturevalue("servers").redis.url
            bus, hot = RedisBus(url), RedisHotState(url)
            config = RunConfig(
                roles=ROLES,
                bus=url,
                store=str(address),
                partitions=partitions,
                port=0,
                data_dir=tmp_path,
                webhook_networks=webhooks_to,
            )
            system = Distributed(config, bus=bus, hot=hot, store=wrap(store), clock=clock or SystemClock(), feed=feed)
            task = asyncio.create_task(system.run(stop=stop, on_ready=on_ready))
            closing = [bus.close, hot.close, *closing]
        try:
            await asyncio.wait(
                {task, asyncio.ensure_future(ready.wait())}, timeout=PATIENCE_S, return_when=asyncio.FIRST_COMPLETED
            )
            if task.done():
                await task
            await until(lambda: len(system.scanners) == partitions and system.ingest is not None)
            async with httpx.AsyncClient(base_url=f"http://{listening[0]}", trust_env=False) as api:
                yield Up(system, store, listening[0], api)
        finally:
            stop.set()
            async with asyncio.timeout(PATIENCE_S):
                await task
            for close in closing:
                await close()

    return start


@pytest.fixture
def forget_tape(mode: str, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[[], None]:
    """What is on the tape goes, as it does by itself where the bus dies with the process."""

    def forget() -> None:
        if mode == "distributed":
            request.getfixturevalue("servers").redis.empty()
            shutil.rmtree(tmp_path / "journal")

    return forget


@pytest.fixture
def emptied(
    mode: str, address: str | Path, forget_tape: Callable[[], None], tmp_path: Path, request: pytest.FixtureRequest
) -> Callable[[], Any]:
    """Nothing is in the store any more, nor on the tape."""

    async def empty() -> None:
        if mode == "embedded":
            shutil.copy(request.getfixturevalue("empty_database"), address)
            return
        if (tmp_path / "journal").exists():
            forget_tape()
        postgres: PostgresProgram = request.getfixturevalue("servers").postgres
        database = str(address).rpartition("/")[2]
        rows = await postgres.administer(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
            " AND tablename NOT IN ('alembic_version', 'ruleset_number', 'accounts_number')",
            database=database,
        )
        await postgres.administer(
            f"TRUNCATE {', '.join(row['tablename'] for row in rows)}",
            "UPDATE ruleset_number SET number = 0",
            database=database,
        )

    return empty


@pytest.fixture
def market() -> Market:
    return Market()


@pytest.fixture
def stored(address: str | Path) -> Callable[..., Any]:
    """What a stopped system left behind: bars of these symbols, and all alerts, oldest first."""

    async def read(symbols: Iterable[str]) -> tuple[dict[tuple[str, int], tuple[float, ...]], list[Alert]]:
        store = SqlStore(address)
        bars: dict[tuple[str, int], tuple[float, ...]] = {}
        for symbol in symbols:
            bars |= bar_facts(await store.bars(symbol))
        alerts = await store.alerts(AlertQuery(limit=100_000))
        await store.close()
        return bars, alerts[::-1]

    return read


@pytest.fixture
def engine() -> Callable[[Iterable[Entry]], Engine]:
    return engine_over


@pytest.fixture
def scripted() -> type[ScriptedFeed]:
    return ScriptedFeed


@pytest.fixture
def eventually() -> Callable[..., Any]:
    return until
