"""toplists: boards into ranked lists, to hot state and the channel `toplists.updated`.

A notice on that channel is the frame that clients get, so it is encoded once for all of them.
"""

import asyncio

import msgspec
import numpy as np

from tapewatch.documents import known, rfc3339
from tapewatch.engine.board import BoardRows, merge_boards
from tapewatch.engine.toplists import SYSTEM_TOPLISTS, Toplist, rank
from tapewatch.ports import Bus, HotState, Ranked

CHANNEL = "toplists.updated"
_TTL_S = 300.0
_RANKED = 500
"""Symbols kept in hot state from each end of a ranking."""
_SHOWN = 50
_COLUMNS = ("price", "change_pct_day", "volume_day")


class ToplistsRole:
    def __init__(self, *, bus: Bus, hot: HotState, partitions: int = 1) -> None:
        self._bus, self._hot, self._partitions = bus, hot, partitions
        self._boards: dict[int, BoardRows] = {}

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            for partition in range(self._partitions):
                tasks.create_task(self._follow(partition), name=f"toplists board {partition}")

    async def _follow(self, partition: int) -> None:
        async for _, entry in self._bus.read(f"board:{partition}"):
            if isinstance(entry, BoardRows):
                self._boards[partition] = entry
                boards = list(self._boards.values())
                if len(boards) == self._partitions and len({board.ts_ns for board in boards}) == 1:
                    await self._rank(merge_boards(boards))

    async def _rank(self, board: BoardRows) -> None:
        row = {name: i for i, name in enumerate(board.metrics)}
        for key, metric in {toplist.key: toplist.metric for toplist in SYSTEM_TOPLISTS.values()}.items():
            values = board.values[row[metric]]
            ends = [rank(values, descending=descending, limit=_RANKED) for descending in (True, False)]
            both = np.unique(np.concatenate(ends))
            ranking = [Ranked(board.symbols[i], v) for i, v in zip(both.tolist(), values[both].tolist(), strict=True)]
            await self._hot.rank(key, ranking, ttl_s=_TTL_S)
        for toplist in SYSTEM_TOPLISTS.values():
            await self._bus.notify(CHANNEL, _frame(toplist, board, row))


def _frame(toplist: Toplist, board: BoardRows, row: dict[str, int]) -> bytes:
    values = board.values[row[toplist.metric]]
    top = rank(values, descending=toplist.descending, limit=_SHOWN)
    columns = [board.values[row[name], top].tolist() for name in _COLUMNS]
    rankings = [
        {
            "symbol": board.symbols[i],
            "rank": place,
            "value": value,
            "metadata": dict(zip(_COLUMNS, map(known, facts), strict=True)),
        }
        for place, (i, value, facts) in enumerate(
            zip(top.tolist(), values[top].tolist(), zip(*columns, strict=True), strict=True), start=1
        )
    ]
    return msgspec.json.encode(
        {
            "type": "toplist_update",
            "data": {
                "toplist_id": toplist.id,
                "toplist_type": "system",
                "title": toplist.title,
                "metric": toplist.metric,
                "session": board.session,
                "timestamp": rfc3339(board.ts_ns),
                "rankings": rankings,
            },
        }
    )
