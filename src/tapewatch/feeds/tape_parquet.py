"""Tape files as Parquet: opened, checked, cut into pieces, and their columns as arrays.

A file that cannot be a tape is refused with one `Invalid`. Values are converted, never judged: what a row is worth is
decided by those who read it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapewatch.engine.columns import F64, I64, SECOND_NS, U8, Bool
from tapewatch.errors import Invalid
from tapewatch.feeds.marks import spikes

ROWS_AT_ONCE = 1 << 17
_REQUIRED = ("symbol", "ts_ns", "price", "size", "conditions", "exchange", "tape")
_OPTIONAL = ("trade_id", "correction")
TEXT_COLUMNS = ("symbol", "conditions", "exchange", "tape")
_EARLIEST_NS, _LATEST_NS = 631_152_000 * SECOND_NS, 4_102_444_800 * SECOND_NS  # 1990 to 2100
_LONGEST_SYMBOL = 24


# -- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TapeParquet:
    path: Path
    columns: list[str]
    rows: int
    first_ns: int
    last_ns: int

    def tables(self) -> Iterator[tuple[pa.Table, int, int]]:
        """Pieces of the file, the row number at which each starts, and the time of the first row after it."""
        before: tuple[pa.Table, int] | None = None
        for table, row in self._pieces():
            if before is not None:
                ts_ns = integers_of(table.column("ts_ns"))
                times = ts_ns[is_time(ts_ns)]
                yield *before, int(times[0]) if len(times) else _LATEST_NS
            before = table, row
        if before is not None:
            yield *before, _LATEST_NS

    def _pieces(self) -> Iterator[tuple[pa.Table, int]]:
        """The next piece is read while the one before is worked on."""
        row = 0
        with (
            pq.ParquetFile(self.path, read_dictionary=[c for c in TEXT_COLUMNS if c in self.columns]) as file,
            ThreadPoolExecutor(1) as reading,
        ):
            pieces = file.iter_batches(batch_size=ROWS_AT_ONCE, columns=self.columns)
            coming = reading.submit(next, pieces, None)
            try:
                while (piece := coming.result()) is not None:
                    coming = reading.submit(next, pieces, None)
                    yield pa.Table.from_batches([piece]), row
                    row += piece.num_rows
            except (pa.ArrowException, OSError) as error:
                raise Invalid(f"{self.path} after row {row}", f"cannot be read: {_one_line(error)}") from None


def open_tape(path: Path, conditions_column: str) -> TapeParquet:
    if not path.is_file():
        raise Invalid(str(path), "is a folder, not a tape file" if path.is_dir() else "no such file")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise Invalid(str(path), f"is not a Parquet file: {_one_line(error)}") from None
    with file:
        schema, rows = file.schema_arrow, file.metadata.num_rows
        needed = dict.fromkeys([*_REQUIRED, conditions_column])
        missing = [name for name in needed if name not in schema.names]
        if missing:
            raise Invalid(
                str(path), f"lacks the column {' and '.join(map(repr, missing))}; it has: {', '.join(schema.names)}"
            )
        columns = [*needed, *(name for name in (*_OPTIONAL, "suspicious") if name in schema.names)]
        for name in columns:
            if schema.names.count(name) > 1:
                raise Invalid(str(path), f"has the column {name!r} more than once")
            kind, wanted = schema.field(name).type, _wanted_type(name)
            if not any(check(kind.value_type if pa.types.is_dictionary(kind) else kind) for check in wanted.checks):
                raise Invalid(str(path), f"the column {name!r} must be {wanted.words}, not {kind}")
        first_ns, last_ns = _span(file)
    return TapeParquet(path=path, columns=columns, rows=rows, first_ns=first_ns, last_ns=last_ns)


@dataclass(frozen=True, slots=True)
class _Wanted:
    words: str
    checks: tuple[Any, ...]


def _wanted_type(name: str) -> _Wanted:
    text = (pa.types.is_string, pa.types.is_large_string)
    if name in TEXT_COLUMNS:
        return _Wanted("text", text)
    if name in {"trade_id", "correction"}:
        return _Wanted("text or an integer", (*text, pa.types.is_integer))
    if name == "suspicious":
        return _Wanted("true or false", (pa.types.is_boolean,))
    if name in {"price", "size"}:
        return _Wanted("a number", (pa.types.is_floating, pa.types.is_integer, pa.types.is_decimal))
    return _Wanted("an integer", (pa.types.is_integer,))


def _span(file: pq.ParquetFile) -> tuple[int, int]:
    """Lowest and highest time, from the file's statistics, or from the column where there are none."""
    # By path: columns of structures before it take several places.
    metadata = file.metadata
    column = next(c for c in range(metadata.num_columns) if metadata.schema.column(c).path == "ts_ns")
    groups = [metadata.row_group(g).column(column).statistics for g in range(metadata.num_row_groups)]
    if groups and all(s is not None and s.has_min_max for s in groups):
        return min(s.min for s in groups), max(s.max for s in groups)
    span = pc.min_max(file.read(columns=["ts_ns"]).column("ts_ns")).as_py()
    return span["min"] or 0, span["max"] or 0


def overlapping(files_: list[TapeParquet]) -> list[list[TapeParquet]]:
    """Files in the order of time; those that overlap stand together."""
    groups: list[list[TapeParquet]] = []
    end = 0
    for file in sorted((f for f in files_ if f.rows), key=lambda f: (f.first_ns, f.last_ns, f.path.name)):
        if groups and file.first_ns <= end:
            groups[-1].append(file)
        else:
            groups.append([file])
        end = max(end, file.last_ns)
    return groups


def _one_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def is_no_symbol(name: str) -> bool:
    """Whether a text cannot name a security."""
    return not name or len(name) > _LONGEST_SYMBOL or not name.isprintable()


# -- columns ----------------------------------------------------------------------------------------------------------


def texts_of(column: pa.ChunkedArray) -> tuple[list[str], I64]:
    """The distinct texts of a column and, per row, which; null is the empty text."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    array = encoded.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    names = [name or "" for name in array.dictionary.to_pylist()]
    codes = pc.fill_null(array.indices.cast(pa.int64()), len(names)).to_numpy(zero_copy_only=False)
    return [*names, ""], codes


def letters_of(text: tuple[list[str], I64]) -> U8:
    names, codes = text
    return np.array([min(ord(name[0]), 255) if name else 0 for name in names], np.uint8)[codes]


def integers_of(column: pa.ChunkedArray) -> I64:
    """int64; null and what does not fit become -1."""
    return pc.fill_null(pc.cast(column, pa.int64(), safe=False), -1).to_numpy()


def floats_of(column: pa.ChunkedArray) -> F64:
    """float64; null becomes NaN."""
    return pc.fill_null(pc.cast(column, pa.float64(), safe=False), float("nan")).to_numpy()


def is_time(ts_ns: I64) -> Bool:
    """Whether a time can be one of a market's."""
    return (ts_ns >= _EARLIEST_NS) & (ts_ns < _LATEST_NS)


def timed_spikes(ts_ns: I64, timed: Bool, before_ns: int, next_ns: int) -> Bool:
    """`spikes`, where rows that are not `timed` say nothing of their neighbours."""
    found = np.zeros(len(ts_ns), np.bool_)
    rows = np.flatnonzero(timed)
    found[rows] = spikes(ts_ns[rows], before_ns=before_ns, next_ns=next_ns)
    return found


def corrections_of(column: pa.ChunkedArray) -> I64:
    """Correction codes as integers; null is 0, and a text that is no number -1."""
    if pa.types.is_integer(column.type):
        return pc.fill_null(pc.cast(column, pa.int64()), 0).to_numpy()
    names, codes = texts_of(column)
    values = [int(name) if name.strip().isdecimal() else (0 if not name.strip() else -1) for name in names]
    return np.array(values, np.int64)[codes]


def trade_ids_of(table: pa.Table) -> I64 | None:
    """Trade ids as integers, 0 where there is none; a text that is no number gets a stable number of its own."""
    if "trade_id" not in table.column_names:
        return None
    column = table.column("trade_id")
    if pa.types.is_integer(column.type):
        return pc.fill_null(pc.cast(column, pa.int64(), safe=False), 0).to_numpy()
    text = pc.fill_null(pc.cast(column, pa.string()), "0")
    try:
        return pc.cast(text, pa.int64()).to_numpy()
    except pa.ArrowInvalid:
        return np.array(
            [
                int(t or 0)
                if not t or (t.isascii() and t.isdigit() and len(t) <= 18)
                else int.from_bytes(blake2b(t.encode(), digest_size=7).digest())
                for t in text.to_pylist()
            ],
            np.int64,
        )
