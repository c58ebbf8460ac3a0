"""What a user puts on an alert: that it is seen to, and a note. Nobody else sees it; the alert stays as it is."""

import re
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import AfterValidator, Field
from starlette.exceptions import HTTPException

from tapewatch.documents import MAX_NOTE, Document, Text
from tapewatch.errors import VersionConflict
from tapewatch.ports import AlertMark
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.alerts import MarkBody, mark_json, stored_alert
from tapewatch.serve.api.query import NO_QUERY, AnyId
from tapewatch.serve.bodies import described, read_document
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services

_TAG = re.compile(r'"([0-9]{1,9})"')


def _stripped(text: str) -> str:
    return text.strip()


class AlertNote(Document):
    """A note on an alert; empty takes it away."""

    note: Annotated[Text, AfterValidator(_stripped), Field(max_length=MAX_NOTE)]


def router(services: Services) -> APIRouter:
    routes = APIRouter(prefix=f"{API}/alerts", tags=["alerts"], responses=PROBLEMS)

    async def mark(request: Request, alert_id: str, **change: Any) -> Response:
        await stored_alert(services, alert_id, who(request))
        version = _wanted_version(request)
        try:
            stored = await services.store.mark_alert(
                who(request).user_id, alert_id, at_ns=services.clock.now_ns(), version=version, **change
            )
        except VersionConflict as error:
            raise HTTPException(HTTPStatus.PRECONDITION_FAILED, str(error)) from None
        return _answer(stored)

    seen: dict[str, Any] = {"response_model": MarkBody, "dependencies": [NO_QUERY]}

    @routes.post("/{alert_id}/acknowledge", description="Again, it keeps the time of the first.", **seen)
    async def acknowledge_alert(request: Request, alert_id: AnyId) -> Response:
        return await mark(request, alert_id, acknowledged=True)

    @routes.post("/{alert_id}/unacknowledge", **seen)
    async def unacknowledge_alert(request: Request, alert_id: AnyId) -> Response:
        return await mark(request, alert_id, acknowledged=False)

    @routes.put(
        "/{alert_id}/note",
        openapi_extra=described(AlertNote),
        description="`If-Match` takes the version of the mark as an ETag; without, the last writer wins.",
        **seen,
    )
    async def note_alert(request: Request, alert_id: AnyId) -> Response:
        given = await read_document(request, AlertNote)
        return await mark(request, alert_id, note=given.note)

    return routes


def _answer(mark: AlertMark) -> Response:
    return json_response(mark_json(mark), headers={"ETag": f'"{mark.version}"'})


def _wanted_version(request: Request) -> int | None:
    wanted = request.headers.get("if-match")
    if wanted is None or wanted.strip() == "*":
        return None
    tag = _TAG.fullmatch(wanted.strip())
    return -1 if tag is None else int(tag[1])  # a tag of something else is none of ours
