"""Signing in through an OpenID provider, for the page: away to it, and back with a session.

The session arrives as after a password: its refresh token in a cookie that no script can read. So nothing that opens
anything ever stands in an address, not even for one use. Whatever happens, the browser ends at the page, which reads
what became of it behind the #, where no server and no log see it.
"""

import logging
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel

from tapewatch.accounts.openid import ATTEMPT_S, CALLBACK
from tapewatch.errors import Forbidden, NotFound
from tapewatch.serve.api import API
from tapewatch.serve.api.auth import address_of, keep_refresh_token
from tapewatch.serve.api.query import NO_QUERY
from tapewatch.serve.openid_sign_in import OpenIdSignIns, SignInFailed
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services
from tapewatch.serve.sign_in import SignIns

_PATH = f"{API}/auth/openid"
_SECURE_COOKIE = "__Host-tapewatch-openid"
_PLAIN_COOKIE = "tapewatch_openid"
_MOST_SHOWN = 300

log = logging.getLogger(__name__)


class Methods(BaseModel):
    password: bool
    openid: str | None
    """The provider's name, for the button; null where there is none."""


class Brought(BaseModel):
    """What the provider has the browser bring along; providers add what they like."""

    state: str = ""
    code: str = ""
    iss: str = ""
    error: str = ""


class Away(BaseModel):
    authorization_url: str
    """Where the browser goes, with the cookie of this answer."""


def router(services: Services, sign_ins: SignIns) -> APIRouter:
    routes = APIRouter(tags=["auth"], responses=PROBLEMS)
    flow = None
    if services.openid is not None:
        flow = OpenIdSignIns(
            services.openid,
            sign_ins,
            store=services.store,
            accounts=services.accounts,
            hot=services.hot,
            clock=services.clock,
        )

    def there() -> OpenIdSignIns:
        if flow is None:
            raise NotFound("people sign in with a password here: no OpenID provider is set (--oidc-issuer)")
        return flow

    @routes.get(f"{API}/auth/methods", response_model=Methods, dependencies=[NO_QUERY])
    async def list_sign_in_methods() -> Response:
        return json_response({"password": True, "openid": None if flow is None else flow.config.shown_name})

    @routes.post(
        f"{_PATH}/begin",
        response_model=Away,
        dependencies=[NO_QUERY],
        description="For a page of the server's own: what comes back finds only the browser that began.",
    )
    async def begin_openid(request: Request) -> Response:
        config = there().config
        if request.headers.get("origin", config.public_url) != config.public_url:
            raise Forbidden(f"{config.shown_name} sends you back to {config.public_url}: begin there")
        address, cookie = await there().begin()
        answer = json_response({"authorization_url": address})
        answer.set_cookie(
            _SECURE_COOKIE if config.is_secure else _PLAIN_COOKIE,
            cookie,
            max_age=ATTEMPT_S,
            path="/" if config.is_secure else _PATH,
            secure=config.is_secure,
            httponly=True,
            samesite="lax",  # a strict one would not come along from the provider
        )
        return answer

    @routes.get(
        CALLBACK,
        status_code=303,
        response_class=RedirectResponse,
        description="Where the provider sends the browser. Always leads to the page, which is told how it went.",
    )
    async def finish_openid(
        request: Request,
        brought: Annotated[Brought, Query()],
    ) -> Response:
        config = there().config
        name = _SECURE_COOKIE if config.is_secure else _PLAIN_COOKIE
        outcome, admission = "done", None
        try:
            admission = await there().finish(
                brought.model_dump(exclude_unset=True), request.cookies.get(name, ""), address=address_of(request)
            )
        except SignInFailed as failed:
            outcome = failed.reason
            level = logging.DEBUG if outcome == "again" else logging.WARNING  # anybody can cause the former
            log.log(level, "nobody signed in through the OpenID provider: %s", str(failed)[:_MOST_SHOWN])
        answer = RedirectResponse(f"{config.public_url}/#sign-in={outcome}", 303)
        if admission is not None:
            keep_refresh_token(answer, admission.refresh_token, secure=config.is_secure)
        if outcome != "again":  # which anybody can make of any browser, while another attempt is under way
            answer.delete_cookie(
                name,
                path="/" if config.is_secure else _PATH,
                secure=config.is_secure,
                httponly=True,
                samesite="lax",
            )
        return answer

    return routes
