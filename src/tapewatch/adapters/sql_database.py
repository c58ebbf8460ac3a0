"""What the store asks of a database, beyond the SQL that all of them know."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.errors import TapewatchError

T = TypeVar("T")

Query: TypeAlias = sa.Select[Any] | sa.CompoundSelect[Any]


class NotAtOnce(Exception):
    """It takes longer than the event loop may wait."""


class Reading(Protocol):
    """A transaction that reads."""

    @property
    def dialect(self) -> str:
        """``sqlite`` or ``postgresql``."""
        ...

    def rows(self, query: Query, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        """What it finds, with these values for its parameters; a sequence for one that expands. Queries are constants
        of their modules: what a database makes of one is made once and kept for as long as the query is there.
        """
        ...


@dataclass(frozen=True, slots=True)
class CoreReading:
    """`Reading` on a connection of Core's."""

    connection: sa.Connection

    @property
    def dialect(self) -> str:
        return self.connection.dialect.name

    def rows(self, query: Query, values: Mapping[str, Any]) -> Sequence[Sequence[Any]]:
        return self.connection.execute(query, values).all()


class Database(Protocol):
    @property
    def failures(self) -> tuple[type[Exception], ...]:
        """The exceptions that `translated` may know."""
        ...

    def write(self) -> AbstractAsyncContextManager[AsyncConnection]:
        """A transaction that may write. It is committed, durably, where the block ends."""
        ...

    def read(self) -> AbstractAsyncContextManager[AsyncConnection]: ...

    def read_at_once(self, read: Callable[[Reading], T]) -> T:
        """What `read` finds in one transaction, before anything else happens on the event loop. `NotAtOnce` if that
        would hold it up; then nothing has happened.
        """
        ...

    def bounded(self, connection: AsyncConnection, seconds: float) -> AbstractAsyncContextManager[None]:
        """Statements within the block are ended by the database after so long, which is one of `failures`."""
        ...

    async def upgrade(self) -> None: ...

    async def replace(
        self,
        connection: AsyncConnection,
        table: sa.Table,
        rows: Sequence[tuple[Any, ...]],
        *,
        unless_greater: str | None = None,
    ) -> None:
        """Insert many rows, or replace them by the primary key, no key twice, in its order; with `unless_greater` a
        stored row stays where it has more in this column.
        """
        ...

    async def drop_chunks(self, connection: AsyncConnection, oldest_ns: Mapping[str, int]) -> bool:
        """Forget what is older than this in each of these tables, a chunk of time at once; False if the tables have no
        chunks.
        """
        ...

    def translated(self, error: Exception) -> TapewatchError | None:
        """The error that tells the caller what to do; None for a mistake in our own statements or rows."""
        ...

    async def close(self) -> None: ...
