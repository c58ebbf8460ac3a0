"""Tape files: Parquet with one trade a row, read into batches.

Rows that cannot be a trade are left out and counted by reason with the first place where it happened; a file that
cannot be a tape at all is refused as a whole with one `Invalid`. What a trade may move is not decided here.
"""

import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tapewatch.engine.columns import I64, ROW_COLUMNS, Batch, Bool, make_batch
from tapewatch.engine.seen import SeenTrades
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.marks import TapeTime
from tapewatch.feeds.tape_parquet import (
    ROWS_AT_ONCE,
    TEXT_COLUMNS,
    TapeParquet,
    corrections_of,
    floats_of,
    integers_of,
    is_no_symbol,
    is_time,
    letters_of,
    open_tape,
    overlapping,
    texts_of,
    timed_spikes,
    trade_ids_of,
)

_KEPT_CORRECTIONS = (0, 1, 2)
"""NYSE TAQ codes: 00 regular, 01 and 02 corrected later (the row holds the corrected data)."""
_DROPPED_CORRECTIONS = (7, 8, 10, 11, 12)
"""07 and 08: later an error or cancelled; 10, 11, 12: the records that said so."""


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
    conflicts: int = 0
    """Of the duplicates, those with another price, size or time than the trade that they repeat."""


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
        files_ = [open_tape(path, conditions_column) for path in paths]
        self._groups = overlapping(files_)
        self.total_rows = sum(file.rows for file in files_)

    def batches(self) -> Iterator[Batch]:
        """Rows and marks. The last batch is a pulse two minutes after the last minute, so that everything closes."""
        for group in self._groups:
            if len(group) == 1:
                yield from (self._mark(self._decode(group[0], *part)) for part in group[0].tables())
            else:
                yield from self._merge([[self._decode(file, *part) for part in file.tables()] for file in group])
        if self._time.now_ns >= 0:
            yield self._time.end()

    # -- one chunk ----------------------------------------------------------------------------------------------------

    def _decode(self, file: "TapeParquet", table: pa.Table, first_row: int, next_ns: int) -> Batch:
        """`next_ns` is the time of the file's next row after these."""
        self.seen.rows += table.num_rows
        self._file_ns = self._file_ns if first_row else -1
        text = {name: texts_of(table.column(name)) for name in TEXT_COLUMNS}
        ts_ns = integers_of(table.column("ts_ns"))
        price, size = floats_of(table.column("price")), floats_of(table.column("size"))
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
        wrong = np.array([is_no_symbol(name) for name in names], np.bool_)
        tests = np.array([name in self._test_symbols for name in names], np.bool_)
        rejected, dropped, noted = self.seen.rejected, self.seen.dropped, self.seen.noted
        refuse("symbol", wrong[symbol], rejected)
        timed = is_time(ts_ns)
        refuse("ts_ns", ~timed, rejected)
        refuse("ts_ns_spike", timed_spikes(ts_ns, timed, self._time.now_ns, next_ns), rejected)
        refuse("price", ~((price > 0) & (price < np.inf)), rejected)
        refuse("size", ~((size >= 0) & (size < np.inf)), rejected)
        refuse("test_symbol", tests[symbol], dropped)
        if "correction" in table.column_names:
            code = corrections_of(table.column("correction"))
            refuse("correction", np.isin(code, _DROPPED_CORRECTIONS), dropped)
            refuse("correction_code", ~np.isin(code, _KEPT_CORRECTIONS), rejected)
            noted["corrected"] += int(np.count_nonzero(keep & (code != 0)))
        codes = self._coded(names, wrong | tests)[symbol]
        ids = trade_ids_of(table)
        batch = make_batch(
            symbols=self._symbols.names,
            conditions=self._conditions.names,
            symbol=codes,
            condition=self._judged(table, text["conditions"]),
            ts_ns=ts_ns,
            price=price,
            size=size,
            tape=letters_of(text["tape"]),
            exchange=letters_of(text["exchange"]),
            trade_id=np.zeros(len(keep), np.int64) if ids is None else ids,
        )
        if ids is not None:
            again = self._trades.repeats(batch, keep)
            refuse("duplicate", again.repeated, dropped)
            if again.conflicting.any():
                self.seen.conflicts += int(np.count_nonzero(again.conflicting))
                name_first("conflict", int(np.argmax(again.conflicting)))
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
        flags = np.maximum(integers_of(table.column(self._conditions_column)), 0)
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
        for start in range(0, len(order), ROWS_AT_ONCE):
            piece = order[start : start + ROWS_AT_ONCE]
            rows = {name: column[piece] for name, column in columns.items()}
            yield self._mark(make_batch(symbols=self._symbols.names, conditions=self._conditions.names, **rows))
