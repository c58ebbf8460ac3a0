"""Sale conditions, letter by letter, against the vendors' published tables."""

import pytest
from naive import EVERYTHING, Words, algoseek, alpaca

from tapewatch.eligibility import load_profile, profiles
from tapewatch.engine.calendar import Phase
from tapewatch.engine.conditions import TAPE_CLASS, TAPES, Effect, EffectTable
from tapewatch.errors import ConfigError

VOLUME_ONLY: Words = frozenset({"volume"})
NOTHING: Words = frozenset()
WORDS = {
    "open": Effect.OPEN,
    "high_low": Effect.HIGH_LOW,
    "last": Effect.LAST,
    "volume": Effect.VOLUME,
    "official_open": Effect.OFFICIAL_OPEN,
    "official_close": Effect.OFFICIAL_CLOSE,
}


def judged(profile: str, conditions: str, tape: str, phase: Phase = Phase.REGULAR) -> Words:
    """The effects as the engine reads them from its lookup table."""
    dictionary = ("decoy", conditions) if profile == "alpaca" else ("0x0", conditions)
    table = EffectTable(load_profile(profile)).lookup(dictionary)
    tape_class = int(TAPE_CLASS[ord(tape)]) if tape else 0
    effect = int(table[int(phase) * TAPES * len(dictionary) + tape_class * len(dictionary) + 1])
    return frozenset(word for word, bit in WORDS.items() if effect & bit)


def is_unknown(conditions: str, tape: str) -> bool:
    return bool(load_profile("alpaca").effect(conditions, tape, Phase.REGULAR) & Effect.UNKNOWN)


@pytest.mark.parametrize("tape", ["A", "B", "C"])
@pytest.mark.parametrize(
    ("letters", "effect"),
    [(" @ADEFKLOTXY561", EVERYTHING), ("CGHINPRUVWZ47", VOLUME_ONLY), ("MQ9", NOTHING)],
    ids=["everything", "volume only", "nothing"],
)
def test_alpaca_letter_has_the_effect_of_the_table(letters: str, effect: Words, tape: str) -> None:
    for letter in letters:
        assert judged("alpaca", letter, tape) == effect, letter
        assert judged("alpaca", f"@{letter}", tape) == effect, letter
        assert not is_unknown(letter, tape)


@pytest.mark.parametrize(("tape", "effect"), [("A", VOLUME_ONLY), ("B", VOLUME_ONLY), ("C", EVERYTHING)])
def test_letter_b_is_average_price_on_cta_and_bunched_on_utp(tape: str, effect: Words) -> None:
    assert judged("alpaca", "B", tape) == effect


def test_letter_b_of_an_unknown_tape_is_read_strictly() -> None:
    assert judged("alpaca", "B", "") == VOLUME_ONLY
    assert judged("alpaca", "@F", "") == EVERYTHING


@pytest.mark.parametrize(
    ("conditions", "effect"),
    [
        (" FT", EVERYTHING),
        (" 4B", VOLUME_ONLY),
        ("@ TI", VOLUME_ONLY),
        (" 7V", VOLUME_ONLY),
        ("@6I", VOLUME_ONLY),
        ("@IM", NOTHING),
        ("9Z", NOTHING),
        ("@?M", NOTHING),
    ],
)
def test_strictest_of_several_letters_wins_in_any_order(conditions: str, effect: Words) -> None:
    assert judged("alpaca", conditions, "A") == effect
    assert judged("alpaca", conditions[::-1], "A") == effect


@pytest.mark.parametrize("letter", ["?", "J", "S", "2", "ð", "8"])
def test_unknown_letter_counts_in_volume_only_and_is_marked(letter: str) -> None:
    for tape in ("", "A", "B", "C"):
        assert judged("alpaca", letter, tape) == VOLUME_ONLY
        assert is_unknown(f"@{letter}", tape)


def test_empty_conditions_are_a_regular_trade() -> None:
    for tape in ("", "A", "B", "C"):
        assert judged("alpaca", "", tape) == EVERYTHING
        assert not is_unknown("", tape)


@pytest.mark.parametrize("phase", list(Phase))
def test_alpaca_table_does_not_depend_on_the_session(phase: Phase) -> None:
    for conditions in ("@", " FT", "@I", "M"):
        assert judged("alpaca", conditions, "C", phase) == alpaca(conditions, "C", "")


@pytest.mark.parametrize(
    ("flags", "phase", "effect"),
    [
        ("0x1", Phase.REGULAR, EVERYTHING),
        ("0x1", Phase.PRE, VOLUME_ONLY),
        ("0x21", Phase.REGULAR, VOLUME_ONLY),
        ("0x2000", Phase.PRE, EVERYTHING),
        ("0x2001", Phase.POST, EVERYTHING),
        ("0x2000", Phase.REGULAR, VOLUME_ONLY),
        ("0x40", Phase.OPENING, EVERYTHING | {"official_open"}),
        ("0x40", Phase.REGULAR, NOTHING),
        ("0x80", Phase.POST, EVERYTHING | {"official_close"}),
        ("0x80", Phase.REGULAR, VOLUME_ONLY),
        ("0xc0", Phase.POST, NOTHING),
        ("0x1000000", Phase.POST, NOTHING),
        ("0x4000000", Phase.OPENING, NOTHING),
        ("0x1 suspicious", Phase.REGULAR, VOLUME_ONLY),
        ("0x2000 suspicious", Phase.POST, VOLUME_ONLY),
    ],
)
def test_algoseek_flags_have_the_effect_that_was_found(flags: str, phase: Phase, effect: Words) -> None:
    assert judged("algoseek", flags, "A", phase) == effect
    assert algoseek(flags, "A", phase.name.lower()) == effect


def test_lookup_of_another_dictionary_keeps_what_is_known() -> None:
    table = EffectTable(load_profile("alpaca"))
    first = table.lookup(("@", "@I"))
    second = table.lookup(("@I", "M", "@"))
    assert second[2] == first[0]
    assert second[0] == first[1]


def test_unknown_profile_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=", ".join(profiles())):
        load_profile("bloomberg")
