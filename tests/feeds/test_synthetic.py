"""The synthetic market: the same rows for the same seed, and rows that look like a market's."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pyarrow import compute as pc
from pyarrow import parquet as pq

from tapewatch.engine.columns import MINUTE_NS, ROW_COLUMNS, SECOND_NS, Batch, Kind
from tapewatch.feeds.synthetic import SyntheticFeed, TradingDay, synthetic_symbols, write_day
from tapewatch.feeds.synthetic_market import SyntheticMarket
from tapewatch.feeds.synthetic_prints import CONDITIONS, Rows, join_rows

OPEN_NS = 1_767_623_400 * SECOND_NS  # 2026-01-05 09:30 New York
DAY = TradingDay(
    pre_ns=OPEN_NS - 20 * MINUTE_NS,
    open_ns=OPEN_NS,
    close_ns=OPEN_NS + 60 * MINUTE_NS,
    post_ns=OPEN_NS + 80 * MINUTE_NS,
)
NEXT_DAY = TradingDay(
    pre_ns=DAY.pre_ns + 1440 * MINUTE_NS,
    open_ns=DAY.open_ns + 1440 * MINUTE_NS,
    close_ns=DAY.close_ns + 1440 * MINUTE_NS,
    post_ns=DAY.post_ns + 1440 * MINUTE_NS,
)


class FakeClock:
    """Time passes only while somebody sleeps, or when the test lets it."""

    def __init__(self) -> None:
        self.ns = 1_000 * SECOND_NS
        self.slept_s: list[float] = []

    def now_ns(self) -> int:
        return self.ns

    async def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.ns += round(seconds * SECOND_NS)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def day_rows() -> Rows:
    """A whole short day of 1,000 stocks, shaped, 500 trades a second."""
    market = SyntheticMarket(seed=11, symbols=1_000, ticks_per_s=500, shaped=True)
    return join_rows([step.rows for step in market.play([DAY], start_ns=DAY.pre_ns)])


@pytest.fixture(scope="module")
def trades(day_rows: Rows) -> Rows:
    return day_rows.take(day_rows.kind == Kind.TRADE)


async def play(
    *,
    seed: int = 5,
    seconds: float = 8,
    batch_s: float = 0.05,
    speed: float = 1.0,
    start_ns: int = OPEN_NS - 2 * SECOND_NS,
    days: Sequence[TradingDay] = (DAY,),
    shaped: bool = True,
) -> list[Batch]:
    """The batches of the first `seconds`, with 300 stocks and a mean of 2,000 trades a second."""
    feed = SyntheticFeed(
        seed=seed,
        start_ns=start_ns,
        clock=FakeClock(),
        symbols=300,
        ticks_per_s=2_000,
        shaped=shaped,
        days=days,
        speed=speed,
        batch_s=batch_s,
    )
    found = []
    async for batch in feed.batches():
        found.append(batch)
        if int(batch.marks_ns[-1]) >= start_ns + seconds * SECOND_NS:
            break
    return found


def columns(batches: list[Batch]) -> dict[str, NDArray[np.generic]]:
    return {name: np.concatenate([getattr(batch, name) for batch in batches]) for name in ROW_COLUMNS}


def has_letters(rows: Rows, letters: str) -> NDArray[np.bool_]:
    return np.array([letters in words[1:] for words in CONDITIONS])[rows.condition]


def sets_price(rows: Rows) -> NDArray[np.bool_]:
    odd = set("4BW7VIMQTUZ")
    return np.array([not odd & set(words[1:]) for words in CONDITIONS])[rows.condition]


@pytest.mark.anyio
@pytest.mark.parametrize(("batch_s", "speed"), [(0.02, 1.0), (0.333, 7.0), (2.0, float("inf"))])
async def test_rows_of_one_seed_are_the_same_in_any_cut_and_at_any_speed(batch_s: float, speed: float) -> None:
    expected = columns(await play())
    found = columns(await play(batch_s=batch_s, speed=speed))
    n = min(len(expected["ts_ns"]), len(found["ts_ns"]))
    assert n > 15_000
    for name in ROW_COLUMNS:
        np.testing.assert_array_equal(expected[name][:n], found[name][:n], err_msg=name)


@pytest.mark.anyio
async def test_rows_of_another_seed_differ() -> None:
    one, other = await play(seconds=3), await play(seconds=3, seed=6)
    assert one[0].symbols != other[0].symbols
    assert not np.array_equal(columns(one)["price"][300:400], columns(other)["price"][300:400])


@pytest.mark.anyio
async def test_marks_promise_what_arrives_and_never_go_back() -> None:
    batches = await play(seconds=60)
    marks = np.concatenate([batch.marks_ns for batch in batches])
    assert (np.diff(marks) == 50_000_000).all()
    mark = 0
    late = 0
    for batch in batches:
        assert batch.marks_row.tolist() == [len(batch)]
        assert batch.symbols is batches[0].symbols
        assert batch.conditions is batches[0].conditions
        assert (batch.ts_ns < batch.marks_ns[-1]).all()
        late += int((batch.ts_ns < mark).sum())
        mark = int(batch.marks_ns[-1])
    assert 0 < late < 0.01 * sum(map(len, batches))


@pytest.mark.anyio
async def test_feed_sleeps_until_each_batch_is_due() -> None:
    clock = FakeClock()
    feed = SyntheticFeed(seed=1, start_ns=OPEN_NS, clock=clock, symbols=50, ticks_per_s=100, speed=2.0, batch_s=0.1)
    stream = feed.batches()
    for _ in range(20):
        await anext(stream)
    assert clock.ns == 1_001 * SECOND_NS
    assert clock.slept_s == pytest.approx([0.05] * 20)


@pytest.mark.anyio
async def test_feed_with_a_slow_consumer_catches_up_and_skips_nothing() -> None:
    clock = FakeClock()
    feed = SyntheticFeed(seed=1, start_ns=OPEN_NS, clock=clock, symbols=50, ticks_per_s=100, batch_s=0.1)
    stream = feed.batches()
    found = [await anext(stream)]
    clock.ns += 3 * SECOND_NS
    found += [await anext(stream) for _ in range(39)]
    assert clock.slept_s[1:31] == [0.0] * 30
    assert clock.ns == 1_004 * SECOND_NS
    assert [int(batch.marks_ns[0]) for batch in found] == [OPEN_NS + (i + 1) * SECOND_NS // 10 for i in range(40)]


@pytest.mark.anyio
async def test_days_follow_one_another_and_then_the_feed_ends() -> None:
    clock = FakeClock()
    feed = SyntheticFeed(
        seed=3,
        start_ns=DAY.post_ns - 90 * SECOND_NS,
        clock=clock,
        symbols=40,
        ticks_per_s=20,
        days=(DAY, replace(NEXT_DAY, pre_ns=NEXT_DAY.open_ns - 7 * SECOND_NS)),
        batch_s=2.0,
    )
    batches = [batch async for batch in feed.batches()]
    marks = [int(batch.marks_ns[0]) for batch in batches]
    assert marks == sorted(marks)
    assert DAY.post_ns in marks
    assert marks[-1] == NEXT_DAY.post_ns
    assert clock.ns - 1_000 * SECOND_NS == 90 * SECOND_NS + NEXT_DAY.post_ns - NEXT_DAY.open_ns + 7 * SECOND_NS
    assert not any(DAY.post_ns <= ns < NEXT_DAY.open_ns - 7 * SECOND_NS for b in batches for ns in b.ts_ns.tolist())
    closes = [int((batch.kind == Kind.CLOSE_PREV).sum()) for batch in batches]
    assert sorted(closes)[-2:] == [40, 40]
    assert feed.rejected == {}
    assert feed.name == "synthetic"


@pytest.mark.anyio
async def test_flat_rate_is_the_rate_asked_for() -> None:
    batches = await play(shaped=False, days=(), seconds=30, batch_s=1.0)
    counts = [int((batch.kind == Kind.TRADE).sum()) for batch in batches]
    assert np.mean(counts) == pytest.approx(2_000, rel=0.03)
    assert max(counts) < 2_500


def test_market_without_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="days"):
        SyntheticFeed(seed=1, start_ns=0, clock=FakeClock(), shaped=True)
    with pytest.raises(ValueError, match="positive"):
        SyntheticFeed(seed=1, start_ns=0, clock=FakeClock(), speed=0)
    with pytest.raises(ValueError, match="ticks a second"):
        SyntheticMarket(seed=1, symbols=1, ticks_per_s=0, shaped=False)
    with pytest.raises(ValueError, match="ascend"):
        replace(DAY, open_ns=DAY.post_ns)


@pytest.mark.parametrize("symbols", [1, 7, 10_000, 40_000])
def test_names_are_unique_tickers_and_no_test_symbols(symbols: int) -> None:
    names = synthetic_symbols(seed=2, symbols=symbols)
    assert len(set(names)) == len(names) == symbols
    assert all(name.isascii() and name.isalpha() and name.isupper() and 1 <= len(name) <= 5 for name in names)
    assert not any(name.startswith("Z") and len(name) == 5 for name in names)
    assert not {"CBO", "CBX", "NTEST", "ZTEST", "ZBZX"} & set(names)
    assert names == synthetic_symbols(seed=2, symbols=symbols)


def test_market_of_one_stock_trades() -> None:
    market = SyntheticMarket(seed=2, symbols=1, ticks_per_s=50, shaped=False)
    steps = market.play((), start_ns=OPEN_NS, end_ns=OPEN_NS + 60 * SECOND_NS)
    assert sum(len(step.rows) for step in steps) > 2_000


def test_prices_are_positive_and_on_the_grid(day_rows: Rows) -> None:
    rows = day_rows.take((day_rows.kind == Kind.TRADE) | (day_rows.kind == Kind.CLOSE_PREV))
    assert (rows.price > 0).all()
    np.testing.assert_allclose(rows.price * 1e4, np.rint(rows.price * 1e4), rtol=0, atol=1e-6)
    dear = rows.take(sets_price(rows) & (rows.price >= 1))
    in_cents = np.abs(dear.price * 100 - np.rint(dear.price * 100)) < 1e-6
    assert 0.95 < in_cents.mean() < 0.999
    assert (dear.exchange[~in_cents] == ord("D")).all()


def test_prints_are_spread_like_a_market(trades: Rows) -> None:
    odd = trades.size < 100
    assert 0.38 < odd.mean() < 0.52
    ordinary = ~(has_letters(trades, "O") | has_letters(trades, "6") | has_letters(trades, "5"))
    np.testing.assert_array_equal(has_letters(trades, "I")[ordinary], odd[ordinary])
    assert 0.35 < (trades.exchange == ord("D")).mean() < 0.45
    assert 0.001 < (trades.size != np.rint(trades.size)).mean() < 0.02
    assert trades.size.max() > 50_000
    counts = np.sort(np.bincount(trades.symbol, minlength=1_000))[::-1]
    assert 0.45 < counts[:50].sum() / counts.sum() < 0.7
    assert not has_letters(trades, "F")[trades.exchange == ord("D")].any()
    assert has_letters(trades, "F").mean() > 0.2
    keys = np.unique(np.stack((trades.symbol, trades.exchange, trades.trade_id)), axis=1)
    assert keys.shape[1] == len(trades)


def test_conditions_follow_tape_and_session(trades: Rows) -> None:
    firsts = np.array([words[:1] for words in CONDITIONS])[trades.condition]
    np.testing.assert_array_equal(firsts == "@", trades.tape == ord("C"))
    assert not has_letters(trades, "B")[trades.tape == ord("C")].any()
    assert not has_letters(trades, "W")[trades.tape != ord("C")].any()
    is_regular = (trades.ts_ns >= DAY.open_ns) & (trades.ts_ns < DAY.close_ns)
    assert not has_letters(trades, "T")[is_regular].any()
    crosses = has_letters(trades, "6") | has_letters(trades, "M")
    extended = has_letters(trades, "T") | has_letters(trades, "U")
    assert extended[~is_regular & ~crosses].all()
    for letters in ("O", "Q", "M", "6", "Z", "U", "7V", "4", "B", "W"):
        assert has_letters(trades, letters).any(), letters


def test_trades_follow_the_shape_of_a_day(trades: Rows) -> None:
    minute = (trades.ts_ns - DAY.pre_ns) // MINUTE_NS
    counts = np.bincount(minute, minlength=100)
    regular = counts[20:80]
    assert max(counts[:20].max(), counts[82:].max()) < regular.min()
    assert regular[0] > 3 * regular[30]
    assert regular[59] > 1.5 * regular[30]
    assert regular.mean() / 60 == pytest.approx(500, rel=0.1)


def test_auctions_print_twice_at_one_price(trades: Rows) -> None:
    for first, official, instant_ns in (("O", "Q", DAY.open_ns), ("6", "M", DAY.close_ns)):
        one, two = trades.take(has_letters(trades, first)), trades.take(has_letters(trades, official))
        assert len(one) == len(two) > 900
        assert len(np.unique(one.symbol)) == len(one)
        one, two = one.take(np.argsort(one.symbol)), two.take(np.argsort(two.symbol))
        for name in ("symbol", "price", "size", "exchange"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
        assert (one.ts_ns < two.ts_ns).all()
        assert (one.ts_ns > instant_ns).all()
        assert (two.ts_ns < instant_ns + 2 * MINUTE_NS).all()


def test_close_of_a_day_is_the_next_days_previous_close() -> None:
    market = SyntheticMarket(seed=4, symbols=200, ticks_per_s=50, shaped=True)
    short = replace(DAY, pre_ns=DAY.close_ns - 9 * MINUTE_NS, open_ns=DAY.close_ns - 9 * MINUTE_NS)
    rows = join_rows([step.rows for step in market.play([short, NEXT_DAY], start_ns=0, end_ns=NEXT_DAY.pre_ns + 1)])
    official = rows.take(has_letters(rows, "M"))
    known = rows.take((rows.kind == Kind.CLOSE_PREV) & (rows.ts_ns == NEXT_DAY.pre_ns))
    assert len(known) == 200
    assert len(official) > 50
    np.testing.assert_array_equal(known.price[official.symbol], official.price)


def test_late_prints_arrive_after_their_time(trades: Rows) -> None:
    assert (np.diff(trades.arrival_ns) >= 0).all()
    delay_s = (trades.arrival_ns - trades.ts_ns) / SECOND_NS
    late = delay_s > 0
    assert 0.001 < late.mean() < 0.01
    # What would arrive after the end of the day arrives just before it.
    assert delay_s[late & (trades.arrival_ns < DAY.post_ns - 1)].min() >= 1
    assert 60 < delay_s.max() < 601
    assert 0.3 < (has_letters(trades, "Z") | has_letters(trades, "U"))[late].mean() < 0.7
    assert (np.diff(trades.ts_ns[~late]) >= 0).all()


def test_cancels_follow_the_trades_they_name(day_rows: Rows) -> None:
    cancels = np.flatnonzero(day_rows.kind == Kind.CANCEL)
    assert len(cancels) > 100
    assert len(cancels) == int(day_rows.busted.sum())
    place = {int(day_rows.trade_id[at]): at for at in np.flatnonzero(day_rows.busted).tolist()}
    for cancel in cancels.tolist():
        trade = place[int(day_rows.trade_id[cancel])]
        assert trade < cancel
        assert day_rows.kind[trade] == Kind.TRADE
        assert day_rows.ts_ns[trade] < day_rows.ts_ns[cancel]
        for name in ("symbol", "price", "size", "exchange", "tape", "condition"):
            assert getattr(day_rows, name)[trade] == getattr(day_rows, name)[cancel]


def test_contingent_and_average_prints_lie_off_the_market(trades: Rows) -> None:
    busiest = int(np.bincount(trades.symbol[trades.price > 20]).argmax())
    mine = trades.take(trades.symbol == busiest)
    fair = mine.take(sets_price(mine))
    contingent = mine.take(has_letters(mine, "7V"))
    near = fair.price[np.searchsorted(fair.ts_ns, contingent.ts_ns).clip(0, len(fair) - 1)]
    away_pct = 100 * np.abs(contingent.price / near - 1)
    assert np.median(away_pct) > 0.4
    assert 2 < away_pct.max() < 10
    steps = np.abs(np.diff(np.log(fair.price)))
    assert np.quantile(steps, 0.999) < 0.005


def test_halted_stock_prints_nothing_until_it_resumes() -> None:
    market = SyntheticMarket(seed=8, symbols=500, ticks_per_s=400, shaped=False)
    # A fifteenth of the usual band makes halts common enough for a short test.
    market.listing = replace(market.listing, band=0.067 * market.listing.band)
    rows = join_rows([step.rows for step in market.play([DAY], start_ns=DAY.open_ns)])
    halts, resumes = rows.take(rows.kind == Kind.HALT), rows.take(rows.kind == Kind.RESUME)
    reopening = rows.take(has_letters(rows, "5"))
    assert len(halts) >= 10
    assert len(resumes) == len(reopening) == len(halts)
    for symbol, halt_ns in zip(halts.symbol.tolist(), halts.ts_ns.tolist(), strict=True):
        mine = rows.take((rows.symbol == symbol) & (rows.kind <= Kind.CANCEL))
        resume_ns = int(resumes.ts_ns[(resumes.symbol == symbol) & (resumes.ts_ns > halt_ns)].min())
        assert resume_ns - halt_ns in range(300 * SECOND_NS, 306 * SECOND_NS)
        traded = mine.take((mine.kind == Kind.TRADE) & (mine.ts_ns >= halt_ns))
        assert (traded.ts_ns >= resume_ns).all()
        first = traded.take(slice(0, 1))
        assert has_letters(first, "5").all()


def test_stocks_move_together_and_some_jump(trades: Rows) -> None:
    fair = trades.take(sets_price(trades))
    changes = []
    for symbol in range(1_000):
        price = fair.price[fair.symbol == symbol]
        if len(price) > 50:
            changes.append(float(price[-1] / price[0] - 1))
    assert 0.003 < np.median(np.abs(changes)) < 0.03
    assert np.max(np.abs(changes)) > 0.04


def test_tape_file_of_a_window_holds_trades_and_cancel_pairs(tmp_path: Path) -> None:
    progress: list[tuple[int, int]] = []
    written = write_day(
        tmp_path / "day.parquet",
        seed=9,
        symbols=300,
        trades=120_000,
        day=DAY,
        start_ns=DAY.open_ns,
        end_ns=DAY.close_ns,
        row_group_rows=40_000,
        on_progress=lambda rows, event_ns: progress.append((rows, event_ns)),
    )
    file = pq.ParquetFile(tmp_path / "day.parquet")
    table = file.read()
    assert file.num_row_groups == len(progress) >= 3
    assert progress[-1] == (written, DAY.close_ns)
    assert written == len(table) == pytest.approx(120_000, rel=0.05)
    assert table.column_names[:8] == [
        "symbol", "ts_ns", "price", "size", "conditions", "exchange", "tape", "trade_id",
    ]  # fmt: skip
    assert set(table["correction"].unique().to_pylist()) == {"00", "08", "10"}
    assert DAY.open_ns <= pc.min(table["ts_ns"]).as_py()
    assert pc.max(table["ts_ns"]).as_py() < DAY.close_ns
    assert set(table["tape"].unique().to_pylist()) == {"A", "B", "C"}
    assert set(table["symbol"].unique().to_pylist()) <= set(synthetic_symbols(seed=9, symbols=300))
    ids = {code: table.filter(pc.equal(table["correction"], code))["trade_id"].to_pylist() for code in ("08", "10")}
    assert sorted(ids["08"]) == sorted(ids["10"])


def test_tape_file_of_the_same_seed_is_the_same(tmp_path: Path) -> None:
    for name, rows in (("one", 10_000), ("two", 3_000)):
        write_day(tmp_path / name, seed=9, symbols=100, trades=30_000, day=DAY, row_group_rows=rows)
    assert pq.read_table(tmp_path / "one").equals(pq.read_table(tmp_path / "two"))


def test_tape_file_of_an_empty_window_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="empty"):
        write_day(tmp_path / "x", seed=1, symbols=1, trades=1, day=DAY, start_ns=DAY.post_ns)
