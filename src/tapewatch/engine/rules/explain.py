"""Why a rule fired, or why it did not: each condition's truth, each operand's value, its age and what it lacks.

Everything is read from the plan as the last scan left it; nothing is asked anew of conditions that remember.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from tapewatch.engine.columns import F64, SECOND_NS
from tapewatch.engine.rules.plan import Plan
from tapewatch.engine.rules.questions import Scene
from tapewatch.engine.rules.spelling import format_condition
from tapewatch.engine.rules.tree import (
    All,
    Between,
    Comparison,
    Condition,
    Crossing,
    Node,
    RuleSpec,
    conditions_below,
    operands,
)

Verdict = Literal["fired", "true", "cooldown", "gated", "held", "false", "unknown", "not asked"]
Say = Callable[[str, int], str]
Age = Callable[[str, int], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """An operand at the scan."""

    name: str
    value: float
    unknown: str
    """Why the value is unknown; empty where it is known."""
    age_s: float
    """Seconds since the newest trade, quote or close behind it; NaN where nothing can be said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A condition at the scan, and those below it."""

    text: str
    true: bool | None
    """None: unknown."""
    lacks: float | None
    """How far the left side of a comparison that does not hold is from the right one; negative: it is too high."""
    readings: tuple[Reading, ...]
    """The operands of a condition without conditions below it."""
    parts: "tuple[Finding, ...]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    rule: RuleSpec
    symbol: str
    at_ns: int
    """Event time of the scan."""
    session: str
    verdict: Verdict
    why: str
    """One sentence."""
    when: Finding | None
    gate: Finding | None
    rearm: Finding | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NearMiss:
    """A symbol for which all conditions of a rule are true but one."""

    symbol: str
    missing: str
    true: bool | None
    """False or unknown."""
    unknown: str
    """Why, where it is unknown."""
    value: float
    """Left side of the missing comparison; NaN where it is another condition."""
    lacks: float
    """How far it is from holding, with its sign; NaN where that cannot be said."""
    lacks_pct: float
    """The same in percent of the right side."""


def explain(plan: Plan, rule_id: str, symbol: str, *, reason: Say, age_s: Age) -> Explanation | None:
    """What the last scan made of a rule for a symbol; None if the ruleset has no such rule. `reason` and `age_s` speak
    of a row and the symbol's index.
    """
    rule = plan.rule(rule_id)
    if rule is None:
        return None
    scene = plan.scene
    if scene is None or symbol not in scene.symbols:
        why = "no scan has been made yet" if scene is None else "no trade of the symbol has been seen"
        return Explanation(
            rule=rule,
            symbol=symbol,
            at_ns=0 if scene is None else scene.now_ns,
            session="" if scene is None else scene.session,
            verdict="not asked",
            why=f"Not asked: {why}.",
            when=None,
            gate=None,
            rearm=None,
        )
    place = scene.symbols.index(symbol)
    look = _Look(plan, rule, scene, place, reason, age_s)
    when = look.finding(rule.when)
    gate = look.finding(rule.gate) if rule.gate is not None else None
    rearm = look.finding(rule.rearm) if rule.rearm is not None else None
    verdict, why = _verdict(plan, rule, scene, place, when, gate)
    return Explanation(
        rule=rule,
        symbol=symbol,
        at_ns=scene.now_ns,
        session=scene.session,
        verdict=verdict,
        why=why,
        when=when,
        gate=gate,
        rearm=rearm,
    )


def near_misses(plan: Plan, rule_id: str, *, reason: Say, limit: int = 20) -> list[NearMiss] | None:
    """Symbols for which all conditions of the rule's conjunction are true but one, the nearest first, those of which no
    distance can be told last; None if the ruleset has no such rule.
    """
    rule, scene = plan.rule(rule_id), plan.scene
    if rule is None:
        return None
    if scene is None:
        return []
    conditions = rule.when.conditions if isinstance(rule.when, All) else (rule.when,)
    answers = [plan.answer(rule, condition, scene) for condition in conditions]
    true = np.stack([answer.true for answer in answers])
    near = np.flatnonzero(np.count_nonzero(true, axis=0) == len(conditions) - 1)
    missing = np.argmin(true[:, near], axis=0)
    lacks, lacks_pct, left = (np.full(len(near), np.nan) for _ in range(3))
    for i, condition in enumerate(conditions):
        at = np.flatnonzero(missing == i)
        measured = _distance(condition, scene)
        if measured is not None and len(at):
            value, distance, base = (np.broadcast_to(row, scene.values.shape[1:])[near[at]] for row in measured)
            left[at], lacks[at] = value, distance
            with np.errstate(invalid="ignore", divide="ignore"):
                lacks_pct[at] = np.where(base != 0, np.abs(distance / base) * 100.0, np.nan)
    names = np.array([scene.symbols[i] for i in near.tolist()], dtype=object)
    order = sorted(
        range(len(near)),
        key=lambda i: (bool(np.isnan(lacks_pct[i])), float(np.nan_to_num(lacks_pct[i])), str(names[i])),
    )
    found = []
    for i in order[:limit]:
        condition, place = conditions[int(missing[i])], int(near[i])
        unknown = bool(answers[int(missing[i])].possible[place])
        found.append(
            NearMiss(
                symbol=str(names[i]),
                missing=format_condition(condition),
                true=None if unknown else False,
                unknown=_first_reason(condition, scene, place, reason) if unknown else "",
                value=float(left[i]),
                lacks=float(lacks[i]),
                lacks_pct=float(lacks_pct[i]),
            )
        )
    return found


class _Look:
    def __init__(self, plan: Plan, rule: RuleSpec, scene: Scene, place: int, reason: Say, age_s: Age) -> None:
        self._plan, self._rule, self._scene, self._place = plan, rule, scene, place
        self._reason, self._age_s = reason, age_s

    def finding(self, condition: Condition) -> Finding:
        answer = self._plan.answer(self._rule, condition, self._scene)
        true: bool | None = bool(answer.true[self._place])
        if not true and answer.possible[self._place]:
            true = None
        below = conditions_below(condition)
        lacks = None
        measured = _distance(condition, self._scene) if true is False else None
        if measured is not None:
            lacks = float(np.broadcast_to(measured[1], self._scene.values.shape[1:])[self._place])
        return Finding(
            text=format_condition(condition),
            true=true,
            lacks=lacks,
            readings=() if below else self._readings(condition),
            parts=tuple(self.finding(part) for part in below),
        )

    def _readings(self, condition: Condition) -> tuple[Reading, ...]:
        found = []
        for operand in operands(condition):
            value = float(self._scene.row(operand.name)[self._place])
            found.append(
                Reading(
                    name=operand.name,
                    value=value,
                    unknown=self._reason(operand.name, self._place) if np.isnan(value) else "",
                    age_s=self._age_s(operand.name, self._place),
                )
            )
        return tuple(found)


def _verdict(
    plan: Plan, rule: RuleSpec, scene: Scene, place: int, when: Finding, gate: Finding | None
) -> tuple[Verdict, str]:
    if any(match.rule.id == rule.id and match.symbol == scene.symbols[place] for match in plan.matches):
        return "fired", "Fired at this scan."
    if when.true is None:
        return "unknown", f"Unknown: {_unknown(when)}."
    if not when.true:
        return "false", f"Not true: {_missing(rule.when, when)}."
    if gate is not None and not gate.true:
        return "gated", f"True, but the gate is not: {gate.text}."
    last_ns = plan.last_fired_ns(rule, place)
    if rule.cooldown_ns and last_ns is not None and scene.now_ns - last_ns < rule.cooldown_ns:
        left_s = (rule.cooldown_ns - (scene.now_ns - last_ns)) / SECOND_NS
        return "cooldown", f"True, but the rule fired for the symbol and is silent for another {left_s:,.0f} s."
    armed = {
        "edge": "it must be known to be false first"
        if rule.rearm is None
        else "it is armed again when the rearm condition is true",
        "bar": "it fires once in a bar",
        "session": "it fires once in a session",
        "level": "it fires at every scan",
    }[rule.fire.mode]
    return "held", f"True, and has been since before this scan: {armed}."


def _missing(when: Condition, finding: Finding) -> str:
    """The conditions that do not hold, in words."""
    lacking = [part.text for part in finding.parts if part.true is False] if isinstance(when, All) else [finding.text]
    return "; ".join(lacking)


def _unknown(finding: Finding) -> str:
    waiting, reasons = [finding], []
    while waiting:
        part = waiting.pop(0)
        reasons += [f"{reading.name} ({reading.unknown})" for reading in part.readings if reading.unknown]
        waiting += [below for below in part.parts if below.true is None]
    return ", ".join(dict.fromkeys(reasons)) or f"{finding.text} has not been seen for long enough"


def _first_reason(condition: Node, scene: Scene, place: int, reason: Say) -> str:
    for operand in operands(condition):
        if np.isnan(scene.row(operand.name)[place]):
            return f"{operand.name}: {reason(operand.name, place)}"
    return "not seen for long enough"


def _distance(condition: Condition, scene: Scene) -> tuple[F64, F64, F64] | None:
    """Left side, what it lacks to make the condition true (zero where nothing), and the right side."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        match condition:
            case Comparison(left, operator, right) if operator != "!=":
                value, wanted = scene.value(left), scene.value(right)
                return value, wanted - value, wanted
            case Crossing(left, _, right):
                value, wanted = scene.value(left), scene.value(right)
                return value, wanted - value, wanted
            case Between(value_, low, high):
                value, bottom, top = scene.value(value_), scene.value(low), scene.value(high)
                wanted = np.where(value < bottom, bottom, np.where(value > top, top, value))
                return value, wanted - value, wanted
    return None
