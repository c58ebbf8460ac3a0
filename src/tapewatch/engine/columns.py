"""Columnar batches: what travels on the tape, and what the engine gives back.

A `Batch` is rows and marks. A row is a trade (or a fact about a symbol); a mark is a point between rows at which the
watermark advances: "no more trades before this instant are expected". Live ingest writes one mark at the end of each
batch; a replayed file carries many. A mark belongs to its place among the rows, so that cutting a tape into other
batches changes nothing.

This module owns the layout. It never interprets a price or a condition.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

I64 = NDArray[np.int64]
I32 = NDArray[np.int32]
F64 = NDArray[np.float64]
U8 = NDArray[np.uint8]
U16 = NDArray[np.uint16]
Bool = NDArray[np.bool_]

SECOND_NS = 1_000_000_000
MINUTE_NS = 60 * SECOND_NS


class Kind(IntEnum):
    """What a row of a batch says about its symbol."""

    TRADE = 0
    CANCEL = 1
    """The trade of this row's `symbol`, `exchange` and `trade_id` never happened."""
    CLOSE_PREV = 2
    """Reference data: `price` is the previous day's regular close."""
    HALT = 3
    """Trading stopped; `condition` holds the reason's code where the feed gives one."""
    RESUME = 4
    CORRECTION = 5
    """The trade of this row's `symbol`, `exchange` and `trade_id` was this: `price`, `size`, `condition` and `tape` are
    the corrected ones, `ts_ns` is the correction's own time."""
    BID = 6
    """A quote's bid: `price` and `size`; size 0 is no bid. The row after it holds the ask."""
    ASK = 7
    BAND_LOW = 8
    """The lower price of the limit-up/limit-down band."""
    BAND_HIGH = 9


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Rows of one partition in the order of arrival, and the marks between them.

    `symbols` and `conditions` are dictionaries: `symbol` and `condition` hold indices into them. A feed passes the same
    dictionary objects with each batch as long as nothing new appears, which lets readers skip the translation.
    """

    symbols: tuple[str, ...]
    conditions: tuple[str, ...]
    """Sale conditions as SIP letters run together, such as ``"@ FT"``; a feed without letters uses its own words."""
    symbol: I32
    """Shape (n,): index into `symbols`."""
    condition: U16
    """Shape (n,): index into `conditions`."""
    kind: U8
    """Shape (n,): a `Kind`."""
    ts_ns: I64
    """Shape (n,): the consolidated tape's time (SIP), nanoseconds since the epoch, UTC."""
    price: F64
    """Shape (n,): dollars."""
    size: F64
    """Shape (n,): shares, fractions allowed."""
    tape: U8
    """Shape (n,): ord of A, B or C; 0 when unknown."""
    exchange: U8
    """Shape (n,): ord of the SIP participant letter; 0 when unknown."""
    trade_id: I64
    """Shape (n,): the exchange's trade id; 0 when the feed has none."""
    marks_row: I64
    """Shape (m,), ascending: a mark stands before this row (n: after the last)."""
    marks_ns: I64
    """Shape (m,), ascending: the watermark from that mark on."""
    received_ns: int = 0
    """Wall clock at which ingest had the batch; 0 in a replay."""

    def __post_init__(self) -> None:
        for column in fields(self):
            value = getattr(self, column.name)
            if isinstance(value, np.ndarray):
                value.setflags(write=False)

    def __len__(self) -> int:
        return len(self.ts_ns)

    def received(self, now_ns: int) -> "Batch":
        """The same batch, stamped with the wall clock of its arrival."""
        return replace(self, received_ns=now_ns)

    def rows(self, start: int, stop: int) -> "Batch":
        """The rows from `start` up to `stop` as a view, with the marks that stand from `start` up to before `stop`.

        A mark at the very end (`stop == len`) stays with the last piece, so the pieces of a cut add up to the whole.
        """
        inside = self.marks_row >= start
        inside &= (self.marks_row < stop) if stop < len(self) else (self.marks_row <= stop)
        return replace(
            self,
            marks_row=self.marks_row[inside] - start,
            marks_ns=self.marks_ns[inside],
            **{name: getattr(self, name)[start:stop] for name in ROW_COLUMNS},
        )

    def take(self, index: NDArray[Any]) -> "Batch":
        """The rows at `index` (positions ascending, or a mask); marks keep their place between the rows that stay."""
        positions = np.flatnonzero(index) if index.dtype == np.bool_ else index
        return replace(
            self,
            marks_row=np.searchsorted(positions, self.marks_row).astype(np.int64),
            **{name: getattr(self, name)[positions] for name in ROW_COLUMNS},
        )


ROW_COLUMNS = ("symbol", "condition", "kind", "ts_ns", "price", "size", "tape", "exchange", "trade_id")
_DTYPES: dict[str, Any] = {
    "symbol": np.int32,
    "condition": np.uint16,
    "kind": np.uint8,
    "ts_ns": np.int64,
    "price": np.float64,
    "size": np.float64,
    "tape": np.uint8,
    "exchange": np.uint8,
    "trade_id": np.int64,
}


def make_batch(
    *,
    symbols: tuple[str, ...] = (),
    conditions: tuple[str, ...] = ("",),
    marks_row: Any = (),
    marks_ns: Any = (),
    received_ns: int = 0,
    **rows: Any,
) -> Batch:
    """A `Batch` from columns of any sequence type; columns that are left out are zero."""
    n = len(rows.get("ts_ns", ()))
    columns = {
        name: np.array(rows[name], dtype=dtype) if name in rows else np.zeros(n, dtype)
        for name, dtype in _DTYPES.items()
    }
    return Batch(
        symbols=symbols,
        conditions=conditions,
        marks_row=np.array(marks_row, dtype=np.int64),
        marks_ns=np.array(marks_ns, dtype=np.int64),
        received_ns=received_ns,
        **columns,
    )


def pulse(watermark_ns: int, *, received_ns: int = 0) -> Batch:
    """A batch without rows: time passed and nothing traded."""
    return make_batch(marks_row=[0], marks_ns=[watermark_ns], received_ns=received_ns)


def first_ns(batch: Batch) -> int | None:
    """The instant at which the batch begins, be it a mark or a row; None for one that says nothing."""
    if len(batch.marks_ns) and (batch.marks_row[0] == 0 or not len(batch)):
        return int(batch.marks_ns[0])
    return int(batch.ts_ns[0]) if len(batch) else None


OPEN_END_NS = 2**62
"""The end of a gap that has not ended."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Trades with times in [start_ns, end_ns) may be missing from the tape.

    It stands on the tape where it was noticed, with `OPEN_END_NS` while nothing arrives. A later gap with the same
    `start_ns` takes its place; one with `end_ns == start_ns` says that nothing is missing any more.
    """

    start_ns: int
    end_ns: int
    reason: str
    """Why, in a word or a few: ``silent``, ``network``, ``overflow``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Reference data of a trading day: named figures of symbols, such as ``avg_daily_volume_20d``.

    They hold from 04:00 of the day that begins at `day_start_ns`, wherever they stand on the tape: before that instant
    they wait for it. A later entry of the same day replaces the figures that it names.
    """

    day_start_ns: int
    symbols: tuple[str, ...]
    names: tuple[str, ...]
    values: F64
    """Shape (len(names), len(symbols)); NaN is unknown."""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """What is known of symbols in words: by name (`LABELS`) one text a symbol, empty where it is unknown."""

    def __post_init__(self) -> None:
        if self.values.shape != (len(self.names), len(self.symbols)):
            raise ValueError(f"figures of shape {self.values.shape} for {len(self.names)} names")
        for name, texts in self.labels.items():
            if len(texts) != len(self.symbols):
                raise ValueError(f"{len(texts)} labels {name!r} for {len(self.symbols)} symbols")
        self.values.setflags(write=False)
        object.__setattr__(self, "labels", MappingProxyType(dict(self.labels)))

    def of(self, index: NDArray[np.integer]) -> "Facts":
        """Those of the symbols at these positions."""
        places = index.tolist()
        return replace(
            self,
            symbols=tuple(self.symbols[i] for i in places),
            values=self.values[:, index],
            labels={name: tuple(texts[i] for i in places) for name, texts in self.labels.items()},
        )


LABELS = ("exchange", "type", "sector")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """One-minute bars, closed or revised, in the order in which they became so.

    A bar covers [ts_ns, ts_ns + one minute). The same (symbol, ts_ns) may come again with a higher `revision`, and then
    replaces what came before.
    """

    symbols: tuple[str, ...]
    symbol: I32
    ts_ns: I64
    open: F64
    high: F64
    low: F64
    close: F64
    volume: F64
    vwap: F64
    """Sum of price times size over the trades that set both high/low and volume, by their size; NaN without such."""
    vwap_volume: F64
    """Shares behind the VWAP; with it VWAPs of longer windows can be made from bars."""
    trade_count: I64
    """Trades that counted in the volume."""
    revision: I64
    """0 when the bar closed; one more for each late trade that changed it."""

    def __len__(self) -> int:
        return len(self.ts_ns)

    def as_closed(self) -> "Bars":
        """The same bars as if each had closed as it stands."""
        return replace(self, revision=np.zeros_like(self.revision))

    def take(self, index: NDArray[Any]) -> "Bars":
        """The bars at these positions."""
        return Bars(symbols=self.symbols, **{name: getattr(self, name)[index] for name in BAR_COLUMNS})


BAR_COLUMNS = (
    "symbol",
    "ts_ns",
    "open",
    "high",
    "low",
    "close",
    "volume",
    "vwap",
    "vwap_volume",
    "trade_count",
    "revision",
)


def concat_bars(parts: list[Bars]) -> Bars:
    """All parts in order; they must share one symbol table, of which the longest (the last) is kept."""
    if len(parts) == 1:
        return parts[0]
    columns: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in parts]) for name in BAR_COLUMNS}
    return Bars(symbols=parts[-1].symbols, **columns)
