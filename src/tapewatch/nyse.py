"""The exchange's calendar for the engine: trading days with their sessions, holidays and half days included.

exchange_calendars knows the days. It is asked in a process of its own, because it brings 65 MB that are of no use to a
server afterwards.
"""

import subprocess
import sys
from datetime import datetime
from functools import cache
from zoneinfo import ZoneInfo

import numpy as np

from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.errors import ConfigError

_PRE_MINUTES, _POST_MINUTES = -330, 630
"""Pre-market starts 04:00 and post-market ends 20:00, counted from the open at 09:30. New York changes its clocks on
Sundays only, so the distance never varies."""
_FIRST = "2003-01-01"


@cache
def trading_days() -> TradingDays:
    """All NYSE trading days from 2003 to the end of what the library knows, about a year ahead.

    Pre-market from 04:00, regular from 09:30 to 16:00 or an early close, post-market to 20:00, New York time.
    """
    table = subprocess.run([sys.executable, "-m", "tapewatch.nyse"], stdout=subprocess.PIPE, check=True).stdout
    opens, closes = np.frombuffer(table, np.int64).reshape(2, -1)
    return TradingDays(
        pre_ns=opens + _PRE_MINUTES * MINUTE_NS,
        open_ns=opens,
        close_ns=closes,
        post_ns=opens + _POST_MINUTES * MINUTE_NS,
    )


def day_of(date: str) -> tuple[int, int, int, int]:
    """The edges of a trading day's sessions, from ``YYYY-MM-DD``; `ConfigError` if the exchange is closed on it."""
    try:
        midnight_ns = (
            int(datetime.fromisoformat(date).replace(tzinfo=ZoneInfo("America/New_York")).timestamp()) * SECOND_NS
        )
    except ValueError:
        raise ConfigError(f"{date!r} is not a date such as 2025-03-03") from None
    days = trading_days()
    i = int(days.pre_ns.searchsorted(midnight_ns))
    if i >= len(days.pre_ns) or days.pre_ns[i] - midnight_ns > 6 * 60 * MINUTE_NS:
        raise ConfigError(f"{date} is not a trading day between {_date(days.open_ns[0])} and {_date(days.open_ns[-1])}")
    return int(days.pre_ns[i]), int(days.open_ns[i]), int(days.close_ns[i]), int(days.post_ns[i])


def trade_date(ts_ns: int) -> str:
    """The date, ``YYYY-MM-DD``, of the trading day to which a trade at this instant belongs: from 20:00 New York time
    on that of the next session, over a weekend and a holiday too. `ConfigError` after the last known day.
    """
    days = trading_days()
    day = int(days.trade_day(np.array(ts_ns)))
    if day == len(days.open_ns):
        raise ConfigError(f"no trading day is known after {_date(days.open_ns[-1])}")
    return _date(days.open_ns[day])


def _date(ts_ns: int) -> str:
    return datetime.fromtimestamp(int(ts_ns) // SECOND_NS, ZoneInfo("America/New_York")).date().isoformat()


def _print_schedule() -> None:
    """Opens, then closes, as int64 nanoseconds UTC."""
    import exchange_calendars

    schedule = exchange_calendars.get_calendar("XNYS", start=_FIRST).schedule
    for name in ("open", "close"):
        sys.stdout.buffer.write(schedule[name].dt.as_unit("ns").astype("int64").to_numpy().tobytes())


if __name__ == "__main__":
    _print_schedule()
