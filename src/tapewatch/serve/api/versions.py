"""What rules, watchlists and toplists share over HTTP: ids, versions as ETags, and a change that somebody else may
overtake.
"""

import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import msgspec
from fastapi import Request
from pydantic import BeforeValidator, Field
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException

from tapewatch.delivery_documents import Channel, Subscription
from tapewatch.documents import Rule, Watchlist
from tapewatch.errors import Unavailable, VersionConflict
from tapewatch.ports import Bus
from tapewatch.telemetry import ERRORS_TOTAL
from tapewatch.toplist_documents import Toplist

RESERVED = ("validate", "dry-run", "templates")
"""Words of addresses that would be ids."""
LOCATION: dict[str, Any] = {"headers": {"Location": {"schema": {"type": "string"}}}}
_TRIES = 3

log = logging.getLogger(__name__)
V = TypeVar("V", Rule, Watchlist, Toplist, Subscription, Channel)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


ABSENT = Field(json_schema_extra=_without_default)
"""For a field that may be left out but, given, is never null: its default breaks its own rule and is not shown."""


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


WHOLE = BeforeValidator(_whole)
"""In JSON 2.0 is the same number as 2. It stands behind the bounds: before them, the schema would not tell them."""
VersionNumber = Annotated[int, Field(ge=1, le=2**31), WHOLE]


def not_reserved(rule_id: str) -> str:
    if rule_id in RESERVED:
        raise ValueError(f"{rule_id!r} is the name of an operation")
    return rule_id


class _RuleIdConvertor(StringConvertor):
    """Any segment but those of the operations beside it, so that the one does not answer for the other."""

    regex = rf"(?!(?:{'|'.join(RESERVED)})(?:/|$))[^/]+"


register_url_convertor("rule_id", _RuleIdConvertor())


def new_id(name: str, *, kind: str) -> str:
    """A slug of the name, so that logs and alerts can be read, and a suffix, so that it is new."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return f"{slug or kind}-{secrets.token_hex(4)}"


def etag(document: Rule | Watchlist | Toplist | Subscription | Channel) -> dict[str, str]:
    return {"ETag": f'"{document.version}"'}


def check_match(request: Request, known: Rule | Watchlist | Toplist | Subscription | Channel) -> None:
    wanted = request.headers.get("if-match")
    if wanted is None or wanted.strip() == "*":
        return
    if f'"{known.version}"' not in {tag.strip() for tag in wanted.split(",")}:
        raise HTTPException(HTTPStatus.PRECONDITION_FAILED, f"version {known.version} is stored")


async def created(given_id: str, make: Callable[[], V], save: Callable[[V], Awaitable[V]]) -> V:
    """Saved as version 1; `make` draws another id each time, unless the author gave one."""
    tries = _TRIES
    while True:
        tries -= 1
        try:
            return await save(make())
        except VersionConflict:
            if given_id:
                raise VersionConflict(f"the id {given_id} is taken") from None
            if not tries:
                raise


async def changed(
    request: Request,
    *,
    read: Callable[[], Awaitable[V]],
    make: Callable[[V], Awaitable[V | None]],
    save: Callable[[V], Awaitable[V]],
    version: int = 0,
) -> tuple[V, bool]:
    """Save what `make` says of the stored one (None: leave it), and whether that was a change. With `version` or
    ``If-Match`` only if that is the stored one; without, the last writer wins.
    """
    conditional = version != 0 or "if-match" in request.headers
    tries = _TRIES
    while True:
        tries -= 1
        known = await read()
        check_match(request, known)
        if version not in {0, known.version}:
            raise VersionConflict(f"version {known.version} is stored, not {version}")
        wanted = await make(known)
        if wanted is None:
            return known, False
        try:
            return await save(wanted), True
        except VersionConflict:
            if conditional or not tries:
                raise


async def announce(bus: Bus, document: Rule | Watchlist) -> None:
    """Tell ingest, on ``rules.updated``, that the ruleset may have changed."""
    kind = "rule_id" if isinstance(document, Rule) else "watchlist_id"
    try:
        await bus.notify("rules.updated", msgspec.json.encode({kind: document.id, "version": document.version}))
    except Unavailable:
        # The change is stored; ingest looks for itself every few seconds.
        ERRORS_TOTAL.labels(where="rules.notify").inc()
        log.warning("the change of %s could not be announced", document.id)
