"""Rules and watchlists in SQL, each with all of its versions, and who changed what; on a connection of the caller's.

Owns the statements and how rows become documents. Connections, transactions and errors are `sql`'s. A change and its
line in the audit log are of one transaction, which begins with the lock of the ruleset number: changes come one after
the other in every process, so a list cannot go while a rule begins to name it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Generic, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters.sql_database import CoreReading, Reading
from tapewatch.adapters.sql_statements import INT64_MAX, int64, page_size
from tapewatch.adapters.sql_tables import (
    audit_log,
    rule_versions,
    rule_watchlists,
    rules,
    ruleset_number,
    watchlist_versions,
    watchlists,
)
from tapewatch.documents import DAY_S, Rule, Watchlist, parse_document
from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.rules.tree import watchlists as named_watchlists
from tapewatch.errors import NotFound, QuotaReached, VersionConflict
from tapewatch.ports import AUDIT_DAYS, AuditAction, AuditEntry, AuditKind, AuditQuery, Snapshot
from tapewatch.toplist_documents import Toplist

V = TypeVar("V", Rule, Watchlist, Toplist)

_NUMBER = sa.select(ruleset_number.c.number)
_AT_ONCE = 100
"""Documents read before the event loop gets its turn: each takes up to a third of a millisecond."""
_OF_THE_MACHINE = frozenset({"id", "version", "created_at", "updated_at"})


@dataclass(frozen=True, slots=True)
class Versioned(Generic[V]):
    """A kind of document that keeps its versions: one row for what it is now, one for each version."""

    kind: AuditKind
    model: type[V]
    heads: sa.Table
    versions: sa.Table

    @property
    def head_id(self) -> sa.Column[str]:
        return cast("sa.Column[str]", self.heads.c[f"{self.kind}_id"])

    @property
    def version_id(self) -> sa.Column[str]:
        return cast("sa.Column[str]", self.versions.c[f"{self.kind}_id"])

    def newest(self, *columns: Any) -> sa.Select[Any]:
        """Of the heads joined with the newest version of each, these columns."""
        joined = sa.and_(self.head_id == self.version_id, self.heads.c.version == self.versions.c.version)
        return sa.select(*columns).select_from(self.heads.join(self.versions, joined))

    def document(self, raw: Mapping[str, Any]) -> V:
        return parse_document(self.model, raw, where=f"stored {self.kind} {raw.get('id')}")


RULES = Versioned("rule", Rule, rules, rule_versions)
WATCHLISTS = Versioned("watchlist", Watchlist, watchlists, watchlist_versions)


@dataclass(frozen=True, slots=True)
class Change:
    """Who changes something, and when."""

    actor: str
    at_ns: int


# -- reading ----------------------------------------------------------------------------------------------------------


async def read_all(connection: AsyncConnection, what: Versioned[V]) -> list[V]:
    newest = what.newest(what.versions.c.document).where(what.heads.c.deleted.is_(False)).order_by(what.head_id)
    return await read_documents(what, (await connection.execute(newest)).scalars().all())


def read_one(reading: Reading, what: Versioned[V], wanted_id: str) -> V:
    found = reading.rows(_newest_of(what), {"id": wanted_id})
    if not found:
        raise NotFound(f"there is no {what.kind} {wanted_id}")
    return what.document(found[0][0])


def read_version(reading: Reading, what: Versioned[V], wanted_id: str, version: int) -> V:
    found = reading.rows(_version_of(what), {"id": wanted_id, "version": min(version, INT64_MAX)})
    if not found:
        raise NotFound(f"there is no version {version} of a {what.kind} {wanted_id}")
    return what.document(found[0][0])


@cache
def _newest_of(what: Versioned[Any]) -> sa.Select[Any]:
    newest = what.newest(what.versions.c.document)
    return newest.where(what.head_id == sa.bindparam("id"), what.heads.c.deleted.is_(False))


@cache
def _version_of(what: Versioned[Any]) -> sa.Select[Any]:
    table = what.versions.c
    return sa.select(table.document).where(
        what.version_id == sa.bindparam("id"), table.version == sa.bindparam("version")
    )


async def read_versions(
    connection: AsyncConnection, what: Versioned[V], wanted_id: str, *, limit: int, offset: int
) -> list[V]:
    table = what.versions.c
    page = (
        sa.select(table.document)
        .where(what.version_id == wanted_id)
        .order_by(table.version.desc())
        .limit(limit)
        .offset(offset)
    )
    found = await read_documents(what, (await connection.execute(page)).scalars().all())
    if not found:
        known = await connection.execute(sa.select(what.head_id).where(what.head_id == wanted_id))
        if known.first() is None:
            raise NotFound(f"there is no {what.kind} {wanted_id}")
    return found


def read_number(reading: Reading) -> int:
    return int(reading.rows(_NUMBER, {})[0][0])


async def read_snapshot(connection: AsyncConnection) -> Snapshot:
    # One statement, so that the number and the documents are of the same moment on every database.
    all_rules = RULES.newest(
        sa.literal(RULES.kind).label("kind"), RULES.head_id.label("id"), rule_versions.c.document
    ).where(rules.c.deleted.is_(False))
    named_lists = WATCHLISTS.newest(
        sa.literal(WATCHLISTS.kind).label("kind"), WATCHLISTS.head_id.label("id"), watchlist_versions.c.document
    ).where(
        watchlists.c.deleted.is_(False),
        sa.exists().where(rule_watchlists.c.watchlist_id == watchlists.c.watchlist_id),
    )
    documents = sa.union_all(all_rules, named_lists).subquery()
    snapshot = (
        sa.select(ruleset_number.c.number, documents.c.kind, documents.c.document)
        .select_from(ruleset_number.outerjoin(documents, sa.true()))
        .order_by(documents.c.kind, documents.c.id)
    )
    rows = (await connection.execute(snapshot)).all()
    return Snapshot(
        rows[0].number,
        await read_documents(RULES, [row.document for row in rows if row.kind == RULES.kind]),
        await read_documents(WATCHLISTS, [row.document for row in rows if row.kind == WATCHLISTS.kind]),
    )


async def read_documents(what: Versioned[V], raws: Sequence[Mapping[str, Any]]) -> list[V]:
    found: list[V] = []
    for start in range(0, len(raws), _AT_ONCE):
        found += [what.document(raw) for raw in raws[start : start + _AT_ONCE]]
        await asyncio.sleep(0)
    return found


# -- changing ---------------------------------------------------------------------------------------------------------


async def save_rule(connection: AsyncConnection, rule: Rule, change: Change, most: int | None = None) -> Rule:
    stored = await save_version(connection, RULES, rule, change, most)
    await _name_watchlists(connection, stored.id, _named_by(stored) if stored.enabled else [])
    await raise_ruleset_number(connection)
    return stored


async def delete_rule(connection: AsyncConnection, rule_id: str, change: Change) -> None:
    await delete_head(connection, RULES, rule_id, change)
    await _name_watchlists(connection, rule_id, [])
    await raise_ruleset_number(connection)


async def save_watchlist(
    connection: AsyncConnection, watchlist: Watchlist, change: Change, most: int | None = None
) -> Watchlist:
    stored = await save_version(connection, WATCHLISTS, watchlist, change, most)
    if await _rules_that_name(connection, stored.id):
        await raise_ruleset_number(connection)
    return stored


async def delete_watchlist(connection: AsyncConnection, watchlist_id: str, change: Change) -> None:
    known = await delete_head(connection, WATCHLISTS, watchlist_id, change)
    naming = await _rules_that_name(connection, watchlist_id)
    own = [rule_id for rule_id, owner in naming if owner == known.owner]
    if own:
        some = ", ".join(own[:3]) + (f" and {len(own) - 3} more" if len(own) > 3 else "")
        raise VersionConflict(f"the watchlist {watchlist_id} is named by enabled rules: {some}")
    if naming and known.shared:  # once it is not, the rules of others are not asked any more
        raise VersionConflict(f"the watchlist {watchlist_id} is named by {len(naming)} enabled rules of others")


async def save_version(
    connection: AsyncConnection, what: Versioned[V], document: V, change: Change, most: int | None = None
) -> V:
    """Begins with the lock."""
    await _lock(connection)
    head = await _head(connection, what, document.id)
    before: dict[str, Any] = {}
    if head is None:
        if document.version != 1:
            raise VersionConflict(f"there is no {what.kind} {document.id} for version {document.version} to follow")
        await _check_quota(connection, what, document.owner, most)
        row = {
            what.head_id.name: document.id,
            "version": 1,
            "created_at": document.created_at,
            "deleted": False,
            "owner": document.owner,
        }
        await connection.execute(sa.insert(what.heads), row)
    else:
        if document.version == 1:
            # An id that was deleted stays taken: alerts and versions of it are still there, and speak of what it was.
            raise VersionConflict(f"there is or was a {what.kind} {document.id} already")
        if head.deleted or document.version != head.version + 1:
            raise VersionConflict(
                f"version {document.version} of {what.kind} {document.id} does not follow the stored one"
            )
        document = document.model_copy(update={"created_at": head.created_at, "owner": head.owner})
        before = _content(what.document(head.document))
        await connection.execute(
            sa.update(what.heads).where(what.head_id == document.id).values(version=document.version)
        )
    row = {what.version_id.name: document.id, "version": document.version, "document": document.model_dump(mode="json")}
    await connection.execute(sa.insert(what.versions), row)
    action: AuditAction = "create" if head is None else "change"
    await _write_audit(connection, what, document, action, change, _differences(before, _content(document)))
    return document


async def _check_quota(connection: AsyncConnection, what: Versioned[V], owner: str, most: int | None) -> None:
    """Behind the lock, so that nobody else creates one meanwhile."""
    if most is None:
        return
    heads = what.heads.c
    mine = sa.select(sa.func.count()).select_from(what.heads).where(heads.owner == owner, heads.deleted.is_(False))
    if (await connection.execute(mine)).scalar_one() >= most:
        raise QuotaReached(f"there are {most} {what.kind}s already, which is as many as a user may have")


async def delete_head(connection: AsyncConnection, what: Versioned[V], wanted_id: str, change: Change) -> V:
    """What it was. Begins with the lock; the versions stay."""
    await _lock(connection)
    known = await connection.run_sync(lambda near: read_one(CoreReading(near), what, wanted_id))
    await connection.execute(sa.update(what.heads).where(what.head_id == wanted_id).values(deleted=True))
    await _write_audit(connection, what, known, "delete", change, _differences(_content(known), {}))
    return known


async def _head(connection: AsyncConnection, what: Versioned[V], wanted_id: str) -> sa.Row[Any] | None:
    head = what.newest(
        what.heads.c.version,
        what.heads.c.created_at,
        what.heads.c.deleted,
        what.heads.c.owner,
        what.versions.c.document,
    ).where(what.head_id == wanted_id)
    found: sa.Row[Any] | None = (await connection.execute(head)).one_or_none()
    return found


def _named_by(rule: Rule) -> list[str]:
    return sorted(named_watchlists(*rule.spec().conditions))


async def _name_watchlists(connection: AsyncConnection, rule_id: str, named: list[str]) -> None:
    await connection.execute(sa.delete(rule_watchlists).where(rule_watchlists.c.rule_id == rule_id))
    if named:
        rows = [{"rule_id": rule_id, "watchlist_id": watchlist_id} for watchlist_id in named]
        await connection.execute(sa.insert(rule_watchlists), rows)


async def _rules_that_name(connection: AsyncConnection, watchlist_id: str) -> list[tuple[str, str]]:
    """The enabled ones, each with its owner."""
    table = rule_watchlists.c
    naming = (
        sa.select(table.rule_id, rules.c.owner)
        .join(rules, rules.c.rule_id == table.rule_id)
        .where(table.watchlist_id == watchlist_id)
        .order_by(table.rule_id)
    )
    return [(row.rule_id, row.owner) for row in await connection.execute(naming)]


async def _lock(connection: AsyncConnection) -> None:
    await connection.execute(sa.select(ruleset_number.c.number).with_for_update())


async def raise_ruleset_number(connection: AsyncConnection) -> None:
    await connection.execute(sa.update(ruleset_number).values(number=ruleset_number.c.number + 1))


# -- the audit log ----------------------------------------------------------------------------------------------------


def _content(document: Rule | Watchlist | Toplist) -> dict[str, Any]:
    """What its author wrote."""
    return {key: value for key, value in document.model_dump(mode="json").items() if key not in _OF_THE_MACHINE}


def _differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The fields that differ, before and after; of thousands of symbols those that went, and those that came."""
    fields = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    was, now = ({name: side[name] for name in fields if name in side} for side in (before, after))
    if "symbols" in was and "symbols" in now:
        gone, come = set(was["symbols"]), set(now["symbols"])
        was["symbols"] = [symbol for symbol in was["symbols"] if symbol not in come]
        now["symbols"] = [symbol for symbol in now["symbols"] if symbol not in gone]
    return {"before": was, "after": now}


async def _write_audit(
    connection: AsyncConnection,
    what: Versioned[V],
    subject: V,
    action: AuditAction,
    change: Change,
    detail: dict[str, Any],
) -> None:
    row = {
        "at_ns": change.at_ns,
        "actor": change.actor,
        "action": action,
        "kind": what.kind,
        "subject": subject.id,
        "version": subject.version,
        "detail": detail,
    }
    await connection.execute(sa.insert(audit_log), row)


async def read_audit(connection: AsyncConnection, query: AuditQuery) -> list[AuditEntry]:
    table = audit_log.c
    newest = sa.select(audit_log).order_by(table.entry.desc()).limit(page_size(query.limit))
    if query.kind is not None:
        newest = newest.where(table.kind == query.kind)
    if query.subject is not None:
        newest = newest.where(table.subject == query.subject)
    if query.since_ns is not None:
        newest = newest.where(table.at_ns >= int64(query.since_ns))
    if query.before is not None:
        newest = newest.where(table.entry < int64(query.before))
    return [_audit_entry(row) for row in (await connection.execute(newest)).mappings()]


def _audit_entry(row: Mapping[Any, Any]) -> AuditEntry:
    columns = dict(row)
    detail = columns.pop("detail")
    return AuditEntry(**columns, before=detail["before"], after=detail["after"])


async def expire_audit(connection: AsyncConnection, now_ns: int) -> int:
    oldest_ns = now_ns - AUDIT_DAYS * DAY_S * SECOND_NS
    expired = await connection.execute(sa.delete(audit_log).where(audit_log.c.at_ns < oldest_ns))
    return expired.rowcount
