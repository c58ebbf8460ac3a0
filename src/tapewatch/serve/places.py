"""Where a client is in the alerts of each partition, as text that it keeps and gives back without looking into it.

A place is ``epoch-sequence.nth``: the entry of the stream and the alert within it, from 0 on. With a ``+`` behind it,
more alerts of that entry follow; without one, the entry is over. ``epoch-sequence`` alone is the end of an entry, and
``0-0`` the beginning of a stream that had none.
"""

import re
from typing import NamedTuple

from tapewatch.ports import Position

_WHOLE = 2**31 - 1
_PLACE = re.compile(r"(\d{1,19})-(\d{1,19})(?:\.(\d{1,9})(\+)?)?", re.ASCII)
_MOST = 2**63 - 1


class Place(NamedTuple):
    """Greater means later; after all alerts of the entry unless an `nth` is given."""

    epoch: int
    sequence: int
    nth: int = _WHOLE

    @classmethod
    def after_entry(cls, position: Position | None) -> "Place":
        return NOWHERE if position is None else cls(*position)

    @classmethod
    def parse(cls, text: str) -> "Place | None":
        """None if no server wrote this."""
        found = _PLACE.fullmatch(text)
        if found is None:
            return None
        epoch, sequence = int(found[1]), int(found[2])
        if epoch > _MOST or sequence > _MOST:
            return None
        return cls(epoch, sequence, int(found[3])) if found[4] else cls(epoch, sequence)

    @property
    def position(self) -> Position:
        return Position(self.epoch, self.sequence)

    @property
    def is_whole(self) -> bool:
        """Whether nothing of its entry follows."""
        return self.nth >= _WHOLE

    def beyond(self) -> "Place":
        """Where alerts stand that belong between this entry and the next."""
        return Place(self.epoch, self.sequence, _WHOLE + 1)

    def text(self, *, more: bool = True) -> str:
        if self.is_whole:
            return f"{self.epoch}-{self.sequence}"
        return f"{self.epoch}-{self.sequence}.{self.nth}{'+' if more else ''}"


NOWHERE = Place(0, 0)
"""Before the first entry of a stream."""
