"""Operations without a server: which one takes a request, in which order its checks come, what a bad parameter says."""

import json
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.types import Message, Scope

from tapewatch.errors import Forbidden
from tapewatch.serve.operations import Operations

pytestmark = pytest.mark.anyio


class Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid")
    limit: Annotated[int, Field(ge=1)] = 10


def things() -> APIRouter:
    routes = APIRouter(prefix="/api/v1/things")

    @routes.get("/{name}")
    async def read(name: Annotated[str, Path(pattern="^[a-z]+$")], query: Annotated[Wanted, Query()]) -> Response:
        return Response(f"{name} {query.limit}")

    @routes.get("/all")
    async def hidden() -> Response:
        return Response("behind the name")

    @routes.get("")
    async def several(request: Request, key: Annotated[str | None, Header(alias="Some-Key")] = None) -> Response:
        return Response(f"{request.url.path} {key}")

    return routes


async def elsewhere(_scope: Scope, _receive: Any, send: Any) -> None:
    await Response("elsewhere")(_scope, _receive, send)


async def ask(operations: Operations, path: str, query: bytes = b"", method: str = "GET", **headers: str) -> Any:
    """Status and text, of a problem what it says."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    given = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "root_path": "", "query_string": query, "headers": given}
    scope |= {"scheme": "http", "server": ("h", 80)}
    await operations(scope, None, send)  # type: ignore[arg-type]  # nobody reads
    status, text = sent[0]["status"], sent[1]["body"].decode()
    if status == 200:
        return status, text
    problem = json.loads(text)
    return status, problem.get("where"), problem["detail"]


@pytest.fixture
def operations() -> Operations:
    taken = Operations().around(elsewhere)
    taken.take(things(), [])
    return taken


async def test_operation_is_found_by_method_and_path_the_first_declared_first(operations: Operations) -> None:
    assert await ask(operations, "/api/v1/things") == (200, "/api/v1/things None")
    assert await ask(operations, "/api/v1/things/one") == (200, "one 10")
    assert await ask(operations, "/api/v1/things/all") == (200, "all 10")
    for path in ("/api/v1/things/", "/api/v1/things/a/b", "/api/v1/other", "/", "/api", ""):
        assert await ask(operations, path) == (200, "elsewhere"), path
    assert await ask(operations, "/api/v1/things", method="POST") == (200, "elsewhere")


async def test_parameters_are_validated_by_their_types_and_named(operations: Operations) -> None:
    assert await ask(operations, "/api/v1/things/one", b"limit=3") == (200, "one 3")
    assert (await ask(operations, "/api/v1/things/one", b"limit=0"))[:2] == (422, "query.limit")
    assert await ask(operations, "/api/v1/things/one", b"limt=3") == (
        422,
        "query.limt",
        "is not a parameter of this operation",
    )
    assert (await ask(operations, "/api/v1/things/ONE"))[:2] == (422, "path.name")
    assert await ask(operations, "/api/v1/things", some_key="k") == (200, "/api/v1/things k")


async def test_checks_come_in_their_order_before_the_parameters() -> None:
    called: list[str] = []

    async def first(_request: Request) -> None:
        called.append("first")

    def second(request: Request) -> None:
        called.append("second")
        if "refused" in request.headers:
            raise Forbidden("not today")

    operations = Operations().around(elsewhere)
    operations.take(things(), [Depends(first), Depends(second)])
    refused = await ask(operations, "/api/v1/things/ONE", b"limit=0", refused="yes")
    assert (refused, called) == ((403, None, "not today"), ["first", "second"])


def test_parameter_of_an_unknown_kind_is_refused_when_the_application_is_made() -> None:
    routes = APIRouter()

    @routes.get("/api/v1/things")
    async def read(limit: int = 3) -> Response:
        return Response(str(limit))

    with pytest.raises(TypeError, match="limit"):
        Operations().take(routes, [])
