"""Users, their identities, sign-ins and tokens in SQL; on a connection of the caller's.

Owns the statements and how rows become users. Each change begins with the lock of the accounts' number, so that changes
come one after the other in every process: of two admins who disable each other, one is told that they are the last.
"""

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.accounts.roles import Role
from tapewatch.accounts.users import MOST_SESSIONS, MOST_TOKENS, ApiToken, Identity, Profile, SignIn, User
from tapewatch.adapters.sql_rules import Change
from tapewatch.adapters.sql_statements import int64
from tapewatch.adapters.sql_tables import accounts_number, api_tokens, audit_log, identities, sessions, users
from tapewatch.errors import NotFound, VersionConflict
from tapewatch.ports import AccountsView, AuditAction, AuditKind
from tapewatch.strict import parse_document

# -- reading ----------------------------------------------------------------------------------------------------------


async def read_number(connection: AsyncConnection) -> int:
    return int((await connection.execute(sa.select(accounts_number.c.number))).scalar_one())


async def read_accounts(connection: AsyncConnection, now_ns: int) -> AccountsView:
    # The number first: what is read behind it may be newer, and is then read again, but never older.
    number = await read_number(connection)
    everybody = await connection.execute(sa.select(users).order_by(users.c.name_key))
    live = (
        sa.select(sessions)
        .join(users, users.c.user_id == sessions.c.user_id)
        .where(users.c.disabled.is_(False), sessions.c.expires_ns > int64(now_ns))
    )
    signed_in = await connection.execute(live)
    given = await connection.execute(sa.select(api_tokens).where(api_tokens.c.revoked.is_(False)))
    return AccountsView(
        number,
        [_user(row) for row in everybody.mappings()],
        [SignIn(**row) for row in signed_in.mappings()],
        [_token(row) for row in given.mappings()],
    )


async def read_user(connection: AsyncConnection, user_id: str) -> User:
    found = (await connection.execute(sa.select(users).where(users.c.user_id == user_id))).mappings().one_or_none()
    if found is None:
        raise NotFound(f"there is no user {user_id}")
    return _user(found)


async def read_user_named(connection: AsyncConnection, name: str) -> User:
    named = sa.select(users).where(users.c.name_key == _key(name))
    found = (await connection.execute(named)).mappings().one_or_none()
    if found is None:
        raise NotFound(f"there is no user {name}")
    return _user(found)


async def read_user_of(connection: AsyncConnection, identity: Identity) -> User:
    theirs = sa.select(users).join(identities, identities.c.user_id == users.c.user_id).where(_is(identity))
    found = (await connection.execute(theirs)).mappings().one_or_none()
    if found is None:
        raise NotFound("nobody has this identity")
    return _user(found)


async def read_tokens(connection: AsyncConnection, user_id: str | None) -> list[ApiToken]:
    newest = sa.select(api_tokens).order_by(api_tokens.c.created_at_ns.desc(), api_tokens.c.token_id)
    if user_id is not None:
        newest = newest.where(api_tokens.c.user_id == user_id)
    return [_token(row) for row in (await connection.execute(newest)).mappings()]


def _is(identity: Identity) -> sa.ColumnElement[bool]:
    return (identities.c.issuer == identity.issuer) & (identities.c.subject == identity.subject)


def _key(name: str) -> str:
    return name.lower()


def _user(row: Mapping[Any, Any]) -> User:
    columns = {name: value for name, value in row.items() if name not in {"name_key", "profile"}}
    profile = parse_document(Profile, row["profile"], where=f"stored profile of {row['user_id']}")
    return User(**columns, profile=profile)


def _token(row: Mapping[Any, Any]) -> ApiToken:
    scopes = row["scopes"]
    return ApiToken(**{**row, "scopes": None if scopes is None else frozenset(scopes)})


# -- users ------------------------------------------------------------------------------------------------------------


async def add_user(connection: AsyncConnection, user: User, identity: Identity | None, change: Change) -> User:
    await _lock(connection)
    taken = await connection.execute(
        sa.select(users.c.user_id).where((users.c.name_key == _key(user.name)) | (users.c.user_id == user.user_id))
    )
    if taken.first() is not None:
        raise VersionConflict(f"there is a user {user.name} already")
    row = {
        "user_id": user.user_id,
        "name": user.name,
        "name_key": _key(user.name),
        "role": user.role,
        "disabled": user.disabled,
        "password_hash": user.password_hash,
        "epoch": user.epoch,
        "created_at_ns": user.created_at_ns,
        "profile": user.profile.model_dump(mode="json"),
    }
    await connection.execute(sa.insert(users), row)
    after = _shown(user)
    if identity is not None:
        await _give(connection, user.user_id, identity)
        after["identity"] = identity._asdict()
    await _write_audit(connection, "user", user.user_id, "create", change, user.epoch, after=after)
    await _raise_number(connection)
    return user


async def link_identity(connection: AsyncConnection, user_id: str, identity: Identity, change: Change) -> None:
    await _lock(connection)
    user = await read_user(connection, user_id)
    if await _give(connection, user_id, identity):
        after = {"identity": identity._asdict()}
        await _write_audit(connection, "user", user_id, "change", change, user.epoch, after=after)


async def _give(connection: AsyncConnection, user_id: str, identity: Identity) -> bool:
    """Whether they did not have it."""
    found = await connection.execute(sa.select(identities.c.user_id).where(_is(identity)))
    owner = found.scalar_one_or_none()
    if owner is None:
        await connection.execute(sa.insert(identities), {**identity._asdict(), "user_id": user_id})
    elif owner != user_id:
        raise VersionConflict("somebody else has this identity")
    return owner is None


async def change_user(
    connection: AsyncConnection, user_id: str, change: Change, *, role: Role | None, disabled: bool | None
) -> User:
    await _lock(connection)
    before = await read_user(connection, user_id)
    wanted: dict[str, Any] = {}
    if role is not None and role != before.role:
        wanted["role"] = role
    if disabled is not None and disabled != before.disabled:
        wanted["disabled"] = disabled
    if not wanted:
        return before
    await connection.execute(
        sa.update(users).where(users.c.user_id == user_id).values(epoch=before.epoch + 1, **wanted)
    )
    if wanted.get("disabled"):
        await connection.execute(sa.delete(sessions).where(sessions.c.user_id == user_id))
    if before.role == "admin" and not before.disabled:
        await _keep_an_admin(connection)
    after = await read_user(connection, user_id)
    was = {name: getattr(before, name) for name in wanted}
    await _write_audit(connection, "user", user_id, "change", change, after.epoch, before=was, after=wanted)
    await _raise_number(connection)
    return after


async def delete_user(connection: AsyncConnection, user_id: str, change: Change) -> None:
    await _lock(connection)
    before = await read_user(connection, user_id)
    for table in (sessions, api_tokens, identities, users):
        await connection.execute(sa.delete(table).where(table.c.user_id == user_id))
    if before.role == "admin" and not before.disabled:
        await _keep_an_admin(connection)
    await _write_audit(connection, "user", user_id, "delete", change, before.epoch, before=_shown(before))
    await _raise_number(connection)


async def set_password(
    connection: AsyncConnection, user_id: str, password_hash: str, keep_session: str | None, change: Change
) -> User:
    await _lock(connection)
    before = await read_user(connection, user_id)
    epoch = before.epoch + 1
    await connection.execute(
        sa.update(users).where(users.c.user_id == user_id).values(password_hash=password_hash, epoch=epoch)
    )
    await connection.execute(
        sa.delete(sessions).where(sessions.c.user_id == user_id, sessions.c.session_id != (keep_session or ""))
    )
    await _write_audit(connection, "user", user_id, "change", change, epoch, after={"password": "changed"})
    await _raise_number(connection)
    return await read_user(connection, user_id)


async def rehash_password(connection: AsyncConnection, user_id: str, before: str, after: str) -> None:
    same = sa.update(users).where(users.c.user_id == user_id, users.c.password_hash == before)
    await connection.execute(same.values(password_hash=after))


async def save_profile(connection: AsyncConnection, user_id: str, profile: Profile, change: Change) -> User:
    await _lock(connection)
    before = await read_user(connection, user_id)
    was, now = before.profile.model_dump(mode="json"), profile.model_dump(mode="json")
    if was == now:
        return before
    await connection.execute(sa.update(users).where(users.c.user_id == user_id).values(profile=now))
    fields = [name for name in now if was[name] != now[name]]
    await _write_audit(
        connection,
        "user",
        user_id,
        "change",
        change,
        before.epoch,
        before={name: was[name] for name in fields},
        after={name: now[name] for name in fields},
    )
    return await read_user(connection, user_id)


async def _keep_an_admin(connection: AsyncConnection) -> None:
    admins = sa.select(users.c.user_id).where(users.c.role == "admin", users.c.disabled.is_(False)).limit(1)
    if (await connection.execute(admins)).first() is None:
        raise VersionConflict("this is the last admin; make another one first")


def _shown(user: User) -> dict[str, Any]:
    return {"name": user.name, "role": user.role, "disabled": user.disabled}


# -- sign-ins ---------------------------------------------------------------------------------------------------------


async def begin_session(connection: AsyncConnection, session: SignIn, change: Change) -> None:
    await _lock(connection)
    if (await read_user(connection, session.user_id)).disabled:
        raise NotFound(f"there is no user {session.user_id}")
    await connection.execute(sa.delete(sessions).where(sessions.c.expires_ns <= int64(change.at_ns)))
    mine = sa.select(sessions.c.session_id).where(sessions.c.user_id == session.user_id)
    newest = mine.order_by(sessions.c.used_at_ns.desc(), sessions.c.session_id).limit(MOST_SESSIONS - 1)
    kept = list((await connection.execute(newest)).scalars())
    await connection.execute(
        sa.delete(sessions).where(sessions.c.user_id == session.user_id, sessions.c.session_id.not_in(kept))
    )
    row = {column.name: getattr(session, column.name) for column in sessions.columns}
    await connection.execute(sa.insert(sessions), row)
    await _write_audit(connection, "session", session.session_id, "create", change, after={"user": session.user_id})
    await _raise_number(connection)


async def renew_session(
    connection: AsyncConnection, session_id: str, *, refresh_hash: str, next_hash: str, now_ns: int
) -> SignIn | None:
    """None if it is not to be renewed; a session whose old token came back is gone then."""
    await _lock(connection)
    found = (
        (await connection.execute(sa.select(sessions).where(sessions.c.session_id == session_id)))
        .mappings()
        .one_or_none()
    )
    if found is None or found["expires_ns"] <= now_ns:
        return None
    # Both are hashes, of which nothing can be learned by trying.
    if found["refresh_hash"] != refresh_hash:
        change = Change(found["user_id"], now_ns)
        await _end(connection, found, change, why="an old refresh token was used")
        return None
    renewed = {"refresh_hash": next_hash, "used_at_ns": now_ns}
    await connection.execute(sa.update(sessions).where(sessions.c.session_id == session_id).values(**renewed))
    return SignIn(**{**found, **renewed})


async def end_session(connection: AsyncConnection, session_id: str, change: Change) -> None:
    await _lock(connection)
    found = await connection.execute(sa.select(sessions).where(sessions.c.session_id == session_id))
    row = found.mappings().one_or_none()
    if row is not None:
        await _end(connection, row, change, why="signed out")


async def _end(connection: AsyncConnection, session: Mapping[Any, Any], change: Change, *, why: str) -> None:
    session_id = session["session_id"]
    await connection.execute(sa.delete(sessions).where(sessions.c.session_id == session_id))
    was, now = {"user": session["user_id"]}, {"why": why}
    await _write_audit(connection, "session", session_id, "delete", change, before=was, after=now)
    await _raise_number(connection)


# -- tokens -----------------------------------------------------------------------------------------------------------


async def add_token(connection: AsyncConnection, token: ApiToken, change: Change) -> ApiToken:
    await _lock(connection)
    await read_user(connection, token.user_id)
    live = sa.select(sa.func.count()).where(
        api_tokens.c.user_id == token.user_id,
        api_tokens.c.revoked.is_(False),
        api_tokens.c.expires_ns > int64(change.at_ns),
    )
    if (await connection.execute(live)).scalar_one() >= MOST_TOKENS:
        raise VersionConflict(f"a user has at most {MOST_TOKENS} tokens; revoke one first")
    await _forget_dead_tokens(connection, token.user_id, change.at_ns)
    scopes = None if token.scopes is None else sorted(token.scopes)
    row = {column.name: getattr(token, column.name) for column in api_tokens.columns} | {"scopes": scopes}
    await connection.execute(sa.insert(api_tokens), row)
    after = {"user": token.user_id, "name": token.name, "scopes": scopes}
    await _write_audit(connection, "token", token.token_id, "create", change, after=after)
    await _raise_number(connection)
    return token


async def _forget_dead_tokens(connection: AsyncConnection, user_id: str, now_ns: int) -> None:
    """All but the newest of those that are no longer good: making and revoking without end fills nothing."""
    dead = sa.select(api_tokens.c.token_id).where(
        api_tokens.c.user_id == user_id, api_tokens.c.revoked.is_(True) | (api_tokens.c.expires_ns <= int64(now_ns))
    )
    old = dead.order_by(api_tokens.c.created_at_ns.desc(), api_tokens.c.token_id).offset(MOST_TOKENS).limit(MOST_TOKENS)
    gone = list((await connection.execute(old)).scalars())
    await connection.execute(sa.delete(api_tokens).where(api_tokens.c.token_id.in_(gone)))


async def revoke_token(connection: AsyncConnection, token_id: str, user_id: str | None, change: Change) -> None:
    await _lock(connection)
    found = await connection.execute(sa.select(api_tokens).where(api_tokens.c.token_id == token_id))
    row = found.mappings().one_or_none()
    if row is None or user_id not in {None, row["user_id"]}:
        raise NotFound(f"there is no token {token_id}")
    if row["revoked"]:
        return
    await connection.execute(sa.update(api_tokens).where(api_tokens.c.token_id == token_id).values(revoked=True))
    before = {"user": row["user_id"], "name": row["name"]}
    await _write_audit(connection, "token", token_id, "delete", change, before=before)
    await _raise_number(connection)


async def note_tokens_used(connection: AsyncConnection, used: Mapping[str, int]) -> None:
    for token_id, used_at_ns in used.items():
        await connection.execute(
            sa.update(api_tokens)
            .where(
                api_tokens.c.token_id == token_id,
                sa.func.coalesce(api_tokens.c.used_at_ns, 0) < used_at_ns,
            )
            .values(used_at_ns=used_at_ns)
        )


# -- what each change has ---------------------------------------------------------------------------------------------


async def _lock(connection: AsyncConnection) -> None:
    await connection.execute(sa.select(accounts_number.c.number).with_for_update())


async def _raise_number(connection: AsyncConnection) -> None:
    await connection.execute(sa.update(accounts_number).values(number=accounts_number.c.number + 1))


async def _write_audit(
    connection: AsyncConnection,
    kind: AuditKind,
    subject: str,
    action: AuditAction,
    change: Change,
    version: int = 1,
    *,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
) -> None:
    row = {
        "at_ns": change.at_ns,
        "actor": change.actor,
        "action": action,
        "kind": kind,
        "subject": subject,
        "version": version,
        "detail": {"before": dict(before or {}), "after": dict(after or {})},
    }
    await connection.execute(sa.insert(audit_log), row)
