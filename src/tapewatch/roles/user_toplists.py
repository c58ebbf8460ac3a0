"""Users' toplists in the toplists role: which there are, their rankings over each board, and what happened in them.

It reads the store and never writes to it. What it keeps in hot state is a copy for other programs, which expires.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import msgspec

from tapewatch.documents import Watchlist
from tapewatch.engine.board import BoardRows
from tapewatch.engine.rules.tree import Attribute, InWatchlist, walk
from tapewatch.engine.toplists import RankedBy, Surroundings, UserRankings, list_events
from tapewatch.errors import NotFound, Unavailable
from tapewatch.patience import patiently
from tapewatch.ports import Bus, Clock, HotState, Ranked, Store
from tapewatch.telemetry import ERRORS_TOTAL
from tapewatch.toplist_documents import Toplist
from tapewatch.toplist_frames import Rows, event_frame, toplist_frame

CHANGES_CHANNEL = "toplists.changed"
LOOK_AGAIN_S = 5.0
"""The store is asked for changes so often by itself: a notice can be lost."""
RANKED = 500
"""Symbols of a list that are kept in hot state."""
SHOWN = 50
"""Symbols of a list that clients are sent, and among which events are looked for."""
_RANKING_TTL_S, _CONFIG_TTL_S = 300.0, 3_600.0
_CONFIG_AGAIN = 240
"""Configurations are put into hot state again after so many looks, long before they expire."""
_LABELS_AGAIN = 120
"""So it is with what the reference data say of symbols."""

_NOTHING = InWatchlist("")
"""True for no symbol."""

T = TypeVar("T")


def ranking_key(toplist: Toplist) -> str:
    """Where the ranking stands in hot state."""
    return f"toplist:user:{toplist.owner}:{toplist.id}"


def config_key(toplist_id: str) -> str:
    return f"toplist:config:{toplist_id}"


def _as_owner_may(toplist: Toplist, watchlists: Mapping[str, Watchlist]) -> RankedBy:
    """What it ranks; nothing while it names a watchlist of another's that is not shared any more."""
    named = [watchlists[name] for name in toplist.watchlists if name in watchlists]
    if all(watchlist.may_be_named_by(toplist.owner) for watchlist in named):
        return toplist.ranked_by
    return replace(toplist.ranked_by, where=_NOTHING)


@dataclass(frozen=True, slots=True)
class _Known:
    """The enabled lists, ready to be ranked."""

    lists: tuple[Toplist, ...]
    rankings: UserRankings
    reads: tuple[str, ...]


class UserToplists:
    """`follow` keeps the lists current; `rank` ranks all of them over a board."""

    def __init__(self, *, store: Store, bus: Bus, hot: HotState, clock: Clock) -> None:
        self._store, self._bus, self._hot, self._clock = store, bus, hot, clock
        self._number = -1
        self._looks = 0
        self._lists: tuple[Toplist, ...] = ()
        self._around = Surroundings()
        self._ranked_by: list[RankedBy] = []
        self._known = _Known((), UserRankings(()), ())
        self._before: dict[str, tuple[int, tuple[str, ...]]] = {}
        """Of each list that tells events: its version, and the symbols that it showed last."""
        self._looking = asyncio.Lock()

    @property
    def reads(self) -> tuple[str, ...]:
        """The rows of the board that the lists need."""
        return self._known.reads

    async def follow(self) -> None:
        """Until the bus closes."""
        notices = self._bus.listen(CHANGES_CHANNEL)
        await self._look()
        async with asyncio.TaskGroup() as tasks:
            looking = tasks.create_task(self._look_again(), name="toplists look")
            async for _ in notices:
                await self._look()
            looking.cancel()

    async def _look_again(self) -> None:
        while True:
            await self._clock.sleep(LOOK_AGAIN_S)
            await self._look()

    async def _look(self) -> None:
        """Take what has changed in the store."""
        async with self._looking:
            number = await self._ask(self._store.toplists_number)
            changed = number != self._number
            if changed:
                await self._take(tuple(one for one in await self._ask(self._store.toplists) if one.enabled))
                self._number = number
            watchlists = await self._watchlists()
            around = await self._surroundings({name: frozenset(found.symbols) for name, found in watchlists.items()})
            ranked_by = [_as_owner_may(one, watchlists) for one in self._lists]
            if changed or around != self._around or ranked_by != self._ranked_by:
                self._around, self._ranked_by = around, ranked_by
                reads = dict.fromkeys(name for one in self._lists for name in one.reads)
                rankings = UserRankings(ranked_by, around)
                self._known = _Known(self._lists, rankings, tuple(reads))
            if changed or self._looks % _CONFIG_AGAIN == 0:
                await self._show_configs()
            self._looks += 1

    async def _ask(self, read: Callable[[], Awaitable[T]]) -> T:
        return await patiently(read, clock=self._clock, where="toplists.look")

    async def _take(self, lists: tuple[Toplist, ...]) -> None:
        gone = {ranking_key(one) for one in self._lists} - {ranking_key(one) for one in lists}
        self._lists = lists
        told = {one.id for one in lists if one.alerts}
        self._before = {toplist_id: known for toplist_id, known in self._before.items() if toplist_id in told}
        try:
            for key in gone:
                await self._hot.rank(key, [], ttl_s=_RANKING_TTL_S)
        except Unavailable:  # it expires by itself
            ERRORS_TOTAL.labels(where="toplists.hot").inc()

    async def _watchlists(self) -> dict[str, Watchlist]:
        """By id, those that the lists name and that are there."""
        found: dict[str, Watchlist] = {}
        for watchlist_id in dict.fromkeys(name for one in self._lists for name in one.watchlists):
            with suppress(NotFound):
                found[watchlist_id] = await self._ask(partial(self._store.watchlist, watchlist_id))
        return found

    async def _surroundings(self, watchlists: Mapping[str, frozenset[str]]) -> Surroundings:
        """What the lists ask for beside the board, as far as they ask."""
        wheres = [one.ranked_by.where for one in self._lists]
        attributes = {
            node.name
            for where in wheres
            if where is not None
            for node in walk(where)
            if isinstance(node, Attribute) and node.name != "symbol"
        }
        labels: dict[str, Mapping[str, str]] = {
            name: texts for name, texts in self._around.labels.items() if name in attributes
        }
        if attributes - labels.keys() or (attributes and self._looks % _LABELS_AGAIN == 0):
            securities = await self._ask(self._store.securities)
            labels = {
                name: {one.symbol: text for one in securities if (text := getattr(one, name))} for name in attributes
            }
        return Surroundings(labels=labels, watchlists=watchlists)

    async def _show_configs(self) -> None:
        configs = {config_key(one.id): msgspec.json.encode(one.model_dump(mode="json")) for one in self._lists}
        try:
            if configs:
                await self._hot.put(configs, ttl_s=_CONFIG_TTL_S)
        except Unavailable:
            ERRORS_TOTAL.labels(where="toplists.hot").inc()

    # -- each board ---------------------------------------------------------------------------------------------------

    async def rank(self, board: BoardRows, rows: Rows, *, missing: int) -> None:
        """Rank all lists over `board`, which `rows` are of; `missing` partitions are not on it. Rankings go to
        hot state, frames and events onto the channel; in between, whatever else runs in this process has its turn.
        """
        known = self._known
        if not known.lists:
            return
        rankings = known.rankings.rank(board, limit=RANKED)
        for toplist, ranking in zip(known.lists, rankings, strict=True):
            metric = toplist.ranked_by.metric
            values = rows.of(metric)[ranking.symbols].tolist()
            names = [board.symbols[i] for i in ranking.symbols.tolist()]
            await self._hot.rank(ranking_key(toplist), list(map(Ranked, names, values)), ttl_s=_RANKING_TTL_S)
            head = {
                "toplist_id": toplist.id,
                "toplist_type": "user",
                "title": toplist.name,
                "version": toplist.version,
                "metric": metric,
                "columns": toplist.shown,
                "total": ranking.total,
            }
            shown = ranking.symbols[:SHOWN]
            await self._bus.notify("toplists.updated", toplist_frame(head, rows, shown, toplist.shown, missing=missing))
            if toplist.alerts:
                await self._tell(toplist, tuple(names[:SHOWN]), board)
            await asyncio.sleep(0)  # alerts of the same scan go first

    async def _tell(self, toplist: Toplist, now: tuple[str, ...], board: BoardRows) -> None:
        """What happened since the ranking before; nothing after a change of the list, which is then another one."""
        version, before = self._before.get(toplist.id, (0, ()))
        self._before[toplist.id] = (toplist.version, now)
        if version != toplist.version:
            return
        events = list_events(before, now, jump_ranks=toplist.jump_ranks)
        if events:
            await self._bus.notify("toplists.updated", event_frame(toplist.id, toplist.name, events, board))
