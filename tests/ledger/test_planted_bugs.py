"""The checker is worth something only if it can fail: each bug that is planted here must turn the verdict red, with the
right word for it, and the run without a bug must be green.

Most bugs are done to a small pipeline of the engine's own parts, as crashes, retries and careless partitioning do them;
the others to what witnesses say.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tapewatch.documents import ruleset
from tapewatch.engine.columns import Batch
from tapewatch.engine.scanner import Scanner
from tapewatch.ledger.checker import Kind, check
from tapewatch.ledger.days import MINUTE, SECOND
from tapewatch.ledger.expected import alert_id
from tapewatch.ledger.tape import Item, Mark, Row
from tapewatch.ledger.witnesses import Client, Counts, Heard, Stretch, Witnesses

Plant = Callable[[Any, Any], Any]
"""(market, the correct run) -> what the witnesses of a faulty run say."""
PLANTED: dict[str, tuple[Kind, Plant]] = {}


def planted(kind: Kind) -> Callable[[Plant], Plant]:
    """The function is a bug, for which the checker must find this word."""

    def note(plant: Plant) -> Plant:
        PLANTED[plant.__name__] = kind, plant
        return plant

    return note


def test_run_without_a_bug_is_green(correct: Any) -> None:
    expected, run = correct
    verdict = check(expected, run.witnesses())
    assert dict(verdict.counts) == {}, dict(verdict.examples)
    assert verdict.ok
    assert verdict.bars > 40
    assert verdict.alerts > 20
    assert not verdict.unchecked
    assert {alert.rule_id for alert in expected.alerts} == {rule[0] for rule in expected.rules}


# -- the pipeline -----------------------------------------------------------------------------------------------------


def piped(market: Any, items: Sequence[Item], *, guarded: bool = True, **settings: Any) -> Any:
    """Another tape than the one that was sent, or other settings."""
    pipeline = market.pipeline(**settings)
    pipeline.make_bars(market.batches(items))
    pipeline.scan(market.batches(items))
    witnesses: Witnesses = pipeline.witnesses(guarded=guarded)
    return witnesses


def with_bars(market: Any, run: Any, make: Callable[[Any, list[Batch]], None], *, guarded: bool = True) -> Any:
    """Alerts are right, bars are made by `make`."""
    pipeline = market.pipeline()
    make(pipeline, market.batches())
    bars: Witnesses = pipeline.witnesses(guarded=guarded)
    return replace(run.witnesses(), bars=bars.bars)


def with_scans(market: Any, run: Any, between: Callable[[int, Scanner], Any]) -> Any:
    """Bars are right, somebody does something to the scanner."""
    pipeline = market.pipeline()
    pipeline.scan(market.batches(), between=between)
    scanned: Witnesses = pipeline.witnesses()
    return replace(run.witnesses(), alerts=scanned.alerts, clients=scanned.clients)


def is_trade(item: Item, symbol: str = "") -> bool:
    return isinstance(item, Row) and item.kind == "trade" and item.symbol == (symbol or item.symbol)


def halfway(market: Any) -> int:
    """The number of a batch in the middle of a minute."""
    return len(market.batches()) // 2 + 3


@planted("value-mismatch")
def a_trade_is_dropped(market: Any, run: Any) -> Any:
    items = market.items
    place = next(i for i, item in enumerate(items) if i > 900 and is_trade(item))
    return piped(market, items[:place] + items[place + 1 :])


@planted("value-mismatch")
def a_trade_is_doubled(market: Any, run: Any) -> Any:
    items = market.items
    place = next(i for i, item in enumerate(items) if i > 900 and is_trade(item))
    return piped(market, [*items[:place], items[place], *items[place:]])


@planted("value-mismatch")
def a_retry_doubles_a_stream_entry(market: Any, run: Any) -> Any:
    def make(pipeline: Any, parts: list[Batch]) -> None:
        at = halfway(market)
        pipeline.make_bars([*parts[: at + 1], parts[at], *parts[at + 1 :]])

    return with_bars(market, run, make)


@planted("value-mismatch")
def a_restart_forgets_the_open_minute(market: Any, run: Any) -> Any:
    def make(pipeline: Any, parts: list[Batch]) -> None:
        at = halfway(market)
        pipeline.make_bars(parts[:at])
        pipeline.make_bars(parts[at:])

    return with_bars(market, run, make)


@planted("value-mismatch")
def a_restart_overwrites_a_good_bar_with_its_rest(market: Any, run: Any) -> Any:
    def make(pipeline: Any, parts: list[Batch]) -> None:
        pipeline.make_bars(parts)  # the good bars are stored; then the worker resumes after what it acknowledged
        pipeline.make_bars(parts[halfway(market) :])

    return with_bars(market, run, make, guarded=False)


@planted("value-mismatch")
def two_owners_share_a_partition(market: Any, run: Any) -> Any:
    def make(pipeline: Any, parts: list[Batch]) -> None:
        pipeline.make_bars(parts[0::2])
        pipeline.make_bars(parts[1::2])

    return with_bars(market, run, make)


@planted("value-mismatch")
def partitions_change_with_a_salted_hash_at_a_restart(market: Any, run: Any) -> Any:
    symbols = sorted({row.symbol for row in market.rows})
    dice = random.Random(3)
    before, after = ({symbol: dice.randrange(2) for symbol in symbols} for _ in range(2))
    restart_ns = market.rows[len(market.rows) // 2].ts_ns

    def make(pipeline: Any, _parts: list[Batch]) -> None:
        for worker in range(2):
            mine, now = [], 0
            for item in market.items:
                now = item.ns if isinstance(item, Mark) else now
                owner = before if now < restart_ns else after
                if isinstance(item, Mark) or owner[item.symbol] == worker:
                    mine.append(item)
            pipeline.make_bars(market.batches(mine))

    assert before != after
    return with_bars(market, run, make)


@planted("lost")
def a_bar_is_never_finalised_for_a_quiet_symbol(market: Any, run: Any) -> Any:
    newest = {row.symbol: row.ts_ns // MINUTE * MINUTE for row in market.rows if row.kind == "trade"}
    witnesses = run.witnesses()
    quiet = [bar for bar in witnesses.bars if bar.symbol != "QUIET" or bar.ts_ns != newest["QUIET"]]
    return replace(witnesses, bars=quiet)


@planted("lost")
def the_last_bar_of_the_day_is_missing(market: Any, run: Any) -> Any:
    return with_bars(market, run, lambda pipeline, _: pipeline.make_bars(market.batches(market.items[:-1])))


def _newest_when_it_came(market: Any) -> dict[Row, int]:
    now, out = 0, {}
    for row in market.rows:
        now = max(now, row.ts_ns)
        out[row] = now
    return out


@planted("value-mismatch")
def a_late_print_is_ignored(market: Any, run: Any) -> Any:
    came = _newest_when_it_came(market)
    on_time = [item for item in market.items if isinstance(item, Mark) or came[item] - item.ts_ns < MINUTE]
    assert len(on_time) == len(market.items) - 2
    return piped(market, on_time)


@planted("value-mismatch")
def a_late_print_replaces_the_bar_in_place_of_joining_it(market: Any, run: Any) -> Any:
    witnesses = run.witnesses()
    late = next(bar for bar in witnesses.bars if bar.bar.revision)
    alone = late.bar._replace(open=12.0, high=12.0, low=12.0, close=12.0, volume=300.0, vwap=12.0, trade_count=1)
    return replace(witnesses, bars=[bar._replace(bar=alone) if bar == late else bar for bar in witnesses.bars])


@planted("value-mismatch")
def minutes_close_without_grace(market: Any, run: Any) -> Any:
    def make(pipeline: Any, parts: list[Batch]) -> None:
        pipeline.lateness_ns = 0
        pipeline.make_bars(parts)

    return with_bars(market, run, make)


@planted("value-mismatch")
def a_cancel_is_ignored(market: Any, run: Any) -> Any:
    return piped(market, [item for item in market.items if isinstance(item, Mark) or item.kind != "cancel"])


@planted("value-mismatch")
def a_correction_is_ignored(market: Any, run: Any) -> Any:
    return piped(market, [item for item in market.items if isinstance(item, Mark) or item.kind != "correction"])


@planted("value-mismatch")
def a_price_is_rounded_to_cents(market: Any, run: Any) -> Any:
    items = [item._replace(price=round(item.price, 2)) if isinstance(item, Row) else item for item in market.items]
    return piped(market, items)


@planted("value-mismatch")
def an_odd_lot_is_missing_in_the_volume(market: Any, run: Any) -> Any:
    items = market.items
    place = next(i for i, item in enumerate(items) if isinstance(item, Row) and "I" in item.conditions)
    return with_bars(
        market, run, lambda pipeline, _: pipeline.make_bars(market.batches(items[:place] + items[place + 1 :]))
    )


@planted("value-mismatch")
def odd_lots_set_prices(market: Any, run: Any) -> Any:
    return piped(market, [item._replace(conditions="@") if isinstance(item, Row) else item for item in market.items])


@planted("value-mismatch")
def prints_of_one_instant_change_places(market: Any, run: Any) -> Any:
    items = market.items
    first = next(
        i
        for i, (a, b) in enumerate(pairwise(items))
        if isinstance(a, Row) and isinstance(b, Row) and (a.symbol, a.ts_ns) == (b.symbol, b.ts_ns)
    )
    items[first], items[first + 1] = items[first + 1], items[first]
    return with_bars(market, run, lambda pipeline, _: pipeline.make_bars(market.batches(items)))


@planted("undeclared-gap")
def a_stretch_is_lost_and_nobody_says_so(market: Any, run: Any) -> Any:
    gap = Stretch(market.rows[0].ts_ns + 2 * MINUTE, market.rows[0].ts_ns + 4 * MINUTE)
    items = [item for item in market.items if isinstance(item, Mark) or not gap.start_ns <= item.ts_ns < gap.end_ns]
    return piped(market, items)


@planted("false")
def a_cooldown_is_lost_at_a_restart(market: Any, run: Any) -> Any:
    def forget(number: int, scanner: Scanner) -> None:
        if number == halfway(market):
            for rule in scanner.plan._rules:
                rule.fired.clear()

    return with_scans(market, run, forget)


@planted("false")
def an_edge_is_lost_at_a_restart(market: Any, run: Any) -> Any:
    def forget(number: int, scanner: Scanner) -> None:
        if number == halfway(market):
            scanner.plan._held[:] = 0

    return with_scans(market, run, forget)


@planted("lost")
def the_day_is_forgotten_at_a_restart(market: Any, run: Any) -> Any:
    def forget(number: int, _scanner: Scanner) -> Scanner | None:
        return market.pipeline().scanner() if number == halfway(market) else None

    return with_scans(market, run, forget)


@planted("lost")
def the_rules_are_not_loaded_after_a_restart(market: Any, run: Any) -> Any:
    def forget(number: int, scanner: Scanner) -> None:
        if number == halfway(market):
            scanner.apply(ruleset(2, []))

    return with_scans(market, run, forget)


@planted("lost")
def scans_run_by_another_clock(market: Any, run: Any) -> Any:
    pipeline = market.pipeline(scan_interval_ns=SECOND * 7 // 10)
    pipeline.scan(market.batches())
    return replace(run.witnesses(), alerts=pipeline.alerts, clients=())


# -- history ----------------------------------------------------------------------------------------------------------


def changed(run: Any, **fields: Any) -> Any:
    """One alert of the history is another."""
    witnesses = run.witnesses()
    history = list(witnesses.alerts)
    history[10] = history[10]._replace(**fields)
    return replace(witnesses, alerts=history, clients=())


@planted("duplicate")
def an_alert_stands_twice_in_history(_market: Any, run: Any) -> Any:
    witnesses = run.witnesses()
    return replace(witnesses, alerts=[*witnesses.alerts, witnesses.alerts[5]])


@planted("lost")
def an_alert_is_missing_in_history(_market: Any, run: Any) -> Any:
    witnesses = run.witnesses()
    return replace(witnesses, alerts=witnesses.alerts[:5] + witnesses.alerts[6:], clients=())


@planted("false")
def an_alert_fires_that_should_not(_market: Any, run: Any) -> Any:
    alert = run.alerts[3]
    at_ns = alert.fired_at_ns + SECOND
    false = alert._replace(fired_at_ns=at_ns, alert_id=alert_id(alert.rule_id, alert.rule_version, alert.symbol, at_ns))
    witnesses = run.witnesses()
    return replace(witnesses, alerts=[*witnesses.alerts, false], clients=())


@planted("false")
def ids_are_drawn_in_place_of_derived(_market: Any, run: Any) -> Any:
    return changed(run, alert_id="0123456789abcdef0123456789abcdef")


@planted("value-mismatch")
def an_alert_has_the_wrong_version(_market: Any, run: Any) -> Any:
    return changed(run, rule_version=2)


@planted("value-mismatch")
def an_alert_has_the_wrong_symbol(_market: Any, run: Any) -> Any:
    return changed(run, symbol="QUIET")


@planted("value-mismatch")
def an_alert_has_the_wrong_time(_market: Any, run: Any) -> Any:
    return changed(run, fired_at_ns=run.alerts[10].fired_at_ns + 1)


@planted("value-mismatch")
def an_alert_has_the_wrong_price(_market: Any, run: Any) -> Any:
    return changed(run, price=round(run.alerts[10].price + 0.01, 2))


@planted("out-of-order")
def a_revision_goes_back(_market: Any, run: Any) -> Any:
    revised = next(bar for bar in run.published if bar.bar.revision)
    first = revised._replace(bar=revised.bar._replace(revision=0))
    return replace(run.witnesses(), published=[*run.published, first])


@planted("duplicate")
def a_bar_stands_twice_in_the_store(_market: Any, run: Any) -> Any:
    witnesses = run.witnesses()
    return replace(witnesses, bars=[*witnesses.bars, witnesses.bars[3]])


@planted("false")
def a_minute_of_odd_lots_has_a_bar(_market: Any, run: Any) -> Any:
    witnesses = run.witnesses()
    bar = witnesses.bars[0]
    return replace(witnesses, bars=[*witnesses.bars, bar._replace(symbol="QUIET", ts_ns=bar.ts_ns + 3 * MINUTE)])


# -- clients ----------------------------------------------------------------------------------------------------------


def with_client(run: Any, change: Callable[[Client], Client], *, others: bool = True) -> Any:
    witnesses = run.witnesses()
    first, *rest = witnesses.clients
    return replace(witnesses, clients=[change(first), *(rest if others else ())])


@planted("duplicate")
def an_alert_is_shown_twice_after_a_reconnect(_market: Any, run: Any) -> Any:
    def again(client: Client) -> Client:
        alert = client.application[4]
        raw = [*client.raw, Heard(alert, connection=1)]
        return replace(client, raw=raw, application=[*client.application[:6], alert, *client.application[6:]])

    return with_client(run, again)


@planted("lost")
def an_alert_is_never_delivered(_market: Any, run: Any) -> Any:
    def without(client: Any) -> Any:
        return replace(
            client, raw=client.raw[:4] + client.raw[5:], application=client.application[:4] + client.application[5:]
        )

    return with_client(run, without, others=False)


@planted("inconsistent")
def an_alert_reaches_nobody_while_the_gateway_restarts(_market: Any, run: Any) -> Any:
    witnesses = run.witnesses()
    clients = [
        replace(
            client, raw=client.raw[:4] + client.raw[7:], application=client.application[:4] + client.application[7:]
        )
        for client in witnesses.clients
    ]
    return replace(witnesses, clients=clients)


@planted("inconsistent")
def two_clients_differ(_market: Any, run: Any) -> Any:
    witnesses = with_client(
        run, lambda client: replace(client, raw=client.raw[:-1], application=client.application[:-1])
    )
    return replace(witnesses, alerts=None)


@planted("inconsistent")
def an_alert_is_shown_and_never_stored(_market: Any, run: Any) -> Any:
    witnesses = run.witnesses()
    return replace(witnesses, alerts=witnesses.alerts[:-1])


@planted("inconsistent")
def a_client_sees_another_price_than_history(_market: Any, run: Any) -> Any:
    def dearer(client: Client) -> Client:
        shown = list(client.application)
        shown[2] = shown[2]._replace(price=shown[2].price + 1)
        return replace(client, application=shown)

    return with_client(run, dearer)


@planted("out-of-order")
def alerts_change_places(_market: Any, run: Any) -> Any:
    def swapped(client: Client) -> Client:
        shown = list(client.application)
        kinds = [(alert.symbol, alert.rule_id) for alert in shown]
        first = next(i for i, kind in enumerate(kinds) if kind in kinds[i + 1 :])
        other = kinds.index(kinds[first], first + 1)
        shown[first], shown[other] = shown[other], shown[first]
        return replace(client, application=shown)

    return with_client(run, swapped)


@planted("lost")
def an_alert_is_received_and_not_shown(_market: Any, run: Any) -> Any:
    return with_client(run, lambda client: replace(client, application=client.application[:-1]), others=False)


@planted("false")
def an_alert_is_shown_that_was_never_received(_market: Any, run: Any) -> Any:
    return with_client(run, lambda client: replace(client, raw=client.raw[:-1]))


# -- the account ------------------------------------------------------------------------------------------------------


@planted("undeclared-gap")
def rows_vanish_without_being_counted(market: Any, run: Any) -> Any:
    return replace(run.witnesses(), counts=Counts(accepted=len(market.rows) - 3, rejected=0, duplicates=0))


@planted("duplicate")
def rows_are_counted_twice(market: Any, run: Any) -> Any:
    return replace(run.witnesses(), counts=Counts(accepted=len(market.rows), rejected=0, duplicates=2))


@planted("value-mismatch")
def sound_rows_are_rejected(market: Any, run: Any) -> Any:
    return replace(run.witnesses(), counts=Counts(accepted=len(market.rows) - 3, rejected=3, duplicates=0))


# -- the proof --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(PLANTED))
def test_planted_bug_is_found_and_called_by_its_name(name: str, market: Any, correct: Any) -> None:
    kind, plant = PLANTED[name]
    expected, run = correct
    verdict = check(expected, plant(market, run))
    assert not verdict.ok
    assert verdict.counts[kind], dict(verdict.counts)
    example = verdict.examples[kind][0]
    assert example.expected != example.found


def test_enough_bugs_are_planted() -> None:
    assert len(PLANTED) >= 40
    assert {kind for kind, _ in PLANTED.values()} == {
        "lost", "duplicate", "false", "value-mismatch", "out-of-order", "undeclared-gap", "inconsistent"
    }  # fmt: skip
