"""Which trades have been seen: the same trade comes twice after a reconnect, from two feeds, or by a mistake.

A trade is known by its day (UTC), symbol, exchange and trade id. Trade-reporting facilities share the exchange letter D
and number on their own, so there the price, the size and the millisecond count too. Sequence numbers of feeds do not
count: each provider has its own.

Of a trade that comes again with another price, size or millisecond the first stands, and the repetition is in conflict
with it.
"""

from hashlib import blake2b
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.columns import Batch, Bool, Kind

U64 = NDArray[np.uint64]
U16 = NDArray[np.uint16]

_DAY_NS = 86_400_000_000_000
_MILLISECOND_NS = 1_000_000
_FACILITIES = ord("D")
_MIX, _FIRST_MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9)
_TIME_MIX = np.uint64(0x94D049BB133111EB)
_FEWEST_BITS, _MANY_BITS = 12, 22
_AT_ONCE = 1 << 14
"""Rows whose places in the tables stay in the processor's cache while they are looked at."""


class Repeats(NamedTuple):
    """Shape (n,) each."""

    repeated: Bool
    """Trades of the batch that came before, in it or in an earlier one."""
    conflicting: Bool
    """Those of them whose price, size or millisecond is not that of the first."""


class SeenTrades:
    """Finds repeated trades by a 64-bit mix of what identifies them, and conflicts by a 16-bit one of what they say: of
    65,536 conflicts one passes for a plain repetition.

    `most` bounds the memory: at least the newest `most` and at most twice as many trades are remembered, in two tables
    that do not grow (20 to 40 bytes a trade). None remembers all.
    """

    def __init__(self, *, most: int | None = None) -> None:
        self._most = most
        self._bits = _FEWEST_BITS if most is None else (2 * most - 1).bit_length()
        self._newest, self._older = _Keys(self._bits), _Keys(self._bits)
        self._names: tuple[str, ...] = ()
        self._name_keys = np.zeros(0, np.uint64)

    def repeats(self, batch: Batch, keep: Bool | None = None) -> Repeats:
        """Rows outside `keep`, rows without a trade id and rows that are no trades neither repeat nor are repeated."""
        trades = (batch.kind == Kind.TRADE) & (batch.trade_id != 0)
        rows = np.flatnonzero(trades if keep is None else trades & keep)
        repeated, conflicting = np.zeros((2, len(batch)), np.bool_)
        for start in range(0, len(rows), _AT_ONCE):
            part = rows[start : start + _AT_ONCE]
            key, content = self._key(batch, part), _content(batch, part)
            if self._older.count:
                repeated[part], conflicting[part] = self._older.among(key, content)
                fresh = ~repeated[part]
                part, key, content = part[fresh], key[fresh], content[fresh]
            repeated[part], conflicting[part] = self._newest.add(key, content)
            if self._most is not None and self._newest.count >= self._most:
                self._newest, self._older = self._older.emptied(), self._newest
        return Repeats(repeated, conflicting)

    def _key(self, batch: Batch, rows: NDArray[np.intp]) -> U64:
        ts_ns, exchange = batch.ts_ns[rows], batch.exchange[rows]
        key = batch.trade_id[rows].astype(np.uint64) * _FIRST_MIX
        key = _mixed(key, self._symbol_keys(batch.symbols)[batch.symbol[rows]])
        key = _mixed(key, exchange.astype(np.uint64) + (ts_ns // _DAY_NS * 256).astype(np.uint64))
        reported = np.flatnonzero(exchange == _FACILITIES)
        if len(reported):
            there, part = rows[reported], key[reported]
            part = _mixed(part, (ts_ns[reported] // _MILLISECOND_NS).astype(np.uint64))
            part = _mixed(part, batch.price[there].view(np.uint64))
            key[reported] = _mixed(part, batch.size[there].view(np.uint64))
        return np.maximum(key, np.uint64(1))  # 0 is an empty place

    def _symbol_keys(self, names: tuple[str, ...]) -> U64:
        """By name, so that feeds with dictionaries of their own agree."""
        if names is not self._names:
            known = len(self._names) if names[: len(self._names)] == self._names else 0
            fresh = [int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) for name in names[known:]]
            self._name_keys = np.concatenate([self._name_keys[:known], np.array(fresh, np.uint64)])
            self._names = names
        return self._name_keys


def _mixed(key: U64, part: U64) -> U64:
    return ((key ^ (key >> np.uint64(29))) + part) * _MIX


def _content(batch: Batch, rows: NDArray[np.intp]) -> U16:
    """A mix of what a trade says."""
    mixed = batch.price[rows].view(np.uint64) * _MIX
    mixed += batch.size[rows].view(np.uint64) * _FIRST_MIX
    mixed += (batch.ts_ns[rows] // _MILLISECOND_NS).astype(np.uint64) * _TIME_MIX
    return (mixed >> np.uint64(48)).astype(np.uint16)


class _Keys:
    """A growing set of keys other than 0, each with the content that it came with first: open addressing, at most half
    full, a chunk of keys at a time.
    """

    def __init__(self, bits: int) -> None:
        self.count = 0
        self._bits = bits
        self._table = np.zeros(1 << bits, np.uint64)
        self._contents = np.zeros(1 << bits, np.uint16)

    def emptied(self) -> "_Keys":
        self.count = 0
        self._table.fill(0)
        return self

    def among(self, key: U64, content: U16) -> tuple[Bool, Bool]:
        """Which keys are in the set, and which of them with another content."""
        found, other = np.zeros((2, len(key)), np.bool_)
        rows, place = np.arange(len(key)), self._place(key)
        while len(rows):
            there = self._table[place]
            hit = there == key[rows]
            again = np.flatnonzero(hit)
            if len(again):
                found[rows[again]] = True
                other[rows[again]] = self._contents[place[again]] != content[rows[again]]
            on = np.flatnonzero((there != 0) & ~hit)
            rows, place = rows[on], (place[on] + 1) & (len(self._table) - 1)
        return found, other

    def add(self, key: U64, content: U16) -> tuple[Bool, Bool]:
        """Put the keys in, each with its first content. Which of them were there, or stand earlier in `key`, and which
        of these with another content.
        """
        if 2 * (self.count + len(key)) > len(self._table):
            self._grow(self.count + len(key))
        table, contents, last = self._table, self._contents, len(self._table) - 1
        found, other = np.zeros((2, len(key)), np.bool_)
        rows, place = np.arange(len(key)), self._place(key)
        while len(rows):
            there = table[place]
            moving = there != key[rows]
            again = np.flatnonzero(~moving)
            if len(again):
                found[rows[again]] = True
                other[rows[again]] = contents[place[again]] != content[rows[again]]
            # All who found a place free write their number there, backwards, so that the first of them wins it.
            free = np.flatnonzero(there == 0)
            asking, wanted = rows[free], place[free]
            table[wanted[::-1]] = asking[::-1].astype(np.uint64)
            winner = table[wanted].astype(np.intp)
            won = winner == asking
            taken, by = wanted[won], asking[won]
            table[taken], contents[taken] = key[by], content[by]
            moving[free[won]] = False
            self.count += len(by)
            if len(by) < len(asking):
                lost = np.flatnonzero(~won)
                twin = lost[key[winner[lost]] == key[asking[lost]]]
                found[asking[twin]] = True
                other[asking[twin]] = content[winner[twin]] != content[asking[twin]]
                moving[free[twin]] = False
            on = np.flatnonzero(moving)
            rows, place = rows[on], (place[on] + 1) & last
        return found, other

    def _place(self, key: U64) -> NDArray[np.intp]:
        return (key >> np.uint64(64 - self._bits)).astype(np.intp)

    def _grow(self, count: int) -> None:
        there = np.flatnonzero(self._table)
        kept, contents = self._table[there], self._contents[there]
        steps = 2 if self._bits < _MANY_BITS else 1  # putting all keys in again costs time; large empty tables, memory
        self._bits = max(self._bits + steps, (2 * count - 1).bit_length())
        self._table = np.zeros(1 << self._bits, np.uint64)
        self._contents = np.zeros(1 << self._bits, np.uint16)
        self.count = 0
        self.add(kept, contents)
