"""Indicators over closed one-minute candles."""

from collections.abc import Callable

from tapewatch.engine.board import Board
from tapewatch.engine.columns import F64
from tapewatch.engine.indicators import EMA_SPANS, SMA_SPANS
from tapewatch.engine.metrics.declare import Metric, Unit


def _recursive(name: str) -> Callable[[Board], F64]:
    return lambda board: board.recursive(name)


def _study(name: str, unit: Unit, formula: str, candles: int, source: str) -> Metric:
    return Metric(
        name=name,
        unit=unit,
        formula=formula,
        compute=_recursive(name),
        timeframe="1m",
        warm_up=f"{candles} closed candles",
        freshness="candle",
        source=source,
        keeps=("studies",),
        published=True,
    )


METRICS = (
    _study("rsi_14_1m", "index", "Wilder's RSI over 14 closed one-minute bars", 15, "TA-Lib RSI"),
    *(
        _study(
            f"ema_{n}_1m", "$", f"EMA of the last {n} closed one-minute closes, seeded with their SMA", n, "TA-Lib EMA"
        )
        for n in EMA_SPANS
    ),
    *(_study(f"sma_{n}_1m", "$", f"mean of the last {n} closed one-minute closes", n, "TA-Lib SMA") for n in SMA_SPANS),
    _study("atr_14_1m", "$", "Wilder's ATR over 14 closed one-minute bars", 15, "TA-Lib ATR"),
)
