"""A conversation with a provider, without the wires: `live.LiveFeed` owns sockets, time and queues; a session owns
what is said and what frames mean.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tapewatch.engine.columns import Bars, Batch, Gap
from tapewatch.errors import FeedLost, FeedRefused
from tapewatch.feeds.quarantine import Quarantine


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What some frames led to."""

    batch: Batch | None = None
    """Rows in the order of arrival, without marks; None when there were none."""
    bars: Sequence[Bars] = ()
    """The provider's own minute bars; `revision` 1 for one that it sent again."""
    gaps: Sequence[Gap] = ()
    """Where the provider said that it left trades out; each stands behind the rows of `batch`."""
    replies: Sequence[str | bytes] = ()
    """To be sent now, in this order."""
    ended: FeedLost | FeedRefused | None = None
    """The provider ended it; rows that came before are in `batch`."""
    notes: Mapping[str, int] = field(default_factory=dict)
    """Things worth counting that are no fault, such as messages of a channel that nobody reads."""


class Session(Protocol):
    """One connection's life: connect, authenticate, subscribe to the desired set, decode. Made anew for each
    connection, with the feed's lasting dictionaries and quarantine.
    """

    ready: bool
    """Authenticated, and the provider confirmed what was asked for."""
    quarantine: Quarantine

    def opening(self) -> Sequence[str | bytes]:
        """What the client says first, before the server has said anything."""
        ...

    def receive(self, frames: Sequence[tuple[int, bytes]]) -> Received:
        """Take frames in the order of arrival, control and data alike. Never raises for what a provider sent."""
        ...
