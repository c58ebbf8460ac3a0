"""What a scanner keeps per symbol beside bars: the running day, prices by the clock, quotes, halts, reference data."""

from dataclasses import dataclass

import numpy as np

from tapewatch.engine.averages import AVERAGE_CARRIED, FOLLOWS
from tapewatch.engine.bars import BAR_CARRIED, BarBuilder
from tapewatch.engine.calendar import Session
from tapewatch.engine.candles import Candles
from tapewatch.engine.columns import F64, I64, Bool
from tapewatch.engine.daily import DAILY_FACTS
from tapewatch.engine.extremes import EXTREME_CARRIED, LargestTrades, NewExtremes, OpeningRanges, Path
from tapewatch.engine.frames import FRAME_CARRIED
from tapewatch.engine.frozen import Carried
from tapewatch.engine.halts import Halts
from tapewatch.engine.history import HISTORY_CARRIED, PriceHistory
from tapewatch.engine.indicators import Recursive
from tapewatch.engine.newest import NEWEST_CARRIED, NewestPrints
from tapewatch.engine.patterns import PATTERN_CARRIED, PATTERNS
from tapewatch.engine.quotes import Quotes
from tapewatch.engine.series import SERIES_CARRIED
from tapewatch.engine.spans import SPAN_CARRIED, Spans
from tapewatch.engine.studies import STUDIES
from tapewatch.engine.timeframes import Timeframes
from tapewatch.engine.usual import USUAL_CARRIED, UsualVolume


@dataclass(slots=True)
class SymbolState:
    """Arrays are as wide as the symbol table's capacity."""

    sessions: Candles
    """One row per `Session`, of the running day."""
    recursive: Recursive
    history: PriceHistory
    price: F64
    price_ts: I64
    close_prev: F64
    facts: F64
    """Shape (len(DAILY_FACTS), capacity): what the reference data say of the running day; NaN is unknown."""
    seen: Bool
    """A row of the symbol has arrived; the others are only names in a feed's dictionary."""
    spans: Spans
    halts: Halts
    quotes: Quotes
    extremes: NewExtremes
    path: Path
    newest: NewestPrints
    largest: LargestTrades
    opening: OpeningRanges
    timeframes: Timeframes
    settled: Candles
    """The running day's sessions up to `settled_to`: the minutes that nothing can revise any more. `opening` is as
    settled.
    """
    settled_to: int = 0
    usual: UsualVolume | None = None

    @classmethod
    def of(cls, bars: BarBuilder) -> "SymbolState":
        capacity = bars.symbols.capacity
        return cls(
            sessions=Candles(len(Session), capacity),
            recursive=Recursive(capacity),
            history=PriceHistory(capacity),
            price=np.full(capacity, np.nan),
            price_ts=np.full(capacity, -1, np.int64),
            close_prev=np.full(capacity, np.nan),
            facts=np.full((len(DAILY_FACTS), capacity), np.nan),
            seen=np.zeros(capacity, np.bool_),
            spans=Spans(bars),
            halts=Halts.of(capacity),
            quotes=Quotes(capacity),
            extremes=NewExtremes(capacity),
            path=Path(capacity),
            newest=NewestPrints(capacity),
            largest=LargestTrades(capacity),
            opening=OpeningRanges(capacity),
            timeframes=Timeframes(bars),
            settled=Candles(len(Session), capacity),
        )

    def begin_day(self) -> None:
        """Nothing of the running day is known yet."""
        for row in Session:
            self.sessions.reset(row)
            self.settled.reset(row)
        self.halts.begin_day()
        self.quotes.begin_day()
        self.extremes.begin_day()
        self.opening.begin_day()
        self.facts.fill(np.nan)

    def resize(self, capacity: int) -> None:
        for part in (
            self.sessions,
            self.settled,
            self.recursive,
            self.history,
            self.halts,
            self.quotes,
            self.extremes,
            self.path,
            self.newest,
            self.largest,
            self.opening,
        ):
            part.resize(capacity)
        if self.usual is not None:
            self.usual.resize(capacity)
        self.spans.clear()
        facts = np.full((len(DAILY_FACTS), capacity), np.nan)
        facts[:, : self.facts.shape[1]] = self.facts
        self.facts = facts
        for name, blank in (("price", np.nan), ("price_ts", -1), ("close_prev", np.nan), ("seen", False)):
            old = getattr(self, name)
            grown = np.full(capacity, blank, old.dtype)
            grown[: len(old)] = old
            setattr(self, name, grown)


STATE_CARRIED = (
    Carried(SymbolState),
    Carried(Recursive),
    Carried(Halts),
    Carried(Quotes),
    Carried(Timeframes),
    *BAR_CARRIED,
    *SERIES_CARRIED,
    *AVERAGE_CARRIED,
    *PATTERN_CARRIED,
    *HISTORY_CARRIED,
    *SPAN_CARRIED,
    *EXTREME_CARRIED,
    *NEWEST_CARRIED,
    *FRAME_CARRIED,
    *USUAL_CARRIED,
)
STATE_NAMES = {**FOLLOWS, **STUDIES, **PATTERNS}
"""Functions and tables that a state names."""
