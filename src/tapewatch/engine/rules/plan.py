"""The vector plan: all rules against the whole board, edges remembered.

Truth has three values. A comparison with an unknown metric is unknown; a rule is true when all its comparisons are
true, false when one is false, otherwise unknown. A rule fires for a symbol when it becomes true after not having been
true, and it is armed again once it was *false*: a metric that is unknown for a while neither fires nor re-arms.

Two ways through the same arithmetic. With few symbols all comparisons are made at once, because the cost is numpy's
overhead per call; with many, rule by rule on rows of the board, because the cost is memory traffic.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tapewatch.engine.columns import F64, U8, Bool
from tapewatch.engine.rules.tree import Comparison, Match, Ruleset, RuleSpec, alert_id
from tapewatch.engine.symbols import Index

_COMPARE: dict[str, Callable[..., Any]] = {
    ">": np.greater,
    "<": np.less,
    ">=": np.greater_equal,
    "<=": np.less_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
_OPERATORS = tuple(_COMPARE)
_BLOCK_CELLS = 1 << 18
"""Truth values held at once: small enough to stay in the processor's cache until they are packed."""


class Plan:
    """A compiled ruleset and its memory: which (rule, symbol) were true at the last scan, and when each last fired."""

    def __init__(self, ruleset: Ruleset, *, previous: "Plan | None" = None) -> None:
        self.ruleset = ruleset
        self.metrics = frozenset(c.metric for rule in ruleset.rules for c in rule.conditions)
        self.cooled_down: int = previous.cooled_down if previous else 0
        rules = ruleset.rules
        self._true = np.zeros((len(rules), 0), np.uint8)
        """Bit per symbol, packed as np.packbits does."""
        self._fired: list[dict[int, int]] = [{} for _ in rules]
        """Per rule with a cooldown: symbol -> event time of its last match."""
        if previous is not None:
            self._remember(previous)
        order = sorted(
            ((_OPERATORS.index(c.operator), r, c) for r, rule in enumerate(rules) for c in rule.conditions),
            key=lambda item: item[:2],
        )
        self._comparisons: list[Comparison] = [c for _, _, c in order]
        self._thresholds = np.array([c.value for _, _, c in order])[:, None]
        operators = np.array([op for op, _, _ in order], np.intp)
        self._runs = [
            (_COMPARE[name], slice(*np.searchsorted(operators, [op, op + 1]).tolist()))
            for op, name in enumerate(_OPERATORS)
            if op in operators
        ]
        self._differs = next((run for compare, run in self._runs if compare is np.not_equal), slice(0, 0))
        owner = np.array([r for _, r, _ in order], np.intp)
        self._by_rule = np.argsort(owner, kind="stable")
        """Positions in the comparisons, grouped by rule."""
        self._starts = np.searchsorted(owner[self._by_rule], np.arange(len(rules)))
        self._metric_rows = np.zeros(0, np.intp)
        self._compiled: list[list[tuple[Callable[..., Any], int, float]]] = []

    def _remember(self, previous: "Plan") -> None:
        places = {(rule.id, rule.version): i for i, rule in enumerate(previous.ruleset.rules)}
        self._true = np.zeros((len(self.ruleset.rules), previous._true.shape[1]), np.uint8)
        for i, rule in enumerate(self.ruleset.rules):
            place = places.get((rule.id, rule.version))
            if place is not None:
                self._true[i] = previous._true[place]
                self._fired[i] = previous._fired[place]

    def bind(self, row_of: Mapping[str, int]) -> None:
        """Say in which row of the values each metric stands."""
        self._metric_rows = np.array([row_of[c.metric] for c in self._comparisons], np.intp)
        self._compiled = [
            [(_COMPARE[c.operator], row_of[c.metric], c.value) for c in rule.conditions] for rule in self.ruleset.rules
        ]

    def scan(
        self,
        values: F64,
        *,
        now_ns: int,
        symbols: Sequence[str],
        price: F64,
        session: str,
        changed: Bool | None = None,
    ) -> list[Match]:
        """Ask all rules; `values` has shape (metrics, symbols).

        `changed` (shape (metrics,)) may say which rows differ from the last scan: rules that read none are skipped.
        Matches come in the order of rule, then of the symbols' names.
        """
        rules, count = self.ruleset.rules, values.shape[1]
        width = (count + 63) // 64 * 8
        if self._true.shape[1] < width:
            grown = np.zeros((len(rules), max(width, 2 * self._true.shape[1])), np.uint8)
            grown[:, : self._true.shape[1]] = self._true
            self._true = grown
        matches: list[Match] = []
        if not count or not rules or (changed is not None and not changed.any()):
            return matches
        scene = _Scene(values, now_ns, symbols, price, session)
        block = max(1, _BLOCK_CELLS // count)
        together = len(self._comparisons) * count <= _BLOCK_CELLS
        truth = np.zeros((min(block, len(rules)), width * 8), np.bool_)
        scratch = np.empty(count, np.bool_)
        for first in range(0, len(rules), block):
            last = min(first + block, len(rules))
            if together:
                compared = self._compare_all(values)
                truth[: last - first, :count] = np.logical_and.reduceat(compared[self._by_rule], self._starts, axis=0)
            else:
                self._truth_by_rule(values, first, last, truth[:, :count], scratch)
            packed = np.packbits(truth[: last - first], axis=1)
            flips = packed ^ self._true[first:last, :width]
            rows, words = np.nonzero(flips.view(np.uint64))
            if len(rows):
                places = np.flatnonzero(np.unpackbits(flips.view(np.uint64)[rows, words].view(np.uint8)))
                r, s = rows[places >> 6], words[places >> 6] * 64 + (places & 63)
                self._settle(first, packed, r, s, truth[r, s], scene, matches, together=together)
                self._true[first:last, :width] = packed
        return matches

    def _compare_all(self, values: F64) -> Bool:
        """Every comparison of the ruleset for every symbol: shape (comparisons, symbols)."""
        operands = values[self._metric_rows]
        true = np.empty(operands.shape, np.bool_)
        for compare, run in self._runs:
            compare(operands[run], self._thresholds[run], out=true[run])
        true[self._differs] &= ~np.isnan(operands[self._differs])  # unknown differs from every number, yet is not true
        return true

    def _false_all(self, values: F64) -> Bool:
        """Whether a comparison of the rule is known to be false: shape (rules, symbols)."""
        false = ~self._compare_all(values) & ~np.isnan(values[self._metric_rows])
        anywhere: Bool = np.logical_or.reduceat(false[self._by_rule], self._starts, axis=0)
        return anywhere

    def _truth_by_rule(self, values: F64, first: int, last: int, truth: Bool, scratch: Bool) -> None:
        for row, conditions in zip(truth, self._compiled[first:last], strict=False):
            out = row
            for compare, metric, threshold in conditions:
                compare(values[metric], threshold, out=out)
                if compare is np.not_equal:
                    out &= values[metric] == values[metric]
                if out is not row:
                    np.logical_and(row, out, out=row)
                out = scratch

    def _settle(
        self,
        first: int,
        packed: U8,
        rules: Index,
        symbols: Index,
        rose: Bool,
        scene: "_Scene",
        matches: list[Match],
        *,
        together: bool,
    ) -> None:
        """Symbols that changed sides since the last scan, in the order of rule and symbol. In `packed` those stay true
        that only became unknown.
        """
        fell = np.flatnonzero(~rose)
        if len(fell) and any(scene.has_unknown):
            if together:
                false = self._false_all(scene.values)[rules[fell], symbols[fell]]
            else:
                false = self._false_by_rule(first, rules[fell], symbols[fell], scene)
            kept = fell[~false]
            bit = (128 >> (symbols[kept] & 7)).astype(np.uint8)
            np.bitwise_or.at(packed, (rules[kept], symbols[kept] >> 3), bit)
        risen = zip(rules[rose].tolist(), symbols[rose].tolist(), strict=True)
        # By name: the engine's own indices depend on how the tape was cut.
        for place, symbol in sorted(risen, key=lambda at: (at[0], scene.symbols[at[1]])):
            rule = self.ruleset.rules[first + place]
            if rule.cooldown_ns:
                fired = self._fired[first + place]
                last_ns = fired.get(symbol)
                if last_ns is not None and scene.now_ns - last_ns < rule.cooldown_ns:
                    self.cooled_down += 1
                    continue
                fired[symbol] = scene.now_ns
            matches.append(self._match(first + place, rule, symbol, scene))

    def _false_by_rule(self, first: int, rules: Index, symbols: Index, scene: "_Scene") -> Bool:
        false = np.ones(len(rules), np.bool_)
        for place in np.unique(rules).tolist():
            compiled = self._compiled[first + place]
            if any(scene.has_unknown[metric] for _, metric, _ in compiled):
                of_rule = rules == place
                false[of_rule] = _known_false(compiled, scene.values, symbols[of_rule])
        return false

    def _match(self, r: int, rule: RuleSpec, s: int, scene: "_Scene") -> Match:
        operands = zip(rule.conditions, self._compiled[r], strict=True)
        return Match(
            alert_id=alert_id(rule, scene.symbols[s], scene.now_ns),
            rule=rule,
            symbol=scene.symbols[s],
            fired_at_ns=scene.now_ns,
            price=float(scene.price[s]),
            values={c.metric: float(scene.values[metric, s]) for c, (_, metric, _) in operands},
            session=scene.session,
        )


@dataclass(slots=True)
class _Scene:
    """What one scan sees."""

    values: F64
    now_ns: int
    symbols: Sequence[str]
    price: F64
    session: str
    _unknown: list[bool] | None = None

    @property
    def has_unknown(self) -> list[bool]:
        """Per metric: some symbol's value is unknown."""
        if self._unknown is None:
            self._unknown = [bool(np.isnan(row).any()) for row in self.values]
        return self._unknown


def _known_false(compiled: Sequence[tuple[Callable[..., Any], int, float]], values: F64, symbols: Index) -> Bool:
    false = np.zeros(len(symbols), np.bool_)
    for compare, metric, threshold in compiled:
        operand = values[metric, symbols]
        false |= ~compare(operand, threshold) & ~np.isnan(operand)
    return false
