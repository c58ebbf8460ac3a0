"""reference: who is listed, splits and daily history into the store, and what a day needs of them onto the tape.

At the start and at 03:30 New York it brings the store up to date from its source. Then it announces the day's `Facts`,
which wait on the tape for 04:00, and after that instant the previous closes as rows. Both are in the shares of the day:
splits are applied whose ex-date has come. What cannot be known is left out, and stays unknown on the board: without the
splits of this refresh or the previous day's history there is no previous close.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from typing import TypeAlias

import numpy as np
import structlog

from tapewatch.documents import Security, day_number, day_of_number
from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import I32, LABELS, MINUTE_NS, SECOND_NS, Batch, Bool, Facts, Kind, make_batch
from tapewatch.engine.daily import DAILY_FACTS, HISTORY_DAYS, daily_facts
from tapewatch.engine.daily_metrics import DAILY_METRICS, MARKET
from tapewatch.errors import FeedRefused, Invalid, NotFound, Unavailable
from tapewatch.patience import patiently, pause
from tapewatch.ports import Clock, Reference, Store
from tapewatch.telemetry import ERRORS_TOTAL

Announce: TypeAlias = Callable[[Batch | Facts], Awaitable[None]]

REFRESH_BEFORE_NS = 30 * MINUTE_NS
ANNOUNCE_AFTER_NS = 5 * SECOND_NS
"""Rows are announced when the tape, too, has certainly begun its day."""
FIRST_WAIT_S = 60.0
LONGEST_WAIT_S = 900.0
_LONGEST_SLEEP_S = 600.0
_DAY_NS = 86_400 * SECOND_NS
_SPAN_DAYS = 20
"""Days of history asked for at a time."""
_AGAIN_DAYS = 2
"""The newest days are fetched again: sources correct them."""
_SYMBOLS_AT_ONCE = 32
"""Of `HISTORY_DAYS` each: ten thousand rows, so that the event loop gets its turn."""
_DETAILS_AT_ONCE = 100
_FEWEST_SHARE = 0.5
_OVER_THE_COUNTER = "O"
_ALWAYS = (date(1990, 1, 1), date(2099, 12, 31))

log = structlog.get_logger("tapewatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refreshed:
    """What one refresh brought."""

    securities: int
    delisted: int
    splits: int
    days: int
    bars: int
    details: int


class TradingDates:
    """The calendar as dates: index of a day -> its number, and which were not cut short."""

    def __init__(self, days: TradingDays) -> None:
        self.days = days
        # At 09:30 in New York it is the same date in UTC.
        self.numbers: I32 = (days.open_ns // _DAY_NS).astype(np.int32)
        length_ns = days.close_ns - days.open_ns
        self.full: Bool = length_ns == length_ns.max(initial=0)

    def history_before(self, day: int) -> slice:
        """The trading days that the facts of this one are made of."""
        return slice(int(np.searchsorted(self.numbers, self.numbers[day] - HISTORY_DAYS)), day)


async def refresh(
    source: Reference,
    store: Store,
    *,
    dates: TradingDates,
    day: int,
    details: int = 0,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> Refreshed:
    """Bring the store up to date for trading day `day`; what was saved stays when a later step fails. `Unavailable`
    also when the source does not have the previous day yet.

    `details` bounds how many securities are asked for one by one. `on_progress` gets what, how many are done, of how
    many.
    """
    listed, delisted = await _refresh_securities(source, store)
    on_progress("securities", listed, listed)
    today = day_of_number(dates.numbers[day])
    splits = await source.splits(today - timedelta(HISTORY_DAYS), today)
    await store.save_splits(splits)
    on_progress("splits", len(splits), len(splits))
    securities = [security for security in await store.securities() if _is_followed(security)]
    symbols = [security.symbol for security in securities]
    wanted = await _missing_days(store, dates, day)
    bars = done = 0
    for span in _spans(wanted, dates):
        found = await source.daily_bars(symbols, span[0], span[-1])
        trading = {day_number(each) for each in span}
        for part in found.by_day():
            if int(part.day[0]) in trading:
                await store.save_daily_bars(part)
                bars += len(part)
        done += len(span)
        on_progress("days", done, len(wanted))
    detailed = await _refresh_details(source, store, securities, most=details, turn=int(dates.numbers[day]))
    if wanted and not await store.daily_days(start=wanted[-1]):
        raise Unavailable(f"{source.name} has no daily bars of {wanted[-1]} yet")
    return Refreshed(
        securities=listed, delisted=delisted, splits=len(splits), days=len(wanted), bars=bars, details=detailed
    )


async def load(
    source: Reference,
    store: Store,
    *,
    on_progress: Callable[[str, int, int], None] = lambda _what, _done, _total: None,
) -> Refreshed:
    """Everything that the source has, into the store, which keeps what the source does not speak of."""
    listed, _ = await _refresh_securities(source, store, is_whole=False)
    on_progress("securities", listed, listed)
    splits = await source.splits(*_ALWAYS)
    await store.save_splits(splits)
    on_progress("splits", len(splits), len(splits))
    bars = await source.daily_bars([], *_ALWAYS)
    days = len(np.unique(bars.day))
    for done, part in enumerate(bars.by_day(), start=1):
        await store.save_daily_bars(part)
        on_progress("days", done, days)
    return Refreshed(securities=listed, delisted=0, splits=len(splits), days=days, bars=len(bars), details=0)


async def _refresh_securities(source: Reference, store: Store, *, is_whole: bool = True) -> tuple[int, int]:
    """Listed now, and no longer. What the source does not say of a security stays as it was stored."""
    listed = await source.securities()
    if not listed:
        return 0, 0
    known = {security.symbol: security for security in await store.securities()}
    active = {symbol for symbol, security in known.items() if security.active}
    if not is_whole:
        active = set()
    if len(listed) < len(active) * _FEWEST_SHARE:
        raise Invalid(f"{source.name} securities", f"lists {len(listed)} where {len(active)} are known: not believed")
    gone = active - {security.symbol for security in listed}
    await store.save_securities(
        [_with_what_was_known(security, known.get(security.symbol)) for security in listed]
        + [known[symbol].model_copy(update={"active": False}) for symbol in sorted(gone)]
    )
    return len(listed), len(gone)


async def _missing_days(store: Store, dates: TradingDates, day: int) -> list[date]:
    """Trading days that facts are made of without history, and the newest ones."""
    needed = dates.numbers[dates.history_before(day)].tolist()
    if not needed:
        return []
    stored = {day_number(each) for each in await store.daily_days(start=day_of_number(needed[0]))}
    return [day_of_number(each) for each in needed if each not in stored or each in needed[-_AGAIN_DAYS:]]


def _spans(wanted: Sequence[date], dates: TradingDates) -> list[list[date]]:
    """Runs of trading days without one that is not wanted, the newest first: the previous close is worth most."""
    spans: list[list[date]] = []
    following = -1
    for each in reversed(wanted):
        place = int(np.searchsorted(dates.numbers, day_number(each)))
        if place + 1 != following or len(spans[-1]) >= _SPAN_DAYS:
            spans.append([])
        spans[-1].insert(0, each)
        following = place
    return spans


async def _refresh_details(
    source: Reference, store: Store, securities: Sequence[Security], *, most: int, turn: int
) -> int:
    """Those without details first; when all have them, each refresh takes its turn at others."""
    if most <= 0 or not securities:
        return 0
    bare = [security.symbol for security in securities if security.shares_outstanding is None]
    rest = [security.symbol for security in securities if security.shares_outstanding is not None]
    first = turn * most % max(1, len(rest))
    known = {security.symbol: security for security in securities}
    done = 0
    pending: list[Security] = []
    async for security in source.details([*bare, *rest[first:], *rest[:first]][:most]):
        pending.append(_with_what_was_known(security, known.get(security.symbol)))
        if len(pending) >= _DETAILS_AT_ONCE:
            await store.save_securities(pending)
            done, pending = done + len(pending), []
    await store.save_securities(pending)
    return done + len(pending)


def _with_what_was_known(security: Security, known: Security | None) -> Security:
    if known is None:
        return security
    return security.model_copy(update={name: getattr(known, name) for name, value in security if value is None})


def _is_followed(security: Security) -> bool:
    return security.active and not security.is_test and security.tape != _OVER_THE_COUNTER


async def day_facts(store: Store, *, dates: TradingDates, day: int) -> Facts:
    """`DAILY_FACTS` and `LABELS` of all securities that are followed, from what is stored, for trading day `day`."""
    history = dates.history_before(day)
    days, today = dates.numbers[history], int(dates.numbers[day])
    securities = [security for security in await store.securities() if _is_followed(security)]
    symbols = tuple(security.symbol for security in securities)
    start, end = day_of_number(today - HISTORY_DAYS), day_of_number(today - 1)
    splits = [split.spec() for split in await store.splits(start=start)]
    stored = np.array([day_number(each) for each in await store.daily_days(start=start)], np.int32)
    covered = np.isin(days, stored)
    market = await store.daily_bars([MARKET], start=start, end=end)
    values = np.full((len(DAILY_FACTS), len(symbols)), np.nan)
    for first in range(0, len(symbols), _SYMBOLS_AT_ONCE):
        some = slice(first, first + _SYMBOLS_AT_ONCE)
        bars = await store.daily_bars(symbols[some], start=start, end=end)
        values[:, some] = daily_facts(
            bars, splits=splits, today=today, days=days, full=dates.full[history], covered=covered, market=market
        )
    for row, (name, metric) in enumerate(DAILY_METRICS.items()):
        if metric.source == "listing":
            values[row] = [np.nan if (said := getattr(each, name)) is None else said for each in securities]
    return Facts(
        day_start_ns=int(dates.days.pre_ns[day]),
        symbols=symbols,
        names=DAILY_FACTS,
        values=values,
        labels={name: tuple(getattr(each, name) or "" for each in securities) for name in LABELS},
    )


def previous_closes(facts: Facts) -> Batch:
    """The closes that are known as rows of the day's first instant."""
    close = facts.values[facts.names.index("close_prev_day")]
    known = np.flatnonzero(np.isfinite(close))
    return make_batch(
        symbols=tuple(facts.symbols[i] for i in known.tolist()),
        symbol=np.arange(len(known)),
        kind=np.full(len(known), Kind.CLOSE_PREV),
        ts_ns=np.full(len(known), facts.day_start_ns),
        price=close[known],
    )


class ReferenceRole:
    """Runs until it is cancelled or the calendar ends. A source that is away is asked again; one that refuses, or makes
    no sense, is asked again on the next day. Without a source, what is stored is announced.
    """

    def __init__(
        self,
        *,
        source: Reference | None,
        store: Store,
        clock: Clock,
        days: TradingDays,
        announce: Announce,
        details: int = 0,
    ) -> None:
        self._source, self._store, self._clock, self._announce = source, store, clock, announce
        self._dates, self._details = TradingDates(days), details
        self.refreshed: Refreshed | None = None
        """What the newest refresh brought; None before the first, and after one that failed."""
        self.problem = ""
        """Why the newest refresh failed."""

    async def run(self) -> None:
        pre_ns = self._dates.days.pre_ns
        while True:
            now_ns = self._clock.now_ns()
            day = self._dates.days.at(now_ns).day
            if day >= len(pre_ns):
                return
            due_ns = int(pre_ns[day]) - REFRESH_BEFORE_NS
            fresh = await self._refresh(day)
            if now_ns >= due_ns:
                if fresh:
                    await self._announce_day(day)
                if day + 1 >= len(pre_ns):
                    return
                due_ns = int(pre_ns[day + 1]) - REFRESH_BEFORE_NS
            await self._sleep_until(due_ns)

    async def _announce_day(self, day: int) -> None:
        facts = await patiently(
            partial(day_facts, self._store, dates=self._dates, day=day), clock=self._clock, where="reference.facts"
        )
        await self._announce(facts)
        await self._sleep_until(facts.day_start_ns + ANNOUNCE_AFTER_NS)
        closes = previous_closes(facts)
        await self._announce(closes)
        log.info("previous closes", day=str(day_of_number(self._dates.numbers[day])), symbols=len(closes))

    async def _refresh(self, day: int) -> bool:
        if self._source is None:
            return True
        wait_s = FIRST_WAIT_S
        while True:
            try:
                self.refreshed = await refresh(
                    self._source,
                    self._store,
                    dates=self._dates,
                    day=day,
                    details=self._details,
                    on_progress=lambda what, done, total: log.info("reference data", what=what, done=done, of=total),
                )
            except Unavailable as error:
                self._tell(str(error))
            except (FeedRefused, Invalid, NotFound) as error:
                self._tell(str(error))
                return False
            else:
                self.problem = ""
                return True
            wait_s = await pause(self._clock, wait_s, longest_s=LONGEST_WAIT_S)
            if self._dates.days.at(self._clock.now_ns()).day != day:
                return False

    def _tell(self, problem: str) -> None:
        self.refreshed, self.problem = None, problem
        ERRORS_TOTAL.labels(where="reference.refresh").inc()
        log.warning("reference data is not up to date", why=problem)

    async def _sleep_until(self, due_ns: int) -> None:
        """In short pieces: the machine may sleep, or have its clock set."""
        while (left_ns := due_ns - self._clock.now_ns()) > 0:
            await self._clock.sleep(min(left_ns / SECOND_NS, _LONGEST_SLEEP_S))
