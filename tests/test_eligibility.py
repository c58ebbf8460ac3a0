"""Tables of eligibility: the shipped ones, files of the user's, and one made from Massive's own answer."""

import json
import re
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from tapewatch.eligibility import load_profile, profile_from_massive, profiles
from tapewatch.engine.calendar import Phase
from tapewatch.engine.conditions import PRICE, Effect
from tapewatch.errors import ConfigError, Invalid

FULL = Effect(PRICE) | Effect.VOLUME
NOTHING = Effect(0)
OUTSIDE = (Phase.CLOSED, Phase.PRE, Phase.POST)
SHIPPED = ["algoseek", "alpaca", "massive", "sip"]


def alpaca(conditions: str, tape: str = "A") -> Effect:
    return load_profile("alpaca").effect(conditions, tape, Phase.REGULAR)


def algoseek(conditions: str, phase: Phase = Phase.REGULAR) -> Effect:
    return load_profile("algoseek").effect(conditions, "A", phase)


def prices_and_volume(effect: Effect) -> Effect:
    return effect & FULL


def test_profiles_are_the_shipped_tables() -> None:
    assert profiles() == SHIPPED
    assert [load_profile(name).name for name in profiles()] == profiles()
    assert [load_profile(name).column for name in profiles()] == ["cond_flags", *["conditions"] * 3]
    assert [load_profile(name).asks for name in profiles()] == [False, False, False, True]


def test_table_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*mine\.toml: No such file"):
        load_profile(str(tmp_path / "mine.toml"))


@pytest.mark.parametrize("name", ["", "Alpaca", "../alpaca", "cta"])
def test_unknown_profile_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(ConfigError, match="there are: algoseek, alpaca, massive, sip"):
        load_profile(name)


# -- the tape's own tables ---------------------------------------------------------------------------------------------


def plan(name: str) -> dict[str, Any]:
    return tomllib.loads((files("tapewatch") / "reference/conditions" / f"{name}.toml").read_text("utf-8"))


@pytest.mark.parametrize(("name", "tapes"), [("cta", "AB"), ("utp", "C")])
def test_plan_table_names_its_source_and_version(name: str, tapes: str) -> None:
    text = (files("tapewatch") / "reference/conditions" / f"{name}.toml").read_text("utf-8")
    assert "# Source: " in text
    assert "# Version: " in text
    table = plan(name)
    assert (table["name"], table["tapes"]) == (name, tapes)
    assert set(table["listing"]) == set(tapes)
    assert all(row["meaning"] for row in table["rows"])


@pytest.mark.parametrize("name", ["cta", "utp"])
def test_plan_table_tells_each_code_once_for_each_phase(name: str) -> None:
    seen = []
    for row in plan(name)["rows"]:
        assert len(row["codes"]) == 1
        seen.append((row["codes"], tuple(row.get("phases", ()))))
    assert len(set(seen)) == len(seen)


# -- Alpaca ------------------------------------------------------------------------------------------------------------


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
    named = Effect.NAMES_OPEN if "Q" in conditions else Effect.NAMES_CLOSE
    assert alpaca(conditions, tape) == named


def test_strictest_of_several_letters_wins() -> None:
    assert alpaca("FTI") == Effect.VOLUME
    assert alpaca("FTIM") == Effect.NAMES_CLOSE


@pytest.mark.parametrize(
    ("tape", "effect"), [("A", Effect.VOLUME), ("B", Effect.VOLUME), ("C", FULL), ("", Effect.VOLUME)]
)
@pytest.mark.parametrize("name", ["alpaca", "massive", "sip"])
def test_letter_b_is_an_average_price_on_a_and_b_and_a_bunched_trade_on_c(name: str, tape: str, effect: Effect) -> None:
    assert load_profile(name).effect("B", tape, Phase.REGULAR) == effect


@pytest.mark.parametrize("conditions", ["8", "@ 8", "é", "?"])
@pytest.mark.parametrize("tape", ["", "A", "C"])
@pytest.mark.parametrize("name", ["alpaca", "massive", "sip"])
def test_unknown_letter_counts_in_the_volume_and_is_reported(name: str, conditions: str, tape: str) -> None:
    for phase in Phase:
        assert load_profile(name).effect(conditions, tape, phase) == Effect.VOLUME | Effect.UNKNOWN


def test_letters_do_not_depend_on_the_session() -> None:
    effect = load_profile("alpaca").effect
    for letters in ("@ T", "I", "M"):
        assert len({effect(letters, "A", phase) for phase in Phase}) == 1


# -- AlgoSeek ----------------------------------------------------------------------------------------------------------


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
        ("0x1000000", Phase.POST, Effect.NAMES_CLOSE),
        ("0x4000000", Phase.OPENING, Effect.NAMES_OPEN),
        ("", Phase.REGULAR, Effect.VOLUME),
    ],
)
def test_bit_mask_is_judged_by_session(flags: str, phase: Phase, effect: Effect) -> None:
    assert algoseek(flags, phase) == effect


# -- a file of the user's ----------------------------------------------------------------------------------------------

MINE = """
name = "mine"
column = "conditions"
tables = ["utp", { tapes = "AB", rows = [{ codes = " @", open = true, last = "if_first", volume = true }] }]
"""


def write(folder: Path, text: str) -> str:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_profile_is_read_from_a_file(tmp_path: Path) -> None:
    profile = load_profile(write(tmp_path, MINE))
    assert (profile.name, profile.column, profile.asks) == ("mine", "conditions", True)
    own = Effect.OPEN | Effect.LAST | Effect.LAST_IF_FIRST | Effect.VOLUME
    assert profile.effect("@", "A", Phase.REGULAR) == own
    assert profile.effect("B", "C", Phase.REGULAR) == FULL


def test_table_in_the_documentation_is_a_profile(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "conditions.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    profile = load_profile(write(tmp_path, example))
    assert profile.effect("@ T", "A", Phase.PRE) == FULL
    assert profile.effect("@ T", "A", Phase.REGULAR) == Effect.VOLUME
    assert profile.asks
    assert set(re.findall(r"^\| `(\w+)`.* \|", page, re.MULTILINE)) == set(profiles())


def test_shipped_table_as_a_file_is_the_shipped_profile(tmp_path: Path) -> None:
    for name in SHIPPED:
        text = (files("tapewatch") / "reference/eligibility" / f"{name}.toml").read_text("utf-8")
        path = tmp_path / f"{name}.toml"
        path.write_text(text, encoding="utf-8")
        copied, shipped = load_profile(str(path)), load_profile(name)
        assert (copied.name, copied.listing) == (shipped.name, shipped.listing)
        for conditions in ("0x1", "0x40") if name == "algoseek" else ("@", "@Z", "9", "T", "?"):
            assert copied.effect(conditions, "C", Phase.POST) == shipped.effect(conditions, "C", Phase.POST)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name = ", "mine.toml: Invalid value"),
        ('column = "conditions"\ntables = ["cta"]', "'name' is missing"),
        (MINE.replace('"if_first"', '"sometimes"'), "row ' @': last = 'sometimes' means nothing"),
        (MINE.replace("volume", "volumes"), "row ' @': volumes = True means nothing"),
        (MINE.replace("codes", 'phases = ["night"], codes'), "there is no phase 'night'"),
        (MINE.replace('"utp"', '"otc"'), "no plan 'otc'; there are: cta, utp"),
        (MINE.replace('"utp"', "7"), "no plan 7"),
        (MINE.replace("open = true", "open = []"), r"open = \[\] means nothing"),
        (MINE.replace('tapes = "AB", ', ""), "'tapes' is missing"),
        ('name = "mine"\ncolumn = "flags"', "'price' is missing"),
    ],
)
def test_mistake_in_a_file_is_told_in_one_line(tmp_path: Path, text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        load_profile(write(tmp_path, text))
    assert "\n" not in str(caught.value)


# -- Massive's own answer ----------------------------------------------------------------------------------------------


def condition(number: int, cta: str | None, utp: str | None, rules: str, **more: Any) -> dict[str, Any]:
    """One entry; `rules` are high_low, open_close and volume as y or n."""
    updates = dict(
        zip(("updates_high_low", "updates_open_close", "updates_volume"), (r == "y" for r in rules), strict=True)
    )
    mapping = {sip: letter for sip, letter in (("CTA", cta), ("UTP", utp)) if letter is not None}
    return {
        "id": number,
        "type": "sale_condition",
        "name": f"Condition {number}",
        "asset_class": "stocks",
        "data_types": ["trade"],
        "sip_mapping": mapping,
        "update_rules": {"consolidated": updates, "market_center": dict.fromkeys(updates, True)},
        **more,
    }


# The documented rules; letters by plan.
CONDITIONS = [
    condition(0, None, "@", "yyy"), condition(1, None, "A", "yyy"), condition(2, "B", "W", "nny"),
    condition(3, "E", None, "yyy"), condition(4, None, "B", "yyy"), condition(5, None, "G", "yny"),
    condition(7, "C", "C", "nny"), condition(9, "X", "X", "yyy"), condition(10, "4", "4", "yny"),
    condition(11, None, "D", "yyy"), condition(12, "T", "T", "nny"), condition(13, "U", "U", "nny"),
    condition(14, "F", "F", "yyy"), condition(15, "M", "M", "nnn"), condition(16, "Q", "Q", "nnn"),
    condition(17, "O", "O", "yyy"), condition(18, "5", "5", "yyy"), condition(19, "6", "6", "yyy"),
    condition(20, "N", "N", "nny"), condition(21, "H", "H", "nny"), condition(22, "P", "P", "yny"),
    condition(23, None, "K", "yyy"), condition(24, "K", None, "yyy"), condition(25, None, "O", "yyy"),
    condition(27, None, "1", "yyy"), condition(29, "R", "R", "nny"), condition(30, "L", "L", "yyy"),
    condition(32, "Z", "Z", "yny"), condition(34, None, "S", "yyy"), condition(36, None, "Y", "yyy"),
    condition(37, "I", "I", "nny"), condition(38, "9", "9", "yyn"), condition(52, "V", "V", "nny"),
    condition(53, "7", "7", "nny"),
]  # fmt: skip


def answer(*conditions: Any) -> bytes:
    return json.dumps({"status": "OK", "count": len(conditions), "results": conditions}).encode()


def refreshed(folder: Path, *answers: bytes) -> Any:
    return load_profile(write(folder, profile_from_massive(*answers))).effect


def test_table_from_documented_rules_judges_as_the_shipped_one(tmp_path: Path) -> None:
    fresh, shipped = refreshed(tmp_path, answer(*CONDITIONS)), load_profile("massive").effect
    for tapes, sip in (("AB", "CTA"), ("C", "UTP")):
        letters = {c["sip_mapping"].get(sip, " ") for c in CONDITIONS}
        assert len(letters) > 20
        for tape in tapes:
            for phase in Phase:
                for letter in letters:
                    assert fresh(letter, tape, phase) == shipped(letter, tape, phase), (letter, tape, phase)


def test_table_from_several_pages_holds_them_all(tmp_path: Path) -> None:
    whole = profile_from_massive(answer(*CONDITIONS))
    assert profile_from_massive(answer(*CONDITIONS[:9]), answer(*CONDITIONS[9:])) == whole
    assert tomllib.loads(whole)["name"] == "massive"


def test_changed_rule_of_massive_changes_its_letter_alone(tmp_path: Path) -> None:
    changed = [condition(22, "P", "P", "nnn") if c["id"] == 22 else c for c in CONDITIONS]
    fresh, shipped = refreshed(tmp_path, answer(*changed)), load_profile("massive").effect
    assert fresh("P", "A", Phase.REGULAR) == NOTHING
    assert shipped("P", "A", Phase.REGULAR) == Effect.HIGH_LOW | Effect.VOLUME
    assert fresh("Z", "A", Phase.REGULAR) == shipped("Z", "A", Phase.REGULAR)


def test_form_t_sets_prices_outside_regular_hours_whatever_its_flags_say(tmp_path: Path) -> None:
    fresh = refreshed(tmp_path, answer(*CONDITIONS))
    for phase in Phase:
        assert fresh("@T", "C", phase) == (FULL if phase in OUTSIDE else Effect.VOLUME)
        assert fresh("@TI", "C", phase) == Effect.VOLUME


def test_letter_of_several_conditions_may_do_what_all_of_them_may(tmp_path: Path) -> None:
    fresh = refreshed(tmp_path, answer(*CONDITIONS, condition(99, "F", None, "yny")))
    assert fresh("F", "A", Phase.REGULAR) == Effect.HIGH_LOW | Effect.VOLUME
    assert fresh("F", "C", Phase.REGULAR) == FULL


@pytest.mark.parametrize(
    "noise",
    [
        condition(90, "F", "F", "nnn", type="trade_thru_exempt"),
        condition(91, "F", "F", "nnn", data_types=["bbo", "nbbo"]),
        condition(92, "F", "F", "nnn", legacy=True),
        condition(93, "", "", "nnn"),
        condition(94, "FF", "\n", "nnn"),
        {**condition(95, "F", "F", "nnn"), "update_rules": None},
        {"id": 96},
        None,
        7,
    ],
)
def test_entry_that_is_no_rule_of_a_sale_condition_is_left_out(noise: Any) -> None:
    assert profile_from_massive(answer(*CONDITIONS, noise)) == profile_from_massive(answer(*CONDITIONS))


def test_letter_that_needs_quoting_is_quoted(tmp_path: Path) -> None:
    fresh = refreshed(tmp_path, answer(*CONDITIONS, condition(97, '"', "\\", "yny")))
    assert fresh('"', "A", Phase.REGULAR) == fresh("\\", "C", Phase.REGULAR) == Effect.HIGH_LOW | Effect.VOLUME


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ((), "no rules"),
        ((b"<html>",), "page 1: no JSON"),
        ((b"\xff",), "page 1: no JSON"),
        ((b"[]",), "page 1: no list of results"),
        ((answer(*CONDITIONS), b'{"status": "ERROR"}'), "page 2: no list of results"),
        ((answer(),), "no rules"),
        ((answer(condition(1, None, "A", "yyy")),), "no rules of trades for both"),
    ],
)
def test_answer_that_holds_no_rules_is_refused(answers: tuple[bytes, ...], problem: str) -> None:
    with pytest.raises(Invalid, match=problem):
        profile_from_massive(*answers)
