"""Single prints that made somebody's bars wrong, and what each profile makes of them."""

from collections.abc import Sequence
from math import nan

import numpy as np
import pytest
from naive import MINUTE, SECOND, Mark, Row
from tapes import new_york, to_entries

from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import Bars, Batch, pulse
from tapewatch.engine.scanner import Scanner
from tapewatch.nyse import trading_days
from tapewatch.replay import final_bars

DATE = "2025-03-10"
TEN_NS, OPEN_NS, CLOSE_NS = (new_york(f"{DATE} {clock}") for clock in ("10:00", "09:30", "16:00"))
LETTERS = ("alpaca", "massive", "sip")
Bar = tuple[float, float, float, float, float]


def at(ts_ns: int, price: float, conditions: str = "@", **more: object) -> Row:
    fields = {"size": 100.0, "tape": "C", "exchange": "Q"} | more
    return Row("A", ts_ns, price, conditions=conditions, **fields)  # type: ignore[arg-type]


class Played:
    """What a profile makes of a tape: (open, high, low, close, volume) of each final bar by its minute, and metrics.

    The marks keep up with the rows.
    """

    def __init__(self, profile: str, tape: Sequence[Row | Mark]) -> None:
        self.scanner = Scanner(days=trading_days(), profile=load_profile(profile), board_interval_ns=10 * MINUTE)
        parts: list[Bars] = []
        marked: list[Row | Mark] = []
        for item in tape:
            marked += [Mark(item.ts_ns), item] if isinstance(item, Row) else [item]
        for entry in to_entries(marked, set()):
            assert isinstance(entry, Batch)
            parts += self.scanner.step(entry).bars
        bars = final_bars(parts)
        columns = [getattr(bars, name).tolist() for name in ("open", "high", "low", "close", "volume")]
        self.bars: dict[int, Bar] = dict(zip(bars.ts_ns.tolist(), zip(*columns, strict=True), strict=True))

    def value(self, metric: str) -> float:
        return float(self.scanner.board_rows((metric,)).values[0, 0])


def of_one_minute(profile: str, *rows: Row) -> Bar | None:
    """The bar of the rows' minute."""
    played = Played(profile, [*rows, Mark(rows[-1].ts_ns + 3 * MINUTE)])
    return played.bars.get(rows[0].ts_ns // MINUTE * MINUTE)


def with_last(profile: str, *rows: Row) -> float:
    """The close of the rows' minute."""
    bar = of_one_minute(profile, *rows)
    return nan if bar is None else bar[3]


# A contingent trade's price is part of a package: 114.62 was printed in a stock at 109.40.


@pytest.mark.parametrize("conditions", ["@ 7", "@7V", "@ V"])
@pytest.mark.parametrize("profile", LETTERS)
def test_contingent_print_far_off_the_market_moves_no_price(profile: str, conditions: str) -> None:
    bar = of_one_minute(profile, at(TEN_NS, 109.4), at(TEN_NS + SECOND, 114.62, conditions), at(TEN_NS + 2, 109.41))
    assert bar == (109.4, 109.41, 109.4, 109.41, 300.0)


def test_contingent_print_far_off_the_market_moves_no_price_with_algoseek() -> None:
    rows = [at(TEN_NS, 109.4, "0x1"), at(TEN_NS + 1, 114.62, "0x100"), at(TEN_NS + 2, 109.41, "0x1")]
    assert of_one_minute("algoseek", *rows) == (109.4, 109.41, 109.4, 109.41, 300.0)


# MRK, 2021-06-11: a prior-reference-price print made a low of 13.19. The tape does so too; Alpaca's minute bars do not.


@pytest.mark.parametrize(("profile", "low"), [("alpaca", 76.0), ("massive", 13.19), ("sip", 13.19)])
def test_prior_reference_print_sets_the_low_only_where_the_profile_says_so(profile: str, low: float) -> None:
    nyse = {"tape": "A", "exchange": "N"}
    rows = [at(TEN_NS, 76.0, " ", **nyse), at(TEN_NS + 1, 13.19, " P", **nyse), at(TEN_NS + 2, 76.1, " F", **nyse)]
    assert of_one_minute(profile, *rows) == (76.0, 76.1, low, 76.1, 300.0)


@pytest.mark.parametrize("profile", LETTERS)
def test_minute_of_odd_lots_alone_has_no_bar_but_a_volume(profile: str) -> None:
    rows = [at(TEN_NS + i, 10.0 + i, "@ I", size=7.0) for i in range(3)]
    played = Played(profile, [*rows, Mark(TEN_NS + 3 * MINUTE)])
    assert played.bars == {}
    assert played.value("volume_day") == 21.0
    assert np.isnan([played.value(metric) for metric in ("price", "high_day", "low_day", "vwap_day")]).all()


@pytest.mark.parametrize(
    ("profile", "regular", "cross", "minute_ns"),
    [
        ("alpaca", "@", "@6", CLOSE_NS),
        ("massive", "@", "@6", CLOSE_NS),
        ("sip", "@", "@6", CLOSE_NS),
        ("algoseek", "0x1", "0x80", CLOSE_NS - MINUTE),
    ],
)
def test_closing_cross_at_four_falls_into_the_minute_of_the_profile(
    profile: str, regular: str, cross: str, minute_ns: int
) -> None:
    rows = [at(CLOSE_NS - SECOND, 10.0, regular), at(CLOSE_NS, 11.0, cross, size=5_000.0)]
    bars = Played(profile, [*rows, Mark(CLOSE_NS + 3 * MINUTE)]).bars
    assert bars[minute_ns][3] == 11.0
    if minute_ns == CLOSE_NS:
        assert bars == {
            CLOSE_NS - MINUTE: (10.0, 10.0, 10.0, 10.0, 100.0),
            CLOSE_NS: (11.0, 11.0, 11.0, 11.0, 5_000.0),
        }
    else:
        assert bars == {CLOSE_NS - MINUTE: (10.0, 11.0, 10.0, 11.0, 5_100.0)}


# A trade sold out of sequence says where the market was, not where it is.


@pytest.mark.parametrize(
    ("profile", "bar"),
    [
        ("alpaca", (10.0, 10.1, 10.0, 10.1, 300.0)),
        ("massive", (10.0, 10.1, 9.0, 10.1, 300.0)),
        ("sip", (10.0, 10.1, 9.0, 10.1, 300.0)),
    ],
)
@pytest.mark.parametrize("tape", ["A", "C"])
def test_late_z_is_no_last_price_once_there_is_one(profile: str, bar: Bar, tape: str) -> None:
    rows = [at(TEN_NS, 10.0, tape=tape), at(TEN_NS + 1, 10.1, tape=tape), at(TEN_NS + 2, 9.0, "@ Z", tape=tape)]
    assert of_one_minute(profile, *rows) == bar


@pytest.mark.parametrize(
    ("profile", "bar"), [("alpaca", None), ("massive", None), ("sip", (9.0, 9.0, 8.0, 9.0, 200.0))]
)
def test_first_z_of_the_day_sets_all_prices_on_the_tape_and_the_second_none_but_the_low(
    profile: str, bar: Bar | None
) -> None:
    assert of_one_minute(profile, at(TEN_NS, 9.0, "@ Z"), at(TEN_NS + 1, 8.0, "@ Z")) == bar


def test_late_z_in_a_minute_of_its_own_has_no_bar_on_the_tape() -> None:
    played = Played("sip", [at(TEN_NS, 10.0), at(TEN_NS + MINUTE, 9.0, "@ Z"), Mark(TEN_NS + 4 * MINUTE)])
    assert list(played.bars) == [TEN_NS]
    assert (played.value("low_day"), played.value("price"), played.value("volume_day")) == (9.0, 10.0, 200.0)


def test_first_z_after_the_day_has_rolled_is_first_again() -> None:
    friday_ns, monday_ns = new_york("2025-03-07 15:00"), new_york("2025-03-10 09:30")
    rows = [at(friday_ns, 10.0), at(monday_ns, 9.0, "@ Z")]
    played = Played("sip", [*rows, at(monday_ns + 1, 8.0, "@ Z"), Mark(monday_ns + 2 * MINUTE)])
    assert played.bars[monday_ns] == (9.0, 9.0, 8.0, 9.0, 200.0)


# Form T: a trade outside regular hours, or reported then.


@pytest.mark.parametrize("profile", [*LETTERS, "algoseek"])
def test_form_t_at_eight_makes_a_bar(profile: str) -> None:
    eight_ns = new_york(f"{DATE} 08:00")
    form_t = "0x2000" if profile == "algoseek" else "@ T"
    rows = [at(eight_ns, 10.0, form_t), at(eight_ns + 1, 11.0, form_t)]
    assert of_one_minute(profile, *rows) == (10.0, 11.0, 10.0, 11.0, 200.0)


@pytest.mark.parametrize(("profile", "high"), [("alpaca", 11.0), ("massive", 10.0), ("sip", 10.0), ("algoseek", 10.0)])
def test_form_t_at_ten_sets_prices_only_with_alpaca(profile: str, high: float) -> None:
    regular, form_t = ("0x1", "0x2000") if profile == "algoseek" else ("@", "@ T")
    rows = [at(TEN_NS, 10.0, regular), at(TEN_NS + 1, 11.0, form_t)]
    assert of_one_minute(profile, *rows) == (10.0, high, 10.0, high, 200.0)


@pytest.mark.parametrize(("profile", "close"), [("sip", 10.0), ("alpaca", 10.0), ("massive", 10.0)])
def test_extended_trade_out_of_sequence_is_no_last_price_once_there_is_one(profile: str, close: float) -> None:
    eight_ns = new_york(f"{DATE} 08:00")
    assert with_last(profile, at(eight_ns, 10.0, "@ T"), at(eight_ns + 1, 9.0, "@ U")) == close


def test_form_t_before_the_open_is_no_last_price_of_the_tape_for_a_late_z() -> None:
    eight_ns = new_york(f"{DATE} 08:00")
    rows = [at(eight_ns, 10.0, "@ T"), at(OPEN_NS, 9.0, "@ Z")]
    played = Played("sip", [*rows, Mark(OPEN_NS + 2 * MINUTE)])
    assert played.bars[OPEN_NS] == (9.0, 9.0, 9.0, 9.0, 100.0)


def test_first_extended_trade_out_of_sequence_is_a_last_price_unless_the_day_had_one() -> None:
    four_ns = new_york(f"{DATE} 16:30")
    assert of_one_minute("sip", at(four_ns, 9.0, "@ U")) == (9.0, 9.0, 9.0, 9.0, 100.0)
    played = Played("sip", [at(four_ns - MINUTE, 10.0), at(four_ns, 9.0, "@ U"), Mark(four_ns + 2 * MINUTE)])
    assert list(played.bars) == [four_ns - MINUTE]
    assert played.value("price") == 10.0


# Sold last: a late report that may be the last price all the same.

NYSE, ARCA, BATS = ({"tape": "A", "exchange": exchange} for exchange in "NPZ")


@pytest.mark.parametrize(
    ("last", "late", "close"),
    [
        (ARCA, ARCA, 9.0),
        (ARCA, BATS, 10.0),
        (BATS, NYSE, 9.0),
        (NYSE, ARCA, 10.0),
        ({"tape": "A", "exchange": ""}, {"tape": "A", "exchange": ""}, 10.0),
        ({"tape": "B", "exchange": "D"}, {"tape": "B", "exchange": "P"}, 9.0),
    ],
    ids=["same venue", "another venue", "listing market", "not the listing market", "venues unknown", "tape B"],
)
def test_sold_last_on_cta_is_the_last_price_from_the_venue_of_the_last_one_or_the_listing_market(
    last: dict[str, str], late: dict[str, str], close: float
) -> None:
    assert with_last("sip", at(TEN_NS, 10.0, " ", **last), at(TEN_NS + 1, 9.0, " L", **late)) == close


def test_sold_last_of_the_listing_market_lets_the_next_one_of_its_venue_follow() -> None:
    rows = [at(TEN_NS, 10.0, " ", **ARCA), at(TEN_NS + 1, 9.0, " L", **NYSE), at(TEN_NS + 2, 8.0, " L", **ARCA)]
    assert with_last("sip", *rows) == 9.0
    assert with_last("sip", *rows[:2], at(TEN_NS + 2, 7.0, " L", **NYSE)) == 7.0


def test_first_sold_last_of_the_day_sets_all_prices() -> None:
    rows = [at(TEN_NS, 10.0, " L", **ARCA), at(TEN_NS + 1, 9.0, " L", **BATS), at(TEN_NS + 2, 8.0, " L", **ARCA)]
    assert of_one_minute("sip", *rows) == (10.0, 10.0, 8.0, 8.0, 300.0)


@pytest.mark.parametrize(("seconds", "close"), [(9.999, 9.0), (10.0, 10.0)])
@pytest.mark.parametrize("date", [DATE, "2024-11-29"])
def test_sold_last_on_utp_is_the_last_price_until_ten_seconds_after_the_close(
    date: str, seconds: float, close: float
) -> None:
    closes_ns = new_york(f"{date} {'13:00' if date == '2024-11-29' else '16:00'}")
    rows = [at(closes_ns, 10.0, "@6"), at(closes_ns + round(seconds * SECOND), 9.0, "@ L")]
    assert with_last("sip", *rows) == close


# A corrected close comes long after the last trade.

LAST_NS = CLOSE_NS - SECOND


@pytest.mark.parametrize(("tape", "exchange"), [("A", "N"), ("B", "P"), ("C", "Q")])
def test_corrected_close_becomes_the_close_of_the_session_on_the_tape(tape: str, exchange: str) -> None:
    rows = [
        at(LAST_NS, 10.0, tape=tape, exchange=exchange),
        at(CLOSE_NS + MINUTE, 12.0, "@ T", tape=tape, exchange=exchange),
        at(CLOSE_NS + 20 * MINUTE, 10.5, "9", tape=tape, exchange=exchange, size=9_000.0),
    ]
    played = Played("sip", [*rows, Mark(CLOSE_NS + 22 * MINUTE)])
    assert played.bars[CLOSE_NS - MINUTE] == (10.0, 10.5, 10.0, 10.5, 100.0)
    assert set(played.bars) == {CLOSE_NS - MINUTE, CLOSE_NS + MINUTE}
    assert (played.value("close_official_day"), played.value("price")) == (10.5, 12.0)
    played.scanner.step(pulse(new_york("2025-03-11 04:00")))
    assert played.value("close_prev_day") == 10.5


@pytest.mark.parametrize(
    ("profile", "bar"), [("alpaca", (12.0, 12.0, 12.0, 12.0, 100.0)), ("massive", (12.0, 12.0, 10.5, 10.5, 100.0))]
)
def test_corrected_close_is_no_trade_with_alpaca_and_a_price_of_its_own_minute_with_massive(
    profile: str, bar: Bar
) -> None:
    minute_ns = CLOSE_NS + 20 * MINUTE
    rows = [at(LAST_NS, 10.0), at(minute_ns, 12.0, "@ T"), at(minute_ns + 1, 10.5, "9")]
    played = Played(profile, [*rows, Mark(minute_ns + 2 * MINUTE)])
    assert played.bars == {CLOSE_NS - MINUTE: (10.0, 10.0, 10.0, 10.0, 100.0), minute_ns: bar}
    assert played.value("close_official_day") == 10.5


def test_corrected_close_after_the_reach_of_revisions_names_the_official_close_alone() -> None:
    rows = [at(LAST_NS, 10.0), at(CLOSE_NS + 45 * MINUTE, 10.5, "9")]
    played = Played("sip", [*rows, Mark(CLOSE_NS + 47 * MINUTE)])
    assert played.bars == {CLOSE_NS - MINUTE: (10.0, 10.0, 10.0, 10.0, 100.0)}
    assert played.value("close_official_day") == 10.5
    assert played.scanner.tally["too_late"] == 1


# The same letter, another tape.


@pytest.mark.parametrize(("tape", "high"), [("A", 10.0), ("B", 10.0), ("C", 11.0), ("", 10.0)])
@pytest.mark.parametrize("profile", LETTERS)
def test_letter_b_is_an_average_price_on_tapes_a_and_b_and_a_trade_in_full_on_c(
    profile: str, tape: str, high: float
) -> None:
    rows = [at(TEN_NS, 10.0, tape=tape), at(TEN_NS + 1, 11.0, "B", tape=tape)]
    assert of_one_minute(profile, *rows) == (10.0, high, 10.0, high, 200.0)


# Official prices: records of the listing market, made known by every profile and in nobody's bar.


@pytest.mark.parametrize("profile", [*LETTERS, "algoseek"])
@pytest.mark.parametrize(("tape", "listing", "other"), [("A", "N", "P"), ("B", "P", "Q"), ("C", "Q", "P")])
def test_official_prices_are_those_of_the_listing_market(profile: str, tape: str, listing: str, other: str) -> None:
    flags = profile == "algoseek"
    regular, opens, closes = ("0x1", "0x4000000", "0x1000000") if flags else ("@", "Q", "M")
    rows = [
        at(OPEN_NS, 10.0, regular, tape=tape, exchange=other),
        at(OPEN_NS + 1, 10.2, opens, tape=tape, exchange=other),
        at(OPEN_NS + 2, 10.1, opens, tape=tape, exchange=listing, size=0.0),
        at(CLOSE_NS, 11.1, closes, tape=tape, exchange=listing, size=70_000.0),
        at(CLOSE_NS + 1, 11.2, closes, tape=tape, exchange=other),
        at(CLOSE_NS + 2, 11.3, closes, tape="", exchange=listing),
        at(CLOSE_NS + 3, 11.4, closes, tape=tape, exchange=""),
    ]
    before = Played(profile, [*rows[:2], Mark(OPEN_NS + SECOND)])
    assert np.isnan([before.value(f"{name}_official_day") for name in ("open", "close")]).all()
    played = Played(profile, [*rows, Mark(CLOSE_NS + 3 * MINUTE)])
    assert (played.value("open_official_day"), played.value("close_official_day")) == (10.1, 11.1)
    assert played.bars == {OPEN_NS: (10.0, 10.0, 10.0, 10.0, 100.0)}


def test_official_prices_are_unknown_again_when_the_next_day_begins() -> None:
    rows = [at(OPEN_NS, 10.1, "Q"), at(CLOSE_NS, 11.1, "M"), at(CLOSE_NS + MINUTE, 11.2, "M")]
    evening = Played("sip", [*rows, Mark(new_york("2025-03-11 03:59:59"))])
    assert (evening.value("open_official_day"), evening.value("close_official_day")) == (10.1, 11.2)
    morning = Played("sip", [*rows, Mark(new_york("2025-03-11 04:00"))])
    assert np.isnan([morning.value(f"{name}_official_day") for name in ("open", "close")]).all()
