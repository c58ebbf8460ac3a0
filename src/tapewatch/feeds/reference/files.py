"""Files as a source: the symbol master, splits and daily bars as CSV or Parquet.

What a file holds is told by its columns, which docs/reference-data.md lists. A file is taken as a whole or refused with
one `Invalid` that names the file, the row (the first one below the header is row 1) and the column.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from tapewatch.documents import D, Security, Split, day_number, day_of_number, parse_document
from tapewatch.engine.daily import DailyBars, join_daily_bars
from tapewatch.errors import Invalid
from tapewatch.feeds.reference.listing import TAPE_OF_MIC, is_symbol, new_york_date
from tapewatch.feeds.tape_file import exchange_test_symbols

_BARS = ("symbol", "date", "open", "high", "low", "close", "volume")
_SPLITS = ("symbol", "ex_date", "split_from", "split_to")
_SECURITIES = tuple(Security.model_fields)
_NUMBERS = {"market_cap", "shares_outstanding", "split_from", "split_to"}
_FLAGS = {"is_test", "active"}
_MOST_ROWS = 20_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    securities: list[Security]
    splits: list[Split]
    daily_bars: DailyBars


class FileReference:
    """`Reference` over files, which are read anew for every question, so that they may be replaced at any time."""

    name = "files"

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)

    async def securities(self) -> list[Security]:
        """Those of the files, and a bare one for every other symbol that has daily bars."""
        contents = await self._read()
        listed = {security.symbol: security for security in contents.securities}
        bars = contents.daily_bars
        if len(bars):
            as_of, tests = day_of_number(int(bars.day.max())), exchange_test_symbols()
            for symbol in bars.symbols:
                listed.setdefault(symbol, Security(symbol=symbol, as_of=as_of, is_test=symbol in tests))
        return list(listed.values())

    async def details(self, symbols: Sequence[str]) -> AsyncIterator[Security]:  # noqa: ARG002
        nothing: Sequence[Security] = ()
        for security in nothing:
            yield security

    async def splits(self, start: date, end: date) -> list[Split]:
        return [split for split in (await self._read()).splits if start <= split.ex_date <= end]

    async def daily_bars(self, symbols: Sequence[str], start: date, end: date) -> DailyBars:  # noqa: ARG002
        bars = (await self._read()).daily_bars
        return bars.take((bars.day >= day_number(start)) & (bars.day <= day_number(end)))

    async def close(self) -> None:
        pass

    async def _read(self) -> _Contents:
        return await asyncio.to_thread(_read_all, self._paths)


def _read_all(paths: Sequence[Path]) -> _Contents:
    securities: dict[str, Security] = {}
    splits: dict[tuple[str, date], Split] = {}
    bars = []
    for path in paths:
        table = _table(path)
        names = set(table.column_names)
        if {"close", "date"} & names:
            _check_columns(path, names, known=_BARS, needed=_BARS)
            bars.append(_daily_bars(path, table))
        elif "ex_date" in names:
            _check_columns(path, names, known=_SPLITS, needed=_SPLITS)
            for row, raw in _rows(path, table):
                split = _document(Split, raw, path, row)
                _refuse_repeated(path, row, (split.symbol, split.ex_date), splits)
                splits[split.symbol, split.ex_date] = split
        elif "symbol" in names:
            _check_columns(path, names, known=_SECURITIES, needed=("symbol",))
            for row, security in _securities(path, table):
                _refuse_repeated(path, row, security.symbol, securities)
                securities[security.symbol] = security
        else:
            raise Invalid(str(path), "is none of the symbol master, splits or daily bars: it has no column 'symbol'")
    return _Contents(
        securities=list(securities.values()), splits=list(splits.values()), daily_bars=join_daily_bars(bars)
    )


def _refuse_repeated(path: Path, row: int, key: Any, known: dict[Any, Any]) -> None:
    if key in known:
        raise Invalid(f"{path} row {row}, column symbol", f"{key if isinstance(key, str) else key[0]} comes twice")


def _check_columns(path: Path, names: set[str], *, known: Sequence[str], needed: Sequence[str]) -> None:
    if missing := [name for name in needed if name not in names]:
        raise Invalid(str(path), f"lacks the column {' and '.join(map(repr, missing))}")
    if unknown := sorted(names - set(known)):
        raise Invalid(str(path), f"has the unknown column {unknown[0]!r}; there are: {', '.join(known)}")


# -- documents --------------------------------------------------------------------------------------------------------


def _securities(path: Path, table: pa.Table) -> list[tuple[int, Security]]:
    as_of, tests = new_york_date(path.stat().st_mtime_ns), exchange_test_symbols()
    found = []
    for row, raw in _rows(path, table):
        filled = {"as_of": as_of, "tape": TAPE_OF_MIC.get(str(raw.get("exchange"))), **raw}
        filled.setdefault("is_test", raw.get("symbol") in tests)
        found.append((row, _document(Security, filled, path, row)))
    return found


def _document(model: type[D], raw: dict[str, Any], path: Path, row: int) -> D:
    try:
        return parse_document(model, raw)
    except Invalid as error:
        raise Invalid(f"{path} row {row}, column {error.where}", error.why) from None


def _rows(path: Path, table: pa.Table) -> list[tuple[int, dict[str, Any]]]:
    """Row numbers and what is in each row; fields that are empty are left out."""
    rows = []
    for row, raw in enumerate(table.to_pylist(), start=1):
        filled = {name: value for name, value in raw.items() if value is not None and value != ""}
        for name, value in filled.items():
            if isinstance(value, str):
                filled[name] = _typed(name, value, where=f"{path} row {row}, column {name}")
        rows.append((row, filled))
    return rows


def _typed(name: str, text: str, *, where: str) -> Any:
    if name in _NUMBERS:
        return _number(text, float, where=where)
    if name == "round_lot":
        return _number(text, int, where=where)
    if name in _FLAGS:
        flag = {"true": True, "false": False, "1": True, "0": False}.get(text.lower())
        if flag is None:
            raise Invalid(where, f"{text[:40]!r} is neither true nor false")
        return flag
    return text


def _number(text: str, kind: Callable[[str], float], *, where: str) -> float:
    if not re.fullmatch(r"[+-]?[0-9]{1,30}(\.[0-9]{0,30})?([eE][+-]?[0-9]{1,3})?", text):
        raise Invalid(where, f"{text[:40]!r} is not a number")
    try:
        return kind(text)
    except ValueError:
        raise Invalid(where, f"{text[:40]!r} is not a whole number") from None


# -- columns ----------------------------------------------------------------------------------------------------------


def _daily_bars(path: Path, table: pa.Table) -> DailyBars:
    named = table.column("symbol").combine_chunks()
    if isinstance(named, pa.ChunkedArray):
        named = named.chunk(0) if named.num_chunks else pa.array([], pa.string())
    coded = _cast(path, "symbol", named, pa.string()).dictionary_encode()
    symbols = tuple(coded.dictionary.to_pylist())
    symbol = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int32)
    wrong = np.array([not is_symbol(name or "") for name in symbols] + [True])[symbol]
    if wrong.any():
        row = int(np.argmax(wrong))
        raise Invalid(f"{path} row {row + 1}, column symbol", f"{str(named[row])[:40]!r} is not a symbol")
    days = _cast(path, "date", table.column("date"), pa.date32())
    columns = {name: _cast(path, name, table.column(name), pa.float64()) for name in _BARS[2:]}
    bars = DailyBars(
        symbols=symbols,
        symbol=symbol,
        day=_array(days.cast(pa.int32()), np.int32, unknown=-1),
        **{name: _array(column, np.float64, unknown=float("nan")) for name, column in columns.items()},
    )
    try:
        bars.check(str(path), first_row=1)
    except Invalid as error:
        raise Invalid(error.where.replace("column day", "column date"), error.why) from None
    keys = (bars.symbol.astype(np.int64) << 20) + bars.day
    _, first = np.unique(keys, return_index=True)
    if len(first) < len(keys):
        row = int(np.setdiff1d(np.arange(len(keys)), first)[0])
        raise Invalid(
            f"{path} row {row + 1}, column symbol",
            f"{symbols[symbol[row]]} of {day_of_number(int(bars.day[row]))} comes twice",
        )
    return bars


def _cast(path: Path, name: str, column: Any, kind: pa.DataType) -> Any:
    """The column as `kind`, or `Invalid` with the first row that is none."""
    try:
        return pc.cast(column, kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        low, high = 0, len(column)  # the first `low` rows can be cast, the first `high` cannot
        while high - low > 1:
            middle = (low + high) // 2
            try:
                pc.cast(column[:middle], kind)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                high = middle
            else:
                low = middle
        wanted = "a date such as 2025-03-03" if name == "date" else "a text" if name == "symbol" else "a number"
        raise Invalid(f"{path} row {high}, column {name}", f"{str(column[high - 1])[:40]!r} is not {wanted}") from None


def _array(column: Any, kind: Any, *, unknown: Any) -> Any:
    return pc.fill_null(column, unknown).to_numpy(zero_copy_only=False).astype(kind)


# -- files ------------------------------------------------------------------------------------------------------------


def _table(path: Path) -> pa.Table:
    if not path.is_file():
        raise Invalid(str(path), "is a folder, not a file" if path.is_dir() else "no such file")
    try:
        table = pq.read_table(path) if path.suffix == ".parquet" else _csv(path)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        text = str(error).strip().splitlines()
        raise Invalid(str(path), f"cannot be read: {text[0][:200] if text else type(error).__name__}") from None
    names = table.column_names
    for name in names:
        if names.count(name) > 1:
            raise Invalid(str(path), f"has the column {name!r} more than once")
    if table.num_rows > _MOST_ROWS:
        raise Invalid(str(path), f"has more than {_MOST_ROWS} rows")
    return table


def _csv(path: Path) -> pa.Table:
    """All columns as text; an empty field is null. Its compression is told by its name."""
    with pa_csv.open_csv(path) as reader:
        names = reader.schema.names
    options = pa_csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True, null_values=[""]
    )
    return pa_csv.read_csv(path, convert_options=options, parse_options=pa_csv.ParseOptions(newlines_in_values=False))
