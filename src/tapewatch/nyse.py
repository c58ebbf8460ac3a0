"""The exchange's calendar for the engine: trading days with their sessions, holidays and half days included."""

from datetime import datetime
from functools import cache
from zoneinfo import ZoneInfo

from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.errors import ConfigError

PRE_MINUTES = 330
"""Pre-market starts 04:00, five and a half hours before the open."""


@cache
def trading_days(first_year: int = 2003, last_year: int | None = None) -> TradingDays:
    """All NYSE trading days of these years (default: to the end of what the library knows).

    Pre-market from 04:00, regular from 09:30 to 16:00 or an early close, post-market to 20:00, New York time.
    """
    import exchange_calendars

    schedule = exchange_calendars.get_calendar("XNYS", start=f"{first_year}-01-01").schedule
    if last_year is not None:
        schedule = schedule[: f"{last_year}-12-31"]
    opens = schedule["open"].dt.as_unit("ns").astype("int64").to_numpy()
    closes = schedule["close"].dt.as_unit("ns").astype("int64").to_numpy()
    # 04:00, 09:30 and 20:00 are the same day, and New York changes its clocks on Sundays only.
    return TradingDays(
        pre_ns=opens - PRE_MINUTES * MINUTE_NS,
        open_ns=opens,
        close_ns=closes,
        post_ns=opens + 630 * MINUTE_NS,
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


def _date(ts_ns: int) -> str:
    return datetime.fromtimestamp(int(ts_ns) // SECOND_NS, ZoneInfo("America/New_York")).date().isoformat()
