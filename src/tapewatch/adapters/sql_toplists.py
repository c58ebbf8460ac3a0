"""Users' toplists in SQL, with all of their versions; on a connection of the caller's.

Owns the statements. Their versions and their lines in the audit log are written by `sql_rules`, whose lock makes
changes come one after the other, so that limits hold in every process.
"""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters import sql_rules
from tapewatch.adapters.sql_rules import Change, Versioned
from tapewatch.adapters.sql_tables import toplist_configs, toplist_versions
from tapewatch.engine.metrics import PUBLISHED, is_row
from tapewatch.errors import VersionConflict
from tapewatch.ports import MAX_SHOWN_METRICS, MAX_TOPLISTS, MAX_TOPLISTS_OF_ONE
from tapewatch.toplist_documents import Toplist

TOPLISTS = Versioned("toplist", Toplist, toplist_configs, toplist_versions)
_ALWAYS = frozenset(PUBLISHED)
_HERE = toplist_configs.c.deleted.is_(False)


async def read_toplists(connection: AsyncConnection, owner: str | None) -> list[Toplist]:
    newest = TOPLISTS.newest(toplist_versions.c.document).where(_HERE).order_by(TOPLISTS.head_id)
    if owner is not None:
        newest = newest.where(toplist_configs.c.owner == owner)
    return await sql_rules.read_documents(TOPLISTS, (await connection.execute(newest)).scalars().all())


async def read_number(connection: AsyncConnection) -> int:
    # A change writes one more version, a deletion marks one more head.
    deleted = sa.case((_HERE, 0), else_=1)
    number = sa.select(sa.func.coalesce(sa.func.sum(toplist_configs.c.version + deleted), 0))
    return int((await connection.execute(number)).scalar_one())


async def read_shown(connection: AsyncConnection) -> tuple[str, ...]:
    of_each = (await connection.execute(sa.select(toplist_configs.c.shows).where(_HERE))).scalars()
    return tuple(sorted({name for shows in of_each for name in shows if is_row(name)} - _ALWAYS))


async def save_toplist(connection: AsyncConnection, toplist: Toplist, change: Change) -> Toplist:
    before = await _shows_of(connection, toplist.id)
    stored = await sql_rules.save_version(connection, TOPLISTS, toplist, change)
    shows = sorted(set(stored.reads) - _ALWAYS) if stored.enabled else []
    update = sa.update(toplist_configs).where(TOPLISTS.head_id == stored.id)
    await connection.execute(update.values(owner=stored.owner, shows=shows))
    if stored.version == 1:
        await _check_counts(connection, stored.owner)
    if shows != before:
        if shows and len(await read_shown(connection)) > MAX_SHOWN_METRICS:
            raise VersionConflict(
                f"toplists would ask for more than {MAX_SHOWN_METRICS} metrics beside those that are always shown"
            )
        await sql_rules.raise_ruleset_number(connection)
    return stored


async def delete_toplist(connection: AsyncConnection, toplist_id: str, change: Change) -> None:
    await sql_rules.delete_head(connection, TOPLISTS, toplist_id, change)
    if await _shows_of(connection, toplist_id):
        await sql_rules.raise_ruleset_number(connection)


async def _shows_of(connection: AsyncConnection, toplist_id: str) -> list[str]:
    known = sa.select(toplist_configs.c.shows).where(TOPLISTS.head_id == toplist_id)
    return list((await connection.execute(known)).scalar_one_or_none() or [])


async def _check_counts(connection: AsyncConnection, owner: str) -> None:
    count = sa.select(sa.func.count()).select_from(toplist_configs).where(_HERE)
    if (await connection.execute(count.where(toplist_configs.c.owner == owner))).scalar_one() > MAX_TOPLISTS_OF_ONE:
        raise VersionConflict(f"{owner} has {MAX_TOPLISTS_OF_ONE} toplists, and no more are allowed")
    if (await connection.execute(count)).scalar_one() > MAX_TOPLISTS:
        raise VersionConflict(f"there are {MAX_TOPLISTS} toplists, and no more are allowed")
