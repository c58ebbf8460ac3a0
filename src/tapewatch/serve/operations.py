"""How a request finds its operation: what routers declare, made into calls once, when the application is made.

The framework reads the same declarations, documents them, and answers what is none of them: wrong addresses and
methods, the page, sockets. It would match each request against all routes, twice, and solve their dependencies anew.
Here an operation is found by its first word, its checks are called one after the other, and its parameters are
validated by what their types say.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Annotated, Any, get_args, get_origin

from fastapi import APIRouter, Request
from fastapi.params import Depends, Header, Path, Query
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from tapewatch.errors import Invalid, TapewatchError
from tapewatch.serve.problems import answer_http_exception, answer_tapewatch_error

Parameter = Callable[[Request], Any]
"""Its value in a request; `Invalid` names it."""
Check = Callable[[Request], Awaitable[None] | None]


class Operations:
    """ASGI middleware, the innermost; `take` gives it the operations of a router that the application includes."""

    def __init__(self) -> None:
        self.app: ASGIApp | None = None
        self._fixed: dict[tuple[str, str], _Operation] = {}
        self._by_word: dict[str, list[_Operation]] = {}

    def around(self, app: ASGIApp) -> "Operations":
        """What is no operation goes on to `app`."""
        self.app = app
        return self

    def take(self, router: APIRouter, dependencies: Sequence[Depends]) -> None:
        """As `include_router` does, with the same dependencies. What was taken first goes first."""
        for route in router.routes:
            if not isinstance(route, APIRoute):
                raise TypeError(f"{route} is not an operation")
            operation = _Operation(route, dependencies)
            if "{" in route.path:
                self._by_word.setdefault(_word(route.path), []).append(operation)
                continue
            for method in operation.methods:
                if not any(other.takes(method, route.path) for other in self._by_word.get(_word(route.path), ())):
                    self._fixed.setdefault((method, route.path), operation)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = self._find(scope) if scope["type"] == "http" and not scope["root_path"] else None
        if operation is not None:
            await operation.answer(scope, receive, send)
        elif self.app is not None:
            await self.app(scope, receive, send)

    def _find(self, scope: Scope) -> "_Operation | None":
        method, path = scope["method"], scope["path"]
        fixed = self._fixed.get((method, path))
        if fixed is not None:
            scope["path_params"] = {}
            return fixed
        for operation in self._by_word.get(_word(path), ()):
            given = operation.takes(method, path)
            if given is not None:
                scope["path_params"] = given
                return operation
        return None


class _Operation:
    """A route as a function of a request."""

    def __init__(self, route: APIRoute, dependencies: Iterable[Depends]) -> None:
        self._route = route
        self._endpoint: Callable[..., Awaitable[Response]] = route.endpoint
        # It answers each of them itself: GET also for HEAD, which it is by then.
        self.methods = frozenset(route.methods or ())
        self._checks: list[Check] = [
            depends.dependency for depends in (*dependencies, *route.dependencies) if depends.dependency is not None
        ]
        signature = inspect.signature(route.endpoint)
        self._parameters = {name: _parameter(one) for name, one in signature.parameters.items()}

    def takes(self, method: str, path: str) -> dict[str, Any] | None:
        """What stands in the path for its names; None if it is not this operation's."""
        if method not in self.methods:
            return None
        match = self._route.path_regex.match(path)
        if match is None:
            return None
        convertors = self._route.param_convertors
        return {name: convertors[name].convert(value) for name, value in match.groupdict().items()}

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["route"], scope["endpoint"] = self._route, self._endpoint
        request = Request(scope, receive, send)
        try:
            for check in self._checks:
                checking = check(request)
                if checking is not None:
                    await checking
            given = {name: parameter(request) for name, parameter in self._parameters.items()}
            response = await self._endpoint(**given)
        except TapewatchError as error:
            response = await answer_tapewatch_error(request, error)
        except HTTPException as error:
            response = await answer_http_exception(request, error)
        await response(scope, receive, send)


def _word(path: str) -> str:
    """The one after ``/api/v1/``, of which all paths of a resource have the same."""
    return path.split("/", 4)[3] if path.count("/") >= 3 else ""


def _parameter(declared: inspect.Parameter) -> Parameter:
    """`TypeError` for a kind of parameter that no operation has had so far."""
    name, kind = declared.name, declared.annotation
    if kind is Request:
        return lambda request: request
    if get_origin(kind) is Annotated:
        base, *notes = get_args(kind)
        of = next((note for note in notes if isinstance(note, (Path, Query, Header))), None)
        others = [note for note in notes if note is not of]
        if isinstance(of, Path):
            return _of_path(name, _validator(base, [*of.metadata, *others]))
        if isinstance(of, Header):
            header = of.alias or name.replace("_", "-")
            return _of_header(header, _validator(base, [*of.metadata, *others]), declared.default)
        if isinstance(of, Query) and isinstance(base, type) and issubclass(base, BaseModel):
            return _of_query(base)
    raise TypeError(f"the parameter {name} is declared in a way that is not known here: {kind}")


def _validator(base: Any, notes: Iterable[Any]) -> Callable[[Any], Any]:
    annotated = base
    for note in notes:
        annotated = Annotated[annotated, note]
    validate: Callable[[Any], Any] = TypeAdapter(annotated).validate_python
    return validate


def _of_path(name: str, validate: Callable[[Any], Any]) -> Parameter:
    def read(request: Request) -> Any:
        try:
            return validate(request.scope["path_params"][name])
        except ValidationError as error:
            raise _invalid("path", error, name) from None

    return read


def _of_header(header: str, validate: Callable[[Any], Any], default: Any) -> Parameter:
    def read(request: Request) -> Any:
        given = request.headers.get(header)
        try:
            return default if given is None else validate(given)
        except ValidationError as error:
            raise _invalid("header", error, header) from None

    return read


def _of_query(model: type[BaseModel]) -> Parameter:
    def read(request: Request) -> Any:
        try:
            return model.model_validate(dict(request.query_params) if request.scope["query_string"] else {})
        except ValidationError as error:
            raise _invalid("query", error) from None

    return read


def _invalid(place: str, error: ValidationError, name: str = "") -> Invalid:
    """What the first thing that is wrong is. `name`: of a value that is validated by itself."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = f"{place}.{name or first['loc'][0]}"
    if first["type"] == "extra_forbidden":
        return Invalid(where, "is not a parameter of this operation")
    return Invalid(where, first["msg"].removeprefix("Value error, "))
