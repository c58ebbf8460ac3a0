"""The frames that clients get of toplists: made once, in the toplists role, and passed on as they are."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from tapewatch.documents import known, rfc3339
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import F64, I64
from tapewatch.engine.toplists import MARKS, ListEvent, marks


class Rows:
    """A board as frames are made of it. A row that it lacks is unknown."""

    def __init__(self, board: BoardRows) -> None:
        self.board = board
        self._row = {name: row for row, name in enumerate(board.metrics)}
        self._unknown = np.full(len(board.symbols), np.nan)
        self._stale, self._halted = marks(*map(self.of, MARKS), covered=board.covered)

    def of(self, metric: str) -> F64:
        row = self._row.get(metric)
        return self._unknown if row is None else self.board.values[row]

    def rankings(self, metric: str, symbols: I64, columns: Sequence[str]) -> list[dict[str, Any]]:
        """The places of a list from the first on."""
        facts = [self.of(name)[symbols].tolist() for name in columns]
        places = zip(
            symbols.tolist(),
            self.of(metric)[symbols].tolist(),
            self._stale[symbols].tolist(),
            self._halted[symbols].tolist(),
            zip(*facts, strict=True) if facts else [()] * len(symbols),
            strict=True,
        )
        return [
            {
                "symbol": self.board.symbols[i],
                "rank": place,
                "value": value,
                "metadata": dict(zip(columns, map(known, of_symbol), strict=True)),
                "stale": stale,
                "halted": halted,
            }
            for place, (i, value, stale, halted, of_symbol) in enumerate(places, start=1)
        ]


def toplist_frame(head: Mapping[str, Any], rows: Rows, symbols: I64, columns: Sequence[str], *, missing: int) -> bytes:
    """A ``toplist_update``; `head` names the list and its ``metric``. `symbols` are places on the board, in the list's
    order.
    """
    board = rows.board
    data = {
        **head,
        "session": board.session,
        "timestamp": rfc3339(board.ts_ns),
        "rankings": rows.rankings(head["metric"], symbols, columns),
        **({"partitions_missing": missing} if missing else {}),
    }
    return msgspec.json.encode({"type": "toplist_update", "data": data})


def event_frame(toplist_id: str, title: str, events: Sequence[ListEvent], board: BoardRows) -> bytes:
    """A ``toplist_event`` of a user's list."""
    data = {
        "toplist_id": toplist_id,
        "toplist_type": "user",
        "title": title,
        "session": board.session,
        "timestamp": rfc3339(board.ts_ns),
        "events": [
            {"kind": event.kind, "symbol": event.symbol, "rank": event.rank, "rank_before": event.before}
            for event in events
        ],
    }
    return msgspec.json.encode({"type": "toplist_event", "data": data})
