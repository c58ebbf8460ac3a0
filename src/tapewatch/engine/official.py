"""The day's official open and close: what the listing market says they are, in records on the tape.

They are prices of auctions as a rule, and no bar's: the first trade of a minute, or its last, may be another. A later
record takes the place of an earlier one, and a day's prices are unknown until its first.
"""

import numpy as np

from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import F64, I64, MINUTE_NS, U8, U16
from tapewatch.engine.conditions import Effect, ListingMarkets, Profile
from tapewatch.engine.symbols import Index

OPEN, CLOSE = 0, 1
_NAMES = (int(Effect.NAMES_OPEN), int(Effect.NAMES_CLOSE))


class OfficialPrices:
    def __init__(self, *, days: TradingDays, profile: Profile, capacity: int) -> None:
        self._days = days
        self._listing = ListingMarkets(profile)
        self._price = np.full((2, capacity), np.nan)
        self._day = np.full((2, capacity), -1)
        self.count = 0
        """Records taken so far."""

    def resize(self, capacity: int) -> None:
        price, day = self._price, self._day
        self._price, self._day = np.full((2, capacity), np.nan), np.full((2, capacity), -1)
        self._price[:, : price.shape[1]] = price
        self._day[:, : day.shape[1]] = day

    def book(self, effect: U16, *, symbol: Index, minute: I64, price: F64, exchange: U8, tape: U8) -> None:
        """Take the records among these prints."""
        for row, flag in enumerate(_NAMES):
            rows = np.flatnonzero(effect & flag)
            rows = rows[self._listing.at(tape[rows], exchange[rows])]
            day = self._days.trade_day(minute[rows] * MINUTE_NS)
            order = np.flatnonzero(self._day[row, symbol[rows]] <= day)
            order = order[np.argsort(day[order], kind="stable")]
            rows, day = rows[order], day[order]
            self._price[row, symbol[rows]] = price[rows]
            self._day[row, symbol[rows]] = day
            self.count += len(rows)

    def of_day(self, row: int, day_start_ns: int) -> F64:
        """Shape (capacity,): the open (row `OPEN`) or close of the day that holds this instant; NaN where unknown."""
        day = self._days.trade_day(np.array(day_start_ns))
        return np.where(self._day[row] == day, self._price[row], np.nan)
