"""reference: a store brought up to date, splits applied on their day, and announcements at the right instant."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tapewatch.adapters.sql import SqlStore
from tapewatch.contracts.samples import make_security, make_split
from tapewatch.documents import Security, Split, day_number, day_of_number
from tapewatch.engine.calendar import TradingDays
from tapewatch.engine.columns import LABELS, SECOND_NS, Batch, Facts, Kind
from tapewatch.engine.daily import HISTORY_DAYS, DailyBars, make_daily_bars
from tapewatch.engine.daily_metrics import MARKET
from tapewatch.engine.symbols import partition_of
from tapewatch.errors import FeedRefused, Invalid, NotFound, Unavailable
from tapewatch.nyse import day_of, trading_days
from tapewatch.roles.ingest import Ingest
from tapewatch.roles.reference import ReferenceRole, TradingDates, day_facts, load, previous_closes, refresh

pytestmark = pytest.mark.anyio

TODAY = date(2025, 3, 4)
DATES = TradingDates(trading_days())
DAY = int(np.searchsorted(DATES.numbers, day_number(TODAY)))
PRE_NS = day_of("2025-03-04")[0]
HALF_HOUR_NS = 1_800 * SECOND_NS


class Almanac:
    """A source that says what the test gives it: every symbol closes at 10 plus the day's place in the year."""

    name = "almanac"

    def __init__(self, *symbols: str) -> None:
        self.listed = [make_security(symbol, market_cap=None, shares_outstanding=None) for symbol in symbols]
        self.known_splits: list[Split] = []
        self.until = date(2100, 1, 1)
        self.failures: list[Exception] = []
        self.asked: list[tuple[date, date]] = []
        self.detailed: list[str] = []

    async def securities(self) -> list[Security]:
        if self.failures:
            raise self.failures.pop(0)
        return list(self.listed)

    async def details(self, symbols: Sequence[str]) -> AsyncIterator[Security]:
        for symbol in symbols:
            self.detailed.append(symbol)
            yield make_security(symbol, market_cap=5e9, shares_outstanding=1e8)

    async def splits(self, start: date, end: date) -> list[Split]:
        return [split for split in self.known_splits if start <= split.ex_date <= end]

    async def daily_bars(self, symbols: Sequence[str], start: date, end: date) -> DailyBars:
        self.asked.append((start, end))
        days = [start + timedelta(n) for n in range((end - start).days + 1) if start + timedelta(n) < self.until]
        rows = [(symbol, day_number(day)) for day in days for symbol in symbols]
        close = np.array([close_of(day) for _, day in rows])
        return make_daily_bars(
            [symbol for symbol, _ in rows],
            [day for _, day in rows],
            open=close,
            high=close + 1,
            low=close - 1,
            close=close,
            volume=np.full(len(rows), 1_000.0),
        )

    async def close(self) -> None:
        pass


def close_of(day: int) -> float:
    return 10.0 + (day_number(TODAY) - day) / 10


class Quick:
    """A clock that is where its sleepers want it to be, until `stop_ns`."""

    def __init__(self, now_ns: int, stop_ns: int = 2**62) -> None:
        self.time_ns, self.stop_ns = now_ns, stop_ns

    def now_ns(self) -> int:
        return self.time_ns

    async def sleep(self, seconds: float) -> None:
        if self.time_ns + seconds * SECOND_NS > self.stop_ns:
            await asyncio.Event().wait()
        self.time_ns += max(1, round(seconds * SECOND_NS))
        await asyncio.sleep(0)


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqlStore]:
    store = SqlStore(tmp_path / "store.db")
    await store.upgrade()
    yield store
    await store.close()


async def update(source: Any, store: SqlStore, **options: Any) -> Any:
    return await refresh(source, store, dates=DATES, day=DAY, **options)


def fact(facts: Facts, name: str, symbol: str) -> float:
    return float(facts.values[facts.names.index(name), facts.symbols.index(symbol)])


async def test_refresh_fills_the_trading_days_that_facts_need_and_then_only_the_newest(store: SqlStore) -> None:
    source = Almanac("A", "B")
    first = await update(source, store)
    days = await store.daily_days()
    assert days == [day_of_number(number) for number in DATES.numbers[DATES.history_before(DAY)].tolist()]
    assert days[0] <= TODAY - timedelta(HISTORY_DAYS - 4)
    assert (first.securities, first.days, first.bars) == (2, len(days), 2 * len(days))
    assert max(end - start for start, end in source.asked) < timedelta(32)
    assert source.asked[0][1] == date(2025, 3, 3)
    source.asked.clear()
    again = await update(source, store)
    assert source.asked == [(date(2025, 2, 28), date(2025, 3, 3))]
    assert (again.days, again.bars) == (2, 4)


async def test_hole_in_the_history_is_filled_without_what_lies_around_it(store: SqlStore) -> None:
    source = Almanac("A")
    bars = await source.daily_bars(["A"], TODAY - timedelta(HISTORY_DAYS), date(2025, 3, 3))
    for part in bars.by_day():
        if int(part.day[0]) != day_number(date(2024, 9, 5)):
            await store.save_daily_bars(part)
    source.asked.clear()
    await update(source, store)
    assert source.asked == [(date(2025, 2, 28), date(2025, 3, 3)), (date(2024, 9, 5), date(2024, 9, 5))]


async def test_what_a_source_does_not_say_stays_and_what_it_no_longer_lists_is_not_active(store: SqlStore) -> None:
    await store.save_securities([make_security("A", market_cap=3e9, sector="Steel"), make_security("OLD")])
    source = Almanac("A", "NEW")
    source.listed[0] = source.listed[0].model_copy(update={"sector": None, "name": "Renamed"})
    told = await update(source, store)
    assert (told.securities, told.delisted) == (2, 1)
    listed = {security.symbol: security for security in await store.securities()}
    assert (listed["A"].market_cap, listed["A"].sector, listed["A"].name) == (3e9, "Steel", "Renamed")
    assert {symbol: security.active for symbol, security in listed.items()} == {"A": True, "NEW": True, "OLD": False}
    assert "OLD" not in (await day_facts(store, dates=DATES, day=DAY)).symbols


async def test_list_that_lost_most_of_the_market_is_not_believed(store: SqlStore) -> None:
    await store.save_securities([make_security(f"S{n}") for n in range(10)])
    with pytest.raises(Invalid, match="lists 4 where 10 are known"):
        await update(Almanac("S1", "S2", "S3", "S4"), store)
    assert all(security.active for security in await store.securities())


async def test_details_are_asked_for_where_they_are_missing_and_bounded(store: SqlStore) -> None:
    source = Almanac("A", "B", "C")
    await store.save_securities([make_security("B", shares_outstanding=5.0)])
    assert (await update(source, store, details=2)).details == 2
    assert source.detailed == ["A", "C"]
    assert {security.shares_outstanding for security in await store.securities()} == {1e8, 5.0}
    assert (await update(source, store)).details == 0


async def test_previous_day_that_the_source_does_not_have_yet_is_waited_for(store: SqlStore) -> None:
    source = Almanac("A")
    source.until = date(2025, 3, 3)
    with pytest.raises(Unavailable, match="almanac has no daily bars of 2025-03-03 yet"):
        await update(source, store)
    facts = await day_facts(store, dates=DATES, day=DAY)
    known = {name for name, values in zip(facts.names, facts.values, strict=True) if not np.isnan(values).all()}
    assert known == {*(f"close_{ago}_ago" for ago in ("2d", "5d", "10d", "20d", "year")), "close_last_year"}
    assert len(previous_closes(facts)) == 0


async def test_split_of_today_adjusts_the_past_and_one_of_tomorrow_does_not(store: SqlStore) -> None:
    source = Almanac("NOW", "SOON", "NONE")
    source.known_splits = [make_split("NOW", TODAY, 1, 4)]
    await store.save_splits([make_split("SOON", date(2025, 3, 5), 1, 2)])
    await update(source, store)
    facts = await day_facts(store, dates=DATES, day=DAY)
    raw = close_of(day_number(date(2025, 3, 3)))
    assert [fact(facts, "close_prev_day", symbol) for symbol in ("NOW", "SOON", "NONE")] == [raw / 4, raw, raw]
    assert fact(facts, "avg_daily_volume_20d", "NOW") == 4_000.0
    assert fact(facts, "high_52w", "NOW") * 4 == fact(facts, "high_52w", "NONE") > raw + 10
    assert fact(facts, "ema_50_day", "NOW") * 4 == pytest.approx(fact(facts, "ema_50_day", "NONE"))
    assert facts.day_start_ns == PRE_NS
    closes = previous_closes(facts)
    assert closes.price.tolist() == [
        fact(facts, "close_prev_day", closes.symbols[symbol]) for symbol in closes.symbol.tolist()
    ]
    assert set(closes.kind.tolist()) == {Kind.CLOSE_PREV}
    assert set(closes.ts_ns.tolist()) == {PRE_NS}


async def test_history_reaches_far_enough_for_every_figure(store: SqlStore) -> None:
    await update(Almanac("A", MARKET), store, details=2)
    facts = await day_facts(store, dates=DATES, day=DAY)
    unknown = {name for name, values in zip(facts.names, facts.values, strict=True) if np.isnan(values).any()}
    assert unknown == set()
    assert fact(facts, "beta_1y", "A") == pytest.approx(1.0)
    assert fact(facts, "close_year_ago", "A") == close_of(int(DATES.numbers[DAY - 252]))
    assert fact(facts, "close_last_year", "A") == close_of(day_number(date(2024, 12, 31)))


async def test_facts_of_many_symbols_are_those_of_each(store: SqlStore) -> None:
    names = [f"S{n}" for n in range(70)]
    source = Almanac(*names)
    source.known_splits = [make_split("S33", TODAY, 1, 2)]
    await update(source, store)
    facts = await day_facts(store, dates=DATES, day=DAY)
    raw = close_of(day_number(date(2025, 3, 3)))
    assert sorted(facts.symbols) == sorted(names)
    for name in names:
        assert fact(facts, "close_prev_day", name) == (raw / 2 if name == "S33" else raw)


async def test_what_the_listing_says_is_told_in_figures_and_words(store: SqlStore) -> None:
    await store.save_securities(
        [
            make_security("A", market_cap=5e9, shares_outstanding=0.0, exchange="XNYS", type="ETF", sector="Steel"),
            make_security("B", market_cap=None, shares_outstanding=1e8, exchange=None, type=None, sector=None),
            make_security("C", active=False),
        ]
    )
    facts = await day_facts(store, dates=DATES, day=DAY)
    assert facts.symbols == ("A", "B")
    assert (fact(facts, "market_cap", "A"), fact(facts, "shares_outstanding", "A")) == (5e9, 0.0)
    assert np.isnan(fact(facts, "market_cap", "B"))
    assert fact(facts, "shares_outstanding", "B") == 1e8
    assert dict(facts.labels) == {"exchange": ("XNYS", ""), "type": ("ETF", ""), "sector": ("Steel", "")}


def test_facts_cannot_be_changed_and_have_a_figure_and_a_label_for_each_symbol() -> None:
    facts = Facts(
        day_start_ns=0, symbols=("A", "B"), names=("x",), values=np.ones((1, 2)), labels={"sector": ("Steel", "")}
    )
    assert Facts(day_start_ns=0, symbols=(), names=(), values=np.ones((0, 0))).labels == {}
    with pytest.raises(ValueError, match="read-only"):
        facts.values[0, 0] = 2.0
    with pytest.raises(TypeError):
        facts.labels["type"] = ("CS", "CS")  # type: ignore[index]  # that is the test
    assert facts.of(np.array([1])).labels == {"sector": ("",)}
    assert facts.of(np.array([1])).symbols == ("B",)
    with pytest.raises(ValueError, match="1 labels 'sector' for 2 symbols"):
        replace(facts, labels={"sector": ("Steel",)})
    with pytest.raises(ValueError, match="for 1 names"):
        replace(facts, values=np.ones((2, 2)))


async def test_test_symbols_and_other_markets_have_no_facts(store: SqlStore) -> None:
    await store.save_securities(
        [make_security("A"), make_security("ZVZZT", is_test=True), make_security("OTCQX", tape="O")]
    )
    assert (await day_facts(store, dates=DATES, day=DAY)).symbols == ("A",)


async def test_load_keeps_what_the_files_do_not_speak_of(store: SqlStore) -> None:
    await store.save_securities([make_security("OLD")])
    source = Almanac("A")

    async def few(symbols: Sequence[str], start: date, end: date) -> DailyBars:
        return await Almanac.daily_bars(source, ["A"], date(2025, 3, 3), date(2025, 3, 4))

    source.daily_bars = few  # type: ignore[method-assign]
    source.known_splits = [make_split("A", date(1995, 1, 3), 1, 2)]
    told = await load(source, store)
    assert (told.securities, told.splits, told.days, told.bars) == (1, 1, 2, 2)
    assert all(security.active for security in await store.securities())
    assert await store.splits() == source.known_splits


# -- the role ---------------------------------------------------------------------------------------------------------


class Told:
    """What was announced, and when."""

    def __init__(self, clock: Quick) -> None:
        self.clock = clock
        self.said: list[tuple[int, Batch | Facts]] = []

    async def __call__(self, entry: Batch | Facts) -> None:
        self.said.append((self.clock.time_ns - PRE_NS, entry))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


async def run_until(role: ReferenceRole, condition: Callable[[], bool]) -> None:
    running = asyncio.create_task(role.run())
    try:
        await until(lambda: condition() or running.done())
    finally:
        running.cancel()
        (outcome,) = await asyncio.gather(running, return_exceptions=True)
        assert outcome is None or isinstance(outcome, asyncio.CancelledError), outcome


def role_of(source: Any, store: SqlStore, clock: Quick, told: Told, days: TradingDays) -> ReferenceRole:
    return ReferenceRole(source=source, store=store, clock=clock, days=days, announce=told)


async def test_facts_wait_on_the_tape_and_closes_follow_when_the_day_has_begun(
    store: SqlStore, days: TradingDays
) -> None:
    clock = Quick(PRE_NS - HALF_HOUR_NS)
    told, source = Told(clock), Almanac("A", "B")
    role = role_of(source, store, clock, told, days)
    await run_until(role, lambda: len(told.said) >= 4)
    (facts_at, facts), (closes_at, closes), (next_at, next_facts), (_, next_closes) = told.said[:4]
    assert isinstance(facts, Facts)
    assert isinstance(closes, Batch)
    assert facts_at == -HALF_HOUR_NS
    assert 5 * SECOND_NS <= closes_at < 60 * SECOND_NS
    assert facts.symbols == closes.symbols == ("A", "B")
    # The next day, at 03:30 again.
    assert isinstance(next_facts, Facts)
    assert isinstance(next_closes, Batch)
    assert next_facts.day_start_ns == PRE_NS + 48 * HALF_HOUR_NS
    assert 47 * HALF_HOUR_NS <= next_at < 47 * HALF_HOUR_NS + 60 * SECOND_NS
    assert next_closes.price[0] == pytest.approx(close_of(day_number(TODAY)))


async def test_start_during_the_day_announces_at_once(store: SqlStore, days: TradingDays) -> None:
    clock = Quick(PRE_NS + 10 * HALF_HOUR_NS)
    told = Told(clock)
    await run_until(role_of(Almanac("A"), store, clock, told, days), lambda: len(told.said) >= 2)
    assert [at for at, _ in told.said[:2]] == [10 * HALF_HOUR_NS] * 2


async def test_start_on_the_evening_before_refreshes_again_before_it_announces(
    store: SqlStore, days: TradingDays
) -> None:
    clock = Quick(PRE_NS - 14 * HALF_HOUR_NS)
    told, source = Told(clock), Almanac("A")
    await run_until(role_of(source, store, clock, told, days), lambda: len(told.said) >= 1)
    assert source.asked.count((date(2025, 2, 28), date(2025, 3, 3))) == 1
    assert -HALF_HOUR_NS <= told.said[0][0] < -HALF_HOUR_NS + 60 * SECOND_NS


async def test_source_that_is_away_is_asked_again_and_late_facts_are_announced(
    store: SqlStore, days: TradingDays
) -> None:
    clock = Quick(PRE_NS - HALF_HOUR_NS)
    told, source = Told(clock), Almanac("A")
    source.failures = [Unavailable("away")] * 8
    role = role_of(source, store, clock, told, days)
    problems: list[str] = []

    def seen() -> bool:
        problems.append(role.problem)
        return len(told.said) >= 2

    await run_until(role, seen)
    assert "away" in problems
    assert role.problem == ""
    assert told.said[0][0] > 0
    assert role.refreshed is not None


@pytest.mark.parametrize("failure", [FeedRefused("wrong key"), Invalid("assets", "is not JSON"), NotFound("404")])
async def test_source_that_refuses_is_left_alone_until_the_next_day_and_nothing_is_announced(
    store: SqlStore, days: TradingDays, failure: Exception
) -> None:
    clock = Quick(PRE_NS - HALF_HOUR_NS)
    told, source = Told(clock), Almanac("A")
    source.failures = [failure]
    await run_until(role_of(source, store, clock, told, days), lambda: len(told.said) >= 1)
    assert told.said[0][0] >= 47 * HALF_HOUR_NS


async def test_end_of_the_calendar_ends_the_role(store: SqlStore) -> None:
    days = trading_days()
    clock = Quick(int(days.post_ns[-1]) + SECOND_NS)
    role = role_of(Almanac("A"), store, clock, Told(clock), days)
    async with asyncio.timeout(10):
        await role.run()


# -- announcements on the tape ----------------------------------------------------------------------------------------


class Gated:
    name = "gated"
    rejected: dict[str, int]

    def __init__(self, gate: asyncio.Event, batch: Batch) -> None:
        self.rejected, self._gate, self._batch = {}, gate, batch

    async def batches(self) -> AsyncIterator[Batch]:
        await self._gate.wait()
        yield self._batch
        await asyncio.Event().wait()


async def test_announced_rows_wait_for_the_tape_and_go_to_their_partitions(
    running: Any, bus: Any, ledger: Any, clock: Any, prints: Any, read: Any, eventually: Any, store: SqlStore
) -> None:
    source = Almanac("A", "B", "C", "D", "E")
    await update(source, store)
    facts = await day_facts(store, dates=DATES, day=DAY)
    gate = asyncio.Event()
    ingest = Ingest(feed=Gated(gate, prints(1, "A")), bus=bus, store=ledger, clock=clock, partitions=2)
    async with running(ingest, cancel=True):
        await ingest.announce(facts)
        announcing = asyncio.create_task(ingest.announce(previous_closes(facts)))
        await eventually(lambda: ingest._ruleset == 0)
        assert not announcing.done()
        gate.set()
        await announcing
        tapes = [await read(f"ticks:{p}") for p in range(2)]
    for p, tape in enumerate(tapes):
        (own,) = [entry for entry in tape if isinstance(entry, Facts)]
        assert own.symbols == tuple(symbol for symbol in "ABCDE" if partition_of(symbol, 2) == p)
        assert own.values.shape == (len(own.names), len(own.symbols))
        assert set(own.labels) == set(LABELS)
        assert own.labels["type"] == ("CS",) * len(own.symbols)
        batches = [entry for entry in tape if isinstance(entry, Batch)]
        closes = batches[-1]
        assert {closes.symbols[i] for i in closes.symbol.tolist()} == set(own.symbols)
        assert set(closes.kind.tolist()) == {Kind.CLOSE_PREV}
    assert ingest.rows == 1
