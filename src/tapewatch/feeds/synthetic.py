"""The synthetic feed: a seeded, made-up market played live against a clock, or written as a tape file.

Owns pacing, the cutting into batches and the file format. The market itself is in `synthetic_market`; nothing here
draws a random number, so the same parameters give the same rows at any speed and in any cut.
"""

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.columns import SECOND_NS, Batch, Kind
from tapewatch.errors import FeedRefused
from tapewatch.feeds.synthetic_listing import make_listing
from tapewatch.feeds.synthetic_market import REGULAR_NS, DayShape, Step, SyntheticMarket, TradingDay
from tapewatch.feeds.synthetic_prints import CONDITIONS, NO_ROWS, Rows, join_rows
from tapewatch.ports import Clock

__all__ = ["SyntheticFeed", "TradingDay", "synthetic_symbols", "write_day"]


class SyntheticFeed:
    """A `Feed` of a made-up market. Event time starts at `start_ns` and runs at `speed` times the clock.

    Each batch covers `batch_s` of event time and ends with one mark: everything but late prints up to there has been
    emitted. A slow consumer gets every batch, late; nothing is skipped. The days' sessions are played one after the
    other without the nights between them, and iteration ends after the last one's post-market. Without days, one
    regular session goes on for ever. Each call of `batches` plays from `start_ns` again, or from where `resume` put it:
    the market then makes the rows before that once more, so it takes as long as making them, and goes on from there
    with its time at once. The same seed, start and days make the same rows.
    """

    name = "synthetic"

    def __init__(
        self,
        *,
        seed: int,
        start_ns: int,
        clock: Clock,
        symbols: int = 10_000,
        ticks_per_s: float = 2_000.0,
        shaped: bool = False,
        days: Sequence[TradingDay] = (),
        speed: float = 1.0,
        batch_s: float = 0.05,
    ) -> None:
        """`shaped` spreads trades over the day as markets do, `ticks_per_s` then being the mean of a regular session;
        otherwise the rate is flat from pre-market to post-market. `speed` may be infinite.
        """
        if speed <= 0 or batch_s <= 0:
            raise ValueError("speed and batch_s must be positive")
        if shaped and not days:
            raise ValueError("a shaped market needs its days")
        self.rejected: Mapping[str, int] = MappingProxyType({})
        self._seed, self._symbols, self._ticks_per_s, self._shaped = seed, symbols, ticks_per_s, shaped
        self._days, self._start_ns = tuple(days), start_ns
        self._clock, self._speed, self._batch_ns = clock, speed, max(1, round(batch_s * SECOND_NS))
        self._behind = 0

    def resume(self, rows: int) -> None:
        if rows < 0:
            raise ValueError("a feed cannot be resumed before its beginning")
        self._behind = rows

    async def batches(self) -> AsyncIterator[Batch]:
        market = SyntheticMarket(
            seed=self._seed, symbols=self._symbols, ticks_per_s=self._ticks_per_s, shaped=self._shaped
        )
        names = market.listing.symbols
        behind, self._behind = self._behind, 0
        wall_ns = self._clock.now_ns()
        played_ns = 0
        for piece, start_ns, end_ns in _cut(market.play(self._days, start_ns=self._start_ns), self._batch_ns):
            rows = piece
            if behind:
                given = min(behind, len(piece))
                behind -= given
                await self._clock.sleep(0.0)  # a long way to go must not hold up the others
                if behind:
                    continue
                rows, wall_ns = piece.take(slice(given, None)), self._clock.now_ns()
            played_ns += end_ns - start_ns
            due_ns = wall_ns + played_ns / self._speed
            # Sleeping for no time still lets the other tasks of the process run when we are behind.
            await self._clock.sleep(max(0.0, (due_ns - self._clock.now_ns()) / SECOND_NS))
            yield _to_batch(rows, names, mark_ns=end_ns)
        if behind:
            raise FeedRefused(f"more rows were played before than this market has, by {behind:,}: it is another")


def synthetic_symbols(*, seed: int, symbols: int = 10_000) -> tuple[str, ...]:
    """The names that the market of that seed and size lists."""
    return make_listing(seed=seed, symbols=symbols).symbols


def write_day(
    path: Path,
    *,
    seed: int,
    symbols: int,
    trades: int,
    day: TradingDay,
    start_ns: int | None = None,
    end_ns: int | None = None,
    row_group_rows: int = 100_000,
    on_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write a synthetic day, or the part of it in [start_ns, end_ns), as a tape file; returns the rows written.

    About `trades` trades in the order of arrival, late prints where they arrive. A cancelled trade carries the
    correction 08 and is followed by a record with the same id and the correction 10, as in NYSE's TAQ. Previous closes
    and halts have no place in a file of trades. `on_progress(rows_written, event_ns)` is called for each row group.
    Memory does not grow with the day.
    """
    import pyarrow as pa
    from pyarrow import parquet as pq

    start_ns = day.pre_ns if start_ns is None else max(start_ns, day.pre_ns)
    end_ns = day.post_ns if end_ns is None else min(end_ns, day.post_ns)
    share = DayShape(day, shaped=True).trades(start_ns, end_ns) if start_ns < end_ns else 0.0
    if share <= 0:
        raise ValueError("the part of the day to write is empty")
    ticks_per_s = trades / share / (REGULAR_NS / SECOND_NS)
    market = SyntheticMarket(seed=seed, symbols=symbols, ticks_per_s=ticks_per_s, shaped=True)
    names = pa.array(market.listing.symbols)
    parts: list[Rows] = []
    written, waiting = 0, 0
    schema = _to_table(NO_ROWS, names).schema
    rising = {"ts_ns": "DELTA_BINARY_PACKED", "trade_id": "DELTA_BINARY_PACKED"}
    repeating = [name for name in schema.names if name not in rising]
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=repeating, column_encoding=rising) as writer:
        for step in market.play([day], start_ns=start_ns, end_ns=end_ns):
            parts.append(step.rows)
            waiting += len(step.rows)
            if waiting >= row_group_rows or step.end_ns == end_ns:
                table = _to_table(join_rows(parts), names)
                writer.write_table(table, row_group_size=max(1, len(table)))
                written, parts, waiting = written + len(table), [], 0
                if on_progress is not None:
                    on_progress(written, step.end_ns)
    return written


def _to_table(rows: Rows, names: Any) -> Any:
    """The trades and cancels among `rows` as an Arrow table in the tape file's columns."""
    import pyarrow as pa

    rows = rows.take(np.flatnonzero((rows.kind == Kind.TRADE) | (rows.kind == Kind.CANCEL)))
    letters = pa.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"))
    correction = np.where(rows.kind == Kind.CANCEL, 2, rows.busted.astype(np.int32))
    worded: dict[str, tuple[NDArray[Any], Any]] = {
        "symbol": (rows.symbol, names),
        "conditions": (rows.condition, pa.array(CONDITIONS)),
        "exchange": (rows.exchange - ord("A"), letters),
        "tape": (rows.tape - ord("A"), letters),
        "correction": (correction, pa.array(["00", "08", "10"])),
    }
    words = {name: pa.DictionaryArray.from_arrays(at.astype(np.int32), words) for name, (at, words) in worded.items()}
    return pa.table(
        {
            "symbol": words["symbol"],
            "ts_ns": rows.ts_ns,
            "price": rows.price,
            "size": rows.size,
            "conditions": words["conditions"],
            "exchange": words["exchange"],
            "tape": words["tape"],
            "trade_id": rows.trade_id,
            "correction": words["correction"],
        }
    )


def _cut(steps: Iterator[Step], batch_ns: int) -> Iterator[tuple[Rows, int, int]]:
    """Rows by arrival in pieces of `batch_ns` of event time, with each piece's start and end.

    A day's last piece may be shorter: none reaches over a night.
    """
    parts: list[Rows] = []
    begun_ns = until_ns = None
    for step in steps:
        if begun_ns is None or step.start_ns != until_ns:
            if begun_ns is not None and until_ns is not None and begun_ns < until_ns:
                yield join_rows(parts), begun_ns, until_ns
            parts, begun_ns = [], step.start_ns
        rows, until_ns = step.rows, step.end_ns
        while begun_ns + batch_ns <= until_ns:
            end_ns = begun_ns + batch_ns
            at = int(np.searchsorted(rows.arrival_ns, end_ns))
            yield join_rows([*parts, rows.take(slice(0, at))]), begun_ns, end_ns
            parts, rows, begun_ns = [], rows.take(slice(at, None)), end_ns
        parts.append(rows)
    if begun_ns is not None and until_ns is not None and begun_ns < until_ns:
        yield join_rows(parts), begun_ns, until_ns


def _to_batch(rows: Rows, names: tuple[str, ...], *, mark_ns: int) -> Batch:
    return Batch(
        symbols=names,
        conditions=CONDITIONS,
        symbol=rows.symbol,
        condition=rows.condition,
        kind=rows.kind,
        ts_ns=rows.ts_ns,
        price=rows.price,
        size=rows.size,
        tape=rows.tape,
        exchange=rows.exchange,
        trade_id=rows.trade_id,
        marks_row=np.array([len(rows)], np.int64),
        marks_ns=np.array([mark_ns], np.int64),
    )
