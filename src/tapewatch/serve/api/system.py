"""How the system itself is: for people, load balancers and Prometheus."""

from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST, PLATFORM_COLLECTOR, REGISTRY, generate_latest
from pydantic import BaseModel

from tapewatch.serve.api import API
from tapewatch.serve.api.query import NO_QUERY
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.quality import quality
from tapewatch.serve.services import Services


class Health(BaseModel):
    status: str


class Readiness(BaseModel):
    ready: bool
    phase: str


class Parity(BaseModel):
    """Our minute bars against the provider's own."""

    compared: int
    equal: int
    equal_share: float | None
    differing: dict[str, int]
    """By field; missing and extra are bars that only they or only we have."""
    samples: list[str]


class Partitions(BaseModel):
    of: int
    missing: dict[str, list[int]]
    """By role, the partitions that nobody works on."""


class Quality(BaseModel):
    """Since the start of the processes."""

    state: str | None
    troubles: list[str]
    """For people; empty when there are none."""
    feed: str | None
    market_time: str | None
    age_s: float | None
    gap: dict[str, Any] | None
    """The one that is open: since when, and why."""
    losses: dict[str, int]
    """Connections that ended, by reason."""
    overflow_frames: int
    rows: int
    duplicates: int
    conflicts: int
    """Of the duplicates, those with another price, size or time than the trade that they repeat."""
    rejected: dict[str, int]
    """Rows that could not be a trade, by reason."""
    samples: dict[str, list[str]]
    """Of what was rejected."""
    late: dict[str, int]
    """Prints that changed a closed minute, came too late for that, or were ahead of the clock."""
    parity: Parity
    partitions: Partitions


_PROBES: dict[int | str, dict[str, Any]] = {
    **PROBLEMS,
    503: {"model": Readiness, "description": "Not ready: the phase says what is still going on"},
}


def status_router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=f"{API}/system", tags=["system"], responses=PROBLEMS)

    @routes.get("/status", response_model=dict[str, Any], dependencies=[NO_QUERY])
    async def read_status() -> Response:
        return json_response(services.status())

    @routes.get("/quality", response_model=Quality, dependencies=[NO_QUERY])
    async def read_quality() -> Response:
        return json_response(quality(services.status()))

    return routes


def probes_router(ready: Callable[[], tuple[bool, str]], *, prefix: str = "") -> APIRouter:
    """`/health`: the process answers. `/ready`: its answers are true."""
    routes = APIRouter(prefix=prefix, tags=["system"], responses=PROBLEMS)

    @routes.get("/health", response_model=Health, dependencies=[NO_QUERY])
    async def read_health() -> Response:
        return json_response({"status": "ok"})

    @routes.get("/ready", response_model=Readiness, responses=_PROBES, dependencies=[NO_QUERY])
    async def read_readiness() -> Response:
        answers, phase = ready()
        status = HTTPStatus.OK if answers else HTTPStatus.SERVICE_UNAVAILABLE
        return json_response({"ready": answers, "phase": phase}, status=status)

    return routes


def prometheus_router() -> APIRouter:
    """Without the interpreter's version: it is of use to nobody but those who look for one with a known fault."""
    with suppress(KeyError):
        REGISTRY.unregister(PLATFORM_COLLECTOR)
    routes = APIRouter(include_in_schema=False)

    @routes.get("/metrics")
    async def export() -> Response:
        return Response(generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return routes
