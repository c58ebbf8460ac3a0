"""History as columns: trades to batches for the tape, minute bars to `Bars`."""

from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

import numpy as np

from tapewatch.engine.columns import I64, Bars, Batch, make_batch
from tapewatch.engine.daily import HIGHEST_PRICE
from tapewatch.errors import Invalid
from tapewatch.feeds.dictionary import Dictionary


class TradeHistory(Protocol):
    """A source of past trades."""

    symbols_per_request: int

    def trades(self, symbols: Sequence[str], *, start_ns: int, end_ns: int) -> AsyncIterator[Batch]:
        """Those of `symbols` (at most `symbols_per_request`) in [start_ns, end_ns), a page at a time, without those
        that were cancelled. Rows look like the ones of the provider's live feed, and carry the same ids.
        """
        ...


class Prints:
    """Makes batches whose dictionaries grow from one to the next."""

    def __init__(self) -> None:
        self._symbols, self._conditions = Dictionary(), Dictionary()

    def batch(
        self,
        symbols: Sequence[str],
        conditions: Sequence[str],
        *,
        ts_ns: Any,
        start_ns: int,
        end_ns: int,
        **columns: Any,
    ) -> Batch:
        """One row a trade; rows outside the span, or with a price or size that cannot be, are left out."""
        batch = make_batch(
            symbol=self._symbols.encode(symbols),
            condition=self._conditions.encode(conditions),
            symbols=self._symbols.names,
            conditions=self._conditions.names,
            ts_ns=ts_ns,
            **columns,
        )
        fit = (batch.ts_ns >= start_ns) & (batch.ts_ns < end_ns) & (batch.size >= 0) & np.isfinite(batch.size)
        fit &= (batch.price > 0) & (batch.price <= HIGHEST_PRICE)
        return batch if fit.all() else batch.take(fit)


def minute_bars(rows: Sequence[tuple[str, int, float, float, float, float, float, float | None, int | None]]) -> Bars:
    """From (symbol, start_ns, open, high, low, close, volume, vwap, trades); the provider's VWAP is over its volume."""
    symbols = Dictionary()
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * 9
    numbers = [np.array([np.nan if v is None else v for v in column], np.float64) for column in columns[2:8]]
    return Bars(
        symbol=symbols.encode(columns[0]).astype(np.int32),
        symbols=symbols.names,
        ts_ns=np.array(columns[1], np.int64),
        **dict(zip(("open", "high", "low", "close", "volume", "vwap"), numbers, strict=True)),
        vwap_volume=numbers[4],
        trade_count=np.array([count or 0 for count in columns[8]], np.int64),
        revision=np.zeros(len(rows), np.int64),
    )


def parse_times(texts: Sequence[str], *, where: str) -> I64:
    """RFC 3339 in UTC, such as ``2021-02-22T15:51:44.208Z``, as nanoseconds; `Invalid` names the first that is not."""
    for text in texts:
        if len(text) < len("2021-02-22T15:51:44Z") or text[10] != "T" or text[-1] != "Z":
            raise Invalid(where, f"{text[:40]!r} is not a time in UTC")
    try:
        return np.array([text[:-1] for text in texts], "datetime64[ns]").astype(np.int64)
    except ValueError:
        raise Invalid(where, "a time is not one of the calendar") from None
