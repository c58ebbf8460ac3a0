"""Request bodies, read strictly: bounded before they are parsed, JSON by their own declaration, parsed once.

It never hands on anything that `documents` has not checked.
"""

import asyncio
from http import HTTPStatus
from typing import Any, TypeVar

from fastapi import Request
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from tapewatch.documents import Document, load_json, parse_document
from tapewatch.errors import Invalid
from tapewatch.serve.examples import EXAMPLES

MAX_BODY_BYTES = 64 * 1024
_READ_TIMEOUT_S = 10.0
_TEXTS = {"name", "description"}
"""Fields in which only code can tell what counts as text."""

D = TypeVar("D", bound=Document)


async def read_document(request: Request, model: type[D], *, most_bytes: int = MAX_BODY_BYTES) -> D:
    """The body as a `model`; `Invalid`, or an HTTP refusal (408, 413, 415) before anything was parsed."""
    _check_headers(request, most_bytes)
    try:
        async with asyncio.timeout(_READ_TIMEOUT_S):
            raw = await _read(request, most_bytes)
    except TimeoutError:
        raise _refusal(HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive in {_READ_TIMEOUT_S:.0f} s") from None
    except ClientDisconnect:
        raise _refusal(HTTPStatus.BAD_REQUEST, "the body ended early") from None
    try:
        # Decoding first: from bytes, the JSON parser would also take UTF-16 and UTF-32.
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Invalid("body", f"not UTF-8 at byte {error.start}") from None
    document = load_json(text, where="body")
    if not isinstance(document, dict):
        raise Invalid("body", "must be a JSON object")
    return parse_document(model, document, where="body")


def _check_headers(request: Request, most_bytes: int) -> None:
    media_type, _, parameters = request.headers.get("content-type", "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in {"", "utf-8"}:
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must be application/json in UTF-8")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body must not be compressed")
    length = request.headers.get("content-length", "0")
    if not (length.isascii() and length.isdigit()):
        raise HTTPException(HTTPStatus.BAD_REQUEST, "Content-Length is not a number")
    # The number of digits comes first, because int() of a very long text is work that a stranger would choose.
    if len(length) > len(str(most_bytes)) + 8 or int(length) > most_bytes:
        raise _too_large(most_bytes)


async def _read(request: Request, most_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > most_bytes:
            raise _too_large(most_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _too_large(most_bytes: int) -> HTTPException:
    return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is larger than {most_bytes} bytes")


def _refusal(status: HTTPStatus, detail: str) -> HTTPException:
    # The rest of the body is not wanted: closing is the only way to tell a client in the middle of sending it.
    return HTTPException(status, detail, headers={"Connection": "close"})


_DEFINITIONS = "x-definitions"
_COMPONENT = "#/components/schemas/Given{model}"


def described(model: type[Document]) -> dict[str, Any]:
    """`openapi_extra` for an operation that reads its body with `read_document`. What the schema refers to travels
    beside it until `with_definitions` puts it where references look for it.
    """
    schema = model.model_json_schema(ref_template=_COMPONENT)
    definitions = {f"Given{name}": definition for name, definition in schema.pop("$defs", {}).items()}
    for name in _TEXTS & schema["properties"].keys():
        if "pattern" not in schema["properties"][name]:
            schema["properties"][name]["format"] = "plain-text"
    if "GivenSectors" in definitions:
        definitions["GivenSectors"]["properties"]["sector"]["items"]["format"] = "plain-text"
    media: dict[str, Any] = {"schema": schema}
    if model.__name__ in EXAMPLES:
        media["example"] = EXAMPLES[model.__name__]
    content = {"application/json": media}
    return {"requestBody": {"required": True, "content": content}, _DEFINITIONS: definitions}


def with_definitions(document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, its operations' definitions moved to its components."""
    components = document.setdefault("components", {}).setdefault("schemas", {})
    for path in document["paths"].values():
        for operation in path.values():
            components |= operation.pop(_DEFINITIONS, {})
    return document
