"""What a metric says of itself. One declaration a metric: the reference page, `/api/v1/metrics`, the board and what
people are told of an unknown value all come from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tapewatch.engine.columns import F64

if TYPE_CHECKING:  # the board knows the catalogue
    from tapewatch.engine.board import Board

Unit = Literal["$", "%", "shares", "ratio", "index", "flag", "count", "seconds", "minutes", "sigma"]
Freshness = Literal["trade", "quote", "second", "minute", "candle", "status", "day", "clock", "scan"]
"""What moves it: each trade or quote; the clock's second; the minute; a candle's close; halts and bands; the morning's
reference data; time itself, at every scan; a scan, which says what happened since the one before.
"""
Session = Literal["any", "day", "pre", "regular", "post", "after open"]
"""When it can be known: always; from 04:00 to 20:00; in one session; from 09:30 to 20:00."""
Kept = Literal[
    "prices 5m", "prices 1h", "prices 4h", "studies", "path", "newest", "extremes", "largest", "quotes", "usual"
]
"""What the scanner keeps only while somebody asks for it, and from then on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    name: str
    unit: Unit
    formula: str
    """In words, for the reader of the reference page."""
    compute: "Callable[[Board], F64]"
    """The values of all symbols at the board's instant, shape (capacity,); never written to by anybody."""
    timeframe: str = ""
    """The window or candle that it looks at, such as 5m or day; empty for an instant."""
    warm_up: str = ""
    """What must have been seen first, such as "15 closed candles"; empty for nothing but a trade."""
    session: Session = "any"
    freshness: Freshness = "trade"
    source: str = ""
    """Whose definition it is, such as "TA-Lib RSI"; empty for the plain meaning of its words."""
    needs: Literal["", "reference", "quotes", "index"] = ""
    """Data beside the symbol's own trades: reference data, quotes, or an index fund's trades."""
    back: int = 0
    """How many closed candles back ``[n]`` may reach."""
    compute_back: "Callable[[Board, int], F64] | None" = None
    """The same of the n-th closed candle before the running one, 1 <= n <= `back`."""
    keeps: tuple[Kept, ...] = ()
    candles: tuple[str, ...] = ()
    """Of `timeframes.TIMEFRAME_METRICS`, those that it is made of."""
    facts: tuple[str, ...] = ()
    """Of `DAILY_FACTS`, those without which it is unknown."""
    published: bool = False
    """On the boards that lists and pages see each second; every metric can be asked by rules."""

    @property
    def minutes(self) -> int:
        """The length of its window or candle; 0 for what is no stretch of minutes."""
        number, unit = self.timeframe[:-1], self.timeframe[-1:]
        return int(number) * {"m": 1, "h": 60}[unit] if unit in {"m", "h"} and number.isdigit() else 0
