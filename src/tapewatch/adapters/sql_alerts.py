"""The history of alerts in SQL, on a connection of the caller's: how an alert becomes a row and a row an alert, and
which of them somebody sees.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters.sql_marks import acknowledged
from tapewatch.adapters.sql_statements import (
    between,
    delete_some,
    holds,
    insert,
    int64,
    json_number,
    nan,
    null,
    page_size,
)
from tapewatch.adapters.sql_tables import OWNED, SHARED, alert_history
from tapewatch.documents import Alert
from tapewatch.errors import NotFound
from tapewatch.ports import AlertQuery

_COLUMNS = [alert_history.c[name] for name in Alert.__struct_fields__]
_OLDEST_FIRST = sa.select(*_COLUMNS).order_by(alert_history.c.fired_at_ns, alert_history.c.alert_id)
_NEWEST_FIRST = sa.select(*_COLUMNS).order_by(alert_history.c.fired_at_ns.desc(), alert_history.c.alert_id.desc())
_PRICE, _VALUES, _AGES, _TAGS = map(Alert.__struct_fields__.index, ("price", "values", "ages_s", "tags"))
_LOCAL = "local"
"""The owner whose alerts the indexes of owners leave out."""


async def save_alerts(connection: AsyncConnection, alerts: Sequence[Alert]) -> list[Alert]:
    """Those that are new, in order."""
    first: dict[str, Alert] = {}
    for alert in alerts:
        first.setdefault(alert.alert_id, alert)
    if not first:
        return []
    # Writers that share alerts take them in one order, or each could wait for what the other has.
    rows = [_row(alert) for alert in sorted(first.values(), key=lambda alert: (alert.fired_at_ns, alert.alert_id))]
    statement = insert(connection, alert_history).on_conflict_do_nothing().returning(alert_history.c.alert_id)
    new = set((await connection.execute(statement, rows)).scalars())
    return [alert for alert_id, alert in first.items() if alert_id in new]


async def annotate_alerts(connection: AsyncConnection, symbol: str, *, since_ns: int, note: str) -> list[Alert]:
    """Those that the note changed, as they are now, oldest first."""
    table = alert_history.c
    fired = (
        sa.select(*_COLUMNS)
        .where(table.symbol == symbol, *between(table.fired_at_ns, since_ns, None))
        .order_by(table.fired_at_ns, table.alert_id)
        .with_for_update()
    )
    stored = [_alert(row) for row in (await connection.execute(fired)).all()]
    changed = [now for alert in stored if (now := alert.annotated(note)).note != alert.note]
    if changed:
        written = (
            sa.update(alert_history)
            .where(table.alert_id == sa.bindparam("of"), table.fired_at_ns == sa.bindparam("at_ns"))
            .values(note=sa.bindparam("now"))
        )
        rows = [{"of": alert.alert_id, "at_ns": int(alert.fired_at_ns), "now": alert.note} for alert in changed]
        await connection.execute(written, rows)
    return changed


def read_alerts(connection: sa.Connection, query: AlertQuery) -> list[Alert]:
    if query.viewer is None:
        return [_alert(row) for row in connection.execute(_wanted(connection, query)).all()]
    # Each half walks through exactly its answer: asked at once, what is another's would be walked over too.
    wanted = _wanted(connection, query)
    own = wanted.where(alert_history.c.owner == query.viewer)
    if query.viewer != _LOCAL:
        own = own.where(OWNED)
    halves = sa.union_all(*(half.subquery().select() for half in (own, wanted.where(SHARED))))
    rows = {row.alert_id: row for row in connection.execute(halves)}
    in_order = sorted(rows.values(), key=lambda row: (row.fired_at_ns, row.alert_id), reverse=not query.oldest_first)
    return [_alert(row) for row in in_order[: page_size(query.limit)]]


def _wanted(connection: sa.Connection, query: AlertQuery) -> sa.Select[Any]:
    """All that the query asks for but the viewer."""
    table = alert_history.c
    key = (table.fired_at_ns, table.alert_id)
    wanted = _OLDEST_FIRST if query.oldest_first else _NEWEST_FIRST
    wanted = wanted.where(*between(table.fired_at_ns, query.since_ns, query.until_ns)).limit(page_size(query.limit))
    if query.symbol is not None:
        wanted = wanted.where(table.symbol == query.symbol)
    if query.rule_id is not None:
        wanted = wanted.where(table.rule_id == query.rule_id)
    if query.before is not None:
        wanted = wanted.where(sa.tuple_(*key) < _place(query.before))
    if query.after is not None:
        wanted = wanted.where(sa.tuple_(*key) > _place(query.after))
    return wanted.where(*_narrowed(connection, query))


def _place(seen: tuple[int, str]) -> Any:
    fired_at_ns, alert_id = seen
    return sa.tuple_(sa.literal(int64(fired_at_ns), sa.BigInteger), sa.literal(alert_id))


def _narrowed(connection: sa.Connection, query: AlertQuery) -> list[sa.ColumnElement[bool]]:
    table = alert_history.c
    words = (
        (table.symbol, query.symbols),
        (table.rule_id, query.rule_ids),
        (table.severity, query.severities),
        (table.session, query.sessions),
    )
    asked: list[sa.ColumnElement[bool]] = [column.in_(those) for column, those in words if those]
    if query.tags:
        is_postgres = connection.dialect.name == "postgresql"
        items = sa.func.json_array_elements_text if is_postgres else sa.func.json_each
        tag = items(table.tags).table_valued("value")
        asked.append(sa.exists(sa.select(sa.literal(1)).select_from(tag).where(tag.c.value.in_(query.tags))))
    if query.name_part:
        asked.append(holds(table.rule_name, query.name_part))
    if query.acknowledged_by is not None:
        asked.append(acknowledged(query.acknowledged_by))
    if query.not_acknowledged_by is not None:
        asked.append(~acknowledged(query.not_acknowledged_by))
    return asked


def read_alert(connection: sa.Connection, alert_id: str) -> Alert:
    row = connection.execute(sa.select(*_COLUMNS).where(alert_history.c.alert_id == alert_id)).one_or_none()
    if row is None:
        raise NotFound(f"there is no alert {alert_id}")
    return _alert(row)


async def delete_some_alerts(connection: AsyncConnection, oldest_ns: int, *, limit: int) -> int:
    """Up to so many of those that fired before `oldest_ns`; says how many."""
    return await delete_some(connection, alert_history, alert_history.c.fired_at_ns < oldest_ns, limit=limit)


def _row(alert: Alert) -> dict[str, Any]:
    return {
        "alert_id": alert.alert_id,
        "rule_id": alert.rule_id,
        "rule_version": int(alert.rule_version),
        "rule_name": alert.rule_name,
        "symbol": alert.symbol,
        "fired_at_ns": int(alert.fired_at_ns),
        "price": null(alert.price),
        "values": {name: json_number(value) for name, value in alert.values.items()},
        "session": alert.session,
        "received_ns": int(alert.received_ns),
        "note": alert.note,
        "ages_s": {name: json_number(age_s) for name, age_s in alert.ages_s.items()},
        "severity": alert.severity,
        "tags": list(alert.tags),
        "owner": alert.owner,
        "shared": bool(alert.shared),
        "scanned_ns": int(alert.scanned_ns),
        "filtered_ns": int(alert.filtered_ns),
    }


def _alert(row: Sequence[Any]) -> Alert:
    """Of a row of `_COLUMNS`."""
    fields = list(row)
    fields[_PRICE] = nan(fields[_PRICE])
    for numbers in (_VALUES, _AGES):
        fields[numbers] = {name: nan(value) for name, value in fields[numbers].items()}
    fields[_TAGS] = tuple(fields[_TAGS])
    return Alert(*fields)
