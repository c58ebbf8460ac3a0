"""The contracts between the product and the outside: Bus, HotState, Store, Journal, Feed, Reference, Clock.

Prose lives here only; adapters say nothing twice. `tapewatch.contracts` holds one suite per port, run over every
adapter. All methods may raise `Unavailable` (wait, try again) unless said otherwise; no driver's exception passes.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias, runtime_checkable

from tapewatch.accounts.roles import Role
from tapewatch.accounts.users import ApiToken, Identity, Profile, SignIn, User
from tapewatch.delivery_documents import Channel, Delivery, DeliveryState, Subscription, Told
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

    @property
    def lost(self) -> Mapping[str, int]:
        """What became of entries that readers did not get, in words -> how many since the bus was made: they could not
        be read, or went before a reader had reached them.
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

    async def swap(self, key: str, before: bytes | None, after: bytes | None, *, ttl_s: float) -> bool:
        """Put `after` in place of `before`, in one step; it expires after `ttl_s`. None is a key that is not there: one
        that somebody else must not have put, or that is to go. False if `before` is not what is there; `after` may be
        there then, from a call whose reply was lost.
        """
        ...

    async def rank(self, key: str, ranking: Sequence[Ranked], *, ttl_s: float) -> None:
        """Replace the whole ranking in one step; it expires after `ttl_s`. Scores are finite."""
        ...

    async def ranking(self, key: str, *, limit: int, offset: int = 0, descending: bool = True) -> list[Ranked]:
        """By score, equal scores by name; empty when there is none or it expired."""
        ...

    async def close(self) -> None: ...


class AlertQuery(NamedTuple):
    """Which alerts; None and () mean any. Newest first; `before` is the (fired_at_ns, alert_id) of the last one seen.

    A list of words asks for alerts that have one of them. What narrows beyond time, symbol and rule is looked at row by
    row.
    """

    symbol: str | None = None
    rule_id: str | None = None
    since_ns: int | None = None
    until_ns: int | None = None
    before: tuple[int, str] | None = None
    limit: int = 100
    viewer: str | None = None
    """A user: only their own alerts, and those that were shared when they fired."""
    after: tuple[int, str] | None = None
    """The last one seen where the oldest come first."""
    oldest_first: bool = False
    symbols: tuple[str, ...] = ()
    rule_ids: tuple[str, ...] = ()
    severities: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    name_part: str = ""
    """Of the rule's name; ASCII letters in any case."""
    acknowledged_by: str | None = None
    """Only those that this user has acknowledged."""
    not_acknowledged_by: str | None = None


class AlertKey(NamedTuple):
    """Which alert, in which state: nothing of a stored alert changes but its note."""

    alert_id: str
    fired_at_ns: int
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlertMark:
    """What one user has put on an alert. It is theirs alone, and never changes the alert."""

    acknowledged_at_ns: int | None
    note: str
    version: int
    """Rises by one with each change."""


class SecurityQuery(NamedTuple):
    """Which securities of the master; "" means any."""

    text: str = ""
    """Begins the symbol or stands in the name, ASCII letters in any case."""
    exchange: str = ""
    type: str = ""
    sector: str = ""
    limit: int = 20_000


class KeptAnswer(NamedTuple):
    """What a request was answered with."""

    status: int
    headers: dict[str, str]
    body: bytes


class OnceState(NamedTuple):
    """How it stands with a request that may be done once."""

    is_mine: bool
    """Whoever asked is to do it, and then says how it ended."""
    digest: bytes
    """Of what the first request with this key asked for."""
    answer: KeptAnswer | None
    """None while it is being done."""


class Snapshot(NamedTuple):
    """Rules and lists of one moment."""

    number: int
    """Rises with every change of them."""
    rules: list[Rule]
    """All that were not deleted, by id."""
    watchlists: list[Watchlist]
    """Those that enabled rules name, by id."""


AuditKind = Literal["rule", "watchlist", "toplist", "subscription", "channel", "user", "session", "token"]
AuditAction = Literal["create", "change", "delete"]
AUDIT_DAYS = 90
BAR_DAYS = ALERT_DAYS = 365
ONCE_S, ONCE_ABANDONED_S = 86_400, 60


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


class AccountsView(NamedTuple):
    """What decides who is let in, as of one moment."""

    number: int
    """As `AccountStore.accounts_number`."""
    users: list[User]
    """By name."""
    sessions: list[SignIn]
    """Those that have not ended, were not ended, and whose user is not disabled."""
    tokens: list[ApiToken]
    """Those that were not revoked; some may have expired."""


class AccountStore(Protocol):
    """Users, their sign-ins and the tokens of their programs. Changes come one after the other, each with its line in
    the audit log, in which no password, hash or token is ever named; `actor` is the user who changes it.

    A user's epoch rises with each change of role, password or `disabled`.
    """

    async def accounts_number(self) -> int:
        """Rises with every change that decides who is let in; cheap to ask."""
        ...

    async def accounts(self, now_ns: int) -> AccountsView: ...

    async def user(self, user_id: str) -> User:
        """`NotFound` if there is none."""
        ...

    async def user_named(self, name: str) -> User:
        """Capitals do not matter; `NotFound` if there is none."""
        ...

    async def user_of(self, identity: Identity) -> User:
        """`NotFound` if nobody has it."""
        ...

    async def add_user(self, user: User, *, identity: Identity | None = None, actor: str = "local") -> User:
        """`VersionConflict` if somebody has the name, the id or the identity."""
        ...

    async def link_identity(self, user_id: str, identity: Identity, *, actor: str = "local") -> None:
        """The user has it too from now on; nothing if they had. `NotFound`; `VersionConflict` if it is another's."""
        ...

    async def change_user(
        self, user_id: str, *, role: Role | None = None, disabled: bool | None = None, actor: str = "local"
    ) -> User:
        """None: leave it. Who is disabled is signed out everywhere. `NotFound`; `VersionConflict` if no admin who is
        not disabled would be left.
        """
        ...

    async def delete_user(self, user_id: str, *, actor: str = "local") -> None:
        """With sign-ins, tokens and identities; what they own stays. Refused as in `change_user`."""
        ...

    async def set_password(
        self, user_id: str, password_hash: str, *, keep_session: str | None = None, actor: str = "local"
    ) -> User:
        """All sign-ins end but `keep_session`. `NotFound`."""
        ...

    async def rehash_password(self, user_id: str, before: str, after: str) -> None:
        """The same password, kept in another way: no change, and nothing if it is no longer `before`."""
        ...

    async def save_profile(self, user_id: str, profile: Profile, *, actor: str = "local") -> User:
        """`NotFound`. Nobody's access changes, so the number stays."""
        ...

    async def begin_session(self, session: SignIn) -> None:
        """The user signs in. Beyond `MOST_SESSIONS` of theirs, those end that were used longest ago. `NotFound` if
        there is no such user, or they are disabled.
        """
        ...

    async def renew_session(self, session_id: str, *, refresh_hash: str, next_hash: str, now_ns: int) -> SignIn:
        """`next_hash` takes the place of `refresh_hash`. If that is not the newest one, somebody has a copy of it: the
        session ends. `NotFound` then, and if it had ended.
        """
        ...

    async def end_session(self, session_id: str, *, actor: str = "local") -> None:
        """Nothing if it had ended."""
        ...

    async def add_token(self, token: ApiToken, *, actor: str = "local") -> ApiToken:
        """`NotFound` for its user; `VersionConflict` beyond `MOST_TOKENS` of theirs. Of those that are no longer good
        as many are kept, the newest.
        """
        ...

    async def tokens(self, user_id: str | None = None) -> list[ApiToken]:
        """Of a user, or all: also those that expired or were revoked, newest first."""
        ...

    async def revoke_token(self, token_id: str, *, user_id: str | None = None, actor: str = "local") -> None:
        """`NotFound` unless there is one, of that user if one is named. Nothing if it was revoked before."""
        ...

    async def note_tokens_used(self, used: Mapping[str, int]) -> None:
        """By token the latest time in ns; the number stays."""
        ...


SENT_DAYS, DEAD_DAYS = 7, 30
MOST_CHANNELS, MOST_SUBSCRIPTIONS = 50, 200
"""Of one owner."""


class DeliveryQuery(NamedTuple):
    """Which deliveries; None means any. Newest first; `before` is the (at_ns, delivery_id) of the last one seen."""

    owner: str | None = None
    channel_id: str | None = None
    state: DeliveryState | None = None
    before: tuple[int, str] | None = None
    limit: int = 100


class DeliveryStore(Protocol):
    """Subscriptions, channels, and the outbox: what is to be told to whom, and what became of it.

    A delivery's id is derived from what it tells, so it exists once. Writes of a reader are fenced as those of `Store`.
    """

    async def subscriptions(self, owner: str | None = None) -> list[Subscription]:
        """All that were not deleted, or those of one owner, by id."""
        ...

    async def subscription(self, subscription_id: str) -> Subscription:
        """`NotFound` if there is none or it was deleted."""
        ...

    async def save_subscription(self, subscription: Subscription, *, actor: str = "local") -> Subscription:
        """Version 1 creates it, any other must be one more than the stored one; else `VersionConflict`. `Forbidden`
        past `MOST_SUBSCRIPTIONS` of its owner. The owner and `created_at` are those of version 1. In the audit log.
        """
        ...

    async def delete_subscription(self, subscription_id: str, *, actor: str = "local") -> None: ...

    async def channels(self, owner: str | None = None) -> list[Channel]:
        """As `subscriptions`, with their secrets."""
        ...

    async def channel(self, channel_id: str) -> Channel:
        """`NotFound` if there is none or it was deleted."""
        ...

    async def save_channel(self, channel: Channel, *, actor: str = "local") -> Channel:
        """As `save_subscription`, with `MOST_CHANNELS`. The audit log has its secrets as set or unset."""
        ...

    async def delete_channel(self, channel_id: str, *, actor: str = "local") -> None:
        """`VersionConflict`, which names them, while subscriptions name it. Its secrets are forgotten, and what waits
        for it is dead.
        """
        ...

    async def routing_number(self) -> int:
        """Rises with every change of a subscription, channel, watchlist or rule; costs little to ask."""
        ...

    async def save_deliveries(
        self,
        deliveries: Sequence[Delivery],
        *,
        reader: str,
        position: Position | None = None,
        owner: int | None = None,
    ) -> list[Delivery]:
        """Insert those whose id is new, with the reader's position, and return just these, in order."""
        ...

    async def told_since(self, since_ns: int) -> list[Told]:
        """Of alerts at or after that instant what is, will be or was told, oldest first."""
        ...

    async def due_channels(self, now_ns: int) -> list[str]:
        """Those for which something pending or held is due, by id."""
        ...

    async def waiting_deliveries(
        self, channel_id: str, *, state: DeliveryState, due_ns: int | None = None, limit: int = 100
    ) -> list[Delivery]:
        """The oldest of that state by (at_ns, delivery_id); with `due_ns` those due by then."""
        ...

    async def count_waiting(self, channel_ids: Sequence[str]) -> dict[str, int]:
        """What is pending or held, of those channels that have any."""
        ...

    async def fold_deliveries(self, digest: Delivery, folded: Sequence[str]) -> bool:
        """Put `digest` in the place of those that still wait. False, and nothing changed, if they do not all."""
        ...

    async def claim_delivery(self, delivery: Delivery, *, until_ns: int) -> bool:
        """Begin an attempt: True for one caller, whose attempt counts. If it says nothing more, the delivery is due
        again at `until_ns`. False if it changed since it was read.
        """
        ...

    async def finish_delivery(
        self, delivery_id: str, *, state: DeliveryState, at_ns: int, error: str = "", next_try_ns: int = 0
    ) -> None:
        """What became of an attempt. Sent is for good."""
        ...

    async def deliveries(self, query: DeliveryQuery) -> list[Delivery]: ...

    async def delivery(self, delivery_id: str) -> Delivery:
        """`NotFound` if there is none."""
        ...

    async def replay_delivery(self, delivery_id: str, *, now_ns: int) -> Delivery:
        """Send it once more: it is pending, with no attempts. `VersionConflict` unless it is dead or sent."""
        ...


class Store(AccountStore, DeliveryStore, ToplistStore, Protocol):
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

    async def alert_keys(self, query: AlertQuery) -> list[AlertKey]:
        """Those of the alerts that `alerts` would give, in its order: what a reader needs who keeps what it made of
        alerts that it has seen.
        """
        ...

    async def alerts_of(self, alert_ids: Sequence[str]) -> list[Alert]:
        """As they are now, in any order; those that are not there are left out."""
        ...

    async def alert(self, alert_id: str) -> Alert:
        """`NotFound` if there is none."""
        ...

    async def mark_alert(
        self,
        user_id: str,
        alert_id: str,
        *,
        at_ns: int,
        acknowledged: bool | None = None,
        note: str | None = None,
        version: int | None = None,
    ) -> AlertMark:
        """Change what the user has put on the alert; None leaves it as it is. What is acknowledged already keeps its
        time, and what changes nothing keeps its version. `NotFound` if there is no such alert; `VersionConflict` if
        `version` (0: none yet) is not the stored one.
        """
        ...

    async def alert_marks(self, user_id: str, alert_ids: Sequence[str]) -> dict[str, AlertMark]:
        """By alert, the user's marks; alerts without one are left out. `expire` forgets a mark with its alert."""
        ...

    async def find_securities(self, query: SecurityQuery) -> list[str]:
        """Symbols, ascending."""
        ...

    async def begin_once(self, user_id: str, key: str, digest: bytes, *, now_ns: int) -> OnceState:
        """Take the user's `key` for a request that is to be done once. Of many at the same moment one is told that it
        is theirs. A key is free again after `ONCE_S`, and after `ONCE_ABANDONED_S` in which nobody said how it ended.
        """
        ...

    async def end_once(self, user_id: str, key: str, answer: KeptAnswer | None) -> None:
        """Keep the answer for whoever asks again; None: it was not done, the key is free."""
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

    async def save_rule(self, rule: Rule, *, actor: str = "local", most: int | None = None) -> Rule:
        """Write `rule.version` of the rule. Version 1 creates it, any other must be one more than the stored one;
        else `VersionConflict`. Returns it as stored: `created_at` and `owner` are those of version 1, `updated_at` the
        given one. `QuotaReached` if it would be created, and its owner has `most` that were not deleted: of calls at
        the same time no more succeed than there is room for.

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

    async def save_watchlist(self, watchlist: Watchlist, *, actor: str = "local", most: int | None = None) -> Watchlist:
        """As `save_rule`. The ruleset's number rises if an enabled rule names the list."""
        ...

    async def delete_watchlist(self, watchlist_id: str, *, actor: str = "local") -> None:
        """`NotFound` if there is none; `VersionConflict` while enabled rules name it: it names those of the list's
        owner, and counts the others. Of a list that is not shared the others' do not matter.
        """
        ...

    async def audit(self, query: AuditQuery) -> list[AuditEntry]: ...

    async def expire(self, now_ns: int, *, tape_ns: int | None = None) -> int:
        """Forget audit entries older than `AUDIT_DAYS`, answers older than `ONCE_S`, and what `BAR_DAYS` and
        `ALERT_DAYS` before `tape_ns`, the tape's own time, was a bar or an alert; None: keep all of these. Says how
        many audit entries went. The rest may go later, in large pieces.
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
