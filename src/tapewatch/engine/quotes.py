"""The newest quote of each symbol, and its price bands of today."""

from typing import Final

import numpy as np

from tapewatch.engine.columns import F64, I64, SECOND_NS, U8, Bool, Kind
from tapewatch.engine.symbols import Index

STALE_NS = 600 * SECOND_NS
"""A quote stands until the next; one that is older than this is not relied on."""
_SIDES = {Kind.BID: ("bid", "bid_size"), Kind.ASK: ("ask", "ask_size")}
_BANDS = {Kind.BAND_LOW: "band_low", Kind.BAND_HIGH: "band_high"}


class Quotes:
    """Each of shape (capacity,). The newest is the one that came last, and a day begins without any."""

    COLUMNS: Final = ("bid", "ask", "bid_size", "ask_size", "band_low", "band_high")

    def __init__(self, capacity: int) -> None:
        self.bid, self.ask, self.bid_size, self.ask_size, self.band_low, self.band_high = np.full((6, capacity), np.nan)
        self.ts_ns: I64 = np.full(capacity, -1)
        """Of the quote; -1 without one."""

    def book(self, kind: U8, symbol: Index, ts_ns: I64, price: F64, size: F64) -> bool:
        """Take the quotes and bands among these rows; whether there were any. A side of size zero has no price, and one
        whose price or size is no number is unknown.
        """
        there = kind >= Kind.BID
        if not there.any():
            return False
        with np.errstate(invalid="ignore"):
            priced = (price > 0) & (price < np.inf)
            sized = (size >= 0) & (size < np.inf)
        quoted = np.flatnonzero((kind == Kind.BID) | (kind == Kind.ASK))
        self.ts_ns[symbol[quoted]] = ts_ns[quoted]
        for side, (prices, sizes) in _SIDES.items():
            rows = np.flatnonzero(kind == side)
            at, known = symbol[rows], sized[rows]
            getattr(self, prices)[at] = np.where(known & priced[rows] & (size[rows] > 0), price[rows], np.nan)
            getattr(self, sizes)[at] = np.where(known & (priced[rows] | (size[rows] == 0)), size[rows], np.nan)
        for band, name in _BANDS.items():
            rows = np.flatnonzero(kind == band)
            getattr(self, name)[symbol[rows]] = np.where(priced[rows], price[rows], np.nan)
        return True

    def current(self, now_ns: int, halted: F64) -> Bool:
        """Whose quote can be relied on: there is one, not too old, and the symbol trades."""
        known: Bool = (self.ts_ns >= 0) & (now_ns - self.ts_ns <= STALE_NS) & (halted == 0)
        return known

    def begin_day(self) -> None:
        self.__dict__.update(Quotes(len(self.ts_ns)).__dict__)

    def resize(self, capacity: int) -> None:
        grown, count = Quotes(capacity), len(self.ts_ns)
        for name in (*self.COLUMNS, "ts_ns"):
            getattr(grown, name)[:count] = getattr(self, name)
        self.__dict__.update(grown.__dict__)
