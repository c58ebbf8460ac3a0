"""Subscriptions, channels and the outbox in SQL, on a connection of the caller's.

Owns the statements and how rows become documents. A change of a document and its line in the audit log are of one
transaction; changes come one after the other, so limits of an owner hold.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters.sql_rules import Change
from tapewatch.adapters.sql_statements import insert, int64, page_size
from tapewatch.adapters.sql_tables import (
    audit_log,
    channels,
    deliveries,
    ruleset_number,
    subscriptions,
    watchlists,
)
from tapewatch.delivery_documents import (
    Channel,
    Delivery,
    DeliveryState,
    Subscription,
    Told,
    read_channel,
    read_subscription,
)
from tapewatch.documents import DAY_S
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Forbidden, NotFound, VersionConflict
from tapewatch.ports import (
    DEAD_DAYS,
    MOST_CHANNELS,
    MOST_SUBSCRIPTIONS,
    SENT_DAYS,
    AuditAction,
    AuditKind,
    DeliveryQuery,
)

V = TypeVar("V", Subscription, Channel)

_WAITING = ("pending", "held")
_DAY_NS = DAY_S * SECOND_NS
_ONLY_OF_THE_MACHINE = frozenset({"id", "owner", "version", "created_at", "updated_at"})
_AT_ONCE = 500
"""Ids in one statement."""


@dataclass(frozen=True, slots=True)
class Owned(Generic[V]):
    """A kind of document of which each owner has a few."""

    kind: AuditKind
    table: sa.Table
    most: int

    @property
    def key(self) -> sa.Column[str]:
        return cast("sa.Column[str]", self.table.c[f"{self.kind}_id"])

    def document(self, raw: Mapping[str, Any]) -> V:
        return cast("V", read_subscription(raw) if self.kind == "subscription" else read_channel(raw))


SUBSCRIPTIONS: Owned[Subscription] = Owned("subscription", subscriptions, MOST_SUBSCRIPTIONS)
CHANNELS: Owned[Channel] = Owned("channel", channels, MOST_CHANNELS)


# -- documents --------------------------------------------------------------------------------------------------------


async def read_all(connection: AsyncConnection, what: Owned[V], owner: str | None) -> list[V]:
    table = what.table.c
    wanted = sa.select(table.document).where(table.deleted.is_(False)).order_by(what.key)
    if owner is not None:
        wanted = wanted.where(table.owner == owner)
    return [what.document(raw) for raw in (await connection.execute(wanted)).scalars()]


async def read_one(connection: AsyncConnection, what: Owned[V], wanted_id: str) -> V:
    table = what.table.c
    wanted = sa.select(table.document).where(what.key == wanted_id, table.deleted.is_(False))
    raw = (await connection.execute(wanted)).scalar_one_or_none()
    if raw is None:
        raise NotFound(f"there is no {what.kind} {wanted_id}")
    return what.document(raw)


async def save(connection: AsyncConnection, what: Owned[V], document: V, change: Change) -> V:
    await _lock(connection)
    table = what.table.c
    found = await connection.execute(
        sa.select(table.version, table.deleted, table.document).where(what.key == document.id)
    )
    head = found.one_or_none()
    before: dict[str, Any] = {}
    if head is None:
        if document.version != 1:
            raise VersionConflict(f"there is no {what.kind} {document.id} for version {document.version} to follow")
        await _check_room(connection, what, document.owner)
        row = {"owner": document.owner, "version": 1, "deleted": False, "document": _stored(document)}
        await connection.execute(sa.insert(what.table), {what.key.name: document.id, **row})
    else:
        if document.version == 1:
            raise VersionConflict(f"there is or was a {what.kind} {document.id} already")
        if head.deleted or document.version != head.version + 1:
            raise VersionConflict(
                f"version {document.version} of {what.kind} {document.id} does not follow the stored one"
            )
        known = what.document(head.document)
        document = document.model_copy(update={"owner": known.owner, "created_at": known.created_at})
        before = _shown(known)
        await connection.execute(
            sa.update(what.table)
            .where(what.key == document.id)
            .values(version=document.version, document=_stored(document))
        )
    await _write_audit(connection, what, document, "create" if head is None else "change", change, before)
    return document


async def delete(connection: AsyncConnection, what: Owned[V], wanted_id: str, change: Change) -> V:
    await _lock(connection)
    known = await read_one(connection, what, wanted_id)
    await connection.execute(
        sa.update(what.table).where(what.key == wanted_id).values(deleted=True, version=known.version + 1, document={})
    )
    await _write_audit(connection, what, known, "delete", change, _shown(known))
    return known


async def delete_channel(connection: AsyncConnection, channel_id: str, change: Change) -> None:
    known = await delete(connection, CHANNELS, channel_id, change)
    naming = [each.id for each in await read_all(connection, SUBSCRIPTIONS, known.owner) if channel_id in each.channels]
    if naming:
        some = ", ".join(naming[:3]) + (f" and {len(naming) - 3} more" if len(naming) > 3 else "")
        raise VersionConflict(f"the channel {channel_id} is named by subscriptions: {some}")
    table = deliveries.c
    await connection.execute(
        sa.update(deliveries)
        .where(table.channel_id == channel_id, table.state.in_(_WAITING))
        .values(state="dead", error="the channel was deleted")
    )


async def read_routing_number(connection: AsyncConnection) -> int:
    parts = [sa.select(sa.func.coalesce(sa.func.sum(table.c.version), 0)) for table in (subscriptions, channels)]
    parts.append(sa.select(sa.func.coalesce(sa.func.sum(watchlists.c.version), 0)))
    parts.append(sa.select(sa.func.count()).select_from(watchlists).where(watchlists.c.deleted))
    parts.append(sa.select(ruleset_number.c.number))
    row = (await connection.execute(sa.select(*(part.scalar_subquery() for part in parts)))).one()
    return sum(map(int, row))


async def _check_room(connection: AsyncConnection, what: Owned[V], owner: str) -> None:
    table = what.table.c
    counted = sa.select(sa.func.count()).where(table.owner == owner, table.deleted.is_(False))
    if (await connection.execute(counted)).scalar_one() >= what.most:
        raise Forbidden(f"there are {what.most} {what.kind}s of this owner already, and no more are kept")


async def _lock(connection: AsyncConnection) -> None:
    """Changes of these and of rules come one after the other."""
    await connection.execute(sa.select(ruleset_number.c.number).with_for_update())


def _stored(document: Subscription | Channel) -> dict[str, Any]:
    return document.stored() if isinstance(document, Channel) else document.shown()


def _shown(document: Subscription | Channel) -> dict[str, Any]:
    """What its author wrote, without secrets."""
    return {name: value for name, value in document.shown().items() if name not in _ONLY_OF_THE_MACHINE}


async def _write_audit(
    connection: AsyncConnection,
    what: Owned[V],
    document: V,
    action: AuditAction,
    change: Change,
    before: dict[str, Any],
) -> None:
    after = {} if action == "delete" else _shown(document)
    fields = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    was, now = ({name: side[name] for name in fields if name in side} for side in (before, after))
    row = {
        "at_ns": change.at_ns,
        "actor": change.actor,
        "action": action,
        "kind": what.kind,
        "subject": document.id,
        "version": document.version,
        "detail": {"before": was, "after": now},
    }
    await connection.execute(sa.insert(audit_log), row)


# -- the outbox -------------------------------------------------------------------------------------------------------


async def save_deliveries(connection: AsyncConnection, new: Sequence[Delivery]) -> list[Delivery]:
    """Those that are new, in order."""
    first: dict[str, Delivery] = {}
    for delivery in new:
        first.setdefault(delivery.delivery_id, delivery)
    if not first:
        return []
    rows = [_row(first[delivery_id]) for delivery_id in sorted(first)]
    statement = insert(connection, deliveries).on_conflict_do_nothing().returning(deliveries.c.delivery_id)
    saved = set((await connection.execute(statement, rows)).scalars())
    return [delivery for delivery_id, delivery in first.items() if delivery_id in saved]


async def read_told(connection: AsyncConnection, since_ns: int) -> list[Told]:
    table = deliveries.c
    columns = (table.subscriptions, table.rule_id, table.symbol, table.at_ns, table.state, table.next_try_ns)
    told = (
        sa.select(*columns)
        .where(table.kind == "alert", table.at_ns >= int64(since_ns))
        .order_by(table.at_ns, table.delivery_id)
    )
    return [
        Told(
            tuple(row.subscriptions),
            row.rule_id,
            row.symbol,
            row.at_ns,
            row.next_try_ns if row.state == "held" else 0,
        )
        for row in await connection.execute(told)
    ]


async def read_due_channels(connection: AsyncConnection, now_ns: int) -> list[str]:
    table = deliveries.c
    due = (
        sa.select(table.channel_id)
        .distinct()
        .where(table.state.in_(_WAITING), table.next_try_ns <= int64(now_ns))
        .order_by(table.channel_id)
    )
    return list((await connection.execute(due)).scalars())


async def read_waiting(
    connection: AsyncConnection, channel_id: str, state: DeliveryState, due_ns: int | None, limit: int
) -> list[Delivery]:
    table = deliveries.c
    oldest = (
        sa.select(deliveries)
        .where(table.channel_id == channel_id, table.state == state)
        .order_by(table.at_ns, table.delivery_id)
        .limit(page_size(limit))
    )
    if due_ns is not None:
        oldest = oldest.where(table.next_try_ns <= int64(due_ns))
    return [_delivery(row) for row in (await connection.execute(oldest)).mappings()]


async def count_waiting(connection: AsyncConnection, channel_ids: Sequence[str]) -> dict[str, int]:
    table = deliveries.c
    counted: dict[str, int] = {}
    for start in range(0, len(channel_ids), _AT_ONCE):
        waiting = (
            sa.select(table.channel_id, sa.func.count())
            .where(table.channel_id.in_(channel_ids[start : start + _AT_ONCE]), table.state.in_(_WAITING))
            .group_by(table.channel_id)
        )
        counted |= {row[0]: row[1] for row in await connection.execute(waiting)}
    return counted


async def fold(connection: AsyncConnection, digest: Delivery, folded: Sequence[str]) -> bool:
    table = deliveries.c
    waiting: list[str] = []
    for start in range(0, len(folded), _AT_ONCE):
        some = (
            sa.select(table.delivery_id)
            .where(table.delivery_id.in_(folded[start : start + _AT_ONCE]), table.state.in_(_WAITING))
            .order_by(table.delivery_id)
            .with_for_update()
        )
        waiting += (await connection.execute(some)).scalars()
    if not waiting or len(waiting) < len(folded):
        return False
    await connection.execute(insert(connection, deliveries).on_conflict_do_nothing(), [_row(digest)])
    for start in range(0, len(waiting), _AT_ONCE):
        await connection.execute(
            sa.update(deliveries)
            .where(table.delivery_id.in_(waiting[start : start + _AT_ONCE]))
            .values(state="digested", digest_id=digest.delivery_id)
        )
    return True


async def claim(connection: AsyncConnection, delivery: Delivery, until_ns: int) -> bool:
    table = deliveries.c
    claimed = await connection.execute(
        sa.update(deliveries)
        .where(
            table.delivery_id == delivery.delivery_id,
            table.state == "pending",
            table.attempts == delivery.attempts,
            table.next_try_ns == delivery.next_try_ns,
        )
        .values(attempts=delivery.attempts + 1, next_try_ns=int64(until_ns))
    )
    return claimed.rowcount == 1


async def finish(
    connection: AsyncConnection, delivery_id: str, *, state: DeliveryState, at_ns: int, error: str, next_try_ns: int
) -> None:
    table = deliveries.c
    values: dict[str, Any] = {"state": state, "error": error, "next_try_ns": int64(next_try_ns)}
    if state == "sent":
        values["sent_ns"] = int64(at_ns)
    await connection.execute(
        sa.update(deliveries).where(table.delivery_id == delivery_id, table.state == "pending").values(**values)
    )


async def read_deliveries(connection: AsyncConnection, query: DeliveryQuery) -> list[Delivery]:
    table = deliveries.c
    newest = sa.select(deliveries).order_by(table.at_ns.desc(), table.delivery_id.desc()).limit(page_size(query.limit))
    for name in ("owner", "channel_id", "state"):
        wanted = getattr(query, name)
        if wanted is not None:
            newest = newest.where(table[name] == wanted)
    if query.before is not None:
        at_ns, delivery_id = query.before
        last_seen = sa.tuple_(sa.literal(int64(at_ns), sa.BigInteger), sa.literal(delivery_id))
        newest = newest.where(sa.tuple_(table.at_ns, table.delivery_id) < last_seen)
    return [_delivery(row) for row in (await connection.execute(newest)).mappings()]


async def read_delivery(connection: AsyncConnection, delivery_id: str) -> Delivery:
    found = await connection.execute(sa.select(deliveries).where(deliveries.c.delivery_id == delivery_id))
    row = found.mappings().one_or_none()
    if row is None:
        raise NotFound(f"there is no delivery {delivery_id}")
    return _delivery(row)


async def replay(connection: AsyncConnection, delivery_id: str, now_ns: int) -> Delivery:
    table = deliveries.c
    again = {"state": "pending", "attempts": 0, "error": "", "next_try_ns": int64(now_ns), "sent_ns": 0}
    changed = await connection.execute(
        sa.update(deliveries).where(table.delivery_id == delivery_id, table.state.in_(("dead", "sent"))).values(**again)
    )
    known = await read_delivery(connection, delivery_id)
    if not changed.rowcount:
        raise VersionConflict(f"the delivery {delivery_id} is {known.state}; what is dead or sent can be sent again")
    return known


async def expire(connection: AsyncConnection, now_ns: int) -> None:
    """What is over goes; what waited as long as that is dead."""
    table = deliveries.c
    sent_ns, dead_ns = now_ns - SENT_DAYS * _DAY_NS, now_ns - DEAD_DAYS * _DAY_NS
    over = sa.or_(
        sa.and_(table.state.in_(("sent", "digested")), table.at_ns < sent_ns),
        sa.and_(table.state == "dead", table.at_ns < dead_ns),
    )
    await connection.execute(sa.delete(deliveries).where(over))
    await connection.execute(
        sa.update(deliveries)
        .where(table.state.in_(_WAITING), table.at_ns < sent_ns)
        .values(state="dead", error="it waited for too long")
    )


def _row(delivery: Delivery) -> dict[str, Any]:
    fields = {name: getattr(delivery, name) for name in delivery.__struct_fields__}
    return fields | {"subscriptions": list(delivery.subscriptions)}


def _delivery(row: Mapping[Any, Any]) -> Delivery:
    return Delivery(**{**row, "subscriptions": tuple(row["subscriptions"])})
