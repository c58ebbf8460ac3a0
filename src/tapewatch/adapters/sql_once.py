"""Requests that are done once, in SQL, on a connection of the caller's. The key's row decides who does it."""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters.sql_statements import insert
from tapewatch.adapters.sql_tables import done_once
from tapewatch.engine.columns import SECOND_NS
from tapewatch.ports import ONCE_ABANDONED_S, ONCE_S, KeptAnswer, OnceState


async def begin(connection: AsyncConnection, user_id: str, key: str, digest: bytes, *, now_ns: int) -> OnceState:
    table = done_once.c
    new = insert(connection, done_once).values(user_id=user_id, key=key, digest=digest, begun_ns=now_ns)
    # One statement: of two at the same moment the second finds the row of the first, which is not free.
    over = sa.or_(
        table.begun_ns <= now_ns - ONCE_S * SECOND_NS,
        sa.and_(table.status.is_(None), table.begun_ns <= now_ns - ONCE_ABANDONED_S * SECOND_NS),
    )
    afresh = {"digest": digest, "begun_ns": now_ns, "status": None, "headers": sa.null(), "body": None}
    taken = new.on_conflict_do_update(index_elements=[table.user_id, table.key], set_=afresh, where=over)
    if (await connection.execute(taken.returning(table.key))).one_or_none() is not None:
        return OnceState(is_mine=True, digest=digest, answer=None)
    this = sa.select(done_once).where(table.user_id == user_id, table.key == key)
    row = (await connection.execute(this)).one()
    answer = None if row.status is None else KeptAnswer(row.status, dict(row.headers), bytes(row.body))
    return OnceState(is_mine=False, digest=bytes(row.digest), answer=answer)


async def end(connection: AsyncConnection, user_id: str, key: str, answer: KeptAnswer | None) -> None:
    this = sa.and_(done_once.c.user_id == user_id, done_once.c.key == key)
    if answer is None:
        await connection.execute(sa.delete(done_once).where(this))
    else:
        kept = {"status": answer.status, "headers": answer.headers, "body": answer.body}
        await connection.execute(sa.update(done_once).where(this).values(kept))


async def expire(connection: AsyncConnection, now_ns: int) -> None:
    await connection.execute(sa.delete(done_once).where(done_once.c.begun_ns <= now_ns - ONCE_S * SECOND_NS))
