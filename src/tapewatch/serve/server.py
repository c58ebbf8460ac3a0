"""The HTTP and WebSocket server under the application: uvicorn, with what it leaves unbounded bounded.

It owns sockets and their limits and knows nothing of what is served. Four things are added to uvicorn. A request's
headers must arrive in time. A WebSocket's write buffers in the kernel are small, so that a client that does not read
shows soon, and it can be dropped: closing in order waits for a reader that may never come back. Control frames and
fragments, which never reach the application, are counted too. And a text that thousands of clients get is framed once,
and written without what every message costs on its way through the application's layers.
"""

import asyncio
import random
import socket
from asyncio.transports import BaseTransport
from functools import lru_cache
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from starlette.websockets import WebSocket
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import CloseCode, Frame

MAX_FRAME_BYTES = 64 * 1024
HEARTBEAT_S = 20
_TCP = (socket.AF_INET, socket.AF_INET6)
_HEADERS_TIMEOUT_S = 10.0
_SEND_BUFFER_BYTES = 256 * 1024
_GOODBYE_S = 10.0
"""So long a connection that is over may take to be read to its end."""
_SOCKET = "tapewatch.socket"
_FRAMED = 64
"""Texts of which the frames are kept: one goes to many clients within the same turn of the loop."""
_MAX_FRAGMENTS = 1024
_MAX_PINGS_PER_S = 20


class BoundedHttp(H11Protocol):
    """A request's headers must arrive within ten seconds of the connection, or of the response before; and so must the
    rest of a body that was refused. Bodies that are read have their own limit where they are read.
    """

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        raw = transport.get_extra_info("socket")
        if raw is not None and raw.family in _TCP:
            # asyncio does this only for sockets that it made itself; through others, each answer would wait 40 ms.
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering or self.transport.get_protocol() is not self:  # the latter once it became a WebSocket
            self._stop_watching()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete and not self.transport.is_closing():
            self._watch()

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


def server_config(app: ASGIApp, *, host: str, port: int, **options: Any) -> uvicorn.Config:
    """What the application relies on; `options` adds to it, such as ``uds`` or ``forwarded_allow_ips``."""
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
        "h11_max_incomplete_event_size": 16 * 1024,
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
