"""A name for each request, in its answer, in its problem document and in every line that is logged for it.

A client may bring its own, so that its log and ours can be laid side by side. It is a label and gives no right.
"""

import random
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tapewatch.telemetry import REQUEST_ID

HEADER = "X-Request-Id"
_KEY = HEADER.lower().encode()
_GIVEN = re.compile(r"[A-Za-z0-9._\-]{8,64}")


def request_id() -> str:
    """Of the request that is being answered; empty outside of one."""
    return REQUEST_ID.get()


class RequestIds:
    """ASGI middleware, the outermost: what is inside of it knows the request by its id."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # a socket lives for hours, and its lines are not those of one request
            await self.app(scope, receive, send)
            return
        given = next((value for key, value in scope["headers"] if key == _KEY), b"").decode("latin-1")
        name = given if _GIVEN.fullmatch(given) else f"{random.getrandbits(128):032x}"  # it gives no right

        async def send_named(message: Message) -> None:
            if message["type"] == "http.response.start":
                others = [header for header in message["headers"] if header[0] != _KEY]
                message["headers"] = [*others, (_KEY, name.encode())]
            await send(message)

        token = REQUEST_ID.set(name)
        try:
            await self.app(scope, receive, send_named)
        finally:
            REQUEST_ID.reset(token)
