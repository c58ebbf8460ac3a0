"""What users do with their own account: profile, password, and the tokens of their programs."""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, Field

from tapewatch.accounts.passwords import LONGEST, SHORTEST, Passwords, check_password
from tapewatch.accounts.roles import LOCAL, Principal, Role, Scope
from tapewatch.accounts.tokens import new_api_token
from tapewatch.accounts.users import NEVER_NS, ApiToken, Profile, User
from tapewatch.documents import DAY_S, Document, Text, rfc3339
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Forbidden, Unauthorized
from tapewatch.serve.access import session_of, who
from tapewatch.serve.api import API
from tapewatch.serve.api.auth import address_of
from tapewatch.serve.api.query import NO_QUERY, AnyId
from tapewatch.serve.api.versions import ABSENT, WHOLE
from tapewatch.serve.bodies import described, read_document
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services
from tapewatch.serve.sign_in import SignIns

NO_ACCOUNTS = "there are no accounts here; add the first with: tapewatch user add NAME --role admin"
NewPassword = Annotated[
    str,
    Field(min_length=SHORTEST, max_length=LONGEST, repr=False, json_schema_extra={"format": "plain-text"}),
]


class PasswordChange(Document):
    password: Annotated[str, Field(min_length=1, max_length=LONGEST, repr=False)]
    """The one until now."""
    new_password: NewPassword


class NewToken(Document):
    name: Annotated[Text, Field(min_length=1, max_length=100)]
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=50), ABSENT] = Field(default=[])
    """Without, all that its user may."""
    days: Annotated[int, Field(ge=1, le=3650), WHOLE, ABSENT] = 0
    """Without, it does not end by itself."""


class ProfileBody(BaseModel):
    user_id: str
    name: str
    role: Role
    scopes: list[Scope]
    """What whoever asks may do: of a token, less than the user."""
    created_at: str | None
    display_name: str
    time_zone: str
    preferences: dict[str, Any]


class TokenBody(BaseModel):
    token_id: str
    name: str
    scopes: list[Scope] | None
    created_at: str
    expires_at: str | None
    used_at: str | None
    """To the minute."""


class TokenMade(TokenBody):
    token: str
    """Shown this once."""


class TokenList(BaseModel):
    items: list[TokenBody]


def router(services: Services, sign_ins: SignIns, passwords: Passwords) -> APIRouter:
    store, accounts, clock = services.store, services.accounts, services.clock
    routes = APIRouter(prefix=f"{API}/user", tags=["user"], responses=PROBLEMS)

    @routes.get("/profile", response_model=ProfileBody, dependencies=[NO_QUERY])
    async def read_profile(request: Request) -> Response:
        principal = who(request)
        user = None if principal is LOCAL else await store.user(principal.user_id)
        return json_response(_profile(principal, user))

    @routes.put("/profile", response_model=ProfileBody, openapi_extra=described(Profile), dependencies=[NO_QUERY])
    async def replace_profile(request: Request) -> Response:
        profile = await read_document(request, Profile)
        principal = of_account(request)
        return json_response(
            _profile(principal, await store.save_profile(principal.user_id, profile, actor=principal.user_id))
        )

    @routes.post(
        "/password",
        status_code=204,
        openapi_extra=described(PasswordChange),
        dependencies=[NO_QUERY],
        description="Ends all other sign-ins. Access tokens end, too: refresh this one's.",
    )
    async def change_password(request: Request) -> Response:
        given = await read_document(request, PasswordChange)
        principal = of_account(request)
        wanted = check_password(given.new_password, where="new_password")
        user = await store.user(principal.user_id)
        try:
            await sign_ins.confirm(user, given.password, address=address_of(request))
        except Unauthorized:  # of the password, not of who asks
            raise Forbidden("the password is wrong") from None
        await store.set_password(
            user.user_id,
            await passwords.hashed(wanted),
            keep_session=session_of(request).session_id,
            actor=principal.user_id,
        )
        await accounts.changed()
        return Response(status_code=204)

    @routes.get("/tokens", response_model=TokenList, dependencies=[NO_QUERY])
    async def list_tokens(request: Request) -> Response:
        principal = who(request)
        tokens = [] if principal is LOCAL else await store.tokens(principal.user_id)
        return json_response({"items": [token_body(token) for token in tokens if not token.revoked]})

    @routes.post(
        "/tokens",
        status_code=201,
        response_model=TokenMade,
        openapi_extra=described(NewToken),
        dependencies=[NO_QUERY],
        description="For a program. It may do no more than whoever makes it.",
    )
    async def create_token(request: Request) -> Response:
        given = await read_document(request, NewToken)
        principal = of_account(request)
        token_id, secret_hash, shown = new_api_token()
        now_ns = clock.now_ns()
        token = ApiToken(
            token_id=token_id,
            user_id=principal.user_id,
            name=given.name,
            secret_hash=secret_hash,
            scopes=_scopes(principal, given.scopes),
            created_at_ns=now_ns,
            expires_ns=now_ns + given.days * DAY_S * SECOND_NS if given.days else NEVER_NS,
        )
        stored = await store.add_token(token, actor=principal.user_id)
        await accounts.changed()
        return json_response({**token_body(stored), "token": shown}, status=201)

    @routes.delete("/tokens/{token_id}", status_code=204, dependencies=[NO_QUERY])
    async def revoke_token(request: Request, token_id: AnyId) -> Response:
        principal = of_account(request)
        await store.revoke_token(token_id, user_id=principal.user_id, actor=principal.user_id)
        await accounts.changed()
        return Response(status_code=204)

    return routes


def of_account(request: Request) -> Principal:
    """Who asks, if that is a user and not just whoever sits here."""
    principal = who(request)
    if principal is LOCAL:
        raise Forbidden(NO_ACCOUNTS)
    return principal


def _scopes(principal: Principal, wanted: list[Scope]) -> frozenset[Scope] | None:
    if principal.scopes == Principal.of(principal.user_id, principal.role).scopes and not wanted:
        return None
    beyond = sorted(set(wanted) - principal.scopes)
    if beyond:
        raise Forbidden(f"whoever makes a token gives it no scope that they lack: {', '.join(beyond)}")
    return frozenset(wanted) or principal.scopes


def _profile(principal: Principal, user: User | None) -> dict[str, Any]:
    """Without accounts, of the one local user."""
    profile = Profile() if user is None else user.profile
    return {
        "user_id": principal.user_id,
        "name": "local" if user is None else user.name,
        "role": principal.role,
        "scopes": sorted(principal.scopes),
        "created_at": None if user is None else rfc3339(user.created_at_ns),
        **profile.model_dump(mode="json"),
    }


def token_body(token: ApiToken) -> dict[str, Any]:
    return {
        "token_id": token.token_id,
        "name": token.name,
        "scopes": None if token.scopes is None else sorted(token.scopes),
        "created_at": rfc3339(token.created_at_ns),
        "expires_at": None if token.expires_ns == NEVER_NS else rfc3339(token.expires_ns),
        "used_at": None if token.used_at_ns is None else rfc3339(token.used_at_ns),
    }
