"""The Databento replay server, judged by the official client and by our own session over the same wire."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import databento
import databento_dbn
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from databento.common.error import BentoError

from tapewatch.clock import SystemClock
from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import SECOND_NS, Batch, pulse
from tapewatch.errors import ConfigError, FeedLost, FeedRefused
from tapewatch.feeds.databento import DatabentoSession, DatabentoSettings, publishers, venue_letters
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.live import LiveFeed
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.servers.access import Credentials
from tapewatch.feeds.servers.databento import DatabentoServer
from tapewatch.feeds.servers.play import FeedServer
from tapewatch.feeds.tape_file import TapeReader
from tapewatch.feeds.transport import Transport, tcp
from tapewatch.nyse import trading_days

pytestmark = pytest.mark.anyio

KEY = "db-q2W8eR5tY7uI9oP3aS6dF1gH4jK0"
OPEN_NS = 1_763_735_400 * SECOND_NS  # 2025-11-21 09:30 New York
WITHIN_S = 20.0
LETTERS = "NQZDPKT"

Tape = dict[str, list[Any]]


def tape(rows: int = 3000, *, symbols: Sequence[str] = ("IBM", "AIG", "SPY")) -> Tape:
    """Ten seconds of trades a second apart or less, each of another size."""
    i = range(rows)
    return {
        "symbol": [symbols[n % len(symbols)] for n in i],
        "ts_ns": [OPEN_NS + n * 3_000_000 for n in i],
        "price": [100 + n % 50 / 100 for n in i],
        "size": [float(n + 1) for n in i],
        "conditions": ["@"] * rows,
        "exchange": [LETTERS[n % len(LETTERS)] for n in i],
        "tape": ["A"] * rows,
    }


@pytest.fixture
def write(tmp_path: Path) -> Callable[[Tape], Path]:
    def write(columns: Tape) -> Path:
        path = tmp_path / "tape.parquet"
        pq.write_table(pa.table(columns), path)
        return path

    return write


class Listening:
    """Our own session on a wire to the server."""

    def __init__(self, transport: Transport, session: DatabentoSession) -> None:
        self.session, self._transport = session, transport
        self.batches: list[Batch] = []
        self.notes: dict[str, int] = {}

    async def until(self, enough: Callable[["Listening"], bool]) -> None:
        """Raises what ended the connection."""
        while not enough(self):
            received = self.session.receive([(SystemClock().now_ns(), await self._transport.recv())])
            if received.batch is not None:
                self.batches.append(received.batch)
            for name, count in received.notes.items():
                self.notes[name] = self.notes.get(name, 0) + count
            for reply in received.replies:
                await self._transport.send(reply)
            if received.ended is not None:
                raise received.ended

    @property
    def rows(self) -> int:
        return sum(map(len, self.batches))

    def column(self, name: str) -> list[Any]:
        values = [value for batch in self.batches for value in getattr(batch, name).tolist()]
        return [self.batches[-1].symbols[value] for value in values] if name == "symbol" else values

    @property
    def places(self) -> list[int]:
        return [(trade_id & 0xFFFFFFFF) - 1 for trade_id in self.column("trade_id")]


@asynccontextmanager
async def listening(server: DatabentoServer, **changes: Any) -> AsyncIterator[Listening]:
    options: dict[str, Any] = {"key": KEY, "dataset": "EQUS.ALL", "host": "127.0.0.1", "port": server.port}
    settings = DatabentoSettings(**options | changes)
    session = DatabentoSession(settings, symbols=Dictionary(), conditions=Dictionary(), quarantine=Quarantine())
    async with asyncio.timeout(WITHIN_S), tcp(*settings.address) as transport:
        yield Listening(transport, session)


def take(rows: int) -> Callable[[Listening], bool]:
    return lambda listening: listening.rows >= rows


def for_ever(_listening: Listening) -> bool:
    return False


class Minutes:
    """The last revision of each minute's bar, from batches."""

    def __init__(self) -> None:
        self.bars: dict[tuple[str, int], tuple[float, ...]] = {}
        self.rows, self.newest_ns = 0, 0
        self._builder = BarBuilder(days=trading_days(), profile=load_profile("alpaca"))

    def add(self, batch: Batch) -> None:
        self.rows += len(batch)
        self.newest_ns = max(self.newest_ns, int(batch.ts_ns.max(initial=0)))
        bars = self._builder.step(batch)
        values = (bars.open, bars.high, bars.low, bars.close, bars.volume, bars.trade_count)
        for symbol, ts_ns, *figures in zip(
            bars.symbol.tolist(), bars.ts_ns.tolist(), *(column.tolist() for column in values), strict=True
        ):
            self.bars[bars.symbols[symbol], ts_ns] = tuple(figures)


# -- the official client ----------------------------------------------------------------------------------------------


class Official:
    """The official client, fed by its own thread."""

    def __init__(self, server: DatabentoServer, **options: Any) -> None:
        self.records: list[Any] = []
        self.metadata: Any = None
        self.live = databento.Live(key=KEY, gateway="127.0.0.1", port=server.port, **options)
        self.live.add_callback(self.records.append)

    def play(self, rows: int, *, dataset: str = "EQUS.ALL", symbols: Any = "ALL_SYMBOLS") -> None:
        """Until so many trades have come."""
        enough, trades = threading.Event(), 0

        def count(record: Any) -> None:
            nonlocal trades
            trades += isinstance(record, databento_dbn.TradeMsg)
            if trades == rows:
                enough.set()

        self.live.add_callback(count)
        self.live.subscribe(dataset=dataset, schema="trades", symbols=symbols)
        self.live.start()
        assert enough.wait(WITHIN_S)
        self.metadata = self.live.metadata
        self.live.stop()
        self.live.block_for_close(timeout=WITHIN_S)

    def of(self, kind: type) -> list[Any]:
        return [record for record in self.records if isinstance(record, kind)]


async def test_the_official_client_gets_a_tape(write: Callable[[Tape], Path]) -> None:
    columns = tape(3000)
    async with DatabentoServer([write(columns)], credentials=Credentials(key=KEY)) as server:
        official = Official(server, ts_out=True)
        await asyncio.to_thread(official.play, 3000)
    mappings = {m.instrument_id: m.stype_out_symbol for m in official.of(databento_dbn.SymbolMappingMsg)}
    trades = official.of(databento_dbn.TradeMsg)
    assert [mappings[t.instrument_id] for t in trades] == columns["symbol"]
    assert [t.sequence for t in trades] == list(range(1, 3001))
    assert all(t.ts_out > OPEN_NS for t in trades)
    assert [t.publisher_id for t in trades[:7]] == [
        publishers()["EQUS.ALL"][venue] for venue in ("XNYS", "XNAS", "BATS", "FINN", "ARCX", "EDGX", "XNAS")
    ]
    assert not official.of(databento_dbn.ErrorMsg)
    assert [s.code for s in official.of(databento_dbn.SystemMsg)] == [databento_dbn.SystemCode.SUBSCRIPTION_ACK]
    assert (official.metadata.dataset, official.metadata.ts_out) == ("EQUS.ALL", True)


async def test_the_official_client_gets_the_symbols_that_it_names(write: Callable[[Tape], Path]) -> None:
    columns = tape(3000)
    async with DatabentoServer([write(columns)]) as server:
        official = Official(server)
        named = ["SPY", *(f"X{i}" for i in range(1200))]
        await asyncio.to_thread(official.play, 1000, symbols=named)
    trades = official.of(databento_dbn.TradeMsg)
    assert [t.size for t in trades] == [
        size for name, size in zip(columns["symbol"], columns["size"], strict=True) if name == "SPY"
    ]
    assert {m.stype_out_symbol for m in official.of(databento_dbn.SymbolMappingMsg)} == {"SPY"}


async def test_the_official_client_is_told_why_its_key_is_refused(write: Callable[[Tape], Path]) -> None:
    async with DatabentoServer([write(tape(10))], credentials=Credentials(key="db-another-key-altogether")) as server:
        official = Official(server)
        with pytest.raises(BentoError, match="Authentication failed"):
            await asyncio.to_thread(official.play, 10)
        assert server.sent[0].ended == "refused"


@pytest.mark.market_data
async def test_the_official_client_and_our_session_get_every_trade_of_a_real_tape(
    market_data: Path, tmp_path: Path
) -> None:
    """Twenty thousand trades from the open on, field by field."""
    path, rows = tmp_path / "real.parquet", 20_000
    real = pq.read_table(next((market_data / "trades").glob("trades_20131007.parquet"))).slice(60_000, rows)
    pq.write_table(real, path)
    columns = real.to_pydict()
    async with DatabentoServer([path], credentials=Credentials(key=KEY)) as server:
        official = Official(server)
        await asyncio.to_thread(official.play, rows)
    async with DatabentoServer([path], credentials=Credentials(key=KEY)) as server, listening(server) as ours:
        await ours.until(take(rows))
    trades = official.of(databento_dbn.TradeMsg)
    mappings = {m.instrument_id: m.stype_out_symbol for m in official.of(databento_dbn.SymbolMappingMsg)}
    letters = {i: venue_letters().get(venue, "\0") for venue, i in publishers()["EQUS.ALL"].items()}
    assert len(trades) == ours.rows == rows
    assert [mappings[t.instrument_id] for t in trades] == ours.column("symbol") == columns["symbol"]
    assert [t.ts_recv for t in trades] == ours.column("ts_ns") == columns["ts_ns"]
    assert [t.ts_event for t in trades] == columns["ts_ns"]
    assert [t.pretty_price for t in trades] == ours.column("price") == columns["price"]
    assert [t.size for t in trades] == ours.column("size") == columns["size"]
    assert [t.publisher_id << 32 | t.sequence for t in trades] == ours.column("trade_id")
    gone = {"W": "\0", "T": "Q"}  # CBSX closed in 2014 and has no publisher; T and Q are Nasdaq
    exchanges = [gone.get(letter, letter) for letter in columns["exchange"]]
    assert [letters[t.publisher_id] for t in trades] == [chr(code) for code in ours.column("exchange")] == exchanges
    assert {(t.action, t.side, t.depth) for t in trades} == {("T", "N", 0)}
    assert not ours.session.quarantine.counts


# -- our session ------------------------------------------------------------------------------------------------------


async def test_it_is_a_replay_server_like_the_others(write: Callable[[Tape], Path]) -> None:
    server: FeedServer = DatabentoServer([write(tape(10))])
    async with server:
        assert server.url.startswith("tcp://127.0.0.1:")
        assert server.sent == []


async def test_our_session_gets_a_tape(write: Callable[[Tape], Path]) -> None:
    columns = tape(3000)
    async with DatabentoServer([write(columns)], credentials=Credentials(key=KEY)) as server:
        async with listening(server) as ours:
            await ours.until(lambda it: it.session.ready)
            await ours.until(take(3000))
        assert ours.places == server.sent[0].rows.tolist() == list(range(3000))
    for name in ("symbol", "ts_ns", "price", "size"):
        assert ours.column(name) == columns[name]
    assert "".join(map(chr, ours.column("exchange"))) == "".join(columns["exchange"]).replace("T", "Q")
    assert ours.notes == {"subscription_ack": 1}


async def test_a_consolidated_dataset_names_no_exchange(write: Callable[[Tape], Path]) -> None:
    async with DatabentoServer([write(tape(50))]) as server, listening(server, dataset="EQUS.MINI") as ours:
        await ours.until(take(50))
    assert set(ours.column("exchange")) == {0}
    assert ours.places == list(range(50))


async def test_fractions_of_a_share_are_cut_off(write: Callable[[Tape], Path]) -> None:
    columns = tape(4) | {"size": [0.5, 1.5, 100.0, 5e12]}
    async with DatabentoServer([write(columns)]) as server, listening(server) as ours:
        await ours.until(take(4))
    assert ours.column("size") == [0.0, 1.0, 100.0, 2.0**32 - 2]


async def test_only_trades_are_sent(write: Callable[[Tape], Path]) -> None:
    """A trade that was cancelled printed; its cancel is not Databento's to send."""
    columns = tape(6, symbols=("IBM",)) | {
        "trade_id": ["1", "2", "3", "4", "3", "6"],
        "correction": [0, 0, 8, 0, 10, 0],
        "exchange": ["N"] * 6,
    }
    async with DatabentoServer([write(columns)]) as server, listening(server) as ours:
        await ours.until(take(5))
    assert ours.places == [0, 1, 2, 3, 5]


async def test_a_quiet_tape_has_a_heartbeat(write: Callable[[Tape], Path]) -> None:
    async with DatabentoServer([write(tape(5))]) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        decoder = databento_dbn.DBNDecoder()
        async with asyncio.timeout(WITHIN_S):
            await reader.readuntil(b"cram=")
            await reader.readline()
            writer.write(b"auth=anything|dataset=XNAS.ITCH|heartbeat_interval_s=1\n")
            assert (await reader.readline()).startswith(b"success=1|session_id=")
            writer.write(b"schema=trades|symbols=ALL_SYMBOLS|start=0\nstart_session=0\n")
            said: list[Any] = []
            while not any(isinstance(r, databento_dbn.SystemMsg) and r.is_heartbeat() for r in said):
                said += decoder.write_and_decode(await reader.read(65_536))
        writer.close()
    assert isinstance(said[0], databento_dbn.Metadata)
    codes = [r.code for r in said if isinstance(r, databento_dbn.SystemMsg)]
    system = databento_dbn.SystemCode
    assert codes == [system.SUBSCRIPTION_ACK, system.REPLAY_COMPLETED, system.HEARTBEAT]
    assert sum(isinstance(r, databento_dbn.TradeMsg) for r in said) == 5


@pytest.mark.market_data
async def test_our_feed_makes_the_bars_of_a_replay_that_ignores_conditions(market_data: Path, tmp_path: Path) -> None:
    path, rows = tmp_path / "real.parquet", 20_000
    pq.write_table(pq.read_table(market_data / "trades" / "trades_20131007.parquet").slice(60_000, rows), path)
    ours, theirs = Minutes(), Minutes()
    async with DatabentoServer([path]) as server:
        settings = DatabentoSettings(key=KEY, dataset="EQUS.ALL", host="127.0.0.1", port=server.port)
        symbols, conditions, quarantine = Dictionary(), Dictionary(), Quarantine()
        feed = LiveFeed(
            name="databento",
            open_session=lambda: DatabentoSession(
                settings, symbols=symbols, conditions=conditions, quarantine=quarantine
            ),
            connect=lambda: tcp(*settings.address),
            clock=SystemClock(),
            days=trading_days(),
        )
        items: Any = feed.batches()
        async with asyncio.timeout(WITHIN_S), aclosing(items):
            async for item in items:
                if isinstance(item, Batch):
                    ours.add(item)
                if ours.rows == rows:
                    break
    for batch in TapeReader([path]).batches():
        n = len(batch)
        theirs.add(replace(batch, conditions=("@",), condition=np.zeros(n, np.uint16), tape=np.zeros(n, np.uint8)))
    ours.add(pulse(ours.newest_ns + 120 * SECOND_NS))
    assert theirs.rows == ours.rows == rows
    assert len(theirs.bars) > 15
    assert ours.bars == theirs.bars


# -- faults -----------------------------------------------------------------------------------------------------------


async def test_a_dropped_connection_loses_nothing_that_was_sent(write: Callable[[Tape], Path]) -> None:
    places: list[int] = []
    losses: list[str] = []
    async with DatabentoServer([write(tape(3000))], faults=["drop:every=1000"], while_away="hold") as server:
        while len(places) < 3000:
            async with listening(server) as ours:
                try:
                    await ours.until(take(3000 - len(places)))
                except FeedLost as lost:
                    losses.append(lost.reason)
            places += ours.places
        assert [sent.ended for sent in server.sent][:2] == ["drop", "drop"]
        assert sorted(places) == sorted(np.concatenate([sent.rows for sent in server.sent]).tolist())
    assert places == list(range(3000))
    assert losses[:2] == ["network", "network"]


async def test_frames_that_come_twice_and_out_of_order_are_the_same_trades(write: Callable[[Tape], Path]) -> None:
    faults = ["duplicate:every=900", "reorder:window=3"]
    async with DatabentoServer([write(tape(6000))], faults=faults, seed=3) as server:
        async with listening(server) as ours:
            await ours.until(lambda it: set(it.places) == set(range(6000)) and it.rows >= 6000 + 500)
        sent = server.sent[0].rows.tolist()
    assert ours.places == sent[: ours.rows]
    assert ours.places != sorted(ours.places)


async def test_malformed_records_harm_no_other(write: Callable[[Tape], Path]) -> None:
    async with DatabentoServer([write(tape(6000))], faults=["malformed:p=1"], seed=2) as server:
        async with listening(server) as ours:
            await ours.until(take(6000))
        assert server.sent[0].counts["malformed"] >= 12
    assert ours.places == list(range(6000))
    assert sum(ours.session.quarantine.counts.values()) >= 11


async def test_withheld_trades_never_come(write: Callable[[Tape], Path]) -> None:
    faults = ["withhold:from=09:30:03,to=09:30:06"]
    async with DatabentoServer([write(tape(3000))], faults=faults) as server, listening(server) as ours:
        await ours.until(take(2000))
    assert ours.places == [*range(1000), *range(2000, 3000)]


async def test_a_stall_is_silent_on_an_open_connection(write: Callable[[Tape], Path]) -> None:
    async with DatabentoServer([write(tape(3000))], faults=["stall:every=1000,for=0.05"]) as server:
        async with listening(server) as ours:
            await ours.until(take(3000))
        assert server.sent[0].counts["stall"] >= 2
    assert ours.places == list(range(3000))


async def test_a_stall_for_good_never_ends(write: Callable[[Tape], Path]) -> None:
    async with DatabentoServer([write(tape(3000))], faults=["stall:every=1000"]) as server:
        async with listening(server) as ours:
            await ours.until(take(1000))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await ours.until(for_ever)
        assert server.sent[0].ended == ""


async def test_a_client_that_takes_nothing_is_cut(write: Callable[[Tape], Path]) -> None:
    async with DatabentoServer([write(tape(300_000))], faults=["slow-consumer:after=0.2"]) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        await reader.readuntil(b"cram=")
        await reader.readline()
        writer.write(b"auth=anything|dataset=XNAS.ITCH\nschema=trades|symbols=ALL_SYMBOLS\nstart_session=0\n")
        async with asyncio.timeout(WITHIN_S):
            while not server.sent[0].ended:  # noqa: ASYNC110  # the server tells nobody whom it cuts
                await asyncio.sleep(0.01)
        writer.close()
        assert server.sent[0].ended == "slow_consumer"


@pytest.mark.parametrize(
    ("faults", "kind", "reason"),
    [
        (["refuse:first=1,status=503"], FeedLost, "closed"),
        (["refuse:first=1,status=429"], FeedLost, "connection_limit"),
        (["refuse:first=1,status=401"], FeedRefused, None),
        (["no-plan"], FeedRefused, None),
        (["symbol-limit:max=2"], FeedRefused, None),
    ],
)
async def test_a_refusal_says_whether_to_try_again(
    write: Callable[[Tape], Path], faults: list[str], kind: type[FeedLost | FeedRefused], reason: str | None
) -> None:
    async with DatabentoServer([write(tape(50))], faults=faults) as server:
        with pytest.raises(kind) as raised:
            async with listening(server) as ours:
                await ours.until(for_ever)
        assert getattr(raised.value, "reason", None) == reason
        if faults[0].startswith("refuse"):
            assert server.refused == 1
            async with listening(server) as ours:
                await ours.until(take(50))


async def test_one_connection_too_many_is_refused_and_the_first_goes_on(write: Callable[[Tape], Path]) -> None:
    async with DatabentoServer([write(tape(2000))], faults=["connection-limit:max=1"]) as server:
        async with listening(server) as first:
            await first.until(lambda it: it.session.ready)
            with pytest.raises(FeedLost) as raised:
                async with listening(server) as second:
                    await second.until(for_ever)
            assert raised.value.reason == "connection_limit"
            await first.until(take(2000))
        assert [sent.ended for sent in server.sent] == ["", "connection_limit"]


async def test_a_wrong_key_is_refused_and_shown_nowhere(write: Callable[[Tape], Path]) -> None:
    credentials = Credentials(key="db-the-only-good-key")
    async with DatabentoServer([write(tape(50))], credentials=credentials) as server:
        with pytest.raises(FeedRefused) as raised:
            async with listening(server) as ours:
                await ours.until(for_ever)
    assert str(raised.value) == "Databento refused the session: Authentication failed."
    assert KEY not in repr(server.__dict__)
    assert "only-good" not in repr(credentials)


@pytest.mark.parametrize(
    "said",
    [
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"auth=x|dataset=NOT.THERE\n",
        b"auth=x|dataset=XNAS.ITCH|compression=zstd\n",
        b"auth=x|dataset=XNAS.ITCH|heartbeat_interval_s=0\n",
        b"auth=x|dataset=XNAS.ITCH|heartbeat_interval_s=\xff\n",
        b"\x00\xff\xfe\n",
        b"x" * 200_000,
    ],
)
async def test_a_strange_client_is_sent_away(write: Callable[[Tape], Path], said: bytes) -> None:
    async with DatabentoServer([write(tape(50))]) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(WITHIN_S):
            writer.write(said)
            try:
                rest = (await reader.read()).split(b"\n")[2:]
            except ConnectionResetError:
                rest = []
        writer.close()
        assert not any(line.startswith(b"success=1") for line in rest)
        async with listening(server) as ours:
            await ours.until(take(50))


@pytest.mark.parametrize(
    "request_line",
    [
        "schema=mbo|symbols=IBM",
        "schema=trades|stype_in=parent|symbols=IBM",
        "schema=trades|symbols=",
        "schema=trades|symbols=" + ",".join(["A"] * 501),
        "nonsense=1",
    ],
)
async def test_a_subscription_that_cannot_be_is_an_error_record(
    write: Callable[[Tape], Path], request_line: str
) -> None:
    async with DatabentoServer([write(tape(50))]) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        async with asyncio.timeout(WITHIN_S):
            await reader.readuntil(b"cram=")
            await reader.readline()
            writer.write(b"auth=x|dataset=XNAS.ITCH\n")
            await reader.readline()
            writer.write(request_line.encode() + b"\n")
            raw = await reader.read()
        writer.close()
        _, error = databento_dbn.DBNDecoder().write_and_decode(raw)
        assert isinstance(error, databento_dbn.ErrorMsg)
        assert error.code == databento_dbn.ErrorCode.INVALID_SUBSCRIPTION
        assert server.sent[0].ended == "invalid_subscription"


def test_it_listens_on_loopback_only(write: Callable[[Tape], Path]) -> None:
    async def enter() -> None:
        async with DatabentoServer([write(tape(5))], host="0.0.0.0"):
            pass

    with pytest.raises(ConfigError, match="loopback"):
        asyncio.run(enter())
