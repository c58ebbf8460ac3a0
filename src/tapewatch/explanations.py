"""Explanations for people: `engine.rules.explain` as JSON and as lines of text, and the notices that ask for one.

A question goes out on the channel `QUESTIONS`; each partition's scanner answers on `ANSWERS`. Both are short notices:
an asker waits for a while and no longer.
"""

from collections.abc import Iterator
from typing import Any

import msgspec

from tapewatch.documents import known, rfc3339
from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.rules.explain import Explanation, Finding, NearMiss

QUESTIONS, ANSWERS = "rules.explain", "rules.explained"
_MARKS = {True: "yes", False: "no ", None: "?  "}


class Question(msgspec.Struct, frozen=True):
    """Why a rule did or did not fire for a symbol; without a symbol, for which it nearly did."""

    question_id: str
    rule_id: str
    symbol: str | None
    limit: int


class AnswerPart(msgspec.Struct, frozen=True):
    """A partition's answer."""

    question_id: str
    rule_known: bool
    symbol_known: bool
    explanation: dict[str, Any] | None
    near_misses: list[dict[str, Any]]


def explanation_json(explanation: Explanation) -> dict[str, Any]:
    """Unknown numbers are null; beside each operand stands what it is and what it is made of."""
    return {
        "rule_id": explanation.rule.id,
        "rule_version": explanation.rule.version,
        "symbol": explanation.symbol,
        "at": rfc3339(explanation.at_ns) if explanation.at_ns else None,
        "session": explanation.session,
        "verdict": explanation.verdict,
        "why": explanation.why,
        "when": _finding(explanation.when),
        "gate": _finding(explanation.gate),
        "rearm": _finding(explanation.rearm),
    }


def near_miss_json(miss: NearMiss) -> dict[str, Any]:
    return {
        "symbol": miss.symbol,
        "missing": miss.missing,
        "true": miss.true,
        "unknown": miss.unknown or None,
        "value": known(miss.value),
        "lacks": known(miss.lacks),
        "lacks_pct": known(miss.lacks_pct),
    }


def operand_json(name: str, value: float, age_s: float, unknown: str = "") -> dict[str, Any]:
    """A value with its unit, its age in seconds, and its formula."""
    metric = CATALOGUE.get(name.partition("[")[0])
    return {
        "name": name,
        "value": known(value),
        "unit": metric.unit if metric else None,
        "age_s": known(age_s),
        "unknown": unknown or None,
        "formula": metric.formula if metric else None,
        "source": (metric.source or None) if metric else None,
    }


def _finding(finding: Finding | None) -> dict[str, Any] | None:
    if finding is None:
        return None
    return {
        "text": finding.text,
        "true": finding.true,
        "lacks": None if finding.lacks is None else known(finding.lacks),
        "operands": [operand_json(r.name, r.value, r.age_s, r.unknown) for r in finding.readings],
        "parts": [_finding(part) for part in finding.parts],
    }


def explanation_lines(document: dict[str, Any]) -> Iterator[str]:
    """An `explanation_json` for a terminal: the verdict, then a line a condition and operand, indented as the rule is
    nested.
    """
    at = f"scan at {document['at']}" if document["at"] else "no scan"
    yield f"{document['rule_id']} (version {document['rule_version']}), {document['symbol']}, {at}"
    yield document["why"]
    for clause in ("when", "gate", "rearm"):
        if document[clause] is not None:
            yield clause
            yield from _lines(document[clause], 1)


def _lines(finding: dict[str, Any], depth: int) -> Iterator[str]:
    indent = "  " * depth
    lacks = f"   lacks {finding['lacks']:+,.6g}" if finding["lacks"] else ""
    yield f"{indent}{_MARKS[finding['true']]} {finding['text']}{lacks}"
    for operand in finding["operands"]:
        yield f"{indent}      {_operand_line(operand)}"
    for part in finding["parts"]:
        yield from _lines(part, depth + 1)


def _operand_line(operand: dict[str, Any]) -> str:
    unit = f" {operand['unit']}" if operand["unit"] not in {None, "flag"} else ""
    value = f"unknown: {operand['unknown']}" if operand["value"] is None else f"{operand['value']:,.6g}{unit}"
    age = "" if operand["age_s"] is None else f", {operand['age_s']:,.1f} s old"
    return f"{operand['name']} = {value}{age}"
