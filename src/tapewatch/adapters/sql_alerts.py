"""The history of alerts in SQL, on a connection of the caller's: how an alert becomes a row and a row an alert, and
which of them somebody sees.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from operator import itemgetter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters.sql_database import Query, Reading
from tapewatch.adapters.sql_marks import IDS, acknowledged
from tapewatch.adapters.sql_statements import (
    INT64_MAX,
    between,
    delete_some,
    holds,
    insert,
    int64,
    json_number,
    like_part,
    nan,
    null,
    page_size,
)
from tapewatch.adapters.sql_tables import OWNED, SHARED, alert_history
from tapewatch.documents import Alert
from tapewatch.errors import NotFound
from tapewatch.ports import AlertKey, AlertQuery

_COLUMNS = [alert_history.c[name] for name in Alert.__struct_fields__]
_ONE = sa.select(*_COLUMNS).where(alert_history.c.alert_id == sa.bindparam("alert_id"))
_SOME = sa.select(*_COLUMNS).where(alert_history.c.alert_id.in_(sa.bindparam("ids", expanding=True)))
_PRICE, _VALUES, _AGES, _TAGS = map(Alert.__struct_fields__.index, ("price", "values", "ages_s", "tags"))
_WORDS = {
    "symbols": alert_history.c.symbol,
    "rule_ids": alert_history.c.rule_id,
    "severities": alert_history.c.severity,
    "sessions": alert_history.c.session,
}
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


def read_alerts(reading: Reading, query: AlertQuery) -> list[Alert]:
    return [_alert(row) for row in _found(reading, query, Alert.__struct_fields__)]


def read_alert_keys(reading: Reading, query: AlertQuery) -> list[AlertKey]:
    return [AlertKey(*row) for row in _found(reading, query, AlertKey._fields)]


def read_alerts_of(reading: Reading, alert_ids: Sequence[str]) -> list[Alert]:
    found: list[Alert] = []
    for start in range(0, len(alert_ids), IDS):
        found += map(_alert, reading.rows(_SOME, {"ids": alert_ids[start : start + IDS]}))
    return found


def _found(reading: Reading, query: AlertQuery, columns: tuple[str, ...]) -> Sequence[Sequence[Any]]:
    if query.since_ns is not None and query.since_ns > INT64_MAX:
        return []
    rows = reading.rows(_wanted(_shape(query), columns, reading.dialect), _values(query))
    if query.viewer is None:
        return rows
    # Each half walked through exactly its answer: asked at once, what is another's would be walked over too.
    place, name = columns.index("fired_at_ns"), columns.index("alert_id")
    by_id = {row[name]: row for row in rows}
    in_order = sorted(by_id.values(), key=itemgetter(place, name), reverse=not query.oldest_first)
    return in_order[: page_size(query.limit)]


def _shape(query: AlertQuery) -> AlertQuery:
    """What is equal in all queries that differ in their values alone."""
    viewer = "user" if query.viewer not in {None, _LOCAL} else query.viewer
    asked: dict[str, Any] = {name: value is not None and value != () for name, value in query._asdict().items()}
    asked |= {"viewer": viewer, "oldest_first": query.oldest_first, "name_part": bool(query.name_part)}
    asked["until_ns"] = query.until_ns is not None and query.until_ns <= INT64_MAX
    return AlertQuery(**asked)


def _values(query: AlertQuery) -> dict[str, Any]:
    values: dict[str, Any] = {**query._asdict(), "limit": page_size(query.limit), "part": like_part(query.name_part)}
    for name in ("since_ns", "until_ns"):
        values[name] = int64(values[name] or 0)
    for name in ("before", "after"):
        fired_at_ns, alert_id = values[name] or (0, "")
        values |= {f"{name}_ns": int64(fired_at_ns), f"{name}_id": alert_id}
    return values


@lru_cache(maxsize=256)
def _wanted(shape: AlertQuery, columns: tuple[str, ...], dialect: str) -> Query:
    table = alert_history.c
    order = [table.fired_at_ns, table.alert_id]
    wanted = sa.select(*(table[name] for name in columns))
    wanted = wanted.order_by(*(order if shape.oldest_first else [column.desc() for column in order]))
    wanted = wanted.where(*_narrowed(shape, dialect)).limit(sa.bindparam("limit", type_=sa.BigInteger))
    if shape.viewer is None:
        return wanted
    own = wanted.where(table.owner == sa.bindparam("viewer"))
    if shape.viewer != _LOCAL:
        own = own.where(OWNED)
    return sa.union_all(*(half.subquery().select() for half in (own, wanted.where(SHARED))))


def _narrowed(shape: AlertQuery, dialect: str) -> Iterator[sa.ColumnElement[bool]]:
    """All that is asked for but the viewer."""
    table = alert_history.c
    key = sa.tuple_(table.fired_at_ns, table.alert_id)
    if shape.since_ns:
        yield table.fired_at_ns >= sa.bindparam("since_ns")
    if shape.until_ns:
        yield table.fired_at_ns < sa.bindparam("until_ns")
    if shape.symbol:
        yield table.symbol == sa.bindparam("symbol")
    if shape.rule_id:
        yield table.rule_id == sa.bindparam("rule_id")
    if shape.before:
        yield key < _place("before")
    if shape.after:
        yield key > _place("after")
    for name, column in _WORDS.items():
        if getattr(shape, name):
            yield column.in_(sa.bindparam(name, expanding=True))
    if shape.tags:
        items = sa.func.json_array_elements_text if dialect == "postgresql" else sa.func.json_each
        tag = items(table.tags).table_valued("value")
        one = tag.c.value.in_(sa.bindparam("tags", expanding=True))
        yield sa.exists(sa.select(sa.literal_column("1")).select_from(tag).where(one))
    if shape.name_part:
        yield holds(table.rule_name, sa.bindparam("part", type_=sa.Text))
    if shape.acknowledged_by:
        yield acknowledged("acknowledged_by")
    if shape.not_acknowledged_by:
        yield ~acknowledged("not_acknowledged_by")


def _place(name: str) -> Any:
    return sa.tuple_(sa.bindparam(f"{name}_ns", type_=sa.BigInteger), sa.bindparam(f"{name}_id", type_=sa.Text))


def read_alert(reading: Reading, alert_id: str) -> Alert:
    rows = reading.rows(_ONE, {"alert_id": alert_id})
    if not rows:
        raise NotFound(f"there is no alert {alert_id}")
    return _alert(rows[0])


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
