"""What the checker says, and how it says it. That it finds bugs is shown by those that are planted."""

from collections import Counter
from dataclasses import replace
from typing import Any

from tapewatch.ledger import report
from tapewatch.ledger.booking import NAN, Bar
from tapewatch.ledger.checker import EXAMPLES, Identity, Scope, check, same
from tapewatch.ledger.days import MINUTE, SECOND
from tapewatch.ledger.tape import Mark
from tapewatch.ledger.witnesses import Client, Counts, FoundBar, Heard, Stretch, Witnesses


def lines(verdict: Any) -> str:
    return "\n".join(report.lines(verdict))


def test_nobody_asked_is_nothing_wrong_and_the_account_is_there(correct: Any) -> None:
    expected, _ = correct
    verdict = check(expected, Witnesses())
    assert verdict.ok
    assert verdict.identity is not None
    assert verdict.identity.balanced
    assert verdict.sums is None
    assert verdict.identity.sent == expected.counts["sent"] > 1_000


def test_account_and_sums_are_equal_on_both_sides(correct: Any) -> None:
    expected, run = correct
    counts = Counts(accepted=expected.accepted, rejected=expected.counts["rejected"], duplicates=0)
    verdict = check(expected, replace(run.witnesses(), counts=counts))
    assert verdict.ok
    assert verdict.told == verdict.identity
    assert verdict.sums is not None
    assert verdict.sums[0] == verdict.sums[1]
    assert verdict.sums[0].trades == sum(bar.trade_count for bar in expected.bars.values())
    said = lines(verdict)
    assert " sent = " in said
    assert said.endswith("verdict      everything is as it must be")


def test_account_that_does_not_add_up_is_said() -> None:
    assert "10 sent IS NOT 8 accepted + 1 rejected" in report.account(Identity(10, 8, 1, 0, 0))


def test_only_the_first_five_are_shown_and_all_are_counted(correct: Any) -> None:
    expected, run = correct
    verdict = check(expected, replace(run.witnesses(), bars=[]))
    assert verdict.counts["lost"] == len(expected.bars)
    assert len(verdict.examples["lost"]) == EXAMPLES
    first = verdict.examples["lost"][0]
    assert (first.symbol, first.at_ns) == min(expected.bars, key=lambda key: (key[1], key[0]))
    assert f"lost: {len(expected.bars)}" in lines(verdict)
    assert report.as_json(verdict)["wrong"]["lost"]["count"] == len(expected.bars)


def test_example_names_the_fields_that_differ(correct: Any) -> None:
    expected, run = correct
    witnesses = run.witnesses()
    first = witnesses.bars[0]
    wrong = first._replace(bar=first.bar._replace(volume=1.0))
    verdict = check(expected, replace(witnesses, bars=[wrong, *witnesses.bars[1:]]))
    (example,) = verdict.examples["value-mismatch"]
    assert (example.expected, example.found) == (f"volume {first.bar.volume!r}", "volume 1.0")


def test_declared_gap_excludes_and_counts_what_it_touches(market: Any, correct: Any) -> None:
    expected, run = correct
    start_ns = market.rows[0].ts_ns // MINUTE * MINUTE + 2 * MINUTE
    gap = Stretch(start_ns + SECOND, start_ns + MINUTE)
    rest = [item for item in market.items if isinstance(item, Mark) or not gap.start_ns <= item.ts_ns < gap.end_ns]
    pipeline = market.pipeline()
    pipeline.make_bars(market.batches(rest))
    pipeline.scan(market.batches(rest))
    witnesses = pipeline.witnesses()
    assert check(expected, witnesses).counts["undeclared-gap"] == 1
    verdict = check(expected, replace(witnesses, gaps=[gap]))
    assert verdict.ok, dict(verdict.examples)
    assert verdict.excluded_bars == 6
    assert verdict.bars == len(expected.bars) - 6
    assert verdict.excluded_alerts > 10
    assert verdict.identity is not None
    assert verdict.identity.declared_lost > 100
    assert verdict.identity.balanced
    assert "that declared gaps touch" in lines(verdict)
    assert check(expected, replace(run.witnesses(), gaps=[gap])).ok


def test_wrong_bar_before_a_gap_is_not_excused_by_it(market: Any, correct: Any) -> None:
    expected, run = correct
    gap = Stretch(expected.ended_ns - MINUTE, expected.ended_ns)
    witnesses = run.witnesses()
    assert not check(expected, replace(witnesses, bars=witnesses.bars[1:], gaps=[gap])).ok


def test_scope_leaves_out_what_lies_outside(correct: Any) -> None:
    expected, run = correct
    witnesses = run.witnesses()
    first_ns = min(ts_ns for _, ts_ns in expected.bars)
    without_first = [bar for bar in witnesses.bars if bar.ts_ns != first_ns]
    assert not check(expected, replace(witnesses, bars=without_first)).ok
    verdict = check(expected, replace(witnesses, bars=without_first), scope=Scope(start_ns=first_ns + MINUTE))
    assert verdict.ok
    assert verdict.bars == len(expected.bars) - 7


def test_alerts_of_rules_that_are_not_judged_are_counted_once_and_named(correct: Any) -> None:
    expected, run = correct
    witnesses = run.witnesses()
    alert = witnesses.alerts[0]
    strange = [alert._replace(alert_id="a", rule_id="strange"), alert._replace(alert_id="b", rule_version=9)]
    history = [*witnesses.alerts, *strange]
    client = Client(name="k", raw=[Heard(a) for a in history], application=history)
    others = frozenset({(alert.rule_id, 9)})
    judged = replace(expected, unchecked={"strange": "asks for the moon"})
    verdict = check(judged, Witnesses(alerts=history, clients=[client], other_rules=others))
    assert verdict.ok, dict(verdict.examples)
    assert verdict.unchecked_alerts == Counter({"strange version 1": 1, f"{alert.rule_id} version 9": 1})
    assert "rule strange: asks for the moon" in lines(verdict)
    assert not check(expected, Witnesses(alerts=history)).ok


def test_frames_that_come_again_are_counted_and_harmless(correct: Any) -> None:
    expected, run = correct
    witnesses = run.witnesses()
    client = witnesses.clients[0]
    again = [*client.raw[:20], *(heard._replace(connection=1) for heard in client.raw[15:])]
    verdict = check(expected, replace(witnesses, clients=[replace(client, raw=again)]))
    assert verdict.ok
    assert verdict.repeats == {"k": 5}
    assert "5 frames to client k" in lines(verdict)


def test_client_need_not_hear_what_it_does_not_want(correct: Any) -> None:
    expected, run = correct
    witnesses = run.witnesses()
    mine = [alert for alert in witnesses.alerts if alert.symbol == "AAA"]
    raw = [Heard(alert) for alert in mine]
    client = Client(name="a", raw=raw, application=mine, wants=lambda _rule, symbol: symbol == "AAA")
    assert mine
    assert check(expected, replace(witnesses, clients=[client])).ok
    everything = replace(client, wants=lambda _rule, _symbol: True)
    assert check(expected, replace(witnesses, clients=[everything])).counts["lost"]


def test_unknown_equals_unknown_and_nothing_else() -> None:
    assert same(NAN, NAN)
    assert not same(NAN, 1.0)
    assert same(0.1 + 0.2, 0.1 + 0.2)
    assert not same(0.1 + 0.2, 0.3)


def test_one_short_bar_is_no_gap(correct: Any) -> None:
    expected, _ = correct
    short = {key: bar for key, bar in expected.bars.items() if key[0] == "AAA"}
    bars = [FoundBar(symbol, ts_ns, bar) for (symbol, ts_ns), bar in short.items()]
    few = [bars[0]._replace(bar=Bar(*bars[0].bar[:6], bars[0].bar.trade_count - 1, 0)), *bars[1:]]
    verdict = check(replace(expected, bars=short), Witnesses(bars=few))
    assert verdict.counts == Counter({"value-mismatch": 1})
    assert check(replace(expected, bars=short), Witnesses(bars=bars[3:])).counts["undeclared-gap"] == 1
