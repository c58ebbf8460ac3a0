"""Trading days for the oracle: which session an instant falls in, and to which day it belongs."""

import subprocess
import sys
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from typing import NamedTuple
from zoneinfo import ZoneInfo

from tapewatch.errors import Invalid

SECOND = 1_000_000_000
MINUTE = 60 * SECOND
NEVER = 2**62
_NEW_YORK = ZoneInfo("America/New_York")
_AROUND = timedelta(days=12)
"""Longer than any run of days without trading."""


class Day(NamedTuple):
    """Instants in nanoseconds: 04:00, the open, the close, 20:00."""

    pre: int
    open: int
    close: int
    post: int


class Session(NamedTuple):
    name: str
    """``closed``, ``pre``, ``regular`` or ``post``."""
    start: int
    end: int


@dataclass(frozen=True)
class Days:
    days: Sequence[Day]

    @cached_property
    def _edges(self) -> list[int]:
        return [edge for day in self.days for edge in day]

    def session(self, ns: int) -> Session:
        """The session of an instant."""
        passed = bisect_right(self._edges, ns)
        name = ("closed", "pre", "regular", "post")[passed % 4]
        start = self._edges[passed - 1] if passed else -NEVER
        return Session(name, start, self._edges[passed] if passed < len(self._edges) else NEVER)

    def phase(self, minute: int) -> str:
        """The session of a minute, with that of the open told apart."""
        session = self.session(minute * MINUTE)
        return "opening" if session.name == "regular" and session.start == minute * MINUTE else session.name

    def trade_day(self, ns: int) -> int:
        """The number of the day that a trade belongs to: after 20:00 it is the next one."""
        return bisect_right(self._posts, ns)

    @cached_property
    def _posts(self) -> list[int]:
        return [day.post for day in self.days]

    @cached_property
    def _pres(self) -> list[int]:
        return [day.pre for day in self.days]

    def start_of_day(self, ns: int) -> int:
        """04:00 of the newest trading day at an instant."""
        passed = bisect_right(self._pres, ns)
        return self._pres[passed - 1] if passed else -NEVER

    def next_day(self, ns: int) -> int:
        """04:00 of the first trading day after an instant."""
        passed = bisect_right(self._pres, ns)
        return self._pres[passed] if passed < len(self._pres) else NEVER


def days_around(first_ns: int, last_ns: int) -> Days:
    """The exchange's trading days around a tape, as `exchange_calendars` knows them."""
    around = int(_AROUND.total_seconds()) * SECOND
    hours = _hours()
    if last_ns > hours[-1][1] + 86_400 * SECOND:
        raise Invalid("tape", f"no trading day is known after {_date(hours[-1][0]):%Y-%m-%d}")
    days = []
    for opened, closed in hours:
        if first_ns - around <= opened <= last_ns + around:
            pre, post = (_date(opened).replace(hour=hour, minute=0) for hour in (4, 20))
            days.append(Day(int(pre.timestamp()) * SECOND, opened, closed, int(post.timestamp()) * SECOND))
    return Days(days)


def _date(ns: int) -> datetime:
    return datetime.fromtimestamp(ns // SECOND, UTC).astimezone(_NEW_YORK)


@cache
def _hours() -> list[tuple[int, int]]:
    """Open and close of every trading day. The library is asked in a process of its own, which keeps its memory."""
    program = [sys.executable, "-m", "tapewatch.ledger.days"]
    said = subprocess.run(program, stdout=subprocess.PIPE, check=True).stdout.decode()  # noqa: S603  # our own
    return [(int(opened), int(closed)) for opened, closed in map(str.split, said.splitlines())]


def _print_hours() -> None:
    import exchange_calendars

    schedule = exchange_calendars.get_calendar("XNYS", start="2003-01-01").schedule
    for opened, closed in zip(schedule["open"], schedule["close"], strict=True):
        print(opened.value, closed.value)  # noqa: T201  # it is what the process is for


if __name__ == "__main__":
    _print_hours()
