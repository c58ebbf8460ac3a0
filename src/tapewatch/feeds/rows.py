"""Columns of what a provider said to the rows of a batch: every field is checked, a message with a bad one is counted
in the quarantine by the field's name and gives no row. What a message means is the session's business.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tapewatch.engine.columns import (
    BAR_COLUMNS,
    F64,
    I64,
    MINUTE_NS,
    ROW_COLUMNS,
    SECOND_NS,
    U8,
    Bars,
    Batch,
    Bool,
    Kind,
    make_batch,
)
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.frames import Run
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.tape_file import exchange_test_symbols

MOST_SYMBOLS = 20_000
"""Distinct symbols that a feed may bring; the market lists about 11,000."""
_MOST_CONDITIONS = 8_192
_HIGHEST_PRICE, _LARGEST_SIZE = 1e7, 1e10
_EARLIEST_NS = 631_152_000 * SECOND_NS  # 1990
_AHEAD_NS = 5 * SECOND_NS
"""How far a provider's clock may be ahead of ours."""
_SYMBOL = re.compile(r"(?=.{1,24}\Z)[A-Z][A-Za-z0-9]*(?:[.\- ][A-Za-z0-9]+)*")
_BAD_SYMBOL = {-1: "symbol", -2: "unknown_symbol", -3: "too_many_symbols"}
_TEST_SYMBOL = -4
_INTEGER = re.compile(r"-?[0-9]{1,19}|0[xX][0-9a-fA-F]{1,16}")

TAPES: U8 = np.zeros(256, np.uint8)
"""A character's code -> the same if it is a tape, else 0."""
TAPES[[ord(letter) for letter in "ABC"]] = [ord(letter) for letter in "ABC"]
PARTICIPANTS: U8 = np.zeros(256, np.uint8)
"""A character's code -> the same if it can be a participant of the tape, else 0."""
PARTICIPANTS[ord("A") : ord("Z") + 1] = np.arange(ord("A"), ord("Z") + 1)


class RowMaker:
    """Collects the rows of one call; made once per session."""

    def __init__(
        self,
        *,
        symbols: Dictionary,
        conditions: Dictionary,
        quarantine: Quarantine,
        notes: Counter[str],
        universe: frozenset[str] | None = None,
        most_symbols: int = MOST_SYMBOLS,
    ) -> None:
        """`universe` holds the symbols that were asked for; None is all that there are."""
        self._symbols, self._conditions = symbols, conditions
        self._quarantine, self._notes = quarantine, notes
        self._universe, self._most_symbols = universe, most_symbols
        self._tests = exchange_test_symbols()
        self._codes = {name: code for code, name in enumerate(symbols.names) if not self._refusal(name)}
        self._parts: list[dict[str, NDArray[Any]]] = []
        self._none = self.condition("")

    def condition(self, text: str) -> int:
        """The code of sale conditions or of a reason; -1 for what cannot be one."""
        known = len(self._conditions) < _MOST_CONDITIONS or text in self._conditions.names
        fit = len(text) <= 16 and text.isascii() and (text.isprintable() or not text)
        return int(self._conditions.encode([text])[0]) if known and fit else -1

    def add(
        self,
        run: Run,
        *kinds: Kind,
        symbol: list[str],
        ts_ns: I64,
        price: F64 | None = None,
        size: F64 | None = None,
        condition: I64 | None = None,
        tape: U8 | None = None,
        exchange: U8 | None = None,
        trade_id: I64 | None = None,
    ) -> None:
        """A row of each kind per message. Columns have the shape (n,), or (n, kinds) where the rows differ. A side of a
        quote with neither price nor size is no side: its price is unknown.
        """
        codes = self._encode(symbol)
        columns: dict[str, NDArray[Any]] = {
            "symbol": codes,
            "ts_ns": ts_ns,
            "condition": np.full(len(run), self._none) if condition is None else condition,
        }
        good = {"ts_ns": is_time(ts_ns, run.received_ns), "condition": columns["condition"] >= 0}
        if price is not None:
            good["price"] = (price > 0) & (price <= _HIGHEST_PRICE)
            if Kind.BID in kinds and size is not None:
                absent = (price == 0) & (size == 0)
                good["price"] |= absent
                price = np.where(absent, np.nan, price)
            columns["price"] = price
        if size is not None:
            good["size"] = (size >= 0) & (size <= _LARGEST_SIZE)
            columns["size"] = size
        columns |= {
            name: column
            for name, column in (("tape", tape), ("exchange", exchange), ("trade_id", trade_id))
            if column is not None
        }
        columns["at"] = run.at
        keep = self._sift(run, codes, good)
        if keep is not None:
            columns = {name: column[keep] for name, column in columns.items()}
        n = len(columns["at"])
        if not n:
            return
        if len(kinds) > 1:
            columns = {
                name: np.broadcast_to(column.reshape(n, -1), (n, len(kinds))).reshape(-1)
                for name, column in columns.items()
            }
        columns["kind"] = np.tile(np.array(kinds, np.uint8), n)
        self._parts.append(columns)

    def batch(self) -> Batch | None:
        """The rows since the last call, in the order of arrival; None when there are none."""
        parts, self._parts = self._parts, []
        if not parts:
            return None
        columns: dict[str, Any] = parts[0]
        if len(parts) > 1:
            columns = {
                name: np.concatenate([part.get(name, np.zeros(len(part["at"]))) for part in parts])
                for name in ("at", *ROW_COLUMNS)
                if any(name in part for part in parts)
            }
            if np.any(columns["at"][1:] < columns["at"][:-1]):
                order = np.argsort(columns["at"], kind="stable")
                columns = {name: column[order] for name, column in columns.items()}
        del columns["at"]
        return make_batch(symbols=self._symbols.names, conditions=self._conditions.names, **columns)

    def bars(
        self, run: Run, *, symbol: list[str], ts_ns: I64, revision: Callable[[I64], I64] | int, **columns: F64
    ) -> Bars:
        """The provider's own minute bars, of those messages that hold one; `columns` are those of `Bars`, and what is
        missing is NaN, a missing count -1. `revision` may depend on the messages that were kept.
        """
        codes = self._encode(symbol)
        prices = np.stack([columns[name] for name in ("open", "high", "low", "close")])
        good = {
            "ts_ns": is_time(ts_ns, run.received_ns) & (ts_ns % MINUTE_NS == 0),
            "price": ((prices > 0) & (prices <= _HIGHEST_PRICE)).all(axis=0)
            & (prices.max(axis=0) == columns["high"])
            & (prices.min(axis=0) == columns["low"]),
            "size": (columns["volume"] >= 0) & (columns["volume"] <= _LARGEST_SIZE),
        }
        keep = self._sift(run, codes, good)
        rows = np.arange(len(run)) if keep is None else np.flatnonzero(keep)
        unknown = np.full(len(run), np.nan)
        vwap = columns.get("vwap", unknown)
        count = columns.get("trade_count", unknown)
        told = (count >= 0) & (count <= _LARGEST_SIZE)
        made: dict[str, NDArray[Any]] = {
            **columns,
            "symbol": codes.astype(np.int32),
            "ts_ns": ts_ns,
            "vwap": np.where((vwap > 0) & (vwap <= _HIGHEST_PRICE), vwap, np.nan),
            "vwap_volume": unknown,
            "trade_count": np.where(told, count, -1).astype(np.int64),
        }
        made = {name: made[name][rows] for name in BAR_COLUMNS if name != "revision"}
        made["revision"] = np.full(len(rows), revision) if isinstance(revision, int) else revision(rows)
        return Bars(symbols=self._symbols.names, **made)

    def _encode(self, names: list[str]) -> I64:
        """Codes of symbols; negative for what cannot be one, was not asked for or is too many. Those are not
        remembered, so that a flood of them costs no memory.
        """
        try:
            return np.fromiter(map(self._codes.__getitem__, names), np.int64, len(names))
        except KeyError:
            fresh = [name for name in dict.fromkeys(names) if name not in self._codes]
            refused = {name: code for name in fresh if (code := self._refusal(name))}
            room = self._most_symbols - len(self._symbols)
            taken = [name for name in fresh if name not in refused]
            refused.update(dict.fromkeys(taken[max(room, 0) :], -3))
            taken = taken[: max(room, 0)]
            self._codes.update(zip(taken, self._symbols.encode(taken).tolist(), strict=True))
            return np.array([refused.get(name) or self._codes[name] for name in names], np.int64)

    def _refusal(self, name: str) -> int:
        if not _SYMBOL.fullmatch(name):
            return -1
        if name in self._tests:
            return _TEST_SYMBOL
        return -2 if self._universe is not None and name not in self._universe else 0

    def _sift(self, run: Run, codes: I64, good: dict[str, Bool]) -> Bool | None:
        """Which messages to keep, each other one counted by its first fault; None for all."""
        good = {reason: mask if mask.ndim == 1 else np.all(mask, axis=1) for reason, mask in good.items()}
        keep = codes >= 0
        for mask in good.values():
            keep &= mask
        if keep.all():
            return None
        left = codes != _TEST_SYMBOL
        if not left.all():
            self._notes["test_symbol"] += len(run) - int(np.count_nonzero(left))
        for reason, mask in {**{word: codes != code for code, word in _BAD_SYMBOL.items()}, **good}.items():
            found = np.flatnonzero(left & ~mask)
            if len(found):
                self._quarantine.add(reason, repr(run.messages[found[0]]), count=len(found))
                left &= mask
        return keep


# -- columns: none of these raises, whatever the values are ------------------------------------------------------------


def is_time(ts_ns: I64, received_ns: I64) -> Bool:
    """Whether a time can be one of a message that arrived then."""
    return (ts_ns >= _EARLIEST_NS) & (ts_ns <= received_ns + _AHEAD_NS)


def floats(values: list[float]) -> F64:
    return np.fromiter(values, np.float64, len(values))


def integers(values: Sequence[int]) -> I64:
    """What does not fit becomes -1."""
    try:
        return np.fromiter(values, np.int64, len(values))
    except OverflowError:
        return np.array([value if -(2**63) <= value < 2**63 else -1 for value in values], np.int64)


def scaled(times: I64, unit_ns: int | I64) -> I64:
    """Times in units of so many nanoseconds as nanoseconds; -1 for what is none."""
    fits = (times > 0) & (times < (2**63 - 1) // unit_ns)
    return np.where(fits, times, -1) * np.where(fits, unit_ns, 1)


def letters(texts: list[str], allowed: U8) -> U8:
    """Single characters by a table of 256; 0 for all else."""
    try:
        return allowed[np.frombuffer(bytes(map(ord, texts)), np.uint8)]
    except (TypeError, ValueError):
        return allowed[[ord(text) if len(text) == 1 and ord(text) < 256 else 0 for text in texts]]


def small(values: list[int], table: U8) -> U8:
    """Small numbers by a table of 256; 0 for all that are none."""
    try:
        return table[np.frombuffer(bytes(values), np.uint8)]
    except ValueError:
        return table[[value if 0 <= value < 256 else 0 for value in values]]


def trade_ids(values: list[str] | list[int] | list[str | int]) -> I64:
    """Trade ids as integers, 0 where there is none; a text that is no integer gets a stable number of its own."""
    try:
        if isinstance(next(iter(values), None), int):
            return np.fromiter(values, np.int64, len(values))
        return np.asarray(pa.array(values, pa.string()).cast(pa.int64()).to_numpy(), np.int64)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return np.array([_trade_id(str(value)) for value in values], np.int64)


def _trade_id(text: str) -> int:
    if _INTEGER.fullmatch(text):
        value = int(text, 16 if text[1:2] in {"x", "X"} else 10)
        if -(2**63) <= value < 2**63:
            return value
    return int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=7).digest()) if text else 0


def decimals(texts: Iterable[str]) -> F64:
    """Numbers that came as text; NaN for what is none."""
    texts = list(texts)
    try:
        return np.asarray(pa.array(texts, pa.string()).cast(pa.float64()).to_numpy(), np.float64)
    except (pa.ArrowException, UnicodeError):
        return np.array([_decimal(text) for text in texts], np.float64)


def _decimal(text: str) -> float:
    return float(text) if re.fullmatch(r"[0-9]{1,18}(?:\.[0-9]{1,18})?", text) else float("nan")
