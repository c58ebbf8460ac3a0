"""Errors as RFC 9457 problem details, and JSON answers that cannot hold what JSON does not know.

It owns the mapping from the product's errors to HTTP. It never shows a stack trace or a driver's words.
"""

import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Match

from tapewatch.errors import (
    Forbidden,
    Invalid,
    NotFound,
    QuotaReached,
    TapewatchError,
    Unauthorized,
    Unavailable,
    VersionConflict,
)
from tapewatch.serve.request_ids import request_id

PROBLEM_JSON = "application/problem+json"
_LONGEST_TEXT = 300
_PLACE = re.compile(r"line ([0-9]{1,9}), column ([0-9]{1,9}): ")
_STATUS: dict[type[TapewatchError], int] = {
    Invalid: 422,
    NotFound: 404,
    VersionConflict: 409,
    QuotaReached: 409,
    Unauthorized: 401,
    Forbidden: 403,
    Unavailable: 503,
}
_HEADERS = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": "1"}}
KINDS: dict[int, str] = {
    400: "malformed",
    401: "unauthenticated",
    403: "forbidden",
    404: "not-found",
    405: "method-not-allowed",
    408: "timeout",
    409: "conflict",
    412: "precondition-failed",
    413: "too-large",
    415: "media-type",
    421: "misdirected",
    422: "invalid",
    429: "too-many-requests",
    431: "headers-too-large",
    500: "internal",
    503: "unavailable",
}
"""By status, the word at the end of a problem's `type`; docs/api.md says what to do about each."""
_SCHEMA = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "description": "urn:tapewatch:problem: and the kind"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "request_id": {"type": "string", "description": "that of the request, as in its X-Request-Id"},
        "where": {"type": "string", "description": "the field that is wrong"},
        "line": {"type": "integer", "description": "of that field's text, from 1"},
        "column": {"type": "integer", "description": "in that line, from 1"},
    },
}
_DOCUMENTED = {"description": "Problem details (RFC 9457)", "content": {PROBLEM_JSON: {"schema": _SCHEMA}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {422: _DOCUMENTED, "4XX": _DOCUMENTED, "5XX": _DOCUMENTED}
"""The `responses` of every operation."""


def json_response(content: Any, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON by msgspec, which writes NaN and infinities as null, so an answer is JSON whatever the numbers are."""
    return encoded_response(msgspec.json.encode(content), status=status, headers=headers)


def encoded_response(body: bytes, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Of what is JSON already."""
    return Response(body, status, dict(headers or {}), "application/json")


def problem(
    status: int,
    detail: str,
    *,
    where: str | None = None,
    place: re.Match[str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document. Texts may echo what a client sent: they are cut and made encodable."""
    content: dict[str, Any] = {
        "type": problem_type(status),
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": _shown(detail),
    }
    if request_id():
        content["request_id"] = request_id()
    if where:
        content["where"] = _shown(where)
    if place:
        content["line"], content["column"] = int(place[1]), int(place[2])
    return Response(msgspec.json.encode(content), status, dict(headers or {}), PROBLEM_JSON)


def problem_type(status: int) -> str:
    return f"urn:tapewatch:problem:{KINDS[status]}" if status in KINDS else "about:blank"


def _shown(text: str) -> str:
    cut = text if len(text) <= _LONGEST_TEXT else text[: _LONGEST_TEXT - 3] + "..."
    return cut.encode("utf-8", "backslashreplace").decode()


async def answer_tapewatch_error(_request: Request, error: Exception) -> Response:
    """Errors without a status of their own are ours, not the client's."""
    if isinstance(error, Invalid):
        return problem(422, error.why, where=error.where, place=_PLACE.match(error.why))
    for kind, status in _STATUS.items():
        if isinstance(error, kind):
            headers = _HEADERS.get(status)
            return problem(status, str(error) or HTTPStatus(status).phrase, headers=headers)
    raise error


async def answer_validation_error(_request: Request, error: Exception) -> Response:
    """A query or path parameter that breaks its declaration."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][:2])  # behind them stands which form of the value was tried
    if first["type"] == "extra_forbidden":
        return problem(422, "is not a parameter of this operation", where=where)
    return problem(422, str(first["msg"]).removeprefix("Value error, "), where=where)


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """Routing's own refusals: 404 and 405."""
    if not isinstance(error, HTTPException):
        raise error
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(sorted(_allowed(request)))
    detail = error.detail
    if error.status_code == HTTPStatus.NOT_FOUND and detail == HTTPStatus.NOT_FOUND.phrase:
        detail = "there is nothing at this address"
    return problem(error.status_code, detail, headers=headers)


def _allowed(request: Request) -> set[str]:
    """Methods that some route takes at this path: the router itself names only those of the first one it meets."""
    routes = request.app.routes
    methods = {
        method
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE")
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    }
    return (methods | {"HEAD"}) if "GET" in methods else methods
