"""Sale conditions: which prints may move what.

A profile is a table (see `tapewatch/reference/eligibility`). From it and a batch's dictionary of condition strings this
module makes one lookup array, so that the effects of a whole batch are one fancy index. It owns no list of letters.
What depends on the trades before (`ASKS`) is decided in `lasts`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.calendar import Phase
from tapewatch.engine.columns import U8, U16, Bool
from tapewatch.engine.frozen import Carried
from tapewatch.errors import Invalid

TAPES = 4
"""Tape classes: 0 unknown, 1 A, 2 B, 3 C."""


class Effect(IntFlag):
    """What a print may do to the bar that it falls in, and on what that depends."""

    OPEN = 1
    HIGH_LOW = 2
    LAST = 4
    VOLUME = 8
    OFFICIAL_OPEN = 16
    """Sets the open of its minute whatever traded before it."""
    OFFICIAL_CLOSE = 32
    """Is booked as the last print of the regular session that has just ended."""
    UNKNOWN = 64
    """A code that the table does not know: counted, so that somebody mends the table."""
    NAMES_OPEN = 128
    """Names the day's official open, if it is the listing market that says so."""
    NAMES_CLOSE = 256
    """Names the day's official close, likewise."""
    OPEN_IF_FIRST = 512
    """OPEN holds only for the first trade of the day that may set the last price."""
    LAST_IF_FIRST = 1024
    """LAST holds only for that trade."""
    LAST_IF_SAME_VENUE = 2048
    """LAST holds for that trade, for one of the venue that set the last price, and for one of the listing market."""
    LAST_UNTIL_END = 4096
    """LAST and OPEN hold until ten seconds after the close."""
    EXTENDED = 8192
    """Belongs to the extended-hours series: no last price of the day's own series."""


PRICE = int(Effect.OPEN | Effect.HIGH_LOW | Effect.LAST)
ASKS = int(Effect.OPEN_IF_FIRST | Effect.LAST_IF_FIRST | Effect.LAST_IF_SAME_VENUE | Effect.LAST_UNTIL_END)


@dataclass(frozen=True, slots=True)
class Profile:
    """How one condition string is judged. `effect(conditions, tape, phase)` is called once per distinct string."""

    name: str
    column: str
    """The tape file's column that carries the conditions: ``conditions`` (SIP letters) or a vendor's own."""
    effect: Callable[[str, str, Phase], Effect]
    asks: bool = False
    """Some effects depend on the trades before."""
    listing: Mapping[str, str] = field(default_factory=dict)
    """Tape -> participant letters of the markets that list its symbols."""


@dataclass(slots=True)
class EffectTable:
    """The lookup of one profile, grown as new condition strings appear."""

    profile: Profile
    _known: dict[str, U16] = field(default_factory=dict)
    _dictionary: tuple[str, ...] | None = None
    _table: U16 = field(default_factory=lambda: np.zeros(0, np.uint16))

    def remake(self, _: None) -> None:
        """`Invalid` if another profile judged what has been judged."""
        before, self._known = self._known, {}
        for conditions, judged in before.items():
            if self._judge(conditions).tolist() != judged.tolist():
                raise Invalid("state", f"is of another profile, which judges {conditions[:64]!r} otherwise")
        self._dictionary, self._table = None, np.zeros(0, np.uint16)

    def lookup(self, dictionary: tuple[str, ...]) -> U16:
        """Shape (phases * TAPES * len(dictionary),): index phase, then tape class, then condition."""
        if dictionary is not self._dictionary:
            columns = [self._judge(conditions) for conditions in dictionary]
            self._table = np.ascontiguousarray(np.stack(columns, axis=-1)).reshape(-1)
            self._dictionary = dictionary
        return self._table

    def _judge(self, conditions: str) -> U16:
        known = self._known.get(conditions)
        if known is None:
            known = np.array(
                [
                    [int(self.profile.effect(conditions, tape, phase)) for tape in ("", "A", "B", "C")]
                    for phase in Phase
                ],
                dtype=np.uint16,
            )
            self._known[conditions] = known
        return known


TAPE_CLASS: NDArray[np.intp] = np.zeros(256, np.intp)
TAPE_CLASS[[ord("A"), ord("B"), ord("C")]] = [1, 2, 3]


class ListingMarkets:
    """Which participants list the symbols of a tape."""

    def __init__(self, profile: Profile) -> None:
        self._lists = np.zeros((TAPES, 256), np.bool_)
        for tape, letters in profile.listing.items():
            self._lists[TAPE_CLASS[ord(tape)], [ord(letter) for letter in letters]] = True

    def at(self, tape: U8, exchange: U8) -> Bool:
        """Whether each print came from its listing market; not where tape or exchange is unknown."""
        listed: Bool = self._lists[TAPE_CLASS[tape], exchange]
        return listed


CONDITION_CARRIED = (Carried(EffectTable, given=("profile",), remade=("_dictionary", "_table")),)
