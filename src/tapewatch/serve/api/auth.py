"""Signing in, staying signed in, signing out. A page keeps its refresh token in a cookie that no script can read."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from tapewatch.accounts.passwords import LONGEST
from tapewatch.accounts.tokens import LONGEST_TOKEN, REFRESH_S
from tapewatch.accounts.users import Name
from tapewatch.documents import Document
from tapewatch.errors import Unauthorized
from tapewatch.serve.access import bearer_of
from tapewatch.serve.api import API
from tapewatch.serve.api.query import NO_QUERY
from tapewatch.serve.bodies import described, read_document
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services
from tapewatch.serve.sign_in import Admission, SignIns

SECURE_COOKIE = "__Host-tapewatch"
PLAIN_COOKIE = "tapewatch_refresh"
_PATH = f"{API}/auth"


class Credentials(Document):
    name: Name
    password: Annotated[str, Field(min_length=1, max_length=LONGEST, repr=False)]
    cookie: bool = False
    """The refresh token comes as a cookie, for a page."""


class RefreshToken(Document):
    refresh_token: Annotated[str, Field(min_length=1, max_length=LONGEST_TOKEN, repr=False)]


class Admitted(BaseModel):
    access_token: str
    token_type: str
    expires_in: int
    """Seconds."""
    refresh_token: str | None = None
    """Good once; each answer brings the next. Missing if it came as a cookie."""


def router(services: Services, sign_ins: SignIns) -> APIRouter:
    routes = APIRouter(prefix=_PATH, tags=["auth"], responses=PROBLEMS)

    @routes.post("/login", response_model=Admitted, openapi_extra=described(Credentials), dependencies=[NO_QUERY])
    async def log_in(request: Request) -> Response:
        given = await read_document(request, Credentials)
        admission = await sign_ins.sign_in(given.name, given.password, address=address_of(request))
        return _admitted(request, admission, cookie=given.cookie)

    @routes.post(
        "/refresh",
        response_model=Admitted,
        openapi_extra=_optional(RefreshToken),
        dependencies=[NO_QUERY],
        description="With the refresh token in the body, or without a body in the cookie.",
    )
    async def refresh_access(request: Request) -> Response:
        if _has_body(request):
            given = await read_document(request, RefreshToken)
            return _admitted(request, await sign_ins.renew(given.refresh_token), cookie=False)
        return _admitted(request, await sign_ins.renew(_cookie(request)), cookie=True)

    @routes.post(
        "/logout",
        status_code=204,
        openapi_extra=_optional(RefreshToken),
        dependencies=[NO_QUERY],
        description="Ends the session of the access token, of the refresh token in the body, and of the cookie.",
    )
    async def log_out(request: Request) -> Response:
        if _has_body(request):
            await sign_ins.sign_out((await read_document(request, RefreshToken)).refresh_token)
        if cookie := _cookie(request):
            await sign_ins.sign_out(cookie)
        await _end_bearer(request, services)
        answer = Response(status_code=204, headers={"Clear-Site-Data": '"cache"'})
        answer.delete_cookie(PLAIN_COOKIE, path=_PATH, httponly=True, samesite="strict")
        answer.delete_cookie(SECURE_COOKIE, path="/", secure=True, httponly=True, samesite="strict")
        return answer

    return routes


def address_of(request: Request) -> str:
    """Of the client; of a proxy's client only if the server was told to believe that proxy."""
    return "" if request.client is None else request.client.host


async def _end_bearer(request: Request, services: Services) -> None:
    accounts = services.accounts
    try:
        session = await accounts.authenticate(bearer_of(request))
    except Unauthorized:
        return
    if accounts.has_session(session.session_id):
        await services.store.end_session(session.session_id, actor=session.principal.user_id)
        await accounts.changed()


def _admitted(request: Request, admission: Admission, *, cookie: bool) -> Response:
    content: dict[str, Any] = {
        "access_token": admission.access_token,
        "token_type": "Bearer",
        "expires_in": admission.expires_s,
    }
    if not cookie:
        return json_response(content | {"refresh_token": admission.refresh_token})
    answer = json_response(content)
    keep_refresh_token(answer, admission.refresh_token, secure=_is_secure(request))
    return answer


def keep_refresh_token(answer: Response, refresh_token: str, *, secure: bool) -> None:
    """In a cookie that scripts cannot read and other sites cannot send."""
    answer.set_cookie(
        SECURE_COOKIE if secure else PLAIN_COOKIE,
        refresh_token,
        max_age=REFRESH_S,
        path="/" if secure else _PATH,
        secure=secure,
        httponly=True,
        samesite="strict",
    )


def _is_secure(request: Request) -> bool:
    """TLS may end at a proxy, which the server sees only in where the page says that it is from."""
    return request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")


def _cookie(request: Request) -> str:
    return request.cookies.get(SECURE_COOKIE) or request.cookies.get(PLAIN_COOKIE) or ""


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers


def _optional(model: type[Document]) -> dict[str, Any]:
    extra = described(model)
    extra["requestBody"]["required"] = False
    return extra
