"""Rules that come with the product: to be read, and saved as rules of one's own."""

from fastapi import APIRouter
from fastapi.responses import Response
from pydantic import BaseModel

from tapewatch.documents import Rule
from tapewatch.errors import NotFound
from tapewatch.serve.api import API
from tapewatch.serve.api.query import NO_QUERY, AnyId
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.templates import templates


class Template(BaseModel):
    id: str
    name: str
    description: str
    tags: list[str]
    text: str
    """The whole rule, as a rule file holds it."""
    rule: Rule


class TemplateList(BaseModel):
    items: list[Template]
    total: int


def router() -> APIRouter:
    routes = APIRouter(prefix=f"{API}/rules/templates", tags=["rules"], responses=PROBLEMS)

    @routes.get("", response_model=TemplateList, dependencies=[NO_QUERY])
    async def list_templates() -> Response:
        items = [_body(rule) for rule in templates().values()]
        return json_response({"items": items, "total": len(items)})

    @routes.get("/{template_id}", response_model=Template, dependencies=[NO_QUERY])
    async def read_template(template_id: AnyId) -> Response:
        rule = templates().get(template_id)
        if rule is None:
            raise NotFound(f"there is no template {template_id}")
        return json_response(_body(rule))

    return routes


def _body(rule: Rule) -> dict[str, object]:
    return {
        "id": rule.id,
        "name": rule.name,
        "description": rule.description,
        "tags": rule.tags,
        "text": rule.written(),
        "rule": rule.model_dump(),
    }
