"""Rules: list, create, read, replace, delete, their versions, on and off. Every change is told on ``rules.updated``.

People see their own rules and shared ones, and change their own. What the newest version says of sharing goes for all
versions.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import AfterValidator, BaseModel, Field
from pydantic.json_schema import SkipJsonSchema

from tapewatch.config import RULES_A_USER
from tapewatch.documents import Document, Identifier, Rule, RuleDraft, Text, rfc3339
from tapewatch.engine.rules.cost import Cost
from tapewatch.errors import Invalid
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.ownership import check_watchlists, own, seen
from tapewatch.serve.api.query import IDENTIFIER, NO_QUERY, Page, RuleId, Switch, Version
from tapewatch.serve.api.rule_budget import RuleBudget, cost_of
from tapewatch.serve.api.versions import (
    ABSENT,
    LOCATION,
    VersionNumber,
    announce,
    changed,
    check_match,
    created,
    etag,
    new_id,
    not_reserved,
)
from tapewatch.serve.bodies import described, read_document
from tapewatch.serve.idempotency import IdempotencyKey, once
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.rule_lists import RuleLists
from tapewatch.serve.services import Services

_LAST_WRITER = "Without `version` and `If-Match`, the last writer wins. `If-Match` takes the ETag of a read."
_ON_CONDITION = "`If-Match` takes the ETag of a read."


class NewRule(RuleDraft):
    """A draft that may bring its own id; without one it gets one made of its name."""

    id: Annotated[Identifier, AfterValidator(not_reserved), ABSENT] = ""


class RuleChange(RuleDraft):
    """A draft that replaces a rule; with `version`, only if that is still the stored one."""

    version: Annotated[VersionNumber, ABSENT] = 0


class Rollback(Document):
    """The version whose content becomes the newest version."""

    version: VersionNumber


def rule_body(model: type[RuleDraft]) -> dict[str, Any]:
    """`described`, with what only code knows of a rule."""
    extra = described(model)
    schema = extra["requestBody"]["content"]["application/json"]["schema"]
    schema["anyOf"] = [{"required": ["conditions"]}, {"required": ["when"]}]
    schema["properties"]["fire"]["format"] = "rule-fire"
    return extra


class RulesQuery(Page):
    enabled: Switch | SkipJsonSchema[None] = None
    tag: Annotated[str, Field(pattern=IDENTIFIER)] | SkipJsonSchema[None] = None
    q: (
        Annotated[Text, Field(min_length=1, max_length=120, json_schema_extra={"format": "plain-text"})]
        | SkipJsonSchema[None]
    ) = None
    """A part of the name, in any case."""

    @property
    def filters(self) -> bool:
        return (self.enabled, self.tag, self.q) != (None, None, None)


class RuleList(BaseModel):
    items: list[Rule]
    total: int


def router(services: Services) -> APIRouter:
    store, clock, bus = services.store, services.clock, services.bus
    lists = RuleLists(store)
    routes = APIRouter(prefix=f"{API}/rules", tags=["rules"], responses=PROBLEMS)
    budget = RuleBudget(lists)

    def next_version(known: Rule, content: Rule, **changes: Any) -> Rule:
        return content.model_copy(
            update={"version": known.version + 1, "updated_at": rfc3339(clock.now_ns()), **changes}
        )

    async def own_rule(request: Request, rule_id: str) -> Rule:
        return own(who(request), await store.rule(rule_id))

    async def change(
        request: Request, rule_id: str, make: Callable[[Rule], Awaitable[Rule | None]], *, version: int = 0
    ) -> Response:
        """The answer to a change of a stored rule, which is what `make` says of it, within its owner's budget."""

        async def within_budget(known: Rule) -> Rule | None:
            wanted = await make(known)
            if wanted is not None:
                await budget.check(wanted)
            return wanted

        async with budget.turn:
            rule, is_change = await changed(
                request,
                read=lambda: own_rule(request, rule_id),
                make=within_budget,
                save=partial(store.save_rule, actor=who(request).user_id),
                version=version,
            )
        if is_change:
            await announce(bus, rule)
        return json_response(rule.model_dump(), headers=etag(rule))

    @routes.get("", response_model=RuleList)
    async def list_rules(request: Request, query: Annotated[RulesQuery, FromQuery()]) -> Response:
        found = await lists.seen_by(who(request))
        if query.filters:
            part = None if query.q is None else query.q.casefold()
            found = [
                rule
                for rule in found
                if (query.enabled is None or rule.enabled == query.enabled)
                and (query.tag is None or query.tag in rule.tags)
                and (part is None or part in rule.name.casefold())
            ]
        items = [lists.encoded(rule) for rule in found[query.offset : query.offset + query.limit]]
        return json_response({"items": items, "total": len(found)})

    @routes.post(
        "",
        status_code=201,
        response_model=Rule,
        responses={201: LOCATION},
        openapi_extra=rule_body(NewRule),
        dependencies=[NO_QUERY],
    )
    async def create_rule(request: Request, key: IdempotencyKey = None) -> Response:
        draft = await read_document(request, NewRule)
        return await once(services, request, key, draft, lambda: create(request, draft))

    async def create(request: Request, draft: NewRule) -> Response:
        user = who(request).user_id
        now = rfc3339(clock.now_ns())
        content = rule_of(draft, id=draft.id or "draft", owner=user, created_at=now, updated_at=now)
        affordable(content, draft)
        await check_watchlists(store, content, draft)

        def make() -> Rule:
            return content.model_copy(update={"id": draft.id or new_id(draft.name, kind="rule")})

        async with budget.turn:
            await budget.check(content)
            stored = await created(draft.id, make, partial(store.save_rule, actor=user, most=RULES_A_USER))
        await announce(bus, stored)
        location = str(request.url_for("read_rule", rule_id=stored.id).path)
        return json_response(stored.model_dump(), status=201, headers={"Location": location, **etag(stored)})

    @routes.get("/{rule_id:rule_id}", response_model=Rule, dependencies=[NO_QUERY])
    async def read_rule(request: Request, rule_id: RuleId) -> Response:
        rule = seen(who(request), await store.rule(rule_id))
        return json_response(rule.model_dump(), headers=etag(rule))

    @routes.put(
        "/{rule_id:rule_id}",
        response_model=Rule,
        openapi_extra=rule_body(RuleChange),
        dependencies=[NO_QUERY],
        description=_LAST_WRITER,
    )
    async def replace_rule(request: Request, rule_id: RuleId) -> Response:
        draft = await read_document(request, RuleChange)
        content = rule_of(draft, id=rule_id)
        affordable(content, draft)

        async def make(known: Rule) -> Rule:
            wanted = next_version(known, content, created_at=known.created_at, owner=known.owner)
            await check_watchlists(store, wanted, draft)
            return wanted

        return await change(request, rule_id, make, version=draft.version)

    @routes.delete("/{rule_id:rule_id}", status_code=204, dependencies=[NO_QUERY], description=_ON_CONDITION)
    async def delete_rule(request: Request, rule_id: RuleId) -> Response:
        known = await own_rule(request, rule_id)
        check_match(request, known)
        await store.delete_rule(rule_id, actor=who(request).user_id)
        await announce(bus, known)
        return Response(status_code=204)

    @routes.get("/{rule_id:rule_id}/versions", response_model=RuleList)
    async def list_rule_versions(request: Request, rule_id: RuleId, page: Annotated[Page, FromQuery()]) -> Response:
        """Newest first. Of a deleted rule its alerts tell (`explain_alert`)."""
        newest = seen(who(request), await store.rule(rule_id))
        items = [rule.model_dump() for rule in await store.rule_versions(rule_id, limit=page.limit, offset=page.offset)]
        return json_response({"items": items, "total": newest.version})

    @routes.get("/{rule_id:rule_id}/versions/{version}", response_model=Rule, dependencies=[NO_QUERY])
    async def read_rule_version(request: Request, rule_id: RuleId, version: Version) -> Response:
        seen(who(request), await store.rule(rule_id))
        return json_response((await store.rule(rule_id, version)).model_dump())

    @routes.post(
        "/{rule_id:rule_id}/rollback",
        response_model=Rule,
        openapi_extra=described(Rollback),
        dependencies=[NO_QUERY],
        description=f"The content of an older version becomes the newest version. {_ON_CONDITION}",
    )
    async def roll_rule_back(request: Request, rule_id: RuleId) -> Response:
        wanted = await read_document(request, Rollback)

        async def make(known: Rule) -> Rule:
            old = await store.rule(rule_id, wanted.version)
            affordable(old)
            await check_watchlists(store, old)
            return next_version(known, old)

        return await change(request, rule_id, make)

    async def switch(request: Request, rule_id: str, *, enabled: bool) -> Response:
        async def make(known: Rule) -> Rule | None:
            if known.enabled == enabled:
                return None
            if enabled:
                affordable(known)
                await check_watchlists(store, known)
            return next_version(known, known, enabled=enabled)

        return await change(request, rule_id, make)

    switching: dict[str, Any] = {
        "response_model": Rule,
        "dependencies": [NO_QUERY],
        "description": f"A new version only if it was not so before. {_ON_CONDITION}",
    }

    @routes.post("/{rule_id:rule_id}/enable", **switching)
    async def enable_rule(request: Request, rule_id: RuleId) -> Response:
        return await switch(request, rule_id, enabled=True)

    @routes.post("/{rule_id:rule_id}/disable", **switching)
    async def disable_rule(request: Request, rule_id: RuleId) -> Response:
        return await switch(request, rule_id, enabled=False)

    return routes


def rule_of(draft: RuleDraft, **fields: Any) -> Rule:
    return Rule(**{name: getattr(draft, name) for name in RuleDraft.model_fields}, **fields)


def affordable(rule: Rule, draft: RuleDraft | None = None) -> Cost:
    """What the rule costs; `Invalid` if that is more than a rule may, at the field in which its author wrote it."""
    estimate = cost_of(rule)
    if estimate.refusal:
        is_text = draft is not None and "conditions" not in draft.model_fields_set
        raise Invalid("body.when" if is_text else "body.conditions" if draft else "rule", estimate.refusal)
    return estimate
