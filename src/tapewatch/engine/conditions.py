"""Sale conditions: which prints may move what.

A profile is a table (see `tapewatch/reference/eligibility`). From it and a batch's dictionary of condition strings this
module makes one lookup array, so that the effects of a whole batch are one fancy index. It owns no list of letters.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.calendar import Phase
from tapewatch.engine.columns import U8

TAPES = 4
"""Tape classes: 0 unknown, 1 A, 2 B, 3 C."""


class Effect(IntFlag):
    """What a print may do to the bar that it falls in."""

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


PRICE = int(Effect.OPEN | Effect.HIGH_LOW | Effect.LAST)


@dataclass(frozen=True, slots=True)
class Profile:
    """How one condition string is judged. `effect(conditions, tape, phase)` is called once per distinct string."""

    name: str
    column: str
    """The tape file's column that carries the conditions: ``conditions`` (SIP letters) or a vendor's own."""
    effect: Callable[[str, str, Phase], Effect]


@dataclass(slots=True)
class EffectTable:
    """The lookup of one profile, grown as new condition strings appear."""

    profile: Profile
    _known: dict[str, U8] = field(default_factory=dict)
    _dictionary: tuple[str, ...] | None = None
    _table: U8 = field(default_factory=lambda: np.zeros(0, np.uint8))

    def lookup(self, dictionary: tuple[str, ...]) -> U8:
        """Shape (phases * TAPES * len(dictionary),): index phase, then tape class, then condition."""
        if dictionary is not self._dictionary:
            columns = [self._judge(conditions) for conditions in dictionary]
            self._table = np.ascontiguousarray(np.stack(columns, axis=-1)).reshape(-1)
            self._dictionary = dictionary
        return self._table

    def _judge(self, conditions: str) -> U8:
        known = self._known.get(conditions)
        if known is None:
            known = np.array(
                [
                    [int(self.profile.effect(conditions, tape, phase)) for tape in ("", "A", "B", "C")]
                    for phase in Phase
                ],
                dtype=np.uint8,
            )
            self._known[conditions] = known
        return known


TAPE_CLASS: NDArray[np.intp] = np.zeros(256, np.intp)
TAPE_CLASS[[ord("A"), ord("B"), ord("C")]] = [1, 2, 3]
