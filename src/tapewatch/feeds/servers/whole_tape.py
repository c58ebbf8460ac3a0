"""Tape files as a provider would have sent them: every trade when it printed, then what became of it.

`tapewatch.feeds.tape_file` reads what counts in the end; this module keeps what was cancelled, shows a corrected trade
as it first stood, repeats what the tape repeats, and leaves out only rows that cannot be a trade.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tapewatch.engine.columns import I64, Batch, Bool, Kind, make_batch
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.marks import TapeTime
from tapewatch.feeds.tape_parquet import (
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

_NO_ID = np.iinfo(np.int64).min
_COUNTS, _CORRECTED, _WITHDRAWN = (0,), (1, 2), (7, 8)
_CANCEL, _ERROR, _CORRECTION = 10, 11, 12
_TRADES = (*_COUNTS, *_CORRECTED, *_WITHDRAWN)
_Key = tuple[int, int, int]
"""Code of the symbol, exchange, trade id."""
_Columns = dict[str, Any]


class Figures(NamedTuple):
    """What a correction can change."""

    price: float
    size: float
    condition: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """Consecutive rows of the tape, with the marks of a replayed one."""

    first_row: int
    """Place of the first one, not counting rows that were left out."""
    batch: Batch
    """Trades, cancels and corrections. A CANCEL's `condition` is ``C`` for a cancel and ``E`` for an error. A tape
    without ids gets places as `trade_id`, counted from 1."""
    originals: Mapping[int, Figures]
    """What a corrected trade first looked like, by the correction's place in the tape."""

    def cut(self, start: int, stop: int) -> "Rows":
        """The rows from `start` up to `stop`."""
        return Rows(first_row=self.first_row + start, batch=self.batch.rows(start, stop), originals=self.originals)

    @property
    def places(self) -> I64:
        """Shape (len(batch),): each row's place in the tape."""
        return np.arange(self.first_row, self.first_row + len(self.batch))


class WholeTape:
    """Reads once, in the order of arrival; files that overlap are merged. `Invalid` for one that cannot be a tape."""

    def __init__(self, paths: Sequence[Path]) -> None:
        files = [open_tape(path, "conditions") for path in paths]
        self._groups = overlapping(files)
        self._symbols, self._conditions = Dictionary(), Dictionary()
        self.total_rows = sum(file.rows for file in files)
        self.left_out: Counter[str] = Counter()
        """Rows that cannot be a trade or say nothing, by reason."""
        self._before: dict[_Key, Figures] = {}
        """The first figures of trades that are corrected somewhere in this group of files."""
        self._after: dict[_Key, Figures] = {}
        self._time = TapeTime()

    def chunks(self) -> Iterator[Rows]:
        """The last one is a mark two minutes after the last trade, so that everything closes."""
        row = 0
        for group in self._groups:
            self._before, self._after = {}, {}
            for file in group:
                self._look_ahead(file)
            for columns in _merge([self._decode(file) for file in group]):
                rows = self._finish(columns, row)
                row += len(rows.batch)
                yield rows
        if self._time.now_ns >= 0:
            yield Rows(first_row=row, batch=self._time.end(), originals={})

    def _look_ahead(self, file: TapeParquet) -> None:
        """Records of correction hold what the trade first looked like, and stand after it."""
        if not {"correction", "trade_id"} <= set(file.columns):
            return
        codes = (table.column("correction") for table, *_ in replace(file, columns=["correction", "ts_ns"]).tables())
        if not any((corrections_of(column) == _CORRECTION).any() for column in codes):
            return
        for table, _row, _next_ns in file.tables():
            code = corrections_of(table.column("correction"))
            found = np.flatnonzero(code == _CORRECTION)
            if len(found):
                columns = self._columns(table.take(found))
                self._before.update(zip(_keys(columns), self._figures(columns), strict=True))

    def _decode(self, file: TapeParquet) -> Iterator[_Columns]:
        """Columns of sound rows, and `arrival_ns`: the highest time that the file had reached with each."""
        run_ns = -1
        for table, _row, next_ns in file.tables():
            columns = self._columns(table)
            ts_ns, price, size = columns["ts_ns"], columns["price"], columns["size"]
            timed = is_time(ts_ns)
            unsound: dict[str, Bool] = {
                "symbol": np.array([is_no_symbol(name) for name in self._symbols.names])[columns["symbol"]],
                "ts_ns": ~timed,
                "ts_ns_spike": timed_spikes(ts_ns, timed, run_ns, next_ns),
                "price": ~((price > 0) & (price < np.inf)),
                "size": ~((size >= 0) & (size < np.inf)),
                "correction": ~np.isin(columns["code"], (*_TRADES, _CANCEL, _ERROR, _CORRECTION))
                | ((columns["code"] > max(_WITHDRAWN)) & (columns["trade_id"] <= 0)),
            }
            keep = np.ones(len(ts_ns), np.bool_)
            for reason, bad in unsound.items():
                self.left_out[reason] += int(np.count_nonzero(keep & bad))
                keep &= ~bad
            columns = {name: column[keep] for name, column in columns.items()}
            if len(columns["ts_ns"]):
                columns["arrival_ns"] = np.maximum.accumulate(np.maximum(columns["ts_ns"], run_ns))
                run_ns = int(columns["arrival_ns"][-1])
                yield columns

    def _columns(self, table: pa.Table) -> _Columns:
        def coded(name: str, dictionary: Dictionary) -> I64:
            names, codes = texts_of(table.column(name))
            return dictionary.encode(names)[codes]

        ids = trade_ids_of(table)
        rows, columns = table.num_rows, table.column_names
        return {
            "symbol": coded("symbol", self._symbols),
            "condition": coded("conditions", self._conditions),
            "ts_ns": integers_of(table.column("ts_ns")),
            "price": floats_of(table.column("price")),
            "size": floats_of(table.column("size")),
            "tape": letters_of(texts_of(table.column("tape"))),
            "exchange": letters_of(texts_of(table.column("exchange"))),
            "trade_id": np.full(rows, _NO_ID) if ids is None else ids,
            "code": corrections_of(table.column("correction")) if "correction" in columns else np.zeros(rows, np.int64),
        }

    def _figures(self, columns: _Columns) -> list[Figures]:
        names = self._conditions.names
        conditions = [names[code] for code in columns["condition"].tolist()]
        return list(map(Figures, columns["price"].tolist(), columns["size"].tolist(), conditions))

    def _finish(self, columns: _Columns, first_row: int) -> Rows:
        """Rows of the tape from columns in the order of arrival."""
        code = columns.pop("code")
        del columns["arrival_ns"]
        keep = np.ones(len(code), np.bool_)
        originals = self._correct(columns, code, keep) if np.isin(code, (*_CORRECTED, _CORRECTION)).any() else {}
        kind = np.select(
            [(code == _CANCEL) | (code == _ERROR), code == _CORRECTION], [Kind.CANCEL, Kind.CORRECTION], Kind.TRADE
        )
        words = self._conditions.encode(["C", "E"])
        columns["condition"] = np.select([code == _CANCEL, code == _ERROR], words.tolist(), columns["condition"])
        if not keep.all():
            self.left_out["correction"] += int(np.count_nonzero(~keep))
            columns = {name: column[keep] for name, column in columns.items()}
            kind = kind[keep]
        place = np.cumsum(keep) - 1 + first_row
        ids = columns["trade_id"]
        columns["trade_id"] = np.where(ids == _NO_ID, np.arange(first_row, first_row + len(ids)) + 1, ids)
        batch = make_batch(symbols=self._symbols.names, conditions=self._conditions.names, kind=kind, **columns)
        originals = {int(place[at]): was for at, was in originals.items()}
        return Rows(first_row=first_row, batch=self._time.mark(batch), originals=originals)

    def _correct(self, columns: _Columns, code: I64, keep: Bool) -> dict[int, Figures]:
        """Give corrected trades their first figures, and records of correction the new ones, in place; the first
        figures by the record's position. A record without its trade is not kept.
        """
        originals: dict[int, Figures] = {}
        at = np.flatnonzero(np.isin(code, (*_CORRECTED, _CORRECTION)))
        picked = {name: column[at] for name, column in columns.items()}
        for position, key, figures in zip(at.tolist(), _keys(picked), self._figures(picked), strict=True):
            shown = figures
            if code[position] == _CORRECTION:
                if key not in self._after:
                    keep[position] = False
                    continue
                originals[position], shown = figures, self._after[key]
            elif key in self._before:
                self._after[key], shown = figures, self._before[key]
            columns["price"][position], columns["size"][position] = shown.price, shown.size
            columns["condition"][position] = self._conditions.encode([shown.condition])[0]
        return originals


def _keys(columns: _Columns) -> list[_Key]:
    return list(zip(*(columns[name].tolist() for name in ("symbol", "exchange", "trade_id")), strict=True))


def _merge(files: Sequence[Iterator[_Columns]]) -> Iterator[_Columns]:
    """Columns of several files by `arrival_ns`; at one instant, the earlier file goes first."""
    waiting: list[_Columns | None] = [next(file, None) for file in files]
    while any(columns is not None for columns in waiting):
        limit_ns, last = min((c["arrival_ns"][-1], i) for i, c in enumerate(waiting) if c is not None)
        parts = []
        for i, columns in enumerate(waiting):
            if columns is None:
                continue
            stop = np.searchsorted(columns["arrival_ns"], limit_ns, side="right" if i <= last else "left")
            parts.append({name: column[:stop] for name, column in columns.items()})
            rest = {name: column[stop:] for name, column in columns.items()}
            waiting[i] = rest if len(rest["ts_ns"]) else next(files[i], None)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        order = np.argsort(joined["arrival_ns"], kind="stable")
        yield {name: column[order] for name, column in joined.items()}
