"""Trading days and sessions, from a table that the caller brings.

This module never asks for the time and knows no holiday: it answers for an instant which session it falls in. All
edges of sessions fall on whole minutes, so a minute belongs to one session.
"""

from dataclasses import dataclass
from enum import IntEnum
from hashlib import blake2b

import numpy as np

from tapewatch.engine.columns import I64, MINUTE_NS


class Session(IntEnum):
    CLOSED = 0
    PRE = 1
    REGULAR = 2
    POST = 3


SESSION_NAMES = ("closed", "pre", "regular", "post")


class Phase(IntEnum):
    """What sale conditions may depend on: the session, with the minute of the open told apart."""

    CLOSED = 0
    PRE = 1
    OPENING = 2
    REGULAR = 3
    POST = 4


@dataclass(frozen=True, slots=True)
class TradingDays:
    """Consecutive trading days; each array has shape (days,), nanoseconds UTC, and
    pre_ns < open_ns < close_ns < post_ns < the next day's pre_ns.
    """

    pre_ns: I64
    open_ns: I64
    close_ns: I64
    post_ns: I64

    def __post_init__(self) -> None:
        edges = self._edges()
        if len(edges) and (np.any(np.diff(edges) <= 0) or np.any(edges % MINUTE_NS)):
            raise ValueError("trading days must ascend, with sessions on whole minutes")

    def _edges(self) -> I64:
        return np.column_stack([self.pre_ns, self.open_ns, self.close_ns, self.post_ns]).reshape(-1).astype(np.int64)

    def trade_day(self, ts_ns: I64) -> I64:
        """Index of the day to which trades at these instants belong: from 20:00 on it is the next trading day, so the
        night, a weekend and a holiday count to the session that follows them. len(days) after the last known one.
        """
        return np.searchsorted(self.post_ns, ts_ns, side="right").astype(np.int64)

    def digest(self, count: int) -> str:
        """Of the first so many days, and of whether there are so many."""
        known = self._edges()[: 4 * count]
        return blake2b(known.tobytes() + str(len(known) < 4 * count).encode(), digest_size=16).hexdigest()

    def at(self, ts_ns: int) -> "SessionAt":
        """The session of an instant, and from when until when it runs."""
        edges = self._edges()
        passed = int(np.searchsorted(edges, ts_ns, side="right"))
        session = Session(passed % 4)
        day = (passed - 1) // 4 if session else passed // 4
        return SessionAt(
            session=session,
            day=day,
            start_ns=int(edges[passed - 1]) if passed else _BEFORE,
            end_ns=int(edges[passed]) if passed < len(edges) else _AFTER,
        )


_BEFORE = -(2**62)
_AFTER = 2**62


@dataclass(frozen=True, slots=True)
class SessionAt:
    session: Session
    day: int
    """Index of the trading day; while closed, that of the next one."""
    start_ns: int
    end_ns: int

    def phase(self, minute: int) -> Phase:
        if self.session is Session.REGULAR:
            return Phase.OPENING if minute * MINUTE_NS == self.start_ns else Phase.REGULAR
        return {Session.CLOSED: Phase.CLOSED, Session.PRE: Phase.PRE, Session.POST: Phase.POST}[self.session]
