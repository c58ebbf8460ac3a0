"""Candles of 1 minute to 4 hours: the running one, closed ones back, and indicators and patterns over closed ones."""

from collections.abc import Callable

from tapewatch.engine.board import Board
from tapewatch.engine.columns import F64
from tapewatch.engine.indicators import RECURSIVE
from tapewatch.engine.metrics.declare import Freshness, Kept, Metric, Unit
from tapewatch.engine.timeframes import TIMEFRAME_METRICS, TIMEFRAMES, TimeframeMetric

_UNITS: dict[str, Unit] = {
    "$": "$",
    "%": "%",
    "shares": "shares",
    "ratio": "ratio",
    "index": "index",
    "flag": "flag",
    "trades": "count",
    "candles": "count",
}
_PUBLISHED = {"rsi_14_5m", "rsi_14_15m", "rsi_14_1h"}
_AVERAGES = ("ema_9", "ema_20", "ema_21", "ema_50", "ema_200", "sma_20", "sma_50", "sma_200")


def _served(name: str, metric: TimeframeMetric) -> Metric:
    def compute(board: Board) -> F64:
        return board.candle(name)

    def compute_back(board: Board, back: int) -> F64:
        return board.candle(name, back)

    running: Freshness = "trade" if metric.source == "field" else "candle"
    return Metric(
        name=name,
        unit=_UNITS[metric.unit],
        formula=metric.formula,
        compute=compute,
        compute_back=compute_back if metric.back else None,
        back=metric.back,
        timeframe=metric.timeframe,
        warm_up=f"{metric.candles} closed candles" if metric.candles else "",
        freshness=running,
        source="" if metric.source == "field" else metric.source,
        candles=(name,),
        published=name in _PUBLISHED,
    )


def _derived(
    timeframe: str, name: str, unit: Unit, formula: str, compute: Callable[[Board], F64], *made_of: str
) -> Metric:
    keeps: tuple[Kept, ...] = ("studies",) if any(part in RECURSIVE for part in made_of) else ()
    return Metric(
        name=name,
        unit=unit,
        formula=formula,
        compute=compute,
        timeframe=timeframe,
        warm_up="as for its parts",
        freshness="trade",
        candles=tuple(part for part in made_of if part in TIMEFRAME_METRICS),
        keeps=keeps,
    )


def _distance(timeframe: str, average: str) -> Metric:
    base = f"{average}_{timeframe}"
    return _derived(
        timeframe,
        f"{base}_distance_pct",
        "%",
        f"(price / {base} - 1) * 100",
        lambda board: board.pct(board.price, board[base]),
        base,
    )


def _of(timeframe: str) -> tuple[Metric, ...]:
    atr, upper, lower = f"atr_14_{timeframe}", f"bollinger_upper_{timeframe}", f"bollinger_lower_{timeframe}"
    plus, minus, line = f"di_plus_14_{timeframe}", f"di_minus_14_{timeframe}", f"linreg_20_{timeframe}"
    high, low = f"high_{timeframe}", f"low_{timeframe}"

    def flag(name: str, back: str) -> Callable[[Board], F64]:
        return lambda board: board.exceeds(board[name], board[back])

    return (
        *(_distance(timeframe, average) for average in _AVERAGES),
        _derived(
            timeframe,
            f"atr_pct_14_{timeframe}",
            "%",
            f"{atr} / price * 100",
            lambda board: board.ratio(board[atr] * 100.0, board.price),
            atr,
        ),
        _derived(
            timeframe,
            f"bollinger_position_{timeframe}",
            "%",
            "where price lies between the lower (0) and the upper band (100)",
            lambda board: board.position(board.price, board[lower], board[upper]),
            upper,
            lower,
        ),
        _derived(
            timeframe,
            f"di_difference_14_{timeframe}",
            "index",
            f"{plus} - {minus}",
            lambda board: board[plus] - board[minus],
            plus,
            minus,
        ),
        _derived(
            timeframe,
            f"linreg_distance_pct_{timeframe}",
            "%",
            f"(price / {line} - 1) * 100",
            lambda board: board.pct(board.price, board[line]),
            line,
        ),
        _derived(
            timeframe,
            f"new_candle_high_{timeframe}",
            "flag",
            "1 when the running candle's high is above that of the candle before, else 0",
            flag(high, f"{high}[1]"),
            high,
        ),
        _derived(
            timeframe,
            f"new_candle_low_{timeframe}",
            "flag",
            "1 when the running candle's low is below that of the candle before, else 0",
            flag(f"{low}[1]", low),
            low,
        ),
    )


METRICS = (
    *(_served(name, metric) for name, metric in TIMEFRAME_METRICS.items()),
    *(metric for timeframe in TIMEFRAMES for metric in _of(timeframe)),
)
