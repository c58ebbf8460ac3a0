"""The exchange's calendar for the engine: trading days with their sessions, holidays and half days included."""

from functools import cache

from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import MINUTE_NS

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
