"""The contracts between the product and the outside: Bus, HotState, Store, Feed, Clock.

Prose lives here only; adapters say nothing twice. `tapewatch.contracts` holds one suite per port, run over every
adapter. All methods may raise `Unavailable` (wait, try again) unless said otherwise; no driver's exception passes.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeAlias

from tapewatch.documents import Alert, Rule
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import Bars, Batch, Gap
from tapewatch.engine.rules import Ruleset


class Position(NamedTuple):
    """A place in one stream. Contiguous within an epoch; greater means later."""

    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Alerts:
    """Alerts of one scan, in the order of rule and symbol. Not empty."""

    alerts: tuple[Alert, ...]


Entry: TypeAlias = Batch | Gap | Ruleset | Bars | BoardRows | Alerts
"""What a stream carries. Frozen: a reader never changes what it was handed."""


class Bus(Protocol):
    """Ordered, bounded logs, one per stream (a topic and partition such as ``ticks:0``), and short notices.

    Delivery: each reader sees every entry of its stream once, in the order of publication, from the position it
    names; readers do not share positions and do not slow the writer down. A stream keeps a bounded number of the
    newest entries; a reader that falls behind them gets `PositionLost`. One writer per stream.
    """

    async def publish(self, stream: str, entry: Entry) -> Position:
        """Append and return where. When it returns, any reader can see the entry."""
        ...

    def read(self, stream: str, after: Position | None = None) -> AsyncIterator[tuple[Position, Entry]]:
        """Entries after that position (None: everything retained), then live, until the caller stops iterating."""
        ...

    async def tail(self, stream: str) -> Position | None:
        """The newest entry's position; None when nothing was published."""
        ...

    async def notify(self, channel: str, payload: bytes) -> None:
        """Tell whoever listens now. May be lost by a listener that is slow (its newest notices are kept) or away."""
        ...

    def listen(self, channel: str) -> AsyncIterator[bytes]:
        """Notices from the moment of the call, until the caller stops iterating."""
        ...

    async def close(self) -> None:
        """End all readers and listeners."""
        ...


class Ranked(NamedTuple):
    """A member of a ranking and its score."""

    member: str
    score: float


class HotState(Protocol):
    """Small facts shared by roles, which expire. Losing them costs time, never truth."""

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        """The values in the order of `keys`; None for a key that is not there or expired."""
        ...

    async def put(self, values: Mapping[str, bytes], *, ttl_s: float) -> None:
        """Set all, each to expire after `ttl_s`."""
        ...

    async def claim(self, key: str, token: str, *, ttl_s: float, renew: bool = False) -> bool:
        """Take `key` if it is free, in one step. True if `token` holds it now.

        With `renew`, the holder extends its own claim, and nobody else's. A holder claiming again without `renew`
        gets False: a claim used as "only once" is granted once.
        """
        ...

    async def release(self, key: str, token: str) -> None:
        """Give up a claim; nothing happens if somebody else holds it."""
        ...

    async def rank(self, key: str, ranking: Sequence[Ranked], *, ttl_s: float) -> None:
        """Replace the whole ranking in one step; it expires after `ttl_s`. Scores are finite."""
        ...

    async def ranking(self, key: str, *, limit: int, offset: int = 0, descending: bool = True) -> list[Ranked]:
        """By score, equal scores by name; empty when there is none or it expired."""
        ...

    async def close(self) -> None: ...


class AlertQuery(NamedTuple):
    """Which alerts; None means any. Newest first; `before` is the (fired_at_ns, alert_id) of the last one seen."""

    symbol: str | None = None
    rule_id: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    before: tuple[int, str] | None = None
    limit: int = 100


class Store(Protocol):
    """What must survive. A write is durable when the call returns; effects and the reader's position go together."""

    async def upgrade(self) -> None:
        """Create or upgrade the schema. `ConfigError` if the store is from a newer release."""
        ...

    async def save_bars(self, bars: Bars, *, reader: str, position: Position | None = None) -> None:
        """Insert or replace by (symbol, ts_ns); a lower revision never replaces a higher one."""
        ...

    async def bars(
        self, symbol: str, *, start_ns: int | None = None, end_ns: int | None = None, limit: int = 1000
    ) -> Bars:
        """The newest `limit` bars in [start_ns, end_ns), oldest first."""
        ...

    async def save_alerts(
        self, alerts: Sequence[Alert], *, reader: str, position: Position | None = None
    ) -> list[Alert]:
        """Insert those whose id is new, and return just these, in order."""
        ...

    async def alerts(self, query: AlertQuery) -> list[Alert]: ...

    async def alert(self, alert_id: str) -> Alert:
        """`NotFound` if there is none."""
        ...

    async def position(self, reader: str) -> Position | None:
        """The position saved with the reader's last effect."""
        ...

    async def rules(self) -> tuple[int, list[Rule]]:
        """All rules that were not deleted, by id, and the number of this snapshot, which rises with every change."""
        ...

    async def rule(self, rule_id: str) -> Rule:
        """The newest version; `NotFound` if there is none or it was deleted."""
        ...

    async def save_rule(self, rule: Rule) -> Rule:
        """Write `rule.version` of the rule. Version 1 creates it, any other must be one more than the stored one;
        else `VersionConflict`. Returns it as stored: `created_at` is that of version 1, `updated_at` the given one.
        """
        ...

    async def delete_rule(self, rule_id: str) -> None:
        """`NotFound` if there is none. Its alerts and versions stay."""
        ...

    async def close(self) -> None: ...


class Feed(Protocol):
    """A provider as batches in the order of arrival. Marks are the feed's promise about time; a gap stands where the
    feed knows that trades may be missing.

    Iteration ends when the provider's data ends (a file); it raises `FeedLost` when the connection broke (iterate
    again to reconnect) and `FeedRefused` when trying again is useless. Rows that cannot be a trade are left out and
    counted in `rejected`, by reason.
    """

    @property
    def name(self) -> str: ...

    @property
    def rejected(self) -> Mapping[str, int]: ...

    def batches(self) -> AsyncIterator[Batch | Gap]: ...


class Clock(Protocol):
    """Wall clock and sleep. Only ingest, leases and serving code may read one; everything else takes its time from the
    tape.
    """

    def now_ns(self) -> int: ...

    async def sleep(self, seconds: float) -> None: ...
