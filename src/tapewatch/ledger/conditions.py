"""Sale conditions for the oracle: what a print may do, letter by letter from the tables in `tapewatch/reference`."""

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from tapewatch.errors import ConfigError

Words = frozenset[str]
"""Among ``open``, ``high_low``, ``last``, ``volume``; ``official_open``, ``official_close``, ``names_open``,
``names_close``; and on what they depend: ``open_if_first``, ``last_if_first``, ``last_if_same_venue``, ``until_end``,
``extended``.
"""
MAY: Words = frozenset({"open", "high_low", "last", "volume"})
PRICES: Words = MAY - {"volume"}
_REFERENCE = files("tapewatch") / "reference"
_SAYS: dict[tuple[str, Any], Words] = {
    ("open", True): frozenset({"open"}),
    ("open", "if_first"): frozenset({"open", "open_if_first"}),
    ("last", True): frozenset({"last"}),
    ("last", "if_first"): frozenset({"last", "last_if_first"}),
    ("last", "if_same_venue"): frozenset({"last", "last_if_same_venue"}),
    ("last", "until_end"): frozenset({"last", "until_end"}),
    ("high_low", True): frozenset({"high_low"}),
    ("volume", True): frozenset({"volume"}),
    ("extended", True): frozenset({"extended"}),
    ("sets", "official_open"): frozenset({"official_open"}),
    ("sets", "official_close"): frozenset({"official_close"}),
    ("names", "open"): frozenset({"names_open"}),
    ("names", "close"): frozenset({"names_close"}),
}
_WORDS = frozenset(word for word, _ in _SAYS)
_NOTHING: Words = frozenset()


@dataclass
class Eligibility:
    """A profile: ``judge(conditions, tape, phase)`` says what such a print may do."""

    name: str
    column: str
    listing: Mapping[str, str]
    """Tape -> letters of the markets that list its symbols."""
    _judge: Callable[[str, str, str], Words]
    _known: dict[tuple[str, str, str], Words] = field(default_factory=dict)

    def judge(self, conditions: str, tape: str, phase: str) -> Words:
        key = conditions, tape, phase
        if key not in self._known:
            self._known[key] = self._judge(*key)
        return self._known[key]

    def lists(self, tape: str, exchange: str) -> bool:
        """Whether this market lists the tape's symbols."""
        return bool(exchange) and exchange in self.listing.get(tape, "")


def read_eligibility(name: str) -> Eligibility:
    """The profile of this name, or in the file at this path."""
    try:
        if name.endswith(".toml"):
            table = tomllib.loads(Path(name).read_text("utf-8"))
        else:
            table = tomllib.loads((_REFERENCE / "eligibility" / f"{name}.toml").read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"eligibility profile {name!r} cannot be read: {error}") from None
    plans = {plan: tomllib.loads((_REFERENCE / "conditions" / f"{plan}.toml").read_text("utf-8")) for plan in PLANS}
    listing = {tape: letters for plan in plans.values() for tape, letters in plan["listing"].items()}
    if "tables" in table:
        judge = _by_letters([plans[each] if isinstance(each, str) else each for each in table["tables"]])
    else:
        judge = _by_mask(table)
    return Eligibility(table["name"], table["column"], listing, judge)


PLANS = ("cta", "utp")


def _by_letters(tables: list[dict[str, Any]]) -> Callable[[str, str, str], Words]:
    def of_letter(letter: str, table: dict[str, Any], phase: str) -> Words:
        for row in table["rows"]:
            if letter in row["codes"] and phase in row.get("phases", (phase,)):
                return frozenset().union(*(_SAYS.get((word, row[word]), _NOTHING) for word in row.keys() & _WORDS))
        return frozenset({"volume"})  # a letter that no table knows

    def judge(conditions: str, tape: str, phase: str) -> Words:
        reading = [table for table in tables if not tape or tape in table["tapes"]]
        said = [of_letter(letter, table, phase) for table in reading for letter in conditions or " "]
        if not said:  # a tape that the profile does not speak of
            said = [frozenset({"volume"})]
        may, terms = MAY.intersection(*said), frozenset().union(*said) - MAY
        if "last" not in may:
            if "open_if_first" in terms:
                may -= {"open"}
            terms &= {"names_open", "names_close"}
        return may | terms

    return judge


def _by_mask(table: dict[str, Any]) -> Callable[[str, str, str], Words]:
    def fits(row: dict[str, Any], mask: int, phase: str) -> bool:
        if mask in row.get("except", ()) or phase not in row.get("phases", (phase,)):
            return False
        return bool(mask == row["equals"] if "equals" in row else mask & row["any"])

    def judge(conditions: str, _tape: str, phase: str) -> Words:
        digits, _, doubt = conditions.partition(" ")
        mask, words = int(digits or "0", 16), set()
        if not any(fits(row, mask, phase) for row in table["no_volume"]):
            words.add("volume")
        for row in table["price"] if not doubt else ():
            if fits(row, mask, phase):
                words |= PRICES | ({row["sets"]} if "sets" in row else set())
        words |= {f"names_{row['names']}" for row in table.get("official", ()) if fits(row, mask, phase)}
        return frozenset(words)

    return judge
