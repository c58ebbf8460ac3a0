"""Hostile clients of a gateway with accounts, byte by byte over a TCP socket: before they authenticate and after. What
they send never comes back to others, and the gateway goes on serving.
"""

import asyncio
import json
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import psutil
import pytest
from minted_accounts import MintedAccounts, MovedClock

from tapewatch.adapters.memory import MemoryBus
from tapewatch.documents import Alert
from tapewatch.ports import Alerts
from tapewatch.serve.gateway import Gateway
from tapewatch.serve.server import MAX_FRAME_BYTES

pytestmark = pytest.mark.anyio
MASK = b"\x00\x00\x00\x00"
TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
MakeAlert = Callable[..., Alert]


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def accounts(clock: MovedClock) -> MintedAccounts:
    return MintedAccounts(clock)


@pytest.fixture
def gateway_options(accounts: MintedAccounts) -> dict[str, Any]:
    return {"accounts": accounts, "watch_s": 0.05, "first_message_s": 1.0, "close_grace_s": 0.5}


def frame(opcode: int, data: bytes, *, final: bool = True, reserved: int = 0, masked: bool = True) -> bytes:
    """A frame as it stands on the wire; a mask of zeros leaves the data readable."""
    head = bytes([(0x80 if final else 0) | reserved | opcode])
    bit = 0x80 if masked else 0
    if len(data) < 126:
        head += bytes([bit | len(data)])
    elif len(data) < 65_536:
        head += bytes([bit | 126]) + struct.pack("!H", len(data))
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", len(data))
    return head + (MASK if masked else b"") + data


def message(**content: Any) -> bytes:
    return frame(TEXT, json.dumps(content).encode())


class Wire:
    """One end of a TCP connection on which a WebSocket was opened."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def receive(self) -> tuple[int, bytes]:
        first, second = await self.reader.readexactly(2)
        size = second & 0x7F
        if size == 126:
            (size,) = struct.unpack("!H", await self.reader.readexactly(2))
        return first & 0x0F, await self.reader.readexactly(size)

    async def hear(self) -> Any:
        opcode, data = await asyncio.wait_for(self.receive(), 10)
        assert opcode == TEXT
        return json.loads(data)

    async def closed(self) -> tuple[int, list[Any]]:
        """The code of the close frame, and the messages before it."""
        heard: list[Any] = []
        async with asyncio.timeout(4):
            while True:
                opcode, data = await self.receive()
                if opcode == CLOSE:
                    return struct.unpack("!H", data[:2])[0], heard
                if opcode == TEXT:
                    heard.append(json.loads(data))


@pytest.fixture
def wire(address: str) -> Callable[..., Any]:
    host, _, port = address.partition(":")

    @asynccontextmanager
    async def opened(token: str | None = None, *, path: str = "/ws", headers: str = "") -> AsyncIterator[Wire]:
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n{headers}"
            "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        line = Wire(reader, writer)
        try:
            answer = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode()
            line.status, line.headers = int(answer.split()[1]), answer.lower()  # type: ignore[attr-defined]
            if token is not None:
                await line.send(message(type="authenticate", data={"token": token}))
                assert [(await line.hear())["type"] for _ in range(2)] == ["authenticated", "welcome"]
            yield line
        finally:
            writer.close()

    return opened


@pytest.fixture
async def served(wire: Any, accounts: MintedAccounts, bus: MemoryBus, make_alert: MakeAlert) -> AsyncIterator[None]:
    """Another user's connection, which must neither notice anything nor end."""
    async with wire(accounts.mint("bystander")) as bystander:
        yield
        await bus.publish("alerts.filtered:0", Alerts((make_alert(77, owner="bystander"),)))
        heard = await bystander.hear()
        assert (heard["type"], heard["data"]["alert_id"]) == ("alert", make_alert(77).alert_id)


FRAMES: dict[str, tuple[bytes, int]] = {
    "65 kB": (frame(TEXT, b"x" * 65_537), 1009),
    "declared 8 EB": (b"\x81\xff" + struct.pack("!Q", 2**63 - 1) + MASK, 1009),
    "length of 64 bits with its highest one set": (b"\x81\xff" + struct.pack("!Q", 2**64 - 1) + MASK, 1009),
    "fragments without end": (
        frame(TEXT, b"", final=False) + frame(0, b"", final=False) * 20_000,
        1009,
    ),
    "fragments that are too much together": (frame(TEXT, b"x" * 40_000, final=False) + frame(0, b"x" * 40_000), 1009),
    "unmasked": (frame(TEXT, b'{"type":"ping"}', masked=False), 1002),
    "not UTF-8": (frame(TEXT, b"\xff\xfe"), 1007),
    "surrogate in UTF-8": (frame(TEXT, b'"\xed\xa0\x80"'), 1007),
    "reserved opcode": (frame(3, b""), 1002),
    "reserved control opcode": (frame(11, b""), 1002),
    "reserved bit": (frame(TEXT, b"{}", reserved=0x40), 1002),
    "continuation of nothing": (frame(0, b"x"), 1002),
    "ping in fragments": (frame(PING, b"", final=False), 1002),
    "long ping": (frame(PING, b"p" * 126), 1002),
    "flood of pings": (frame(PING, b"p" * 125) * 1_000, 1008),
    "deflated": (frame(TEXT, b"\xab\x56\x2a\xa9\x2c\x48\x05\x00", reserved=0x40), 1002),
}


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize("is_in", [False, True], ids=["stranger", "user"])
@pytest.mark.parametrize(("data", "code"), FRAMES.values(), ids=FRAMES)
async def test_frame_that_breaks_the_protocol_closes_with_its_code(
    *, wire: Any, accounts: MintedAccounts, gateway: Gateway, data: bytes, code: int, is_in: bool
) -> None:
    async with wire(accounts.mint() if is_in else None) as line:
        await line.send(data)
        assert (await line.closed())[0] == code
    async with asyncio.timeout(3):
        while gateway.clients > 1:  # noqa: ASYNC110  # a gateway tells nobody who left
            await asyncio.sleep(0.005)


async def test_frame_of_64_kb_is_read_and_one_byte_more_is_not(wire: Any, accounts: MintedAccounts) -> None:
    async with wire(accounts.mint()) as line:
        await line.send(frame(TEXT, b'{"type":"ping"}'.ljust(MAX_FRAME_BYTES)))
        assert (await line.hear())["type"] == "pong"
        await line.send(frame(TEXT, b'{"type":"ping"}'.ljust(MAX_FRAME_BYTES + 1)))
        assert await line.closed() == (1009, [])


HANDSHAKES = {
    "foreign origin": ("/ws", "Origin: http://evil.example\r\n", 403),
    "origin null": ("/ws", "Origin: null\r\n", 403),
    "foreign origin with a cookie": (
        "/ws",
        "Origin: http://evil.example\r\nCookie: tapewatch_refresh={token}\r\n",
        403,
    ),
    "token in the query": ("/ws?token={token}", "", 403),
    "token and all in the query": ("/ws?protocol=tapewatch.v1&bearer={token}", "", 403),
}


@pytest.mark.parametrize(("path", "headers", "status"), HANDSHAKES.values(), ids=HANDSHAKES)
async def test_handshake_is_refused(wire: Any, accounts: MintedAccounts, path: str, headers: str, status: int) -> None:
    token = accounts.mint()
    async with wire(path=path.format(token=token), headers=headers.format(token=token)) as line:
        assert line.status == status
        assert token not in line.headers
    assert accounts.asked == []


async def test_compression_that_is_offered_is_not_taken(wire: Any, accounts: MintedAccounts) -> None:
    offer = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits; server_max_window_bits=15\r\n"
    async with wire(accounts.mint(), headers=offer) as line:
        assert line.status == 101
        assert "sec-websocket-extensions" not in line.headers


async def test_token_that_is_offered_does_not_come_back(wire: Any, accounts: MintedAccounts) -> None:
    token = accounts.mint()
    async with wire(headers=f"Sec-WebSocket-Protocol: tapewatch.v1, bearer.{token}\r\n") as line:
        assert "sec-websocket-protocol: tapewatch.v1\r\n" in line.headers
        assert token.lower() not in line.headers
        assert (await line.hear())["type"] == "authenticated"


async def test_first_message_that_trickles_has_its_time_in_all(wire: Any, accounts: MintedAccounts) -> None:
    whole = message(type="authenticate", data={"token": accounts.mint()})
    async with wire() as line:
        for place in range(len(whole)):
            await line.send(whole[place : place + 1])
            await asyncio.sleep(0.05)
            if line.reader._buffer:
                break
        assert await line.closed() == (4401, [])
    assert accounts.asked == []


@pytest.mark.usefixtures("served")
async def test_thousand_messages_in_a_second_close(wire: Any, accounts: MintedAccounts) -> None:
    async with wire(accounts.mint()) as line:
        await line.send(message(type="ping") * 1_000)
        code, heard = await line.closed()
    assert code == 4429
    assert [one["type"] for one in heard] == ["pong"] * 20 + ["error"]


async def test_renewals_count_as_messages(wire: Any, accounts: MintedAccounts) -> None:
    async with wire(accounts.mint()) as line:
        token = accounts.mint()
        asked = len(accounts.asked)
        await line.send(message(type="authenticate", data={"token": token}) * 1_000)
        assert (await line.closed())[0] == 4429
    assert len(accounts.asked) == asked + 20


async def test_tokens_cannot_be_guessed_on_an_open_connection(wire: Any, accounts: MintedAccounts) -> None:
    async with wire(accounts.mint()) as line:
        for guess in range(10):
            await line.send(message(type="authenticate", data={"token": f"guess{guess}"}))
        code, heard = await line.closed()
    assert code == 1008
    assert [one["data"]["code"] for one in heard] == ["bad_token"] * 5


@pytest.mark.usefixtures("served")
async def test_flood_before_the_token_is_not_read(wire: Any, accounts: MintedAccounts) -> None:
    before = psutil.Process().memory_info().rss
    async with wire() as line:
        await line.send(message(type="ping"))
        sending = asyncio.create_task(line.send(frame(TEXT, b"x" * 60_000) * 300))
        assert await line.closed() == (4401, [])
        sending.cancel()
    assert psutil.Process().memory_info().rss - before < 50_000_000
    assert len(accounts.asked) == 1  # the bystander's


FORGED_PLACES = ["-1-1", "1--1", f"{2**63}-1", f"1-{2**63}", "1-1.-1", "9" * 64, "1-1.99999999999", "0x1-1", "1e3-1"]


@pytest.mark.parametrize("place", FORGED_PLACES, ids=lambda place: place[:24])
async def test_forged_resume_is_an_error_and_brings_no_alerts(
    wire: Any, accounts: MintedAccounts, bus: MemoryBus, make_alert: MakeAlert, place: str
) -> None:
    await bus.publish("alerts.filtered:0", Alerts((make_alert(1, owner="ada"),)))
    async with wire(accounts.mint()) as line:
        await line.send(message(type="resume", data={"places": {"0": place, "1": "0-0"}}))
        answer = await line.hear()
        assert (answer["type"], answer["data"]["code"]) == ("error", "bad_resume")
        await line.send(message(type="ping"))
        assert (await line.hear())["type"] == "pong"


async def test_resume_beyond_all_that_there_is_recovers_nothing(wire: Any, accounts: MintedAccounts) -> None:
    async with wire(accounts.mint()) as line:
        most = 2**63 - 1
        await line.send(message(type="resume", data={"places": {"0": f"{most}-{most}", "1": "0-0"}}))
        answer = await line.hear()
        assert (answer["type"], answer["data"]["recovered"], answer["data"]["alerts"]) == ("resumed", False, 0)


MESSAGES = {
    "unknown type": ('{"type":"drop_table"}', "unknown_type"),
    "type of the server's": ('{"type":"authenticated","data":{"user":"admin"}}', "unknown_type"),
    "missing field": ('{"type":"subscribe_toplist"}', "bad_message"),
    "no type": ('{"data":{}}', "bad_message"),
    "__proto__": ('{"type":"ping","__proto__":{"admin":true}}', "bad_message"),
    "constructor": ('{"type":"ping","constructor":{"prototype":{}}}', "bad_message"),
    "duplicate keys": ('{"type":"ping","type":"resume"}', "bad_json"),
    "duplicate keys deep down": ('{"type":"resume","data":{"places":{"0":"1-1","0":"2-2"}}}', "bad_json"),
    "owner in the message": ('{"type":"subscribe_alerts","user":"bystander"}', "bad_message"),
    "NaN": ('{"type":"ping","at":NaN}', "bad_json"),
    "deep": ("[" * 10_000 + "]" * 10_000, "bad_json"),
    "NUL": ('{"type":"ping\\u0000"}', "unknown_type"),
}


@pytest.mark.usefixtures("served")
@pytest.mark.parametrize(("text", "code"), MESSAGES.values(), ids=MESSAGES)
async def test_wrong_messages_are_answered_five_times_and_then_close(
    wire: Any, accounts: MintedAccounts, text: str, code: str
) -> None:
    async with wire(accounts.mint()) as line:
        for _ in range(5):
            await line.send(frame(TEXT, text.encode()))
            answer = await line.hear()
            assert (answer["type"], answer["data"]["code"]) == ("error", code)
        await line.send(message(type="ping"))
        assert (await line.hear())["type"] == "pong"
        await line.send(frame(TEXT, text.encode()))
        assert await line.closed() == (1008, [])


async def test_subscribing_to_and_fro_is_bounded_by_the_messages(wire: Any, accounts: MintedAccounts) -> None:
    flap = message(type="subscribe_toplist", toplist_id="gainers_1m")
    flap += message(type="unsubscribe_toplist", toplist_id="gainers_1m")
    async with wire(accounts.mint()) as line:
        await line.send(flap * 500)
        assert (await line.closed())[0] == 4429
