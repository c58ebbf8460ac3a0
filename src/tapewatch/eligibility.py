"""Profiles of trade eligibility, read from tables: `tapewatch/reference/eligibility/*.toml`.

Two kinds of table. `letters` lists SIP sale-condition letters per tape; the strictest of a trade's letters wins.
`price` and `no_volume` rows match a vendor's bit mask. A code that no table knows counts in the volume only.
"""

import tomllib
from functools import cache
from importlib.resources import files
from typing import Any

from tapewatch.engine.calendar import Phase
from tapewatch.engine.conditions import PRICE, Effect, Profile
from tapewatch.errors import ConfigError

_TABLES = files("tapewatch") / "reference" / "eligibility"
_UNKNOWN = Effect.VOLUME | Effect.UNKNOWN


def profiles() -> list[str]:
    """The names of the profiles that ship with the product."""
    return sorted(table.name.removesuffix(".toml") for table in _TABLES.iterdir() if table.name.endswith(".toml"))


@cache
def load_profile(name: str) -> Profile:
    """`ConfigError` if there is no such profile."""
    if name not in profiles():
        raise ConfigError(f"unknown eligibility profile {name!r}; there are: {', '.join(profiles())}")
    table = tomllib.loads((_TABLES / f"{name}.toml").read_text(encoding="utf-8"))
    judge = _by_letters(table["letters"]) if "letters" in table else _by_flags(table)
    return Profile(name=table["name"], column=table["column"], effect=judge)


def _by_letters(tables: dict[str, dict[str, str]]) -> Any:
    effects = {"everything": Effect(PRICE) | Effect.VOLUME, "volume_only": Effect.VOLUME, "nothing": Effect(0)}
    by_tape: dict[str, dict[str, Effect]] = {
        tape: {letter: effects[kind] for kind, letters in table.items() for letter in letters}
        for tapes, table in tables.items()
        for tape in tapes
    }

    def one(letter: str, tape: str) -> Effect:
        if tape:
            return by_tape[tape].get(letter, _UNKNOWN)
        readings = [table.get(letter, _UNKNOWN) for table in by_tape.values()]
        return min(readings, key=lambda effect: (effect & ~Effect.UNKNOWN).bit_count())

    def judge(conditions: str, tape: str, _phase: Phase) -> Effect:
        allowed, unknown = Effect(PRICE) | Effect.VOLUME, Effect(0)
        for letter in conditions or " ":
            effect = one(letter, tape)
            allowed &= effect
            unknown |= effect & Effect.UNKNOWN
        return allowed | unknown

    return judge


def _by_flags(table: dict[str, Any]) -> Any:
    sets = {"official_open": Effect.OFFICIAL_OPEN, "official_close": Effect.OFFICIAL_CLOSE}

    def fits(row: dict[str, Any], flags: int, phase: str) -> bool:
        if flags in row.get("except", ()) or phase not in row.get("phases", (phase,)):
            return False
        return flags == row["equals"] if "equals" in row else bool(flags & row["any"])

    def judge(conditions: str, _tape: str, phase: Phase) -> Effect:
        mask, _, suspicious = conditions.partition(" ")
        flags, name = int(mask or "0", 16), phase.name.lower()
        effect = Effect(0)
        if not any(fits(row, flags, name) for row in table["no_volume"]):
            effect |= Effect.VOLUME
        if not suspicious:
            for row in table["price"]:
                if fits(row, flags, name):
                    effect |= PRICE | sets.get(row.get("sets", ""), Effect(0))
        return effect

    return judge
