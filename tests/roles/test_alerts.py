"""alerts: once on screens, once in history, in order, whatever is away; and notes on those whose print is withdrawn."""

import asyncio
from typing import Any

import msgspec
import pytest

from tapewatch.contracts.samples import NOON_NS, make_alert
from tapewatch.documents import Alert
from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.scanner import Withdrawn
from tapewatch.ports import Alerts
from tapewatch.roles.alerts import AlertsRole, note_of

pytestmark = pytest.mark.anyio


@pytest.fixture
def role(bus: Any, ledger: Any, clock: Any) -> AlertsRole:
    return AlertsRole(bus=bus, store=ledger, clock=clock, most_pending=3)


def unstamped(alert: Alert) -> Alert:
    return msgspec.structs.replace(alert, filtered_ns=0)


def saved(ledger: Any) -> list[Alert]:
    return [unstamped(alert) for alerts, _ in ledger.alerts for alert in alerts]


@pytest.fixture
def passed(read: Any) -> Any:
    """What is on the stream of alerts that were passed on, without the instants at which they were."""

    async def passed() -> list[Alerts]:
        return [Alerts(tuple(map(unstamped, entry.alerts))) for entry in await read("alerts.filtered:0")]

    return passed


async def test_alerts_that_come_twice_are_passed_on_and_saved_once(
    role: AlertsRole, running: Any, bus: Any, ledger: Any, passed: Any, eventually: Any
) -> None:
    one, two, three = (make_alert(n) for n in range(3))
    async with running(role):
        await bus.publish("alerts:0", Alerts((one, two)))
        await bus.publish("alerts:0", Alerts((one, two)))
        last = await bus.publish("alerts:0", Alerts((two, three)))
        await eventually(lambda: role.position == last)
        passed_on = await passed()
    assert passed_on == [Alerts((one, two)), Alerts((three,))]
    # Each goes to the store each time, which keeps one: what was passed on before need not have been saved.
    assert saved(ledger) == [one, two, one, two, two, three]
    assert ledger.alerts[-1][1] == last


async def test_alerts_carry_the_instant_at_which_they_were_passed_on(
    role: AlertsRole, running: Any, bus: Any, ledger: Any, clock: Any, read: Any, eventually: Any
) -> None:
    one = make_alert(1, scanned_ns=5)
    async with running(role):
        last = await bus.publish("alerts:0", Alerts((one,)))
        await eventually(lambda: last in ledger.positions)
        (entry,) = await read("alerts.filtered:0")
    (alert,) = entry.alerts
    assert (alert.scanned_ns, alert.filtered_ns) == (5, clock.now_ns())
    assert [alert for alerts, _ in ledger.alerts for alert in alerts] == [alert]


async def test_screens_do_not_wait_for_the_store_and_history_misses_nothing(
    role: AlertsRole, running: Any, bus: Any, ledger: Any, clock: Any, passed: Any, eventually: Any
) -> None:
    ledger.away = True
    async with running(role):
        for n in range(3):
            last = await bus.publish("alerts:0", Alerts((make_alert(n),)))
        await eventually(lambda: role.position == last)
        assert len(await passed()) == 3
        await clock.wake()
        await eventually(lambda: ledger.refused >= 2)
        assert ledger.alerts == []
        ledger.away = False
        await clock.wake()
        await eventually(lambda: len(saved(ledger)) == 3)
    assert saved(ledger) == [make_alert(n) for n in range(3)]
    assert ledger.alerts[-1][1] == last


async def test_more_pending_than_the_bound_stops_reading_until_the_store_is_back(
    role: AlertsRole, running: Any, bus: Any, ledger: Any, clock: Any, passed: Any, eventually: Any
) -> None:
    ledger.away = True
    async with running(role):
        positions = [await bus.publish("alerts:0", Alerts((make_alert(n),))) for n in range(10)]
        await eventually(lambda: role.position == positions[2])
        await eventually(lambda: ledger.refused >= 1)
        await clock.wake()
        await eventually(lambda: ledger.refused >= 2)
        assert role.position == positions[2]
        assert len(await passed()) == 4  # the fourth is on screens, and waits with the others
        ledger.away = False
        await clock.wake()
        await eventually(lambda: role.position == positions[-1])
    assert saved(ledger) == [make_alert(n) for n in range(10)]


async def test_burst_is_saved_in_pieces_whose_positions_name_whole_entries(
    bus: Any, ledger: Any, clock: Any, running: Any, eventually: Any
) -> None:
    role = AlertsRole(bus=bus, store=ledger, clock=clock)
    async with running(role):
        first = await bus.publish("alerts:0", Alerts(tuple(make_alert(n) for n in range(4_000))))
        last = await bus.publish("alerts:0", Alerts(tuple(make_alert(n) for n in range(4_000, 12_000))))
        await eventually(lambda: role.position == last)
    assert saved(ledger) == [make_alert(n) for n in range(12_000)]
    assert ledger.alerts[-1][1] == last
    done = 0
    for alerts, position in ledger.alerts:
        done += len(alerts)
        assert (position is None or position <= first) == (done < 12_000)
        assert position != first or done >= 4_000


def withdrawn(second: float, *, symbol: str = "AAPL") -> Withdrawn:
    return Withdrawn(symbol=symbol, ts_ns=NOON_NS + round(second * SECOND_NS), price=99.0, size=100.0, corrected=None)


async def test_alerts_since_a_withdrawn_print_come_again_with_a_note(
    role: AlertsRole, running: Any, bus: Any, ledger: Any, passed: Any, eventually: Any
) -> None:
    before, after, other, later = make_alert(1), make_alert(2), make_alert(3, symbol="MSFT"), make_alert(4)
    gone = withdrawn(1.5)
    async with running(role):
        await bus.publish("alerts:0", Alerts((before, after, other)))
        await bus.publish("alerts:0", gone)
        last = await bus.publish("alerts:0", Alerts((later,)))
        await eventually(lambda: last in ledger.positions)
        passed_on = await passed()
    noted = after.annotated(note_of(gone))
    assert saved(ledger) == [before, noted, other, later]
    assert [entry.alerts for entry in passed_on if entry.alerts != (later,)] == [(before, after, other), (noted,)]
    assert Alerts((later,)) in passed_on


async def test_withdrawal_that_concerns_no_alert_is_not_passed_on(
    role: AlertsRole, running: Any, bus: Any, ledger: Any, passed: Any, eventually: Any
) -> None:
    async with running(role):
        await bus.publish("alerts:0", Alerts((make_alert(1),)))
        last = await bus.publish("alerts:0", withdrawn(2.0))
        await eventually(lambda: last in ledger.positions)
        assert await passed() == [Alerts((make_alert(1),))]


async def test_while_the_store_is_away_screens_get_alerts_and_notes_wait_in_their_order(
    role: AlertsRole, running: Any, bus: Any, ledger: Any, clock: Any, passed: Any, eventually: Any
) -> None:
    one, two = make_alert(1), make_alert(2)
    first, second = withdrawn(1.0), withdrawn(0.5)
    ledger.away = True
    async with running(role):
        positions = [await bus.publish("alerts:0", entry) for entry in (Alerts((one,)), first, Alerts((two,)))]
        await eventually(lambda: role.position == positions[-1])
        assert await passed() == [Alerts((one,)), Alerts((two,))]
        await clock.wake()
        await eventually(lambda: ledger.refused >= 2)
        ledger.away = False
        await clock.wake()
        await eventually(lambda: ledger.positions == positions)
        last = await bus.publish("alerts:0", second)
        async with asyncio.timeout(10):
            reader = bus.read("alerts.filtered:0")
            entries = [(await anext(reader))[1] for _ in range(4)]
        passed_on = [Alerts(tuple(map(unstamped, entry.alerts))) for entry in entries]
        assert ledger.positions == [*positions, last]
    # The second alert came after the first withdrawal: it never saw that print.
    once = one.annotated(note_of(first))
    both = [once.annotated(note_of(second)), two.annotated(note_of(second))]
    assert passed_on == [*(Alerts((alert,)) for alert in (one, two, once)), Alerts(tuple(both))]
    assert saved(ledger) == both


async def test_withdrawals_count_as_pending_and_stop_reading_at_the_bound(
    role: AlertsRole, running: Any, bus: Any, ledger: Any, clock: Any, eventually: Any
) -> None:
    ledger.away = True
    async with running(role):
        await bus.publish("alerts:0", Alerts((make_alert(1),)))
        positions = [await bus.publish("alerts:0", withdrawn(-n)) for n in range(6)]
        await eventually(lambda: role.position == positions[1])
        await eventually(lambda: ledger.refused >= 1)
        await clock.wake()
        await eventually(lambda: ledger.refused >= 2)
        assert role.position == positions[1]  # the third withdrawal is one too many, and waits with the others
        ledger.away = False
        await clock.wake()
        await eventually(lambda: positions[-1] in ledger.positions)
    (alert,) = saved(ledger)
    assert alert.note.split("\n") == [note_of(withdrawn(-n)) for n in range(6)]


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (
            Withdrawn("A", NOON_NS + SECOND_NS, 99.0, 100.0, None),
            "A print before this alert was cancelled: 100 @ 99.00 at 2013-10-07T16:00:01.000Z.",
        ),
        (
            Withdrawn("A", NOON_NS + 1_999_999, 0.00012, 1_000.0, (1234.5, 2.5)),
            "A print before this alert was corrected: 1,000 @ 0.00012 at 2013-10-07T16:00:00.001Z to 2.5 @ 1,234.50.",
        ),
    ],
)
def test_note_tells_the_print_as_it_was_and_as_it_should_have_been(entry: Withdrawn, text: str) -> None:
    assert note_of(entry) == text
