"""What every `Store` keeps its word about. The fixtures are named by `StoreContract`."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import msgspec
import numpy as np
import pytest

from tapewatch.contracts.samples import (
    HOSTILE_TEXTS,
    INT64_MAX,
    INT64_MIN,
    NOON_NS,
    bar_rows,
    daily_bars_of,
    make_alert,
    make_bars,
    make_rule,
    make_rule_of_every_node,
    make_security,
    make_split,
    make_watchlist,
    same,
)
from tapewatch.documents import MAX_NOTE, Alert, Rule, Security, day_number
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS, Bars
from tapewatch.errors import Invalid, NotFound, VersionConflict
from tapewatch.ports import AUDIT_DAYS, AlertQuery, AuditEntry, AuditQuery, Position, Store

OpenStore = Callable[[], Awaitable[Store]]
ON = "price > 1 and symbol in watchlist {}"


async def walk(store: Store, query: AlertQuery) -> list[Alert]:
    """All pages of a query, as a person who turns them sees them."""
    seen: list[Alert] = []
    while page := await store.alerts(query):
        assert len(page) <= query.limit
        seen += page
        query = query._replace(before=(page[-1].fired_at_ns, page[-1].alert_id))
    return seen


def replace_note(alert: Alert, note: str) -> Alert:
    return msgspec.structs.replace(alert, note=note)


@pytest.mark.anyio
class StoreContract:
    """Give `open_store`: each call opens the same data, empty and without a schema when the test begins. The suite
    upgrades and closes what it opens.
    """

    @pytest.fixture
    def open_store(self) -> OpenStore:
        raise NotImplementedError

    @pytest.fixture
    async def store(self, open_store: OpenStore) -> AsyncIterator[Store]:
        store = await open_store()
        await store.upgrade()
        yield store
        await store.close()

    async def test_upgrade_again_keeps_everything(self, store: Store) -> None:
        await store.save_rule(make_rule("a"))
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(1, 1))
        await store.upgrade()
        assert await store.rule("a") == make_rule("a")
        assert len(await store.bars("A")) == 1
        assert await store.position("bars:0") == Position(1, 1)

    async def test_everything_is_there_after_closing_and_opening_again(
        self, store: Store, open_store: OpenStore
    ) -> None:
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(3, 4))
        await store.save_alerts([make_alert(1)], reader="alerts:0", position=Position(5, 6))
        await store.save_rule(make_rule("a"))
        await store.save_rule(make_rule_of_every_node("b"))
        await store.save_rule(make_rule("c"))
        await store.delete_rule("c")
        await store.save_watchlist(make_watchlist("mine"))
        before, audit = await store.rules(), await store.audit(AuditQuery())
        await store.close()
        again = await open_store()
        try:
            await again.upgrade()
            assert bar_rows(await again.bars("A")) == bar_rows(make_bars([("A", NOON_NS)]))
            assert await again.alerts(AlertQuery()) == [make_alert(1)]
            assert await again.position("bars:0") == Position(3, 4)
            assert await again.position("alerts:0") == Position(5, 6)
            assert await again.rules() == before
            assert await again.audit(AuditQuery()) == audit
        finally:
            await again.close()

    async def test_close_may_be_called_again(self, store: Store) -> None:
        await store.close()
        await store.close()

    # Bars

    async def test_bars_arrive_as_they_were(self, store: Store) -> None:
        bars = make_bars([("A", NOON_NS), ("B", NOON_NS), ("A", NOON_NS + MINUTE_NS)], close=0.1 + 0.2)
        await store.save_bars(bars, reader="bars:0")
        stored = await store.bars("A")
        assert isinstance(stored, Bars)
        assert bar_rows(stored) == [row for row in bar_rows(bars) if row[0] == "A"]
        assert same(stored, make_bars([("A", NOON_NS), ("A", NOON_NS + MINUTE_NS)], close=0.1 + 0.2))

    async def test_unknown_vwap_stays_unknown(self, store: Store) -> None:
        await store.save_bars(make_bars([("A", NOON_NS)], vwap=math.nan), reader="bars:0")
        await store.save_bars(make_bars([("A", NOON_NS + MINUTE_NS)], vwap=5.0), reader="bars:0")
        first, second = (await store.bars("A")).vwap.tolist()
        assert math.isnan(first)
        assert second == 5.0

    async def test_extreme_numbers_and_hostile_symbols_arrive_as_they_were(self, store: Store) -> None:
        for symbol in HOSTILE_TEXTS:
            bars = make_bars([(symbol, INT64_MIN), (symbol, INT64_MAX)], trade_count=INT64_MAX, revision=INT64_MAX)
            await store.save_bars(bars, reader=f"bars:{symbol}", position=Position(INT64_MAX, INT64_MAX))
            assert bar_rows(await store.bars(symbol)) == bar_rows(bars)
            assert await store.position(f"bars:{symbol}") == Position(INT64_MAX, INT64_MAX)

    async def test_lower_revision_never_replaces_a_higher_one(self, store: Store) -> None:
        async def stored() -> tuple[float, int]:
            bars = await store.bars("A")
            return float(bars.close[0]), int(bars.revision[0])

        for revision, close, expected in (
            (1, 10.0, (10.0, 1)),
            (0, 11.0, (10.0, 1)),
            (3, 12.0, (12.0, 3)),
            (2, 13.0, (12.0, 3)),
        ):
            await store.save_bars(make_bars([("A", NOON_NS)], close=close, revision=revision), reader="bars:0")
            assert await stored() == expected

    async def test_highest_revision_of_one_batch_is_kept(self, store: Store) -> None:
        bars = make_bars([("A", NOON_NS)] * 3 + [("B", NOON_NS)])
        bars.revision[:] = [0, 2, 1, 0]
        bars.close[:] = [1.0, 2.0, 3.0, 4.0]
        await store.save_bars(bars, reader="bars:0")
        assert (await store.bars("A")).close.tolist() == [2.0]
        assert (await store.bars("B")).close.tolist() == [4.0]

    async def test_withdrawn_bar_is_not_given_back_and_can_come_again(self, store: Store) -> None:
        for revision, close, expected in ((0, 10.0, [10.0]), (1, math.nan, []), (0, 10.0, []), (2, 11.0, [11.0])):
            await store.save_bars(make_bars([("A", NOON_NS)], close=close, revision=revision), reader="bars:0")
            assert (await store.bars("A")).close.tolist() == expected

    async def test_saving_the_same_bars_again_changes_nothing(self, store: Store) -> None:
        bars = make_bars([("A", NOON_NS), ("B", NOON_NS)])
        for _ in range(3):
            await store.save_bars(bars, reader="bars:0")
        assert bar_rows(await store.bars("A")) + bar_rows(await store.bars("B")) == bar_rows(bars)

    async def test_bars_are_the_newest_of_the_range_oldest_first(self, store: Store) -> None:
        times = [NOON_NS + minute * MINUTE_NS for minute in range(10)]
        await store.save_bars(make_bars([("A", ts_ns) for ts_ns in reversed(times)]), reader="bars:0")

        async def found(**wanted: int) -> list[int]:
            bars = await store.bars("A", **wanted)
            return [times.index(ts_ns) for ts_ns in bars.ts_ns.tolist()]

        assert await found() == list(range(10))
        assert await found(limit=3) == [7, 8, 9]
        assert await found(start_ns=times[2], end_ns=times[5]) == [2, 3, 4]
        assert await found(start_ns=times[2], end_ns=times[5], limit=2) == [3, 4]
        assert await found(end_ns=times[0]) == []
        assert await found(limit=0) == []

    async def test_bars_of_an_unknown_symbol_are_none(self, store: Store) -> None:
        assert len(await store.bars("NOPE")) == 0

    # Alerts

    async def test_alert_arrives_as_it_was(self, store: Store) -> None:
        alerts = [
            make_alert(
                number,
                symbol=text,
                rule_id=text,
                rule_name=text,
                session=text,
                price=math.nan,
                values={"price": math.nan, "rsi_14_1m": 0.1 + 0.2, "x": math.inf, text: -math.inf, "a": 5e-324},
                fired_at_ns=(INT64_MIN, INT64_MAX)[number % 2],
                received_ns=(INT64_MIN, INT64_MAX)[number % 2],
                note=text,
                ages_s={"price": math.nan, text: 0.1 + 0.2},
                severity=text,
                tags=(text, "b", "a"),
            )
            for number, text in enumerate(HOSTILE_TEXTS)
        ]
        assert await store.save_alerts(alerts, reader="alerts:0") == alerts
        for alert in alerts:
            assert same(await store.alert(alert.alert_id), alert)
            assert same(await store.alerts(AlertQuery(symbol=alert.symbol)), [alert])
            assert same(await store.alerts(AlertQuery(rule_id=alert.rule_id)), [alert])

    async def test_alert_is_saved_once(self, store: Store) -> None:
        one, two, three = make_alert(1), make_alert(2), make_alert(3)
        assert await store.save_alerts([two, one], reader="alerts:0") == [two, one]
        assert await store.save_alerts([three, one, two, three], reader="alerts:0") == [three]
        assert await store.save_alerts([make_alert(1, price=5.0)], reader="alerts:0") == []
        assert await store.alerts(AlertQuery()) == [three, two, one]

    async def test_same_alerts_saved_at_once_are_new_to_one_caller(self, store: Store) -> None:
        alerts = [make_alert(number) for number in range(20)]
        saved = await asyncio.gather(*(store.save_alerts(alerts, reader=f"alerts:{n}") for n in range(10)))
        assert sorted(len(new) for new in saved) == [0] * 9 + [20]

    async def test_many_alerts_at_once(self, store: Store) -> None:
        alerts = [make_alert(number) for number in range(5_000)]
        assert await store.save_alerts(alerts, reader="alerts:0") == alerts
        assert await store.alerts(AlertQuery(limit=10_000)) == alerts[::-1]

    async def test_alert_that_never_was_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound, match="nope"):
            await store.alert("nope")

    async def test_query_filters_by_everything_it_names(self, store: Store) -> None:
        alerts = [
            make_alert(number, symbol="AB"[number % 2], rule_id=f"r{number % 3}", fired_at_ns=NOON_NS + number)
            for number in range(30)
        ]
        await store.save_alerts(alerts, reader="alerts:0")

        def expected(numbers: range) -> list[Alert]:
            return [alerts[number] for number in reversed(numbers)]

        assert await store.alerts(AlertQuery(limit=4)) == expected(range(26, 30))
        assert await store.alerts(AlertQuery(symbol="A")) == expected(range(0, 30, 2))
        assert await store.alerts(AlertQuery(rule_id="r1")) == expected(range(1, 30, 3))
        assert await store.alerts(AlertQuery(symbol="B", rule_id="r0")) == expected(range(3, 30, 6))
        assert await store.alerts(AlertQuery(since_ns=NOON_NS + 10, until_ns=NOON_NS + 15)) == expected(range(10, 15))
        assert await store.alerts(AlertQuery(symbol="A", since_ns=NOON_NS + 25)) == expected(range(26, 30, 2))
        assert await store.alerts(AlertQuery(symbol="C")) == []
        assert await store.alerts(AlertQuery(limit=0)) == []

    async def test_numbers_of_any_size_may_be_asked_for(self, store: Store) -> None:
        await store.save_alerts([make_alert(1)], reader="alerts:0")
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0")
        huge = 10**30
        assert len(await store.alerts(AlertQuery(since_ns=-huge, until_ns=huge, limit=huge, before=(huge, "")))) == 1
        assert await store.alerts(AlertQuery(since_ns=huge)) == []
        assert await store.alerts(AlertQuery(until_ns=-huge)) == []
        assert len(await store.bars("A", start_ns=-huge, end_ns=huge, limit=huge)) == 1
        assert len(await store.bars("A", start_ns=huge)) == 0

    async def test_pages_walk_everything_once_even_with_equal_times(self, store: Store) -> None:
        alerts = [
            make_alert(number, symbol="AB"[number % 2], rule_id=f"r{number % 3}", fired_at_ns=NOON_NS + number // 10)
            for number in range(47)
        ]
        await store.save_alerts(alerts, reader="alerts:0")
        newest_first = alerts[::-1]
        for limit in (1, 7, 10, 100):
            assert await walk(store, AlertQuery(limit=limit)) == newest_first
            assert await walk(store, AlertQuery(limit=limit, symbol="A")) == newest_first[::2]
            assert await walk(store, AlertQuery(limit=limit, rule_id="r1")) == newest_first[::3]

    async def annotate(self, store: Store, symbol: str, since_ns: int, note: str) -> list[Alert]:
        return await store.annotate_alerts(symbol, since_ns=since_ns, note=note, reader="alerts:0")

    async def test_note_goes_to_the_alerts_of_the_symbol_since_then_oldest_first(self, store: Store) -> None:
        alerts = [make_alert(n, symbol="AB"[n % 2], price=math.nan, values={"x": math.inf}) for n in range(6)]
        await store.save_alerts(alerts[::-1], reader="alerts:0")
        note = HOSTILE_TEXTS[3]
        expected = [replace_note(alerts[n], note) for n in (2, 4)]
        assert same(await self.annotate(store, "A", alerts[2].fired_at_ns, note), expected)
        stored = await store.alerts(AlertQuery())
        assert same(stored[::-1], [expected[n // 2 - 1] if n in {2, 4} else alerts[n] for n in range(6)])
        assert await self.annotate(store, "NOPE", 0, note) == []
        assert await self.annotate(store, "A", 10**30, note) == []

    async def test_second_note_is_a_new_line_and_the_same_one_again_changes_nothing(self, store: Store) -> None:
        one, two = make_alert(1), make_alert(2)
        await store.save_alerts([one, two], reader="alerts:0")
        await self.annotate(store, "AAPL", two.fired_at_ns, "first")
        both = [replace_note(one, "second"), replace_note(two, "first\nsecond")]
        assert await self.annotate(store, "AAPL", 0, "second") == both
        assert await self.annotate(store, "AAPL", 0, "second") == []
        assert await self.annotate(store, "AAPL", 0, "first") == [replace_note(one, "second\nfirst")]

    async def test_note_is_bounded_and_says_that_there_is_more(self, store: Store) -> None:
        await store.save_alerts([make_alert(1)], reader="alerts:0")
        lines = [f"{number:0299}" for number in range(4)]
        changes = [await self.annotate(store, "AAPL", 0, line) for line in lines]
        assert [len(changed[0].note) for changed in changes] == [299, 599, 899, MAX_NOTE]
        assert changes[-1][0].note == "\n".join(lines)[: MAX_NOTE - 1] + "…"
        assert await self.annotate(store, "AAPL", 0, "no room") == []
        assert await self.annotate(store, "AAPL", 0, lines[-1]) == []

    async def test_alert_that_is_saved_again_keeps_its_note(self, store: Store) -> None:
        await store.save_alerts([make_alert(1)], reader="alerts:0")
        await self.annotate(store, "AAPL", 0, "cancelled")
        assert await store.save_alerts([make_alert(1)], reader="alerts:0") == []
        assert (await store.alert(make_alert(1).alert_id)).note == "cancelled"

    async def test_notes_given_at_once_are_all_there(self, store: Store) -> None:
        await store.save_alerts([make_alert(1)], reader="alerts:0")
        await asyncio.gather(*(self.annotate(store, "AAPL", 0, f"note {n}") for n in range(20)))
        note = (await store.alert(make_alert(1).alert_id)).note
        assert sorted(note.split("\n")) == sorted(f"note {n}" for n in range(20))

    # Positions

    async def test_position_of_an_unknown_reader_is_none(self, store: Store) -> None:
        assert await store.position("bars:0") is None

    async def test_position_is_that_of_the_readers_last_effect(self, store: Store) -> None:
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(1, 5))
        await store.save_alerts([make_alert(1)], reader="alerts:0", position=Position(2, 7))
        assert await store.position("bars:0") == Position(1, 5)
        assert await store.position("alerts:0") == Position(2, 7)
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0", position=Position(2, 1))
        assert await store.position("bars:0") == Position(2, 1)

    async def test_effect_without_a_position_leaves_it(self, store: Store) -> None:
        await store.save_bars(make_bars([("A", NOON_NS)]), reader="bars:0")
        assert await store.position("bars:0") is None
        await store.save_alerts([make_alert(1)], reader="bars:0", position=Position(1, 5))
        await store.save_alerts([make_alert(2)], reader="bars:0")
        assert await store.position("bars:0") == Position(1, 5)

    async def test_position_moves_when_nothing_was_to_be_saved(self, store: Store) -> None:
        await store.save_bars(make_bars([]), reader="bars:0", position=Position(1, 5))
        assert await store.position("bars:0") == Position(1, 5)
        assert await store.save_alerts([], reader="alerts:0", position=Position(1, 6)) == []
        assert await store.position("alerts:0") == Position(1, 6)
        await store.save_alerts([make_alert(1)], reader="alerts:0", position=Position(1, 7))
        assert await store.save_alerts([make_alert(1)], reader="alerts:0", position=Position(1, 8)) == []
        assert await store.position("alerts:0") == Position(1, 8)
        for sequence, changed in ((9, 1), (10, 0)):
            position = Position(1, sequence)
            annotated = await store.annotate_alerts("AAPL", since_ns=0, note="n", reader="alerts:0", position=position)
            assert len(annotated) == changed
            assert await store.position("alerts:0") == position

    async def test_reader_of_position_and_effect_never_sees_one_without_the_other(self, store: Store) -> None:
        async def save_all() -> None:
            for number in range(1, 21):
                bars = make_bars([("A", NOON_NS + number * MINUTE_NS)])
                await store.save_bars(bars, reader="bars:0", position=Position(1, number))

        saving = asyncio.ensure_future(save_all())
        while not saving.done():
            position = await store.position("bars:0")
            bars = await store.bars("A")
            assert len(bars) >= (position.sequence if position else 0)
        await saving

    # Rules

    async def test_rule_arrives_as_it_was(self, store: Store) -> None:
        for rule in (
            make_rule("a", name="«\"'%;--»", enabled=False, cooldown=0.1 + 0.2),
            make_rule_of_every_node("b"),
        ):
            assert await store.save_rule(rule) == rule
            stored = await store.rule(rule.id)
            assert stored == rule
            assert stored.spec() == rule.spec()

    async def test_rules_are_by_id_and_the_newest_of_each(self, store: Store) -> None:
        assert (await store.rules()).rules == []
        for rule_id in ("b", "a", "c"):
            await store.save_rule(make_rule(rule_id))
        changed = await store.save_rule(make_rule("a", version=2, name="changed"))
        await store.delete_rule("b")
        assert (await store.rules()).rules == [changed, await store.rule("c")]

    async def test_created_at_stays_that_of_version_one(self, store: Store) -> None:
        first = await store.save_rule(make_rule("a"))
        given = make_rule("a", version=2)
        stored = await store.save_rule(given)
        assert stored == given.model_copy(update={"created_at": first.created_at})
        assert stored.updated_at == given.updated_at != first.updated_at
        assert await store.rule("a") == stored

    async def test_version_that_does_not_follow_is_a_conflict_and_changes_nothing(self, store: Store) -> None:
        for version in (2, 7):
            with pytest.raises(VersionConflict, match="a"):
                await store.save_rule(make_rule("a", version=version))
        await store.save_rule(make_rule("a"))
        kept = await store.save_rule(make_rule("a", version=2))
        before = await store.rules()
        for version in (1, 2, 4):
            with pytest.raises(VersionConflict, match="a"):
                await store.save_rule(make_rule("a", version=version, name="too late"))
        assert await store.rules() == before
        assert await store.rule("a") == kept

    async def test_of_fifty_that_create_one_id_at_once_one_wins(self, store: Store) -> None:
        await self._one_wins(store, [make_rule("a", name=f"author {n}") for n in range(50)])

    async def test_of_fifty_that_change_one_version_at_once_one_wins(self, store: Store) -> None:
        await store.save_rule(make_rule("a"))
        await self._one_wins(store, [make_rule("a", version=2, name=f"author {n}") for n in range(50)])

    async def _one_wins(self, store: Store, candidates: list[Rule]) -> None:
        outcomes = await asyncio.gather(*(store.save_rule(rule) for rule in candidates), return_exceptions=True)
        won = [outcome for outcome in outcomes if isinstance(outcome, Rule)]
        assert len(won) == 1
        assert all(isinstance(outcome, (Rule, VersionConflict)) for outcome in outcomes)
        assert await store.rule("a") == won[0]

    async def test_ruleset_number_rises_with_every_change_and_only_then(self, store: Store) -> None:
        numbers = [await store.ruleset_number()]
        for change in (
            store.save_rule(make_rule("a")),
            store.save_rule(make_rule("b")),
            store.save_rule(make_rule("a", version=2)),
            store.delete_rule("b"),
        ):
            await change
            numbers.append(await store.ruleset_number())
            assert (await store.rules()).number == numbers[-1]
        assert numbers == sorted(set(numbers))
        with pytest.raises(VersionConflict):
            await store.save_rule(make_rule("a", version=2))
        with pytest.raises(NotFound):
            await store.delete_rule("b")
        assert await store.ruleset_number() == numbers[-1]

    async def test_ruleset_number_counts_changes_made_at_once(self, store: Store) -> None:
        before = await store.ruleset_number()
        await asyncio.gather(*(store.save_rule(make_rule(f"r{n:02}")) for n in range(30)))
        number, rules, _ = await store.rules()
        assert number >= before + 30
        assert [rule.id for rule in rules] == [f"r{n:02}" for n in range(30)]

    async def test_number_and_rules_are_of_the_same_moment(self, store: Store) -> None:
        before = await store.ruleset_number()
        saving = asyncio.gather(*(store.save_rule(make_rule(f"r{n}")) for n in range(20)))
        known: dict[int, int] = {}
        while not saving.done():
            number, rules, _ = await store.rules()
            assert known.setdefault(number, len(rules)) == len(rules)
            assert number > before or not rules
        await saving

    async def test_rule_that_is_not_there_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFound, match="nope"):
            await store.rule("nope")
        with pytest.raises(NotFound, match="nope"):
            await store.delete_rule("nope")

    async def test_deleted_rule_is_gone_and_its_alerts_stay(self, store: Store) -> None:
        await store.save_rule(make_rule("gapper"))
        await store.save_alerts([make_alert(1, rule_id="gapper")], reader="alerts:0")
        await store.delete_rule("gapper")
        with pytest.raises(NotFound):
            await store.rule("gapper")
        with pytest.raises(NotFound):
            await store.delete_rule("gapper")
        assert (await store.rules()).rules == []
        assert await store.alerts(AlertQuery(rule_id="gapper")) == [make_alert(1, rule_id="gapper")]

    async def test_deleted_rule_cannot_be_changed_or_its_id_used_again(self, store: Store) -> None:
        # Its versions stay, and alerts speak of them: version 1 of this id already means something.
        await store.save_rule(make_rule("a"))
        await store.delete_rule("a")
        for version in (1, 2):
            with pytest.raises(VersionConflict):
                await store.save_rule(make_rule("a", version=version))
        assert (await store.rules()).rules == []

    async def test_versions_of_a_rule_stay_newest_first_after_its_end_too(self, store: Store) -> None:
        with pytest.raises(NotFound, match="a"):
            await store.rule_versions("a")
        first = await store.save_rule(make_rule("a"))
        versions = [first]
        for version in range(2, 8):
            versions.insert(0, await store.save_rule(make_rule("a", version=version, name=f"name {version}")))
        await store.save_rule(make_rule("b"))
        for deleted in (False, True):
            if deleted:
                await store.delete_rule("a")
            assert await store.rule_versions("a") == versions
            assert await store.rule_versions("a", limit=2, offset=1) == versions[1:3]
            assert await store.rule_versions("a", limit=10**30, offset=10**30) == []
            assert await store.rule_versions("a", limit=0) == []
            for rule in versions:
                assert await store.rule("a", rule.version) == rule
            for version in (0, 8, -1, 10**30):
                with pytest.raises(NotFound, match="a"):
                    await store.rule("a", version)

    # Watchlists

    async def test_watchlist_arrives_as_it_was(self, store: Store) -> None:
        long = [f"S{n:04}" for n in reversed(range(5_000))]
        for watchlist in (
            make_watchlist("b", name="«\"'%;--»"),
            make_watchlist("a", symbols=long),
            make_watchlist("c", symbols=[]),
        ):
            assert await store.save_watchlist(watchlist) == watchlist
            assert await store.watchlist(watchlist.id) == watchlist
        assert [watchlist.id for watchlist in await store.watchlists()] == ["a", "b", "c"]

    async def test_watchlist_has_versions_as_a_rule_has(self, store: Store) -> None:
        with pytest.raises(VersionConflict, match="a"):
            await store.save_watchlist(make_watchlist("a", version=2))
        first = await store.save_watchlist(make_watchlist("a"))
        given = make_watchlist("a", version=2, name="other")
        second = await store.save_watchlist(given)
        assert second == given.model_copy(update={"created_at": first.created_at})
        for version in (1, 2, 4):
            with pytest.raises(VersionConflict, match="a"):
                await store.save_watchlist(make_watchlist("a", version=version))
        assert await store.watchlists() == [second]
        await store.delete_watchlist("a")
        for version in (1, 3):
            with pytest.raises(VersionConflict, match="a"):
                await store.save_watchlist(make_watchlist("a", version=version))
        for call in (store.watchlist("a"), store.delete_watchlist("a"), store.watchlist("nope")):
            with pytest.raises(NotFound):
                await call
        assert await store.watchlists() == []

    async def test_snapshot_brings_the_lists_that_enabled_rules_name(self, store: Store) -> None:
        lists = {name: make_watchlist(name, symbols=[name]) for name in ("mine", "gate", "rearm", "other")}
        for watchlist in lists.values():
            await store.save_watchlist(watchlist)

        async def brought() -> list[str]:
            watchlists = (await store.rules()).watchlists
            assert watchlists == [lists[watchlist.id] for watchlist in watchlists]
            return [watchlist.id for watchlist in watchlists]

        assert await brought() == []
        await store.save_rule(make_rule("a", when=ON.format("mine"), gate=ON.format("gate"), rearm=ON.format("rearm")))
        await store.save_rule(make_rule("b", when=ON.format("mine")))
        assert await brought() == ["gate", "mine", "rearm"]
        await store.save_rule(make_rule("a", version=2, when=ON.format("nowhere")))
        assert await brought() == ["mine"]
        await store.save_rule(make_rule("b", version=2, when=ON.format("mine"), enabled=False))
        assert await brought() == []
        await store.save_rule(make_rule("b", version=3, when=ON.format("mine")))
        assert await brought() == ["mine"]
        await store.delete_rule("b")
        assert await brought() == []

    async def test_list_raises_the_rulesets_number_when_an_enabled_rule_names_it(self, store: Store) -> None:
        async def raised(change: Awaitable[object]) -> bool:
            before = await store.ruleset_number()
            await change
            return await store.ruleset_number() > before

        assert not await raised(store.save_watchlist(make_watchlist("mine")))
        await store.save_rule(make_rule("a", when=ON.format("mine"), gate=ON.format("to-come")))
        assert await raised(store.save_watchlist(make_watchlist("mine", version=2)))
        assert await raised(store.save_watchlist(make_watchlist("to-come")))
        assert not await raised(store.save_watchlist(make_watchlist("other")))
        await store.save_rule(make_rule("a", version=2, when=ON.format("mine"), enabled=False))
        assert not await raised(store.save_watchlist(make_watchlist("mine", version=3)))
        assert not await raised(store.delete_watchlist("mine"))

    async def test_list_that_enabled_rules_name_cannot_be_deleted(self, store: Store) -> None:
        await store.save_watchlist(make_watchlist("mine"))
        for n in range(5):
            await store.save_rule(make_rule(f"r{n}", when=ON.format("mine")))
        with pytest.raises(VersionConflict, match=r"mine.*r0, r1, r2 and 2 more"):
            await store.delete_watchlist("mine")
        assert await store.watchlist("mine") == make_watchlist("mine")
        assert [entry.kind for entry in await store.audit(AuditQuery())] == ["rule"] * 5 + ["watchlist"]
        for n in range(4):
            await store.delete_rule(f"r{n}")
        with pytest.raises(VersionConflict, match=r"mine.*: r4$"):
            await store.delete_watchlist("mine")
        await store.save_rule(make_rule("r4", version=2, when="price > 1"))
        await store.delete_watchlist("mine")

    async def test_list_never_goes_while_a_rule_begins_to_name_it(self, store: Store) -> None:
        for n in range(10):
            await store.save_watchlist(make_watchlist(f"w{n}"))
        deleting = [store.delete_watchlist(f"w{n}") for n in range(10)]
        naming = [store.save_rule(make_rule(f"r{n}", when=ON.format(f"w{n}"))) for n in range(10)]
        pairs = zip(deleting, naming, strict=True)
        calls = [call for n, pair in enumerate(pairs) for call in (pair if n % 2 else pair[::-1])]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert sum(isinstance(outcome, VersionConflict) for outcome in outcomes) == 5
        assert len(await store.watchlists()) == len((await store.rules()).watchlists) == 5

    # The audit log

    async def test_every_change_is_in_the_audit_log_newest_first(self, store: Store) -> None:
        began_ns = time.time_ns()
        await store.save_rule(make_rule("a"), actor="ann")
        await store.save_rule(make_rule("a", version=2, name="new", enabled=False))
        await store.delete_rule("a", actor="bob")
        await store.save_watchlist(make_watchlist("w", symbols=["A", "B", "C"]), actor="ann")
        await store.save_watchlist(make_watchlist("w", version=2, symbols=["C", "D", "A"]))
        await store.delete_watchlist("w", actor="bob")
        entries = await store.audit(AuditQuery())
        assert [(e.kind, e.subject, e.action, e.version, e.actor) for e in reversed(entries)] == [
            ("rule", "a", "create", 1, "ann"),
            ("rule", "a", "change", 2, "local"),
            ("rule", "a", "delete", 2, "bob"),
            ("watchlist", "w", "create", 1, "ann"),
            ("watchlist", "w", "change", 2, "local"),
            ("watchlist", "w", "delete", 2, "bob"),
        ]
        assert [entry.entry for entry in entries] == sorted({entry.entry for entry in entries}, reverse=True)
        times = [entry.at_ns for entry in entries]
        assert times == sorted(times, reverse=True)
        assert began_ns <= times[-1] <= times[0] <= time.time_ns()

    async def test_audit_shows_the_fields_that_changed_before_and_after(self, store: Store) -> None:
        rule = await store.save_rule(make_rule("a"))
        await store.save_rule(make_rule("a", version=2, name="new", when="price > 1"))
        await store.save_rule(make_rule("a", version=3, name="new", when="price > 1"))
        await store.delete_rule("a")
        await store.save_watchlist(make_watchlist("w", symbols=["A", "B", "C"]))
        await store.save_watchlist(make_watchlist("w", version=2, symbols=["C", "D", "A", "E"]))
        log = (await store.audit(AuditQuery()))[::-1]
        whole = rule.model_dump(mode="json", exclude={"id", "version", "created_at", "updated_at"})
        price = {"metric": "price", "operator": ">", "value": 1.0}
        new = {"name": "new", "when": "price > 1", "conditions": [price]}
        assert (log[0].before, log[0].after) == ({}, whole)
        assert (log[1].before, log[1].after) == ({name: whole[name] for name in new}, new)
        assert (log[2].before, log[2].after) == ({}, {})
        assert (log[3].before, log[3].after) == (whole | new, {})
        assert log[4].after["symbols"] == ["A", "B", "C"]
        assert (log[5].before, log[5].after) == ({"symbols": ["B"]}, {"symbols": ["D", "E"]})

    async def test_refused_change_is_not_in_the_audit_log(self, store: Store) -> None:
        await store.save_rule(make_rule("a"))
        for call in (store.save_rule(make_rule("a")), store.save_rule(make_rule("b", version=3))):
            with pytest.raises(VersionConflict):
                await call
        for missing in (store.delete_rule("b"), store.delete_watchlist("b")):
            with pytest.raises(NotFound):
                await missing
        assert len(await store.audit(AuditQuery())) == 1

    async def test_audit_is_filtered_and_walked_page_by_page(self, store: Store) -> None:
        for n in range(7):
            await store.save_rule(make_rule(f"r{n % 2}", version=n // 2 + 1))
            await store.save_watchlist(make_watchlist("r0", version=n + 1))
        everything = await store.audit(AuditQuery())
        assert len(everything) == 14

        async def found(**wanted: Any) -> list[AuditEntry]:
            seen: list[AuditEntry] = []
            query = AuditQuery(limit=3, **wanted)
            while page := await store.audit(query):
                assert len(page) <= 3
                seen += page
                query = query._replace(before=page[-1].entry)
            return seen

        assert await found() == everything
        assert await found(kind="rule") == [entry for entry in everything if entry.kind == "rule"]
        assert await found(subject="r0") == [entry for entry in everything if entry.subject == "r0"]
        assert len(await found(subject="r0", kind="rule")) == 4
        since_ns = everything[5].at_ns
        assert await found(since_ns=since_ns) == [entry for entry in everything if entry.at_ns >= since_ns]
        assert await found(since_ns=10**30) == await found(subject="nope") == []
        assert await store.audit(AuditQuery(before=10**30, since_ns=-(10**30), limit=10**30)) == everything
        assert await store.audit(AuditQuery(limit=0)) == []

    async def test_audit_entries_expire_after_ninety_days_and_their_numbers_are_not_used_again(
        self, store: Store
    ) -> None:
        for version in range(1, 4):
            await store.save_rule(make_rule("a", version=version))
        kept = await store.audit(AuditQuery())
        day_ns = 86_400 * SECOND_NS
        assert await store.expire(kept[-1].at_ns + AUDIT_DAYS * day_ns) == 0
        assert await store.audit(AuditQuery()) == kept
        assert await store.expire(kept[-1].at_ns + AUDIT_DAYS * day_ns + 1) == 1
        assert await store.audit(AuditQuery()) == kept[:-1]
        assert await store.expire(kept[0].at_ns + 100 * day_ns) == 2
        assert await store.audit(AuditQuery()) == []
        assert [rule.version for rule in await store.rule_versions("a")] == [3, 2, 1]
        await store.save_rule(make_rule("a", version=4))
        assert (await store.audit(AuditQuery()))[0].entry > kept[0].entry

    # Reference data

    async def test_security_arrives_as_it_was(self, store: Store) -> None:
        full = make_security("BRK.B")
        bare = Security(symbol="Zp$+=^_:-.", as_of=date(1990, 1, 1), is_test=True, active=False)
        await store.save_securities([bare, full])
        assert await store.securities() == [full, bare]

    async def test_securities_are_replaced_by_symbol(self, store: Store) -> None:
        await store.save_securities([make_security(f"S{n:04}") for n in range(3_000)])
        for _ in range(2):
            await store.save_securities([make_security("S0007", market_cap=None, active=False), make_security("X")])
        stored = await store.securities()
        assert [security.symbol for security in stored] == [*(f"S{n:04}" for n in range(3_000)), "X"]
        assert [s.symbol for s in stored if not s.active] == ["S0007"]
        assert [s.symbol for s in stored if s.market_cap is None] == ["S0007"]
        await store.save_securities([])
        assert await store.securities() == stored

    async def test_securities_asked_for_are_those_that_are_listed(self, store: Store) -> None:
        names = [f"S{n:04}" for n in range(1_500)]
        await store.save_securities([make_security(name) for name in [*names, "T"]])
        found = await store.securities_of([*reversed(names), "NOPE", "S0001"])
        assert found == [make_security(name) for name in names]
        assert await store.securities_of([]) == []

    async def test_splits_are_by_date_and_replaced_by_symbol_and_date(self, store: Store) -> None:
        early, late = date(2024, 6, 10), date(2024, 7, 12)
        wrong = make_split("A", late, 1, 2)
        given = [make_split("B", early, 1, 10), make_split("A", late, 1.5, 0.1 + 0.2), make_split("A", early, 20, 1)]
        await store.save_splits([wrong])
        for _ in range(2):
            await store.save_splits(given)
        assert await store.splits() == [given[2], given[0], given[1]]
        assert await store.splits(start=late) == [given[1]]
        assert await store.splits(start=late + timedelta(1)) == []

    async def test_daily_bars_arrive_as_they_were(self, store: Store) -> None:
        monday, tuesday = date(2025, 3, 3), date(2025, 3, 4)
        bars = daily_bars_of([("B", monday), ("A", tuesday), ("A", monday), ("C", monday)])
        await store.save_daily_bars(bars)
        stored = await store.daily_bars(["B", "NOPE", "A"])
        assert stored.symbols == ("B", "NOPE", "A")
        assert [stored.symbols[i] for i in stored.symbol] == ["A", "A", "B"]
        assert stored.day.tolist() == [day_number(day) for day in (monday, tuesday, monday)]
        assert same(
            replace(stored, symbols=bars.symbols, symbol=bars.symbol[[2, 1, 0]]), bars.take(np.array([2, 1, 0]))
        )
        assert len(await store.daily_bars([])) == 0

    async def test_daily_bars_are_of_the_days_asked_for(self, store: Store) -> None:
        days = [date(2025, 3, 3) + timedelta(n) for n in range(5)]
        await store.save_daily_bars(daily_bars_of([("A", day) for day in days] + [("B", days[0]), ("B", days[3])]))

        async def found(**wanted: date) -> list[int]:
            bars = await store.daily_bars(["A"], **wanted)
            return [day - day_number(days[0]) for day in bars.day.tolist()]

        assert await found() == [0, 1, 2, 3, 4]
        assert await found(start=days[1], end=days[3]) == [1, 2, 3]
        assert await found(start=days[4]) == [4]
        assert await found(end=days[0] - timedelta(1)) == []

    async def test_daily_bar_is_replaced_by_symbol_and_day(self, store: Store) -> None:
        monday = date(2025, 3, 3)
        await store.save_daily_bars(daily_bars_of([("A", monday), ("B", monday)]))
        for _ in range(2):
            await store.save_daily_bars(daily_bars_of([("A", monday)], close=12.0))
        assert (await store.daily_bars(["A", "B"])).close.tolist() == [12.0, 10.0]

    async def test_daily_bars_of_many_symbols_all_arrive(self, store: Store) -> None:
        names = [f"S{n:04}" for n in range(2_500)]
        await store.save_daily_bars(daily_bars_of([(name, date(2025, 3, 3)) for name in names]))
        stored = await store.daily_bars(names)
        assert stored.symbol.tolist() == list(range(2_500))

    async def test_days_with_daily_bars_are_told_once_each(self, store: Store) -> None:
        assert await store.daily_days() == []
        days = [date(2025, 3, 3), date(2025, 3, 4), date(2025, 3, 7)]
        await store.save_daily_bars(daily_bars_of([(name, day) for day in reversed(days) for name in "AB"]))
        assert await store.daily_days() == days
        assert await store.daily_days(start=days[1]) == days[1:]
        assert await store.daily_days(start=date(2025, 3, 8)) == []

    @pytest.mark.parametrize(
        ("column", "value"),
        [
            ("open", math.nan),
            ("high", math.inf),
            ("low", -1.0),
            ("close", 0.0),
            ("volume", math.nan),
            ("volume", -5.0),
            ("high", 0.2),
            ("day", 0),
            ("day", 10**6),
        ],
    )
    async def test_row_that_cannot_be_a_daily_bar_is_named_and_nothing_is_saved(
        self, store: Store, column: str, value: float
    ) -> None:
        bars = daily_bars_of([("A", date(2025, 3, 3)), ("B", date(2025, 3, 3)), ("C", date(2025, 3, 3))])
        values = getattr(bars, column).copy()
        values[1] = value
        with pytest.raises(Invalid, match=rf"row 1, column {column}.* of B "):
            await store.save_daily_bars(replace(bars, **{column: values}))
        assert await store.daily_days() == []

    # All at once

    async def test_reads_and_writes_at_once_all_succeed(self, store: Store) -> None:
        async def write(number: int) -> None:
            bars = make_bars([("A", NOON_NS + number * MINUTE_NS)])
            await store.save_bars(bars, reader=f"bars:{number}", position=Position(1, number))
            await store.save_alerts([make_alert(number)], reader=f"alerts:{number}")

        async def read() -> None:
            await store.bars("A")
            await store.alerts(AlertQuery())
            await store.rules()

        await asyncio.gather(*(write(number) for number in range(25)), *(read() for _ in range(25)))
        assert len(await store.bars("A")) == len(await store.alerts(AlertQuery())) == 25
