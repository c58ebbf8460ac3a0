"""What users put on alerts, in SQL, on a connection of the caller's. It never writes to the history of alerts."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters.sql_database import Reading
from tapewatch.adapters.sql_statements import delete_some, insert
from tapewatch.adapters.sql_tables import alert_history, alert_marks
from tapewatch.errors import NotFound, VersionConflict
from tapewatch.ports import AlertMark

IDS = 500
"""Of one query: databases bound the parameters of a statement."""
_SOME = sa.select(
    alert_marks.c.alert_id, alert_marks.c.acknowledged_at_ns, alert_marks.c.note, alert_marks.c.version
).where(
    alert_marks.c.user_id == sa.bindparam("user_id"),
    alert_marks.c.alert_id.in_(sa.bindparam("ids", expanding=True)),
    alert_marks.c.version > 0,
)


async def mark_alert(
    connection: AsyncConnection,
    user_id: str,
    alert_id: str,
    *,
    at_ns: int,
    acknowledged: bool | None,
    note: str | None,
    version: int | None,
) -> AlertMark:
    fired = sa.select(alert_history.c.fired_at_ns).where(alert_history.c.alert_id == alert_id)
    fired_at_ns = (await connection.execute(fired)).scalar_one_or_none()
    if fired_at_ns is None:
        raise NotFound(f"there is no alert {alert_id}")
    table = alert_marks.c
    # The row is there before it is locked, so that of two first marks the second waits for the first.
    empty = {"fired_at_ns": fired_at_ns, "acknowledged_at_ns": None, "note": "", "version": 0}
    first = insert(connection, alert_marks).values(user_id=user_id, alert_id=alert_id, **empty)
    await connection.execute(first.on_conflict_do_nothing())
    this = sa.and_(table.user_id == user_id, table.alert_id == alert_id)
    stored = _mark((await connection.execute(sa.select(alert_marks).where(this).with_for_update())).one())
    if version is not None and version != stored.version:
        raise VersionConflict(f"version {stored.version} is stored, not {version}")
    seen_ns = stored.acknowledged_at_ns
    if acknowledged is not None:
        seen_ns = (at_ns if seen_ns is None else seen_ns) if acknowledged else None
    text = stored.note if note is None else note
    if (seen_ns, text) == (stored.acknowledged_at_ns, stored.note):
        return stored
    changed = AlertMark(acknowledged_at_ns=seen_ns, note=text, version=stored.version + 1)
    await connection.execute(
        sa.update(alert_marks)
        .where(this)
        .values(acknowledged_at_ns=seen_ns, note=changed.note, version=changed.version)
    )
    return changed


def read_marks(reading: Reading, user_id: str, alert_ids: Sequence[str]) -> dict[str, AlertMark]:
    found: dict[str, AlertMark] = {}
    for start in range(0, len(alert_ids), IDS):
        some = reading.rows(_SOME, {"user_id": user_id, "ids": alert_ids[start : start + IDS]})
        found |= {
            alert_id: AlertMark(acknowledged_at_ns=seen_ns, note=note, version=version)
            for alert_id, seen_ns, note, version in some
        }
    return found


def acknowledged(parameter: str) -> sa.ColumnElement[bool]:
    """Of a row of `alert_history`: whether the user whom this parameter names has acknowledged it."""
    table = alert_marks.c
    return sa.exists().where(
        table.user_id == sa.bindparam(parameter),
        table.alert_id == alert_history.c.alert_id,
        table.acknowledged_at_ns.is_not(None),
    )


async def delete_some_marks(connection: AsyncConnection, oldest_ns: int, *, limit: int) -> int:
    """Up to so many of those on alerts that fired before `oldest_ns`; says how many."""
    return await delete_some(connection, alert_marks, alert_marks.c.fired_at_ns < oldest_ns, limit=limit)


def _mark(row: Any) -> AlertMark:
    return AlertMark(acknowledged_at_ns=row.acknowledged_at_ns, note=row.note, version=row.version)
