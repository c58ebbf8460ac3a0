"""Comparisons of a metric with a number, all at once: for each distinct one a row of bits, a bit a symbol.

Rules of many users draw on the same few metrics, so comparisons are grouped by metric and operator. A small group is
compared number by number. In a large one each symbol is placed among the sorted thresholds once; a comparison's row
then differs from its neighbour's only by the symbols whose values lie between the two thresholds, and all rows are one
running OR. A threshold costs a few hundred bytes of memory traffic instead of a pass over all symbols.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.columns import F64, U8, Bool
from tapewatch.engine.rules.tree import All, Between, Comparison, ComparisonOperator, Condition, Number, Operand
from tapewatch.engine.symbols import Index

U64 = NDArray[np.uint64]
COMPARE: dict[ComparisonOperator, Callable[..., Any]] = {
    ">": np.greater,
    "<": np.less,
    ">=": np.greater_equal,
    "<=": np.less_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
_OPERATORS = tuple(COMPARE)
_TURNED: dict[ComparisonOperator, ComparisonOperator] = {
    ">": "<",
    "<": ">",
    ">=": "<=",
    "<=": ">=",
    "==": "==",
    "!=": "!=",
}
_MANY = 96
"""Thresholds from which on placing the symbols among them is cheaper than comparing with each."""
_CELLS = 1 << 18
"""Truth values held at once: small enough to stay in the processor's cache until they are packed."""


class Leaf(NamedTuple):
    """A comparison of an operand's row with a number."""

    row: str
    operator: ComparisonOperator
    threshold: float


def leaves_of(condition: Condition) -> tuple[Leaf, ...] | None:
    """The comparisons of which the condition is the conjunction; None if it is more than that."""
    if isinstance(condition, All):
        inner = [leaves_of(part) for part in condition.conditions]
        return None if any(part is None for part in inner) else tuple(leaf for part in inner for leaf in part or ())
    match condition:
        case Comparison(Operand() as operand, operator, Number(threshold)):
            return (Leaf(operand.name, operator, threshold),)
        case Comparison(Number(threshold), operator, Operand() as operand):
            return (Leaf(operand.name, _TURNED[operator], threshold),)
        case Between(Operand() as operand, Number(low), Number(high)):
            return Leaf(operand.name, ">=", low), Leaf(operand.name, "<=", high)
    return None


def words_of(symbols: int) -> int:
    """Words of 64 bits in a row."""
    return (symbols + 63) // 64


def pack(truth: Bool) -> U64:
    """Rows of truth values (their number a multiple of 64) as bits."""
    return np.packbits(truth, axis=-1).view(np.uint64)


class Leaves:
    """A table of distinct comparisons, in the order of row, operator and threshold."""

    def __init__(self, leaves: Sequence[tuple[Leaf, ...]]) -> None:
        """`leaves` holds those of each rule; `of_rule` then gives their places in the table."""
        distinct = sorted({leaf for rule in leaves for leaf in rule}, key=_key)
        place = {leaf: i for i, leaf in enumerate(distinct)}
        self.starts = np.cumsum([0, *(len(rule) for rule in leaves)])
        self.of_rule = np.array([place[leaf] for rule in leaves for leaf in rule], np.intp)
        self._names = [leaf.row for leaf in distinct]
        self._operator = np.array([_OPERATORS.index(leaf.operator) for leaf in distinct], np.intp)
        self._threshold = np.array([leaf.threshold for leaf in distinct])
        self._row = np.zeros(len(distinct), np.intp)

    def __len__(self) -> int:
        return len(self._threshold)

    def bind(self, row_of: dict[str, int]) -> None:
        """Say in which row of the values each operand stands."""
        self._row = np.array([row_of[name] for name in self._names], np.intp)

    def reads(self, changed: Bool) -> Bool:
        """Which comparisons read a row that changed."""
        return changed[self._row]

    def rows(self, places: Index, values: F64) -> U64:
        """Bits of these comparisons (ascending places): shape (len(places), words). Unknown is not true."""
        count = values.shape[1]
        width = words_of(count) * 64
        bits = np.empty((len(places), width // 64), np.uint64)
        group = self._row[places] * len(_OPERATORS) + self._operator[places]
        edges = np.flatnonzero(np.diff(group)) + 1
        bounds = [0, *edges.tolist(), len(places)] if len(places) else [0]
        step = max(1, _CELLS // max(count, 1))
        scratch = np.zeros((min(step, len(places)), width), np.bool_)
        for start, stop in pairwise(bounds):
            operand = values[self._row[places[start]]]
            operator = _OPERATORS[self._operator[places[start]]]
            thresholds = self._threshold[places[start:stop]]
            if stop - start >= _MANY and operator not in {"==", "!="}:
                _ranked(operand, operator, thresholds, bits[start:stop])
                continue
            known = operand == operand if operator == "!=" else None  # noqa: PLR0124  # unknown differs from itself
            for first in range(start, stop, step):
                last = min(first + step, stop)
                truth = scratch[: last - first]
                COMPARE[operator](operand, thresholds[first - start : last - start, None], out=truth[:, :count])
                if known is not None:
                    truth[:, :count] &= known
                bits[first:last] = pack(truth)
        return bits

    def known_false(self, places: Index, values: F64, symbols: Index) -> Bool:
        """Of each comparison and symbol: the value is known, and the comparison does not hold."""
        operand, thresholds, operators = (
            values[self._row[places], symbols],
            self._threshold[places],
            self._operator[places],
        )
        holds = np.zeros(len(places), np.bool_)
        for code in np.unique(operators).tolist():
            at = operators == code
            holds[at] = COMPARE[_OPERATORS[code]](operand[at], thresholds[at])
        return ~holds & ~np.isnan(operand)


def _key(leaf: Leaf) -> tuple[str, int, float]:
    return leaf.row, _OPERATORS.index(leaf.operator), leaf.threshold


def _ranked(operand: F64, operator: str, thresholds: F64, out: U64) -> None:
    """Rows of one metric and operator over ascending thresholds, as running ORs."""
    count, upward = len(operand), operator in {">", ">="}
    below = np.searchsorted(thresholds, operand, side="left" if operator in {">", "<="} else "right")
    if upward:  # true of the thresholds before its place
        below[np.isnan(operand)] = 0
        symbols, rows = np.flatnonzero(below), below - 1
    else:  # true of those from its place on; unknown is sorted behind all
        symbols, rows = np.flatnonzero(below < len(thresholds)), below
    out[:] = 0
    bytes_: U8 = out.view(np.uint8)
    place = rows[symbols] * bytes_.shape[1] + (symbols >> 3)
    np.add.at(bytes_.reshape(-1), place, (128 >> (np.arange(count)[symbols] & 7)).astype(np.uint8))  # bits are distinct
    running = out[::-1] if upward else out
    np.bitwise_or.accumulate(running, axis=0, out=running)
