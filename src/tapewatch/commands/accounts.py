"""`tapewatch user` and `tapewatch token`: accounts, for whoever has the store. A server that runs sees changes within
two seconds.
"""

import getpass
import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from tapewatch.accounts.openid_settings import LONGEST_SUBJECT
from tapewatch.commands.terminal import DataDir, JsonFlag, StoreUrl, read, run
from tapewatch.config import default_data_dir
from tapewatch.errors import ConfigError

if TYPE_CHECKING:  # the store's driver waits until a command runs
    from tapewatch.accounts.roles import Role, Scope
    from tapewatch.accounts.users import ApiToken, User
    from tapewatch.ports import Store

users_app = typer.Typer(help="Who may sign in.", no_args_is_help=True)
tokens_app = typer.Typer(help="What programs show in place of a password.", no_args_is_help=True)

PasswordFile = Annotated[
    Path | None, typer.Option("--password-file", help="A file whose first line is the password; - is standard input.")
]
UserName = Annotated[str, typer.Argument(help="What the user signs in with.", metavar="NAME")]
RoleName = Annotated[str, typer.Option("--role", help="viewer, trader, operator or admin.")]

T = TypeVar("T")
_ACTOR = "local"


@users_app.command("add")
def add_user(
    name: UserName,
    role: RoleName = "trader",
    password_file: PasswordFile = None,
    no_password: Annotated[
        bool, typer.Option("--no-password", help="They will sign in with an OpenID provider alone; see user link.")
    ] = False,
    data_dir: DataDir = None,
    store: StoreUrl = None,
    as_json: JsonFlag = False,
) -> None:
    """Add a user; the password is asked for twice, or read as one line."""
    from tapewatch.accounts.passwords import Passwords, check_password
    from tapewatch.accounts.users import User, check_name, new_user_id
    from tapewatch.clock import SystemClock

    check_name(name, where="NAME")
    wanted = _role(role)
    if no_password and password_file is not None:
        raise ConfigError("--no-password and --password-file exclude each other")
    password = None if no_password else check_password(_password(password_file))

    async def add(opened: "Store") -> User:
        user = User(
            user_id=new_user_id(),
            name=name,
            role=wanted,
            password_hash="" if password is None else await Passwords().hashed(password),
            created_at_ns=SystemClock().now_ns(),
        )
        return await opened.add_user(user, actor=_ACTOR)

    user = _with_store(data_dir, store, add)
    _say(user_row(user), f"{user.name} may sign in, as {user.role}", as_json=as_json)


@users_app.command("list")
def list_users(data_dir: DataDir = None, store: StoreUrl = None, as_json: JsonFlag = False) -> None:
    """Show all users."""
    users = _with_store(data_dir, store, _users)
    if as_json:
        print(json.dumps({"users": [user_row(user) for user in users]}))
        return
    for user in users:
        print(f"{user.name:24} {user.role:10} {'disabled' if user.disabled else ''}".rstrip())


@users_app.command("disable")
def disable_user(name: UserName, data_dir: DataDir = None, store: StoreUrl = None, as_json: JsonFlag = False) -> None:
    """Shut a user out, at once and everywhere; nothing of theirs is deleted."""
    user = _with_store(data_dir, store, _changer(name, disabled=True))
    _say(user_row(user), f"{user.name} is disabled", as_json=as_json)


@users_app.command("enable")
def enable_user(name: UserName, data_dir: DataDir = None, store: StoreUrl = None, as_json: JsonFlag = False) -> None:
    """Let a disabled user sign in again."""
    user = _with_store(data_dir, store, _changer(name, disabled=False))
    _say(user_row(user), f"{user.name} may sign in", as_json=as_json)


@users_app.command("role")
def set_role(
    name: UserName,
    role: Annotated[str, typer.Argument(help="viewer, trader, operator or admin.")],
    data_dir: DataDir = None,
    store: StoreUrl = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a user another role."""
    user = _with_store(data_dir, store, _changer(name, role=_role(role)))
    _say(user_row(user), f"{user.name} is {user.role}", as_json=as_json)


@users_app.command("password")
def set_password(
    name: UserName,
    password_file: PasswordFile = None,
    data_dir: DataDir = None,
    store: StoreUrl = None,
    as_json: JsonFlag = False,
) -> None:
    """Give a user another password; all their sign-ins end."""
    from tapewatch.accounts.passwords import Passwords, check_password

    password = check_password(_password(password_file))

    async def change(opened: "Store") -> "User":
        user = await opened.user_named(name)
        return await opened.set_password(user.user_id, await Passwords().hashed(password), actor=_ACTOR)

    user = _with_store(data_dir, store, change)
    _say(user_row(user), f"{user.name} has another password", as_json=as_json)


@users_app.command("link")
def link_user(
    name: UserName,
    issuer: Annotated[str, typer.Option(help="The provider, as in --oidc-issuer.")],
    subject: Annotated[str, typer.Option(help="Their `sub` there; the log of a refused sign-in has it.")],
    data_dir: DataDir = None,
    store: StoreUrl = None,
    as_json: JsonFlag = False,
) -> None:
    """Let whom an OpenID provider knows sign in as this user."""
    from tapewatch.accounts.openid_settings import is_web_address
    from tapewatch.accounts.users import Identity

    if not is_web_address(issuer, plain=True):
        raise ConfigError(f"--issuer: {issuer!r} is not an address such as https://id.example.com")
    if not (1 <= len(subject) <= LONGEST_SUBJECT and subject.isprintable()):
        raise ConfigError(f"--subject: must be 1 to {LONGEST_SUBJECT} characters that can be shown")

    async def link(opened: "Store") -> "User":
        user = await opened.user_named(name)
        await opened.link_identity(user.user_id, Identity(issuer, subject), actor=_ACTOR)
        return user

    user = _with_store(data_dir, store, link)
    _say(
        user_row(user) | {"issuer": issuer, "subject": subject},
        f"{subject} of {issuer} is {user.name}",
        as_json=as_json,
    )


@tokens_app.command("create")
def create_token(
    user: Annotated[str, typer.Option("--user", help="Whose it is.", metavar="NAME")],
    name: Annotated[str, typer.Option("--name", help="What it is for.")],
    scope: Annotated[
        list[str] | None, typer.Option(help="What it may, such as alerts:read; may be repeated. Else all of its user.")
    ] = None,
    days: Annotated[int | None, typer.Option(help="How long it is good; else until it is revoked.")] = None,
    data_dir: DataDir = None,
    store: StoreUrl = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a token for a program. It is printed this once."""
    from tapewatch.accounts.tokens import new_api_token
    from tapewatch.accounts.users import NEVER_NS, ApiToken
    from tapewatch.clock import SystemClock
    from tapewatch.documents import DAY_S
    from tapewatch.engine.columns import SECOND_NS

    if not (1 <= len(name) <= 100 and name.isprintable()):
        raise ConfigError("--name: must be 1 to 100 characters that can be shown")
    if days is not None and not 1 <= days <= 3650:
        raise ConfigError(f"--days: {days} is not between 1 and 3650")
    scopes = _scopes(scope)
    token_id, secret_hash, shown = new_api_token()
    now_ns = SystemClock().now_ns()

    async def make(opened: "Store") -> ApiToken:
        owner = await opened.user_named(user)
        token = ApiToken(
            token_id=token_id,
            user_id=owner.user_id,
            name=name,
            secret_hash=secret_hash,
            scopes=scopes,
            created_at_ns=now_ns,
            expires_ns=NEVER_NS if days is None else now_ns + days * DAY_S * SECOND_NS,
        )
        return await opened.add_token(token, actor=_ACTOR)

    token = _with_store(data_dir, store, make)
    _say({**token_row(token, user), "token": shown}, shown, as_json=as_json)


@tokens_app.command("list")
def list_tokens(data_dir: DataDir = None, store: StoreUrl = None, as_json: JsonFlag = False) -> None:
    """Show all tokens that were not revoked; their secrets are not kept."""

    async def look(opened: "Store") -> list[dict[str, Any]]:
        names = {user.user_id: user.name for user in await _users(opened)}
        return [token_row(t, names.get(t.user_id, "")) for t in await opened.tokens() if not t.revoked]

    rows = _with_store(data_dir, store, look)
    if as_json:
        print(json.dumps({"tokens": rows}))
        return
    for row in rows:
        until = f"until {row['expires_at'][:10]}" if row["expires_at"] else "no end"
        used = f"used {row['used_at'][:10]}" if row["used_at"] else "never used"
        print(f"{row['token_id']}  {row['user']:16} {row['name']:24} {until:17} {used}")


@tokens_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="As `token list` shows it, or the token itself.")],
    data_dir: DataDir = None,
    store: StoreUrl = None,
    as_json: JsonFlag = False,
) -> None:
    """A token is no longer good, everywhere."""
    from tapewatch.accounts.tokens import parse_api_token

    whole = parse_api_token(token_id)
    wanted = token_id if whole is None else whole[0]

    async def revoke(opened: "Store") -> None:
        await opened.revoke_token(wanted, actor=_ACTOR)

    _with_store(data_dir, store, revoke)
    _say({"token_id": wanted, "revoked": True}, f"{wanted} is revoked", as_json=as_json)


def _with_store(data_dir: Path | None, store: str | None, work: Callable[["Store"], Awaitable[T]]) -> T:
    from tapewatch.app.opening import open_store_at

    if store is not None and data_dir is not None:
        store = None  # the one may come from the environment, the other was typed
    results: list[T] = []

    async def whole() -> None:
        opened = await open_store_at(store or data_dir or default_data_dir())
        try:
            results.append(await work(opened))
        finally:
            await opened.close()

    run(whole())
    if not results:  # interrupted
        raise typer.Exit(130)
    return results[0]


async def _users(opened: "Store") -> "list[User]":
    from tapewatch.clock import SystemClock

    return (await opened.accounts(SystemClock().now_ns())).users


def _changer(
    name: str, *, role: "Role | None" = None, disabled: bool | None = None
) -> "Callable[[Store], Awaitable[User]]":
    async def change(opened: "Store") -> "User":
        user = await opened.user_named(name)
        return await opened.change_user(user.user_id, role=role, disabled=disabled, actor=_ACTOR)

    return change


def _role(role: str) -> "Role":
    from tapewatch.accounts.roles import ROLES

    if role not in ROLES:
        raise ConfigError(f"--role: {role!r} is none of: {', '.join(ROLES)}")
    return role


def _scopes(given: list[str] | None) -> "frozenset[Scope] | None":
    from tapewatch.accounts.roles import SCOPES

    for scope in given or ():
        if scope not in SCOPES:
            raise ConfigError(f"--scope: {scope!r} is none of: {', '.join(SCOPES)}")
    return frozenset(cast("list[Scope]", given)) if given else None


def _password(path: Path | None) -> str:
    """One line of a file or of standard input, or what somebody types twice."""
    if path is not None and str(path) != "-":
        try:
            text = read(path).decode()
        except UnicodeDecodeError:
            raise ConfigError(f"--password-file: {path} is not UTF-8") from None
        return _line(text)
    if path is not None or not sys.stdin.isatty():
        return _line(sys.stdin.readline())
    first = getpass.getpass("Password: ")
    if getpass.getpass("Once more: ") != first:
        raise ConfigError("the two passwords differ")
    return first


def _line(text: str) -> str:
    return text.split("\n", 1)[0].removesuffix("\r")


def user_row(user: "User") -> dict[str, Any]:
    from tapewatch.documents import rfc3339

    return {
        "user_id": user.user_id,
        "name": user.name,
        "role": user.role,
        "disabled": user.disabled,
        "created_at": rfc3339(user.created_at_ns),
    }


def token_row(token: "ApiToken", user: str) -> dict[str, Any]:
    from tapewatch.accounts.users import NEVER_NS
    from tapewatch.documents import rfc3339

    return {
        "token_id": token.token_id,
        "user": user,
        "name": token.name,
        "scopes": None if token.scopes is None else sorted(token.scopes),
        "created_at": rfc3339(token.created_at_ns),
        "expires_at": None if token.expires_ns == NEVER_NS else rfc3339(token.expires_ns),
        "used_at": None if token.used_at_ns is None else rfc3339(token.used_at_ns),
    }


def _say(row: dict[str, Any], line: str, *, as_json: bool) -> None:
    print(json.dumps(row) if as_json else line)
