"""Rules over the tape of days that have passed: what fires, and what the price did afterwards.

The engine and the alert ids are those of a replay, and outcomes come from the code that follows live alerts. Nothing is
bought: there are no fills and no costs.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tapewatch.documents import Alert, Rule, known, load_rules, ruleset
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS, Batch, concat_bars
from tapewatch.engine.conditions import Profile
from tapewatch.engine.outcomes import OUTCOMES, Fired, Followed, Outcomes, RuleKey, join
from tapewatch.engine.rules import Match, Ruleset, RuleSpec, alert_id
from tapewatch.engine.scores import RuleScore, Scores, too_broad
from tapewatch.nyse import trade_date, trading_days
from tapewatch.replay import TapeScan

MOST_EXAMPLES = 20
_COST_ROWS, _COST_S = 200_000, 0.5
"""Of the tape's beginning, on which the cost of a rule is measured; and how long that may take for each."""
_COST_PIECE = 4_096
_LEAST_RULE = '[{"id": "least", "conditions": [{"metric": "price", "operator": "<", "value": 0}]}]'
_NEVER = "never fired"

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Backtest:
    """What a backtest gave."""

    rules: tuple[RuleSpec, ...]
    rows: Followed
    """Every alert, in the order in which they fired."""
    scores: tuple[RuleScore, ...]
    """Of each rule, in the order of `rules`, those that never fired included."""
    traded: Mapping[str, int]
    """Date of each trading day of the tape -> symbols that had a price on it."""
    day_of: Mapping[int, str]
    """The calendar's index of a day, as in `rows`, -> its date."""
    summary: Mapping[str, Any]

    def warnings(self) -> dict[RuleKey, str]:
        """What is wrong with a rule at first sight."""
        traded = dict(enumerate(self.traded.values()))
        found = {
            score.rule: too_broad(alerts=score.alerts, symbol_days=score.symbol_days, traded=traded)
            if score.alerts
            else _NEVER
            for score in self.scores
        }
        return {rule: why for rule, why in found.items() if why}

    def as_json(self) -> dict[str, Any]:
        """The content of ``scores.json``."""
        warnings = self.warnings()
        return {
            **self.summary,
            "days": list(self.traded),
            "rules": [
                {"name": rule.name, **score.as_json(days=len(self.traded)), "warning": warnings.get(score.rule)}
                for rule, score in zip(self.rules, self.scores, strict=True)
            ],
        }


def backtest(
    rules: Sequence[Rule] | Ruleset,
    tapes: Sequence[Path],
    *,
    profile: Profile,
    scan_interval_ns: int = SECOND_NS,
    keep_test_symbols: bool = False,
    on_matches: Callable[[list[Match]], None] = lambda _matches: None,
    on_progress: Progress = lambda _rows, _total: None,
) -> Backtest:
    """Run tape files through the engine and follow what fires. `on_matches` gets alerts as they come, in order;
    `on_progress` gets rows read and rows in all. An error of either ends the backtest.
    """
    started, days = time.perf_counter(), trading_days()
    tape = TapeScan(
        tapes, profile=profile, rules=rules, scan_interval_ns=scan_interval_ns, keep_test_symbols=keep_test_symbols
    )
    outcomes, parts, scans = Outcomes(days), [], 0
    for step in tape.steps(on_progress):
        # A batch of a quiet tape spans hours: the alerts go first, so that none comes after its bars have settled.
        outcomes.fired(map(Fired.of, step.matches))
        on_matches(step.matches)
        if step.bars:
            outcomes.bars(concat_bars(step.bars))
        outcomes.reach(tape.scanner.bars.open_minute * MINUTE_NS)
        parts.append(outcomes.left())
        scans += step.scans
    rows = join([*parts, outcomes.open()])
    scores = Scores()
    scores.add(rows)
    table = scores.table()
    specs = tape.scanner.ruleset.rules
    traded = outcomes.traded()
    day_of = {
        day: trade_date(int(days.open_ns[day]))
        for day in sorted({*traded, *np.unique(rows.day).tolist()})
        if day < len(days.open_ns)
    }
    return Backtest(
        rules=specs,
        rows=rows,
        scores=tuple(table.get(key) or RuleScore.silent(key) for key in map(_key, specs)),
        traded={day_of[day]: count for day, count in traded.items()},
        day_of=day_of,
        summary={
            "trades": tape.reader.seen.rows,
            "symbols": len(tape.scanner.symbols),
            "scans": scans,
            "alerts": len(rows),
            "unfollowed": int(np.count_nonzero(~rows.followed)),
            "cooled_down": tape.scanner.cooled_down,
            "elapsed_s": round(time.perf_counter() - started, 3),
        },
    )


def write(tested: Backtest, out: Path) -> None:
    """``outcomes.parquet``, a row an alert, and ``scores.json``. The folder is there."""
    rows = tested.rows
    specs = {_key(rule): rule for rule in tested.rules}
    rule_of = [specs[rows.rules[place]] for place in rows.rule.tolist()]
    symbols = [rows.symbols[place] for place in rows.symbol.tolist()]
    ids = [
        alert_id(rule, symbol, fired_at_ns)
        for rule, symbol, fired_at_ns in zip(rule_of, symbols, rows.fired_at_ns.tolist(), strict=True)
    ]
    table = pa.table(
        {
            "alert_id": pa.array(ids, pa.string()),
            "rule_id": pa.array([rule.id for rule in rule_of], pa.string()),
            "rule_version": pa.array([rule.version for rule in rule_of], pa.int32()),
            "symbol": pa.array(symbols, pa.string()),
            "fired_at_ns": rows.fired_at_ns,
            # Unknown is null, so that whoever takes a mean leaves it out.
            "price": pa.array(rows.price, from_pandas=True),
            **{name: pa.array(values, from_pandas=True) for name, values in zip(OUTCOMES, rows.values, strict=True)},
        }
    )
    pq.write_table(table, out / "outcomes.parquet", compression="zstd")
    (out / "scores.json").write_text(json.dumps(tested.as_json(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


# -- dry runs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleDryRun:
    """What a rule would have done."""

    rule: RuleKey
    name: str
    fires: Mapping[str, int]
    """Date of each trading day of the tape -> alerts."""
    share: float
    """Of the symbols that trade in a day, those for which it fires, on an average day; NaN when nothing traded."""
    examples: tuple[Alert, ...]
    """The first alerts."""
    too_broad: str
    """Why; empty when it is not."""
    cost_s: float
    """Processor time that the rule adds to a scanner that runs anyway, over the whole tape: estimated from its
    beginning.
    """
    score: RuleScore

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            **self.score.as_json(days=len(self.fires)),
            "fires": dict(self.fires),
            "share": known(self.share),
            "examples": [alert.as_json() for alert in self.examples],
            "too_broad": self.too_broad or None,
            "cost_s": known(self.cost_s),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class DryRun:
    rules: tuple[RuleDryRun, ...]
    summary: Mapping[str, Any]
    """As of a backtest."""

    def as_json(self) -> dict[str, Any]:
        return {**self.summary, "rules": [rule.as_json() for rule in self.rules]}


def dry_run(
    rules: Sequence[Rule] | Ruleset,
    tapes: Sequence[Path],
    *,
    profile: Profile,
    scan_interval_ns: int = SECOND_NS,
    keep_test_symbols: bool = False,
    most_examples: int = MOST_EXAMPLES,
    on_progress: Progress = lambda _rows, _total: None,
) -> DryRun:
    """What rules would have done on these tapes, before they are saved. It takes as long as a backtest, saves nothing
    and may run in a process or thread of its own; an error of `on_progress` ends it.
    """
    asked = rules if isinstance(rules, Ruleset) else ruleset(1, rules)
    examples: dict[RuleKey, list[Alert]] = {_key(rule): [] for rule in asked.rules}

    def keep_first(matches: list[Match]) -> None:
        for match in matches:
            kept = examples[_key(match.rule)]
            if len(kept) < most_examples:
                kept.append(Alert.of(match))

    tested = backtest(
        asked,
        tapes,
        profile=profile,
        scan_interval_ns=scan_interval_ns,
        keep_test_symbols=keep_test_symbols,
        on_matches=keep_first,
        on_progress=on_progress,
    )

    def scan(asked: Ruleset) -> TapeScan:
        return TapeScan(
            tapes, profile=profile, rules=asked, scan_interval_ns=scan_interval_ns, keep_test_symbols=keep_test_symbols
        )

    costs = _costs_s(asked, scan, scans=tested.summary["scans"])
    warnings = tested.warnings()
    traded = sum(tested.traded.values())
    return DryRun(
        rules=tuple(
            RuleDryRun(
                rule=score.rule,
                name=rule.name,
                fires=_fires(tested, score.rule),
                share=score.symbol_days / traded if traded else float("nan"),
                examples=tuple(examples[score.rule]),
                too_broad=warnings.get(score.rule, "") if score.alerts else "",
                cost_s=cost_s,
                score=score,
            )
            for rule, score, cost_s in zip(tested.rules, tested.scores, costs, strict=True)
        ),
        summary={**tested.summary, "days": list(tested.traded)},
    )


def _fires(tested: Backtest, key: RuleKey) -> dict[str, int]:
    rows, fires = tested.rows, dict.fromkeys(tested.traded, 0)
    if key in rows.rules:
        days, counts = np.unique(rows.day[rows.rule == rows.rules.index(key)], return_counts=True)
        for day, count in zip(days.tolist(), counts.tolist(), strict=True):
            if day in tested.day_of:  # a rule can fire on a day on which nothing trades
                fires[tested.day_of[day]] = count
    return fires


def _costs_s(rules: Ruleset, scan: Callable[[Ruleset], TapeScan], *, scans: int) -> list[float]:
    """What each rule adds on the tape's beginning to a scanner with one that asks next to nothing, stretched to so many
    scans.
    """
    batches: list[Batch] = []
    for batch in scan(replace(rules, rules=())).reader.batches():
        batches += [batch.rows(begin, begin + _COST_PIECE) for begin in range(0, len(batch), _COST_PIECE)]
        if sum(map(len, batches)) >= _COST_ROWS:
            break

    def measure(asked: tuple[RuleSpec, ...]) -> list[tuple[float, int]]:
        """After each batch: the time that was taken, and the scans that were made."""
        scanner = scan(replace(rules, rules=asked)).scanner
        started, made = time.thread_time(), 0
        after = []
        for batch in batches:
            made += scanner.step(batch).scans
            after.append((time.thread_time() - started, made))
            if after[-1][0] >= _COST_S:
                break
        return after

    (least,) = ruleset(1, load_rules(_LEAST_RULE, where="")).rules
    without = measure((least,))
    costs_s = []
    for rule in rules.rules:
        pairs = zip(measure((least, rule)), without, strict=False)  # as far as both went
        (with_s, made), (without_s, _) = [((0.0, 0), (0.0, 0)), *pairs][-1]
        costs_s.append(max(0.0, with_s - without_s) * scans / made if made else 0.0)
    return costs_s


def _key(rule: RuleSpec) -> RuleKey:
    return RuleKey(rule.id, rule.version)
