"""Profiles of trade eligibility, read from tables: `tapewatch/reference/eligibility/*.toml`, or a file of the user's.

Two kinds of table. `tables` lists SIP sale-condition letters per tape, in place or by the name of a plan's table in
`tapewatch/reference/conditions`; the strictest of a trade's letters wins. `price` and `no_volume` rows match a vendor's
bit mask. A code that no table knows counts in the volume only.
"""

import json
import tomllib
from collections.abc import Callable, Iterable
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from tapewatch.engine.calendar import Phase
from tapewatch.engine.conditions import ASKS, PRICE, Effect, Profile
from tapewatch.errors import ConfigError, Invalid

_REFERENCE = files("tapewatch") / "reference"
_TABLES = _REFERENCE / "eligibility"
_PLANS = ("cta", "utp")
_MAY = Effect(PRICE) | Effect.VOLUME
_UNKNOWN = Effect.VOLUME | Effect.UNKNOWN
_PHASES = tuple(phase.name.lower() for phase in Phase)
_OUTSIDE_REGULAR = ("closed", "pre", "post")

_WORDS: dict[str, dict[Any, Effect]] = {
    "open": {True: Effect.OPEN, "if_first": Effect.OPEN | Effect.OPEN_IF_FIRST},
    "last": {
        True: Effect.LAST,
        "if_first": Effect.LAST | Effect.LAST_IF_FIRST,
        "if_same_venue": Effect.LAST | Effect.LAST_IF_SAME_VENUE,
        "until_end": Effect.LAST | Effect.LAST_UNTIL_END,
    },
    "high_low": {True: Effect.HIGH_LOW},
    "volume": {True: Effect.VOLUME},
    "extended": {True: Effect.EXTENDED},
    "sets": {"official_open": Effect.OFFICIAL_OPEN, "official_close": Effect.OFFICIAL_CLOSE},
    "names": {"open": Effect.NAMES_OPEN, "close": Effect.NAMES_CLOSE},
}
"""What a row of a table may say, and what it then means."""

Judge = Callable[[str, str, Phase], Effect]


def profiles() -> list[str]:
    """The names of the profiles that ship with the product."""
    return sorted(table.name.removesuffix(".toml") for table in _TABLES.iterdir() if table.name.endswith(".toml"))


@cache
def load_profile(name: str) -> Profile:
    """The profile of this name, or in the file at this path (``….toml``); `ConfigError` if there is none or it has a
    mistake.
    """
    if name in profiles():
        text = (_TABLES / f"{name}.toml").read_text(encoding="utf-8")
    elif name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"eligibility profile: cannot read {name}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"eligibility profile: {name} is not UTF-8 text") from None
    else:
        raise ConfigError(f"unknown eligibility profile {name!r}; there are: {', '.join(profiles())}")
    try:
        return _profile(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: {error}") from None
    except KeyError as error:
        raise ConfigError(f"{name}: {error} is missing") from None
    except (Invalid, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"{name}: {error}") from None


def _profile(table: dict[str, Any]) -> Profile:
    plans = {plan: tomllib.loads((_REFERENCE / "conditions" / f"{plan}.toml").read_text("utf-8")) for plan in _PLANS}
    listing = {tape: markets for plan in plans.values() for tape, markets in plan["listing"].items()}
    if "tables" not in table:
        judge, asks = _by_flags(table), False
    else:
        judge, asks = _by_letters([_table(each, plans) for each in table["tables"]])
    return Profile(name=table["name"], column=table["column"], effect=judge, asks=asks, listing=listing)


def _table(named: Any, plans: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One of a profile's tables: in place, or the plan's of this name."""
    if isinstance(named, dict):
        return named
    if named not in plans:
        raise Invalid("tables", f"no plan {named!r}; there are: {', '.join(plans)}")
    return plans[named]


def _by_letters(tables: Iterable[dict[str, Any]]) -> tuple[Judge, bool]:
    by_tape: dict[str, dict[tuple[str, Phase], Effect]] = {}
    for table in tables:
        known: dict[tuple[str, Phase], Effect] = {}
        for row in table["rows"]:
            effect = _row_effect(row)
            for letter in row["codes"]:
                for phase in row.get("phases", _PHASES):
                    if phase not in _PHASES:
                        raise Invalid(f"row {row['codes']!r}", f"there is no phase {phase!r}")
                    known.setdefault((letter, Phase[phase.upper()]), effect)
        by_tape.update(dict.fromkeys(table["tapes"], known))

    def judge(conditions: str, tape: str, phase: Phase) -> Effect:
        readings = [by_tape.get(tape, {})] if tape else list(by_tape.values())
        return _strictest(known.get((letter, phase), _UNKNOWN) for known in readings for letter in conditions or " ")

    return judge, any(effect & ASKS for known in by_tape.values() for effect in known.values())


def _row_effect(row: dict[str, Any]) -> Effect:
    effect = Effect(0)
    for word, value in row.items():
        if word in {"codes", "phases", "meaning"} or value is False:
            continue
        if not isinstance(value, bool | str) or value not in _WORDS.get(word, {}):
            raise Invalid(f"row {row.get('codes')!r}", f"{word} = {value!r} means nothing")
        effect |= _WORDS[word][value]
    return effect


def _strictest(effects: Iterable[Effect]) -> Effect:
    """What all allow, under the conditions of each."""
    allowed, terms = _MAY, Effect(0)
    for effect in effects:
        allowed &= effect
        terms |= effect & ~_MAY
    if not allowed & Effect.LAST:
        if terms & Effect.OPEN_IF_FIRST:
            allowed &= ~Effect.OPEN
        terms &= Effect.UNKNOWN | Effect.NAMES_OPEN | Effect.NAMES_CLOSE
    return allowed | terms


def _by_flags(table: dict[str, Any]) -> Judge:
    price, no_volume, official = table["price"], table["no_volume"], table.get("official", [])

    def fits(row: dict[str, Any], flags: int, phase: str) -> bool:
        if flags in row.get("except", ()) or phase not in row.get("phases", (phase,)):
            return False
        return flags == row["equals"] if "equals" in row else bool(flags & row["any"])

    def judge(conditions: str, _tape: str, phase: Phase) -> Effect:
        mask, _, suspicious = conditions.partition(" ")
        flags, name = int(mask or "0", 16), phase.name.lower()
        effect = Effect(0)
        if not any(fits(row, flags, name) for row in no_volume):
            effect |= Effect.VOLUME
        if not suspicious:
            for row in price:
                if fits(row, flags, name):
                    effect |= PRICE | _WORDS["sets"].get(row.get("sets"), Effect(0))
        for row in official:
            if fits(row, flags, name):
                effect |= _WORDS["names"][row["names"]]
        return effect

    return judge


def profile_from_massive(*answers: bytes) -> str:
    """A profile's table (TOML) from Massive's answers to ``/v3/reference/conditions?asset_class=stocks``, one a page.

    A letter to which several conditions map may do what all of these may. One whose rules are not given is left out:
    it counts in the volume only. `Invalid` if an answer is no JSON of the documented form or holds no rules of trades.
    """
    may: dict[str, dict[str, Effect]] = {"AB": {}, "C": {}}
    for page, answer in enumerate(answers, start=1):
        for condition in _massive_conditions(answer, page):
            match condition:
                case {
                    "type": "sale_condition" | "condition",
                    "data_types": list(kinds),
                    "sip_mapping": dict(letters),
                    "update_rules": {"consolidated": dict(rules)},
                } if "trade" in kinds and not condition.get("legacy"):
                    effect = _massive_effect(rules)
                    for sip, tapes in (("CTA", "AB"), ("UTP", "C")):
                        letter = letters.get(sip)
                        if isinstance(letter, str) and len(letter) == 1 and letter.isprintable():
                            may[tapes][letter] = may[tapes].get(letter, _MAY) & effect
    if not all(may.values()):
        raise Invalid("results", "no rules of trades for both CTA and UTP")
    lines = ["# From Massive's answer to /v3/reference/conditions.", 'name = "massive"', 'column = "conditions"']
    for tapes, effects in may.items():
        regular = {" ": _MAY, "@": _MAY}
        rows = [row for letter, effect in sorted((regular | effects).items()) for row in _massive_rows(letter, effect)]
        lines += ["", "[[tables]]", f'tapes = "{tapes}"', "rows = [", *rows, "]"]
    return "\n".join([*lines, ""])


def _massive_conditions(answer: bytes, page: int) -> list[Any]:
    try:
        body = json.loads(answer)
    except ValueError as error:
        raise Invalid(f"page {page}", f"no JSON: {error}") from None
    if not isinstance(body, dict) or not isinstance(body.get("results"), list):
        raise Invalid(f"page {page}", "no list of results")
    results: list[Any] = body["results"]
    return results


def _massive_effect(rules: dict[str, Any]) -> Effect:
    effect = Effect(0)
    for rule, bits in (
        ("updates_high_low", Effect.HIGH_LOW),
        ("updates_open_close", Effect.OPEN | Effect.LAST),
        ("updates_volume", Effect.VOLUME),
    ):
        if rules.get(rule) is True:
            effect |= bits
    return effect


def _massive_rows(letter: str, effect: Effect) -> Iterable[str]:
    """Lines of the table. Form T sets prices before the open and after the close, whatever its flags say."""
    code = f"    {{ codes = {json.dumps(letter, ensure_ascii=False)}"
    if letter == "T":
        yield f"{code}, phases = {list(_OUTSIDE_REGULAR)}, open = true, last = true, high_low = true, volume = true }},"
    words = [f"{word} = true" for word in ("open", "last", "high_low", "volume") if effect & _WORDS[word][True]]
    words += [f'names = "{price}"' for price, letters in (("close", "M9"), ("open", "Q")) if letter in letters]
    yield ", ".join([code, *words]) + " },"
