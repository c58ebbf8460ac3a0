"""Readers in SQL, on a connection of the caller's: who owns them, how far they came, and what they keep.

Owns the fence: `own` locks the reader's row until the transaction ends, so that whoever takes over waits for a write
that is under way and finds its effects, or makes it fail.
"""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.adapters.sql_statements import insert
from tapewatch.adapters.sql_tables import installation, reader_positions
from tapewatch.errors import LeaseLost
from tapewatch.ports import Position, Saved


async def take_over(connection: AsyncConnection, reader: str) -> Saved:
    table = reader_positions.c
    new = insert(connection, reader_positions).values(reader=reader, owner=1)
    owned = new.on_conflict_do_update(index_elements=[table.reader], set_={"owner": table.owner + 1}).returning(
        table.owner, table.epoch, table.sequence, table.state, table.state_epoch, table.state_sequence
    )
    row = (await connection.execute(owned)).one()
    if row.state is not None:
        return Saved(row.owner, Position(row.state_epoch, row.state_sequence), bytes(row.state))
    return Saved(row.owner, None if row.epoch is None else Position(row.epoch, row.sequence), None)


async def own(connection: AsyncConnection, reader: str, owner: int | None) -> None:
    """`LeaseLost` if the reader has another owner; None asks for nothing. First of what a transaction does."""
    if owner is None:
        return
    table = reader_positions.c
    locked = sa.select(table.owner).where(table.reader == reader).with_for_update(key_share=True)
    now = (await connection.execute(locked)).scalar_one_or_none()
    if now != owner:
        newer = "nobody yet" if now is None else f"owner {now}"
        raise LeaseLost(f"{reader} belongs to {newer}, not to owner {owner}")


async def save_position(connection: AsyncConnection, reader: str, position: Position | None) -> None:
    if position is None:
        return
    await _put(connection, reader, {"epoch": position.epoch, "sequence": position.sequence})


async def save_state(connection: AsyncConnection, reader: str, state: bytes, position: Position) -> None:
    epoch, sequence = position
    where = {"epoch": epoch, "sequence": sequence, "state_epoch": epoch, "state_sequence": sequence}
    await _put(connection, reader, {**where, "state": state})


async def read_position(connection: AsyncConnection, reader: str) -> Position | None:
    table = reader_positions.c
    found = await connection.execute(sa.select(table.epoch, table.sequence).where(table.reader == reader))
    row = found.one_or_none()
    return None if row is None or row.epoch is None else Position(row.epoch, row.sequence)


async def settle(connection: AsyncConnection, name: str, value: str) -> str:
    await connection.execute(insert(connection, installation).values(name=name, value=value).on_conflict_do_nothing())
    settled = sa.select(installation.c.value).where(installation.c.name == name)
    return str((await connection.execute(settled)).scalar_one())


async def _put(connection: AsyncConnection, reader: str, values: dict[str, int | bytes]) -> None:
    statement = insert(connection, reader_positions).values(reader=reader, **values)
    changed = {name: statement.excluded[name] for name in values}
    await connection.execute(statement.on_conflict_do_update(index_elements=[reader_positions.c.reader], set_=changed))
