"""What every `Store` keeps its word about: what people ask of history, their marks on alerts, and what is done once."""

import asyncio
from typing import Any

import pytest

from tapewatch.contracts.samples import HOSTILE_TEXTS, INT64_MAX, NOON_NS, make_alert, make_security
from tapewatch.documents import DAY_S, Alert
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import NotFound, VersionConflict
from tapewatch.ports import ALERT_DAYS, ONCE_ABANDONED_S, ONCE_S, AlertQuery, KeptAnswer, SecurityQuery, Store

SEVERITIES, SESSIONS = ("info", "warning", "critical"), ("pre", "regular", "post")
NAMES = ("Gap & go", "50% off_x", "Gapper", "İstanbul gap", "a\\b")


def some_alerts(count: int) -> list[Alert]:
    return [
        make_alert(
            n,
            symbol=f"S{n % 4}",
            rule_id=f"r{n % 3}",
            rule_name=NAMES[n % 5],
            severity=SEVERITIES[n % 3],
            session=SESSIONS[n % 3 if n % 2 else 1],
            tags=tuple(f"t{bit}" for bit in range(3) if n >> bit & 1),
            fired_at_ns=NOON_NS + n // 3,
        )
        for n in range(count)
    ]


def ascii_fold(text: str) -> str:
    return "".join(c.lower() if c.isascii() else c for c in text)


def answers(query: AlertQuery, alert: Alert, acknowledged: set[str]) -> bool:
    """The obvious version."""
    return (
        (not query.symbols or alert.symbol in query.symbols)
        and (not query.rule_ids or alert.rule_id in query.rule_ids)
        and (not query.severities or alert.severity in query.severities)
        and (not query.sessions or alert.session in query.sessions)
        and (not query.tags or bool(set(query.tags) & set(alert.tags)))
        and ascii_fold(query.name_part) in ascii_fold(alert.rule_name)
        and (query.acknowledged_by != "me" or alert.alert_id in acknowledged)
        and (query.not_acknowledged_by != "me" or alert.alert_id not in acknowledged)
    )


class StoreAsked:
    """Part of `StoreContract`: filters."""

    @pytest.mark.parametrize(
        "narrowed",
        [
            {},
            {"symbols": ("S1", "S3", "NOPE")},
            {"rule_ids": ("r2",), "severities": ("critical", "info")},
            {"sessions": ("pre", "post")},
            {"tags": ("t1",)},
            {"tags": ("t0", "t2"), "symbols": ("S1",)},
            {"tags": ("'", "%")},
            {"name_part": "gAP"},
            {"name_part": "%"},
            {"name_part": "_"},
            {"name_part": "\\"},
            {"name_part": "İ"},
            {"acknowledged_by": "me"},
            {"not_acknowledged_by": "me"},
            {"acknowledged_by": "me", "name_part": "gap", "tags": ("t0",)},
        ],
        ids=str,
    )
    async def test_filters_find_what_the_obvious_filter_finds_in_both_orders(
        self, store: Store, narrowed: dict[str, Any]
    ) -> None:
        alerts = some_alerts(40)
        await store.save_alerts(alerts, reader="alerts:0")
        acknowledged = {alert.alert_id for alert in alerts[::5]}
        for alert in alerts[::5]:
            await store.mark_alert("me", alert.alert_id, at_ns=1, acknowledged=True)
        await store.mark_alert("other", alerts[1].alert_id, at_ns=1, acknowledged=True)
        await store.mark_alert("me", alerts[2].alert_id, at_ns=1, note="seen, not done")
        expected = [alert for alert in alerts if answers(AlertQuery(**narrowed), alert, acknowledged)]
        for limit in (1, 3, 100):
            seen: list[Alert] = []
            query = AlertQuery(limit=limit, oldest_first=True, **narrowed)
            while page := await store.alerts(query):
                seen += page
                query = query._replace(after=(page[-1].fired_at_ns, page[-1].alert_id))
            assert seen == expected
            seen, query = [], AlertQuery(limit=limit, **narrowed)
            while page := await store.alerts(query):
                seen += page
                query = query._replace(before=(page[-1].fired_at_ns, page[-1].alert_id))
            assert seen == expected[::-1]

    async def test_securities_are_found_by_symbol_name_and_what_they_are(self, store: Store) -> None:
        await store.save_securities(
            [
                make_security("AAPL", name="Apple Inc."),
                make_security("APP", name="AppLovin 100% _x", exchange="XNYS", type="ETF"),
                make_security("PINE", name="Pineapple Energy", sector="Energy"),
                make_security("X", name=None, exchange=None, type=None, sector=None),
            ]
        )

        async def found(**query: Any) -> list[str]:
            return await store.find_securities(SecurityQuery(**query))

        assert await found() == ["AAPL", "APP", "PINE", "X"]
        assert await found(text="aPPl") == ["AAPL", "APP", "PINE"]
        assert await found(text="app") == ["AAPL", "APP", "PINE"]
        assert await found(text="x") == ["APP", "X"]
        assert await found(text="%") == await found(text="_") == ["APP"]
        assert await found(exchange="XNAS") == ["AAPL", "PINE"]
        assert await found(type="ETF", text="app") == ["APP"]
        assert await found(sector="Energy") == ["PINE"]
        assert await found(sector="energy") == []
        assert await found(limit=2) == ["AAPL", "APP"]
        assert await found(text=HOSTILE_TEXTS[3]) == []


class StoreMarks:
    """Part of `StoreContract`."""

    async def test_mark_is_its_users_and_rises_with_each_change(self, store: Store) -> None:
        alert = make_alert(1)
        await store.save_alerts([alert], reader="alerts:0")
        first = await store.mark_alert("me", alert.alert_id, at_ns=7, acknowledged=True)
        assert (first.acknowledged_at_ns, first.note, first.version) == (7, "", 1)
        assert await store.mark_alert("me", alert.alert_id, at_ns=8, acknowledged=True) == first
        noted = await store.mark_alert("me", alert.alert_id, at_ns=9, note=HOSTILE_TEXTS[5], version=1)
        assert (noted.acknowledged_at_ns, noted.note, noted.version) == (7, HOSTILE_TEXTS[5], 2)
        open_again = await store.mark_alert("me", alert.alert_id, at_ns=10, acknowledged=False)
        assert (open_again.acknowledged_at_ns, open_again.note, open_again.version) == (None, HOSTILE_TEXTS[5], 3)
        assert await store.alert_marks("me", [alert.alert_id, "none"]) == {alert.alert_id: open_again}
        assert await store.alert_marks("other", [alert.alert_id]) == {}
        assert await store.alerts(AlertQuery()) == [alert]

    async def test_mark_of_a_stale_version_or_of_no_alert_is_refused_and_leaves_nothing(self, store: Store) -> None:
        alert = make_alert(1)
        await store.save_alerts([alert], reader="alerts:0")
        with pytest.raises(NotFound):
            await store.mark_alert("me", "none", at_ns=1, note="x")
        with pytest.raises(VersionConflict):
            await store.mark_alert("me", alert.alert_id, at_ns=1, note="x", version=1)
        assert await store.alert_marks("me", [alert.alert_id]) == {}
        unchanged = await store.mark_alert("me", alert.alert_id, at_ns=1, acknowledged=False, version=0)
        assert (unchanged.version, await store.alert_marks("me", [alert.alert_id])) == (0, {})

    async def test_marks_at_once_are_all_counted(self, store: Store) -> None:
        alert = make_alert(1)
        await store.save_alerts([alert], reader="alerts:0")
        await asyncio.gather(*(store.mark_alert("me", alert.alert_id, at_ns=1, note=f"n{n}") for n in range(20)))
        assert (await store.alert_marks("me", [alert.alert_id]))[alert.alert_id].version == 20

    async def test_mark_is_forgotten_with_its_alert(self, store: Store) -> None:
        later_ns = NOON_NS + ALERT_DAYS * DAY_S * SECOND_NS
        ancient, kept = make_alert(1, fired_at_ns=NOON_NS - 40 * DAY_S * SECOND_NS), make_alert(2)
        await store.save_alerts([ancient, kept], reader="alerts:0")
        for alert in (ancient, kept):
            await store.mark_alert("me", alert.alert_id, at_ns=1, note="x")
        await store.expire(0, tape_ns=later_ns)
        assert set(await store.alert_marks("me", [ancient.alert_id, kept.alert_id])) == {kept.alert_id}


class StoreOnce:
    """Part of `StoreContract`."""

    ANSWER = KeptAnswer(201, {"location": "/x", "etag": '"1"'}, b"{}\x00\xff")

    async def test_of_many_at_once_one_does_it_and_the_others_get_its_answer(self, store: Store) -> None:
        begun = await asyncio.gather(*(store.begin_once("me", "k", b"d", now_ns=NOON_NS) for _ in range(20)))
        assert sum(state.is_mine for state in begun) == 1
        assert {(state.digest, state.answer) for state in begun} == {(b"d", None)}
        await store.end_once("me", "k", self.ANSWER)
        again = await store.begin_once("me", "k", b"other", now_ns=NOON_NS + 1)
        assert again == (False, b"d", self.ANSWER)
        assert (await store.begin_once("other", "k", b"other", now_ns=NOON_NS)).is_mine

    async def test_what_was_not_done_frees_its_key(self, store: Store) -> None:
        assert (await store.begin_once("me", "k", b"d", now_ns=NOON_NS)).is_mine
        await store.end_once("me", "k", None)
        assert (await store.begin_once("me", "k", b"e", now_ns=NOON_NS)).is_mine

    async def test_key_is_free_after_a_day_or_when_whoever_began_is_gone(self, store: Store) -> None:
        later_ns = NOON_NS + ONCE_ABANDONED_S * SECOND_NS
        assert (await store.begin_once("me", "k", b"d", now_ns=NOON_NS)).is_mine
        assert not (await store.begin_once("me", "k", b"d", now_ns=later_ns - 1)).is_mine
        assert (await store.begin_once("me", "k", b"e", now_ns=later_ns)).is_mine
        await store.end_once("me", "k", self.ANSWER)
        day_ns = later_ns + ONCE_S * SECOND_NS
        assert (await store.begin_once("me", "k", b"f", now_ns=day_ns - 1)) == (False, b"e", self.ANSWER)
        assert (await store.begin_once("me", "k", b"f", now_ns=day_ns)) == (True, b"f", None)

    async def test_old_keys_are_forgotten(self, store: Store) -> None:
        await store.begin_once("me", "k", b"d", now_ns=NOON_NS)
        await store.end_once("me", "k", self.ANSWER)
        await store.expire(NOON_NS + ONCE_S * SECOND_NS)
        assert (await store.begin_once("me", "k", b"e", now_ns=INT64_MAX // 2)).is_mine
