"""The synthetic market in motion: prices, activity, news, halts and auctions of a made-up day, step by step.

Owns the state of the market and the draws that move it. Each step of event time has its own counter-based random
stream, keyed by the seed and the step's start, so the rows depend on the parameters alone. It never reads a clock,
never cuts batches and never writes files.
"""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tapewatch.engine.columns import F64, I64, MINUTE_NS, SECOND_NS, Kind
from tapewatch.feeds.synthetic_listing import make_alias, make_listing, on_grid
from tapewatch.feeds.synthetic_prints import NO_ROWS, Printer, Rows, join_rows

FOREVER_NS = 1 << 62
HALT_NS = 5 * MINUTE_NS
REGULAR_NS = 390 * MINUTE_NS
"""An ordinary regular session; volatility and event rates are per this much of it."""
_MARKET_SIGMA = 0.008
"""Standard deviation of the market's log return over one regular session."""
_REFERENCE_NS = 200 * SECOND_NS
"""Memory of the reference price that halts are measured against; about the mean of five minutes."""
_FILLS = np.array([1] * 200 + [2] * 30 + [3] * 12 + [4] * 6 + [5] * 3 + [6, 7, 8, 9, 12])
"""Prints that one order makes, by eight random bits: most make one, a sweep makes several at nearly one instant."""
_MEAN_FILLS = float(_FILLS.mean())
_LOWEST, _HIGHEST = math.log(0.02), math.log(5000.0)
"""Log prices beyond which no stock goes."""
_NO_AUCTION: tuple[I64, I64, tuple[str, str]] = (np.zeros(0, np.int64), np.zeros(0, np.int64), ("O", "Q"))
_STEPS_NS = tuple(int(s * SECOND_NS) for s in (0.1, 0.2, 0.5, 1.0, 2.0, 5.0))
_TICKS_PER_STEP = 2000
_ID_NS = 250
"""Trade ids count quarter microseconds of event time, so a restarted feed never uses an id twice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TradingDay:
    """One day's sessions in nanoseconds since the epoch, UTC: pre-market, regular, post-market."""

    pre_ns: int
    open_ns: int
    close_ns: int
    post_ns: int
    """End of the post-market."""

    def __post_init__(self) -> None:
        if not self.pre_ns <= self.open_ns < self.close_ns <= self.post_ns:
            raise ValueError("a trading day's instants must ascend")


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Everything that arrives in [start_ns, end_ns), by arrival. `start_ns` differs from the last `end_ns` only where a
    new day begins.
    """

    start_ns: int
    end_ns: int
    rows: Rows


class DayShape:
    """How trades and volatility are spread over a day, as running totals in regular sessions of ordinary length."""

    def __init__(self, day: TradingDay | None, *, shaped: bool) -> None:
        self._day = day if shaped else None
        if self._day is None:
            return
        knots, trades, variance = [], [], []
        length = (self._day.close_ns - self._day.open_ns) / REGULAR_NS
        for start, end, is_regular, weights in (
            (self._day.pre_ns, self._day.open_ns, False, (0.04, 0.05)),
            (self._day.open_ns, self._day.close_ns, True, (1.0, 1.0)),
            (self._day.close_ns, self._day.post_ns, False, (0.03, 0.04)),
        ):
            at = np.linspace(0.0, 1.0, 2 + (end - start) // (5 * SECOND_NS))
            mid = (at[1:] + at[:-1]) / 2
            if is_regular:
                density = 0.55 + 4.5 * np.exp(-mid / 0.0015) + 1.8 * np.exp(-mid / 0.02) + 0.9 * np.exp(-mid / 0.13)
                density += 0.8 * np.exp((mid - 1) / 0.09) + 2.5 * np.exp((mid - 1) / 0.006)
            elif start == self._day.pre_ns:
                density = 0.1 + mid**3
            else:
                density = 0.12 + 3 * np.exp(-mid / 0.02) + np.exp(-mid / 0.15)
            density /= density.sum()
            knots.append(start + at[:-1] * (end - start))
            trades.append(density * weights[0] * length)
            variance.append((0.5 * density + 0.5 / len(density)) * weights[1] * length)
        self._knots = np.append(np.concatenate(knots), self._day.post_ns)
        self._trades = np.append(0.0, np.cumsum(np.concatenate(trades)))
        self._variance = np.append(0.0, np.cumsum(np.concatenate(variance)))

    def trades(self, start_ns: int, end_ns: int) -> float:
        """Share of a regular session's trades expected in the interval."""
        return self._between(start_ns, end_ns, self._trades if self._day else None)

    def variance(self, start_ns: int, end_ns: int) -> float:
        """Share of a regular session's variance in the interval."""
        return self._between(start_ns, end_ns, self._variance if self._day else None)

    def _between(self, start_ns: int, end_ns: int, totals: F64 | None) -> float:
        if totals is None:
            return (end_ns - start_ns) / REGULAR_NS
        start, end = np.interp((start_ns, end_ns), self._knots, totals)
        return float(end - start)


class SyntheticMarket:
    """A market that `play` moves forward. One object plays once."""

    def __init__(self, *, seed: int, symbols: int, ticks_per_s: float, shaped: bool) -> None:
        """`ticks_per_s` is the mean over a regular session when `shaped`, and holds all day long when not."""
        if symbols < 1 or not 0 < ticks_per_s <= 500_000:
            raise ValueError("a market needs a symbol, and between 0 and 500,000 ticks a second")
        self.listing = make_listing(seed=seed, symbols=symbols)
        self._printer = Printer(self.listing, seed=seed)
        self._key = np.random.SeedSequence([seed, 0xDA1]).generate_state(2, np.uint64)
        self._shaped = shaped
        self._per_session = ticks_per_s * (REGULAR_NS / SECOND_NS)
        self._step_ns = next((s for s in _STEPS_NS if ticks_per_s * s >= _TICKS_PER_STEP * SECOND_NS), _STEPS_NS[-1])
        self._regular = make_alias(self.listing.share)
        # Outside the regular session trading crowds into fewer names.
        self._extended = make_alias(self.listing.share**1.3)
        # News comes to busy stocks more often, but not in proportion; it draws a crowd to a quiet one and hardly more
        # than the usual one to the busiest.
        self._newsworthy = make_alias(np.sqrt(self.listing.share))
        relative = self.listing.share * symbols
        self._crowd = (relative / (1 + relative / 10) + 0.3) / symbols
        self._market = 0.0
        self._variance = 0.0
        self._log_price = np.log(self.listing.price)
        self._close = self.listing.price
        self._seen_ns = np.zeros(symbols, np.int64)
        self._seen_market = np.zeros(symbols)
        self._seen_variance = np.zeros(symbols)
        self._reference = self._log_price.copy()
        self._pending = np.zeros(symbols)  # log return still to come from a burst or from news
        self._pending_tau_ns = np.full(symbols, 60.0 * SECOND_NS)
        self._halted = np.zeros(symbols, np.bool_)
        self._to_halt = np.zeros(0, np.int64)
        self._resumes: deque[tuple[int, I64]] = deque()
        self._hot = np.zeros(0, np.int64)
        self._hot_times = np.zeros(0)
        self._hot_tau_ns = np.zeros(0)
        self._auction = _NO_AUCTION
        self._pool = NO_ROWS  # rows on their way: late prints and cancels
        self._price_from = np.zeros(symbols)
        self._price_to = np.zeros(symbols)
        self._marked = np.zeros(symbols, np.bool_)
        self._day: TradingDay | None = None
        self._end_ns = FOREVER_NS

    def play(self, days: Sequence[TradingDay], *, start_ns: int, end_ns: int = FOREVER_NS) -> Iterator[Step]:
        """Steps from `start_ns` to the end of the last day or `end_ns`; without days, one regular session for ever."""
        if not days:
            yield from self._play_day(None, start_ns, end_ns)
        for day in days:
            if day.post_ns > start_ns and day.pre_ns < end_ns:
                yield from self._play_day(day, max(start_ns, day.pre_ns), min(end_ns, day.post_ns))

    def _play_day(self, day: TradingDay | None, start_ns: int, end_ns: int) -> Iterator[Step]:
        self._day, self._end_ns = day, end_ns
        self._shape = DayShape(day, shaped=self._shaped)
        edges = [day.open_ns, day.close_ns] if day else []
        parts = [self._begin_day(start_ns)]
        at = start_ns
        while at < end_ns:
            # The grid of steps is absolute; session boundaries always begin a step of their own.
            until = min(edge for edge in (*edges, end_ns, (at // self._step_ns + 1) * self._step_ns) if edge > at)
            yield Step(start_ns=at, end_ns=until, rows=self._step(at, until, parts))
            parts, at = [], until

    # -- what happens to whole days ------------------------------------------------------------------------------

    def _begin_day(self, at: int) -> Rows:
        """Overnight gaps; returns the CLOSE_PREV rows."""
        listing, n = self.listing, len(self.listing.symbols)
        rng = self._rng(at, 1)
        self._market += _MARKET_SIGMA * 0.5 * rng.standard_normal()
        gap = 0.45 * listing.sigma * rng.standard_normal(n) + listing.beta * (self._market - self._seen_market)
        surprised = np.flatnonzero(rng.random(n) < 0.015)
        gap[surprised] += rng.choice([-1.0, 1.0], len(surprised)) * (0.03 + rng.exponential(0.05, len(surprised)))
        self._log_price = np.log(self._close) + gap.clip(-0.6, 0.6)
        self._seen_ns[:] = at
        self._seen_market[:] = self._market
        self._seen_variance[:] = self._variance
        self._reference = self._log_price.copy()
        self._pending[:] = 0.0
        self._halted[:] = False
        self._to_halt = self._to_halt[:0]
        self._resumes.clear()
        self._hot = surprised
        self._hot_times = rng.uniform(8, 25, len(surprised))
        self._hot_tau_ns = np.full(len(surprised), 90.0 * MINUTE_NS)
        self._auction = _NO_AUCTION
        return self._printer.facts(np.arange(n), Kind.CLOSE_PREV, at, price=self._close)

    def _call_auction(self, at: int, rng: np.random.Generator, *, is_open: bool) -> None:
        """Schedule the listing markets' opening or closing prints; the thinnest stocks have none."""
        listing = self.listing
        expected = listing.share * self._per_session
        symbol = np.flatnonzero(rng.random(len(expected)) < 1 - np.exp(-expected / 4))
        # Nasdaq crosses at once, the floor stock by stock.
        mean_s = np.where(listing.tape_index[symbol] == 0, 6.0, 0.7) * (1.0 if is_open else 0.5)
        delay_s = 0.05 + (rng.standard_exponential(len(symbol)) * mean_s).clip(0.0, 110.0)
        order = np.argsort(delay_s)
        ts = at + (delay_s[order] * SECOND_NS).astype(np.int64)
        self._auction = (ts, symbol[order], ("O", "Q") if is_open else ("6", "M"))

    def _end_regular(self, at: int, rng: np.random.Generator) -> None:
        """Fix everybody's close, traded or not."""
        everybody = np.flatnonzero(~self._halted)
        self._advance(everybody, at, rng)
        self._close = on_grid(np.exp(self._log_price))

    # -- what happens within a step ------------------------------------------------------------------------------

    def _step(self, start: int, end: int, parts: list[Rows]) -> Rows:
        rng = self._rng(start, 0)
        day = self._day
        is_regular = day is None or day.open_ns <= start < day.close_ns
        if day is not None and start == day.open_ns:
            self._advance(np.arange(len(self._marked)), start, rng)
            self._reference = self._log_price.copy()
            self._call_auction(start, rng, is_open=True)
        if day is not None and start == day.close_ns:
            self._end_regular(start, rng)
            self._call_auction(start, rng, is_open=False)
        variance = self._shape.variance(start, end)
        self._variance += variance
        self._market += _MARKET_SIGMA * variance**0.5 * rng.standard_normal()
        reopened = self._turn_halts(start, parts)
        self._make_news(start, variance, rng)

        called_ts, called, letters = self._call_due(end)
        taken = 2 * len(called) + len(reopened)
        expected = max(self._per_session * self._shape.trades(start, end) - taken, 0.0) / _MEAN_FILLS
        # Ids leave room for this many.
        orders = int(min(rng.poisson(expected), (end - start) // (2 * _ID_NS)))
        symbol, ts = self._draw_orders(orders, start, end, rng, is_regular=is_regular)
        active = self._move_active((symbol, called, reopened), start, end, rng)
        self._reference[reopened] = self._log_price[reopened]

        next_id = start // _ID_NS
        if len(reopened):
            price, size = self._price_to[reopened], self._auction_size(reopened, 0.002, rng)
            times = np.full(len(reopened), start)
            parts.append(self._printer.special(reopened, times, price, size, "5", first_id=next_id))
            next_id += len(reopened)
        if len(called):
            is_open = letters[0] == "O"
            price = self._price_to[called] if is_open else self._close[called]
            size = self._auction_size(called, 0.01 if is_open else 0.08, rng)
            # The official price follows the auction's print at once.
            for letter, times in zip(letters, (called_ts, np.minimum(called_ts + 180_000, end - 1)), strict=True):
                parts.append(self._printer.special(called, times, price, size, letter, first_id=next_id))
                next_id += len(called)
        if len(symbol):
            part = (ts - start) / (end - start)
            price = self._price_from[symbol] * (1 - part) + self._price_to[symbol] * part
            last = self._end_ns - 1
            rows = self._printer.ordinary(
                symbol, ts, price, first_id=next_id, is_regular=is_regular, last_arrival_ns=last, rng=rng
            )
            parts.append(rows)
            if rows.busted.any():
                parts.append(self._printer.cancels(rows, last_arrival_ns=last, rng=rng))
        if is_regular and (day is None or start < day.close_ns - 10 * MINUTE_NS):
            # No halt may reach into the closing auction.
            moved = np.abs(self._log_price[active] - self._reference[active])
            self._to_halt = active[moved > self.listing.band[active]]
        return self._arrive(parts, end)

    def _turn_halts(self, start: int, parts: list[Rows]) -> I64:
        """Begin and end halts at the start of a step; adds their rows and returns who reopens."""
        if len(self._to_halt):
            self._halted[self._to_halt] = True
            self._resumes.append((start + HALT_NS, self._to_halt))
            parts.append(self._printer.facts(self._to_halt, Kind.HALT, start))
            self._to_halt = self._to_halt[:0]
        back = [self._to_halt]
        while self._resumes and self._resumes[0][0] <= start:
            back.append(self._resumes.popleft()[1])
        reopened = np.concatenate(back)
        if len(reopened):
            self._halted[reopened] = False
            parts.append(self._printer.facts(reopened, Kind.RESUME, start))
        return reopened

    def _call_due(self, end: int) -> tuple[I64, I64, tuple[str, str]]:
        """Times, symbols and conditions of the auctions held before `end`; a halted symbol's is left out."""
        ts, symbol, letters = self._auction
        due = int(np.searchsorted(ts, end))
        self._auction = (ts[due:], symbol[due:], letters)
        free = ~self._halted[symbol[:due]]
        return ts[:due][free], symbol[:due][free], letters

    def _make_news(self, start: int, variance: float, rng: np.random.Generator) -> None:
        """Begin news jumps and momentum bursts, with the attention they get; let older attention fade."""
        n = len(self.listing.symbols)
        self._hot_times = self._hot_times * np.exp(-self._step_ns / self._hot_tau_ns)
        stays = self._hot_times > 0.3
        if not stays.all():
            self._hot, self._hot_times = self._hot[stays], self._hot_times[stays]
            self._hot_tau_ns = self._hot_tau_ns[stays]
        news, bursts = (int(count) for count in rng.poisson((0.03 * n * variance, 0.4 * n * variance)))
        if news + bursts == 0:
            return
        count = news + bursts
        drawn = self._newsworthy.draw(rng.integers(0, 1 << 64, count, np.uint64))
        symbol, first = np.unique(drawn, return_index=True)
        is_news = first < news
        self._advance(symbol, start, rng)
        strength = np.where(is_news, 2.0 + rng.exponential(2.5, len(symbol)), 0.3 + rng.exponential(0.35, len(symbol)))
        move = strength * self.listing.sigma[symbol]
        move = np.where(is_news, np.maximum(move, 0.025), move).clip(0, 0.35) * rng.choice([-1.0, 1.0], len(symbol))
        at_once = np.where(is_news, 0.35, 0.0) * move
        self._log_price[symbol] += at_once
        self._pending[symbol] += move - at_once
        self._pending_tau_ns[symbol] = (
            np.where(is_news, rng.uniform(20, 120, len(symbol)), rng.uniform(45, 240, len(symbol))) * SECOND_NS
        )
        times = np.where(is_news, rng.uniform(10, 30, len(symbol)), rng.uniform(2, 6, len(symbol)))
        tau_ns = np.where(is_news, rng.uniform(4, 15, len(symbol)), rng.uniform(1, 4, len(symbol))) * MINUTE_NS
        self._hot = np.concatenate((self._hot, symbol))
        self._hot_times = np.concatenate((self._hot_times, times))
        self._hot_tau_ns = np.concatenate((self._hot_tau_ns, tau_ns))

    def _draw_orders(
        self, orders: int, start: int, end: int, rng: np.random.Generator, *, is_regular: bool
    ) -> tuple[I64, I64]:
        """Symbols and ascending times of the prints that so many orders make."""
        symbol = (self._regular if is_regular else self._extended).draw(rng.integers(0, 1 << 64, orders, np.uint64))
        if len(self._hot):
            extra = self._hot_times * self._crowd[self._hot] * ~self._halted[self._hot]
            total = np.cumsum(extra)
            is_extra = np.flatnonzero(rng.random(orders, np.float32) < total[-1] / (1 + total[-1]))
            picked = np.searchsorted(total, rng.random(len(is_extra)) * total[-1], side="right")
            symbol[is_extra] = self._hot[np.minimum(picked, len(total) - 1)]
        gaps = np.cumsum(rng.standard_exponential(orders + 1))
        ts = start + (gaps[:-1] * ((end - start) / gaps[-1])).astype(np.int64)
        if self._resumes:
            open_now = ~self._halted[symbol]
            symbol, ts = symbol[open_now], ts[open_now]
        fills = _FILLS[np.frombuffer(rng.bytes(len(symbol)), np.uint8)]
        last = np.cumsum(fills)
        nth = np.arange(last[-1] if len(last) else 0) - np.repeat(last - fills, fills)
        # The prints of one order are microseconds apart; the tape's times never go back.
        ts = np.maximum.accumulate(np.repeat(ts, fills) + 17_391 * nth)
        return np.repeat(symbol, fills), np.minimum(ts, end - 1)

    def _move_active(self, groups: tuple[I64, ...], start: int, end: int, rng: np.random.Generator) -> I64:
        """Move the stocks that print in this step, and only these: the others catch up when they next print."""
        self._marked[:] = False
        for group in groups:
            self._marked[group] = True
        active = np.flatnonzero(self._marked)
        before = np.exp(self._log_price[active])
        is_stale = self._seen_ns[active] < start
        self._advance(active, end, rng)
        after = np.exp(self._log_price[active])
        self._price_to[active] = after
        # A stock that was last seen long ago is already where it has drifted to.
        self._price_from[active] = np.where(is_stale, after, before)
        return active

    def _advance(self, who: I64, at: int, rng: np.random.Generator) -> None:
        """Bring these stocks' prices up to date: market, own noise, and what is pending from bursts and news."""
        listing = self.listing
        elapsed_ns = at - self._seen_ns[who]
        old, pending, sigma = self._log_price[who], self._pending[who], listing.sigma[who]
        self._reference[who] += (old - self._reference[who]) * -np.expm1(-elapsed_ns / _REFERENCE_NS)
        kept = pending * np.exp(-elapsed_ns / self._pending_tau_ns[who])
        # A stock in motion is also a noisier one.
        spread = np.sqrt((self._variance - self._seen_variance[who]) * sigma * (sigma + 4 * np.abs(pending)))
        new = old + pending - kept + spread * rng.standard_normal(len(who), np.float32)
        new += listing.beta[who] * (self._market - self._seen_market[who])
        self._log_price[who] = new.clip(_LOWEST, _HIGHEST)
        self._pending[who] = kept
        self._seen_ns[who], self._seen_market[who], self._seen_variance[who] = at, self._market, self._variance

    def _auction_size(self, symbol: I64, part: float, rng: np.random.Generator) -> F64:
        """Round lots, about `part` of a session's volume."""
        lots = self._per_session * self.listing.share[symbol] * part * np.exp(0.6 * rng.standard_normal(len(symbol)))
        return np.asarray(100.0 * np.ceil(lots))

    def _arrive(self, parts: list[Rows], end: int) -> Rows:
        """Of all rows so far, those that arrive before `end`, by arrival; the others wait."""
        is_due = self._pool.arrival_ns < end
        if is_due.any():
            parts.append(self._pool.take(is_due))
            self._pool = self._pool.take(~is_due)
        if not parts:
            return NO_ROWS
        rows = join_rows(parts)
        order = np.argsort(rows.arrival_ns, kind="stable")
        due = int(np.searchsorted(rows.arrival_ns, end, sorter=order))
        if due < len(order):
            self._pool = join_rows((self._pool, rows.take(order[due:])))
        return rows.take(order[:due])

    def _rng(self, at: int, purpose: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=self._key, counter=[0, 0, purpose, at]))
