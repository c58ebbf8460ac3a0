"""toplists: boards into ranked lists, to hot state and the channel `toplists.updated`.

A notice on that channel is the frame that clients get, so it is encoded once for all of them.
"""

import asyncio
from dataclasses import replace

import numpy as np

from tapewatch.engine.board import BoardRows, merge_boards
from tapewatch.engine.columns import I64, SECOND_NS
from tapewatch.engine.toplists import MARKS, SYSTEM_TOPLISTS, rank
from tapewatch.errors import Unavailable
from tapewatch.patience import read_on
from tapewatch.ports import Bus, Clock, HotState, Ranked, Store
from tapewatch.roles.user_toplists import UserToplists
from tapewatch.telemetry import ERRORS_TOTAL
from tapewatch.toplist_frames import Rows, toplist_frame

CHANNEL = "toplists.updated"
STALE_NS = 3 * SECOND_NS
_TTL_S = 300.0
_RANKED = 500
"""Symbols kept in hot state of each list; two that are the ends of one metric share a ranking."""
_BY_KEY = {
    key: [toplist for toplist in SYSTEM_TOPLISTS.values() if toplist.key == key]
    for key in dict.fromkeys(toplist.key for toplist in SYSTEM_TOPLISTS.values())
}
_SHOWN = 50
_COLUMNS = ("price", "change_pct_day", "volume_day")
_METRICS = tuple(dict.fromkeys([*_COLUMNS, *MARKS, *(toplist.metric for toplist in SYSTEM_TOPLISTS.values())]))


class ToplistsRole:
    """Ranks the newest scan of which the boards of all partitions are there, and leaves older ones out: a role that
    falls behind shows what is, not what was. A partition that stays behind for longer than `STALE_NS` does not hold the
    others up: the lists go on without its symbols, and say how many partitions are missing.

    Without a store there are no users' lists.
    """

    def __init__(
        self, *, bus: Bus, hot: HotState, clock: Clock, partitions: int = 1, store: Store | None = None
    ) -> None:
        self._bus, self._hot, self._clock, self._partitions = bus, hot, clock, partitions
        self._users = None if store is None else UserToplists(store=store, bus=bus, hot=hot, clock=clock)
        self._boards: dict[int, list[BoardRows]] = {}
        """By partition, oldest first: those that may still be ranked, not older than `STALE_NS` behind the newest."""
        self._came = asyncio.Event()
        self._symbols: tuple[str, ...] = ()
        self._by_name = np.zeros(0, np.intp)
        self._first_ns = 0
        self.missing = 0
        """Partitions whose symbols the newest lists lack."""
        self.ranked_ns = 0
        """Event time of the newest board whose lists are out."""

    async def run(self) -> None:
        """Until the bus closes."""
        async with asyncio.TaskGroup() as tasks:
            if self._users is not None:
                tasks.create_task(self._users.follow(), name="toplists of users")
            ranking = tasks.create_task(self._rank_newest(), name="toplists ranking")
            async with asyncio.TaskGroup() as reading:
                for partition in range(self._partitions):
                    reading.create_task(self._follow(partition), name=f"toplists board {partition}")
            ranking.cancel()

    async def _follow(self, partition: int) -> None:
        async for _, entry in read_on(
            self._bus, f"board:{partition}", clock=self._clock, where="toplists.read", newest_only=True
        ):
            if isinstance(entry, BoardRows):
                self._first_ns = self._first_ns or entry.ts_ns
                # A scanner that begins again may show a scan once more, or an older one.
                kept = [b for b in self._boards.get(partition, ()) if 0 < entry.ts_ns - b.ts_ns < STALE_NS]
                self._boards[partition] = [*kept, entry]
                self._came.set()

    async def _rank_newest(self) -> None:
        while True:
            await self._came.wait()
            self._came.clear()
            boards = self._of_one_scan()
            if boards:
                self.missing = self._partitions - len(boards)
                try:
                    await self._rank(self._in_order(merge_boards(boards)))
                except Unavailable:  # the next board comes in a second
                    ERRORS_TOTAL.labels(where="toplists.rank").inc()

    def _of_one_scan(self) -> list[BoardRows]:
        """The boards of the newest scan that every partition that keeps up has reached, unless they were ranked."""
        newest_ns = max(kept[-1].ts_ns for kept in self._boards.values())
        if len(self._boards) < self._partitions and newest_ns < self._first_ns + STALE_NS:
            return []
        keep_up = {p: kept for p, kept in sorted(self._boards.items()) if kept[-1].ts_ns > newest_ns - STALE_NS}
        scans = set.intersection(*({board.ts_ns for board in kept} for kept in keep_up.values()))
        ts_ns = max(scans, default=0)
        if (ts_ns, len(keep_up)) <= (self.ranked_ns, self._partitions - self.missing):
            return []
        self._boards = {p: [board for board in kept if board.ts_ns >= ts_ns] for p, kept in keep_up.items()}
        return [kept[0] for kept in self._boards.values()]

    def _in_order(self, board: BoardRows) -> BoardRows:
        """The metrics that lists read, unknown where the board lacks one, and symbols by name: then equal values stand
        in the same order here, in hot state, and with any number of partitions.
        """
        if board.symbols != self._symbols:
            self._symbols = board.symbols
            self._by_name = np.array(sorted(range(len(board.symbols)), key=board.symbols.__getitem__), np.intp)
        metrics = tuple(dict.fromkeys([*_METRICS, *(self._users.reads if self._users is not None else ())]))
        row_of = {name: row for row, name in enumerate(board.metrics)}
        places = [place for place, name in enumerate(metrics) if name in row_of]
        values = np.full((len(metrics), len(self._by_name)), np.nan)
        kept = np.array([row_of[metrics[place]] for place in places], np.intp)
        values[places] = board.values[np.ix_(kept, self._by_name)]
        return replace(
            board, symbols=tuple(board.symbols[i] for i in self._by_name.tolist()), metrics=metrics, values=values
        )

    async def _rank(self, board: BoardRows) -> None:
        rows = Rows(board)
        tops: dict[str, I64] = {}
        for key, lists in _BY_KEY.items():
            values = rows.of(lists[0].metric)
            for toplist in lists:
                tops[toplist.id] = rank(values, descending=toplist.descending, limit=_RANKED)
            kept = np.unique(np.concatenate([tops[toplist.id] for toplist in lists]))
            names = [board.symbols[i] for i in kept.tolist()]
            await self._hot.rank(key, list(map(Ranked, names, values[kept].tolist())), ttl_s=_TTL_S)
            await asyncio.sleep(0)  # alerts of the same scan go first
        for toplist in SYSTEM_TOPLISTS.values():
            head = {
                "toplist_id": toplist.id,
                "toplist_type": "system",
                "title": toplist.title,
                "metric": toplist.metric,
            }
            top = tops[toplist.id][:_SHOWN]
            await self._bus.notify(CHANNEL, toplist_frame(head, rows, top, _COLUMNS, missing=self.missing))
            await asyncio.sleep(0)
        if self._users is not None:
            await self._users.rank(board, rows, missing=self.missing)
        self.ranked_ns = board.ts_ns
