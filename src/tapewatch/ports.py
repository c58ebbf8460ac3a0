"""The contracts between the product and the outside: Bus, HotState, Store, Journal, Feed, Reference, Clock.

Prose lives here only; adapters say nothing twice. `tapewatch.contracts` holds one suite per port, run over every
adapter. All methods may raise `Unavailable` (wait, try again) unless said otherwise; no driver's exception passes.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from tapewatch.documents import Alert, Rule, Security, Split, Watchlist
from tapewatch.engine.board import BoardRows
from tapewatch.engine.columns import Bars, Batch, Facts, Gap
from tapewatch.engine.daily import DailyBars
from tapewatch.engine.rules import Ruleset
from tapewatch.engine.scanner import Withdrawn
from tapewatch.errors import FeedLoss
from tapewatch.toplist_documents import Toplist


class Position(NamedTuple):
    """A place in one stream. Contiguous within an epoch; greater means later."""

    epoch: int
    sequence: int


@dataclass(frozen=True, slots=True)
class Alerts:
    """Alerts of one scan, in the order of rule and symbol. Not empty."""

    alerts: tuple[Alert, ...]


Entry: TypeAlias = Batch | Gap | Facts | Ruleset | Bars | BoardRows | Alerts | Withdrawn
"""What a stream carries. Frozen: a reader never changes what it was handed."""


class Bus(Protocol):
    """Ordered, bounded logs, one per stream (a topic and partition such as ``ticks:0``), and short notices.

    Delivery: each reader sees every entry of its stream once, in the order of publication, from the position it
    names; readers do not share positions and do not slow the writer down. A stream keeps a bounded number of the
    newest entries; a reader that falls behind them gets `PositionLost`. One writer per stream.

    What was confirmed is durable as far as the server is: where the server comes back without its newest entries, the
    writer that lives puts them back, at their own positions, and readers find them there.
    """

    async def publish(self, stream: str, entry: Entry) -> Position:
        """Append and return where. When it returns, any reader can see the entry. Publishing the same entry again after
        `Unavailable` never doubles it. `LeaseLost` when a newer writer has the stream, or the log lost more than this
        writer can put back: take over again.
        """
        ...

    def read(self, stream: str, after: Position | None = None) -> AsyncIterator[tuple[Position, Entry]]:
        """Entries after that position (None: everything retained), then live, until the caller stops iterating."""
        ...

    async def publish_all(self, entries: Mapping[str, Entry]) -> dict[str, Position]:
        """Append one entry to each of many streams, in as few round trips as there can be. As `publish` for each; after
        an error some of them may have theirs, and publishing the same again gives each of them its entry once.
        """
        ...

    async def take_over(self, stream: str) -> None:
        """Write this stream from now on. The next `publish` fences whoever wrote it before, in this process or another:
        what that one publishes later gets `LeaseLost`.
        """
        ...

    async def tail(self, stream: str) -> Position | None:
        """The newest entry's position; None when nothing was published."""
        ...

    async def newest(self, stream: str, limit: int) -> list[tuple[Position, Entry]]:
        """The newest `limit` entries that are kept, oldest first."""
        ...

    async def reached(self, reader: str, positions: Mapping[str, Position]) -> None:
        """Say up to where `reader` (such as ``bars``) has come in each of these streams. It moves nothing: it is what
        `lag` is reckoned from, and a stream that drops entries which a reader has not reached says so in the log.
        """
        ...

    async def lag(self, reader: str, streams: Sequence[str]) -> dict[str, int]:
        """Entries that follow the position which `reader` said last, by stream; streams of which it said nothing are
        left out.
        """
        ...

    async def notify(self, channel: str, payload: bytes) -> None:
        """Tell whoever listens now. May be lost by a listener that is slow (its newest notices are kept) or away."""
        ...

    def listen(self, channel: str) -> AsyncIterator[bytes]:
        """Notices from the moment of the call (of other processes: after one round trip), until the caller stops
        iterating.
        """
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

    async def hold(self, keys: Sequence[str], token: str, *, ttl_s: float) -> list[bool]:
        """`claim` with `renew` of many keys in one round trip: for each whether `token` holds it now. Asking again
        after a reply that was lost does no harm.
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


class Snapshot(NamedTuple):
    """Rules and lists of one moment."""

    number: int
    """Rises with every change of them."""
    rules: list[Rule]
    """All that were not deleted, by id."""
    watchlists: list[Watchlist]
    """Those that enabled rules name, by id."""


AuditKind = Literal["rule", "watchlist", "toplist"]
AuditAction = Literal["create", "change", "delete"]
AUDIT_DAYS = 90
BAR_DAYS = ALERT_DAYS = 365


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A change of a document, by whom and when."""

    entry: int
    """A later one has a greater number; none is used twice."""
    at_ns: int
    """Wall clock of the store."""
    actor: str
    action: AuditAction
    kind: AuditKind
    subject: str
    """The document's id."""
    version: int
    """The version that this wrote; of a deletion the last one."""
    before: Mapping[str, Any]
    """The fields that changed, as JSON, without the version and its times. Of `symbols` those that went."""
    after: Mapping[str, Any]
    """The same fields now. Of `symbols` those that came."""


class AuditQuery(NamedTuple):
    """Which changes; None means any. Newest first; `before` is the `entry` of the last one seen."""

    kind: AuditKind | None = None
    subject: str | None = None
    since_ns: int | None = None
    before: int | None = None
    limit: int = 100


MAX_TOPLISTS_OF_ONE, MAX_TOPLISTS, MAX_SHOWN_METRICS = 50, 500, 100


class ToplistStore(Protocol):
    """Users' toplists, which have versions as rules have. Part of `Store`."""

    async def toplists(self, *, owner: str | None = None) -> list[Toplist]:
        """All that were not deleted, by id; with `owner` just theirs."""
        ...

    async def toplists_number(self) -> int:
        """Rises with every change of a toplist: whether anything changed costs little to ask."""
        ...

    async def toplist(self, toplist_id: str) -> Toplist:
        """`NotFound` if there is none or it was deleted."""
        ...

    async def shown_metrics(self) -> tuple[str, ...]:
        """The rows that enabled toplists read beside those that boards always have; sorted. Whatever changes them
        raises the ruleset's number in the same transaction.
        """
        ...

    async def save_toplist(self, toplist: Toplist, *, actor: str = "local") -> Toplist:
        """As `save_rule`; its owner stays that of version 1. `VersionConflict`, which says so, when a new one would be
        the owner's 51st or the installation's 501st, or would make enabled toplists read more than 100 rows beside
        those that boards always have.
        """
        ...

    async def delete_toplist(self, toplist_id: str, *, actor: str = "local") -> None:
        """`NotFound` if there is none."""
        ...


class Saved(NamedTuple):
    """What a reader finds when it takes over."""

    owner: int
    """Its fencing token: greater than that of every owner before."""
    position: Position | None
    """Of the stream it reads, up to which its effects are in the store, or which `state` belongs to."""
    state: bytes | None
    """What it kept at `position`, if it keeps anything."""


class Store(ToplistStore, Protocol):
    """What must survive. A write is durable when the call returns; effects and the reader's position go together.

    A reader such as ``bars:3`` has one owner at a time. Writes that name an `owner` are refused with `LeaseLost`,
    whole, once a later one has taken over; without (None) they are not checked.
    """

    async def take_over(self, reader: str) -> Saved:
        """Become the reader's owner: from now on earlier owners cannot write as this reader."""
        ...

    async def save_state(self, reader: str, state: bytes, *, position: Position, owner: int | None = None) -> None:
        """Keep this as the reader's state at that position, in place of what it kept before."""
        ...

    async def settle(self, name: str, value: str) -> str:
        """Fix a figure for the life of the installation, such as the number of partitions: the first caller's value
        stays, and everybody is given that one.
        """
        ...

    async def upgrade(self) -> None:
        """Create or upgrade the schema. `ConfigError` if the store is from a newer release."""
        ...

    async def save_bars(
        self, bars: Bars, *, reader: str, position: Position | None = None, owner: int | None = None
    ) -> None:
        """Insert or replace by (symbol, ts_ns); a lower revision never replaces a higher one. A bar without a close was
        withdrawn: it is kept, and not given back.
        """
        ...

    async def bars(
        self, symbol: str, *, start_ns: int | None = None, end_ns: int | None = None, limit: int = 1000
    ) -> Bars:
        """The newest `limit` bars in [start_ns, end_ns), oldest first."""
        ...

    async def save_alerts(
        self, alerts: Sequence[Alert], *, reader: str, position: Position | None = None, owner: int | None = None
    ) -> list[Alert]:
        """Insert those whose id is new, and return just these, in order."""
        ...

    async def annotate_alerts(
        self,
        symbol: str,
        *,
        since_ns: int,
        note: str,
        reader: str,
        position: Position | None = None,
        owner: int | None = None,
    ) -> list[Alert]:
        """Add the note (see `Alert.annotated`) to all alerts of the symbol fired at or after `since_ns`. Returns those
        that it changed, as they are now, oldest first.
        """
        ...

    async def alerts(self, query: AlertQuery) -> list[Alert]: ...

    async def alert(self, alert_id: str) -> Alert:
        """`NotFound` if there is none."""
        ...

    async def position(self, reader: str) -> Position | None:
        """The position saved with the reader's last effect."""
        ...

    async def rules(self) -> Snapshot: ...

    async def ruleset_number(self) -> int:
        """That of the snapshot which `rules` would give: whether anything changed costs little to ask."""
        ...

    async def rule(self, rule_id: str, version: int | None = None) -> Rule:
        """The newest version; `NotFound` if there is none or it was deleted. A version that is named is given back
        although the rule was deleted since.
        """
        ...

    async def rule_versions(self, rule_id: str, *, limit: int = 100, offset: int = 0) -> list[Rule]:
        """Newest first, without holes, those of a deleted rule too. `NotFound` if there never was such a rule."""
        ...

    async def save_rule(self, rule: Rule, *, actor: str = "local") -> Rule:
        """Write `rule.version` of the rule. Version 1 creates it, any other must be one more than the stored one;
        else `VersionConflict`. Returns it as stored: `created_at` is that of version 1, `updated_at` the given one.

        This and every other change of a rule or watchlist is in the audit log when the call returns.
        """
        ...

    async def delete_rule(self, rule_id: str, *, actor: str = "local") -> None:
        """`NotFound` if there is none. Its alerts and versions stay, and its id is taken for ever."""
        ...

    async def watchlists(self) -> list[Watchlist]:
        """All that were not deleted, by id."""
        ...

    async def watchlist(self, watchlist_id: str) -> Watchlist:
        """`NotFound` if there is none or it was deleted."""
        ...

    async def save_watchlist(self, watchlist: Watchlist, *, actor: str = "local") -> Watchlist:
        """As `save_rule`. The ruleset's number rises if an enabled rule names the list."""
        ...

    async def delete_watchlist(self, watchlist_id: str, *, actor: str = "local") -> None:
        """`NotFound` if there is none; `VersionConflict`, which names them, while enabled rules name it."""
        ...

    async def audit(self, query: AuditQuery) -> list[AuditEntry]: ...

    async def expire(self, now_ns: int, *, tape_ns: int | None = None) -> int:
        """Forget audit entries older than `AUDIT_DAYS`, and what `BAR_DAYS` and `ALERT_DAYS` before `tape_ns`, the
        tape's own time, was a bar or an alert; None: keep all of these. Says how many audit entries went. The rest may
        go later, in large pieces.
        """
        ...

    async def save_securities(self, securities: Sequence[Security]) -> None:
        """Insert or replace by symbol."""
        ...

    async def securities(self) -> list[Security]:
        """All, by symbol."""
        ...

    async def securities_of(self, symbols: Sequence[str]) -> list[Security]:
        """Those of `symbols` that the master lists, by symbol."""
        ...

    async def save_splits(self, splits: Sequence[Split]) -> None:
        """Insert or replace by (symbol, ex_date)."""
        ...

    async def splits(self, *, start: date | None = None) -> list[Split]:
        """Those with an ex-date from `start` on, by ex-date and symbol."""
        ...

    async def save_daily_bars(self, bars: DailyBars) -> None:
        """Insert or replace by (symbol, day). `Invalid` names the first row that cannot be a bar, and saves nothing."""
        ...

    async def daily_bars(
        self, symbols: Sequence[str], *, start: date | None = None, end: date | None = None
    ) -> DailyBars:
        """Of these symbols the days from `start` up to and with `end`, by symbol and day. Its `symbols` are just these,
        in this order, with history or without.
        """
        ...

    async def daily_days(self, *, start: date | None = None) -> list[date]:
        """The days from `start` on of which there is at least one daily bar, ascending."""
        ...

    async def close(self) -> None: ...


class Journal(Protocol):
    """What ingest has put onto the tape, or was about to, on a disk of its own: after a crash it goes on from there.

    Bounded: it keeps the newest entries. One survives the end of the process when `append` returns, and the end of the
    machine within a tenth of a second after.
    """

    async def append(self, entry: Entry, *, rows: int) -> None:
        """`rows`: of the feed up to and with this entry, since the feed's beginning."""
        ...

    def read(self) -> AsyncIterator[tuple[int, Entry]]:
        """All that is kept, oldest first, as (rows, entry). A last entry that was cut off is none."""
        ...

    async def close(self) -> None: ...


@runtime_checkable
class Resumable(Protocol):
    """A feed that can go on where an earlier life of it ended, such as a file."""

    def resume(self, rows: int) -> None:
        """The next `batches` begin behind the first so many rows."""
        ...


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

    def batches(self) -> AsyncIterator[Batch | Gap | Bars]:
        """Bars are the provider's own; an empty batch says that the provider serves us and nothing has traded yet."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedStatus:
    """One provider's connection, for people."""

    name: str
    role: Literal["primary", "fallback"]
    state: Literal["waiting", "connecting", "running", "lost", "refused", "open"]
    """waiting: it stands by. lost: between two attempts. open: it failed too often, and is left alone for a while."""
    circuit: Literal["closed", "open", "half_open"]
    problem: str
    """What it said when it was lost or refused last; empty while it runs."""
    reason: FeedLoss | Literal["", "refused"]
    failures: int
    """Losses since data last flowed for a while."""
    connects: int
    losses: Mapping[str, int]
    """Since the start, by reason."""
    last_data_ns: int | None
    """Wall clock of the newest rows."""
    last_data_age_s: float | None
    rows: int
    overflow_frames: int
    rejected: Mapping[str, int]
    samples: Mapping[str, Sequence[str]]
    """Of what was rejected, by reason."""


@runtime_checkable
class Supervised(Protocol):
    """A feed that can say how its connections are."""

    def status(self) -> list[FeedStatus]: ...


class Reference(Protocol):
    """A source of reference data. An answer is whole or it is an error: `Unavailable` (after retries of its own),
    `FeedRefused` (credentials, or what the plan does not include), `NotFound` (nothing is at that address), `Invalid`
    (it makes no sense; names where).
    """

    @property
    def name(self) -> str: ...

    async def securities(self) -> list[Security]:
        """Every security that is listed now. Details that cost a request each are missing."""
        ...

    def details(self, symbols: Sequence[str]) -> AsyncIterator[Security]:
        """Securities with their details, one by one; those that the source does not know are left out, and all of them
        where it has no details.
        """
        ...

    async def splits(self, start: date, end: date) -> list[Split]:
        """Those with an ex-date from `start` up to and with `end`."""
        ...

    async def daily_bars(self, symbols: Sequence[str], start: date, end: date) -> DailyBars:
        """Raw bars of these symbols (a source may add others) from `start` up to and with `end`, in any order. Rows
        that cannot be a bar are left out.
        """
        ...

    async def close(self) -> None: ...


class Clock(Protocol):
    """Wall clock and sleep. Only ingest, leases, serving code and the audit log may read one; everything else takes its
    time from the tape.
    """

    def now_ns(self) -> int: ...

    async def sleep(self, seconds: float) -> None: ...
