"""Where prices stood: samples of the last price by the clock, for change over N minutes.

Three rings. One sample a second reaches back five minutes, one every five seconds an hour, one a minute four hours. A
sample taken at second S is the last price of prints before S. A ring is made when somebody first wants it, and is then
constant in size (for 10,000 symbols 24, 58 and 19 MB); what lies before it is unknown.
"""

from dataclasses import dataclass, field

import numpy as np

from tapewatch.engine.columns import F64, SECOND_NS
from tapewatch.engine.frozen import Carried

GRAINS_S = {5: 1, 60: 5, 240: 60}
"""How far a ring reaches back, in minutes, and the distance of its samples."""


def reach_of(minutes: int) -> int:
    """The reach of the ring that knows the price so many minutes ago; ValueError if none reaches so far."""
    for reach in GRAINS_S:
        if minutes <= reach:
            return reach
    raise ValueError(f"no prices are kept for {minutes} minutes")


@dataclass(slots=True)
class _Ring:
    grain_s: int
    samples: F64
    """Shape (rows, capacity)."""
    newest: int | None = None
    """The newest sample, in grains since the epoch."""


@dataclass(slots=True)
class PriceHistory:
    capacity: int
    _rings: dict[int, _Ring] = field(default_factory=dict)

    def keep(self, reach: int) -> None:
        """Sample from now on for this reach, one of `GRAINS_S`."""
        if reach not in self._rings:
            rows = reach * 60 // GRAINS_S[reach] + 2
            self._rings[reach] = _Ring(GRAINS_S[reach], np.full((rows, self.capacity), np.nan))

    def __bool__(self) -> bool:
        return bool(self._rings)

    def sample(self, second: int, price: F64) -> None:
        """Record `price` (shape (capacity,)) for every second up to `second`: nothing traded since the last sample but
        what `price` holds, or the caller would have sampled before.
        """
        for ring in self._rings.values():
            rows, newest = len(ring.samples), second // ring.grain_s
            since = (second - 1) // ring.grain_s if ring.newest is None else ring.newest
            for s in range(max(since, newest - rows) + 1, newest + 1):
                ring.samples[s % rows] = price
            ring.newest = newest

    def ago(self, ts_ns: int, minutes: int) -> F64:
        """The price `minutes` before `ts_ns`, that instant rounded down to the ring's grain; NaN where unknown."""
        ring = self._rings.get(reach_of(minutes))
        if ring is None:
            return np.full(self.capacity, np.nan)
        second = ts_ns // SECOND_NS - minutes * 60
        prices: F64 = ring.samples[second // ring.grain_s % len(ring.samples)]
        return prices

    def replace(self, symbol: int, since_ns: int, until_ns: int, *, wrong: float, right: float) -> None:
        """The print at `since_ns`, the last until `until_ns`, was not `wrong` but `right`: mend the samples that took
        it. NaN in `right` stands for the price before the print.
        """
        for ring in self._rings.values():
            if ring.newest is None:
                continue
            rows, grain_ns = len(ring.samples), ring.grain_s * SECOND_NS
            last = min(ring.newest, until_ns // grain_ns)
            first = max(since_ns // grain_ns + 1, ring.newest - rows + 2)
            price = ring.samples[(first - 1) % rows, symbol] if np.isnan(right) else right
            for row in (s % rows for s in range(first, last + 1)):
                if ring.samples[row, symbol] == wrong:
                    ring.samples[row, symbol] = price

    def resize(self, capacity: int) -> None:
        for ring in self._rings.values():
            grown = np.full((len(ring.samples), capacity), np.nan)
            grown[:, : self.capacity] = ring.samples
            ring.samples = grown
        self.capacity = capacity


HISTORY_CARRIED = (Carried(PriceHistory), Carried(_Ring))
