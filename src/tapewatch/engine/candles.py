"""Candles in columns: open, high, low, close, volume and the sums behind VWAP, for (row, symbol).

A row is a minute, or a session; the caller says which. Sums are accumulated print by print in the order of arrival
(`np.add.at`), so they do not depend on how the tape was cut into batches.

Open is the earliest print by time, equal times by arrival; close is the latest, equal times by arrival. A print that
comes late therefore takes its right place.
"""

from dataclasses import dataclass

import numpy as np

from tapewatch.engine.columns import F64, I64, U16, Bool
from tapewatch.engine.conditions import PRICE, Effect
from tapewatch.engine.symbols import Index

NEVER = np.iinfo(np.int64).max
_VWAP = int(Effect.HIGH_LOW | Effect.VOLUME)


@dataclass(frozen=True, slots=True)
class Prints:
    """A run of prints in the order of arrival, and the positions of those that may set or count in something."""

    ts_ns: I64
    price: F64
    size: F64
    value: F64
    """price * size, dollars."""
    opens: Index
    extremes: Index
    lasts: Index
    volumes: Index
    weighed: Index
    """Those that count in the VWAP: high/low and volume."""
    ordered: bool
    """No print of the run is earlier than one that arrived before it, in this run or any before."""

    def take(self, positions: Index, effect: U16) -> "Prints":
        """Some of the run's prints; `effect` is the whole run's."""
        return Prints.of(
            ts_ns=self.ts_ns[positions],
            price=self.price[positions],
            size=self.size[positions],
            effect=effect[positions],
            ordered=self.ordered,
        )

    @classmethod
    def of(cls, *, ts_ns: I64, price: F64, size: F64, effect: U16, ordered: bool) -> "Prints":
        volumes = np.flatnonzero(effect & Effect.VOLUME)
        price_bits = effect & PRICE
        priced = np.flatnonzero(price_bits)
        if np.all(price_bits[priced] == PRICE):
            opens = extremes = lasts = priced
        else:
            opens = np.flatnonzero(effect & Effect.OPEN)
            extremes = np.flatnonzero(effect & Effect.HIGH_LOW)
            lasts = np.flatnonzero(effect & Effect.LAST)
        weighed = (
            priced if len(volumes) == len(effect) and extremes is priced else np.flatnonzero((effect & _VWAP) == _VWAP)
        )
        return cls(
            ts_ns=ts_ns,
            price=price,
            size=size,
            value=price * size,
            opens=opens,
            extremes=extremes,
            lasts=lasts,
            volumes=volumes,
            weighed=weighed,
            ordered=ordered,
        )


class Candles:
    """Shape (rows, capacity) each, flat as row * capacity + symbol."""

    FLOATS = ("open", "high", "low", "close", "volume", "value", "weight")
    INTS = ("open_ts", "close_ts", "count")

    def __init__(self, rows: int, capacity: int) -> None:
        self.rows = rows
        self.capacity = capacity
        self.open = np.full((rows, capacity), np.nan)
        self.high = np.full((rows, capacity), -np.inf)
        self.low = np.full((rows, capacity), np.inf)
        self.close = np.full((rows, capacity), np.nan)
        self.volume = np.full((rows, capacity), 0.0)
        self.value = np.full((rows, capacity), 0.0)
        """Sum of price * size of the weighed prints: the VWAP's numerator."""
        self.weight = np.full((rows, capacity), 0.0)
        """Sum of their sizes: its denominator."""
        self.open_ts = np.full((rows, capacity), NEVER)
        self.close_ts = np.full((rows, capacity), -1)
        self.count = np.full((rows, capacity), 0)
        """Prints that counted in the volume."""

    def resize(self, capacity: int) -> None:
        grown = Candles(self.rows, capacity)
        for name in (*self.FLOATS, *self.INTS):
            getattr(grown, name)[:, : self.capacity] = getattr(self, name)
        self.__dict__.update(grown.__dict__)

    def reset(self, row: int, symbol: int | slice = slice(None)) -> None:
        self.open[row, symbol] = np.nan
        self.high[row, symbol] = -np.inf
        self.low[row, symbol] = np.inf
        self.close[row, symbol] = np.nan
        self.volume[row, symbol] = 0.0
        self.value[row, symbol] = 0.0
        self.weight[row, symbol] = 0.0
        self.open_ts[row, symbol] = NEVER
        self.close_ts[row, symbol] = -1
        self.count[row, symbol] = 0

    def fold(self, row: int, other: "Candles", other_row: int, symbol: slice = slice(None)) -> None:
        """Join another candle of the same symbols into this row; of equal times, the other is the later."""
        mine, theirs = (row, symbol), (other_row, symbol)
        earlier = other.open_ts[theirs] < self.open_ts[mine]
        later = (other.close_ts[theirs] >= self.close_ts[mine]) & (other.close_ts[theirs] >= 0)
        for prices, times, moved in (("open", "open_ts", earlier), ("close", "close_ts", later)):
            for name in (prices, times):
                column = getattr(self, name)
                column[mine] = np.where(moved, getattr(other, name)[theirs], column[mine])
        self.high[mine] = np.maximum(self.high[mine], other.high[theirs])
        self.low[mine] = np.minimum(self.low[mine], other.low[theirs])
        for name in ("volume", "value", "weight", "count"):
            getattr(self, name)[mine] += getattr(other, name)[theirs]

    def add(self, flat: Index, prints: Prints) -> None:
        """Book a run of prints; `flat` gives each its place."""
        at = flat[prints.volumes]
        np.add.at(self.volume.reshape(-1), at, prints.size[prints.volumes])
        np.add.at(self.count.reshape(-1), at, 1)
        at = flat[prints.weighed]
        np.add.at(self.value.reshape(-1), at, prints.value[prints.weighed])
        np.add.at(self.weight.reshape(-1), at, prints.size[prints.weighed])
        at, price = flat[prints.extremes], prints.price[prints.extremes]
        np.maximum.at(self.high.reshape(-1), at, price)
        np.minimum.at(self.low.reshape(-1), at, price)
        if prints.opens is not prints.extremes:
            at, price = flat[prints.opens], prints.price[prints.opens]
        self._add_opens(at, price, prints.ts_ns[prints.opens], ordered=prints.ordered)
        if prints.lasts is not prints.opens:
            at, price = flat[prints.lasts], prints.price[prints.lasts]
        self._add_lasts(at, price, prints.ts_ns[prints.lasts], ordered=prints.ordered)

    def _add_opens(self, at: Index, price: F64, ts_ns: I64, *, ordered: bool) -> None:
        open_, open_ts = self.open.reshape(-1), self.open_ts.reshape(-1)
        if ordered:
            fresh = np.flatnonzero(open_ts[at] == NEVER)[::-1]  # backwards, so that the first of equal places stays
            open_[at[fresh]] = price[fresh]
            open_ts[at[fresh]] = ts_ns[fresh]
            return
        early = np.flatnonzero(ts_ns < open_ts[at])[::-1]
        np.minimum.at(open_ts, at[early], ts_ns[early])
        first = early[ts_ns[early] == open_ts[at[early]]]
        open_[at[first]] = price[first]

    def _add_lasts(self, at: Index, price: F64, ts_ns: I64, *, ordered: bool) -> None:
        latest(self.close.reshape(-1), self.close_ts.reshape(-1), at, price, ts_ns, ordered=ordered)

    def complete(self, row: int, symbols: Index) -> Index:
        """Those of these symbols whose candle in this row has all prices and a volume."""
        return symbols[self._is_complete(row, symbols)]

    def all_complete(self, row: int, count: int) -> Index:
        """Those of the first `count` symbols."""
        return np.flatnonzero(self._is_complete(row, slice(count)))

    def _is_complete(self, row: int, symbols: Index | slice) -> Bool:
        truth: Bool = (
            (self.open_ts[row, symbols] != NEVER)
            & (self.close_ts[row, symbols] >= 0)
            & (self.high[row, symbols] > -np.inf)
            & (self.volume[row, symbols] > 0)
        )
        return truth


def latest(values: F64, times: I64, at: Index, price: F64, ts_ns: I64, *, ordered: bool) -> None:
    """Put each price where it belongs unless a later one stands there; of equal times the later arrival wins."""
    if ordered:
        values[at] = price  # of equal places numpy keeps the last
        times[at] = ts_ns
        return
    np.maximum.at(times, at, ts_ns)
    last = np.flatnonzero(ts_ns == times[at])
    values[at[last]] = price[last]
