"""The wires to a provider: WebSocket and TCP. What goes wrong on them becomes `FeedLost` or `FeedRefused`, with a text
that names host and port and never a path, a query, a header or anything that was said.
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address
from typing import Any, Protocol

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.frames import CloseCode

from tapewatch.errors import FeedLoss, FeedLost, FeedRefused

CONNECT_S = 10.0
SEND_S = 10.0
CLOSE_S = 1.0
"""A dead line is not waited for; one that lives says goodbye in less."""
PING_S = 30.0
LARGEST_MESSAGE = 16 * 1024 * 1024
"""Bytes of one message, before and after decompression."""
_CHUNK = 256 * 1024
_FRAMES = (4096, 1024)
"""The library stops reading above the first and goes on below the second; the feed's own reader is always faster."""

_SILENCED = logging.getLogger("tapewatch.feeds.transport")
_SILENCED.setLevel(logging.ERROR)  # the library writes whole frames, secrets among them, at DEBUG

_LOSS_BY_CODE: Mapping[int, FeedLoss] = {
    CloseCode.POLICY_VIOLATION: "connection_limit",
    CloseCode.PROTOCOL_ERROR: "protocol",
    CloseCode.UNSUPPORTED_DATA: "protocol",
    CloseCode.INVALID_DATA: "protocol",
    CloseCode.MESSAGE_TOO_BIG: "protocol",
}


class Transport(Protocol):
    """An open connection. One task receives, another may send."""

    framed: bool
    """What `recv` returns is a whole message, of which one can be left out; otherwise a piece of a stream."""

    async def recv(self) -> bytes:
        """The next message or piece; `FeedLost` when there is none any more."""
        ...

    async def send(self, data: str | bytes) -> None:
        """Say something. On a broken line nothing happens here: `recv` tells, after what came before."""
        ...


@asynccontextmanager
async def websocket(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    largest_message: int = LARGEST_MESSAGE,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Transport]:
    """A WebSocket to `url` (ws:// or wss://), with permessage-deflate where the server takes it. Pings go both ways.
    The machine's proxy is used, except on loopback; redirects are not followed.
    """
    options: dict[str, Any] = {} if tls is None else {"ssl": tls}
    try:
        dialling = _Direct(
            url,
            additional_headers=headers,
            open_timeout=CONNECT_S,
            close_timeout=CLOSE_S,
            ping_interval=PING_S,
            ping_timeout=PING_S,
            max_size=largest_message,
            max_queue=_FRAMES,
            logger=_SILENCED,
            **options,
        )
    except InvalidURI:
        raise FeedRefused("the address of the feed is not a ws:// or wss:// URL") from None
    where = f"{dialling.ws_uri.host}:{dialling.ws_uri.port}"
    if _is_loopback(dialling.ws_uri.host):
        dialling.proxy = None
    try:
        connection = await dialling
    except InvalidStatus as error:
        raise _refusal(where, error.response.status_code) from None
    except (OSError, EOFError, InvalidHandshake, TimeoutError) as error:
        raise FeedLost(f"{where} cannot be reached: {_why(error)}") from None
    try:
        yield _WebSocket(connection, where)
    finally:
        await connection.close()


class _Direct(connect):
    """Follows no redirect: credentials are for the host that was named."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class _WebSocket:
    framed = True

    def __init__(self, connection: ClientConnection, where: str) -> None:
        self._connection, self._where = connection, where

    async def recv(self) -> bytes:
        try:
            return await self._connection.recv(decode=False)
        except ConnectionClosed as error:
            raise self._loss(error) from None

    async def send(self, data: str | bytes) -> None:
        try:
            async with asyncio.timeout(SEND_S):
                await self._connection.send(data)
        except ConnectionClosed:
            pass
        except TimeoutError:
            self._connection.transport.abort()

    def _loss(self, error: ConnectionClosed) -> FeedLost:
        theirs, ours = error.rcvd, error.sent
        if theirs is not None and (ours is None or error.rcvd_then_sent):
            reason = _LOSS_BY_CODE.get(theirs.code, "closed")
            if "slow" in theirs.reason.lower():
                reason = "slow_consumer"
            return FeedLost(f"{self._where} closed the connection ({theirs.code})", reason=reason)
        if ours is not None and ours.code == CloseCode.INTERNAL_ERROR:
            return FeedLost(f"{self._where} does not answer pings", reason="silent")
        if ours is not None:
            reason = _LOSS_BY_CODE.get(ours.code, "protocol")
            return FeedLost(f"{self._where} broke the protocol ({ours.code})", reason=reason)
        return FeedLost(f"the connection to {self._where} broke")


@asynccontextmanager
async def tcp(host: str, port: int, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[Transport]:
    """A TCP connection, whose bytes come in pieces of any size."""
    where = f"{host}:{port}"
    try:
        async with asyncio.timeout(CONNECT_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=tls, limit=_CHUNK)
    except (OSError, TimeoutError) as error:
        raise FeedLost(f"{where} cannot be reached: {_why(error)}") from None
    try:
        yield _Tcp(reader, writer, where)
    finally:
        writer.close()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await writer.wait_closed()


class _Tcp:
    framed = False

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, where: str) -> None:
        self._reader, self._writer, self._where = reader, writer, where

    async def recv(self) -> bytes:
        try:
            chunk = await self._reader.read(_CHUNK)
        except OSError:
            raise FeedLost(f"the connection to {self._where} broke") from None
        if not chunk:
            raise FeedLost(f"{self._where} closed the connection", reason="closed")
        return chunk

    async def send(self, data: str | bytes) -> None:
        try:
            self._writer.write(data.encode() if isinstance(data, str) else data)
            async with asyncio.timeout(SEND_S):
                await self._writer.drain()
        except OSError as error:
            if isinstance(error, TimeoutError):
                self._writer.transport.abort()


def _refusal(where: str, status: int) -> FeedLost | FeedRefused:
    """What an HTTP answer to the upgrade means."""
    if status in {401, 403}:
        return FeedRefused(f"{where} refused the credentials (HTTP {status})")
    if status == 429:
        return FeedLost(f"{where} allows no more connections (HTTP 429)", reason="connection_limit")
    if 300 <= status < 400:
        return FeedLost(f"{where} sends us elsewhere (HTTP {status}), where we do not go", reason="protocol")
    return FeedLost(f"{where} answered HTTP {status}")


def _why(error: Exception) -> str:
    match error:
        case TimeoutError():
            return "it does not answer"
        case ssl.SSLCertVerificationError():
            return f"its certificate is not good: {error.verify_message}"
        case ssl.SSLError():
            return "it does not speak TLS as it should"
        case OSError():
            return error.strerror or "no line to it holds"
    return "it does not speak WebSocket as it should"


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
