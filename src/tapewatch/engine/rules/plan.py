"""The vector plan: all rules against the whole board, edges remembered.

Truth has three values; a rule fires on true, and by default it is armed again once it was *false*: a condition that is
unknown for a while neither fires nor re-arms it. That a rule may not fire for a symbol again yet is a bit.

Rules that are plain conjunctions of comparisons with numbers, as most are, come out of `Leaves` in blocks of bits. All
others are asked as `Questions`, each distinct condition once a scan.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tapewatch.engine.columns import F64, MINUTE_NS, Bool
from tapewatch.engine.frozen import Carried, Sealed, Whitelist, seal
from tapewatch.engine.rules.leaves import U64, Leaf, Leaves, leaves_of, pack, words_of
from tapewatch.engine.rules.questions import (
    HIGHEST,
    LONG_AGO,
    LOWEST,
    QUESTION_CARRIED,
    Answer,
    Memory,
    Question,
    Questions,
    Scene,
    reads_path,
    remembers,
    settles_after_ns,
)
from tapewatch.engine.rules.tree import (
    TREE_CARRIED,
    Condition,
    Match,
    Ruleset,
    RuleSpec,
    alert_id,
    operands,
)
from tapewatch.engine.symbols import Index

MOST_MATCHES = 1_000
"""Of one rule at one scan. The first by name are told, the others counted: nobody reads a thousand alerts a second."""
_BLOCK_BYTES = 1 << 19
"""Bits of rules worked on at once."""
_TABLE_BYTES = 1 << 26
"""Bits of comparisons held at once."""


class Plan:
    """A compiled ruleset and its memory: which (rule, symbol) may not fire again yet, and when each last fired."""

    def __init__(self, ruleset: Ruleset, *, previous: "Plan | None" = None) -> None:
        self.ruleset = ruleset
        self.cooled_down: int = previous.cooled_down if previous else 0
        """Fires that a cooldown suppressed."""
        self.gated: int = previous.gated if previous else 0
        """Fires at which the gate was not true."""
        self.crowded: Counter[str] = previous.crowded if previous else Counter()
        """Fires beyond `MOST_MATCHES`, by rule."""
        self._generation: int = previous._generation + 1 if previous else 0
        self._scans: int = previous._scans if previous else 0
        self._made_ns: int = previous._made_ns if previous else LONG_AGO
        """The newest scan."""
        before: list[_Rule] = previous._rules if previous else []
        kept = {(rule.spec.id, rule.spec.version): i for i, rule in enumerate(before)}
        known = {key: before[i] for key, i in kept.items()}
        rules = [known.get((spec.id, spec.version)) or _Rule(spec, self._generation) for spec in ruleset.rules]
        for place, (rule, spec) in enumerate(zip(rules, ruleset.rules, strict=True)):
            rule.place = place
            if rule.spec == spec:
                rule.spec = spec
        self._rules: list[_Rule] = sorted(rules, key=_Rule.shape)
        """Those of comparisons only first, the longest before, equal shapes together."""
        self._held: U64 = np.zeros((len(self._rules), previous._held.shape[1] if previous else 0), np.uint64)
        """Bits (rules, symbols), set while the rule may not fire for the symbol."""
        for i, rule in enumerate(self._rules):
            was = kept.get((rule.spec.id, rule.spec.version))
            if previous is not None and was is not None:
                self._held[i] = previous._held[was]
        self._row_of: dict[str, int] = {}
        self._period: dict[int, tuple[int, int]] = dict(previous._period) if previous else {}
        """The bar, or session, of the last scan."""
        self._surroundings: tuple[int, int, str] = (0, 0, "")
        self.scene: Scene | None = None
        """What the last scan saw."""
        self.matches: list[Match] = []
        """What came of it."""
        self._compile(previous._questions if previous else None)

    def _compile(self, previous: Questions | None) -> None:
        """What follows from the rules alone."""
        self._questions: Questions = Questions(previous)
        for rule in self._rules:
            rule.compile(self._questions)
        self._questions.ended()
        self._sealed: Sealed | None = None
        self.metrics = frozenset(name for rule in self._rules for name in rule.reads)
        """The rows that it reads."""
        flat = [rule.leaves for rule in self._rules if rule.leaves is not None]
        self._flat = len(flat)
        self._leaves = Leaves(flat)
        self._arity = np.array([len(leaves) for leaves in flat], np.intp)
        self._reads = np.zeros(0, np.intp)
        self._reader = np.repeat(np.arange(len(self._rules)), [len(rule.reads) for rule in self._rules])
        self._restless = np.array([rule.restless for rule in self._rules], np.bool_)
        self._keeps = np.array([rule.spec.fire.mode in {"bar", "session"} for rule in self._rules], np.bool_)
        self._levels = np.array([rule.spec.fire.mode == "level" for rule in self._rules], np.bool_)
        self._periods: dict[int, Index] = {}
        """Rules that fire once in so many minutes, or (0) once in a session."""
        for i in np.flatnonzero(self._keeps).tolist():
            minutes = self._rules[i].spec.fire.bar_minutes
            self._periods[minutes] = np.append(self._periods.get(minutes, np.zeros(0, np.intp)), i)

    # -- as bytes -----------------------------------------------------------------------------------------------------

    def sealed(self, kinds: Whitelist) -> Sealed:
        """The rules, written once."""
        if self._sealed is None:
            self._sealed = seal((self.ruleset, [rule.spec for rule in self._rules]), kinds)
        return self._sealed

    def keepsake(self) -> list[Memory]:
        return self._questions.memories(self._last_scan)

    def remake(self, memories: list[Memory]) -> None:
        self._compile(None)
        self._questions.recall(memories, self._last_scan)
        if self._row_of:  # else nobody has said yet
            self._bind()

    @property
    def _last_scan(self) -> int:
        return -1 if self.scene is None else self.scene.number

    # -- compiled -----------------------------------------------------------------------------------------------------

    def bind(self, row_of: Mapping[str, int]) -> None:
        """Say in which row of the values each of `metrics` stands."""
        self._row_of = dict(row_of)
        self._bind()

    def _bind(self) -> None:
        self._leaves.bind(self._row_of)
        self._reads = np.array([self._row_of[name] for rule in self._rules for name in rule.reads], np.intp)

    @property
    def fires_by_clock(self) -> bool:
        """Some rule may fire again without any value having changed."""
        return bool(self._levels.any() or self._keeps.any())

    def horizon_ns(self, scan_interval_ns: int) -> int:
        """For how long a rule may change its mind when nothing changes any more."""
        restless = (condition for rule in self._rules if rule.restless for condition in rule.conditions)
        return max((settles_after_ns(condition, scan_interval_ns) for condition in restless), default=0)

    # -- a scan -------------------------------------------------------------------------------------------------------

    def scan(
        self,
        values: F64,
        *,
        now_ns: int,
        symbols: Sequence[str],
        price: F64,
        session: str,
        session_start_ns: int = 0,
        day_start_ns: int = 0,
        candle_ns: int | None = None,
        labels: Mapping[str, Sequence[str]] | None = None,
        labels_version: int = 0,
        changed: Bool | None = None,
        before_ns: int | None = None,
    ) -> list[Match]:
        """Ask all rules; `values` has shape (rows, symbols).

        `candle_ns` is an instant of the running candles, which go on for a while after their last minute (None: now).
        `labels` hold, by attribute, a text a symbol ("" unknown), and `labels_version` tells when they changed.
        `changed` (shape (rows,)) may say which rows differ from the last scan: rules that read none are skipped.
        `before_ns` is the scan before this one (None: the last that was made). If it was left out, then because nothing
        that this plan reads could have changed, nor any of its rules its mind.
        Matches come in the order of rule, then of the symbols' names.
        """
        self.scene = scene = Scene(
            number=self._scans,
            values=values,
            row_of=self._row_of,
            now_ns=now_ns,
            symbols=symbols,
            session=session,
            labels=labels or {},
            labels_version=labels_version,
            watchlists=self.ruleset.watchlists,
            made_ns=self._made_ns,
            before_ns=self._made_ns if before_ns is None else before_ns,
        )
        self._scans += 1
        self._made_ns = now_ns
        bar_ns = now_ns - 1 if candle_ns is None else candle_ns
        begun = self._begin_periods(bar_ns, session_start_ns, day_start_ns)
        surroundings = len(symbols), labels_version, session
        if surroundings != self._surroundings:
            self._surroundings, changed = surroundings, None
        self.matches = []
        if not self._rules or not len(symbols):
            return []
        if self._held.shape[1] < words_of(len(symbols)):
            grown = np.zeros((len(self._rules), max(words_of(len(symbols)), 2 * self._held.shape[1])), np.uint64)
            grown[:, : self._held.shape[1]] = self._held
            self._held = grown
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            for question in self._questions.remembering:
                question(scene)
            fires = [self._turn(block, scene) for block in self._truths(scene, self._active(changed, begun))]
            self.matches = self._matches(fires, scene, price)
        return self.matches

    def _begin_periods(self, bar_ns: int, session_start_ns: int, day_start_ns: int) -> Bool:
        """Rules whose bar or session is a new one may fire again."""
        begun = np.zeros(len(self._rules), np.bool_)
        for minutes, rules in self._periods.items():
            bar = (bar_ns - day_start_ns) // (minutes * MINUTE_NS) if minutes else 0
            period = (day_start_ns, bar) if minutes else (session_start_ns, 0)
            if self._period.get(minutes) != period:
                self._period[minutes] = period
                self._held[rules] = 0
                begun[rules] = True
        return begun

    def _active(self, changed: Bool | None, begun: Bool) -> Index:
        """The rules whose answer may differ from the last one."""
        if changed is None or changed.all():
            return np.arange(len(self._rules))
        active = self._restless | begun
        active[self._reader[changed[self._reads]]] = True
        return np.flatnonzero(active)

    def _truths(self, scene: Scene, active: Index) -> Iterator["_Block"]:
        """Where the active rules are true, a block of rules at a time."""
        words = words_of(len(scene.symbols))
        size = max(1, _BLOCK_BYTES // (words * 8))
        flat, others = active[active < self._flat], active[active >= self._flat]
        most = max(1, _TABLE_BYTES // (words * 8))
        for chunk in _chunks(flat, self._arity[flat], most):
            arity = self._arity[chunk]
            starts = np.cumsum(arity) - arity
            first = self._leaves.starts[chunk]
            all_places = np.repeat(first - starts, arity) + np.arange(int(arity.sum()))
            places, place = np.unique(self._leaves.of_rule[all_places], return_inverse=True)
            bits = self._leaves.rows(places, scene.values)
            for at in range(0, len(chunk), size):
                block = slice(at, at + size)
                true = bits[place[starts[block]]]
                for k in range(1, int(arity[at])):
                    longer = int(np.count_nonzero(arity[block] > k))
                    true[:longer] &= bits[place[starts[block][:longer] + k]]
                yield _Block(chunk[block], true)
        scratch = np.zeros((min(size, len(others)), words * 64), np.bool_)
        for at in range(0, len(others), size):
            block_rules = others[at : at + size]
            for row, i in enumerate(block_rules.tolist()):
                scratch[row, : len(scene.symbols)] = self._rules[i].ask(scene).true
            yield _Block(block_rules, pack(scratch[: len(block_rules)]))

    def _turn(self, block: "_Block", scene: Scene) -> tuple[Index, Index]:
        """Remember a block's answers; the (rule, symbol) at which a rule fires."""
        rules, true = block
        words = true.shape[1]
        held = self._held[rules, :words]
        turned = true ^ held
        keeps = self._keeps[rules]
        if keeps.any():
            turned[keeps] &= true[keeps]
            true = np.where(keeps[:, None], true | held, true)
        rows, word = np.nonzero(turned)
        bits = np.flatnonzero(np.unpackbits(turned[rows, word].view(np.uint8)))
        row, symbol = rows[bits >> 6], word[bits >> 6] * 64 + (bits & 63)
        rose = true.view(np.uint8)[row, symbol >> 3] & (128 >> (symbol & 7)).astype(np.uint8) != 0
        fell = np.flatnonzero(~rose)
        if len(fell):
            stays = fell[self._stays_held(rules[row[fell]], symbol[fell], scene)]
            np.bitwise_or.at(
                true.view(np.uint8), (row[stays], symbol[stays] >> 3), (128 >> (symbol[stays] & 7)).astype(np.uint8)
            )
        true[self._levels[rules]] = 0
        self._held[rules, :words] = true
        return rules[row[rose]], symbol[rose]

    def _stays_held(self, rules: Index, symbols: Index, scene: Scene) -> Bool:
        """Of rules that are no longer true: whether they may not fire yet all the same."""
        stays = np.ones(len(rules), np.bool_)
        flat = np.flatnonzero(rules < self._flat)
        arity, first = self._arity[rules[flat]], self._leaves.starts[rules[flat]]
        for k in range(int(arity.max(initial=0))):
            at = np.flatnonzero(arity > k)
            leaf = self._leaves.of_rule[first[at] + k]
            stays[flat[at]] &= ~self._leaves.known_false(leaf, scene.values, symbols[flat[at]])
        for i in np.unique(rules).tolist():
            rule = self._rules[i]
            if rule.rearm is not None:
                stays[rules == i] = ~rule.rearm(scene).true[symbols[rules == i]]
            elif rule.leaves is None:
                stays[rules == i] = rule.ask(scene).possible[symbols[rules == i]]
        return stays

    # -- for explanations ---------------------------------------------------------------------------------------------

    def rule(self, rule_id: str) -> RuleSpec | None:
        return next((rule.spec for rule in self._rules if rule.spec.id == rule_id), None)

    def answer(self, spec: RuleSpec, condition: Condition, scene: Scene) -> Answer:
        """What the last scan made of a condition of the rule, or of a part of one."""
        rule = next(rule for rule in self._rules if rule.spec is spec)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return self._questions.of(condition, rule.generation)(scene)

    def last_fired_ns(self, spec: RuleSpec, symbol: int) -> int | None:
        """When a rule with a cooldown last fired for a symbol."""
        return next(rule.fired.get(symbol) for rule in self._rules if rule.spec is spec)

    # -- matches ------------------------------------------------------------------------------------------------------

    def _matches(self, fires: list[tuple[Index, Index]], scene: Scene, price: F64) -> list[Match]:
        fired: dict[int, list[int]] = {}
        for rules, symbols in fires:
            for i, symbol in zip(rules.tolist(), symbols.tolist(), strict=True):
                fired.setdefault(i, []).append(symbol)
        matches: list[Match] = []
        for i in sorted(fired, key=lambda i: self._rules[i].place):
            # By name: the engine's own indices depend on how the tape was cut.
            by_name = sorted(fired[i], key=lambda symbol: scene.symbols[symbol])
            matches += self._matches_of(self._rules[i], by_name, scene, price)
        return matches

    def _matches_of(self, rule: "_Rule", symbols: list[int], scene: Scene, price: F64) -> Iterator[Match]:
        spec, told = rule.spec, 0
        gate = rule.gate(scene).true if rule.gate is not None else None
        for symbol in symbols:
            if gate is not None and not gate[symbol]:
                self.gated += 1
                continue
            if spec.cooldown_ns:
                last_ns = rule.fired.get(symbol)
                if last_ns is not None and scene.now_ns - last_ns < spec.cooldown_ns:
                    self.cooled_down += 1
                    continue
            if told == MOST_MATCHES:
                self.crowded[spec.id] += 1
                continue
            told += 1
            if spec.cooldown_ns:
                rule.fired[symbol] = scene.now_ns
            yield Match(
                alert_id=alert_id(spec, scene.symbols[symbol], scene.now_ns),
                rule=spec,
                symbol=scene.symbols[symbol],
                fired_at_ns=scene.now_ns,
                price=float(price[symbol]),
                values={name: float(scene.row(name)[symbol]) for name in rule.shown},
                session=scene.session,
            )


class _Block(NamedTuple):
    rules: Index
    true: U64
    """Shape (rules, words)."""


class _Rule:
    """A rule as the plan knows it."""

    def __init__(self, spec: RuleSpec, generation: int) -> None:
        self.spec = spec
        self.place = 0
        """In the ruleset."""
        self.generation = generation
        """Of the ruleset with which it began."""
        self.fired: dict[int, int] = {}
        """With a cooldown: symbol -> event time of its last match."""
        self.remake()

    def remake(self, _: None = None) -> None:
        """What follows from the rule alone."""
        spec = self.spec
        self.leaves: tuple[Leaf, ...] | None = leaves_of(spec.when)
        self.conditions = spec.conditions
        self.restless = spec.fire.mode == "level"
        """May change its mind although nothing that it reads has changed."""
        if self.leaves is not None and len(self.conditions) == 1:  # nearly all rules: no need to walk the tree
            self.shown = self.reads = tuple(dict.fromkeys(leaf.row for leaf in self.leaves))
        else:
            self.restless |= any(remembers(condition) for condition in self.conditions)
            self.shown = tuple(operand.name for operand in operands(*self.conditions))
            path = (LOWEST, HIGHEST) if any(reads_path(condition) for condition in self.conditions) else ()
            self.reads = tuple(dict.fromkeys((*self.shown, *path)))
        self._question: Question | None = None
        self.gate: Question | None = None
        self.rearm: Question | None = None
        self._shape = tuple((leaf.row, leaf.operator) for leaf in self.leaves or ())

    def shape(self) -> tuple[bool, int, tuple[tuple[str, str], ...], int]:
        """Those of comparisons only first, the longest before, equal shapes together."""
        return self.leaves is None, -len(self._shape), self._shape, self.place

    def compile(self, questions: Questions) -> None:
        if self.leaves is None:
            self._question = questions.of(self.spec.when, self.generation)
        if self.spec.gate is not None:
            self.gate = questions.of(self.spec.gate, self.generation)
        if self.spec.rearm is not None:
            self.rearm = questions.of(self.spec.rearm, self.generation)

    def ask(self, scene: Scene) -> Answer:
        if self._question is None:
            raise RuntimeError("rules of comparisons are not asked one by one")
        return self._question(scene)


def _chunks(rules: Index, arity: Index, most: int) -> Iterator[Index]:
    """In order, so that no part has more than `most` comparisons (or is a single rule)."""
    ends = np.cumsum(arity)
    start = 0
    while start < len(rules):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield rules[start:stop]
        start = stop


RULE_CARRIED = (
    Carried(
        Plan,
        remade=(
            *("_questions", "_sealed", "metrics", "_flat", "_leaves", "_arity", "_reads", "_reader"),
            *("_restless", "_keeps", "_levels", "_periods"),
        ),
    ),
    Carried(
        _Rule, remade=("leaves", "conditions", "restless", "shown", "reads", "_question", "gate", "rearm", "_shape")
    ),
    *QUESTION_CARRIED,
    *TREE_CARRIED,
)
