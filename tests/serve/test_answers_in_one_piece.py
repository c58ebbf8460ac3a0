"""How answers are written: head and body together, nothing late, nothing out of order."""

import asyncio
import re
import socket
from collections.abc import Iterable

import pytest

from tapewatch.serve.server import _Pieces

pytestmark = pytest.mark.anyio


class Written(asyncio.Transport):
    """What the system was called with."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.calls.append(bytes(data))

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


async def test_head_and_body_are_one_call_and_a_head_alone_waits_no_longer_than_a_turn() -> None:
    transport = Written()
    pieces = _Pieces(transport, asyncio.get_running_loop())
    for piece in (b"head ", b"body"):
        pieces.write(piece)
    assert transport.calls == [b"head body"]
    pieces.write(b"head of a long answer")
    pieces.write(b"")
    assert transport.calls[1:] == [b"head of a long answer"]
    pieces.write(b"100 Continue")
    assert len(transport.calls) == 2
    await asyncio.sleep(0)
    assert transport.calls[2:] == [b"100 Continue"]


async def test_what_is_held_goes_out_before_the_end_and_nothing_after_it() -> None:
    transport = Written()
    pieces = _Pieces(transport, asyncio.get_running_loop())
    pieces.write(b"last")
    pieces.close()
    assert (transport.calls, transport.closed) == ([b"last"], True)
    pieces.write(b"too late")
    await asyncio.sleep(0)
    assert transport.calls == [b"last"]


async def test_answers_without_a_body_and_others_come_whole_and_in_order(address: str) -> None:
    host, port = address.split(":")
    asked = [
        b"HEAD /api/v1/health",
        b"GET /api/v1/health",
        b"OPTIONS /nowhere",
        b"HEAD /api/v1/rules",
        b"GET /api/v1/ready",
    ]
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    writer.write(b"".join(b"%b HTTP/1.1\r\nHost: %b\r\n\r\n" % (line, host.encode()) for line in asked))
    writer.write(b"no request\r\n\r\n")
    async with asyncio.timeout(10):
        answers = await reader.read()
    writer.close()
    assert re.findall(rb"HTTP/1.1 (\d+)", answers) == [b"200", b"200", b"404", b"200", b"200"]
    assert answers.count(b'{"status":"ok"}') == 1
    assert answers.endswith(b'{"ready":true,"phase":"running"}')
