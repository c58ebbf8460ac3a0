"""parity: our one-minute bars against the provider's own, which come on `bars.vendor:{p}` where the feed has them.

A minute is compared when ours has been closed for a minute, so that the provider's revision half a minute later has
come. Differences change nothing; they are counted by field, with samples, so that the operator can ask why.
"""

import asyncio
from collections import Counter, deque
from typing import Any

import numpy as np

from tapewatch.documents import rfc3339
from tapewatch.engine.columns import F64, MINUTE_NS, Bars
from tapewatch.engine.symbols import SymbolTable
from tapewatch.patience import read_on
from tapewatch.ports import Bus, Clock

FIELDS = ("open", "high", "low", "close", "volume")
_MINUTES = 4
"""Minutes waiting for their comparison; older ones of a provider that is late are not compared."""
_SAMPLES = 10


class ParityRole:
    def __init__(self, *, bus: Bus, clock: Clock, partition: int = 0) -> None:
        self._bus, self._clock, self._partition = bus, clock, partition
        self._symbols = SymbolTable()
        self._ours: dict[int, F64] = {}
        self._theirs: dict[int, F64] = {}
        """Minute -> shape (len(FIELDS), capacity), NaN where there is no bar."""
        self.compared = self.equal = 0
        self.differing: Counter[str] = Counter()
        """By field; ``missing`` and ``extra`` are bars that only they or only we have."""
        self.samples: deque[str] = deque(maxlen=_SAMPLES)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._read(f"bars.vendor:{self._partition}", self._theirs))
            tasks.create_task(self._read(f"bars.finalized:{self._partition}", self._ours))

    async def _read(self, stream: str, into: dict[int, F64]) -> None:
        async for _, entry in read_on(self._bus, stream, clock=self._clock, where="parity.read"):
            if isinstance(entry, Bars) and len(entry):
                newest = self._keep(entry, into)
                if into is self._ours:
                    self._compare(before=newest)

    def describe(self) -> dict[str, Any]:
        """For people: what was compared, and how it differed."""
        return {
            "compared": self.compared,
            "equal": self.equal,
            "differing": dict(sorted(self.differing.items())),
            "samples": list(self.samples),
        }

    def _keep(self, bars: Bars, into: dict[int, F64]) -> int:
        symbol = self._symbols.translate(bars.symbols)[bars.symbol]
        values = np.stack([getattr(bars, name) for name in FIELDS])
        minutes = bars.ts_ns // MINUTE_NS
        for minute in np.unique(minutes).tolist():
            table = into.get(minute, np.zeros((len(FIELDS), 0)))
            if table.shape[1] < self._symbols.capacity:
                grown = np.full((len(FIELDS), self._symbols.capacity), np.nan)
                grown[:, : table.shape[1]] = table
                into[minute] = table = grown
            rows = minutes == minute
            table[:, symbol[rows]] = values[:, rows]
        for minute in sorted(into)[:-_MINUTES]:
            del into[minute]
        return int(minutes.max())

    def _compare(self, *, before: int) -> None:
        """All minutes before that one which both sides have."""
        for minute in [m for m in self._ours if m < before]:
            ours, theirs = self._ours.pop(minute), self._theirs.pop(minute, None)
            if theirs is not None:
                self._compare_minute(minute, ours, theirs)

    def _compare_minute(self, minute: int, ours: F64, theirs: F64) -> None:
        count = min(ours.shape[1], theirs.shape[1])
        ours, theirs = ours[:, :count], theirs[:, :count]
        we, they = ~np.isnan(ours[0]), ~np.isnan(theirs[0])
        both = we & they
        unequal = (ours != theirs) & both
        self.compared += int(np.count_nonzero(we | they))
        self.equal += int(np.count_nonzero(both & ~unequal.any(axis=0)))
        for name, count_of in (
            ("missing", np.count_nonzero(they & ~we)),
            ("extra", np.count_nonzero(we & ~they)),
            *zip(FIELDS, unequal.sum(axis=1), strict=True),
        ):
            if count_of:
                self.differing[name] += int(count_of)
        for symbol in np.flatnonzero((we != they) | unequal.any(axis=0))[:_SAMPLES].tolist():
            self.samples.append(self._told(symbol, minute, ours[:, symbol], theirs[:, symbol]))

    def _told(self, symbol: int, minute: int, ours: F64, theirs: F64) -> str:
        def bar(values: F64) -> str:
            return "none" if np.isnan(values[0]) else " ".join(f"{value:g}" for value in values)

        return f"{self._symbols.names[symbol]} {rfc3339(minute * MINUTE_NS)}: ours {bar(ours)}, theirs {bar(theirs)}"
