"""The last minute of the tape: how fast it runs, and its largest trade."""

import numpy as np

from tapewatch.engine.board import Board
from tapewatch.engine.columns import F64
from tapewatch.engine.metrics.declare import Metric
from tapewatch.engine.metrics.windows import prices_kept

FEWEST_PRINTS = 3
"""With fewer in the last minute nothing runs."""


def _running(board: Board, values: F64) -> F64:
    return np.where(board["prints_60s"] >= FEWEST_PRINTS, values, np.nan)


METRICS = (
    Metric(
        name="prints_60s",
        unit="count",
        formula=(
            "trades of the last 60 seconds that count in the volume: those of the live minute, and of the one before "
            "the share that is not yet over"
        ),
        compute=lambda b: b.last_60_seconds(1, column="count"),
        timeframe="1m",
        warm_up="1 minutes of the day",
        freshness="second",
    ),
    Metric(
        name="running_60s",
        unit="$",
        formula=(
            "price - p, p the last price before 60 seconds ago, that instant rounded down to a whole second; unknown "
            f"where prints_60s < {FEWEST_PRINTS}"
        ),
        compute=lambda b: _running(b, b["change_1m"]),
        timeframe="1m",
        warm_up="1 minutes of the day",
        freshness="second",
        source="ChartsWatcher: running up, running down",
        keeps=prices_kept(1),
    ),
    Metric(
        name="running_60s_pct",
        unit="%",
        formula=f"(price / p - 1) * 100 with the same p; unknown where prints_60s < {FEWEST_PRINTS}",
        compute=lambda b: _running(b, b["change_pct_1m"]),
        timeframe="1m",
        warm_up="1 minutes of the day",
        freshness="second",
        source="ChartsWatcher: running up, running down",
        keeps=prices_kept(1),
    ),
    Metric(
        name="largest_trade_1m",
        unit="shares",
        formula=(
            "size of the largest trade that counts in the volume, of the live clock minute and the one before; unknown "
            "without such a trade"
        ),
        compute=lambda b: b.largest_trade(),
        timeframe="1m",
        source="Trade Ideas: block trade",
        keeps=("largest",),
    ),
)
