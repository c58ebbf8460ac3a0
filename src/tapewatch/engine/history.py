"""Where prices stood: samples of the last price by the clock, for change over N minutes.

Two rings. One sample a second reaches back five minutes, one every five seconds reaches back an hour. A sample taken at
second S is the last price of prints before S. The rings are constant in size (82 MB for 10,000 symbols).
"""

import numpy as np

from tapewatch.engine.columns import F64, SECOND_NS

FINE_S, COARSE_S = 1, 5
_FINE_ROWS, _COARSE_ROWS = 302, 722


class PriceHistory:
    def __init__(self, capacity: int) -> None:
        self._fine = np.full((_FINE_ROWS, capacity), np.nan)
        self._coarse = np.full((_COARSE_ROWS, capacity), np.nan)
        self._second: int | None = None

    @property
    def next_ns(self) -> int:
        """When the next sample is due; at once before the first."""
        return 0 if self._second is None else (self._second + 1) * SECOND_NS

    def sample(self, second: int, price: F64) -> None:
        """Record `price` (shape (capacity,)) for every second up to `second`: nothing traded since the last sample but
        what `price` holds, or the caller would have sampled before.
        """
        since = second - 1 if self._second is None else self._second
        for s in range(max(since, second - _FINE_ROWS) + 1, second + 1):
            self._fine[s % _FINE_ROWS] = price
        first, last = since // COARSE_S, second // COARSE_S
        for s in range(max(first, last - _COARSE_ROWS) + 1, last + 1):
            self._coarse[s % _COARSE_ROWS] = price
        self._second = second

    def ago(self, ts_ns: int, minutes: int) -> F64:
        """The price `minutes` before `ts_ns`, that instant rounded down to the ring's grain; NaN where unknown."""
        second = ts_ns // SECOND_NS - minutes * 60
        if minutes <= 5:
            fine: F64 = self._fine[second % _FINE_ROWS]
            return fine
        coarse: F64 = self._coarse[second // COARSE_S % _COARSE_ROWS]
        return coarse

    def replace(self, symbol: int, since_ns: int, until_ns: int, *, wrong: float, right: float) -> None:
        """The print at `since_ns`, the last until `until_ns`, was not `wrong` but `right`: mend the samples that took
        it. NaN in `right` stands for the price before the print.
        """
        if self._second is None:
            return
        for ring, rows, grain in ((self._fine, _FINE_ROWS, FINE_S), (self._coarse, _COARSE_ROWS, COARSE_S)):
            last = min(self._second // grain, until_ns // (grain * SECOND_NS))
            first = max(since_ns // (grain * SECOND_NS) + 1, self._second // grain - rows + 2)
            price = ring[(first - 1) % rows, symbol] if np.isnan(right) else right
            for row in (s % rows for s in range(first, last + 1)):
                if ring[row, symbol] == wrong:
                    ring[row, symbol] = price

    def resize(self, capacity: int) -> None:
        for name in ("_fine", "_coarse"):
            old = getattr(self, name)
            grown = np.full((len(old), capacity), np.nan)
            grown[:, : old.shape[1]] = old
            setattr(self, name, grown)
