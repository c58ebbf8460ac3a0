"""The tape for the oracle: rows and marks, from Parquet files or from whoever calls.

What is refused, dropped and known twice is what docs/tape-format.md says. Nothing here is fast.
"""

import math
import tomllib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from tapewatch.errors import Invalid
from tapewatch.ledger.days import MINUTE, SECOND

PULSE = SECOND // 10
_HOUR = 3600 * SECOND
_FIRST, _LAST = 631_152_000 * SECOND, 4_102_444_800 * SECOND
_NEEDED = ("symbol", "ts_ns", "price", "size", "conditions", "exchange", "tape")
_ROWS_AT_ONCE = 50_000


class Row(NamedTuple):
    """One print, or what withdraws or corrects one."""

    symbol: str
    ts_ns: int
    price: float
    size: float
    conditions: str = "@"
    tape: str = "C"
    exchange: str = ""
    trade_id: int | str = 0
    """0 where there is none."""
    kind: str = "trade"
    """``trade``, ``cancel`` or ``correction``: of the trade of this symbol, exchange and trade id."""


class Mark(NamedTuple):
    """No trade before this instant is expected any more."""

    ns: int


Item: TypeAlias = Row | Mark


@dataclass
class Counted:
    """What became of the rows of the files."""

    sent: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason: no trade of a stock that counts."""
    duplicates: int = 0


class TapeFiles:
    """The rows of tape files in the order of arrival, with a mark wherever time passes a tenth of a second."""

    def __init__(self, paths: Sequence[Path], *, column: str = "conditions", keep_test_symbols: bool = False) -> None:
        table = tomllib.loads((files("tapewatch") / "reference" / "test_symbols.toml").read_text("utf-8"))
        self._tests = frozenset() if keep_test_symbols else frozenset(table["symbols"])
        self._column = column
        self._known: set[Any] = set()
        self._now = -1
        self.counted = Counted()
        opened = sorted(
            (_open(path, column) for path in paths), key=lambda file: (file.first, file.last, file.path.name)
        )
        self.files = [file for file in opened if file.rows]
        self.rows = sum(file.rows for file in self.files)
        self.first_ns = min((file.first for file in self.files), default=0)
        self.last_ns = max((file.last for file in self.files), default=0)

    def items(self, on_progress: Callable[[int, int], None] = lambda _done, _all: None) -> Iterator[Item]:
        """Rows and marks; the last mark stands two minutes after the last minute."""
        for row in self._in_order():
            if row.ts_ns // PULSE > self._now // PULSE:
                yield Mark(row.ts_ns // PULSE * PULSE)
            self._now = max(self._now, row.ts_ns)
            yield row
            if self.counted.sent % 1_000 == 0:
                on_progress(self.counted.sent, self.rows)
        if self._now >= 0:
            yield Mark((self._now // MINUTE + 2) * MINUTE)
        on_progress(self.counted.sent, self.rows)

    def _in_order(self) -> Iterator[Row]:
        """Files one after the other; those that overlap by time of arrival."""
        group: list[_File] = []
        end = -1
        for file in self.files:
            if group and file.first > end:
                yield from self._merged(group)
                group = []
            group.append(file)
            end = max(end, file.last)
        yield from self._merged(group)

    def _merged(self, group: list["_File"]) -> Iterator[Row]:
        if len(group) < 2:
            for file in group:
                yield from self._sound(file)
            return
        arrived: list[tuple[int, Row]] = []
        for file in group:
            newest = -1
            for row in self._sound(file):
                newest = max(newest, row.ts_ns)
                arrived.append((newest, row))
        yield from (row for _, row in sorted(arrived, key=lambda each: each[0]))

    # -- one file -----------------------------------------------------------------------------------------------------

    def _sound(self, file: "_File") -> Iterator[Row]:
        """The rows that are trades of a stock, each once."""
        for raw, spike in self._without_spikes(file.raw()):
            self.counted.sent += 1
            reason = self._refusal(raw, spike=spike)
            if reason:
                self.counted.rejected[reason] += 1
                continue
            row = Row(
                symbol=raw["symbol"],
                ts_ns=raw["ts_ns"],
                price=raw["price"],
                size=raw["size"],
                conditions=self._conditions(raw),
                tape=(raw["tape"] or "")[:1] if (raw["tape"] or "")[:1] in {"A", "B", "C"} else "",
                exchange=(raw["exchange"] or "")[:1],
                trade_id=_trade_id(raw.get("trade_id")),
            )
            if row.trade_id and (key := _name_of(row)) in self._known:
                self.counted.duplicates += 1
                continue
            if row.trade_id:
                self._known.add(key)
            yield row

    def _refusal(self, raw: dict[str, Any], *, spike: bool) -> str:
        """Why a row is none that counts, the first reason; empty if it counts."""
        symbol, price, size = raw["symbol"] or "", raw["price"], raw["size"]
        if not symbol or len(symbol) > 24 or not symbol.isprintable():
            return "symbol"
        if not _is_time(raw["ts_ns"]):
            return "ts_ns"
        if spike:
            return "ts_ns_spike"
        if price is None or not 0 < price < math.inf:
            return "price"
        if size is None or not 0 <= size < math.inf:
            return "size"
        if symbol in self._tests:
            return "test_symbol"
        correction = _correction(raw.get("correction"))
        if correction in {7, 8, 10, 11, 12}:
            return "correction"
        return "" if correction in {0, 1, 2} else "correction_code"

    def _conditions(self, raw: dict[str, Any]) -> str:
        if self._column == "conditions":
            return raw["conditions"] or ""
        mask = max(raw[self._column] if raw[self._column] is not None else 0, 0)
        return f"{mask:#x}" + (" suspicious" if raw.get("suspicious") else "")

    def _without_spikes(self, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bool]]:
        """Each row, and whether its time jumps ahead by over an hour and the next one is back again. Neighbours of the
        same time are one message.
        """
        messages = chain(_messages(rows), [(_LAST, [])])
        believed = before = self._now
        for (ns, message), (following, _) in pairwise(messages):
            if before < 0:
                believed = before = following
            spike = min(ns - before, ns - following, ns - believed) > _HOUR
            for raw in message:
                yield raw, spike
            before, believed = ns, believed if spike else max(believed, ns)


def _messages(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Neighbours of the same time; rows without one stand with those before them."""
    ns = -1
    message: list[dict[str, Any]] = []
    for raw in rows:
        if _is_time(raw["ts_ns"]):
            if ns >= 0 and raw["ts_ns"] != ns:
                yield ns, message
                message = []
            ns = raw["ts_ns"]
        message.append(raw)
    if message:
        yield ns, message


@dataclass(frozen=True)
class _File:
    path: Path
    columns: list[str]
    rows: int
    first: int
    last: int

    def raw(self) -> Iterator[dict[str, Any]]:
        with pq.ParquetFile(self.path) as file:
            for piece in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=self.columns):
                columns = [_plain(piece.column(name), name) for name in self.columns]
                for values in zip(*columns, strict=True):
                    yield dict(zip(self.columns, values, strict=True))


def _plain(column: Any, name: str) -> list[Any]:
    values: list[Any] = column.to_pylist()
    if name in {"price", "size"}:
        return [None if value is None else float(value) for value in values]
    return values


def _open(path: Path, column: str) -> _File:
    try:
        with pq.ParquetFile(path) as file:
            names = file.schema_arrow.names
            needed = list(dict.fromkeys([*_NEEDED, column]))
            missing = [name for name in needed if name not in names]
            if missing:
                raise Invalid(str(path), f"lacks the column {', '.join(missing)}")
            columns = needed + [name for name in ("trade_id", "correction", "suspicious") if name in names]
            times = [ns for ns in file.read(columns=["ts_ns"]).column("ts_ns").to_pylist() if ns is not None]
            rows = file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise Invalid(str(path), f"is not a tape file: {str(error).strip().splitlines()[0]}") from None
    return _File(path, columns, rows, min(times, default=0), max(times, default=0))


def _is_time(ns: Any) -> bool:
    return ns is not None and _FIRST <= ns < _LAST


def _correction(code: Any) -> int:
    """0 is a plain trade, -1 is a code that nobody knows."""
    if code is None or isinstance(code, int):
        return code or 0
    text = code.strip()
    return int(text) if text.isdecimal() else (-1 if text else 0)


def _trade_id(name: Any) -> int | str:
    if isinstance(name, str):
        return int(name) if name.isascii() and name.isdigit() else name
    return name or 0


def _name_of(row: Row) -> Any:
    """What makes a trade the same trade."""
    name = (row.symbol, row.exchange, row.trade_id, row.ts_ns // (86_400 * SECOND))
    if row.exchange == "D":  # several facilities number on their own
        return *name, row.ts_ns // 1_000_000, row.price, row.size
    return name
