"""The replay server for Alpaca: judged by Alpaca's own client, then word by word, then with things going wrong."""

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it has no types
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tapewatch.eligibility import load_profile
from tapewatch.engine.bars import BarBuilder
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.errors import ConfigError, Invalid
from tapewatch.feeds.servers import alpaca
from tapewatch.feeds.servers.access import Credentials
from tapewatch.feeds.servers.alpaca import AlpacaServer
from tapewatch.feeds.tape_file import TapeReader
from tapewatch.nyse import trading_days

pytestmark = pytest.mark.anyio

OPEN_NS = 1_741_012_200 * SECOND_NS
"""2025-03-03 09:30 in New York."""
SYMBOLS = ("AAPL", "IBM", "SPY", "BRK.B", "F")
ROWS = 6_000
Message = dict[str, Any]
Write = Callable[..., Path]


def columns(rows: int) -> dict[str, Any]:
    """A tape of five stocks over ten minutes: odd lots, fractions, late sold trades, and every nanosecond counts."""
    place = np.arange(rows)
    late = np.where(place % 701 == 700, 90 * SECOND_NS, 0)
    return {
        "symbol": [SYMBOLS[n % 5] for n in place],
        "ts_ns": OPEN_NS + place * (10 * MINUTE_NS // rows) + place % 3 * 1_001 - late,
        "price": np.round(100 + np.sin(place / 50) + place % 7 / 100, 4),
        "size": np.where(place % 11 == 0, 0.5 + place % 4, place % 300 + 1.0),
        "conditions": [("@", "@ I", "@ TI", " F", "@  Z", " 4B")[n % 6] for n in place],
        "exchange": [("Q", "N", "P", "D", "V")[n % 5] for n in place],
        "tape": [("C", "A", "B", "A", "C")[n % 5] for n in place],
        "trade_id": place * 3 + 52_983_525_000_000,
    }


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(rows: int = ROWS, name: str = "tape.parquet", **changes: Any) -> Path:
        pq.write_table(pa.table({**columns(rows), **changes}), tmp_path / name)
        return tmp_path / name

    return write


class Desk:
    """A plain client, in JSON or msgpack."""

    def __init__(self, connection: ClientConnection, *, packed: bool = False) -> None:
        self.connection, self.packed = connection, packed
        self.frames: list[str | bytes] = []

    async def hear(self) -> Any:
        frame = await self.connection.recv()
        self.frames.append(frame)
        assert isinstance(frame, bytes) == self.packed
        return msgpack.unpackb(frame) if isinstance(frame, bytes) else json.loads(frame)

    async def say(self, message: Any) -> None:
        await self.connection.send(msgpack.packb(message) if self.packed else json.dumps(message))

    async def ask(self, message: Any) -> Any:
        await self.say(message)
        return await self.hear()

    async def trades(self, count: int) -> list[Message]:
        """So many trades; what else comes is left out."""
        got: list[Message] = []
        while len(got) < count:
            got += [message for message in await self.hear() if message["T"] == "t"]
        return got

    async def rest(self) -> list[Message]:
        """Everything until the connection ends; what cannot be read is left out."""
        got: list[Message] = []
        while True:
            try:
                heard = await self.hear()
            except ConnectionClosed:
                return got
            except (ValueError, msgpack.exceptions.UnpackException):
                continue
            if isinstance(heard, list):
                got += [
                    m
                    for m in heard
                    if isinstance(m, dict) and m.get("T") == "t" and isinstance(m.get("i"), int) and m["i"] > 0
                ]


@asynccontextmanager
async def client(url: str, *, packed: bool = False, **options: Any) -> AsyncIterator[Desk]:
    headers = {"Content-Type": "application/msgpack" if packed else "application/json"}
    async with connect(url, additional_headers=headers, **options) as connection:
        desk = Desk(connection, packed=packed)
        assert await desk.hear() == [{"T": "success", "msg": "connected"}]
        yield desk


@asynccontextmanager
async def subscriber(url: str, *symbols: str, packed: bool = False, **options: Any) -> AsyncIterator[Desk]:
    """A client that has asked for trades."""
    async with client(url, packed=packed, **options) as desk:
        assert (await desk.ask(AUTH))[0]["msg"] == "authenticated"
        assert (await desk.ask({"action": "subscribe", "trades": symbols or ["*"]}))[0]["T"] == "subscription"
        yield desk


AUTH = {"action": "auth", "key": "K", "secret": "S"}


def expected(path: Path) -> list[Message]:
    """A tape's rows as JSON trades, made in the slowest way."""
    rows = pq.read_table(path).to_pylist()
    return [
        {
            "T": "t",
            "S": row["symbol"],
            "i": row.get("trade_id", place + 1),
            "x": row["exchange"],
            "p": row["price"],
            "s": row["size"],
            "c": list(row["conditions"]),
            "z": row["tape"],
            "t": rfc3339(row["ts_ns"]),
        }
        for place, row in enumerate(rows)
    ]


def rfc3339(ts_ns: int) -> str:
    day = np.datetime64(ts_ns // SECOND_NS, "s").item().isoformat()
    fraction = f".{ts_ns % SECOND_NS:09d}".rstrip("0").rstrip(".")
    return f"{day}{fraction}Z"


def ids(messages: Sequence[Message]) -> list[Any]:
    return [message.get("i") for message in messages]


def tape_ids(places: Any) -> list[int]:
    return [place * 3 + 52_983_525_000_000 for place in np.asarray(places).tolist()]


# -- the official client as judge --------------------------------------------------------------------------------------


async def judge(path: Path) -> tuple[list[Message], list[Message]]:
    """What alpaca-py receives of a tape: trades and bars, in its raw form, which keeps nanoseconds."""
    from alpaca.data.enums import DataFeed
    from alpaca.data.live import StockDataStream

    trades: list[Message] = []
    bars: list[Message] = []
    rows = pq.read_metadata(path).num_rows

    async with AlpacaServer([path]) as server:
        stream = StockDataStream("key", "secret", feed=DataFeed.SIP, url_override=server.url, raw_data=True)

        async def on_trade(message: Any) -> None:
            trades.append(message)
            if len(trades) == rows:
                await stream.stop_ws()

        async def on_bar(message: Any) -> None:
            bars.append(message)

        stream.subscribe_trades(on_trade, "*")
        stream.subscribe_bars(on_bar, "*")
        async with asyncio.timeout(30):
            await stream._run_forever()
        assert server.sent[0].rows.tolist() == list(range(rows))
    return trades, bars


def from_raw(message: Message) -> Message:
    return {**message, "t": rfc3339(message["t"].seconds * SECOND_NS + message["t"].nanoseconds)}


# alpaca-py 0.44 is written for the older interface of websockets.
_OLD = (
    pytest.mark.filterwarnings("ignore:websockets.legacy is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:websockets.client.* is deprecated:DeprecationWarning"),
)


def old_client(test: Any) -> Any:
    for mark in _OLD:
        test = mark(test)
    return test


@old_client
async def test_official_client_receives_every_trade_of_a_tape(write: Write) -> None:
    path = write()
    trades, bars = await judge(path)
    assert list(map(from_raw, trades)) == expected(path)
    assert {bar["S"] for bar in bars} == set(SYMBOLS)


@old_client
@pytest.mark.market_data
async def test_official_client_receives_every_trade_of_a_real_day(market_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "real.parquet"
    pq.write_table(pq.read_table(market_data / "trades_taq2018/trades_XXX_20180102.parquet").slice(0, 15_000), path)
    trades, bars = await judge(path)
    assert len(trades) == 15_000
    assert list(map(from_raw, trades)) == expected(path)
    assert len(bars) > 50


@old_client
@pytest.mark.market_data
async def test_official_client_receives_nanoseconds_text_ids_and_fractions(market_data: Path) -> None:
    path = market_data / "trades_taq_ns/trades_20260401.parquet"
    trades, _ = await judge(path)
    want = [{**m, "i": int(m["i"]), "z": m["z"][0]} for m in expected(path)]
    by_id = {m["i"]: m for m in want}
    assert len(trades) == len(want)
    assert {m["i"]: from_raw(m) for m in trades} == by_id


# -- the handshake -----------------------------------------------------------------------------------------------------


async def test_handshake_answers_with_the_full_state(write: Write) -> None:
    async with AlpacaServer([write(5)]) as server, client(server.url) as desk:
        assert await desk.ask(AUTH) == [{"T": "success", "msg": "authenticated"}]
        # Nothing that the tape has an answer to: only acknowledgements come.
        asked = {"trades": ["MSFT"], "quotes": ["AMD", "CLDR"], "dailyBars": ["*"]}
        state = await desk.ask({"action": "subscribe", **asked})
        quiet: Message = {"bars": [], "updatedBars": [], "statuses": [], "lulds": []}
        assert state == [{"T": "subscription", **asked, **quiet, "corrections": ["MSFT"], "cancelErrors": ["MSFT"]}]
        (state,) = await desk.ask({"action": "unsubscribe", "dailyBars": ["*"], "quotes": ["AMD"]})
        assert (state["trades"], state["quotes"], state["dailyBars"]) == (["MSFT"], ["CLDR"], [])
        await desk.ask({"action": "unsubscribe", "quotes": ["CLDR"]})
        assert await desk.ask({"action": "unsubscribe", "trades": ["MSFT"]}) == [{"T": "subscription"}]


@pytest.mark.parametrize("packed", [False, True], ids=["json", "msgpack"])
async def test_mistakes_are_answered_and_the_connection_lives_on(write: Write, *, packed: bool) -> None:
    async with AlpacaServer([write()]) as server, client(server.url, packed=packed) as desk:

        async def code(message: Any) -> int:
            (error,) = await desk.ask(message)
            assert set(error) == {"T", "code", "msg"}
            assert error["T"] == "error"
            return int(error["code"])

        assert await code({"action": "subscribe", "trades": ["AAPL"]}) == 401
        assert await code({"action": "auth", "key": "K"}) == 400
        assert await code({"action": "auth", "key": 1, "secret": 2}) == 400
        assert await desk.ask(AUTH) == [{"T": "success", "msg": "authenticated"}]
        assert await code(AUTH) == 403
        mistakes: list[Any] = [
            {"action": "subscribe"},
            {"action": "subscribe", "trades": []},
            {"action": "subscribe", "trades": "AAPL"},
            {"action": "subscribe", "trades": [1]},
            {"action": "subscribe", "ticks": ["AAPL"]},
            {"action": "dance"},
            {},
            [],
            None,
        ]
        for mistake in mistakes:
            assert await code(mistake) == 400
        await desk.connection.send(b"\xc1" if packed else "{")
        assert (await desk.hear())[0]["code"] == 400
        assert (await desk.ask({"action": "subscribe", "trades": ["NONE"]}))[0]["trades"] == ["NONE"]


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "secret"}, "authenticated"),
        ({"Authorization": "Bearer secret"}, "authenticated"),
        ({"Authorization": f"Basic {base64.b64encode(b'key:secret').decode()}"}, "authenticated"),
        ({"APCA-API-KEY-ID": "key", "APCA-API-SECRET-KEY": "other"}, "auth failed"),
        ({"APCA-API-KEY-ID": "key"}, "auth failed"),
        ({"Authorization": "Bearer key"}, "auth failed"),
        ({"Authorization": "Basic ???"}, "auth failed"),
    ],
)
async def test_headers_authenticate(write: Write, headers: dict[str, str], answer: str) -> None:
    credentials = Credentials(key="key", secret="secret")  # noqa: S106
    async with (
        AlpacaServer([write(5)], credentials=credentials) as server,
        connect(server.url, additional_headers=headers) as connection,
    ):
        desk = Desk(connection)
        assert await desk.hear() == [{"T": "success", "msg": "connected"}]
        assert (await desk.hear())[0]["msg"] == answer


async def test_wrong_key_is_refused_and_may_be_mended(write: Write) -> None:
    credentials = Credentials(key="key", secret="secret")  # noqa: S106
    assert "secret" not in repr(credentials).replace("secret=", "")
    async with AlpacaServer([write(5)], credentials=credentials) as server, client(server.url) as desk:
        assert await desk.ask(AUTH) == [{"T": "error", "code": 402, "msg": "auth failed"}]
        assert (await desk.ask({"action": "auth", "key": "key", "secret": "S"}))[0]["code"] == 402
        assert (await desk.ask({"action": "auth", "key": "oauth", "secret": "secret"}))[0]["msg"] == "authenticated"


async def test_silent_client_is_sent_away(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alpaca, "_AUTH_WITHIN_S", 0.05)
    async with AlpacaServer([write(5)]) as server, client(server.url) as desk:
        assert await desk.hear() == [{"T": "error", "code": 404, "msg": "auth timeout"}]
        with pytest.raises(ConnectionClosed):
            await desk.hear()
        assert server.sent[0].ended == "auth_timeout"


async def test_other_paths_are_not_served(write: Write) -> None:
    async with AlpacaServer([write(5)]) as server:
        for path in ("/v2/test", "/v2/iex", "/v1beta1/overnight"):
            async with client(server.url.replace("/v2/sip", path)):
                pass
        with pytest.raises(InvalidStatus) as refused:
            await connect(server.url + "x")
        assert refused.value.response.status_code == 404


# -- what is sent ------------------------------------------------------------------------------------------------------


async def test_json_and_msgpack_carry_the_same(write: Write) -> None:
    path = write()

    async def received(*, packed: bool) -> list[Message]:
        async with AlpacaServer([path]) as server, client(server.url, packed=packed) as desk:
            await desk.ask(AUTH)
            await desk.ask({"action": "subscribe", "trades": ["*"], "bars": ["*"], "updatedBars": ["*"]})
            got: list[Message] = []
            while ids(got).count(None) < 50 or len(got) < ROWS + 50:
                got += await desk.hear()
            return [from_raw(message) if packed else message for message in got]

    text = await received(packed=False)
    assert text == await received(packed=True)
    assert [message for message in text if message["T"] == "t"] == expected(path)


async def test_client_gets_the_symbols_it_asked_for(write: Write) -> None:
    path = write()
    wanted = [message for message in expected(path) if message["S"] in {"IBM", "BRK.B"}]
    async with AlpacaServer([path]) as server, subscriber(server.url, "IBM", "BRK.B", "UNHEARD") as desk:
        assert await desk.trades(len(wanted)) == wanted


async def test_subscription_may_come_in_fragments(write: Write) -> None:
    path = write(50)
    many = [f"S{n:05d}" for n in range(8_000)]
    async with AlpacaServer([path]) as server, client(server.url) as desk:
        await desk.ask(AUTH)
        text = json.dumps({"action": "subscribe", "trades": [*many, "SPY"]})
        await desk.connection.send(text[at : at + 32_768] for at in range(0, len(text), 32_768))
        assert (await desk.hear())[0]["trades"] == sorted([*many, "SPY"])
        assert len(await desk.trades(10)) == 10


async def test_two_clients_at_once_get_every_trade_from_where_they_joined(write: Write) -> None:
    path = write()
    wanted = expected(path)

    async def until_the_last(desk: Desk) -> list[Message]:
        got: list[Message] = []
        while not got or got[-1]["i"] != wanted[-1]["i"]:
            got += await desk.hear()
        return got

    async with (
        AlpacaServer([path], speed=600.0) as server,
        subscriber(server.url) as first,
        subscriber(server.url) as second,
    ):
        one, other = await asyncio.gather(until_the_last(first), until_the_last(second))
    assert one == wanted
    assert len(other) > 0
    assert other == wanted[-len(other) :]


async def test_bars_are_those_of_a_replay(write: Write) -> None:
    path = write()
    builder = BarBuilder(days=trading_days(), profile=load_profile("alpaca"))
    replayed: dict[tuple[str, str], Message] = {}
    for batch in TapeReader([path]).batches():
        bars = builder.step(batch)
        for n in range(len(bars)):
            symbol, start = bars.symbols[bars.symbol[n]], rfc3339(int(bars.ts_ns[n]))
            prices = {"o": bars.open[n], "h": bars.high[n], "l": bars.low[n], "c": bars.close[n], "vw": bars.vwap[n]}
            counts = {"v": bars.volume[n], "n": bars.trade_count[n]}
            kind = "u" if bars.revision[n] else "b"
            replayed[symbol, start] = {"T": kind, "S": symbol, "t": start, **prices, **counts}
    assert {bar["T"] for bar in replayed.values()} == {"b", "u"}
    async with AlpacaServer([path]) as server, client(server.url) as desk:
        await desk.ask(AUTH)
        await desk.ask({"action": "subscribe", "bars": ["*"], "updatedBars": ["*"]})
        served: dict[tuple[str, str], Message] = {}
        async with asyncio.timeout(30):
            while served != replayed:  # the last word on each minute
                served |= {(bar["S"], bar["t"]): bar for bar in await desk.hear()}


async def test_cancelled_trade_is_sent_and_then_its_cancel(write: Write) -> None:
    rows = columns(8)
    rows["symbol"] = ["IBM"] * 8
    rows["exchange"] = ["N"] * 8
    rows["tape"] = ["A"] * 8
    rows["conditions"] = [" ", " ", " ", " F", " ", " ", " I", " "]
    rows["trade_id"] = [11, 12, 13, 14, 12, 13, 14, 99]
    rows["correction"] = ["00", "08", "07", "01", "10", "11", "12", "12"]
    rows["price"] = [1.0, 2.0, 3.0, 4.5, 2.0, 3.0, 4.0, 9.0]
    rows["size"] = [100.0] * 6 + [40.0, 1.0]
    path = write(8, **rows)
    async with AlpacaServer([path]) as server, subscriber(server.url, "IBM") as desk:
        got: list[Message] = []
        while len(got) < 7:
            got += await desk.hear()
        assert server.player.tape.left_out["correction"] == 1  # the last one corrects nothing
    assert [(m["T"], m["i"], m["p"]) for m in got[:4]] == [
        ("t", 11, 1.0),
        ("t", 12, 2.0),
        ("t", 13, 3.0),
        ("t", 14, 4.0),
    ]
    assert (got[3]["s"], got[3]["c"]) == (40, [" ", "I"])  # as it was first printed
    at = [rfc3339(int(ts_ns)) for ts_ns in rows["ts_ns"]]
    where = {"S": "IBM", "x": "N", "z": "A"}
    assert got[4] == {"T": "x", **where, "i": 12, "p": 2.0, "s": 100, "a": "C", "t": at[4]}
    assert got[5] == {"T": "x", **where, "i": 13, "p": 3.0, "s": 100, "a": "E", "t": at[5]}
    original = {"oi": 14, "op": 4.0, "os": 40, "oc": [" ", "I"]}
    corrected = {"ci": 14, "cp": 4.5, "cs": 100, "cc": [" ", "F"]}
    assert got[6] == {"T": "c", **where, **original, **corrected, "t": at[6]}


async def test_overlapping_files_are_one_tape(write: Write) -> None:
    whole = pq.read_table(write())
    halves = [whole.filter(pa.array((np.arange(ROWS) % 5 < 3) == half)) for half in (True, False)]
    parts = [write(name=f"{n}.parquet") for n in range(2)]
    for part, half in zip(parts, halves, strict=True):
        pq.write_table(half, part, row_group_size=700)
    async with AlpacaServer(parts) as server, subscriber(server.url) as desk:
        got = await desk.trades(ROWS)
    assert sorted(ids(got)) == sorted(whole.column("trade_id").to_pylist())
    for symbol in SYMBOLS:
        of_symbol = [message for message in got if message["S"] == symbol]
        assert of_symbol == [message for message in expected(write()) if message["S"] == symbol]


async def test_rows_that_are_no_trade_are_left_out_and_counted(write: Write) -> None:
    rows = columns(20)
    rows["price"][3], rows["size"][5], rows["ts_ns"][7] = -1.0, np.nan, 0
    rows["symbol"][9] = ""
    async with AlpacaServer([write(20, **rows)]) as server, subscriber(server.url) as desk:
        got = await desk.trades(16)
        assert ids(got) == tape_ids([n for n in range(20) if n not in {3, 5, 7, 9}])
        await server.player.finish()
        assert +server.player.tape.left_out == {"price": 1, "size": 1, "ts_ns": 1, "symbol": 1}


async def test_tape_without_ids_gets_row_numbers(write: Write) -> None:
    path = write(10)
    pq.write_table(pq.read_table(path).drop_columns(["trade_id"]), path)
    async with AlpacaServer([path]) as server, subscriber(server.url) as desk:
        assert ids(await desk.trades(10)) == list(range(1, 11))


# -- limits ------------------------------------------------------------------------------------------------------------


async def test_connection_beyond_the_limit_is_refused_and_the_first_goes_on(write: Write) -> None:
    async with AlpacaServer([write()], faults=["connection-limit:max=1"]) as server, subscriber(server.url) as first:
        async with client(server.url) as second:
            assert await second.ask(AUTH) == [{"T": "error", "code": 406, "msg": "connection limit exceeded"}]
            with pytest.raises(ConnectionClosed):
                await second.hear()
        assert len(await first.trades(ROWS)) == ROWS
        assert [sent.ended for sent in server.sent] == ["", "connection_limit"]


async def test_place_of_a_client_that_left_is_free(write: Write) -> None:
    async with AlpacaServer([write()], faults=["connection-limit:max=1"], while_away="hold") as server:
        async with subscriber(server.url) as first:
            await first.trades(1)
        async with subscriber(server.url) as second:
            await second.trades(1)


async def test_symbols_beyond_the_limit_are_refused_as_a_whole(write: Write) -> None:
    async with AlpacaServer([write(10)], faults=["symbol-limit:max=2"]) as server, client(server.url) as desk:
        await desk.ask(AUTH)
        assert (await desk.ask({"action": "subscribe", "trades": ["A"]}))[0]["trades"] == ["A"]
        for many in (["B", "C"], ["*"]):
            refusal = await desk.ask({"action": "subscribe", "trades": many})
            assert refusal == [{"T": "error", "code": 405, "msg": "symbol limit exceeded"}]
        (state,) = await desk.ask({"action": "subscribe", "trades": ["A", "B"], "bars": ["A", "B", "C", "*"]})
        assert (state["trades"], state["bars"]) == (["A", "B"], ["*", "A", "B", "C"])


async def test_plan_without_this_feed_is_told_so_at_authentication(write: Write) -> None:
    async with AlpacaServer([write(10)], faults=["no-plan"]) as server, client(server.url) as desk:
        assert await desk.ask(AUTH) == [{"T": "error", "code": 409, "msg": "insufficient subscription"}]
        assert (await desk.ask({"action": "subscribe", "trades": ["A"]}))[0]["code"] == 401


async def test_client_that_does_not_read_is_cut(write: Write) -> None:
    path = write(60_000)
    async with AlpacaServer([path], faults=["slow-consumer:after=0.2"]) as server:
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        wire.connect(("127.0.0.1", int(server.url.split(":")[2].split("/")[0])))
        async with subscriber(server.url, sock=wire, max_queue=1) as desk:
            await server.player.finish()  # nobody holds the tape up any more
            assert server.sent[0].ended == "slow_consumer"
            assert len(await desk.rest()) < 60_000


# -- faults ------------------------------------------------------------------------------------------------------------


async def until_all(server: AlpacaServer, path: Path) -> list[list[Message]]:
    """What a client that always comes back gets, connection by connection."""
    count = pq.read_metadata(path).num_rows
    got: list[list[Message]] = []
    async with asyncio.timeout(30):
        while len({i for part in got for i in ids(part)}) < count:
            async with subscriber(server.url) as desk:
                got.append(await desk.rest() if server.faults.faults else await desk.trades(count))
    return got


async def test_dropped_client_that_comes_back_loses_nothing_while_the_tape_is_held(write: Write) -> None:
    path = write()
    async with AlpacaServer([path], faults=["drop:every=1000"], while_away="hold") as server:
        got = await until_all(server, path)
        assert [message for part in got for message in part] == expected(path)
        assert [len(part) for part in got] == [1_000] * 6
        for sent, part in zip(server.sent, got, strict=True):
            assert (sent.ended, ids(part)) == ("drop", tape_ids(sent.rows))


async def test_drop_is_a_reset_without_a_goodbye(write: Write) -> None:
    async with AlpacaServer([write()], faults=["drop:every=2000"]) as server, subscriber(server.url) as desk:
        await desk.trades(2_000)
        with pytest.raises(ConnectionClosed) as lost:
            await desk.hear()
        assert lost.value.rcvd is None
        assert isinstance(lost.value.__cause__, ConnectionResetError)


async def test_tape_goes_on_without_a_dropped_client_as_a_provider_does(write: Write) -> None:
    path = write()
    async with AlpacaServer([path], faults=["drop:at=09:32:00"]) as server:
        async with subscriber(server.url) as desk:
            got = await desk.rest()
        await server.player.finish()
        assert ROWS / 5 <= len(got) <= ROWS / 5 + 500
        assert ids(got) == tape_ids(server.sent[0].rows)
        async with subscriber(server.url) as late:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(late.hear(), 0.05)


async def test_duplicated_frames_come_twice_and_nothing_is_missing(write: Write) -> None:
    faults = ["duplicate:p=0.5", f"drop:every={ROWS}"]
    async with AlpacaServer([write()], faults=faults, seed=3) as server, subscriber(server.url) as desk:
        got = ids(await desk.rest())
        twice = server.sent[0].counts["duplicate"]
        assert 0 < twice < 12
        assert len(got) == ROWS + twice * 500
        assert got == tape_ids(server.sent[0].rows)
        assert set(got) == set(tape_ids(range(ROWS)))


async def test_reordered_frames_all_come(write: Write) -> None:
    faults = ["reorder:window=5", f"drop:every={ROWS}"]
    async with AlpacaServer([write()], faults=faults) as server, subscriber(server.url) as desk:
        got = ids(await desk.rest())
        assert got == tape_ids(server.sent[0].rows)
    assert got != tape_ids(range(ROWS))
    assert sorted(got) == tape_ids(range(ROWS))
    assert set(got[:2_500]) == set(tape_ids(range(2_500)))  # no frame leaves its window


async def test_stalled_connection_is_open_and_silent(write: Write) -> None:
    async with AlpacaServer([write()], faults=["stall:every=3000"], while_away="hold") as server:
        async with subscriber(server.url) as desk:
            assert len(await desk.trades(3_000)) == 3_000
            await (await desk.connection.ping())
            await desk.say({"action": "subscribe", "trades": ["IBM"]})
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(desk.hear(), 0.1)
        async with subscriber(server.url) as desk:
            assert ids(await desk.trades(3_000)) == tape_ids(range(3_000, 6_000))


async def test_stall_of_some_seconds_ends(write: Write) -> None:
    path = write()
    async with AlpacaServer([path], faults=["stall:every=5000,for=0.1"]) as server, subscriber(server.url) as desk:
        assert await desk.trades(ROWS) == expected(path)
        assert server.sent[0].counts["stall"] == 1


@pytest.mark.parametrize("packed", [False, True], ids=["json", "msgpack"])
async def test_malformed_frames_stand_beside_good_ones(write: Write, *, packed: bool) -> None:
    path = write()
    faults = ["malformed:p=0.9", "drop:every=6000"]
    async with AlpacaServer([path], faults=faults) as server, subscriber(server.url, packed=packed) as desk:
        got = await desk.rest()
        assert ids(got) == tape_ids(range(ROWS))
        assert server.sent[0].counts["malformed"] >= 6
        assert len(desk.frames) == 3 + 12 + server.sent[0].counts["malformed"]


async def test_withheld_stretch_is_never_sent(write: Write) -> None:
    path = write()
    faults = ["withhold:from=09:33,to=09:34:30", "drop:every=4500"]
    async with AlpacaServer([path], faults=faults) as server, subscriber(server.url) as desk:
        got = await desk.rest()
        kept = [m for m in expected(path) if not "2025-03-03T14:33" <= m["t"] < "2025-03-03T14:34:30"]
        assert 4_500 <= len(got) <= len(kept) < ROWS - 800
        assert got == kept[: len(got)]
        assert ids(got) == tape_ids(server.sent[0].rows)


async def test_connections_are_refused_as_asked(write: Write) -> None:
    async with AlpacaServer([write()], faults=["refuse:first=2,status=429"]) as server:
        for _ in range(2):
            with pytest.raises(InvalidStatus) as refused:
                await connect(server.url, process_exception=lambda error: error)
            assert refused.value.response.status_code == 429
        async with subscriber(server.url) as desk:
            assert len(await desk.trades(ROWS)) == ROWS
        assert (server.refused, len(server.sent)) == (2, 1)


async def test_same_seed_goes_wrong_in_the_same_way(write: Write) -> None:
    path = write()
    faults = ["duplicate:p=0.3", "reorder:window=3,p=0.5", "malformed:p=0.2", "drop:every=1500"]

    async def run(seed: int) -> list[Any]:
        async with AlpacaServer([path], faults=faults, seed=seed, while_away="hold") as server:
            await until_all(server, path)
            return [(sent.rows.tolist(), dict(sent.counts)) for sent in server.sent]

    assert await run(1) == await run(1)
    assert await run(1) != await run(2)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("explode", "unknown fault 'explode'; there are: drop, stall,"),
        ("drop", "--fault drop: needs every or p or at or seconds"),
        ("drop:every", "--fault drop: every: '' is not a whole number above zero"),
        ("drop:every=0", "every: '0' is not a whole number above zero"),
        ("drop:every=2,every=3", "every is given twice"),
        ("drop:p=2", "p: '2' is not a chance above 0 and up to 1"),
        ("drop:p=0", "p: '0' is not a chance"),
        ("drop:p=nan", "p: 'nan' is not a chance"),
        ("drop:at=25:00", "at: '25:00' is not a time of day such as 09:31:30"),
        ("drop:seconds=-1", "seconds: '-1' is not a number of seconds"),
        ("drop:often=1", "unknown option 'often'; it takes: every, p, at, seconds"),
        ("withhold:from=09:30", "--fault withhold: needs from and to"),
        ("refuse:first=1,status=200", "status: '200' is not an HTTP status from 400 to 599"),
        ("no-plan:p=1", "unknown option 'p'; it takes none"),
        ("", "unknown fault ''"),
    ],
)
def test_fault_that_makes_no_sense_is_refused_in_one_line(write: Write, text: str, named: str) -> None:
    with pytest.raises(ConfigError) as refused:
        AlpacaServer([write(5)], faults=[text])
    assert named in str(refused.value)
    assert "\n" not in str(refused.value)


def test_file_that_is_no_tape_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="no such file"):
        AlpacaServer([tmp_path / "none.parquet"])
