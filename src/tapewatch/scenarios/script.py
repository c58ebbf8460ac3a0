"""A scenario file: what it gives, and what it expects.

Owns the file and checks all of it before anything runs, so that a scenario that is read can be played; `given` reads
the rules and what is known of symbols. It never plays one. Every error is `Invalid` with the file and the line.
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

from tapewatch.config import scan_interval_ns
from tapewatch.documents import Rule, Watchlist
from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS, Kind
from tapewatch.engine.conditions import Profile
from tapewatch.engine.rules import checked
from tapewatch.engine.rules.tree import operands
from tapewatch.errors import ConfigError, Invalid
from tapewatch.feeds.marks import PULSE_NS
from tapewatch.nyse import day_of
from tapewatch.scenarios.given import close_prev_given, facts_given, labels_given, rules_given, templates_given
from tapewatch.scenarios.source import Node, Source
from tapewatch.scenarios.tape import MOST_ROWS, Row, read_clock, read_line, show_clock

SUFFIXES = (".yaml", ".yml")
BAR_FIELDS = ("open", "high", "low", "close", "volume")
_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_ALERT = re.compile(r"(\S+)\s+(\S+)")
_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    "<": operator.lt,
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
}
_CHECK = re.compile(r"(?:(>=|<=|!=|>|<|about)\s*)?([-+]?\d+(?:_\d+)*(?:\.(\d+))?)")
_OPERAND = re.compile(r"(\w+)(?:\[(\d{1,9})\])?")
_FLAGS = re.compile(r"0x[0-9a-f]+( suspicious)?")


@dataclass(frozen=True, slots=True)
class Check:
    """What a number should be."""

    says: str
    """As written: ``101.5``, ``about 2.97``, ``> 3`` or ``unknown``."""
    holds: Callable[[float], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedAlert:
    rule_id: str
    symbol: str
    values: dict[str, Check]
    """Of operands that the rule names, such as ``price`` or ``close_5m[1]``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """What is true at an instant, which every print that arrived before it precedes."""

    at_ns: int
    """Since midnight in New York."""
    alerts: tuple[ExpectedAlert, ...] | None
    """None: the instant says nothing about alerts."""
    metrics: dict[str, dict[str, Check]]
    """By symbol and operand."""
    bars: dict[str, dict[int, tuple[Check, ...] | None]]
    """By symbol and start of the minute (since midnight): open, high, low, close, volume; None: there is no bar."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One file, checked."""

    path: Path
    name: str
    midnight_ns: int
    """The start of the day in New York, since the epoch."""
    rules: tuple[Rule, ...]
    watchlists: tuple[Watchlist, ...]
    profile: Profile
    scan_interval_ns: int
    close_prev: dict[str, float]
    facts: dict[str, dict[str, float]]
    """Daily figures by symbol and name, of `DAILY_FACTS`."""
    labels: dict[str, dict[str, str]]
    """What symbols are, by symbol and name, of `LABELS`."""
    tape: tuple[Row, ...]
    """In the order of arrival."""
    expect: tuple[Expectation, ...]
    """In the order of time."""
    alerts_total: int | None
    no_other_alerts: bool


def find_scenarios(paths: Sequence[Path]) -> list[Scenario]:
    """The scenarios of these files, and of the ``*.yaml`` in these folders and below; `Invalid` for the first fault."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
            if not inside:
                raise Invalid(str(path), "has no scenario in it (*.yaml)")
            files += inside
        elif path.exists():
            files.append(path)
        else:
            raise Invalid(str(path), "no such file or folder")
    return [read_scenario(path) for path in dict.fromkeys(files)]


def read_scenario(path: Path) -> Scenario:
    """One file."""
    return _Reader(Source(path)).scenario()


class _Reader:
    def __init__(self, source: Source) -> None:
        self._source = source
        self._invalid = source.invalid
        self._rules: dict[str, Rule] = {}
        self._symbols: set[str] = set()
        self._begins_ns = 0
        self._interval_ns = SECOND_NS
        self._midnight_ns = 0

    def scenario(self) -> Scenario:
        root = self._source.read()
        fields = self._source.fields(
            root,
            "a scenario",
            needed=("name", "date", "tape", "expect"),
            optional=(
                "rules",
                "rules_file",
                "template",
                "eligibility",
                "scan_interval",
                "close_prev",
                "facts",
                "labels",
                "alerts_total",
                "no_other_alerts",
            ),
        )
        self._midnight_ns = self._midnight(fields["date"])
        self._interval_ns = self._interval(fields.get("scan_interval"))
        profile = self._profile(fields.get("eligibility"))
        rules, watchlists = rules_given(self._source, fields.get("rules"), fields.get("rules_file"))
        rules += templates_given(self._source, fields.get("template"), taken={rule.id for rule in rules})
        self._rules = {rule.id: rule for rule in rules}
        tape = self._tape(fields["tape"], profile)
        self._begins_ns = tape[0].arrives_ns // PULSE_NS * PULSE_NS
        close_prev = close_prev_given(self._source, fields.get("close_prev"))
        facts = facts_given(self._source, fields.get("facts"), close_prev=close_prev)
        labels = labels_given(self._source, fields.get("labels"))
        self._symbols = {row.symbol for row in tape} | close_prev.keys() | facts.keys() | labels.keys()
        return Scenario(
            path=self._source.path,
            name=self._source.word(fields["name"], "the name"),
            midnight_ns=self._midnight_ns,
            rules=tuple(rules),
            watchlists=tuple(watchlists),
            profile=profile,
            scan_interval_ns=self._interval_ns,
            close_prev=close_prev,
            facts=facts,
            labels=labels,
            tape=tape,
            expect=self._expectations(fields["expect"]),
            alerts_total=self._total(fields.get("alerts_total")),
            no_other_alerts=self._flag(fields.get("no_other_alerts"), "no_other_alerts", default=True),
        )

    # -- what is given ------------------------------------------------------------------------------------------------

    def _midnight(self, node: Node) -> int:
        date = self._source.word(node, "the date")
        if not _DATE.fullmatch(date):
            raise self._invalid(node.line, f"{date!r} is not a date such as 2025-03-03")
        try:
            day_of(date)
        except ConfigError as error:
            raise self._invalid(node.line, str(error)) from None
        midnight = datetime.fromisoformat(date).replace(tzinfo=ZoneInfo("America/New_York"))
        return int(midnight.timestamp()) * SECOND_NS

    def _interval(self, node: Node | None) -> int:
        if node is None:
            return SECOND_NS
        try:
            return scan_interval_ns(self._source.word(node, "scan_interval"))
        except ConfigError as error:
            raise self._invalid(node.line, str(error).removeprefix("--scan-interval: ")) from None

    def _profile(self, node: Node | None) -> Profile:
        if node is None:
            return load_profile("alpaca")
        try:
            return load_profile(self._source.word(node, "eligibility"))
        except ConfigError as error:
            raise self._invalid(node.line, str(error)) from None

    def _tape(self, node: Node, profile: Profile) -> tuple[Row, ...]:
        if not isinstance(node.value, str) or (not node.is_block and "\n" in node.value):
            raise self._invalid(node.line, "the tape must be lines of text: write `tape: |` and the lines below it")
        rows: list[Row] = []
        for number, line in enumerate(node.value.split("\n"), start=node.line + node.is_block):
            try:
                rows += read_line(line)
            except ValueError as error:
                raise self._invalid(number, str(error)) from None
            if len(rows) > MOST_ROWS:
                raise self._invalid(number, f"the tape may not have more than {MOST_ROWS:,} rows")
            if rows and rows[-1].kind is Kind.TRADE:
                self._judge(rows[-1].conditions, profile, number)
        if not rows:
            raise self._invalid(node.line, "the tape is empty")
        return tuple(sorted(rows, key=lambda row: row.arrives_ns))

    def _judge(self, conditions: str, profile: Profile, line: int) -> None:
        if profile.column != "conditions" and not _FLAGS.fullmatch(conditions):
            shown = f"not {conditions!r}" if conditions.strip() else "and there are none"
            raise self._invalid(line, f"the conditions of {profile.name} are a bit mask such as 0x1, {shown}")

    # -- what is expected ---------------------------------------------------------------------------------------------

    def _expectations(self, node: Node) -> tuple[Expectation, ...]:
        found: dict[int, Expectation] = {}
        for item in self._source.items(node, "expect"):
            fields = self._source.fields(item, "an expectation", needed=("at",), optional=("alerts", "metrics", "bars"))
            at_ns = self._instant(fields["at"])
            if at_ns in found:
                raise self._invalid(item.line, f"{show_clock(at_ns)} stands twice; put both into one expectation")
            if len(fields) == 1:
                raise self._invalid(item.line, "an expectation needs alerts, metrics or bars")
            alerts = fields.get("alerts")
            found[at_ns] = Expectation(
                at_ns=at_ns,
                alerts=None if alerts is None else self._alerts(alerts, fields["at"], at_ns),
                metrics=self._metrics(fields["metrics"]) if "metrics" in fields else {},
                bars=self._bars(fields["bars"]) if "bars" in fields else {},
            )
        return tuple(found[at_ns] for at_ns in sorted(found))

    def _clock(self, node: Node) -> int:
        try:
            return read_clock(self._source.word(node, "a time"))
        except ValueError as error:
            raise self._invalid(node.line, str(error)) from None

    def _instant(self, node: Node) -> int:
        at_ns = self._clock(node)
        if at_ns % PULSE_NS:
            raise self._invalid(node.line, f"{node.text} is not a whole tenth of a second, the grain of the tape")
        if at_ns < self._begins_ns:
            begins = show_clock(self._begins_ns)
            raise self._invalid(node.line, f"{node.text} is before the first line of the tape, at {begins}")
        return at_ns

    def _alerts(self, node: Node, at: Node, at_ns: int) -> tuple[ExpectedAlert, ...]:
        if (self._midnight_ns + at_ns) % self._interval_ns:
            seconds = self._interval_ns / SECOND_NS
            raise self._invalid(at.line, f"no rule is asked at {at.text}: the scan interval is {seconds:g} s")
        alerts: list[ExpectedAlert] = []
        for item in self._source.items(node, "alerts"):
            alert = self._alert(item)
            if any((alert.rule_id, alert.symbol) == (other.rule_id, other.symbol) for other in alerts):
                raise self._invalid(item.line, f"rule {alert.rule_id!r} and {alert.symbol} stand twice")
            alerts.append(alert)
        return tuple(alerts)

    def _alert(self, item: Node) -> ExpectedAlert:
        if not isinstance(item.value, dict):
            match = _ALERT.fullmatch(self._source.word(item, "an alert"))
            if match is None:
                raise self._invalid(item.line, f"an alert is a rule's id and a symbol, not {item.text!r}")
            return ExpectedAlert(rule_id=self._rule(match[1], item), symbol=self._symbol(match[2], item), values={})
        fields = self._source.fields(item, "an alert", needed=("rule", "symbol"), optional=("values",))
        rule_id = self._rule(self._source.word(fields["rule"], "the rule"), fields["rule"])
        symbol = self._symbol(self._source.word(fields["symbol"], "the symbol"), fields["symbol"])
        values = self._checks(fields["values"], "values") if "values" in fields else {}
        spec = self._rules[rule_id].spec()
        named = [operand.name for operand in operands(spec.when, spec.gate, spec.rearm)]
        for name in values:
            if name not in named:
                there = f"it names {' and '.join(named)}" if named else "it names no metric"
                raise self._invalid(fields["values"].line, f"rule {rule_id!r} does not name {name}; {there}")
        return ExpectedAlert(rule_id=rule_id, symbol=symbol, values=values)

    def _rule(self, rule_id: str, node: Node) -> str:
        if rule_id not in self._rules:
            there = f"there are: {', '.join(self._rules)}" if self._rules else "the scenario has none"
            raise self._invalid(node.line, f"unknown rule {rule_id!r}; {there}")
        return rule_id

    def _symbol(self, symbol: str, node: Node) -> str:
        if symbol not in self._symbols:
            there = ", ".join(sorted(self._symbols)[:10])
            raise self._invalid(node.line, f"{symbol!r} is not on the tape; there are: {there}")
        return symbol

    def _metrics(self, node: Node) -> dict[str, dict[str, Check]]:
        by_symbol = self._source.pairs(node, "metrics")
        return {self._symbol(symbol, checks): self._checks(checks, symbol) for symbol, checks in by_symbol.items()}

    def _checks(self, node: Node, what: str) -> dict[str, Check]:
        checks: dict[str, Check] = {}
        for name, wanted in self._source.pairs(node, what).items():
            try:
                checks[_operand(name)] = self._check(wanted)
            except ValueError as error:
                raise self._invalid(wanted.line, str(error)) from None
        return checks

    def _bars(self, node: Node) -> dict[str, dict[int, tuple[Check, ...] | None]]:
        bars: dict[str, dict[int, tuple[Check, ...] | None]] = {}
        for symbol, minutes in self._source.pairs(node, "bars").items():
            wanted = bars.setdefault(self._symbol(symbol, minutes), {})
            for minute, bar in self._source.pairs(minutes, f"the bars of {symbol}").items():
                start_ns = self._clock(Node(minute, bar.line, minute))
                if start_ns % MINUTE_NS:
                    raise self._invalid(bar.line, f"{minute} is not the start of a minute")
                wanted[start_ns] = self._bar(bar)
        return bars

    def _bar(self, node: Node) -> tuple[Check, ...] | None:
        if node.value == "none":
            return None
        if not isinstance(node.value, list) or len(node.value) != len(BAR_FIELDS):
            raise self._invalid(node.line, f"a bar is [{', '.join(BAR_FIELDS)}], or none")
        return tuple(self._check(item) for item in node.value)

    def _check(self, node: Node) -> Check:
        text = self._source.word(node, "a value")
        if text == "unknown":
            return Check(text, math.isnan)
        match = _CHECK.fullmatch(text)
        if match is None:
            raise self._invalid(
                node.line, f"{text!r} is not a value: write a number, 'about 2.97', '> 3' (or >=, <, <=, !=) or unknown"
            )
        sign, number, decimals = match[1], float(match[2].replace("_", "")), len(match[3] or "")
        if sign in _COMPARE:
            compare = _COMPARE[sign]
            return Check(text, lambda value: not math.isnan(value) and compare(value, number))
        if sign == "about":
            return Check(text, lambda value: not math.isnan(value) and round(value, decimals) == number)
        return Check(text, lambda value: math.isclose(value, number, rel_tol=1e-9, abs_tol=1e-9))

    def _total(self, node: Node | None) -> int | None:
        if node is None:
            return None
        if not node.is_number or node.value < 0 or node.value != int(node.value):
            raise self._invalid(node.line, "alerts_total must be a whole number")
        return int(node.value)

    def _flag(self, node: Node | None, name: str, *, default: bool) -> bool:
        if node is None:
            return default
        if not isinstance(node.value, bool):
            raise self._invalid(node.line, f"{name} must be true or false")
        return node.value


def _operand(name: str) -> str:
    """The canonical name of what a rule may name, such as ``close_5m[1]``; ValueError for what is none."""
    match = _OPERAND.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is not a metric such as price, or close_5m[1]")
    if match[2] == "0":
        raise ValueError("[1] is the last closed candle; the running one is written without brackets")
    return checked.operand(match[1], int(match[2] or 0)).name
