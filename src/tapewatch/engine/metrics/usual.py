"""Volume against what is usual at this time of day."""

from collections.abc import Callable

from tapewatch.engine.board import Board
from tapewatch.engine.calendar import Session
from tapewatch.engine.columns import F64
from tapewatch.engine.metrics.declare import Metric
from tapewatch.engine.usual import FEWEST_DAYS

_WARM_UP = f"{FEWEST_DAYS} full days of tape"
_WINDOWS = {"5m": 5, "10m": 10, "15m": 15, "30m": 30, "1h": 60}


def _window(minutes: int) -> Callable[[Board], F64]:
    return lambda board: board.ratio(board.over_minutes("volume", minutes), board.usual_volume_of(minutes))


METRICS = (
    Metric(
        name="relative_volume_day",
        unit="ratio",
        formula="volume_day / the usual volume from 04:00 to this time of day",
        compute=lambda b: b.ratio(b.day("volume"), b.usual_volume()),
        timeframe="day",
        warm_up=_WARM_UP,
        session="day",
        source="relative volume, time of day",
        keeps=("usual",),
    ),
    Metric(
        name="relative_volume_regular",
        unit="ratio",
        formula="volume of the regular session / the usual one from 09:30 to this time of day",
        compute=lambda b: b.ratio(b.session_sum("volume", Session.REGULAR), b.usual_volume(regular=True)),
        timeframe="day",
        warm_up=_WARM_UP,
        session="after open",
        source="relative volume, time of day",
        keeps=("usual",),
    ),
    *(
        Metric(
            name=f"volume_vs_usual_{window}",
            unit="ratio",
            formula=f"volume_{window} / the usual volume of these minutes of the day",
            compute=_window(minutes),
            timeframe=window,
            warm_up=_WARM_UP,
            session="day",
            source="volume in percent of expected, as a ratio",
            keeps=("usual",),
        )
        for window, minutes in _WINDOWS.items()
    ),
)
