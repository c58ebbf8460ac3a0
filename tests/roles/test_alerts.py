"""alerts: once on screens, once in history, in order, whatever is away."""

from typing import Any

import pytest

from tapewatch.contracts.samples import make_alert
from tapewatch.documents import Alert
from tapewatch.ports import Alerts
from tapewatch.roles.alerts import AlertsRole

pytestmark = pytest.mark.anyio


@pytest.fixture
def role(bus: Any, hot: Any, ledger: Any, clock: Any) -> AlertsRole:
    return AlertsRole(bus=bus, hot=hot, store=ledger, clock=clock, most_pending=3)


def saved(ledger: Any) -> list[Alert]:
    return [alert for alerts, _ in ledger.alerts for alert in alerts]


async def test_alerts_that_come_twice_are_passed_on_and_saved_once(
    role: AlertsRole, running: Any, bus: Any, ledger: Any, read: Any, eventually: Any
) -> None:
    one, two, three = (make_alert(n) for n in range(3))
    async with running(role):
        await bus.publish("alerts:0", Alerts((one, two)))
        await bus.publish("alerts:0", Alerts((one, two)))
        last = await bus.publish("alerts:0", Alerts((two, three)))
        await eventually(lambda: role.position == last)
        passed_on = await read("alerts.filtered:0")
    assert passed_on == [Alerts((one, two)), Alerts((three,))]
    assert saved(ledger) == [one, two, three]
    assert ledger.alerts[-1][1] == last


async def test_screens_do_not_wait_for_the_store_and_history_misses_nothing(
    role: AlertsRole, running: Any, bus: Any, ledger: Any, clock: Any, read: Any, eventually: Any
) -> None:
    ledger.away = True
    async with running(role):
        for n in range(3):
            last = await bus.publish("alerts:0", Alerts((make_alert(n),)))
        await eventually(lambda: role.position == last)
        assert len(await read("alerts.filtered:0")) == 3
        await clock.wake()
        await eventually(lambda: ledger.refused >= 2)
        assert ledger.alerts == []
        ledger.away = False
        await clock.wake()
        await eventually(lambda: len(saved(ledger)) == 3)
    assert saved(ledger) == [make_alert(n) for n in range(3)]
    assert ledger.alerts[-1][1] == last


async def test_more_pending_than_the_bound_stops_reading_until_the_store_is_back(
    role: AlertsRole, running: Any, bus: Any, ledger: Any, clock: Any, read: Any, eventually: Any
) -> None:
    ledger.away = True
    async with running(role):
        positions = [await bus.publish("alerts:0", Alerts((make_alert(n),))) for n in range(10)]
        await eventually(lambda: role.position == positions[2])
        await eventually(lambda: ledger.refused >= 1)
        await clock.wake()
        await eventually(lambda: ledger.refused >= 2)
        assert role.position == positions[2]
        assert len(await read("alerts.filtered:0")) == 4  # the fourth is on screens, and waits with the others
        ledger.away = False
        await clock.wake()
        await eventually(lambda: role.position == positions[-1])
    assert saved(ledger) == [make_alert(n) for n in range(10)]


async def test_burst_is_saved_in_pieces_whose_positions_name_whole_entries(
    bus: Any, hot: Any, ledger: Any, clock: Any, running: Any, eventually: Any
) -> None:
    role = AlertsRole(bus=bus, hot=hot, store=ledger, clock=clock)
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


async def test_hot_state_that_is_away_lets_alerts_pass(
    role: AlertsRole, running: Any, bus: Any, hot: Any, ledger: Any, read: Any, eventually: Any
) -> None:
    hot._max_keys = 0
    async with running(role):
        last = await bus.publish("alerts:0", Alerts((make_alert(1),)))
        await eventually(lambda: role.position == last)
        assert len(await read("alerts.filtered:0")) == 1
    assert saved(ledger) == [make_alert(1)]
