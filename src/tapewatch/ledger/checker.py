"""The checker: what must exist against what witnesses say, and a verdict with reasons.

Words for what is wrong follow Jepsen: lost, duplicate, false, value-mismatch, out-of-order, undeclared-gap,
inconsistent. Nothing is waved through: what cannot be judged is counted and named.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from tapewatch.ledger.booking import Bar
from tapewatch.ledger.days import MINUTE, NEVER
from tapewatch.ledger.expected import Expected, ExpectedAlert, alert_id
from tapewatch.ledger.witnesses import Client, FoundAlert, FoundBar, Stretch, Witnesses

Kind = Literal["lost", "duplicate", "false", "value-mismatch", "out-of-order", "undeclared-gap", "inconsistent"]
KINDS: tuple[Kind, ...] = (
    "lost",
    "duplicate",
    "false",
    "value-mismatch",
    "out-of-order",
    "undeclared-gap",
    "inconsistent",
)
EXAMPLES = 5
_FEWEST = 3
"""Bars that must be short for a stretch to be called a gap."""
_CANDLES = ("closed candles", "rsi_14_1m", "ema_")


class Example(NamedTuple):
    """One thing that is wrong."""

    where: str
    """The witness: ``bars``, ``alerts``, ``client k``, ``rows``."""
    symbol: str
    at_ns: int
    """The minute's start, or when the alert fired."""
    what: str
    """An alert's id and rule, or ``bar``."""
    expected: str
    found: str


class Identity(NamedTuple):
    """Both sides of the account must be equal: sent = accepted + rejected + duplicates + declared lost."""

    sent: int
    accepted: int
    rejected: int
    duplicates: int
    declared_lost: int

    @property
    def balanced(self) -> bool:
        return self.sent == self.accepted + self.rejected + self.duplicates + self.declared_lost


class Sums(NamedTuple):
    """Of the bars outside declared gaps: trades and shares."""

    trades: int
    shares: float


@dataclass
class Verdict:
    counts: Counter[Kind] = field(default_factory=Counter)
    examples: dict[Kind, list[Example]] = field(default_factory=lambda: defaultdict(list))
    """The first five of each kind."""
    bars: int = 0
    alerts: int = 0
    """Compared, by what was expected."""
    excluded_bars: int = 0
    excluded_alerts: int = 0
    """Expected or found, and touched by a declared gap."""
    unchecked: dict[str, str] = field(default_factory=dict)
    """Rules that were not judged, and why."""
    unchecked_alerts: Counter[str] = field(default_factory=Counter)
    """Alerts of rules that were not judged, by rule and version."""
    paused_alerts: Counter[str] = field(default_factory=Counter)
    """By rule and version: how many fired while scans may have paused, or not; 0 where none did."""
    repeats: dict[str, int] = field(default_factory=dict)
    """Frames that brought a client an alert again; they are harmless where the application was not told twice."""
    identity: Identity | None = None
    told: Identity | None = None
    """The same account as the system itself gives it."""
    sums: tuple[Sums, Sums] | None = None
    """Expected and found."""

    @property
    def ok(self) -> bool:
        return not self.counts

    def wrong(self, kind: Kind, example: Example) -> None:
        self.counts[kind] += 1
        if len(self.examples[kind]) < EXAMPLES:
            self.examples[kind].append(example)


@dataclass(frozen=True)
class Scope:
    """What is compared: bars that start, and alerts that fired, in [start_ns, end_ns)."""

    start_ns: int = 0
    end_ns: int = NEVER


def check(expected: Expected, witnesses: Witnesses, *, scope: Scope | None = None) -> Verdict:
    """The verdict on these witnesses."""
    scope = scope or Scope()
    verdict = Verdict(unchecked=dict(expected.unchecked))
    declared_lost = 0
    if witnesses.bars is not None:
        declared_lost = _check_bars(verdict, expected, witnesses.bars, witnesses.gaps, scope)
    _check_published(verdict, witnesses.published)
    judge = _Alerts(verdict, expected, witnesses, scope)
    if witnesses.alerts is not None:
        judge.history(witnesses.alerts)
    for client in witnesses.clients:
        judge.client(client, witnesses.alerts)
    _check_agreement(verdict, witnesses.clients)
    _check_account(verdict, expected, witnesses, declared_lost)
    return verdict


# -- bars -------------------------------------------------------------------------------------------------------------


def _check_bars(
    verdict: Verdict, expected: Expected, bars: Sequence[FoundBar], gaps: Sequence[Stretch], scope: Scope
) -> int:
    """Compares; gives back how many trades are missing inside declared gaps."""
    wanted = {key: bar for key, bar in expected.bars.items() if scope.start_ns <= key[1] < scope.end_ns}
    found: dict[tuple[str, int], Bar] = {}
    for symbol, ts_ns, bar in bars:
        if not scope.start_ns <= ts_ns < scope.end_ns:
            continue
        if (symbol, ts_ns) in found:
            verdict.wrong("duplicate", Example("bars", symbol, ts_ns, "bar", "one bar", "one more"))
        found[symbol, ts_ns] = bar
    declared_lost, short = 0, defaultdict[int, list[bool]](list)
    trades = shares = found_trades = found_shares = 0.0
    for key in sorted(wanted.keys() | found.keys(), key=lambda key: (key[1], key[0])):
        symbol, ts_ns = key
        want, have = wanted.get(key), found.get(key)
        if _touched(ts_ns, ts_ns + MINUTE, gaps):
            verdict.excluded_bars += 1
            declared_lost += max(0, (want.trade_count if want else 0) - (have.trade_count if have else 0))
            continue
        if want is not None:
            verdict.bars += 1
            trades, shares = trades + want.trade_count, shares + want.volume
            short[ts_ns].append(have is None or have.trade_count < want.trade_count)
        if have is not None:
            found_trades, found_shares = found_trades + have.trade_count, found_shares + have.volume
        if have is None:
            verdict.wrong("lost", Example("bars", symbol, ts_ns, "bar", _words(want), "no bar"))
        elif want is None:
            verdict.wrong("false", Example("bars", symbol, ts_ns, "bar", "no bar", _words(have)))
        elif differing := [name for name in Bar._fields if not same(getattr(want, name), getattr(have, name))]:
            verdict.wrong(
                "value-mismatch",
                Example("bars", symbol, ts_ns, "bar", _words(want, differing), _words(have, differing)),
            )
    verdict.sums = Sums(int(trades), shares), Sums(int(found_trades), found_shares)
    _find_gaps(verdict, short)
    return declared_lost


def _find_gaps(verdict: Verdict, short: Mapping[int, Sequence[bool]]) -> None:
    """Stretches of minutes in which every bar that should be there lacks trades, and that nobody declared."""
    stretch: list[int] = []
    for ts_ns in [*sorted(short), NEVER]:
        if ts_ns in short and all(short[ts_ns]):
            stretch.append(ts_ns)
            continue
        lacking = sum(len(short[minute]) for minute in stretch)
        if lacking >= _FEWEST:
            minutes = (stretch[-1] - stretch[0]) // MINUTE + 1
            words = f"{lacking} bars in {minutes} minutes lack trades, and no gap was declared"
            verdict.wrong("undeclared-gap", Example("bars", "", stretch[0], "gap", "trades", words))
        stretch = []


def _check_published(verdict: Verdict, published: Iterable[FoundBar]) -> None:
    newest: dict[tuple[str, int], int] = {}
    for symbol, ts_ns, bar in published:
        before = newest.get((symbol, ts_ns), -1)
        if bar.revision < before:
            words = f"revision {before} or later", f"revision {bar.revision}"
            verdict.wrong("out-of-order", Example("published bars", symbol, ts_ns, "bar", *words))
        newest[symbol, ts_ns] = max(before, bar.revision)


def _touched(start_ns: int, end_ns: int, gaps: Iterable[Stretch]) -> bool:
    return any(gap.start_ns < end_ns and gap.end_ns > start_ns for gap in gaps)


def same(a: float | None, b: float | None) -> bool:
    """Equal to the last bit; unknown equals unknown."""
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def _words(bar: Bar | None, fields: Sequence[str] = Bar._fields) -> str:
    return "no bar" if bar is None else ", ".join(f"{name} {getattr(bar, name)!r}" for name in fields)


# -- alerts -----------------------------------------------------------------------------------------------------------


class _Alerts:
    def __init__(self, verdict: Verdict, expected: Expected, witnesses: Witnesses, scope: Scope) -> None:
        self._verdict, self._expected, self._gaps, self._scope = verdict, expected, witnesses.gaps, scope
        self._others = witnesses.other_rules
        self._excluded: set[str] = set()
        self._unjudged: set[str] = set()
        for rule_id, version, _ in expected.pauses:
            verdict.paused_alerts[f"{rule_id} version {version}"] = 0
        self._wanted = {alert.alert_id: alert for alert in expected.alerts if self._counts(alert)}
        verdict.alerts = len(self._wanted)

    def _counts(self, alert: ExpectedAlert | FoundAlert) -> bool:
        """It is in scope, scans cannot have paused when it fired, and no declared gap touches it."""
        if not self._scope.start_ns <= alert.fired_at_ns < self._scope.end_ns:
            return False
        if self._may_pause(alert):
            if alert.alert_id not in self._unjudged:
                self._unjudged.add(alert.alert_id)
                self._verdict.paused_alerts[f"{alert.rule_id} version {alert.rule_version}"] += 1
            return False
        if not self._gap_touches(alert):
            return True
        if alert.alert_id not in self._excluded:
            self._excluded.add(alert.alert_id)
            self._verdict.excluded_alerts += 1
        return False

    def _may_pause(self, alert: ExpectedAlert | FoundAlert) -> bool:
        stretches = self._expected.pauses.get((alert.rule_id, alert.rule_version, alert.symbol), ())
        return any(start_ns <= alert.fired_at_ns < end_ns for start_ns, end_ns in stretches)

    def _gap_touches(self, alert: ExpectedAlert | FoundAlert) -> bool:
        """From the gap on the day's figures are not known, nor what was true before; candles never are again."""
        key = alert.rule_id, alert.rule_version
        candles = any(name.startswith(_CANDLES) for name in self._expected.reads.get(key, ()))
        for gap in self._gaps:
            healed_ns = NEVER if candles else self._expected.days.next_day(gap.end_ns)
            if gap.start_ns <= alert.fired_at_ns < healed_ns + self._expected.cooldown_ns.get(key, 0):
                return True
        return False

    def _judged(self, alert: FoundAlert) -> bool:
        """False where nothing can be said of the alert's rule, which is counted, each alert once."""
        key = alert.rule_id, alert.rule_version
        if key in self._expected.rules or (alert.rule_id not in self._expected.unchecked and key not in self._others):
            return True
        if alert.alert_id not in self._unjudged:
            self._unjudged.add(alert.alert_id)
            self._verdict.unchecked_alerts[f"{alert.rule_id} version {alert.rule_version}"] += 1
        return False

    def history(self, alerts: Sequence[FoundAlert]) -> None:
        """The alerts of the store."""
        found = [alert for alert in alerts if self._judged(alert) and self._counts(alert)]
        self._compare("alerts", found, self._wanted)

    def client(self, client: Client, history: Sequence[FoundAlert] | None) -> None:
        where = f"client {client.name}"
        wanted = {name: alert for name, alert in self._wanted.items() if client.wants(alert.rule_id, alert.symbol)}
        shown = [alert for alert in client.application if self._judged(alert) and self._counts(alert)]
        self._compare(where, shown, wanted)
        self._check_order(where, shown)
        received = Counter(heard.alert.alert_id for heard in client.raw)
        self._verdict.repeats[client.name] = sum(received.values()) - len(received)
        told = {alert.alert_id for alert in client.application}
        for alert in shown:
            if alert.alert_id not in received:
                self._wrong("false", where, alert, "shown after it was received", "shown, but never received")
        for heard in {heard.alert.alert_id: heard.alert for heard in client.raw}.values():
            if heard.alert_id not in told:
                self._wrong("lost", where, heard, "shown to the application", "received, but not shown")
        if history is None:
            return
        stored = {alert.alert_id: alert for alert in history if client.wants(alert.rule_id, alert.symbol)}
        for alert in client.application:
            if alert.alert_id not in stored:
                self._wrong("inconsistent", where, alert, "what history holds", "shown, but not in history")
            elif differing := _differing(stored[alert.alert_id], alert):
                self._wrong(
                    "inconsistent", where, alert, _said(stored[alert.alert_id], differing), _said(alert, differing)
                )
        for alert in stored.values():
            if alert.alert_id not in told and self._counts(alert):
                self._wrong("inconsistent", where, alert, "in history", "not shown")

    def _compare(self, where: str, found: Sequence[FoundAlert], wanted: Mapping[str, ExpectedAlert]) -> None:
        seen: set[str] = set()
        for alert in found:
            want = wanted.get(alert.alert_id)
            if alert.alert_id in seen:
                self._wrong("duplicate", where, alert, "once", "once more")
            elif want is None:
                words = "no such alert"
                if alert.alert_id != alert_id(alert.rule_id, alert.rule_version, alert.symbol, alert.fired_at_ns):
                    words = "an id that is made of rule, version, symbol and time"
                self._wrong("false", where, alert, words, "the alert")
            elif differing := _differing(want, alert):
                self._wrong("value-mismatch", where, alert, _said(want, differing), _said(alert, differing))
            seen.add(alert.alert_id)
        for want in wanted.values():
            if want.alert_id not in seen:
                self._wrong("lost", where, want, "the alert", "nothing")

    def _check_order(self, where: str, shown: Iterable[FoundAlert]) -> None:
        newest: dict[tuple[str, str], int] = {}
        for alert in shown:
            key = alert.symbol, alert.rule_id
            if alert.fired_at_ns < newest.get(key, 0):
                self._wrong("out-of-order", where, alert, "after what fired before it", "after what fired later")
            newest[key] = max(newest.get(key, 0), alert.fired_at_ns)

    def _wrong(self, kind: Kind, where: str, alert: ExpectedAlert | FoundAlert, expected: str, found: str) -> None:
        what = f"alert {alert.alert_id} of {alert.rule_id} version {alert.rule_version}"
        self._verdict.wrong(kind, Example(where, alert.symbol, alert.fired_at_ns, what, expected, found))


_FIELDS = FoundAlert._fields[1:]


def _differing(want: ExpectedAlert | FoundAlert, have: FoundAlert) -> list[str]:
    values: list[tuple[str, Any, Any]] = [(name, getattr(want, name), getattr(have, name)) for name in _FIELDS]
    return [name for name, a, b in values if not (same(a, b) if name == "price" else a == b)]


def _said(alert: ExpectedAlert | FoundAlert, fields: Sequence[str]) -> str:
    return ", ".join(f"{name} {getattr(alert, name)!r}" for name in fields)


def _check_agreement(verdict: Verdict, clients: Sequence[Client]) -> None:
    """Every client that wants an alert which another one was shown must have been shown it, too."""
    shown = {client.name: {alert.alert_id for alert in client.application} for client in clients}
    everywhere = {alert.alert_id: (alert, client) for client in clients for alert in client.application}
    for name, (alert, teller) in everywhere.items():
        for client in clients:
            if name not in shown[client.name] and client.wants(alert.rule_id, alert.symbol):
                words = f"shown to client {teller.name}", f"not shown to client {client.name}"
                what = f"alert {name} of {alert.rule_id} version {alert.rule_version}"
                verdict.wrong("inconsistent", Example("clients", alert.symbol, alert.fired_at_ns, what, *words))


# -- the account ------------------------------------------------------------------------------------------------------


def _check_account(verdict: Verdict, expected: Expected, witnesses: Witnesses, declared_lost: int) -> None:
    counts = expected.counts
    verdict.identity = Identity(
        counts["sent"],
        expected.accepted - declared_lost,
        counts["rejected"],
        counts["duplicates"],
        declared_lost,
    )
    if witnesses.counts is None:
        return
    verdict.told = told = Identity(counts["sent"], *witnesses.counts)
    unaccounted = told.sent - sum(told[1:])
    if unaccounted > 0:
        words = f"{unaccounted} rows are neither accepted nor rejected, duplicates or declared lost"
        verdict.wrong("undeclared-gap", Example("rows", "", expected.began_ns, "account", f"{told.sent} rows", words))
    elif unaccounted < 0:
        words = f"{-unaccounted} rows more than were sent"
        verdict.wrong("duplicate", Example("rows", "", expected.began_ns, "account", f"{told.sent} rows", words))
    elif not told.declared_lost and told.accepted != verdict.identity.accepted:
        accepted = f"{verdict.identity.accepted} accepted", f"{told.accepted} accepted"
        verdict.wrong("value-mismatch", Example("rows", "", expected.began_ns, "account", *accepted))
