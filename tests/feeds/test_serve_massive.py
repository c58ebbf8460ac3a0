"""The replay server for Massive: judged by both official clients, then word by word, then with things going wrong."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.feeds.servers.access import Credentials
from tapewatch.feeds.servers.massive import MassiveServer

pytestmark = pytest.mark.anyio

OPEN_NS = 1_741_012_200 * SECOND_NS
"""2025-03-03 09:30 in New York."""
SYMBOLS = ("AAPL", "IBM", "SPY", "BRK.B", "F")
ROWS = 6_000
Message = dict[str, Any]
Write = Callable[..., Path]

# The provider's documentation, written down again for comparison.
EXCHANGES = {"Q": 12, "T": 12, "N": 10, "P": 11, "D": 4, "V": 15, "K": 8, "Z": 19, "J": 7, "Y": 18, "B": 2, "X": 17}
EXCHANGES |= {"A": 1, "M": 9, "C": 3, "W": 16, "H": 20}
TAPES = {"A": 1, "B": 2, "C": 3}
IDS = {"F": 14, "T": 12, "I": 37, "Z": 33, "4": 10, "W": 2, "O": 25, "Q": 16, "M": 15, "6": 8, "7": 53, "V": 52}
IDS |= {"B": 4, "C": 7, "N": 20, "R": 29, "U": 13, "P": 22, "L": 30, "X": 9, "9": 38}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(rows: int = ROWS, **changes: Any) -> Path:
        """A tape of five stocks over ten minutes."""
        place = np.arange(rows)
        columns = {
            "symbol": [SYMBOLS[n % 5] for n in place],
            "ts_ns": OPEN_NS + place * (10 * MINUTE_NS // rows) + place % 3 * 1_001,
            "price": np.round(100 + np.sin(place / 50) + place % 7 / 100, 4),
            "size": np.where(place % 11 == 0, 0.5 + place % 4, place % 300 + 1.0),
            "conditions": [("@", "@ I", "@ TI", " F", "@  Z", " 4B")[n % 6] for n in place],
            "exchange": [("Q", "N", "P", "D", "V")[n % 5] for n in place],
            "tape": [("C", "A", "B", "A", "C")[n % 5] for n in place],
            "trade_id": place * 3 + 52_983_525_000_000,
        }
        pq.write_table(pa.table({**columns, **changes}), tmp_path / "tape.parquet")
        return tmp_path / "tape.parquet"

    return write


class Desk:
    """A plain client."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def hear(self) -> Any:
        frame = await self.connection.recv()
        assert isinstance(frame, str)
        return json.loads(frame)

    async def ask(self, action: str, params: Any) -> Any:
        await self.connection.send(json.dumps({"action": action, "params": params}))
        return await self.hear()

    async def trades(self, count: int) -> list[Message]:
        """So many trades; what else comes is left out."""
        got: list[Message] = []
        while len(got) < count:
            got += [message for message in await self.hear() if message["ev"] == "T"]
        return got

    async def rest(self) -> list[Message]:
        """Trades until the connection ends; what makes no sense is left out."""
        got: list[Message] = []
        while True:
            try:
                heard = await self.hear()
            except ConnectionClosed:
                return got
            except ValueError:
                continue
            if isinstance(heard, list):
                got += [m for m in heard if isinstance(m, dict) and m.get("ev") == "T" and isinstance(m.get("i"), str)]


@asynccontextmanager
async def client(url: str, **options: Any) -> AsyncIterator[Desk]:
    async with connect(url, **options) as connection:
        desk = Desk(connection)
        assert await desk.hear() == [status("connected", "Connected Successfully")]
        yield desk


@asynccontextmanager
async def subscriber(url: str, params: str = "T.*", **options: Any) -> AsyncIterator[Desk]:
    async with client(url, **options) as desk:
        assert await desk.ask("auth", "K") == [status("auth_success", "authenticated")]
        assert all(answer["status"] == "success" for answer in await desk.ask("subscribe", params))
        yield desk


def status(status: str, message: str) -> Message:
    return {"ev": "status", "status": status, "message": message}


def expected(path: Path) -> list[Message]:
    """A tape's rows as this provider's trades, made in the slowest way."""
    trades = []
    for place, row in enumerate(pq.read_table(path).to_pylist(), start=1):
        letters = row["conditions"] if row["tape"] == "C" else row["conditions"].replace("B", "W")
        trade = {
            "ev": "T",
            "sym": row["symbol"],
            "x": EXCHANGES[row["exchange"]],
            "i": str(row.get("trade_id", place)),
            "z": TAPES[row["tape"][0]],
            "p": row["price"],
            "s": int(row["size"]),
            "ds": f"{row['size']:g}",
            "t": row["ts_ns"] // 1_000_000,
            "q": place,
        }
        conditions = [IDS[letter] for letter in letters if letter not in "@ "]
        trades.append({**trade, "c": conditions} if conditions else trade)
    return trades


def places(messages: list[Message]) -> list[int]:
    return [message["q"] - 1 for message in messages]


# -- the official clients as judges ------------------------------------------------------------------------------------


@pytest.fixture(params=["massive", "polygon"])
def official(request: pytest.FixtureRequest) -> Any:
    if request.param == "massive":
        from massive import WebSocketClient  # type: ignore[import-untyped]  # it has no types
    else:
        from polygon import WebSocketClient  # type: ignore[import-untyped]  # it has no types
    return WebSocketClient


async def judge(official: Any, path: Path) -> tuple[list[Any], list[Any]]:
    """What an official client receives: trades and minute bars, as its own models."""
    got: list[Any] = []
    everything = asyncio.Event()
    rows = pq.read_metadata(path).num_rows
    async with MassiveServer([path]) as server:
        cluster = server.url.removeprefix("ws://").removesuffix("/stocks")
        stream = official(
            api_key="K", feed=cluster, market="stocks", secure=False, subscriptions=["T.*", "AM.*", "Q.AAPL"]
        )

        async def on_messages(messages: list[Any]) -> None:
            got.extend(messages)
            if sum(message.event_type == "T" for message in got) == rows:
                everything.set()

        running = asyncio.create_task(stream.connect(on_messages))
        received = asyncio.create_task(everything.wait())
        await asyncio.wait({running, received}, timeout=30, return_when=asyncio.FIRST_COMPLETED)
        await stream.close()
        await running
        assert received.done()
        assert server.sent[0].rows.tolist() == list(range(rows))
    return [m for m in got if m.event_type == "T"], [m for m in got if m.event_type == "AM"]


def from_model(trade: Any) -> Message:
    message = {
        "ev": trade.event_type,
        "sym": trade.symbol,
        "x": trade.exchange,
        "i": trade.id,
        "z": trade.tape,
        "p": trade.price,
        "s": trade.size,
        "ds": getattr(trade, "fractional_shares", None),  # polygon-api-client has no fractions
        "t": trade.timestamp,
        "q": trade.sequence_number,
    }
    return {**message, "c": trade.conditions} if trade.conditions is not None else message


def as_known_by(official: Any, trades: list[Message]) -> list[Message]:
    return trades if official.__module__.startswith("massive") else [{**trade, "ds": None} for trade in trades]


async def test_official_clients_receive_every_trade_of_a_tape(official: Any, write: Write) -> None:
    path = write()
    trades, bars = await judge(official, path)
    assert [from_model(trade) for trade in trades] == as_known_by(official, expected(path))
    assert {bar.symbol for bar in bars} == set(SYMBOLS)


@pytest.mark.market_data
async def test_official_clients_receive_every_trade_of_a_real_day(
    official: Any, market_data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "real.parquet"
    pq.write_table(pq.read_table(market_data / "trades_taq2018/trades_XXX_20180102.parquet").slice(0, 15_000), path)
    trades, bars = await judge(official, path)
    assert len(trades) == 15_000
    assert [from_model(trade) for trade in trades] == as_known_by(official, expected(path))
    assert len(bars) > 50


# -- the handshake -----------------------------------------------------------------------------------------------------


async def test_each_subscription_is_confirmed_once(write: Write) -> None:
    async with MassiveServer([write(5)]) as server, client(server.url) as desk:
        await desk.ask("auth", "K")
        assert await desk.ask("subscribe", "AM.MSFT,Q.AAPL,LULD.*,XX.AAPL,AM,,T") == [
            status("success", "subscribed to: AM.MSFT"),
            status("success", "subscribed to: Q.AAPL"),
            status("success", "subscribed to: LULD.*"),
        ]
        assert await desk.ask("subscribe", "AM.MSFT,A.F") == [status("success", "subscribed to: A.F")]
        assert await desk.ask("unsubscribe", "AM.MSFT,AM.NONE") == [status("success", "unsubscribed to: AM.MSFT")]


async def test_mistakes_are_answered_and_the_connection_lives_on(write: Write) -> None:
    async with MassiveServer([write(5)]) as server, client(server.url) as desk:
        assert await desk.ask("subscribe", "T.*") == [status("error", "not authorized")]
        await desk.ask("auth", "K")
        for mistake in ("{", "[]", "5", "null", '{"action":"subscribe"}', '{"action":"subscribe","params":["T.*"]}'):
            await desk.connection.send(mistake)
            assert await desk.hear() == [status("error", "malformed request")]
        await desk.connection.send(b"\xff\x00")
        assert await desk.hear() == [status("error", "malformed request")]
        assert await desk.ask("dance", "T.*") == [status("error", "unknown action")]
        assert await desk.ask("subscribe", "T.NONE") == [status("success", "subscribed to: T.NONE")]


async def test_wrong_key_is_refused_and_the_connection_closed(write: Write) -> None:
    async with (
        MassiveServer([write(5)], credentials=Credentials(key="key")) as server,
        client(server.url) as desk,
    ):
        assert await desk.ask("auth", "K") == [status("auth_failed", "authentication failed")]
        with pytest.raises(ConnectionClosed):
            await desk.hear()
        async with client(server.url) as right:
            assert await right.ask("auth", "key") == [status("auth_success", "authenticated")]


async def test_official_client_sees_a_wrong_key_as_such(official: Any, write: Write) -> None:
    async with MassiveServer([write(5)], credentials=Credentials(key="key")) as server:
        stream = official(api_key="K", feed=server.url[5:-7], market="stocks", secure=False, subscriptions=["T.*"])

        async def on_messages(_messages: Any) -> None: ...

        with pytest.raises(Exception, match="authentication failed") as refused:
            await stream.connect(on_messages)
        assert type(refused.value).__name__ == "AuthError"


async def test_plan_without_this_feed_is_told_so(write: Write) -> None:
    async with MassiveServer([write(5)], faults=["no-plan"]) as server, client(server.url) as desk:
        await desk.ask("auth", "K")
        assert await desk.ask("subscribe", "T.*") == [status("error", "not authorized")]


async def test_other_clusters_are_not_served(write: Write) -> None:
    async with MassiveServer([write(5)]) as server:
        with pytest.raises(InvalidStatus):
            await connect(server.url.replace("stocks", "options"))


# -- what is sent ------------------------------------------------------------------------------------------------------


async def test_client_gets_the_symbols_it_asked_for(write: Write) -> None:
    path = write()
    wanted = [message for message in expected(path) if message["sym"] in {"IBM", "BRK.B"}]
    async with MassiveServer([path]) as server, subscriber(server.url, "T.IBM,T.BRK.B,AM.SPY,T.NONE") as desk:
        assert await desk.trades(len(wanted)) == wanted


async def test_letter_b_depends_on_the_tape(write: Write) -> None:
    path = write(3, symbol=["X"] * 3, conditions=[" B", "@B", "@W"], tape=["A", "C", "C"], exchange=["N", "Q", "Q"])
    async with MassiveServer([path]) as server, subscriber(server.url) as desk:
        assert [trade["c"] for trade in await desk.trades(3)] == [[2], [4], [2]]


async def test_cancels_are_not_part_of_the_stream(write: Write) -> None:
    path = write(4, symbol=["X"] * 4, exchange=["N"] * 4, trade_id=[1, 2, 2, 3], correction=["00", "08", "10", "00"])
    async with MassiveServer([path]) as server, subscriber(server.url) as desk:
        assert [trade["i"] for trade in await desk.trades(3)] == ["1", "2", "3"]


async def test_bars_tell_of_their_minute_and_their_day(write: Write) -> None:
    seconds = [-100, 10, 20, 70, 80, 15, 200]  # the sixth is late and revises its minute
    path = write(
        7,
        symbol=["X"] * 7,
        ts_ns=[OPEN_NS + second * SECOND_NS for second in seconds],
        price=[9.0, 10.0, 12.0, 11.0, 11.5, 13.0, 8.0],
        size=[50.0, 100.0, 300.0, 200.0, 200.0, 100.0, 1.5],
        conditions=["@"] * 7,
    )
    rows = pq.read_table(path)
    spread = rows.slice(0, 5), rows.slice(6, 1), rows.slice(5, 1)  # late enough to find its minute closed
    pq.write_table(pa.concat_tables(spread), path)
    async with MassiveServer([path]) as server, subscriber(server.url, "AM.X") as desk:
        got: list[Message] = []
        while len(got) < 5:
            got += await desk.hear()
    minute = 60_000
    pre, first, second, last, again = got
    start = OPEN_NS // 1_000_000
    assert (pre["s"], pre["v"], pre["av"], "op" in pre) == (start - 2 * minute, 50, 50, False)
    want = {"ev": "AM", "sym": "X", "v": 400, "av": 450, "dv": "400", "dav": "450", "z": 200, "op": 10.0, "o": 10.0}
    want |= {"c": 12.0, "h": 12.0, "l": 10.0, "vw": 11.5, "a": round((450 + 4_600) / 450, 4)}
    assert first == {**want, "s": start, "e": start + minute}
    assert (second["v"], second["av"], second["op"]) == (400, 850, 10.0)
    revised = next(m for m in (last, again) if m["s"] == start)
    closing = next(m for m in (last, again) if m["s"] == start + 3 * minute)
    assert (revised["v"], revised["h"]) == (500, 13.0)
    assert (closing["dv"], closing["v"]) == ("1.5", 1)
    assert {revised["av"], closing["dav"]} == {950, "951.5"}


# -- limits and faults -------------------------------------------------------------------------------------------------


async def test_connection_beyond_the_limit_ends_the_older_one(write: Write) -> None:
    path = write()
    async with MassiveServer([path], faults=["connection-limit:max=1"], while_away="hold", speed=600.0) as server:
        async with subscriber(server.url) as first:
            await first.trades(1)
            async with subscriber(server.url) as second:
                heard: list[Message] = []
                with suppress(ConnectionClosed):
                    while True:
                        heard += await first.hear()
                assert heard[-1]["status"] == "max_connections"
                assert first.connection.close_code == 1008
                last = await second.trades(1)
                while last[-1]["q"] < ROWS:
                    last = await second.trades(1)
        assert [sent.ended for sent in server.sent] == ["connection_limit", ""]


async def test_client_that_does_not_read_is_cut(write: Write) -> None:
    path = write(60_000)
    async with MassiveServer([path], faults=["slow-consumer:after=0.2"]) as server:
        wire = socket.socket()
        wire.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        wire.connect(("127.0.0.1", int(server.url.split(":")[2].split("/")[0])))
        async with subscriber(server.url, sock=wire, max_queue=1) as desk:
            await server.player.finish()
            assert server.sent[0].ended == "slow_consumer"
            assert len(await desk.rest()) < 60_000


async def test_everything_at_once_loses_nothing_that_is_held_for_the_client(write: Write) -> None:
    path = write()
    faults = ["drop:every=1500", "duplicate:p=0.3", "reorder:window=3", "malformed:p=0.5", "refuse:p=0.3"]
    async with MassiveServer([path], faults=faults, seed=5, while_away="hold") as server:
        got: list[list[Message]] = []
        async with asyncio.timeout(30):
            while {place for part in got for place in places(part)} != set(range(ROWS)):
                with suppress(InvalidStatus):
                    async with subscriber(server.url) as desk:
                        got.append(await desk.rest())
        assert server.refused > 0
        for part, sent in zip(got, server.sent, strict=True):
            assert places(part) == sent.rows.tolist()
            assert sent.ended == "drop"
        by_place = {message["q"]: message for part in got for message in part}
        assert [by_place[place] for place in sorted(by_place)] == expected(path)


async def test_withheld_stretch_leaves_a_hole_in_the_sequence(write: Write) -> None:
    faults = ["withhold:from=09:33,to=09:34:30", "drop:every=5000"]
    async with MassiveServer([write()], faults=faults) as server, subscriber(server.url) as desk:
        got = places(await desk.rest())
        (hole,) = np.flatnonzero(np.diff(got) > 1)
        assert (got[hole], got[hole + 1]) == (1_799, 2_700)


async def test_stalled_connection_is_open_and_silent(write: Write) -> None:
    async with MassiveServer([write()], faults=["stall:at=09:34:59"]) as server, subscriber(server.url) as desk:
        assert len(await desk.trades(3_000)) == 3_000
        await server.player.finish()
        await (await desk.connection.ping())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(desk.hear(), 0.1)
