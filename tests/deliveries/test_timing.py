"""When alerts are told: cooldown, mute, quiet hours over midnight and clock changes, storms."""

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.contracts.samples import NOON_NS
from tapewatch.contracts.store_deliveries import make_subscription
from tapewatch.deliveries.timing import Decision, Timing, quiet_until_ns
from tapewatch.delivery_documents import DAYS, QuietHours, Told
from tapewatch.documents import rfc3339
from tapewatch.engine.columns import SECOND_NS
from tapewatch.strict import parse_document

PLAIN: dict[str, Any] = {"quiet_hours": None, "digest": None}
NEW_YORK = ZoneInfo("America/New_York")


def at_ns(text: str, zone: str = "America/New_York", *, fold: int = 0) -> int:
    return round(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold).timestamp()) * SECOND_NS


def quiet(start: str, end: str, *days: str) -> QuietHours:
    raw = {"from": start, "to": end, "time_zone": "America/New_York", "days": list(days) or list(DAYS)}
    return parse_document(QuietHours, raw)


def verdicts(timing: Timing, subscription: Any, seconds: list[float], symbol: str = "AAPL") -> list[str]:
    return [timing.decide(subscription, "r", symbol, NOON_NS + round(second * SECOND_NS)).verdict for second in seconds]


def test_cooldown_is_of_subscription_rule_and_symbol() -> None:
    timing, one = Timing(), make_subscription("s", cooldown=60, **PLAIN)
    other = make_subscription("t", cooldown=60, **PLAIN)
    assert verdicts(timing, one, [0, 59.9, 60, 100, 120]) == ["tell", "drop", "tell", "drop", "tell"]
    assert verdicts(timing, one, [1], "MSFT") == ["tell"]
    assert timing.decide(one, "other", "AAPL", NOON_NS + 1).verdict == "tell"
    assert verdicts(timing, other, [1]) == ["tell"]


def test_what_is_muted_is_not_told_and_starts_no_cooldown() -> None:
    one = make_subscription("s", cooldown=60, muted_until=rfc3339(NOON_NS + 30 * SECOND_NS), **PLAIN)
    assert verdicts(Timing(), one, [0, 29.9, 30, 31]) == ["drop", "drop", "tell", "drop"]


@pytest.mark.parametrize(
    ("at", "until"),
    [
        ("2025-03-03T21:59:59", None),
        ("2025-03-03T22:00:00", "2025-03-04T07:00:00"),
        ("2025-03-04T00:00:00", "2025-03-04T07:00:00"),
        ("2025-03-04T06:59:59", "2025-03-04T07:00:00"),
        ("2025-03-04T07:00:00", None),
        ("2025-03-07T23:00:00", None),  # a Friday, which is not named
        ("2025-03-08T03:00:00", None),  # the night that a Friday would begin
    ],
)
def test_quiet_hours_over_midnight_belong_to_the_day_on_which_they_begin(at: str, until: str | None) -> None:
    hours = quiet("22:00", "07:00", "mon", "tue", "wed", "thu")
    assert quiet_until_ns(hours, at_ns(at)) == (None if until is None else at_ns(until))


def test_quiet_hours_within_a_day() -> None:
    hours = quiet("12:00", "13:00", "wed")
    assert quiet_until_ns(hours, at_ns("2025-03-05T12:30")) == at_ns("2025-03-05T13:00")
    assert quiet_until_ns(hours, at_ns("2025-03-06T12:30")) is None


def test_quiet_hours_in_the_night_when_clocks_go_forward() -> None:
    hours = quiet("02:30", "06:00")  # 2025-03-09 has no 02:30
    assert quiet_until_ns(hours, at_ns("2025-03-09T01:59:59")) is None
    assert quiet_until_ns(hours, at_ns("2025-03-09T03:00:00")) is None
    assert quiet_until_ns(hours, at_ns("2025-03-09T03:30:00")) == at_ns("2025-03-09T06:00")


def test_quiet_hours_in_the_night_when_clocks_go_back() -> None:
    hours = quiet("01:15", "01:45")  # 2025-11-02 has both of them twice
    first, second = at_ns("2025-11-02T01:15"), at_ns("2025-11-02T01:45", fold=1)
    assert second - first == 90 * 60 * SECOND_NS
    assert quiet_until_ns(hours, first - 1) is None
    assert quiet_until_ns(hours, first) == quiet_until_ns(hours, second - 1) == second
    assert quiet_until_ns(hours, second) is None


@given(
    start=st.times(),
    end=st.times(),
    days=st.sets(st.sampled_from(DAYS), min_size=1),
    minutes=st.integers(0, 365 * 24 * 60),
)
def test_quiet_is_what_the_clock_on_the_wall_says(start: Any, end: Any, days: set[str], minutes: int) -> None:
    """Away from the nights in which clocks change."""
    begin, until = f"{start:%H:%M}", f"{end:%H:%M}"
    if begin == until:
        return
    local = datetime(2025, 1, 1, tzinfo=NEW_YORK) + timedelta(minutes=minutes)
    if local.date().isoformat() in {"2025-03-09", "2025-11-02"}:
        return
    clock, today = f"{local:%H:%M}", DAYS[local.weekday()]
    yesterday = DAYS[local.weekday() - 1]
    if begin < until:
        expected = today in days and begin <= clock < until
    else:
        expected = (today in days and clock >= begin) or (yesterday in days and clock < until)
    found = quiet_until_ns(quiet(begin, until, *days), round(local.timestamp()) * SECOND_NS)
    assert (found is not None) == expected
    if found is not None:
        assert f"{datetime.fromtimestamp(found // SECOND_NS, NEW_YORK):%H:%M}" == until


def test_more_than_so_many_become_one_digest_and_a_storm_that_goes_on_another() -> None:
    timing = Timing()
    one = make_subscription("s", quiet_hours=None, digest={"more_than": 3, "within_s": 60})
    decided = [timing.decide(one, "r", f"S{n}", NOON_NS + n * SECOND_NS) for n in range(10)]
    assert [decision.verdict for decision in decided] == ["tell"] * 3 + ["hold"] * 7
    assert {decision.until_ns for decision in decided[3:]} == {NOON_NS + 63 * SECOND_NS}
    # It still blows when the digest is due.
    again = [timing.decide(one, "r", f"T{n}", NOON_NS + (62 + n) * SECOND_NS) for n in range(5)]
    assert [(each.until_ns - NOON_NS) // SECOND_NS for each in again] == [63, 123, 123, 123, 123]
    # A calm hour later it is over.
    assert timing.decide(one, "r", "X", NOON_NS + 3_600 * SECOND_NS) == Decision("tell")


def test_quiet_hours_hold_until_they_end() -> None:
    one = make_subscription("s")
    night = at_ns("2025-03-03T23:00")
    assert Timing().decide(one, "r", "A", night) == Decision("hold", "quiet_hours", at_ns("2025-03-04T07:00"))


@given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 400)), max_size=60), st.integers(0, 60))
def test_whoever_takes_over_in_the_middle_decides_the_same(arrivals: list[tuple[str, int]], cut: int) -> None:
    one = make_subscription("s", cooldown=30, quiet_hours=None, digest={"more_than": 2, "within_s": 60})
    arrivals.sort(key=lambda arrival: arrival[1])

    def decide(timing: Timing, part: list[tuple[str, int]]) -> list[Decision]:
        return [timing.decide(one, "r", symbol, NOON_NS + second * SECOND_NS) for symbol, second in part]

    whole = decide(Timing(), arrivals)
    first = Timing()
    before = decide(first, arrivals[:cut])
    told = [
        Told(("s",), "r", symbol, NOON_NS + second * SECOND_NS, decision.until_ns)
        for (symbol, second), decision in zip(arrivals[:cut], before, strict=True)
        if decision.verdict != "drop"
    ]
    second = Timing()
    second.remember(told, [one])
    assert before + decide(second, arrivals[cut:]) == whole


def test_what_is_remembered_is_bounded() -> None:
    timing = Timing(most_cooldowns=3, most_storms=2)
    one = make_subscription("s", cooldown=60, quiet_hours=None)
    for number in range(10):
        timing.decide(one, "r", f"S{number}", NOON_NS)
        timing.decide(make_subscription(f"s{number}", quiet_hours=None), "r", "A", NOON_NS)
    assert len(timing._last) == 3
    assert len(timing._storms) == 2
    assert timing.decide(one, "r", "S9", NOON_NS).verdict == "drop"
    assert timing.decide(one, "r", "S0", NOON_NS).verdict == "tell"
