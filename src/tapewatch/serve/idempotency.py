"""Creating once although the request comes twice: `Idempotency-Key`.

A client that did not hear the answer sends the request again with the same key and gets what was answered, for a day;
another body with that key is refused. Answers that are errors are not kept: nothing was created, and the key is free.
If the process dies between creating and keeping its answer, the key is free after a minute and the request would create
again: an id of the client's own, where a document takes one, also rules that out.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from hashlib import blake2b
from http import HTTPStatus
from typing import Annotated

from fastapi import Header, Request
from fastapi.responses import Response
from pydantic import Field, SecretStr
from pydantic.json_schema import SkipJsonSchema
from starlette.exceptions import HTTPException

from tapewatch.documents import Document
from tapewatch.errors import Unavailable
from tapewatch.ports import KeptAnswer
from tapewatch.serve.access import who
from tapewatch.serve.services import Services
from tapewatch.telemetry import ERRORS_TOTAL

IdempotencyKey = Annotated[
    Annotated[str, Field(pattern=r"^[A-Za-z0-9._:\-]{1,64}$")] | SkipJsonSchema[None],
    Header(
        alias="Idempotency-Key",
        description="Sent again with the same body within a day, the request gets the same answer and creates nothing.",
    ),
]
_LOOK_S = 0.05
_LOOKS = 60


async def once(
    services: Services, request: Request, key: str | None, document: Document, create: Callable[[], Awaitable[Response]]
) -> Response:
    """The answer of `create`, or, if the same user has sent `document` with `key` before, what was answered then."""
    if key is None:
        return await create()
    user_id, digest = who(request).user_id, _digest(request, document)
    for _ in range(_LOOKS):
        state = await services.store.begin_once(user_id, key, digest, now_ns=services.clock.now_ns())
        if state.is_mine:
            return await _created(services, user_id, key, create)
        if state.digest != digest:
            raise HTTPException(HTTPStatus.CONFLICT, "this Idempotency-Key came with another request before")
        if state.answer is not None:
            headers = {**state.answer.headers, "Idempotency-Replayed": "true"}
            return Response(state.answer.body, state.answer.status, headers)
        await asyncio.sleep(_LOOK_S)
    again = {"Retry-After": "1"}
    raise HTTPException(HTTPStatus.CONFLICT, "the first request with this Idempotency-Key is under way", headers=again)


async def _created(services: Services, user_id: str, key: str, create: Callable[[], Awaitable[Response]]) -> Response:
    answer: KeptAnswer | None = None
    try:
        response = await create()
        if response.status_code < HTTPStatus.BAD_REQUEST:
            headers = {name: value for name, value in response.headers.items() if name != "content-length"}
            answer = KeptAnswer(response.status_code, headers, bytes(response.body))
        return response
    finally:
        try:
            await services.store.end_once(user_id, key, answer)
        except Unavailable:  # what was created stays; only the answer is not kept
            ERRORS_TOTAL.labels(where="idempotency").inc()


def _digest(request: Request, document: Document) -> bytes:
    """A body with another secret is another body."""
    body = json.dumps(document.model_dump(exclude_unset=True), default=_revealed)
    return blake2b(f"{request.method} {request.url.path} {body}".encode(), digest_size=16).digest()


def _revealed(value: object) -> str:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    raise TypeError(f"{type(value).__name__} is no part of a JSON document")
