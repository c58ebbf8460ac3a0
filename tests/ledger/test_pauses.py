"""The night: scans pause, sooner or later, and the oracle judges what does not depend on it, and nothing else."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from tapewatch.documents import Rule, load_rule_file, ruleset
from tapewatch.eligibility import load_profile
from tapewatch.engine.rules import Match
from tapewatch.engine.scanner import Scanner
from tapewatch.ledger.asked import asked
from tapewatch.ledger.checker import Verdict, check
from tapewatch.ledger.conditions import read_eligibility
from tapewatch.ledger.days import MINUTE, SECOND, days_around
from tapewatch.ledger.expected import Expected, alert_id
from tapewatch.ledger.oracle import Oracle
from tapewatch.ledger.pauses import Doubt
from tapewatch.ledger.report import as_json, lines
from tapewatch.ledger.tape import Item, Mark, Row
from tapewatch.ledger.witnesses import FoundAlert, Witnesses
from tapewatch.nyse import day_of, trading_days

POST_NS, PRE_NS = day_of("2025-03-03")[3], day_of("2025-03-04")[0]
TEXT = """
rule level when price > 1 fire level cooldown 10m
rule each when price > 1 fire level
rule bar when price > 1 fire once per bar 1h
rule day when price > 1 fire once per day
rule spent when price > 1 gate price > 9 fire once per bar 30m
rule session when price > 1 fire once per session
rule edge when price > 10
"""
NIGHT = (0.5, 9_000.25, 9_100.5, 30_000.5)
"""Seconds from 20:00 at which AAA trades: in the closed hours, again after the pause, and at 04:20 of the next day."""


def rules_of(text: str = TEXT) -> list[Rule]:
    return load_rule_file(text, where="night.rules")[0]


def tape(seconds: Sequence[float] = NIGHT, *, others: bool = False) -> list[Item]:
    """AAA from 19:59:30 to 04:40; `others`: BBB trades each ten minutes, so that nothing ever pauses."""
    rows = [Row("AAA", POST_NS + round(s * SECOND), 9.0 + i, 100.0, "@", "C", "Q", 0) for i, s in enumerate(seconds)]
    rows.append(Row("AAA", POST_NS - 30 * SECOND, 8.0, 100.0, "@", "C", "Q", 0))
    if others:
        rows += [Row("BBB", POST_NS + s * SECOND, 0.5, 100.0, "@", "C", "Q", 0) for s in range(5, 31_000, 600)]
    marks = [Mark(POST_NS + s * SECOND) for s in range(-40, 31_200, 20)]
    return sorted([*sorted(rows, key=arrives), *marks], key=arrives)


def arrives(item: Item) -> int:
    return item.ns if isinstance(item, Mark) else item.ts_ns


def scanned(items: Sequence[Item], as_batches: Any, rules: Sequence[Rule], **settings: Any) -> list[Match]:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), **settings)
    scanner.apply(ruleset(1, list(rules)))
    return [match for batch in as_batches(items) for match in scanner.step(batch).matches]


def expected_of(items: Iterable[Item], rules: Sequence[Rule]) -> Expected:
    oracle = Oracle(
        [asked(rule) for rule in rules], days=days_around(POST_NS, PRE_NS), eligibility=read_eligibility("alpaca")
    )
    oracle.take(items)
    return oracle.expected()


def judged(expected: Expected, matches: Iterable[Match]) -> Verdict:
    found = [
        FoundAlert(m.alert_id, m.rule.id, m.rule.version, m.symbol, m.fired_at_ns, float(m.price)) for m in matches
    ]
    return check(expected, Witnesses(bars=None, alerts=found))


def seconds_of(matches: Iterable[Match], rule: str) -> list[float]:
    return [(m.fired_at_ns - POST_NS) / SECOND for m in matches if m.rule.id == rule and m.symbol == "AAA"]


# -- the pause, as docs/rules.md tells it -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reach_minutes"),
    [
        ("rule l when price > 1 fire level", 62),
        ("rule l when price > 1 fire level\nrule long when change_pct_4h > 50", 242),
        ("rule l when price > 1 fire level\nrule mind when price > 1 for 20m", 82),
    ],
)
def test_level_is_silent_from_when_scans_pause_until_a_print_or_a_session(
    text: str, reach_minutes: int, as_batches: Any
) -> None:
    fired = seconds_of(scanned(tape((0.5, 20_000.5)), as_batches, rules_of(text)), "l")
    last = reach_minutes * 60 + 3  # the minute before the print closes at 20:00:02, and one scan more
    assert [s for s in fired if 0 < s < 20_000] == list(range(1, last + 1))
    resumed = range(20_001, min(20_000 + last, 28_800) + 1)
    assert set(resumed) <= set(fired)
    assert [s for s in fired if s > 28_800] == list(range(28_801, 31_181))  # from 04:00 on, without a pause
    if reach_minutes == 62:
        assert [s for s in fired if 20_000 + last + 60 < s <= 28_800] == []


def test_other_stocks_of_the_partition_keep_scans_awake(as_batches: Any) -> None:
    fired = seconds_of(scanned(tape(others=True), as_batches, rules_of()), "each")
    assert fired == list(range(-39, 31_181))  # what has arrived before a mark is seen by the scans before it


# -- memory over a pause ----------------------------------------------------------------------------------------------

FALL = """
rule fall when price > 10 within 30s and price < 9.5
rule after when price > 10 then price < 9.5 within 30s
rule kept when price > 10 for 20s within 5s and price < 9.5
rule run when price > 10 5 times in a row within 1m and price < 9.5
rule calm when not (price > 10 within 5s) and price < 9.5
"""
OPEN_NS = day_of("2025-03-03")[1]
NOON_NS = OPEN_NS + 150 * MINUTE


def fall() -> list[Item]:
    """11 at 09:30, and 9 at 12:00:00.5; nothing in between."""
    rows = [
        Row("AAA", ts_ns + SECOND // 2, price, 100.0, "@", "C", "Q", 0)
        for ts_ns, price in ((OPEN_NS, 11.0), (NOON_NS, 9.0))
    ]
    marks = [Mark(OPEN_NS + s * SECOND) for s in range(-40, 9_100, 20)]
    return sorted([*rows, *marks], key=arrives)


@pytest.mark.parametrize("more", ["", "rule clock when time > 04:00", "rule clock when minutes_since_open > 0"])
def test_what_was_true_before_a_pause_was_true_a_second_before_it_ended(more: str, as_batches: Any) -> None:
    expected = expected_of(fall(), rules_of(FALL))
    seconds = {alert.rule_id: (alert.fired_at_ns - NOON_NS) // SECOND for alert in expected.alerts}
    assert seconds == {"fall": 1, "after": 1, "kept": 1, "run": 1, "calm": 6}
    matches = scanned(fall(), as_batches, rules_of(FALL + more))
    found = [match for match in matches if match.rule.id != "clock"]
    verdict = judged(expected, found)
    assert verdict.ok, list(lines(verdict))
    assert verdict.alerts == len(found) == 5


# -- the oracle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "board_interval_ns", "more"),
    [
        (False, 0, ""),
        (False, MINUTE, ""),
        (True, 0, ""),
        (False, 0, "\nrule mind when price > 1 for 20m"),
    ],
)
def test_a_store_is_right_whenever_its_scans_paused(
    *, others: bool, board_interval_ns: int, more: str, as_batches: Any
) -> None:
    """The oracle knows AAA alone and the rules in force; the store was made with more of both."""
    matches = scanned(tape(others=others), as_batches, rules_of(TEXT + more), board_interval_ns=board_interval_ns)
    expected = expected_of(tape(), rules_of())
    found = [match for match in matches if match.symbol == "AAA" and match.rule.id != "mind"]
    verdict = judged(expected, found)
    assert verdict.ok, list(lines(verdict))
    assert verdict.alerts > 5_000
    assert verdict.paused_alerts["each version 1"] > 0
    assert {"session version 1", "edge version 1"}.isdisjoint(verdict.paused_alerts)


def test_what_fires_while_scans_may_pause_is_named_in_the_report(as_batches: Any) -> None:
    rules = rules_of("rule l when price > 1 fire level cooldown 10m")
    expected = expected_of(tape(), rules)
    verdict = judged(expected, scanned(tape(others=True), as_batches, rules))
    count = verdict.paused_alerts["l version 1"]
    assert count > 20
    (told,) = [line for line in lines(verdict) if "pause" in line]
    assert told == (
        "not checked  rule l version 1 while the market is closed and scans may pause, and what follows from it: "
        f"{count} alerts"
    )
    assert as_json(verdict)["not_checked"]["alerts_while_scans_may_pause"] == {"l version 1": count}


def without(matches: Sequence[Match], rule: str, after_s: float, before_s: float) -> list[Match]:
    """All but the first alert of the rule between these seconds."""
    gone = next(m for m in matches if m.rule.id == rule and after_s < (m.fired_at_ns - POST_NS) / SECOND < before_s)
    return [match for match in matches if match is not gone]


def test_an_alert_that_no_pause_explains_is_missed(as_batches: Any) -> None:
    expected, matches = expected_of(tape(), rules_of()), scanned(tape(), as_batches, rules_of())
    for rule, after_s, before_s in (
        ("each", 1_000, 3_000),  # the market is closed, and within an hour of a print nothing pauses
        ("level", 0, 3_000),
        ("each", 9_101, 9_200),  # after the pause
        ("each", 28_800, 31_000),  # of the next day
        ("bar", 28_800, 31_000),
        ("day", 28_800, 31_000),
        ("session", 0, 100),
        ("edge", 9_100, 31_000),
    ):
        assert judged(expected, without(matches, rule, after_s, before_s)).counts == {"lost": 1}, (rule, after_s)


def test_an_alert_of_the_night_that_the_rule_does_not_tell_is_false(as_batches: Any) -> None:
    rules = rules_of("rule high when price > 9.5 fire level cooldown 1h")
    expected = expected_of(tape(), rules)
    matches = scanned(tape(), as_batches, rules)
    asleep_ns = POST_NS + 8_000 * SECOND  # the price is 9
    false = matches[0]._replace(alert_id=alert_id("high", 1, "AAA", asleep_ns), fired_at_ns=asleep_ns)
    assert judged(expected, matches).ok
    assert judged(expected, [*matches, false]).counts == {"false": 1}


def test_cooldown_from_the_night_is_in_doubt_until_it_has_run_out(as_batches: Any) -> None:
    """True all the time: in the morning nobody can say whether the rule still cools down from the night."""
    (rule,) = rules_of("rule l when price > 1 fire level cooldown 10m")
    (at_once,) = rules_of("rule l when price > 1 fire level")
    assert any(alert.fired_at_ns > PRE_NS for alert in expected_of(tape(), [at_once]).alerts)
    expected = expected_of(tape(), [rule])
    assert max(alert.fired_at_ns for alert in expected.alerts) < POST_NS + 62 * MINUTE
    assert expected.pauses["l", 1, "AAA"][-1][1] > PRE_NS + 30 * MINUTE


def test_stretches_of_scans_that_follow_each_other_are_one() -> None:
    doubt = Doubt(SECOND, 0)
    for second in (1, 2, 3, 7):
        doubt.crowds(second * SECOND)
    assert doubt.ended() == [(SECOND, 3 * SECOND + 1), (7 * SECOND, 7 * SECOND + 1)]
