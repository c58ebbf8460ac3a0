"""The metrics that the oracle knows, each by its sentence in docs/metrics.md."""

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

from tapewatch.ledger.booking import NAN, Pile, Stock
from tapewatch.ledger.days import MINUTE, SECOND, Session

WINDOWS = {"1m": 1, "2m": 2, "5m": 5, "10m": 10, "15m": 15, "30m": 30, "1h": 60}
CLOCK = ("time_of_day", "minutes_since_open", "minutes_to_close")
"""The same for every stock."""
AMONG_REFERENCE = frozenset({"close_prev_day", "change_pct_day", "change_day", "gap_pct", "gap"})
"""What reference data may say otherwise than the tape."""
AFTER_AMENDMENTS = frozenset({*(f"change_pct_{window}" for window in WINDOWS), "high_day_before", "low_day_before"})
"""What the oracle does not make again when a print is withdrawn."""
CANDLES = ("open_1m", "high_1m", "low_1m", "close_1m")
_EMAS = (9, 20, 21, 50, 200)
MOST_BACK = 10


class Candle(NamedTuple):
    minute: int
    open: float
    high: float
    low: float
    close: float


@dataclass
class Candles:
    """A stock's closed candles, and what runs over them."""

    closed: list[Candle] = field(default_factory=list)
    emas: dict[int, float] = field(default_factory=dict)
    gain: float = NAN
    loss: float = NAN

    def append(self, candle: Candle) -> None:
        self.closed.append(candle)
        count, close = len(self.closed), candle.close
        for n in _EMAS:
            if count == n:
                self.emas[n] = math.fsum(c.close for c in self.closed) / n
            elif count > n:
                self.emas[n] += 2 / (n + 1) * (close - self.emas[n])
        if count == 15:
            changes = [b.close - a.close for a, b in pairwise(self.closed)]
            self.gain = sum(max(change, 0.0) for change in changes) / 14
            self.loss = sum(max(-change, 0.0) for change in changes) / 14
        elif count > 15:
            change = close - self.closed[-2].close
            self.gain = (13 * self.gain + max(change, 0.0)) / 14
            self.loss = (13 * self.loss + max(-change, 0.0)) / 14

    def rsi(self) -> float:
        if len(self.closed) < 15:
            return NAN
        return 100 * self.gain / (self.gain + self.loss) if self.gain + self.loss else 0.0


@dataclass
class Look:
    """A stock at a scan."""

    stock: Stock
    candles: Candles
    now: int
    session: Session
    began: int
    before: tuple[float, float]
    """The day's high and low as they stood at the scan before."""

    @property
    def live(self) -> int:
        """The minute that holds the instant just before now."""
        return (self.now - 1) // MINUTE

    def of_session(self, name: str) -> Pile:
        return self.stock.sessions.get(name) or _NOTHING

    def running(self) -> Pile:
        return self.of_session(self.session.name)

    def of_day(self) -> list[Pile]:
        return [pile for name, pile in self.stock.sessions.items() if name != "closed"]

    def high_day(self) -> float:
        return max((pile.high for pile in self.of_day() if not math.isnan(pile.high)), default=NAN)

    def low_day(self) -> float:
        return min((pile.low for pile in self.of_day() if not math.isnan(pile.low)), default=NAN)

    def volume(self, minutes: int) -> float:
        piles = (self.stock.minutes.get(minute) for minute in range(self.live - minutes + 1, self.live + 1))
        return sum((pile.volume for pile in piles if pile is not None), 0.0)

    def suspect(self) -> bool:
        """The day's first price looks like a split that nobody told."""
        first = self.of_session("pre").first
        first = self.of_session("regular").first if math.isnan(first) else first
        if math.isnan(first) or math.isnan(self.stock.close_prev):
            return False
        multiple = max(first / self.stock.close_prev, self.stock.close_prev / first)
        nearest = round(multiple)
        return nearest >= 2 and abs(multiple - nearest) <= 0.02 * nearest

    def close_prev(self) -> float:
        return NAN if self.suspect() else self.stock.close_prev

    def ago(self, minutes: int) -> float:
        """The last price as it was known when the marks reached that instant."""
        grain = grain_of(minutes)
        instant = (self.now - minutes * MINUTE) // grain * grain
        if instant // SECOND <= self.began // SECOND:
            return NAN
        marks, prices = self.stock.past
        place = bisect_left(marks, instant)
        return prices[place - 1] if place else NAN


_NOTHING = Pile()


def grain_of(minutes: int) -> int:
    """Instants in the past are rounded down to this."""
    return SECOND if minutes <= 5 else 5 * SECOND


def pct(value: float, base: float) -> float:
    return (value / base - 1) * 100


def of_clock(name: str, now: int, session: Session, edges: Sequence[int]) -> float:
    """One of `CLOCK`; `edges` are those of the running day: 04:00, the open, the close, 20:00."""
    pre, opened, closed, _ = edges
    if session.name == "closed":
        return NAN
    if name == "time_of_day":
        return (now - (pre - 240 * MINUTE)) / MINUTE  # midnight is four hours before
    if name == "minutes_since_open":
        return NAN if session.name == "pre" else (now - opened) / MINUTE
    return (closed - now) / MINUTE if session.name == "regular" else NAN


def _in_session(of: Callable[[Look], float]) -> Callable[[Look], float]:
    return lambda look: NAN if look.session.name == "closed" else of(look)


def _window(name: str, minutes: int) -> dict[str, Callable[[Look], float]]:
    return {
        f"volume_{name}": lambda look: look.volume(minutes),
        f"change_pct_{name}": lambda look: pct(look.stock.price, look.ago(minutes)),
    }


def _ema(n: int) -> Callable[[Look], float]:
    return lambda look: look.candles.emas.get(n, NAN)


METRICS: dict[str, Callable[[Look], float]] = {
    "price": lambda look: look.stock.price,
    "close_day": lambda look: look.stock.price,
    "close_prev_day": lambda look: look.stock.close_prev,
    "open_day": lambda look: look.of_session("regular").first,
    "high_day": Look.high_day,
    "low_day": Look.low_day,
    "volume_day": lambda look: sum((pile.volume for pile in look.of_day()), 0.0),
    "high_day_before": lambda look: look.before[0],
    "low_day_before": lambda look: look.before[1],
    "high_session": _in_session(lambda look: look.running().high),
    "low_session": _in_session(lambda look: look.running().low),
    "volume_session": _in_session(lambda look: look.running().volume),
    "vwap_session": _in_session(lambda look: look.running().vwap),
    "high_premarket": lambda look: look.of_session("pre").high,
    "low_premarket": lambda look: look.of_session("pre").low,
    "volume_premarket": lambda look: look.of_session("pre").volume,
    "change_pct_day": lambda look: pct(look.stock.price, look.close_prev()),
    "change_day": lambda look: look.stock.price - look.close_prev(),
    "gap_pct": lambda look: pct(look.of_session("regular").first, look.close_prev()),
    "gap": lambda look: look.of_session("regular").first - look.close_prev(),
    "change_from_open_pct": lambda look: pct(look.stock.price, look.of_session("regular").first),
    "change_from_open": lambda look: look.stock.price - look.of_session("regular").first,
    "rsi_14_1m": lambda look: look.candles.rsi(),
    **{f"ema_{n}_1m": _ema(n) for n in _EMAS},
    **{name: of for window, minutes in WINDOWS.items() for name, of in _window(window, minutes).items()},
}


def closed_candle(name: str, back: int) -> Callable[[Look], float]:
    """Of the so many-th closed candle before the running one."""
    part = name.removesuffix("_1m")

    def of(look: Look) -> float:
        closed = look.candles.closed
        return float(getattr(closed[-back], part)) if len(closed) >= back else NAN

    return of
