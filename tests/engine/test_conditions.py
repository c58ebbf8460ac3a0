"""Sale conditions, letter by letter, against the vendors' published tables."""

import pytest
from naive import EVERYTHING, Words, algoseek, alpaca, massive, sip

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
    "names_open": Effect.NAMES_OPEN,
    "names_close": Effect.NAMES_CLOSE,
    "open_if_first": Effect.OPEN_IF_FIRST,
    "last_if_first": Effect.LAST_IF_FIRST,
    "last_if_same_venue": Effect.LAST_IF_SAME_VENUE,
    "until_end": Effect.LAST_UNTIL_END,
    "extended": Effect.EXTENDED,
}
NAMES_OPEN: Words = frozenset({"names_open"})
NAMES_CLOSE: Words = frozenset({"names_close"})
FIRST: Words = EVERYTHING | {"open_if_first", "last_if_first"}


def judged(profile: str, conditions: str, tape: str, phase: Phase = Phase.REGULAR) -> Words:
    """The effects as the engine reads them from its lookup table."""
    dictionary = ("0x0", conditions) if profile == "algoseek" else ("decoy", conditions)
    table = EffectTable(load_profile(profile)).lookup(dictionary)
    tape_class = int(TAPE_CLASS[ord(tape)]) if tape else 0
    effect = int(table[int(phase) * TAPES * len(dictionary) + tape_class * len(dictionary) + 1])
    return frozenset(word for word, bit in WORDS.items() if effect & bit)


def is_unknown(conditions: str, tape: str) -> bool:
    return bool(load_profile("alpaca").effect(conditions, tape, Phase.REGULAR) & Effect.UNKNOWN)


@pytest.mark.parametrize("tape", ["A", "B", "C"])
@pytest.mark.parametrize(
    ("letters", "effect"),
    [
        (" @ADEFKLOTXY561", EVERYTHING),
        ("CGHINPRUVWZ47", VOLUME_ONLY),
        ("M9", NAMES_CLOSE),
        ("Q", NAMES_OPEN),
    ],
    ids=["everything", "volume only", "official close", "official open"],
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
        ("@IM", NAMES_CLOSE),
        ("9Z", NAMES_CLOSE),
        ("@?M", NAMES_CLOSE),
        ("MQ", NAMES_CLOSE | NAMES_OPEN),
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
        ("0x1000000", Phase.POST, NAMES_CLOSE),
        ("0x4000000", Phase.OPENING, NAMES_OPEN),
        ("0x1 suspicious", Phase.REGULAR, VOLUME_ONLY),
        ("0x2000 suspicious", Phase.POST, VOLUME_ONLY),
    ],
)
def test_algoseek_flags_have_the_effect_that_was_found(flags: str, phase: Phase, effect: Words) -> None:
    assert judged("algoseek", flags, "A", phase) == effect
    assert algoseek(flags, "A", phase.name.lower()) == effect


# Consolidated effects by plan, as the plans' tables have them: (codes, effect outside regular hours, inside).
LATE_CTA: Words = EVERYTHING | {"open_if_first", "last_if_same_venue"}
LATE_UTP: Words = EVERYTHING | {"open_if_first", "until_end"}
CORRECTED: Words = frozenset({"open", "last", "high_low", "open_if_first", "names_close"})
EXTENDED: Words = EVERYTHING | {"extended"}
CTA = [
    (" @EFKXO56", EVERYTHING, EVERYTHING),
    ("L", LATE_CTA, LATE_CTA),
    ("PZ4", FIRST, FIRST),
    ("T", EXTENDED, VOLUME_ONLY),
    ("U", FIRST | EXTENDED, VOLUME_ONLY),
    ("BCHINRV7", VOLUME_ONLY, VOLUME_ONLY),
    ("M", NAMES_CLOSE, NAMES_CLOSE),
    ("Q", NAMES_OPEN, NAMES_OPEN),
]
UTP = [
    ("@ ABDFKOSXY156", EVERYTHING, EVERYTHING),
    ("L", LATE_UTP, LATE_UTP),
    ("GPZ4", FIRST, FIRST),
    ("T", EXTENDED, VOLUME_ONLY),
    ("U", FIRST | EXTENDED, VOLUME_ONLY),
    ("CHINRVW7", VOLUME_ONLY, VOLUME_ONLY),
    ("M", NAMES_CLOSE, NAMES_CLOSE),
    ("Q", NAMES_OPEN, NAMES_OPEN),
]
OUTSIDE = (Phase.CLOSED, Phase.PRE, Phase.POST)


@pytest.mark.parametrize(
    ("tape", "codes", "outside", "inside"),
    [(tape, *row) for tape, table in (("A", CTA), ("B", CTA), ("C", UTP)) for row in table],
)
def test_code_has_the_consolidated_effect_of_its_plan(tape: str, codes: str, outside: Words, inside: Words) -> None:
    for code in codes:
        for phase in Phase:
            assert judged("sip", code, tape, phase) == (outside if phase in OUTSIDE else inside), (code, phase)


@pytest.mark.parametrize("tape", ["A", "C"])
def test_corrected_close_is_the_last_print_of_the_session_that_has_ended(tape: str) -> None:
    booked: Words = frozenset({"last", "high_low", "official_close", "names_close"})
    assert judged("sip", "9", tape, Phase.POST) == booked
    for phase in (Phase.CLOSED, Phase.PRE, Phase.OPENING, Phase.REGULAR):
        assert judged("sip", "9", tape, phase) == CORRECTED


@pytest.mark.parametrize(
    ("conditions", "tape", "effect"),
    [
        (" FZ", "A", FIRST),
        ("LP", "A", LATE_CTA | FIRST),
        ("@ TI", "C", VOLUME_ONLY),
        (" FTZ", "B", FIRST | EXTENDED),
        ("9I", "A", NAMES_CLOSE),
        (" 7V", "A", VOLUME_ONLY),
        ("@4W", "C", VOLUME_ONLY),
        ("MZ", "A", NAMES_CLOSE),
    ],
)
def test_condition_of_each_letter_holds_as_long_as_all_allow_the_price(
    conditions: str, tape: str, effect: Words
) -> None:
    assert judged("sip", conditions, tape, Phase.PRE) == effect
    assert judged("sip", conditions[::-1], tape, Phase.PRE) == effect


@pytest.mark.parametrize("profile", ["sip", "massive", "alpaca"])
def test_letters_of_a_profile_are_judged_as_by_its_naive_twin(profile: str) -> None:
    naive = {"sip": sip, "massive": massive, "alpaca": alpaca}[profile]
    letters = " @ABCDEFGHIKLMNOPQRSTUVWXYZ01456789?"
    for tape in ("", "A", "B", "C"):
        for phase in Phase:
            for one in letters:
                for other in ("", *"@TIZ9MLPU4B?"):
                    words = judged(profile, one + other, tape, phase)
                    assert words == naive(one + other, tape, phase.name.lower()), (one + other, tape, phase)


@pytest.mark.parametrize(
    ("letters", "effect"),
    [
        (" @ADEFKLOSXY156", EVERYTHING),
        ("GPZ4", frozenset({"high_low", "volume"})),
        ("CHINRUVW7", VOLUME_ONLY),
        ("9", frozenset({"open", "last", "high_low", "names_close"})),
        ("M", NAMES_CLOSE),
        ("Q", NAMES_OPEN),
    ],
)
def test_massive_letter_has_the_effect_of_its_update_rules(letters: str, effect: Words) -> None:
    for letter in letters:
        for tape in ("A", "B", "C"):
            for phase in Phase:
                assert judged("massive", letter, tape, phase) == effect, letter


def test_lookup_of_another_dictionary_keeps_what_is_known() -> None:
    table = EffectTable(load_profile("alpaca"))
    first = table.lookup(("@", "@I"))
    second = table.lookup(("@I", "M", "@"))
    assert second[2] == first[0]
    assert second[0] == first[1]


def test_unknown_profile_names_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=", ".join(profiles())):
        load_profile("bloomberg")
