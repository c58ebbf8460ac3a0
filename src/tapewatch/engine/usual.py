"""The usual volume at a time of day: what a symbol had traded by now, on the days before.

Owns the mean volume since 04:00, and since 09:30, at each quarter hour. Whoever keeps the day's volumes hands them over
at each quarter hour, and says at the end what sort of day it was. Each thing that "relative volume at the same time"
leaves open is a parameter, or decided here:

- **How many days**: `days`, 20. The first so many count alike; from then on each new one weighs 1/`days` and the old
  ones fade (a day counts half of what it did after 14 more). A mean over exactly the last 20 days would need all of
  them: 51 MB for ten thousand symbols, against 6 MB here. With fewer than `fewest` days it is unknown.
- **Half days** do not count (`half_days`): from 13:00 to 16:00 there is no trading on them. On a half day, the usual is
  that of full days.
- **Halted days** of a symbol do not count (`halted_days`).
- **Pre-market** is in the volume since 04:00, and not in that since 09:30. What lies within the regular session is
  compared with the latter, which more days know.
- **Gaps**: a day counts since 04:00 if the tape covers it whole from 04:00 to 20:00, and since 09:30 if it does so
  from 09:30 to 16:00.
- **New symbols** count from the first day on which they trade; from then on a day without a trade counts as zero.
- **Between quarter hours** volume grows evenly.

Volumes are those at the instant of the mark: a print that comes later counts from the next quarter hour on, and one
that is cancelled no longer. Shares are those of the day that is counted in; after a split, see `rescale`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.bars import NEVER_NS
from tapewatch.engine.columns import F64, I32, I64, MINUTE_NS, Bool
from tapewatch.engine.frozen import Carried
from tapewatch.engine.symbols import Index

F32 = NDArray[np.float32]

QUARTER_NS = 15 * MINUTE_NS
QUARTERS = 64
"""From 04:00 to 20:00."""
OPEN_QUARTER, CLOSE_QUARTER = 22, 48
"""09:30 and 16:00, in quarters since 04:00."""
USUAL_DAYS = 20
FEWEST_DAYS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownVolume:
    """What is known of n symbols: mean volumes at the ends of the quarters, and of how many days they are."""

    day: F32
    """Shape (64, n): since 04:00."""
    day_count: I32
    """Shape (n,)."""
    regular: F32
    """Shape (26, n): since 09:30."""
    regular_count: I32


class _Curve:
    """The mean volume since the quarter `first`, at the end of each quarter before `last`."""

    def __init__(self, first: int, last: int, capacity: int) -> None:
        self.first, self.last = first, last
        self.mean: F32 = np.zeros((last - first, capacity), np.float32)
        self.count: I32 = np.zeros(capacity, np.int32)

    def add(self, volume: F32, *, days: int, counts: Bool) -> None:
        """One more day: `volume` since 04:00, shape (64, capacity)."""
        base = volume[self.first - 1] if self.first else np.zeros_like(volume[0])
        total = volume[self.last - 1] - base
        known = np.isfinite(base) & np.isfinite(volume[self.first : self.last]).all(axis=0)
        on = np.flatnonzero(counts & known & ((total > 0) | (self.count > 0)))
        self.count[on] += 1
        weight = (1.0 / np.minimum(self.count[on], days)).astype(np.float32)
        for row, mean in enumerate(self.mean):
            mean[on] += (volume[self.first + row, on] - base[on] - mean[on]) * weight

    def at(self, quarters: float) -> F64:
        """So many quarters after 04:00; not before `first`."""
        place = min(max(quarters - self.first, 0.0), float(len(self.mean)))
        whole = int(place)
        before: F64 = self.mean[whole - 1].astype(np.float64) if whole else np.zeros(len(self.count))
        if place > whole:
            before += (place - whole) * (self.mean[whole] - before)
        return before


class UsualVolume:
    """Arrays are indexed by the caller's symbol indices and have shape (capacity,). It takes 624 bytes a symbol."""

    def __init__(
        self,
        capacity: int,
        *,
        days: int = USUAL_DAYS,
        fewest: int = FEWEST_DAYS,
        half_days: bool = False,
        halted_days: bool = False,
    ) -> None:
        self.capacity = capacity
        self._days, self._fewest = days, fewest
        self._half_days, self._halted_days = half_days, halted_days
        self._day = _Curve(0, QUARTERS, capacity)
        self._regular = _Curve(OPEN_QUARTER, CLOSE_QUARTER, capacity)
        self._start_ns: int | None = None
        self.next_mark_ns = NEVER_NS
        """The quarter hour at which the volumes are wanted next."""
        self._today: F32 = np.full((QUARTERS, capacity), np.nan, np.float32)
        self._marked = np.zeros(QUARTERS, np.bool_)

    def resize(self, capacity: int) -> None:
        """Room for more symbols, which have not traded yet."""
        for curve in (self._day, self._regular):
            curve.mean = _widened(curve.mean, capacity)
            curve.count = np.concatenate([curve.count, np.zeros(capacity - self.capacity, np.int32)])
        today = _widened(self._today, capacity)
        today[~self._marked, self.capacity :] = np.nan
        self._today, self.capacity = today, capacity

    # -- the running day ----------------------------------------------------------------------------------------------

    def begin_day(self, start_ns: int, *, since_ns: int = 0) -> None:
        """04:00 of a trading day, of which marks can be made from `since_ns` on. A day that was not ended is
        forgotten.
        """
        self._start_ns = start_ns
        quarter = max(since_ns - start_ns, 0) // QUARTER_NS + 1
        self.next_mark_ns = start_ns + quarter * QUARTER_NS if quarter <= QUARTERS else NEVER_NS
        self._today.fill(np.nan)
        self._marked.fill(False)

    def mark(self, now_ns: int, volume: F64) -> None:
        """The volumes since 04:00 at one of the day's 64 quarter hours from 04:15 to 20:00."""
        if self._start_ns is None:
            raise ValueError("no day has begun")
        quarter, rest = divmod(now_ns - self._start_ns, QUARTER_NS)
        if rest or not 1 <= quarter <= QUARTERS:
            raise ValueError(f"{now_ns} is not a quarter hour of the day that began at {self._start_ns}")
        self._today[quarter - 1] = volume
        self._marked[quarter - 1] = True
        self.next_mark_ns = now_ns + QUARTER_NS if quarter < QUARTERS else NEVER_NS

    def end_day(self, *, full: bool, gaps: Iterable[tuple[int, int]] = (), halted: Bool | None = None) -> None:
        """Count the day in, as far as it counts. `full` says that it was not cut short; `gaps` are stretches
        [start_ns, end_ns) of which trades may be missing, that before the tape began among them; `halted` are the
        symbols that were halted. What was not marked is not known.
        """
        if self._start_ns is not None:
            self._add(self._today, self._start_ns, full=full, gaps=gaps, halted=halted)
        self._start_ns = None

    # -- what was before the tape -------------------------------------------------------------------------------------

    def learn_day(
        self,
        symbol: Index,
        ts_ns: I64,
        volume: F64,
        *,
        start_ns: int,
        full: bool,
        gaps: Iterable[tuple[int, int]] = (),
        halted: Bool | None = None,
    ) -> None:
        """Count in a past day from its minute bars in any order: symbol, start and volume of each, shape (n,). The
        running day is not touched.
        """
        quarter = (ts_ns - start_ns) // QUARTER_NS
        inside = (quarter >= 0) & (quarter < QUARTERS)
        cell = quarter[inside] * self.capacity + symbol[inside]
        traded = np.bincount(cell, weights=volume[inside], minlength=QUARTERS * self.capacity)
        since = np.cumsum(traded.reshape(QUARTERS, self.capacity), axis=0).astype(np.float32)
        self._add(since, start_ns, full=full, gaps=gaps, halted=halted)

    def learn(self, symbol: Index, known: KnownVolume) -> None:
        """Take what another one knew of these symbols, in place of what is known here."""
        for curve, mean, count in (
            (self._day, known.day, known.day_count),
            (self._regular, known.regular, known.regular_count),
        ):
            curve.mean[:, symbol] = mean
            curve.count[symbol] = count

    def known(self, symbol: Index) -> KnownVolume:
        """What is known of these symbols, for `learn`."""
        return KnownVolume(
            day=self._day.mean[:, symbol],
            day_count=self._day.count[symbol],
            regular=self._regular.mean[:, symbol],
            regular_count=self._regular.count[symbol],
        )

    def rescale(self, symbol: Index, shares: F64) -> None:
        """These symbols were split into so many new shares for one old, shape (n,)."""
        for curve in (self._day, self._regular):
            curve.mean[:, symbol] *= shares.astype(np.float32)

    # -- questions ----------------------------------------------------------------------------------------------------

    def expected(self, now_ns: int, *, regular: bool = False) -> F64:
        """The usual volume of the running day up to this instant, since 04:00 or, with `regular`, since 09:30; after
        20:00, or 16:00, that of the whole day. Unknown before.
        """
        curve = self._regular if regular else self._day
        quarters = self._quarters(now_ns)
        if quarters < curve.first:
            return np.full(self.capacity, np.nan)
        return np.where(curve.count >= self._fewest, curve.at(quarters), np.nan)

    def expected_between(self, start_ns: int, end_ns: int) -> F64:
        """The usual volume between two instants of the running day; unknown if it had not begun by the first."""
        first, last = self._quarters(start_ns), self._quarters(end_ns)
        if first < 0:
            return np.full(self.capacity, np.nan)
        within = first >= OPEN_QUARTER and last <= CLOSE_QUARTER
        curve = self._regular if within else self._day
        return np.where(curve.count >= self._fewest, curve.at(last) - curve.at(first), np.nan)

    def _quarters(self, now_ns: int) -> float:
        """Since 04:00; negative while no day runs."""
        return -1.0 if self._start_ns is None else (now_ns - self._start_ns) / QUARTER_NS

    def _add(
        self, volume: F32, start_ns: int, *, full: bool, gaps: Iterable[tuple[int, int]], halted: Bool | None
    ) -> None:
        if not (full or self._half_days):
            return
        missing = list(gaps)
        counts = np.ones(self.capacity, np.bool_) if halted is None or self._halted_days else ~halted
        for curve in (self._day, self._regular):
            first_ns, last_ns = start_ns + curve.first * QUARTER_NS, start_ns + curve.last * QUARTER_NS
            if not any(since < last_ns and until > first_ns for since, until in missing):
                curve.add(volume, days=self._days, counts=counts)


def _widened(values: F32, capacity: int) -> F32:
    wide: F32 = np.zeros((len(values), capacity), np.float32)
    wide[:, : values.shape[1]] = values
    return wide


USUAL_CARRIED = (Carried(UsualVolume), Carried(_Curve))
