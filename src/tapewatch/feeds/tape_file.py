"""Tape files: Parquet with one trade a row, read into batches.

Rows that cannot be a trade are left out and counted by reason with the first place where it happened; a file that
cannot be a tape at all is refused as a whole with one `Invalid`. What a trade may move is not decided here.
"""

import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tapewatch.engine.columns import F64, I64, MINUTE_NS, ROW_COLUMNS, SECOND_NS, U8, Batch, Bool, make_batch, pulse
from tapewatch.engine.seen import SeenTrades
from tapewatch.errors import Invalid
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.marks import TapeTime, spikes

_ROWS = 1 << 17
_REQUIRED = ("symbol", "ts_ns", "price", "size", "conditions", "exchange", "tape")
_OPTIONAL = ("trade_id", "correction")
_TEXT = ("symbol", "conditions", "exchange", "tape")
_EARLIEST_NS, _LATEST_NS = 631_152_000 * SECOND_NS, 4_102_444_800 * SECOND_NS  # 1990 to 2100
_HOUR_NS = 3600 * SECOND_NS
_KEPT_CORRECTIONS = (0, 1, 2)
"""NYSE TAQ codes: 00 regular, 01 and 02 corrected later (the row holds the corrected data)."""
_DROPPED_CORRECTIONS = (7, 8, 10, 11, 12)
"""07 and 08: later an error or cancelled; 10, 11, 12: the records that said so."""
_LONGEST_SYMBOL = 24


def exchange_test_symbols() -> frozenset[str]:
    """Symbols with which exchanges test their systems."""
    table = files("tapewatch") / "reference" / "test_symbols.toml"
    return frozenset(tomllib.loads(table.read_text(encoding="utf-8"))["symbols"])


@dataclass(slots=True)
class Seen:
    """What the reader saw, for people: `rejected` cannot be a trade, `dropped` is none that counts."""

    rows: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    noted: Counter[str] = field(default_factory=Counter)
    """Kept, and worth knowing: odd lots, fractional sizes, records without volume, rows out of order."""
    first: dict[str, str] = field(default_factory=dict)
    """Reason -> the first place, such as ``trades.parquet row 17``."""


class TapeReader:
    """Reads tape files in the order of time; overlapping files are merged."""

    def __init__(
        self, paths: Sequence[Path], *, conditions_column: str = "conditions", keep_test_symbols: bool = False
    ) -> None:
        self.seen = Seen()
        self._conditions_column = conditions_column
        self._test_symbols = frozenset() if keep_test_symbols else exchange_test_symbols()
        self._symbols, self._conditions = Dictionary(), Dictionary()
        self._trades = SeenTrades()
        self._time = TapeTime()
        self._file_ns = -1
        """The highest time so far of the file that is being decoded."""
        files_ = [_open(path, conditions_column) for path in paths]
        self._groups = _groups(files_)
        self.total_rows = sum(file.rows for file in files_)

    def batches(self) -> Iterator[Batch]:
        """Rows and marks. The last batch is a pulse two minutes after the last minute, so that everything closes."""
        for group in self._groups:
            if len(group) == 1:
                yield from (self._mark(self._decode(group[0], *part)) for part in group[0].tables())
            else:
                yield from self._merge([[self._decode(file, *part) for part in file.tables()] for file in group])
        if self._time.now_ns >= 0:
            yield pulse((self._time.now_ns // MINUTE_NS + 2) * MINUTE_NS)

    # -- one chunk ----------------------------------------------------------------------------------------------------

    def _decode(self, file: "_File", table: pa.Table, first_row: int, next_ns: int) -> Batch:
        """`next_ns` is the time of the file's next row after these."""
        self.seen.rows += table.num_rows
        self._file_ns = self._file_ns if first_row else -1
        text = {name: _codes(table.column(name)) for name in _TEXT}
        ts_ns = _integers(table.column("ts_ns"))
        price, size = _floats(table.column("price")), _floats(table.column("size"))
        keep = np.ones(table.num_rows, np.bool_)

        def name_first(reason: str, row: int) -> None:
            self.seen.first.setdefault(reason, f"{file.path.name} row {first_row + row}")

        def refuse(reason: str, bad: Bool, into: Counter[str]) -> None:
            bad = bad & keep
            count = int(np.count_nonzero(bad))
            if count:
                into[reason] += count
                name_first(reason, int(np.argmax(bad)))
                np.logical_and(keep, ~bad, out=keep)

        names, symbol = text["symbol"]
        wrong = np.array(
            [not name or len(name) > _LONGEST_SYMBOL or not name.isprintable() for name in names], np.bool_
        )
        tests = np.array([name in self._test_symbols for name in names], np.bool_)
        rejected, dropped, noted = self.seen.rejected, self.seen.dropped, self.seen.noted
        refuse("symbol", wrong[symbol], rejected)
        timed = _is_time(ts_ns)
        refuse("ts_ns", ~timed, rejected)
        refuse("ts_ns_spike", _spikes(ts_ns, timed, self._time.now_ns, next_ns), rejected)
        refuse("price", ~((price > 0) & (price < np.inf)), rejected)
        refuse("size", ~((size >= 0) & (size < np.inf)), rejected)
        refuse("test_symbol", tests[symbol], dropped)
        if "correction" in table.column_names:
            code = _corrections(table.column("correction"))
            refuse("correction", np.isin(code, _DROPPED_CORRECTIONS), dropped)
            refuse("correction_code", ~np.isin(code, _KEPT_CORRECTIONS), rejected)
            noted["corrected"] += int(np.count_nonzero(keep & (code != 0)))
        codes = self._coded(names, wrong | tests)[symbol]
        ids = _trade_ids(table)
        batch = make_batch(
            symbols=self._symbols.names,
            conditions=self._conditions.names,
            symbol=codes,
            condition=self._judged(table, text["conditions"]),
            ts_ns=ts_ns,
            price=price,
            size=size,
            tape=_letters(text["tape"]),
            exchange=_letters(text["exchange"]),
            trade_id=np.zeros(len(keep), np.int64) if ids is None else ids,
        )
        if ids is not None:
            refuse("duplicate", self._trades.repeated(batch, keep), dropped)
        odd = np.array(["I" in (name or "") for name in text["conditions"][0]], np.bool_)
        noted["odd_lot"] += int(np.count_nonzero(keep & odd[text["conditions"][1]]))
        noted["fractional_size"] += int(np.count_nonzero(keep & (size != np.floor(size))))
        noted["zero_size"] += int(np.count_nonzero(keep & (size == 0)))
        kept = np.flatnonzero(keep)
        run = np.maximum.accumulate(np.concatenate([[self._file_ns], ts_ns[kept]]))
        self._file_ns = int(run[-1])
        late = kept[ts_ns[kept] < run[1:]]
        if len(late):
            name_first("out_of_order", int(late[0]))
        return batch if keep.all() else batch.take(keep)

    def _coded(self, names: Sequence[str], without: Bool) -> I64:
        """Codes of the names; those that no row will keep get none of their own."""
        codes = np.zeros(len(names), np.int64)
        kept = np.flatnonzero(~without)
        codes[kept] = self._symbols.encode([names[i] for i in kept.tolist()])
        return codes

    def _judged(self, table: pa.Table, letters: tuple[list[str], I64]) -> I64:
        """Codes of the strings that the profile judges: SIP letters, or a vendor's flags with its doubt."""
        if self._conditions_column == "conditions":
            names, codes = letters
            return self._conditions.encode(names)[codes]
        flags = np.maximum(_integers(table.column(self._conditions_column)), 0)
        doubt = (
            pc.fill_null(table.column("suspicious"), False).to_numpy().astype(np.int64)
            if "suspicious" in table.column_names
            else np.zeros(len(flags), np.int64)
        )
        values, place = np.unique(flags * 2 + doubt, return_inverse=True)
        names = [f"{value >> 1:#x}" + (" suspicious" if value & 1 else "") for value in values.tolist()]
        return self._conditions.encode(names)[place]

    # -- marks --------------------------------------------------------------------------------------------------------

    def _mark(self, chunk: Batch) -> Batch:
        """Put a mark before each row that takes the tape's time past a pulse. The watermark is the highest time so far,
        rounded down to the pulse, so it depends on the rows alone.
        """
        late = self._time.late
        marked = replace(self._time.mark(chunk), symbols=self._symbols.names, conditions=self._conditions.names)
        if self._time.late > late:
            self.seen.noted["out_of_order"] += self._time.late - late
        return marked

    def _merge(self, files: list[list[Batch]]) -> Iterator[Batch]:
        """Rows of overlapping files by time of arrival, which is the highest time that each file had reached."""
        chunks = [chunk for file in files for chunk in file]
        columns: dict[str, Any] = {name: np.concatenate([getattr(c, name) for c in chunks]) for name in ROW_COLUMNS}
        arrival = np.concatenate(
            [np.maximum.accumulate(np.concatenate([c.ts_ns for c in file])) for file in files if file]
        )
        order = np.argsort(arrival, kind="stable")
        for start in range(0, len(order), _ROWS):
            piece = order[start : start + _ROWS]
            rows = {name: column[piece] for name, column in columns.items()}
            yield self._mark(make_batch(symbols=self._symbols.names, conditions=self._conditions.names, **rows))


# -- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _File:
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
                ts_ns = _integers(table.column("ts_ns"))
                times = ts_ns[_is_time(ts_ns)]
                yield *before, int(times[0]) if len(times) else _LATEST_NS
            before = table, row
        if before is not None:
            yield *before, _LATEST_NS

    def _pieces(self) -> Iterator[tuple[pa.Table, int]]:
        row = 0
        with pq.ParquetFile(self.path, read_dictionary=[c for c in _TEXT if c in self.columns]) as file:
            try:
                for piece in file.iter_batches(batch_size=_ROWS, columns=self.columns):
                    yield pa.Table.from_batches([piece]), row
                    row += piece.num_rows
            except (pa.ArrowException, OSError) as error:
                raise Invalid(f"{self.path} after row {row}", f"cannot be read: {_one_line(error)}") from None


def _open(path: Path, conditions_column: str) -> _File:
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
    return _File(path=path, columns=columns, rows=rows, first_ns=first_ns, last_ns=last_ns)


@dataclass(frozen=True, slots=True)
class _Wanted:
    words: str
    checks: tuple[Any, ...]


def _wanted_type(name: str) -> _Wanted:
    text = (pa.types.is_string, pa.types.is_large_string)
    if name in _TEXT:
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


def _groups(files_: list[_File]) -> list[list[_File]]:
    """Files in the order of time; those that overlap stand together."""
    groups: list[list[_File]] = []
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


# -- columns ----------------------------------------------------------------------------------------------------------


def _codes(column: pa.ChunkedArray) -> tuple[list[str], I64]:
    """The distinct texts of a column and, per row, which; null is the empty text."""
    encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    array = encoded.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0) if array.num_chunks else pa.array([], array.type)
    names = [name or "" for name in array.dictionary.to_pylist()]
    codes = pc.fill_null(array.indices.cast(pa.int64()), len(names)).to_numpy(zero_copy_only=False)
    return [*names, ""], codes


def _letters(text: tuple[list[str], I64]) -> U8:
    names, codes = text
    return np.array([min(ord(name[0]), 255) if name else 0 for name in names], np.uint8)[codes]


def _integers(column: pa.ChunkedArray) -> I64:
    """int64; null and what does not fit become -1."""
    return pc.fill_null(pc.cast(column, pa.int64(), safe=False), -1).to_numpy()


def _floats(column: pa.ChunkedArray) -> F64:
    """float64; null becomes NaN."""
    return pc.fill_null(pc.cast(column, pa.float64(), safe=False), float("nan")).to_numpy()


def _is_time(ts_ns: I64) -> Bool:
    """Whether a time can be one of a market's."""
    return (ts_ns >= _EARLIEST_NS) & (ts_ns < _LATEST_NS)


def _spikes(ts_ns: I64, timed: Bool, before_ns: int, next_ns: int) -> Bool:
    """`spikes`, where rows that are not `timed` say nothing of their neighbours."""
    found = np.zeros(len(ts_ns), np.bool_)
    rows = np.flatnonzero(timed)
    found[rows] = spikes(ts_ns[rows], before_ns=before_ns, next_ns=next_ns)
    return found


def _corrections(column: pa.ChunkedArray) -> I64:
    """Correction codes as integers; null is 0, and a text that is no number -1."""
    if pa.types.is_integer(column.type):
        return pc.fill_null(pc.cast(column, pa.int64()), 0).to_numpy()
    names, codes = _codes(column)
    values = [int(name) if name.strip().isdecimal() else (0 if not name.strip() else -1) for name in names]
    return np.array(values, np.int64)[codes]


def _trade_ids(table: pa.Table) -> I64 | None:
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
