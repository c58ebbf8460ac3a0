"""The clock to the last bit: a time of day in a rule is reached at its own second, whichever second it is."""

import math
from functools import cache

import pytest
from naive import SECOND, Mark, Row
from tapes import new_york, to_entries

from tapewatch.documents import load_rule_file, ruleset
from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import Batch, pulse
from tapewatch.engine.rules.explain import explain
from tapewatch.engine.rules.text import parse_condition
from tapewatch.engine.rules.tree import AnyOf, Comparison, Number
from tapewatch.engine.scanner import Scanner
from tapewatch.nyse import trading_days

FOUR, EIGHT_PM = 4 * 3_600, 20 * 3_600
DAYS = ("2025-03-07", "2025-03-10", "2025-11-03", "2024-11-29")
"""An ordinary one, the first after each change of the clocks, and a half day."""


def clock(second: int) -> str:
    return f"{second // 3_600:02}:{second // 60 % 60:02}:{second % 60:02}"


@cache
def written() -> tuple[float, ...]:
    """What the text of a rule gives for each second from 00:00:00 on, by second."""
    numbers: list[float] = []
    for first in range(0, 24 * 3_600, 40):
        seconds = range(first, first + 40)
        parsed = parse_condition(" or ".join(f"time == {clock(second)}" for second in seconds))
        assert isinstance(parsed, AnyOf)
        for comparison in parsed.conditions:
            assert isinstance(comparison, Comparison)
            assert isinstance(comparison.right, Number)
            numbers.append(comparison.right.value)
    return tuple(numbers)


def scanner_at(start_ns: int) -> Scanner:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"))
    for entry in to_entries([Mark(start_ns), Row("A", start_ns, 10.0)], set()):
        assert isinstance(entry, Batch)
        scanner.step(entry)
    return scanner


@pytest.mark.parametrize("date", DAYS)
def test_every_second_of_the_day_is_the_number_that_its_text_gives(date: str) -> None:
    midnight_ns, pre_ns = new_york(f"{date} 00:00"), new_york(f"{date} 04:00")
    scanner = scanner_at(pre_ns + SECOND)
    scanner.board.want(["time_of_day"])

    def shown(second: int) -> float:
        value = scanner.board.refresh(midnight_ns + second * SECOND, day_start_ns=pre_ns)[0, 0]
        return float(value)

    wrong = [clock(s) for s in range(FOUR + 1, EIGHT_PM + 1) if shown(s) != written()[s]]
    assert wrong == []
    assert math.isnan(shown(FOUR))  # the instant before it belongs to the night
    assert math.isnan(shown(EIGHT_PM + 1))


def test_minutes_before_and_after_are_the_numbers_that_a_division_by_sixty_gives() -> None:
    """Such as `minutes_since_open >= 0.25`, fifteen seconds after the open."""
    day = "2025-03-10"
    scanner = scanner_at(new_york(f"{day} 04:00") + SECOND)
    scanner.board.want(["minutes_since_open", "minutes_to_close"])
    open_ns, close_ns = new_york(f"{day} 09:30"), new_york(f"{day} 16:00")
    for second in range(1, (close_ns - open_ns) // SECOND + 1):
        now_ns = open_ns + second * SECOND
        values = scanner.board.refresh(now_ns, day_start_ns=new_york(f"{day} 04:00"))[:, 0].tolist()
        assert values == [second / 60, (23_400 - second) / 60]


@pytest.mark.parametrize("date", ["2025-03-07", "2025-03-10"])
@pytest.mark.parametrize("time", ["04:00:07", "09:30:04", "09:30:05", "09:31:00", "13:47:53", "15:59:58"])
def test_rule_fires_and_is_explained_at_the_second_that_is_written(date: str, time: str) -> None:
    due_ns = new_york(f"{date} {time}")
    scanner = scanner_at(due_ns - 5 * SECOND)
    rules, _ = load_rule_file(f"rule t when time >= {time}", where="t.rules")
    scanner.apply(ruleset(1, rules))
    assert scanner.step(pulse(due_ns - SECOND)).matches == []
    (match,) = scanner.step(pulse(due_ns)).matches
    assert match.fired_at_ns == due_ns
    found = explain(scanner.plan, "t", "A", reason=lambda _name, _symbol: "", age_s=lambda _name, _symbol: 0.0)
    assert found is not None
    assert found.when is not None
    assert found.verdict == "fired"
    assert found.when.readings[0].value == written()[(due_ns - new_york(f"{date} 00:00")) // SECOND]
