"""Users, for an admin: list, add, read, change role or disable, reset a password, delete. An installation keeps one
admin at least.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi import Query as FromQuery
from fastapi.responses import Response
from pydantic import BaseModel

from tapewatch.accounts.passwords import Passwords, check_password
from tapewatch.accounts.roles import LOCAL, Role
from tapewatch.accounts.users import Name, User, new_user_id
from tapewatch.documents import Document, rfc3339
from tapewatch.errors import Forbidden
from tapewatch.serve.access import who
from tapewatch.serve.api import API
from tapewatch.serve.api.query import NO_QUERY, AnyId, Page
from tapewatch.serve.api.user import NewPassword, of_account
from tapewatch.serve.api.versions import LOCATION
from tapewatch.serve.bodies import described, read_document
from tapewatch.serve.problems import PROBLEMS, json_response
from tapewatch.serve.services import Services


class NewUser(Document):
    name: Name
    password: NewPassword
    role: Role = "trader"


class UserChange(Document):
    role: Role
    disabled: bool


class PasswordReset(Document):
    password: NewPassword


class UserBody(BaseModel):
    user_id: str
    name: str
    role: Role
    disabled: bool
    created_at: str
    display_name: str


class UserList(BaseModel):
    items: list[UserBody]
    total: int


def router(services: Services, passwords: Passwords) -> APIRouter:
    store, accounts, clock = services.store, services.accounts, services.clock
    routes = APIRouter(prefix=f"{API}/users", tags=["users"], responses=PROBLEMS)

    @routes.get("", response_model=UserList)
    async def list_users(request: Request, page: Annotated[Page, FromQuery()]) -> Response:
        users = [] if who(request) is LOCAL else (await store.accounts(clock.now_ns())).users
        items = users[page.offset : page.offset + page.limit]
        return json_response({"items": [user_body(user) for user in items], "total": len(users)})

    @routes.post(
        "",
        status_code=201,
        response_model=UserBody,
        responses={201: LOCATION},
        openapi_extra=described(NewUser),
        dependencies=[NO_QUERY],
    )
    async def create_user(request: Request) -> Response:
        given = await read_document(request, NewUser)
        principal = of_account(request)
        password = check_password(given.password)
        user = User(
            user_id=new_user_id(),
            name=given.name,
            role=given.role,
            password_hash=await passwords.hashed(password),
            created_at_ns=clock.now_ns(),
        )
        stored = await store.add_user(user, actor=principal.user_id)
        await accounts.changed()
        location = str(request.url_for("read_user", user_id=stored.user_id).path)
        return json_response(user_body(stored), status=201, headers={"Location": location})

    @routes.get("/{user_id}", response_model=UserBody, dependencies=[NO_QUERY])
    async def read_user(user_id: AnyId) -> Response:
        return json_response(user_body(await store.user(user_id)))

    @routes.put(
        "/{user_id}",
        response_model=UserBody,
        openapi_extra=described(UserChange),
        dependencies=[NO_QUERY],
        description="Ends the user's access tokens; who is disabled is signed out. 409 for the last admin.",
    )
    async def change_user(request: Request, user_id: AnyId) -> Response:
        given = await read_document(request, UserChange)
        principal = of_account(request)
        changed = await store.change_user(user_id, role=given.role, disabled=given.disabled, actor=principal.user_id)
        await accounts.changed()
        return json_response(user_body(changed))

    @routes.post(
        "/{user_id}/password",
        status_code=204,
        openapi_extra=described(PasswordReset),
        dependencies=[NO_QUERY],
        description="For a user who has lost theirs. All their sign-ins end; they may change it then.",
    )
    async def reset_password(request: Request, user_id: AnyId) -> Response:
        given = await read_document(request, PasswordReset)
        principal = of_account(request)
        wanted = check_password(given.password)
        if user_id == principal.user_id:
            raise Forbidden("change your own password with POST /user/password, which asks for the old one")
        user = await store.user(user_id)
        await store.set_password(user.user_id, await passwords.hashed(wanted), actor=principal.user_id)
        await accounts.changed()
        return Response(status_code=204)

    @routes.delete(
        "/{user_id}",
        status_code=204,
        dependencies=[NO_QUERY],
        description="With sign-ins and tokens; what they own stays. 409 for the last admin.",
    )
    async def delete_user(request: Request, user_id: AnyId) -> Response:
        principal = of_account(request)
        await store.delete_user(user_id, actor=principal.user_id)
        await accounts.changed()
        return Response(status_code=204)

    return routes


def user_body(user: User) -> dict[str, Any]:
    return {
        "user_id": user.user_id,
        "name": user.name,
        "role": user.role,
        "disabled": user.disabled,
        "created_at": rfc3339(user.created_at_ns),
        "display_name": user.profile.display_name,
    }
