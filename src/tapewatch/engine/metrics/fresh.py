"""What happened since the scan before: new extremes, and between which prices the last price moved.

They stand as the newest scan saw them.
"""

from collections.abc import Callable, Iterator

from tapewatch.engine.board import Board
from tapewatch.engine.calendar import Session
from tapewatch.engine.columns import F64
from tapewatch.engine.metrics.declare import Metric

_SESSIONS = {"regular": Session.REGULAR, "premarket": Session.PRE, "postmarket": Session.POST}


def _extremes() -> Iterator[Metric]:
    for which, exceeds in (("high", "above"), ("low", "below")):
        yield Metric(
            name=f"new_{which}_day",
            unit="flag",
            formula=(
                f"1 at a scan that sees {which}_day {exceeds} where it stood at the scan before, else 0; the first "
                "price of a day exceeds nothing"
            ),
            compute=_new(which, None),
            timeframe="day",
            freshness="scan",
            keeps=("extremes",),
        )
        for name, session in _SESSIONS.items():
            yield Metric(
                name=f"new_{which}_{name}",
                unit="flag",
                formula=f"the same of {which}_{name} alone",
                compute=_new(which, session),
                timeframe="day",
                freshness="scan",
                keeps=("extremes",),
            )
        fact = f"{which}_52w"
        yield Metric(
            name=f"new_{which}_52w",
            unit="flag",
            formula=(
                f"1 at a scan that sees {which}_day {exceeds} both {fact} and where it stood at the scan before, else "
                "0; the first price of a day counts"
            ),
            compute=_beyond(which, fact),
            timeframe="day",
            freshness="scan",
            needs="reference",
            facts=(fact,),
            keeps=("extremes",),
        )
        yield Metric(
            name=f"new_{which}s_day",
            unit="count",
            formula=f"scans of the day at which new_{which}_day was 1",
            compute=_count(which),
            timeframe="day",
            freshness="scan",
            keeps=("extremes",),
        )
        yield Metric(
            name=f"{which}_day_before",
            unit="$",
            formula=f"{which}_day as it stood at the scan before; price crosses it when it makes a new {which}",
            compute=_before(which),
            timeframe="day",
            freshness="scan",
            keeps=("extremes",),
        )


def _new(which: str, session: Session | None) -> Callable[[Board], F64]:
    return lambda board: board.new_extreme(which, session)


def _beyond(which: str, fact: str) -> Callable[[Board], F64]:
    return lambda board: board.new_extreme_beyond(which, board.fact(fact))


def _count(which: str) -> Callable[[Board], F64]:
    return lambda board: board.count_new(which)


def _before(which: str) -> Callable[[Board], F64]:
    return lambda board: board.extreme_before(which)


METRICS = (
    *_extremes(),
    Metric(
        name="highest_since_scan",
        unit="$",
        formula="highest of price and all that it was since the scan before",
        compute=lambda b: b.path("highest"),
        freshness="scan",
        keeps=("path",),
    ),
    Metric(
        name="lowest_since_scan",
        unit="$",
        formula="lowest of price and all that it was since the scan before",
        compute=lambda b: b.path("lowest"),
        freshness="scan",
        keeps=("path",),
    ),
)
