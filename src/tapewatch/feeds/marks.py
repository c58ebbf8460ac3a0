"""A feed's time: the highest time of its rows so far, and a mark wherever it passes a tenth of a second.

A single time that cannot be true must not take the clock with it, because time never goes back. Nothing here reads a
clock; what passed while nothing arrived is told by the caller.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from tapewatch.engine.columns import I64, MINUTE_NS, ROW_COLUMNS, SECOND_NS, Batch, Bool, pulse

PULSE_NS = SECOND_NS // 10
"""Marks stand where time passes a tenth of a second."""
JUMP_NS = 3600 * SECOND_NS
"""A row this far ahead of its neighbours has a broken clock."""


def spikes(ts_ns: I64, *, before_ns: int, next_ns: int) -> Bool:
    """Shape (n,): rows that jump ahead by over an hour and are followed by one that is back. Taken at its word, one
    would make the rest of the tape late. Rows side by side with the same time are one message and judged together.

    `before_ns` is the time of the tape before these rows (negative: it begins here), `next_ns` that of the row after
    them.
    """
    if not len(ts_ns) or ts_ns.max() - min(ts_ns.min(), next_ns, before_ns if before_ns >= 0 else next_ns) <= JUMP_NS:
        return np.zeros(len(ts_ns), np.bool_)
    first = np.flatnonzero(np.diff(ts_ns, prepend=ts_ns[0] - 1))
    times = ts_ns[first]
    following = np.concatenate([times[1:], [next_ns]])
    previous = np.concatenate([[before_ns if before_ns >= 0 else following[0]], times[:-1]])
    ahead = (times - previous > JUMP_NS) & (times - following > JUMP_NS)
    if ahead.any():
        # A row in time between two late ones is ahead of both, but not of the tape.
        run = np.maximum.accumulate(np.concatenate([previous[:1], np.where(ahead, -1, times)[:-1]]))
        ahead &= times - run > JUMP_NS
    return np.repeat(ahead, np.diff(first, append=len(ts_ns)))


def first_after(rows: Batch, instant_ns: int) -> int | None:
    """The time of the first row that is newer than an instant: coverage that ended there begins again."""
    newer = rows.ts_ns > instant_ns
    return int(rows.ts_ns[int(np.argmax(newer))]) if newer.any() else None


class TapeTime:
    """The running maximum of the times of all rows so far; it depends on the rows alone."""

    def __init__(self) -> None:
        self.now_ns = -1
        """Negative until there is a row."""
        self.late = 0
        """Rows that were older than the tape when they came."""

    def mark(self, rows: Batch) -> Batch:
        """Put a mark before each row that takes time past a pulse; the watermark is rounded down to the pulse."""
        if not len(rows):
            return rows
        run = np.maximum.accumulate(np.maximum(rows.ts_ns, self.now_ns))
        self.late += int(np.count_nonzero(rows.ts_ns < run))
        cell = run // PULSE_NS
        at = np.flatnonzero(np.diff(cell, prepend=self.now_ns // PULSE_NS))
        self.now_ns = int(run[-1])
        return replace(rows, marks_row=at, marks_ns=cell[at] * PULSE_NS)

    def end(self) -> Batch:
        """A pulse two minutes after the last minute, so that everything closes."""
        return pulse((self.now_ns // MINUTE_NS + 2) * MINUTE_NS)


class LiveTime(TapeTime):
    """The time of rows that arrive one by one: the last of them is believed when the next agrees, and time goes on
    while nothing arrives.
    """

    def __init__(self) -> None:
        super().__init__()
        self._held: Batch | None = None
        """The newest message, over an hour ahead of all before: a night has passed, or its clock is broken."""

    def take(self, rows: Batch) -> tuple[Batch, Batch]:
        """Rows in the order of arrival, with marks, and those whose time cannot be true. A last message that jumps
        ahead stays here until the next rows tell.
        """
        if self._held is not None:
            held = self._held
            columns: dict[str, Any] = {
                name: np.concatenate([getattr(held, name), getattr(rows, name)]) for name in ROW_COLUMNS
            }
            rows, self._held = replace(rows, **columns), None
        if not len(rows):
            return rows, rows
        wild = spikes(rows.ts_ns, before_ns=self.now_ns, next_ns=int(rows.ts_ns[-1]))
        false, rows = rows.take(wild), rows.take(~wild)
        ts_ns = rows.ts_ns
        newest = int(np.flatnonzero(np.diff(ts_ns, prepend=ts_ns[0] - 1))[-1])
        run_ns = max(self.now_ns, int(ts_ns[:newest].max(initial=-1)))
        if 0 <= run_ns < int(ts_ns[-1]) - JUMP_NS:
            self._held = rows.take(np.arange(newest, len(rows)))
            rows = rows.take(np.arange(newest))
        return self.mark(rows), false

    def advance(self, passed_ns: int) -> Batch | None:
        """That much time went by without a row: a pulse if it passed a tenth of a second. None before the first row."""
        if self.now_ns < 0:
            return None
        cell = self.now_ns // PULSE_NS
        self.now_ns += passed_ns
        now = self.now_ns // PULSE_NS
        return pulse(now * PULSE_NS) if now > cell else None
