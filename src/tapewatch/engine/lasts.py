"""Last prices that depend on the trades before: some sale conditions let a trade set the last price (and the open) only
if it is the first of its day, or only if it comes from the venue that set the last price.

What is remembered is, per symbol, the day of its newest last price and the venue that set it. Days change by the
calendar: a last price of an older day counts as none. Trades are judged in the order of arrival, and a decision stands.
"""

from itertools import pairwise

import numpy as np

from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import I64, MINUTE_NS, SECOND_NS, U8, U16
from tapewatch.engine.conditions import ASKS, Effect, ListingMarkets, Profile
from tapewatch.engine.symbols import Index

GRACE_NS = 10 * SECOND_NS
"""UTP sends its End of Last Sale Eligibility so long after the close."""
_REMEMBERS = int(Effect.LAST_IF_FIRST | Effect.LAST_IF_SAME_VENUE | Effect.OPEN_IF_FIRST)
_TAPE, _EXTENDED = 0, 1
_AFTER = 2**62


class Lasts:
    """`settle` each run of prints, in the order of arrival."""

    def __init__(self, *, days: TradingDays, profile: Profile, capacity: int) -> None:
        self._days = days
        self._listing = ListingMarkets(profile)
        self._newest = np.full((2, capacity), -1)
        """Day and venue (day * 256 + venue) of the newest last price: of the tape's own rules, and of those with the
        extended hours.
        """
        self._newest_day = -1
        self._today = (0, 0, 0)
        """The minutes from which up to which the day of the last run goes, and the day."""

    def resize(self, capacity: int) -> None:
        old = self._newest
        self._newest = np.full((2, capacity), -1)
        self._newest[:, : old.shape[1]] = old

    def settle(self, effect: U16, *, symbol: Index, ts_ns: I64, minute: I64, exchange: U8, tape: U8) -> U16:
        """The run's effects without the opens and lasts whose condition does not hold."""
        start, stop, today = self._today
        if minute.min() >= start and minute.max() < stop:
            return self._settle(effect, today, symbol=symbol, ts_ns=ts_ns, exchange=exchange, tape=tape)
        day = self._days.trade_day(minute * MINUTE_NS)
        edges = np.concatenate([[0], self._days.post_ns, [_AFTER]]) // MINUTE_NS
        self._today = (int(edges[day[-1]]), int(edges[day[-1] + 1]), int(day[-1]))
        parts = [
            self._settle(
                effect[start:stop],
                int(day[start]),
                symbol=symbol[start:stop],
                ts_ns=ts_ns[start:stop],
                exchange=exchange[start:stop],
                tape=tape[start:stop],
            )
            for start, stop in pairwise([0, *(np.flatnonzero(np.diff(day)) + 1).tolist(), len(day)])
        ]
        return np.concatenate(parts)

    def _settle(self, effect: U16, day: int, *, symbol: Index, ts_ns: I64, exchange: U8, tape: U8) -> U16:
        bits = int(np.bitwise_or.reduce(effect))
        if bits & ASKS:
            effect = effect.copy()
            if bits & Effect.LAST_UNTIL_END and day < len(self._days.close_ns):
                late = (effect & Effect.LAST_UNTIL_END != 0) & (ts_ns >= self._days.close_ns[day] + GRACE_NS)
                effect[late] &= ~np.uint16(Effect.LAST | Effect.OPEN | ASKS)
            if bits & _REMEMBERS:
                for series in (_TAPE, _EXTENDED):
                    self._decide(effect, day, series, symbol=symbol, exchange=exchange, tape=tape)
        self._remember(effect, day, symbol=symbol, exchange=exchange, extended=bool(bits & Effect.EXTENDED))
        return effect

    def _decide(self, effect: U16, day: int, series: int, *, symbol: Index, exchange: U8, tape: U8) -> None:
        """Take away what a series' trades may not set.

        A trade that asks for the venue of the last price and gets it leaves that venue as it was. So it is enough to
        know, before each, the newest trade that needed not to ask.
        """
        extended = effect & Effect.EXTENDED != 0
        asks = (effect & _REMEMBERS != 0) & (extended == (series == _EXTENDED))
        if not asks.any():
            return
        counts = effect & Effect.LAST != 0
        if series == _TAPE:
            counts &= ~extended
        asked = np.zeros(self._newest.shape[1], np.bool_)
        asked[symbol[asks]] = True
        rows = np.flatnonzero(asked[symbol] & counts)
        rows = rows[np.argsort(symbol[rows], kind="stable")]
        who, venue, words = symbol[rows], exchange[rows], np.where(asks[rows], effect[rows], 0)
        place = np.arange(len(rows))
        head = np.ones(len(rows), np.bool_)
        head[1:] = who[1:] != who[:-1]
        remembered = self._newest[series, who]
        first = head & (remembered >> 8 < day)

        only_first = words & Effect.LAST_IF_FIRST != 0
        same_venue = (words & Effect.LAST_IF_SAME_VENUE != 0) & ~only_first
        sure = first | ~(only_first | same_venue) | (same_venue & self._listing.at(tape[rows], venue))
        newest = np.maximum.accumulate(np.where(sure, place, -1))
        in_run = (remembered >> 8 <= day) & (newest >= np.maximum.accumulate(np.where(head, place, 0)))
        last_venue = np.where(in_run, venue[newest], remembered & 255)
        granted = sure | (same_venue & (venue == last_venue) & (venue != 0))
        effect[rows[~granted]] &= ~np.uint16(Effect.LAST)
        effect[rows[~first & (words & Effect.OPEN_IF_FIRST != 0)]] &= ~np.uint16(Effect.OPEN)

    def _remember(self, effect: U16, day: int, *, symbol: Index, exchange: U8, extended: bool) -> None:
        lasts = np.flatnonzero(effect & Effect.LAST)
        self._note(_EXTENDED, day, symbol[lasts], exchange[lasts])
        if extended:
            lasts = lasts[effect[lasts] & Effect.EXTENDED == 0]
        self._note(_TAPE, day, symbol[lasts], exchange[lasts])
        self._newest_day = max(self._newest_day, day)

    def _note(self, series: int, day: int, symbol: Index, exchange: U8) -> None:
        newest = self._newest[series]
        if day < self._newest_day:
            stays = newest[symbol] >> 8 <= day
            symbol, exchange = symbol[stays], exchange[stays]
        newest[symbol] = exchange.astype(np.int64) + (day << 8)
