"""What every `Store` keeps its word about: minute bars and the history of alerts."""

import asyncio
import math

import msgspec
import pytest

from tapewatch.contracts.samples import (
    HOSTILE_TEXTS,
    INT64_MAX,
    INT64_MIN,
    NOON_NS,
    bar_rows,
    make_alert,
    make_bars,
    same,
)
from tapewatch.documents import DAY_S, MAX_NOTE, Alert
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS, Bars
from tapewatch.errors import NotFound
from tapewatch.ports import ALERT_DAYS, BAR_DAYS, AlertQuery, Position, Store

DAY_NS = DAY_S * SECOND_NS


async def walk(store: Store, query: AlertQuery) -> list[Alert]:
    """All pages of a query, as a person who turns them sees them."""
    seen: list[Alert] = []
    while page := await store.alerts(query):
        assert len(page) <= query.limit
        assert await store.alert_keys(query) == [(alert.alert_id, alert.fired_at_ns, alert.note) for alert in page]
        seen += page
        query = query._replace(before=(page[-1].fired_at_ns, page[-1].alert_id))
    return seen


def replace_note(alert: Alert, note: str) -> Alert:
    return msgspec.structs.replace(alert, note=note)


class StoreBars:
    """Part of `StoreContract`."""

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

    async def test_bars_of_a_year_ago_are_forgotten_and_later_ones_are_not(self, store: Store) -> None:
        now_ns = NOON_NS + BAR_DAYS * DAY_NS
        ancient = [("A", NOON_NS - 40 * DAY_NS + minute * MINUTE_NS) for minute in range(6_000)]
        kept = [(symbol, NOON_NS + minute * MINUTE_NS) for symbol in "AB" for minute in range(3)]
        await store.save_bars(make_bars([*ancient, ("C", NOON_NS - 40 * DAY_NS), *kept]), reader="bars:0")
        assert await store.expire(now_ns) == 0  # the tape's time is not known
        assert len(await store.bars("C")) == 1
        for _ in range(2):
            assert await store.expire(0, tape_ns=now_ns) == 0
            assert (await store.bars("A", limit=10_000)).ts_ns.tolist() == [ts_ns for _, ts_ns in kept[:3]]
            assert len(await store.bars("B")) == 3
            assert len(await store.bars("C")) == 0


class StoreAlerts:
    """Part of `StoreContract`."""

    async def test_keys_tell_which_alert_in_which_state_and_ids_bring_what_is_there(self, store: Store) -> None:
        alerts = [make_alert(n, symbol="AB"[n % 2], owner="ann", shared=n % 3 == 0) for n in range(1_100)]
        await store.save_alerts(alerts, reader="alerts:0")
        (noted,) = await store.annotate_alerts("B", since_ns=alerts[-1].fired_at_ns, note="late", reader="alerts:0")
        now = [*alerts[:-1], noted]
        keys = [(alert.alert_id, alert.fired_at_ns, alert.note) for alert in now]
        assert await store.alert_keys(AlertQuery(limit=2_000)) == keys[::-1]
        assert await store.alert_keys(AlertQuery(limit=3, oldest_first=True, symbol="B")) == keys[1:6:2]
        assert await store.alert_keys(AlertQuery(limit=2, viewer="bob")) == keys[-2::-3][:2]
        assert await store.alert_keys(AlertQuery(since_ns=INT64_MAX + 1)) == []
        found = await store.alerts_of([alert.alert_id for alert in alerts] + ["nobody"])
        assert sorted(found, key=lambda alert: alert.fired_at_ns) == now
        assert await store.alerts_of([]) == []

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

    async def test_alerts_of_a_year_ago_are_forgotten_and_later_ones_are_not(self, store: Store) -> None:
        now_ns = NOON_NS + ALERT_DAYS * DAY_NS
        ancient = [make_alert(n, fired_at_ns=NOON_NS - 40 * DAY_NS + n) for n in range(6_000)]
        kept = [make_alert(n) for n in range(10_000, 10_003)]
        await store.save_alerts([*ancient, *kept], reader="alerts:0")
        for _ in range(2):
            assert await store.expire(0, tape_ns=now_ns) == 0
            assert await store.alerts(AlertQuery(limit=10_000)) == kept[::-1]
        with pytest.raises(NotFound):
            await store.alert(ancient[0].alert_id)
