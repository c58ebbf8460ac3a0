"""Halts and resumes: who is halted, since when, and how often today."""

from dataclasses import dataclass

import numpy as np

from tapewatch.engine.columns import F64, I64, U8, Kind
from tapewatch.engine.symbols import Index

NEVER_TODAY = -1


@dataclass(slots=True)
class Halts:
    """Each of shape (capacity,)."""

    halted: F64
    count: F64
    """Halts of the running day that have been seen."""
    halted_ns: I64
    """When the newest of them began; `NEVER_TODAY` without one."""
    resumed_ns: I64
    """When the newest resume of the running day ended a halt."""

    @classmethod
    def of(cls, capacity: int) -> "Halts":
        return cls(np.zeros(capacity), np.zeros(capacity), *np.full((2, capacity), NEVER_TODAY))

    def book(self, kind: U8, symbol: Index, ts_ns: I64, *, day_start_ns: int) -> None:
        """A halt of who is halted already is none, and so is the resume of who is not."""
        for at in np.flatnonzero((kind == Kind.HALT) | (kind == Kind.RESUME)).tolist():
            who, stops = symbol[at], kind[at] == Kind.HALT
            if bool(self.halted[who]) == stops:
                continue
            self.halted[who] = stops
            if ts_ns[at] >= day_start_ns:
                (self.halted_ns if stops else self.resumed_ns)[who] = ts_ns[at]
                self.count[who] += stops

    def begin_day(self) -> None:
        """Who is halted stays so."""
        self.count.fill(0.0)
        self.halted_ns.fill(NEVER_TODAY)
        self.resumed_ns.fill(NEVER_TODAY)

    def resize(self, capacity: int) -> None:
        grown, count = Halts.of(capacity), len(self.halted)
        for name in ("halted", "count", "halted_ns", "resumed_ns"):
            getattr(grown, name)[:count] = getattr(self, name)
            setattr(self, name, getattr(grown, name))
