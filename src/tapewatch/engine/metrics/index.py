"""What the index funds do, for every symbol; and how a symbol stands to the market."""

from collections.abc import Callable

from tapewatch.engine.board import Board
from tapewatch.engine.columns import F64
from tapewatch.engine.metrics.declare import Metric
from tapewatch.engine.metrics.windows import WINDOWS, prices_kept
from tapewatch.engine.quantities import INDEX_FUNDS

_WINDOWS = {window: WINDOWS[window] for window in ("5m", "10m", "15m", "30m")}


def _of_fund(fund: str, name: str) -> Callable[[Board], F64]:
    return lambda board: board.of_symbol(fund, name)


METRICS = (
    *(
        Metric(
            name=f"{fund.lower()}_change_pct_{window}",
            unit="%",
            formula=f"change_pct_{window} of {fund}",
            compute=_of_fund(fund, f"change_pct_{window}"),
            timeframe=window,
            warm_up=f"{minutes} minutes of tape",
            freshness="second",
            needs="index",
            keeps=prices_kept(minutes),
        )
        for fund in INDEX_FUNDS
        for window, minutes in _WINDOWS.items()
    ),
    *(
        Metric(
            name=f"{fund.lower()}_change_pct_day",
            unit="%",
            formula=f"change_pct_day of {fund}",
            compute=_of_fund(fund, "change_pct_day"),
            timeframe="day",
            needs="index",
        )
        for fund in INDEX_FUNDS
    ),
    Metric(
        name="change_vs_spy_pct_day",
        unit="%",
        formula="change_pct_day - spy_change_pct_day, in percentage points",
        compute=lambda b: b["change_pct_day"] - b["spy_change_pct_day"],
        timeframe="day",
        needs="index",
        facts=("close_prev_day",),
    ),
)
