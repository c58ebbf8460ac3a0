"""The newest prints of each symbol that may set the last price: whether the newest one stands alone with its price."""

import numpy as np

from tapewatch.engine.columns import F64, I64
from tapewatch.engine.frozen import Carried
from tapewatch.engine.symbols import Index

OUTLIER_SHARE = 0.5
"""So far off, as a share of it, a print lies from one before it that it is doubtful."""
_KEPT = 3


class NewestPrints:
    """Rows are the newest print by time, the one before it, and the one before that; of equal times the later arrival
    is the newer. NaN and -1 where there is none. A late print takes its right place, so what is kept depends on the
    prints alone.
    """

    def __init__(self, capacity: int) -> None:
        self.price = np.full((_KEPT, capacity), np.nan)
        self.ts_ns = np.full((_KEPT, capacity), -1, np.int64)

    def add(self, at: Index, price: F64, ts_ns: I64, *, ordered: bool) -> None:
        """These prints came, in this order; `ordered` says that none is earlier than one that came before it."""
        if ordered:
            self._push(at, price, ts_ns)
        elif len(at):
            self._sort_in(at, price, ts_ns)

    def _push(self, at: Index, price: F64, ts_ns: I64) -> None:
        place = np.empty(self.price.shape[1], np.intp)
        rows = np.arange(len(at))
        rounds: list[Index] = []
        while len(rows) and len(rounds) < _KEPT:
            place[at[rows]] = rows  # of equal places numpy keeps the last
            last = place[at[rows]] == rows
            rounds.append(rows[last])
            rows = rows[~last]
        for newest in reversed(rounds):
            who = at[newest]
            for kept, new in ((self.price, price[newest]), (self.ts_ns, ts_ns[newest])):
                for row in range(_KEPT - 1, 0, -1):
                    kept[row, who] = kept[row - 1, who]
                kept[0, who] = new

    def _sort_in(self, at: Index, price: F64, ts_ns: I64) -> None:
        who = np.unique(at)
        # What is kept comes first, the oldest first: it arrived before.
        of = np.concatenate([who] * _KEPT + [at])
        prices = np.concatenate([self.price[::-1, who].ravel(), price])
        times = np.concatenate([self.ts_ns[::-1, who].ravel(), ts_ns])
        order = np.lexsort((times, of))
        newest = np.flatnonzero(np.diff(of[order], append=-1))
        for row in range(_KEPT):
            chosen = order[newest - row]
            self.price[row, who], self.ts_ns[row, who] = prices[chosen], times[chosen]

    def amend(self, symbol: int, *, was_ns: int, was: float, ts_ns: I64, price: F64) -> None:
        """The print at `was_ns` was withdrawn or corrected. `ts_ns` and `price` are the symbol's prints that can still
        be amended, as they stand now, in the order of arrival; what is kept here of older ones stands.
        """
        mine_ns, mine = self.ts_ns[::-1, symbol], self.price[::-1, symbol]
        told = ((mine_ns[:, None] == ts_ns) & (mine[:, None] == price)).any(axis=1)
        older = ~(told | ((mine_ns == was_ns) & (mine == was)))
        times, prices = np.concatenate([mine_ns[older], ts_ns]), np.concatenate([mine[older], price])
        newest = np.argsort(times, kind="stable")[::-1][:_KEPT]
        self.price[:, symbol], self.ts_ns[:, symbol] = np.nan, -1
        self.price[: len(newest), symbol], self.ts_ns[: len(newest), symbol] = prices[newest], times[newest]

    def outlier(self) -> F64:
        """1 where the newest print is far off both before it, else 0; NaN before the second. Shape (capacity,)."""
        newest, before, earlier = self.price
        far = [np.abs(newest - price) >= OUTLIER_SHARE * price for price in (before, earlier)]
        return np.where(np.isnan(before), np.nan, far[0] & (far[1] | np.isnan(earlier)))

    def resize(self, capacity: int) -> None:
        grown = NewestPrints(capacity)
        width = self.price.shape[1]
        grown.price[:, :width], grown.ts_ns[:, :width] = self.price, self.ts_ns
        self.__dict__.update(grown.__dict__)


NEWEST_CARRIED = (Carried(NewestPrints),)
