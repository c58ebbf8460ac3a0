"""The store in SQL: bars, alerts, rules, lists, reference data and readers' positions, durable when a call returns.

Owns which call is which transaction, and that the database's errors end here. It never retries (the caller waits and
does), never caches a row, and creates no table outside `upgrade`.

Statements are SQLAlchemy Core over the tables of `sql_tables`, and stand in the modules `sql_*`. What only one database
knows is behind `Database`, in `sqlite.py` and `postgres.py`. Short reads are functions of a `Reading`, which each
database gives in its own way.
"""

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from datetime import date
from functools import partial, wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import exc
from sqlalchemy.engine import URL, make_url
from sqlalchemy.ext.asyncio import AsyncConnection

from tapewatch.accounts.roles import Role
from tapewatch.accounts.users import ApiToken, Identity, Profile, SignIn, User
from tapewatch.adapters import (
    sql_accounts,
    sql_alerts,
    sql_bars,
    sql_deliveries,
    sql_marks,
    sql_once,
    sql_readers,
    sql_reference,
    sql_rules,
    sql_toplists,
)
from tapewatch.adapters.sql_database import CoreReading, Database, NotAtOnce, Reading
from tapewatch.adapters.sql_deliveries import CHANNELS, SUBSCRIPTIONS
from tapewatch.adapters.sql_rules import RULES, WATCHLISTS, Change
from tapewatch.adapters.sql_statements import page_size
from tapewatch.adapters.sql_tables import alert_history, bars_1d, bars_1m
from tapewatch.adapters.sqlite import SqliteDatabase
from tapewatch.clock import SystemClock
from tapewatch.delivery_documents import Channel, Delivery, DeliveryState, Subscription, Told
from tapewatch.documents import DAY_S, Alert, Rule, Security, Split, Watchlist
from tapewatch.engine.columns import SECOND_NS, Bars
from tapewatch.engine.daily import DailyBars
from tapewatch.errors import ConfigError, NotFound, TapewatchError, Unavailable
from tapewatch.ports import (
    ALERT_DAYS,
    BAR_DAYS,
    AccountsView,
    AlertKey,
    AlertMark,
    AlertQuery,
    AuditEntry,
    AuditQuery,
    Clock,
    DeliveryQuery,
    KeptAnswer,
    OnceState,
    Position,
    Saved,
    SecurityQuery,
    Snapshot,
)
from tapewatch.toplist_documents import Toplist

P = ParamSpec("P")
T = TypeVar("T")

EXPIRED_ROWS = 5_000
"""Rows of one transaction that forgets: others write between two of them."""
DAY_NS = DAY_S * SECOND_NS
QUERY_S = 2.0
"""How long a statement on history may take: people narrow it as they like, and others wait for the same disk."""
REPLICA_AWAY_S = 10.0
"""How long a replica that failed is left alone: each call would wait for it first."""

log = logging.getLogger(__name__)


def _whole(
    method: Callable[Concatenate["SqlStore", P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["SqlStore", P], Coroutine[Any, Any, T]]:
    """Run the call to its end even if the caller is cancelled, and translate the database's errors.

    A connection that is cancelled halfway through a statement keeps its locks until somebody collects it, and every
    other writer waits for it in vain.
    """

    @wraps(method)
    async def run(self: "SqlStore", /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._closed:
            raise Unavailable("the store is closed")
        task = asyncio.ensure_future(method(self, *args, **kwargs))
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        try:
            return await asyncio.shield(task)
        except self._database.failures as error:
            remedy = self._database.translated(error)
            if remedy is None:  # a broken invariant of ours, which must not look like the database's fault
                raise
            raise remedy from error

    return run


class SqlStore:
    """`Store` in a SQLite file or in TimescaleDB. `location` is a path, or a URL such as
    ``sqlite:///data/tapewatch.db`` or ``postgresql://user:password@host/database``; `clock` tells the audit log when
    something was changed. History (bars, alerts, the audit log) is read at `replica_url` while that one answers; it may
    be behind by what has not arrived there.
    """

    def __init__(self, location: str | Path, *, replica_url: str | None = None, clock: Clock | None = None) -> None:
        self._database: Database = _database(location)
        self._replica = None if replica_url is None else _database(replica_url)
        self._replica_away_until_s = -math.inf
        if isinstance(self._replica, SqliteDatabase) or (self._replica and isinstance(self._database, SqliteDatabase)):
            raise ConfigError("a store in a file has no replica")
        self._clock = clock or SystemClock()
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    @_whole
    async def upgrade(self) -> None:
        await self._database.upgrade()

    @_whole
    async def take_over(self, reader: str) -> Saved:
        async with self._database.write() as connection:
            return await sql_readers.take_over(connection, reader)

    @_whole
    async def save_state(self, reader: str, state: bytes, *, position: Position, owner: int | None = None) -> None:
        async with self._database.write() as connection:
            await sql_readers.own(connection, reader, owner)
            await sql_readers.save_state(connection, reader, state, position)

    @_whole
    async def position(self, reader: str) -> Position | None:
        async with self._database.read() as connection:
            return await sql_readers.read_position(connection, reader)

    @_whole
    async def settle(self, name: str, value: str) -> str:
        async with self._database.write() as connection:
            return await sql_readers.settle(connection, name, value)

    @_whole
    async def save_bars(
        self, bars: Bars, *, reader: str, position: Position | None = None, owner: int | None = None
    ) -> None:
        rows = sql_bars.bar_rows(bars)
        async with self._database.write() as connection:
            await sql_readers.own(connection, reader, owner)
            await self._database.replace(connection, bars_1m, rows, unless_greater="revision")
            await sql_readers.save_position(connection, reader, position)

    async def bars(
        self, symbol: str, *, start_ns: int | None = None, end_ns: int | None = None, limit: int = 1000
    ) -> Bars:
        return await self._look_back(
            partial(sql_bars.read_bars, symbol=symbol, start_ns=start_ns, end_ns=end_ns, limit=limit)
        )

    @_whole
    async def save_alerts(
        self, alerts: Sequence[Alert], *, reader: str, position: Position | None = None, owner: int | None = None
    ) -> list[Alert]:
        async with self._database.write() as connection:
            await sql_readers.own(connection, reader, owner)
            new = await sql_alerts.save_alerts(connection, alerts)
            await sql_readers.save_position(connection, reader, position)
        return new

    @_whole
    async def annotate_alerts(
        self,
        symbol: str,
        *,
        since_ns: int,
        note: str,
        reader: str,
        position: Position | None = None,
        owner: int | None = None,
    ) -> list[Alert]:
        async with self._database.write() as connection:
            await sql_readers.own(connection, reader, owner)
            changed = await sql_alerts.annotate_alerts(connection, symbol, since_ns=since_ns, note=note)
            await sql_readers.save_position(connection, reader, position)
        return changed

    async def alerts(self, query: AlertQuery) -> list[Alert]:
        return await self._look_back(partial(sql_alerts.read_alerts, query=query))

    async def alert_keys(self, query: AlertQuery) -> list[AlertKey]:
        return await self._look_back(partial(sql_alerts.read_alert_keys, query=query))

    async def alerts_of(self, alert_ids: Sequence[str]) -> list[Alert]:
        return await self._look_back(partial(sql_alerts.read_alerts_of, alert_ids=alert_ids))

    async def alert(self, alert_id: str) -> Alert:
        return await self._look_back(partial(sql_alerts.read_alert, alert_id=alert_id))

    @_whole
    async def mark_alert(
        self,
        user_id: str,
        alert_id: str,
        *,
        at_ns: int,
        acknowledged: bool | None = None,
        note: str | None = None,
        version: int | None = None,
    ) -> AlertMark:
        async with self._database.write() as connection:
            return await sql_marks.mark_alert(
                connection,
                user_id,
                alert_id,
                at_ns=at_ns,
                acknowledged=acknowledged,
                note=note,
                version=version,
            )

    async def alert_marks(self, user_id: str, alert_ids: Sequence[str]) -> dict[str, AlertMark]:
        return await self._look(partial(sql_marks.read_marks, user_id=user_id, alert_ids=alert_ids))

    @_whole
    async def begin_once(self, user_id: str, key: str, digest: bytes, *, now_ns: int) -> OnceState:
        async with self._database.write() as connection:
            return await sql_once.begin(connection, user_id, key, digest, now_ns=now_ns)

    @_whole
    async def end_once(self, user_id: str, key: str, answer: KeptAnswer | None) -> None:
        async with self._database.write() as connection:
            await sql_once.end(connection, user_id, key, answer)

    @_whole
    async def rules(self) -> Snapshot:
        async with self._database.read() as connection:
            return await sql_rules.read_snapshot(connection)

    async def ruleset_number(self) -> int:
        return await self._look(sql_rules.read_number)

    async def rule(self, rule_id: str, version: int | None = None) -> Rule:
        if version is None:
            return await self._look(partial(sql_rules.read_one, what=RULES, wanted_id=rule_id))
        return await self._look(partial(sql_rules.read_version, what=RULES, wanted_id=rule_id, version=version))

    @_whole
    async def rule_versions(self, rule_id: str, *, limit: int = 100, offset: int = 0) -> list[Rule]:
        page = {"limit": page_size(limit), "offset": page_size(offset)}
        async with self._database.read() as connection:
            return await sql_rules.read_versions(connection, RULES, rule_id, **page)

    @_whole
    async def save_rule(self, rule: Rule, *, actor: str = "local", most: int | None = None) -> Rule:
        async with self._database.write() as connection:
            return await sql_rules.save_rule(connection, rule, self._change(actor), most)

    @_whole
    async def delete_rule(self, rule_id: str, *, actor: str = "local") -> None:
        async with self._database.write() as connection:
            await sql_rules.delete_rule(connection, rule_id, self._change(actor))

    @_whole
    async def watchlists(self) -> list[Watchlist]:
        async with self._database.read() as connection:
            return await sql_rules.read_all(connection, WATCHLISTS)

    async def watchlist(self, watchlist_id: str) -> Watchlist:
        return await self._look(partial(sql_rules.read_one, what=WATCHLISTS, wanted_id=watchlist_id))

    @_whole
    async def save_watchlist(self, watchlist: Watchlist, *, actor: str = "local", most: int | None = None) -> Watchlist:
        async with self._database.write() as connection:
            return await sql_rules.save_watchlist(connection, watchlist, self._change(actor), most)

    @_whole
    async def delete_watchlist(self, watchlist_id: str, *, actor: str = "local") -> None:
        async with self._database.write() as connection:
            await sql_rules.delete_watchlist(connection, watchlist_id, self._change(actor))

    @_whole
    async def toplists(self, *, owner: str | None = None) -> list[Toplist]:
        async with self._database.read() as connection:
            return await sql_toplists.read_toplists(connection, owner)

    @_whole
    async def toplists_number(self) -> int:
        async with self._database.read() as connection:
            return await sql_toplists.read_number(connection)

    async def toplist(self, toplist_id: str) -> Toplist:
        return await self._look(partial(sql_rules.read_one, what=sql_toplists.TOPLISTS, wanted_id=toplist_id))

    @_whole
    async def shown_metrics(self) -> tuple[str, ...]:
        async with self._database.read() as connection:
            return await sql_toplists.read_shown(connection)

    @_whole
    async def save_toplist(self, toplist: Toplist, *, actor: str = "local") -> Toplist:
        async with self._database.write() as connection:
            return await sql_toplists.save_toplist(connection, toplist, self._change(actor))

    @_whole
    async def delete_toplist(self, toplist_id: str, *, actor: str = "local") -> None:
        async with self._database.write() as connection:
            await sql_toplists.delete_toplist(connection, toplist_id, self._change(actor))

    @_whole
    async def audit(self, query: AuditQuery) -> list[AuditEntry]:
        return await self._read_history(partial(sql_rules.read_audit, query=query))

    @_whole
    async def expire(self, now_ns: int, *, tape_ns: int | None = None) -> int:
        async with self._database.write() as connection:
            expired = await sql_rules.expire_audit(connection, now_ns)
            await sql_once.expire(connection, now_ns)
            await sql_deliveries.expire(connection, now_ns)
            if tape_ns is None:
                return expired
            bars_ns, alerts_ns = tape_ns - BAR_DAYS * DAY_NS, tape_ns - ALERT_DAYS * DAY_NS
            dropped = await self._database.drop_chunks(
                connection, {bars_1m.name: bars_ns, alert_history.name: alerts_ns}
            )
        if not dropped:
            await self._forget_rows(bars_ns=bars_ns, alerts_ns=alerts_ns)
        await self._forget(partial(sql_marks.delete_some_marks, oldest_ns=alerts_ns))
        return expired

    @_whole
    async def save_securities(self, securities: Sequence[Security]) -> None:
        async with self._database.write() as connection:
            await sql_reference.save_securities(connection, securities)

    @_whole
    async def securities(self) -> list[Security]:
        async with self._database.read() as connection:
            return await sql_reference.read_securities(connection)

    async def securities_of(self, symbols: Sequence[str]) -> list[Security]:
        return await self._look(partial(sql_reference.read_securities_of, names=symbols))

    @_whole
    async def find_securities(self, query: SecurityQuery) -> list[str]:
        async with self._database.read() as connection:
            return await sql_reference.find_securities(connection, query)

    @_whole
    async def save_splits(self, splits: Sequence[Split]) -> None:
        async with self._database.write() as connection:
            await sql_reference.save_splits(connection, splits)

    @_whole
    async def splits(self, *, start: date | None = None) -> list[Split]:
        async with self._database.read() as connection:
            return await sql_reference.read_splits(connection, start)

    @_whole
    async def save_daily_bars(self, bars: DailyBars) -> None:
        bars.check()
        async with self._database.write() as connection:
            await self._database.replace(connection, bars_1d, sql_reference.daily_rows(bars))

    @_whole
    async def daily_bars(
        self, symbols: Sequence[str], *, start: date | None = None, end: date | None = None
    ) -> DailyBars:
        async with self._database.read() as connection:
            return await sql_reference.read_daily_bars(connection, symbols, start, end)

    @_whole
    async def daily_days(self, *, start: date | None = None) -> list[date]:
        async with self._database.read() as connection:
            return await sql_reference.read_daily_days(connection, start)

    @_whole
    async def accounts_number(self) -> int:
        async with self._database.read() as connection:
            return await sql_accounts.read_number(connection)

    @_whole
    async def accounts(self, now_ns: int) -> AccountsView:
        async with self._database.read() as connection:
            return await sql_accounts.read_accounts(connection, now_ns)

    @_whole
    async def user(self, user_id: str) -> User:
        async with self._database.read() as connection:
            return await sql_accounts.read_user(connection, user_id)

    @_whole
    async def user_named(self, name: str) -> User:
        async with self._database.read() as connection:
            return await sql_accounts.read_user_named(connection, name)

    @_whole
    async def user_of(self, identity: Identity) -> User:
        async with self._database.read() as connection:
            return await sql_accounts.read_user_of(connection, identity)

    @_whole
    async def add_user(self, user: User, *, identity: Identity | None = None, actor: str = "local") -> User:
        async with self._database.write() as connection:
            return await sql_accounts.add_user(connection, user, identity, self._change(actor))

    @_whole
    async def link_identity(self, user_id: str, identity: Identity, *, actor: str = "local") -> None:
        async with self._database.write() as connection:
            await sql_accounts.link_identity(connection, user_id, identity, self._change(actor))

    @_whole
    async def change_user(
        self, user_id: str, *, role: Role | None = None, disabled: bool | None = None, actor: str = "local"
    ) -> User:
        async with self._database.write() as connection:
            return await sql_accounts.change_user(
                connection, user_id, self._change(actor), role=role, disabled=disabled
            )

    @_whole
    async def delete_user(self, user_id: str, *, actor: str = "local") -> None:
        async with self._database.write() as connection:
            await sql_accounts.delete_user(connection, user_id, self._change(actor))

    @_whole
    async def set_password(
        self, user_id: str, password_hash: str, *, keep_session: str | None = None, actor: str = "local"
    ) -> User:
        async with self._database.write() as connection:
            return await sql_accounts.set_password(
                connection, user_id, password_hash, keep_session, self._change(actor)
            )

    @_whole
    async def rehash_password(self, user_id: str, before: str, after: str) -> None:
        async with self._database.write() as connection:
            await sql_accounts.rehash_password(connection, user_id, before, after)

    @_whole
    async def save_profile(self, user_id: str, profile: Profile, *, actor: str = "local") -> User:
        async with self._database.write() as connection:
            return await sql_accounts.save_profile(connection, user_id, profile, self._change(actor))

    @_whole
    async def begin_session(self, session: SignIn) -> None:
        async with self._database.write() as connection:
            await sql_accounts.begin_session(connection, session, Change(session.user_id, session.created_at_ns))

    @_whole
    async def renew_session(self, session_id: str, *, refresh_hash: str, next_hash: str, now_ns: int) -> SignIn:
        async with self._database.write() as connection:  # which commits the end of a session, too
            renewed = await sql_accounts.renew_session(
                connection, session_id, refresh_hash=refresh_hash, next_hash=next_hash, now_ns=now_ns
            )
        if renewed is None:
            raise NotFound("this session has ended")
        return renewed

    @_whole
    async def end_session(self, session_id: str, *, actor: str = "local") -> None:
        async with self._database.write() as connection:
            await sql_accounts.end_session(connection, session_id, self._change(actor))

    @_whole
    async def add_token(self, token: ApiToken, *, actor: str = "local") -> ApiToken:
        async with self._database.write() as connection:
            return await sql_accounts.add_token(connection, token, self._change(actor))

    @_whole
    async def tokens(self, user_id: str | None = None) -> list[ApiToken]:
        async with self._database.read() as connection:
            return await sql_accounts.read_tokens(connection, user_id)

    @_whole
    async def revoke_token(self, token_id: str, *, user_id: str | None = None, actor: str = "local") -> None:
        async with self._database.write() as connection:
            await sql_accounts.revoke_token(connection, token_id, user_id, self._change(actor))

    @_whole
    async def note_tokens_used(self, used: Mapping[str, int]) -> None:
        async with self._database.write() as connection:
            await sql_accounts.note_tokens_used(connection, used)

    @_whole
    async def subscriptions(self, owner: str | None = None) -> list[Subscription]:
        async with self._database.read() as connection:
            return await sql_deliveries.read_all(connection, SUBSCRIPTIONS, owner)

    @_whole
    async def subscription(self, subscription_id: str) -> Subscription:
        async with self._database.read() as connection:
            return await sql_deliveries.read_one(connection, SUBSCRIPTIONS, subscription_id)

    @_whole
    async def save_subscription(self, subscription: Subscription, *, actor: str = "local") -> Subscription:
        async with self._database.write() as connection:
            return await sql_deliveries.save(connection, SUBSCRIPTIONS, subscription, self._change(actor))

    @_whole
    async def delete_subscription(self, subscription_id: str, *, actor: str = "local") -> None:
        async with self._database.write() as connection:
            await sql_deliveries.delete(connection, SUBSCRIPTIONS, subscription_id, self._change(actor))

    @_whole
    async def channels(self, owner: str | None = None) -> list[Channel]:
        async with self._database.read() as connection:
            return await sql_deliveries.read_all(connection, CHANNELS, owner)

    @_whole
    async def channel(self, channel_id: str) -> Channel:
        async with self._database.read() as connection:
            return await sql_deliveries.read_one(connection, CHANNELS, channel_id)

    @_whole
    async def save_channel(self, channel: Channel, *, actor: str = "local") -> Channel:
        async with self._database.write() as connection:
            return await sql_deliveries.save(connection, CHANNELS, channel, self._change(actor))

    @_whole
    async def delete_channel(self, channel_id: str, *, actor: str = "local") -> None:
        async with self._database.write() as connection:
            await sql_deliveries.delete_channel(connection, channel_id, self._change(actor))

    @_whole
    async def routing_number(self) -> int:
        async with self._database.read() as connection:
            return await sql_deliveries.read_routing_number(connection)

    @_whole
    async def save_deliveries(
        self,
        deliveries: Sequence[Delivery],
        *,
        reader: str,
        position: Position | None = None,
        owner: int | None = None,
    ) -> list[Delivery]:
        async with self._database.write() as connection:
            await sql_readers.own(connection, reader, owner)
            new = await sql_deliveries.save_deliveries(connection, deliveries)
            await sql_readers.save_position(connection, reader, position)
        return new

    @_whole
    async def told_since(self, since_ns: int) -> list[Told]:
        async with self._database.read() as connection:
            return await sql_deliveries.read_told(connection, since_ns)

    @_whole
    async def due_channels(self, now_ns: int) -> list[str]:
        async with self._database.read() as connection:
            return await sql_deliveries.read_due_channels(connection, now_ns)

    @_whole
    async def waiting_deliveries(
        self, channel_id: str, *, state: DeliveryState, due_ns: int | None = None, limit: int = 100
    ) -> list[Delivery]:
        async with self._database.read() as connection:
            return await sql_deliveries.read_waiting(connection, channel_id, state, due_ns, limit)

    @_whole
    async def count_waiting(self, channel_ids: Sequence[str]) -> dict[str, int]:
        async with self._database.read() as connection:
            return await sql_deliveries.count_waiting(connection, channel_ids)

    @_whole
    async def fold_deliveries(self, digest: Delivery, folded: Sequence[str]) -> bool:
        async with self._database.write() as connection:
            return await sql_deliveries.fold(connection, digest, folded)

    @_whole
    async def claim_delivery(self, delivery: Delivery, *, until_ns: int) -> bool:
        async with self._database.write() as connection:
            return await sql_deliveries.claim(connection, delivery, until_ns)

    @_whole
    async def finish_delivery(
        self, delivery_id: str, *, state: DeliveryState, at_ns: int, error: str = "", next_try_ns: int = 0
    ) -> None:
        async with self._database.write() as connection:
            await sql_deliveries.finish(
                connection, delivery_id, state=state, at_ns=at_ns, error=error, next_try_ns=next_try_ns
            )

    @_whole
    async def deliveries(self, query: DeliveryQuery) -> list[Delivery]:
        async with self._database.read() as connection:
            return await sql_deliveries.read_deliveries(connection, query)

    @_whole
    async def delivery(self, delivery_id: str) -> Delivery:
        async with self._database.read() as connection:
            return await sql_deliveries.read_delivery(connection, delivery_id)

    @_whole
    async def replay_delivery(self, delivery_id: str, *, now_ns: int) -> Delivery:
        async with self._database.write() as connection:
            return await sql_deliveries.replay(connection, delivery_id, now_ns)

    async def close(self) -> None:
        """Refuse new calls, let the running ones end, and let go of the database."""
        self._closed = True
        while self._running:
            await asyncio.wait(self._running)
        await self._database.close()
        if self._replica is not None:
            await self._replica.close()

    async def _look(self, read: Callable[[Reading], T]) -> T:
        """A short read: on the event loop where the database can, else like every call."""
        try:
            return self._at_once(read)
        except NotAtOnce:
            return await self._look_beside(read)

    async def _look_back(self, read: Callable[[Reading], T]) -> T:
        """As `_look`, of history, which may take long."""
        try:
            return self._at_once(read)
        except NotAtOnce:
            return await self._look_back_beside(read)

    def _at_once(self, read: Callable[[Reading], T]) -> T:
        if self._closed:
            raise Unavailable("the store is closed")
        try:
            return self._database.read_at_once(read)
        except self._database.failures as error:
            remedy = self._database.translated(error)
            if remedy is None:
                raise
            raise remedy from error

    @_whole
    async def _look_beside(self, read: Callable[[Reading], T]) -> T:
        async with self._database.read() as connection:
            return await connection.run_sync(lambda near: read(CoreReading(near)))

    @_whole
    async def _look_back_beside(self, read: Callable[[Reading], T]) -> T:
        return await self._read_history(lambda connection: connection.run_sync(lambda near: read(CoreReading(near))))

    async def _read_history(self, read: Callable[[AsyncConnection], Awaitable[T]]) -> T:
        now_s = asyncio.get_running_loop().time()
        if self._replica is not None and now_s >= self._replica_away_until_s:
            try:
                async with self._replica.read() as connection, self._replica.bounded(connection, QUERY_S):
                    return await read(connection)
            except NotFound:
                pass  # it may be on its way there
            except ConfigError as error:
                self._leave_replica(error)
            except self._replica.failures as error:
                remedy = self._replica.translated(error)
                if remedy is None:
                    raise
                self._leave_replica(remedy)
        async with self._database.read() as connection, self._database.bounded(connection, QUERY_S):
            return await read(connection)

    def _leave_replica(self, why: TapewatchError) -> None:
        self._replica_away_until_s = asyncio.get_running_loop().time() + REPLICA_AWAY_S
        log.warning("history is read from the primary for %g s: %s", REPLICA_AWAY_S, why)

    def _change(self, actor: str) -> Change:
        return Change(actor, self._clock.now_ns())

    async def _forget_rows(self, *, bars_ns: int, alerts_ns: int) -> None:
        async with self._database.read() as connection:
            symbols = await sql_bars.symbols_with_bars_before(connection, bars_ns)
        for symbol in symbols:
            await self._forget(partial(sql_bars.delete_some_bars, symbol=symbol, oldest_ns=bars_ns))
        await self._forget(partial(sql_alerts.delete_some_alerts, oldest_ns=alerts_ns))

    async def _forget(self, delete_some: Callable[..., Awaitable[int]]) -> None:
        deleted = EXPIRED_ROWS
        while deleted == EXPIRED_ROWS:
            async with self._database.write() as connection:
                deleted = await delete_some(connection, limit=EXPIRED_ROWS)


def _database(location: str | Path) -> Database:
    url = _url(location)
    match url.get_backend_name():
        case "sqlite":
            return SqliteDatabase(url)
        case "postgresql":
            from tapewatch.adapters.postgres import PostgresDatabase  # its driver takes a while to load

            return PostgresDatabase(url)
        case other:
            raise ConfigError(f"the store cannot be in {other}: sqlite:///PATH or postgresql://USER@HOST/DATABASE")


def _url(location: str | Path) -> URL:
    if not isinstance(location, str) or "://" not in location:
        return URL.create("sqlite", database=str(location))
    try:
        return make_url(location)
    except (exc.ArgumentError, ValueError):  # the latter for a port; its text may hold a piece of the password
        raise ConfigError("the store's address is not a URL that a database could have") from None
