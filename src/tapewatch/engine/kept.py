"""The newest trades of all symbols as they were booked, so that one of them can be withdrawn or corrected.

A ring of columns: memory is fixed, and what has fallen out of it stands for good.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.columns import F64, I64, MINUTE_NS, U8, U16
from tapewatch.engine.symbols import Index

_FREE = -1


class Print(NamedTuple):
    """One kept trade."""

    symbol: int
    ts_ns: int
    price: float
    size: float
    effect: int


class KeptTrades:
    """`most` trades of 39 bytes; 0 keeps none, for a tape without amendments. Positions are places in the ring; they
    hold until the next `add`.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.symbol = np.full(most, _FREE, np.int32)
        self.ts_ns = np.zeros(most, np.int64)
        self.price = np.zeros(most)
        self.size = np.zeros(most)
        self.effect = np.zeros(most, np.uint16)
        self.exchange = np.zeros(most, np.uint8)
        self.trade_id = np.zeros(most, np.int64)
        self._next = 0

    def add(self, symbol: Index, ts_ns: I64, price: F64, size: F64, effect: U16, exchange: U8, trade_id: I64) -> None:
        """Keep these trades, in the order of arrival; as many of the oldest fall out."""
        if not self.most:
            return
        done = max(0, len(ts_ns) - self.most)
        while done < len(ts_ns):
            part = min(len(ts_ns) - done, self.most - self._next)
            here, there = slice(done, done + part), slice(self._next, self._next + part)
            self.symbol[there] = symbol[here]
            self.ts_ns[there] = ts_ns[here]
            self.price[there] = price[here]
            self.size[there] = size[here]
            self.effect[there] = effect[here]
            self.exchange[there] = exchange[here]
            self.trade_id[there] = trade_id[here]
            done += part
            self._next = (self._next + part) % self.most

    def find(self, symbol: int, exchange: int, trade_id: int) -> int | None:
        """Where the newest standing trade of that name is; None without an id, or when no such trade is kept."""
        if not trade_id:
            return None
        named = np.flatnonzero(self.trade_id == trade_id)
        named = named[(self.symbol[named] == symbol) & (self.exchange[named] == exchange)]
        return int(self._by_arrival(named)[-1]) if len(named) else None

    def at(self, position: int) -> Print:
        return Print(
            symbol=int(self.symbol[position]),
            ts_ns=int(self.ts_ns[position]),
            price=float(self.price[position]),
            size=float(self.size[position]),
            effect=int(self.effect[position]),
        )

    def of(self, symbol: int) -> Index:
        """Positions of a symbol's standing trades, in the order of arrival."""
        return self._by_arrival(np.flatnonzero(self.symbol == symbol))

    def minute(self, symbol: int, minute: int) -> Index:
        """Those of one minute."""
        mine, start_ns = self.of(symbol), minute * MINUTE_NS
        return mine[(self.ts_ns[mine] >= start_ns) & (self.ts_ns[mine] < start_ns + MINUTE_NS)]

    def withdraw(self, position: int) -> None:
        """Such a trade no longer stands."""
        self.symbol[position] = _FREE

    def amend(self, position: int, *, price: float, size: float, effect: int) -> None:
        """Another price, size or effect, at the same place and time."""
        self.price[position], self.size[position], self.effect[position] = price, size, effect

    def _by_arrival(self, positions: NDArray[np.intp]) -> Index:
        """Positions ascend; those from the writing place on are older than the others."""
        split = int(np.searchsorted(positions, self._next))
        return np.concatenate([positions[split:], positions[:split]])
