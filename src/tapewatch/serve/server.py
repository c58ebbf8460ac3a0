"""The HTTP and WebSocket server under the application: uvicorn, with what it leaves unbounded bounded.

It owns sockets and their limits and knows nothing of what is served. Six things are added to uvicorn. A request's head
must arrive in time. An answer's head and body go out together. What the parser takes at any length, heads and requests
that wait for their turn, has a bound. A WebSocket's write buffers in the kernel are small, so that a client that does
not read shows soon, and it can be dropped: closing in order waits for a reader that may never come back. Control frames
and fragments, which never reach the application, are counted too. And a text that thousands of clients get is framed
once, and written without what every message costs on its way through the application's layers.
"""

import asyncio
import logging
import random
import socket
from asyncio.transports import BaseTransport
from functools import lru_cache
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from starlette.websockets import WebSocket
from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

from tapewatch.telemetry import ERRORS_TOTAL

MAX_FRAME_BYTES = 64 * 1024
HEARTBEAT_S = 20
_TCP = (socket.AF_INET, socket.AF_INET6)
_HEADERS_TIMEOUT_S = 10.0
_MAX_HEAD_BYTES = 16 * 1024
_MAX_WAITING = 8
_TOO_LONG = "Request head too long."
_SEND_BUFFER_BYTES = 256 * 1024
_GOODBYE_S = 10.0
"""So long a connection that is over may take to be read to its end."""
_SOCKET = "tapewatch.socket"
_FRAMED = 64
"""Texts of which the frames are kept: one goes to many clients within the same turn of the loop."""
_MAX_FRAGMENTS = 1024
_MAX_PINGS_PER_S = 20
_OF_STRANGERS = frozenset({"Invalid HTTP request received.", "Unsupported upgrade request."})


class _Refused(Exception):
    """Raised where the parser calls, which ends its work: the connection gets 400 and is closed."""


class _Pieces:
    """A connection as answers are written to it: what is written in one turn of the loop goes out two by two, so that a
    head and its body are one call of the system, and one arrival at the client.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self.is_closing = transport.is_closing
        self._transport, self._loop = transport, loop
        self._held = b""

    def write(self, piece: bytes) -> None:
        if self._held:
            held, self._held = self._held, b""
            self._transport.writelines((held, piece))
        elif piece:
            self._held = piece
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        held, self._held = self._held, b""
        if held and not self._transport.is_closing():
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()


class BoundedHttp(HttpToolsProtocol):
    """A request's head must arrive within ten seconds of the connection, or of the response before; and so must the
    rest of a body that was refused. Bodies that are read have their own limit where they are read.

    A head has 16 kB, what follows a body included, and one Host if it is of HTTP/1.1. Eight requests may wait for the
    one that is being answered.
    """

    _pieces: _Pieces
    _deadline: asyncio.TimerHandle | None = None
    _has_head = _is_refused = _heard = False
    _head_bytes = _hosts = _unheard_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in _TCP:
            # asyncio does this only for sockets that it made itself; through others, each answer would wait 40 ms.
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._pieces = _Pieces(transport, self.loop)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        self._heard = False
        super().data_received(data)
        if self._is_answering or self.transport.get_protocol() is not self:  # the latter once it became a WebSocket
            self._stop_watching()
        # The parser keeps a header until it ends, and says nothing of it before.
        self._unheard_bytes = 0 if self._heard else self._unheard_bytes + len(data)
        if self._unheard_bytes > _MAX_HEAD_BYTES:
            self.send_400_response(_TOO_LONG)

    def on_message_begin(self) -> None:
        self._heard, self._has_head = True, False
        self._head_bytes = self._hosts = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 4)
        if self._has_head:  # behind the body, where it would change what was decided by the head
            return
        if len(name) == 4 and name.lower() == b"host":
            self._hosts += 1
        super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        self._heard = self._has_head = True
        lacks_host = self._hosts == 0 and self.parser.get_http_version() == "1.1"
        if lacks_host or self._hosts > 1 or len(self.pipeline) >= _MAX_WAITING:
            raise _Refused
        super().on_headers_complete()
        if self.cycle is not None:
            self.cycle.transport = cast("asyncio.Transport", self._pieces)

    def on_body(self, body: bytes) -> None:
        self._heard = True
        super().on_body(body)

    def send_400_response(self, msg: str) -> None:
        """To what cannot be a request. Answers that are under way come first, and then the end without a word: it could
        be taken for the answer to another request.
        """
        self._is_refused = True
        is_own = not self.pipeline and self.cycle is not None and self.cycle.more_body
        if not self._is_answering or (is_own and not self.cycle.response_started):
            super().send_400_response(msg)

    def on_response_complete(self) -> None:
        self._pieces.flush()
        super().on_response_complete()
        if self._is_answering or self.transport.is_closing():
            return
        if self._is_refused:
            self.transport.close()
        else:
            self._watch()

    @property
    def _is_answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _count(self, size: int) -> None:
        self._heard = True
        self._head_bytes += size
        if self._head_bytes > _MAX_HEAD_BYTES:
            raise _Refused

    def _watch(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(_HEADERS_TIMEOUT_S, self.transport.abort)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class BoundedWebSocket(WebSocketsSansIOProtocol):
    """uvicorn's sans-I/O WebSocket: its `send` waits while the transport's buffer is full, so memory stays bounded as
    long as one task sends at a time.
    """

    _goodbye: asyncio.TimerHandle | None = None
    _pings = 0
    _pings_since_s = 0.0

    def connection_made(self, transport: BaseTransport) -> None:
        super().connection_made(transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in _TCP:
            # Left alone, the kernel grows this to megabytes for each client that does not read.
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)

    async def run_asgi(self) -> None:
        extensions = cast("dict[str, Any]", self.scope["extensions"])
        extensions[_SOCKET] = self
        try:
            await super().run_asgi()
        finally:
            if not self.disconnected:
                # It closes once all was read, and the application, which counted it, has forgotten it.
                self._goodbye = self.loop.call_later(_GOODBYE_S, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._goodbye is not None:
            self._goodbye.cancel()

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.queue.put_nowait({"type": "websocket.disconnect", "code": CloseCode.INTERNAL_ERROR})

    @property
    def is_over(self) -> bool:
        """Nothing more can be sent."""
        return self.close_sent or self.disconnected or self.transport.is_closing()

    def write_text(self, text: str) -> bool:
        """Send a message without waiting; False if the connection is over. Who writes waits for `writable` before."""
        if self.is_over:
            return False
        self.transport.write(_framed(text))
        return True

    def start_keepalive(self) -> None:
        # The first ping comes at any time of the interval's second half: clients that came back together are not asked
        # together ever after.
        if self.ping_interval:
            first_s = random.uniform(self.ping_interval / 2, self.ping_interval)  # noqa: S311  # it needs no secrecy
            self.ping_timer = self.loop.call_later(first_s, self.send_keepalive_ping)

    async def send(self, message: ASGISendEvent) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and not message.get("more_body", False):
            self.handshake_complete = True  # refused; the base would write an error into the log for each stranger

    def handle_cont(self, event: Frame) -> None:
        # The size of a message is limited by the parser, but empty fragments have none.
        if len(self.frames) >= _MAX_FRAGMENTS:
            self._fail(CloseCode.MESSAGE_TOO_BIG, "too many fragments")
        else:
            super().handle_cont(event)

    def handle_ping(self) -> None:
        now_s = self.loop.time()
        if now_s - self._pings_since_s >= 1.0:
            self._pings, self._pings_since_s = 0, now_s
        self._pings += 1
        if self._pings > _MAX_PINGS_PER_S:
            # Pongs are written without waiting for the reader, so a flood of pings would fill memory.
            self._fail(CloseCode.POLICY_VIOLATION, "too many pings")
        else:
            super().handle_ping()

    def _fail(self, code: CloseCode, reason: str) -> None:
        if not self.close_sent and not self.transport.is_closing():
            self.conn.fail(code, reason)
            self.handle_parser_exception()


def socket_of(websocket: WebSocket) -> BoundedWebSocket:
    """What the application's WebSocket goes over."""
    return cast("BoundedWebSocket", websocket.scope["extensions"][_SOCKET])


@lru_cache(maxsize=_FRAMED)
def _framed(text: str) -> bytes:
    """A whole message as a server sends it: neither masked nor compressed."""
    payload = text.encode()
    size = len(payload)
    if size < 126:
        return bytes((0x81, size)) + payload
    if size < 65_536:
        return b"\x81\x7e" + size.to_bytes(2, "big") + payload
    return b"\x81\x7f" + size.to_bytes(8, "big") + payload


def _is_ours(record: logging.LogRecord) -> bool:
    """What is no HTTP is counted. A line for each would let any stranger fill the disk."""
    if record.msg not in _OF_STRANGERS:
        return True
    ERRORS_TOTAL.labels(where="http").inc()
    return False


def server_config(app: ASGIApp, *, host: str, port: int, **options: Any) -> uvicorn.Config:
    """What the application relies on; `options` adds to it, such as ``uds`` or ``forwarded_allow_ips``."""
    logging.getLogger("uvicorn.error").addFilter(_is_ours)  # the same filter is added once
    settings: dict[str, Any] = {
        "host": host,
        "port": port,
        "http": BoundedHttp,
        "ws": BoundedWebSocket,
        "ws_max_size": MAX_FRAME_BYTES,
        "ws_ping_interval": HEARTBEAT_S,
        "ws_ping_timeout": HEARTBEAT_S,
        # 64 kB a connection, and a small frame from outside could unfold into a large one.
        "ws_per_message_deflate": False,
        "timeout_keep_alive": 5,
        "timeout_graceful_shutdown": 3,
        "server_header": False,
        # A forwarded address is believed only from a proxy that the operator names.
        "proxy_headers": "forwarded_allow_ips" in options,
        "access_log": False,
        "log_config": None,
        "lifespan": "off",
    }
    return uvicorn.Config(app, **(settings | options))
