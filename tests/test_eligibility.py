"""The shipped tables: which sale conditions may move what."""

import pytest

from tapewatch.eligibility import load_profile, profiles
from tapewatch.engine.calendar import Phase
from tapewatch.engine.conditions import PRICE, Effect
from tapewatch.errors import ConfigError

FULL = Effect(PRICE) | Effect.VOLUME
NOTHING = Effect(0)


def alpaca(conditions: str, tape: str = "A") -> Effect:
    return load_profile("alpaca").effect(conditions, tape, Phase.REGULAR)


def algoseek(conditions: str, phase: Phase = Phase.REGULAR) -> Effect:
    return load_profile("algoseek").effect(conditions, "A", phase)


def test_profiles_are_the_shipped_tables() -> None:
    assert profiles() == ["algoseek", "alpaca"]
    assert [load_profile(name).name for name in profiles()] == profiles()
    assert [load_profile(name).column for name in profiles()] == ["cond_flags", "conditions"]


@pytest.mark.parametrize("name", ["", "Alpaca", "alpaca.toml", "../alpaca"])
def test_unknown_profile_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match="there are: algoseek, alpaca"):
        load_profile(name)


@pytest.mark.parametrize("conditions", ["", " ", "@", "@ F", " F X", "T", "@ T", "O", "5", "6"])
@pytest.mark.parametrize("tape", ["", "A", "B", "C"])
def test_regular_trades_count_in_full(conditions: str, tape: str) -> None:
    assert alpaca(conditions, tape) == FULL


@pytest.mark.parametrize("conditions", ["I", "@ TI", "@FTI", "W", "7", "4", "U", "FU", "C", "N", "R"])
@pytest.mark.parametrize("tape", ["", "A", "B", "C"])
def test_odd_lots_average_prices_and_the_like_count_in_the_volume_only(conditions: str, tape: str) -> None:
    assert alpaca(conditions, tape) == Effect.VOLUME


@pytest.mark.parametrize("conditions", ["M", "Q", "9", "@ M", "FM"])
@pytest.mark.parametrize("tape", ["", "A", "B", "C"])
def test_official_prices_are_records_and_no_trades(conditions: str, tape: str) -> None:
    assert alpaca(conditions, tape) == NOTHING


def test_strictest_of_several_letters_wins() -> None:
    assert alpaca("FTI") == Effect.VOLUME
    assert alpaca("FTIM") == NOTHING


@pytest.mark.parametrize(
    ("tape", "effect"), [("A", Effect.VOLUME), ("B", Effect.VOLUME), ("C", FULL), ("", Effect.VOLUME)]
)
def test_letter_b_is_an_average_price_on_a_and_b_and_a_bunched_trade_on_c(tape: str, effect: Effect) -> None:
    assert alpaca("B", tape) == effect


@pytest.mark.parametrize("conditions", ["8", "@ 8", "é", "?"])
@pytest.mark.parametrize("tape", ["", "A", "C"])
def test_unknown_letter_counts_in_the_volume_and_is_reported(conditions: str, tape: str) -> None:
    assert alpaca(conditions, tape) == Effect.VOLUME | Effect.UNKNOWN


def test_letters_do_not_depend_on_the_session() -> None:
    effect = load_profile("alpaca").effect
    for letters in ("@ T", "I", "M"):
        assert len({effect(letters, "A", phase) for phase in Phase}) == 1


@pytest.mark.parametrize(
    ("flags", "phase", "effect"),
    [
        ("0x1", Phase.REGULAR, FULL),
        ("0x21", Phase.REGULAR, Effect.VOLUME),
        ("0x1 suspicious", Phase.REGULAR, Effect.VOLUME),
        ("0x2000", Phase.PRE, FULL),
        ("0x2000", Phase.REGULAR, Effect.VOLUME),
        ("0x40", Phase.OPENING, FULL | Effect.OFFICIAL_OPEN),
        ("0x40", Phase.REGULAR, NOTHING),
        ("0x80", Phase.POST, FULL | Effect.OFFICIAL_CLOSE),
        ("0x41", Phase.OPENING, NOTHING),
        ("0x1000000", Phase.POST, NOTHING),
        ("0x4000000", Phase.OPENING, NOTHING),
        ("", Phase.REGULAR, Effect.VOLUME),
    ],
)
def test_bit_mask_is_judged_by_session(flags: str, phase: Phase, effect: Effect) -> None:
    assert algoseek(flags, phase) == effect
