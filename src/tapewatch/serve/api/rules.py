"""Rules: list, create, read, replace, delete, validate. Every change is told on the channel ``rules.updated``."""

import logging
import re
import secrets
from http import HTTPStatus
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import AfterValidator, BaseModel, Field
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.exceptions import HTTPException

from tapewatch.documents import Identifier, Rule, RuleDraft, rfc3339
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.errors import Unavailable, VersionConflict
from tapewatch.serve.api import API
from tapewatch.serve.api.query import NO_QUERY, Page, RuleId
from tapewatch.serve.bodies import described, read_document
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services
from tapewatch.telemetry import ERRORS_TOTAL

_TRIES = 3
_VALIDATE = "validate"
_LOCATION = {"headers": {"Location": {"schema": {"type": "string"}}}}

log = logging.getLogger(__name__)


def _without_default(schema: dict[str, Any]) -> None:
    schema.pop("default", None)


_ABSENT = Field(json_schema_extra=_without_default)
"""For a field that may be left out but, given, is never null: its default breaks its own rule and is not shown."""


def _not_reserved(rule_id: str) -> str:
    if rule_id == _VALIDATE:
        raise ValueError(f"{_VALIDATE!r} is the name of an operation")
    return rule_id


class NewRule(RuleDraft):
    """A draft that may bring its own id; without one it gets one made of its name."""

    id: Annotated[Identifier, AfterValidator(_not_reserved), _ABSENT] = ""


class RuleChange(RuleDraft):
    """A draft that replaces a rule; with `version`, only if that is still the stored one."""

    version: Annotated[int, Field(ge=1, le=2**31), _ABSENT] = 0


class _RuleIdConvertor(StringConvertor):
    """Any segment but the operation beside it, so that the one does not answer for the other."""

    regex = rf"(?!{_VALIDATE}(?:/|$))[^/]+"


register_url_convertor("rule_id", _RuleIdConvertor())


class RuleList(BaseModel):
    items: list[Rule]
    total: int


class Validity(BaseModel):
    valid: bool


def router(services: Services) -> APIRouter:
    store, clock = services.store, services.clock
    routes = APIRouter(prefix=f"{API}/rules", tags=["rules"], responses=PROBLEMS)

    async def notify(rule: Rule) -> None:
        try:
            payload = msgspec.json.encode({"rule_id": rule.id, "version": rule.version})
            await services.bus.notify("rules.updated", payload)
        except Unavailable:
            # The change is stored; it reaches the tape with the next change that can be announced.
            ERRORS_TOTAL.labels(where="rules.notify").inc()
            log.warning("the change of rule %s could not be announced", rule.id)

    @routes.get("", response_model=RuleList)
    async def list_rules(page: Annotated[Page, Query()]) -> Response:
        _, rules = await store.rules()
        items = rules[page.offset : page.offset + page.limit]
        return json_response({"items": [rule.model_dump() for rule in items], "total": len(rules)})

    @routes.post(
        "",
        status_code=201,
        response_model=Rule,
        responses={201: _LOCATION},
        openapi_extra=_body(NewRule),
        dependencies=[NO_QUERY],
    )
    async def create_rule(request: Request) -> Response:
        draft = await read_document(request, NewRule)
        now = rfc3339(clock.now_ns())
        for attempt in range(_TRIES):
            rule = _rule(draft, id=draft.id or _new_id(draft.name), version=1, created_at=now, updated_at=now)
            try:
                stored = await store.save_rule(rule)
            except VersionConflict:
                if draft.id:
                    raise VersionConflict(f"the id {draft.id} is taken") from None
                if attempt == _TRIES - 1:
                    raise
            else:
                break
        await notify(stored)
        location = str(request.url_for("read_rule", rule_id=stored.id).path)
        return json_response(stored.model_dump(), status=201, headers={"Location": location, **_etag(stored)})

    @routes.post(f"/{_VALIDATE}", response_model=Validity, openapi_extra=_body(NewRule), dependencies=[NO_QUERY])
    async def validate_rule(request: Request) -> Response:
        await read_document(request, NewRule)
        return json_response({"valid": True})

    @routes.get("/{rule_id:rule_id}", response_model=Rule, dependencies=[NO_QUERY])
    async def read_rule(rule_id: RuleId) -> Response:
        rule = await store.rule(rule_id)
        return json_response(rule.model_dump(), headers=_etag(rule))

    @routes.put(
        "/{rule_id:rule_id}",
        response_model=Rule,
        openapi_extra=_body(RuleChange),
        dependencies=[NO_QUERY],
        description="Without `version` and `If-Match`, the last writer wins. `If-Match` takes the ETag of a read.",
    )
    async def replace_rule(request: Request, rule_id: RuleId) -> Response:
        change = await read_document(request, RuleChange)
        conditional = change.version != 0 or "if-match" in request.headers
        for attempt in range(_TRIES):
            known = await store.rule(rule_id)
            _check_match(request, known)
            if change.version not in {0, known.version}:
                raise VersionConflict(f"version {known.version} is stored, not {change.version}")
            try:
                stored = await store.save_rule(
                    _rule(
                        change,
                        id=rule_id,
                        version=known.version + 1,
                        created_at=known.created_at,
                        updated_at=rfc3339(clock.now_ns()),
                    )
                )
            except VersionConflict:
                if conditional or attempt == _TRIES - 1:
                    raise
            else:
                break
        await notify(stored)
        return json_response(stored.model_dump(), headers=_etag(stored))

    @routes.delete("/{rule_id:rule_id}", status_code=204, dependencies=[NO_QUERY])
    async def delete_rule(request: Request, rule_id: RuleId) -> Response:
        known = await store.rule(rule_id)
        _check_match(request, known)
        await store.delete_rule(rule_id)
        await notify(known)
        return Response(status_code=204)

    return routes


def _rule(draft: RuleDraft, **fields: Any) -> Rule:
    return Rule(**{name: getattr(draft, name) for name in RuleDraft.model_fields}, **fields)


def _new_id(name: str) -> str:
    """A slug of the name, so that logs and alerts can be read, and a suffix, so that it is new."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40].strip("-")
    return f"{slug or 'rule'}-{secrets.token_hex(4)}"


def _etag(rule: Rule) -> dict[str, str]:
    return {"ETag": f'"{rule.version}"'}


def _check_match(request: Request, known: Rule) -> None:
    wanted = request.headers.get("if-match")
    if wanted is None or wanted.strip() == "*":
        return
    if f'"{known.version}"' not in {tag.strip() for tag in wanted.split(",")}:
        raise HTTPException(HTTPStatus.PRECONDITION_FAILED, f"version {known.version} is stored")


def _body(model: type[RuleDraft]) -> dict[str, Any]:
    """The body's schema, with what only code knows added: the metrics' names and what counts as text."""
    extra = described(model)
    schema = extra["requestBody"]["content"]["application/json"]["schema"]
    schema["properties"]["conditions"]["items"]["properties"]["metric"]["enum"] = list(CATALOGUE)
    for name in ("name", "description"):
        schema["properties"][name]["format"] = "plain-text"
    return extra
