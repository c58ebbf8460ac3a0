"""Opening ranges: what the regular session's first minutes came to."""

from collections.abc import Callable

from tapewatch.engine.board import Board
from tapewatch.engine.columns import F64
from tapewatch.engine.metrics.declare import Metric
from tapewatch.engine.metrics.windows import WINDOWS


def _range(which: str, minutes: int) -> Callable[[Board], F64]:
    return lambda board: board.opening_range(which, minutes)


METRICS = tuple(
    Metric(
        name=f"opening_range_{which}_{window}",
        unit="$",
        formula=(
            f"{extreme} price of the first {'minute' if minutes == 1 else f'{minutes} minutes'} of today's regular "
            "session; unknown until they are over"
        ),
        compute=_range(which, minutes),
        timeframe=window,
        warm_up=f"{minutes} minutes of the regular session",
        session="after open",
    )
    for window, minutes in WINDOWS.items()
    for which, extreme in (("high", "highest"), ("low", "lowest"))
)
