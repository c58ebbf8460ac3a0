"""The HTTP application: routers, error answers, the page and the WebSocket endpoint, put together.

It starts nothing: whoever serves the application also runs `Gateway.run` and `BoardView.follow`.
"""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, params
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, PlainTextResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.routing import WebSocketRoute

from tapewatch import __version__
from tapewatch.accounts.passwords import Passwords
from tapewatch.errors import TapewatchError
from tapewatch.serve.access import checked, with_scopes
from tapewatch.serve.api import (
    API,
    alert_export,
    alert_marks,
    alerts,
    audit,
    auth,
    channels,
    deliveries,
    drafts,
    explain,
    history,
    metrics,
    openid,
    rules,
    scoreboard,
    subscriptions,
    symbols,
    system,
    templates,
    toplists,
    user,
    users,
    watchlists,
)
from tapewatch.serve.api.query import NO_DOUBLES
from tapewatch.serve.bodies import with_definitions
from tapewatch.serve.gateway import Gateway
from tapewatch.serve.guard import Guard
from tapewatch.serve.operations import Operations
from tapewatch.serve.problems import answer_http_exception, answer_tapewatch_error, answer_validation_error
from tapewatch.serve.rate_limits import Limited, within_limits
from tapewatch.serve.request_ids import RequestIds
from tapewatch.serve.services import Services
from tapewatch.serve.sign_in import SignIns

_NO_TELEMETRY: dict[str, Any] = {"telemetry": {"tracing": False, "metrics": False, "logs": False}}
"""Newer frameworks have one, and look with each request whether somebody listens. Ours is Prometheus."""
_NO_PAGE = "tapewatch is running, but its page is not built: run `make web`, or `make run` for both.\n"


def create_app(services: Services) -> FastAPI:
    """The application over `services`; see `tapewatch.serve.server.server_config` for how to serve it."""
    app = FastAPI(
        title="tapewatch",
        version=__version__,
        description="Real-time scanner for US equities: rules, alerts, symbols, toplists.",
        openapi_url=f"{API}/openapi.json",
        docs_url=None,  # its page loads scripts from elsewhere, which the content security policy forbids
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: route.name,
        **_NO_TELEMETRY,
    )
    operations = Operations()
    app.add_middleware(operations.around)
    if services.limits is not None:
        app.add_middleware(Limited, limits=services.limits)
    app.state.limits = services.limits
    app.add_middleware(Guard, origins=services.origins, hosts=services.hosts, foreign_origins=services.foreign_origins)
    app.add_middleware(RequestIds)
    app.add_exception_handler(TapewatchError, answer_tapewatch_error)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(HTTPException, answer_http_exception)
    passwords = Passwords()
    sign_ins = SignIns(services.store, services.accounts, services.clock, passwords, services.hot)
    let_in = Depends(checked(services.accounts))
    for router in (
        drafts.router(services),
        templates.router(),
        rules.router(services),
        explain.router(services),
        watchlists.router(services),
        alert_export.router(services),
        alert_marks.router(services),
        alerts.router(services),
        symbols.router(services),
        history.router(services),
        toplists.router(services),
        scoreboard.router(services),
        audit.router(services),
        channels.router(services),
        subscriptions.router(services),
        deliveries.router(services),
        metrics.router(),
        auth.router(services, sign_ins),
        openid.router(services, sign_ins),
        user.router(services, sign_ins, passwords),
        users.router(services, passwords),
        system.status_router(services),
    ):
        _include(app, operations, router, [let_in, Depends(within_limits), NO_DOUBLES])
    _include(app, operations, system.probes_router(services.ready, prefix=API), [let_in, NO_DOUBLES])
    app.include_router(system.probes_router(services.ready), include_in_schema=False)
    if services.exports_metrics:
        app.include_router(system.prometheus_router())
    _add_gateway(app, services.gateway)
    _add_page(app, services.ui)
    _complete_document(app)
    _make_ready(app)
    return app


def _include(app: FastAPI, operations: Operations, router: APIRouter, dependencies: list[params.Depends]) -> None:
    """The framework documents what `operations` answers."""
    app.include_router(router, dependencies=dependencies)
    operations.take(router, dependencies)


def create_small_app(
    ready: Callable[[], tuple[bool, str]],
    *,
    gateway: Gateway | None = None,
    hosts: frozenset[str] = frozenset(),
    exports_metrics: bool = True,
) -> FastAPI:
    """What a process without REST answers: probes, Prometheus, and with a gateway ``/ws``."""
    app = FastAPI(title="tapewatch", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, origins=frozenset(), hosts=hosts)
    app.add_middleware(RequestIds)
    app.add_exception_handler(TapewatchError, answer_tapewatch_error)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.include_router(system.probes_router(ready))
    if exports_metrics:
        app.include_router(system.prometheus_router())
    if gateway is not None:
        _add_gateway(app, gateway)
    return app


def _add_gateway(app: FastAPI, gateway: Gateway) -> None:
    """The framework's own kind of route would keep for each client what dependencies need, and it has none."""
    app.router.routes.append(WebSocketRoute("/ws", gateway.connect, name="gateway"))


def _make_ready(app: FastAPI) -> None:
    """The framework makes of all routes what requests need when it first looks for one, a third of a second of work:
    better now than while alerts wait.
    """
    nowhere = {"type": "http", "method": "GET", "path": "/", "root_path": "", "headers": []}
    for route in app.routes:
        route.matches(nowhere)


def _complete_document(app: FastAPI) -> None:
    """The OpenAPI document with what bodies refer to and operations' scopes, made when it is first asked for."""
    make = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = with_scopes(with_definitions(make()))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that the framework documents


def _add_page(app: FastAPI, ui: Path) -> None:
    """Each file has its own route: a mount at the root would answer for every address that the API refuses."""
    if not (ui / "index.html").is_file():

        @app.get("/", include_in_schema=False)
        async def no_page() -> Response:
            return PlainTextResponse(_NO_PAGE)

        return
    for entry in sorted(ui.iterdir()):
        if entry.is_dir():
            app.mount(f"/{entry.name}", StaticFiles(directory=entry), name=entry.name)
        else:
            path = "/" if entry.name == "index.html" else f"/{entry.name}"
            app.add_api_route(path, _file(entry), include_in_schema=False)


def _file(path: Path) -> Callable[[], Awaitable[Response]]:
    async def send_file() -> Response:
        # The names of assets change with their content; this file's does not, so a browser must ask again.
        return FileResponse(path, headers={"Cache-Control": "no-cache"})

    return send_file
