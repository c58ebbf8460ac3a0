"""Plays a scenario through the product's own scanner and says in sentences what was not as expected.

Owns the comparison. The tape is cut where an expectation looks, which changes nothing, and time passes as it does on a
tape that is read from a file: a mark before each row that takes the tape past a tenth of a second, two more minutes
after the last row. So a scenario, a replay and the live scanner give the same alerts.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tapewatch.documents import ruleset
from tapewatch.engine.columns import LABELS, MINUTE_NS, ROW_COLUMNS, Bars, Batch, Facts, Kind, make_batch
from tapewatch.engine.daily import DAILY_FACTS
from tapewatch.engine.rules import Match
from tapewatch.engine.rules.explain import Finding, Reading, explain
from tapewatch.engine.rules.tree import All, Comparison, Condition, Number, Operand
from tapewatch.engine.scanner import Scanner
from tapewatch.feeds.marks import PULSE_NS
from tapewatch.nyse import trading_days
from tapewatch.scenarios.script import BAR_FIELDS, Check, Expectation, ExpectedAlert, Scenario
from tapewatch.scenarios.tape import Row, show_clock

MOST_UNNAMED = 10
"""Unexpected alerts that are told one by one."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a scenario; no failures: all was as expected."""

    name: str
    failures: list[str]


def run_scenario(scenario: Scenario) -> Result:
    """Play it."""
    return Result(scenario.name, _Run(scenario).failures())


@dataclass(slots=True)
class _Seen:
    """What had come out of the engine at the last instant that was looked at."""

    matches: list[Match] = field(default_factory=list)
    bars: dict[tuple[str, int], tuple[float, ...]] = field(default_factory=dict)
    """By symbol and minute (since the epoch, ns): `BAR_FIELDS` of the newest revision."""


class _Run:
    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._rules = {rule.id: rule for rule in scenario.rules}
        self._scanner = Scanner(
            days=trading_days(),
            profile=scenario.profile,
            scan_interval_ns=scenario.scan_interval_ns,
        )
        self._scanner.apply(ruleset(1, scenario.rules, scenario.watchlists))
        looked_at = [name for at in scenario.expect for checks in at.metrics.values() for name in checks]
        self._looked_at = tuple(dict.fromkeys(looked_at))
        self._scanner.keep(self._looked_at)
        if scenario.facts or scenario.labels:
            self._scanner.learn(_facts(scenario))
        self._seen = _Seen()

    def failures(self) -> list[str]:
        found: list[tuple[int, str]] = []
        for batch, expectation in _pieces(self._scenario):
            step = self._scanner.step(batch)
            self._seen.matches += step.matches
            for bars in step.bars:
                self._seen.bars.update(_by_minute(bars))
            if expectation is None:
                continue
            values = self._values()
            texts = [
                *(f"{_missing(alert)}: {self._reason(alert)}" for alert in self._silent(expectation)),
                *self._alert_failures(expectation),
                *self._metric_failures(expectation, values),
                *self._bar_failures(expectation),
            ]
            found += [(expectation.at_ns, text) for text in texts]
        found += self._unnamed()
        found.sort(key=lambda item: item[0])
        sentences = [f"at {show_clock(at_ns)} {text}" for at_ns, text in found]
        total, count = self._scenario.alerts_total, len(self._seen.matches)
        if total is not None and total != count:
            sentences.append(f"expected {_alerts(total)} in all; there {'was' if count == 1 else 'were'} {count}")
        return sentences

    # -- alerts -------------------------------------------------------------------------------------------------------

    def _fired(self, at_ns: int) -> dict[tuple[str, str], Match]:
        return {(match.rule.id, match.symbol): match for match in self._seen.matches if self._at(match) == at_ns}

    def _at(self, match: Match) -> int:
        return match.fired_at_ns - self._scenario.midnight_ns

    def _silent(self, expectation: Expectation) -> list[ExpectedAlert]:
        fired = self._fired(expectation.at_ns)
        return [alert for alert in expectation.alerts or () if (alert.rule_id, alert.symbol) not in fired]

    def _alert_failures(self, expectation: Expectation) -> Iterator[str]:
        """Values that differ, and alerts that an instant which lists its alerts does not list."""
        if expectation.alerts is None:
            return
        fired = self._fired(expectation.at_ns)
        for alert in expectation.alerts:
            match = fired.pop((alert.rule_id, alert.symbol), None)
            for metric, check in alert.values.items() if match else ():
                value = match.values[metric] if match else math.nan
                if not check.holds(value):
                    yield (
                        f"rule {alert.rule_id!r} fired for {alert.symbol} with {metric} {_shown(value)}; "
                        f"expected {check.says}"
                    )
        for (rule_id, symbol), match in fired.items():
            yield f"rule {rule_id!r} fired for {symbol}, which was not expected: {_values(match)}"

    def _reason(self, alert: ExpectedAlert) -> str:
        """Why a rule did not fire at this instant."""
        rule, symbol = self._rules[alert.rule_id], alert.symbol
        board = self._scanner.board
        found = explain(self._scanner.plan, rule.id, symbol, reason=board.reason, age_s=board.age_s)
        if found is None:
            return "the rule is not enabled"
        before = [m for m in self._seen.matches if (m.rule.id, m.symbol) == (rule.id, symbol)]
        fired = f"; it had fired at {show_clock(self._at(before[-1]))}" if before else ""
        if found.when is None:
            return f"{found.why.removeprefix('Not asked: ').rstrip('.')}{fired}"
        lacking = list(_lacking(found.rule.when, found.when))
        if lacking:
            return " and ".join(lacking) + fired
        if found.verdict == "gated" and found.rule.gate is not None and found.gate is not None:
            return (
                f"all conditions held, but not the gate: {' and '.join(_lacking(found.rule.gate, found.gate))}{fired}"
            )
        if found.verdict == "cooldown":
            return f"all conditions held, in the cooldown of {rule.cooldown:g} s{fired}"
        again = {"edge": "already held before", "level": "it fires at every scan"}.get(found.rule.fire.mode)
        if found.rule.rearm is not None:
            again = f"the rule was not armed again by {rule.rearm}"
        return f"all conditions held, and {again or f'it fires {rule.fire}'}{fired}"

    def _unnamed(self) -> Iterator[tuple[int, str]]:
        if not self._scenario.no_other_alerts:
            return
        judged = {expectation.at_ns for expectation in self._scenario.expect if expectation.alerts is not None}
        unnamed = [match for match in self._seen.matches if self._at(match) not in judged]
        for match in unnamed[:MOST_UNNAMED]:
            yield (
                self._at(match),
                f"rule {match.rule.id!r} fired for {match.symbol}, which no expectation names: {_values(match)}",
            )
        if len(unnamed) > MOST_UNNAMED:
            yield (
                self._at(unnamed[MOST_UNNAMED]),
                f"and then {len(unnamed) - MOST_UNNAMED} more alerts that no expectation names",
            )

    # -- metrics and bars ---------------------------------------------------------------------------------------------

    def _values(self) -> dict[str, dict[str, float]]:
        """What expectations look at, at the watermark: by symbol and operand."""
        board = self._scanner.board_rows(self._looked_at)
        return {
            symbol: dict(zip(board.metrics, column, strict=True))
            for symbol, column in zip(board.symbols, board.values.T.tolist(), strict=True)
        }

    def _metric_failures(self, expectation: Expectation, values: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
        for symbol, checks in expectation.metrics.items():
            for metric, check in checks.items():
                value = values.get(symbol, {}).get(metric, math.nan)
                if not check.holds(value):
                    yield f"expected {metric} of {symbol} to be {check.says}; it was {_shown(value)}"

    def _bar_failures(self, expectation: Expectation) -> Iterator[str]:
        for symbol, minutes in expectation.bars.items():
            for minute_ns, checks in minutes.items():
                bar = self._bar(symbol, self._scenario.midnight_ns + minute_ns)
                yield from _compare_bar(f"{show_clock(minute_ns)[:5]} bar of {symbol}", checks, bar)

    def _bar(self, symbol: str, start_ns: int) -> tuple[float, ...] | None:
        """The bar as it stands: closed, revised, or of an open minute so far."""
        closed = self._seen.bars.get((symbol, start_ns))
        builder, minute = self._scanner.bars, start_ns // MINUTE_NS
        if closed is not None or symbol not in builder.symbols or not 0 <= minute - builder.open_minute <= 1:
            return closed
        complete = builder.candles.all_complete(builder.row(minute), len(builder.symbols))
        live = _by_minute(builder.bars_of(minute, complete))
        return live.get((symbol, start_ns))


def _compare_bar(what: str, checks: tuple[Check, ...] | None, bar: tuple[float, ...] | None) -> Iterator[str]:
    if checks is None or bar is None:
        if checks is not None:
            yield f"expected a {what}; there was none"
        elif bar is not None:
            yield f"expected no {what}; there was [{', '.join(map(_shown, bar))}]"
        return
    for name, check, value in zip(BAR_FIELDS, checks, bar, strict=True):
        if not check.holds(value):
            yield f"expected the {what} to have {name} {check.says}; it was {_shown(value)}"


def _by_minute(bars: Bars) -> dict[tuple[str, int], tuple[float, ...]]:
    columns = [getattr(bars, name).tolist() for name in BAR_FIELDS]
    places = zip(bars.symbol.tolist(), bars.ts_ns.tolist(), strict=True)
    return {
        (bars.symbols[symbol], ts_ns): values
        for (symbol, ts_ns), values in zip(places, zip(*columns, strict=True), strict=True)
    }


def _lacking(condition: Condition, finding: Finding) -> Iterator[str]:
    """What the conditions that did not hold would have needed."""
    if finding.true:
        return
    match condition:
        case All(conditions):
            for part, found in zip(conditions, finding.parts, strict=True):
                yield from _lacking(part, found)
        case Comparison(Operand(), operator, Number(needed)):
            (reading,) = finding.readings
            yield f"{reading.name} was {_read(reading)}, needs {operator} {_shown(needed)}"
        case _:
            readings = dict.fromkeys(f"{reading.name} was {_read(reading)}" for reading in _readings(finding))
            seen = f" ({', '.join(readings)})" if readings else ""
            yield f"{finding.text} was {'unknown' if finding.true is None else 'not true'}{seen}"


def _readings(finding: Finding) -> Iterator[Reading]:
    yield from finding.readings
    for part in finding.parts:
        yield from _readings(part)


def _read(reading: Reading) -> str:
    return f"unknown ({reading.unknown})" if reading.unknown else _shown(reading.value)


def _shown(value: float) -> str:
    return "unknown" if math.isnan(value) else f"{value:.10g}"


def _values(match: Match) -> str:
    values = match.values if "price" in match.values else {"price": match.price, **match.values}
    return ", ".join(f"{name} was {_shown(value)}" for name, value in values.items())


def _missing(alert: ExpectedAlert) -> str:
    return f"expected rule {alert.rule_id!r} to fire for {alert.symbol}; it did not"


def _alerts(count: int) -> str:
    return "1 alert" if count == 1 else f"{count} alerts"


def _facts(scenario: Scenario) -> Facts:
    """What is known of the symbols beside their trades."""
    symbols = tuple(dict.fromkeys((*scenario.facts, *scenario.labels)))
    names = tuple(name for name in DAILY_FACTS if any(name in figures for figures in scenario.facts.values()))
    values = [[scenario.facts.get(symbol, {}).get(name, np.nan) for symbol in symbols] for name in names]
    days = trading_days()
    return Facts(
        day_start_ns=int(days.pre_ns[days.at(scenario.midnight_ns + 12 * 60 * MINUTE_NS).day]),
        symbols=symbols,
        names=names,
        values=np.array(values, np.float64).reshape(len(names), len(symbols)),
        labels={label: tuple(scenario.labels.get(symbol, {}).get(label, "") for symbol in symbols) for label in LABELS},
    )


# -- the tape in pieces -----------------------------------------------------------------------------------------------


def _pieces(scenario: Scenario) -> Iterator[tuple[Batch, Expectation | None]]:
    """The tape up to each expectation, and its end."""
    tape = _Tape(scenario)
    start = 0
    for expectation in scenario.expect:
        stop = tape.before(expectation.at_ns)
        yield tape.piece(start, stop, until_ns=expectation.at_ns), expectation
        start = stop
    last_ns = scenario.tape[-1].arrives_ns
    yield tape.piece(start, len(tape), until_ns=(last_ns // MINUTE_NS + 2) * MINUTE_NS), None


class _Tape:
    """All rows as one batch; previous closes stand first."""

    def __init__(self, scenario: Scenario) -> None:
        begins_ns = scenario.tape[0].arrives_ns
        known = [
            Row(kind=Kind.CLOSE_PREV, symbol=symbol, at_ns=begins_ns, arrives_ns=begins_ns, price=price)
            for symbol, price in scenario.close_prev.items()
        ]
        rows: Sequence[Row] = [*known, *scenario.tape]
        symbols = tuple(dict.fromkeys(row.symbol for row in rows))
        conditions = tuple(dict.fromkeys(row.conditions for row in rows))
        self._midnight_ns = scenario.midnight_ns
        self._arrives = np.array([row.arrives_ns for row in rows], np.int64)
        cell = self._arrives // PULSE_NS
        marks = np.flatnonzero(np.diff(cell, prepend=-1))
        self._whole = make_batch(
            symbols=symbols,
            conditions=conditions,
            symbol=[symbols.index(row.symbol) for row in rows],
            condition=[conditions.index(row.conditions) for row in rows],
            kind=[row.kind for row in rows],
            ts_ns=[scenario.midnight_ns + row.at_ns for row in rows],
            price=[row.price for row in rows],
            size=[row.size for row in rows],
            tape=[ord(row.tape) if row.tape else 0 for row in rows],
            marks_row=marks,
            marks_ns=scenario.midnight_ns + cell[marks] * PULSE_NS,
        )

    def __len__(self) -> int:
        return len(self._whole)

    def before(self, at_ns: int) -> int:
        """How many rows have arrived before this instant."""
        return int(np.searchsorted(self._arrives, at_ns))

    def piece(self, start: int, stop: int, *, until_ns: int) -> Batch:
        """These rows and, after them, the watermark at `until_ns`."""
        rows = self._whole.take(np.arange(start, stop))
        whole = self._whole
        inside = (whole.marks_row >= start) & (whole.marks_row < stop)
        return make_batch(
            symbols=whole.symbols,
            conditions=whole.conditions,
            marks_row=[*(whole.marks_row[inside] - start), stop - start],
            marks_ns=[*whole.marks_ns[inside], self._midnight_ns + until_ns],
            **{name: getattr(rows, name) for name in ROW_COLUMNS},
        )
