"""What people save so that alerts reach them elsewhere: Subscription and Channel, and what becomes of an alert on its
way: Delivery.

A channel's secrets are read, stored and handed to whoever sends. `Channel.shown` never has them, nor has its `repr`.
"""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeAlias
from zoneinfo import available_timezones

import msgspec
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    SecretStr,
    Tag,
    model_validator,
)

from tapewatch.engine.columns import SECOND_NS
from tapewatch.engine.rules.tree import SEVERITIES, Severity
from tapewatch.errors import Invalid
from tapewatch.strict import TAG, Document, Identifier, Symbol, Text, parse_document, refuse_field

MAX_NAMED = 500
"""Rules, symbols or lists of one subscription."""
MAX_CHANNELS_EACH = 16
"""Of one subscription."""
MAX_COOLDOWN_S = 86_400
MAX_URL = 2_000
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = re.compile(r"(?:[01][0-9]|2[0-3]):[0-5][0-9]")

Weekday = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
TradingSession = Literal["pre", "regular", "post", "closed"]
ChannelKind = Literal["webhook", "email", "telegram", "discord", "slack", "apprise"]
DeliveryKind = Literal["alert", "digest", "test"]
DeliveryState = Literal["pending", "held", "sent", "dead", "digested"]
"""held: it waits for a digest. digested: it is told in one. dead: nobody tries any more."""


def _once(values: list[Any]) -> list[Any]:
    return list(dict.fromkeys(values))


def _clock_time(value: str) -> str:
    if not _CLOCK.fullmatch(value):
        raise ValueError("is not a time of day such as 22:00")
    return value


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _time_zone(value: str) -> str:
    if value not in _time_zones():
        raise ValueError("is not a time zone such as America/New_York")
    return value


def _instant(value: str) -> str:
    if value:
        instant_ns(value)
    return value


def instant_ns(text: str) -> int:
    """Of an RFC 3339 time with a zone; ValueError if it is none."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None or not 1990 <= at.year < 2200:
        raise ValueError("is not a time such as 2025-03-04T14:30:00Z")
    return round((at - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds()) * SECOND_NS


def _whole(value: Any) -> Any:
    """In JSON 60.0 is the same number as 60."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Name = Annotated[Text, Field(min_length=1, max_length=120)]
ClockTime = Annotated[str, Field(max_length=5, examples=["22:00"]), AfterValidator(_clock_time)]
TimeZone = Annotated[str, Field(max_length=64, examples=["America/New_York"]), AfterValidator(_time_zone)]
Instant = Annotated[str, Field(max_length=64), AfterValidator(_instant)]


class What(Document):
    """Which alerts: all of them, or those for which everything that is given holds. Of each list one is enough."""

    all: bool = False
    rules: Annotated[list[Identifier], Field(max_length=MAX_NAMED), AfterValidator(_once)] = Field(default_factory=list)
    tags: Annotated[list[Identifier], Field(max_length=MAX_NAMED), AfterValidator(_once)] = Field(default_factory=list)
    symbols: Annotated[list[Symbol], Field(max_length=MAX_NAMED), AfterValidator(_once)] = Field(default_factory=list)
    watchlists: Annotated[list[Identifier], Field(max_length=MAX_NAMED), AfterValidator(_once)] = Field(
        default_factory=list
    )

    @model_validator(mode="after")
    def _something(self) -> "What":
        named = self.rules or self.tags or self.symbols or self.watchlists
        if self.all and named:
            refuse_field(What, "all", "is true, but rules, tags, symbols or watchlists are named, too", self.all)
        if not self.all and not named:
            refuse_field(What, "all", "is false, and no rule, tag, symbol or watchlist is named", self.all)
        return self


class QuietHours(Document):
    """Each of `days`, from a time of day up to the next `to`, which may be on the day after. Alerts of that time are
    told in one digest when it ends.
    """

    from_: Annotated[ClockTime, Field(alias="from")]
    to: ClockTime
    time_zone: TimeZone
    days: Annotated[list[Weekday], Field(min_length=1, max_length=7), AfterValidator(_once)] = Field(
        default_factory=lambda: list(DAYS)  # type: ignore[arg-type]  # pydantic checks defaults, too
    )

    @model_validator(mode="after")
    def _differs(self) -> "QuietHours":
        if self.from_ == self.to:
            refuse_field(QuietHours, "to", "is the same as from", self.to)
        return self


class Digest(Document):
    """When more than so many alerts come within so many seconds, the further ones are told together."""

    more_than: Annotated[int, Field(ge=1, le=1_000), BeforeValidator(_whole)] = 20
    within_s: Annotated[int, Field(ge=1, le=3_600), BeforeValidator(_whole)] = 60


class SubscriptionDraft(Document):
    """A subscription as its author writes it."""

    name: Name
    enabled: bool = True
    what: What
    sessions: Annotated[list[TradingSession], Field(max_length=4), AfterValidator(_once)] = Field(default_factory=list)
    """None: any."""
    severity: Severity = "info"
    """At least."""
    channels: Annotated[list[Identifier], Field(max_length=MAX_CHANNELS_EACH), AfterValidator(_once)] = Field(
        default_factory=list
    )
    cooldown: Annotated[int, Field(ge=0, le=MAX_COOLDOWN_S), BeforeValidator(_whole)] = 0
    """Seconds in which a rule's further alerts for the same symbol are not told."""
    quiet_hours: QuietHours | None = None
    muted_until: Instant = ""
    digest: Digest | None = Digest()


class Subscription(SubscriptionDraft):
    """A saved subscription."""

    id: Identifier
    owner: Identifier
    version: Annotated[int, Field(ge=1, le=2**31)] = 1
    created_at: str = ""
    updated_at: str = ""

    @property
    def muted_until_ns(self) -> int:
        return instant_ns(self.muted_until) if self.muted_until else 0

    @property
    def least_severity(self) -> int:
        return SEVERITIES.index(self.severity)

    def shown(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)


# -- channels ---------------------------------------------------------------------------------------------------------


def _secret(least: int, most: int, pattern: str = "", what: str = "") -> Any:
    def check(value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if not least <= len(text) <= most:
            raise ValueError(f"must have between {least} and {most} characters")
        if not text.isprintable() or (pattern and not re.fullmatch(pattern, text, re.ASCII)):
            raise ValueError(f"is not {what or 'plain text'}")
        return value

    return Annotated[SecretStr, AfterValidator(check)]


def _mail_address(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._%+\-]{1,64}@[A-Za-z0-9](?:[A-Za-z0-9.\-]{0,250}[A-Za-z0-9])?", value):
        raise ValueError("is not a mail address such as me@example.com")
    return value


def _plain_url(value: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        raise ValueError("is not a URL: it has blanks or letters that a URL cannot have")
    return value


MailAddress = Annotated[str, Field(max_length=320), AfterValidator(_mail_address)]
Host = Annotated[str, Field(pattern=r"^[A-Za-z0-9](?:[A-Za-z0-9.\-]{0,250}[A-Za-z0-9])?$")]


class _Settings(Document):
    ADDRESS: ClassVar[tuple[str, ...]] = ()
    """Where secrets are sent to: they are kept only while these stay as they are."""

    def secrets(self) -> dict[str, SecretStr | None]:
        return {name: getattr(self, name) for name, field in type(self).model_fields.items() if _is_secret(field)}

    def stored(self) -> dict[str, Any]:
        """With its secrets."""
        told = {name: value and value.get_secret_value() for name, value in self.secrets().items()}
        return self.model_dump(mode="json") | told

    def shown(self) -> dict[str, Any]:
        told = {name: "set" if value else "unset" for name, value in self.secrets().items()}
        return self.model_dump(mode="json") | told


def _is_secret(field: Any) -> bool:
    return "SecretStr" in str(field.annotation)


class WebhookSettings(_Settings):
    ADDRESS: ClassVar[tuple[str, ...]] = ("url",)
    kind: Literal["webhook"]
    url: Annotated[str, Field(min_length=1, max_length=MAX_URL), AfterValidator(_plain_url)]
    secret: _secret(24, 200) | None = None  # type: ignore[valid-type]  # made by a function
    """The key of the signature."""


class EmailSettings(_Settings):
    ADDRESS: ClassVar[tuple[str, ...]] = ("host", "port", "user", "security")
    kind: Literal["email"]
    host: Host
    port: Literal[25, 465, 587, 2525] = 587
    security: Literal["starttls", "tls"] = "starttls"
    user: Annotated[str, Field(min_length=1, max_length=320, pattern=r"^[\x21-\x7e]+$")]
    password: _secret(1, 500) | None = None  # type: ignore[valid-type]
    sender: MailAddress
    to: Annotated[list[MailAddress], Field(min_length=1, max_length=10), AfterValidator(_once)]


class TelegramSettings(_Settings):
    kind: Literal["telegram"]
    token: _secret(30, 100, r"[0-9]{5,20}:[A-Za-z0-9_\-]{20,80}", "the token of a bot") | None = None  # type: ignore[valid-type]
    chat_id: Annotated[str, Field(pattern=r"^(?:-?[0-9]{1,20}|@[A-Za-z0-9_]{5,32})$")]


class DiscordSettings(_Settings):
    kind: Literal["discord"]
    url: (
        _secret(  # type: ignore[valid-type]
            40,
            300,
            r"https://discord(?:app)?\.com/api/webhooks/[0-9]{5,25}/[A-Za-z0-9_\-]{20,200}",
            "the URL of a webhook such as https://discord.com/api/webhooks/…",
        )
        | None
    ) = None


class SlackSettings(_Settings):
    kind: Literal["slack"]
    url: (
        _secret(  # type: ignore[valid-type]
            40,
            300,
            r"https://hooks\.slack\.com/services/[A-Z0-9]{5,30}/[A-Z0-9]{5,30}/[A-Za-z0-9]{10,80}",
            "the URL of an incoming webhook such as https://hooks.slack.com/services/…",
        )
        | None
    ) = None


class AppriseSettings(_Settings):
    kind: Literal["apprise"]
    url: _secret(5, MAX_URL, r"[\x21-\x7e]+", "a URL of Apprise") | None = None  # type: ignore[valid-type]


def _kind_of(value: Any) -> str | None:
    kind = value.get("kind") if isinstance(value, Mapping) else getattr(value, "kind", None)
    return TAG + kind if isinstance(kind, str) else None


Settings: TypeAlias = Annotated[
    Annotated[WebhookSettings, Tag("~webhook")]
    | Annotated[EmailSettings, Tag("~email")]
    | Annotated[TelegramSettings, Tag("~telegram")]
    | Annotated[DiscordSettings, Tag("~discord")]
    | Annotated[SlackSettings, Tag("~slack")]
    | Annotated[AppriseSettings, Tag("~apprise")],
    Discriminator(
        _kind_of,
        custom_error_type="refused",
        custom_error_message="needs a kind: webhook, email, telegram, discord, slack or apprise",
    ),
]

RATE_PER_MINUTE: dict[str, int] = {
    "webhook": 120,
    "email": 6,
    "telegram": 20,
    "discord": 25,
    "slack": 30,
    "apprise": 12,
}
"""What each kind of receiver bears, for channels that say nothing else."""


class ChannelDraft(Document):
    """A channel as its author writes it. A secret that is left out stays as it is."""

    name: Name
    enabled: bool = True
    settings: Settings
    rate_per_minute: Annotated[int, Field(ge=1, le=600), BeforeValidator(_whole)] | None = None
    """None: what its kind bears."""


class Channel(ChannelDraft):
    """A saved channel."""

    id: Identifier
    owner: Identifier
    version: Annotated[int, Field(ge=1, le=2**31)] = 1
    notice: str = ""
    """Why it was switched off, if nobody did it by hand."""
    created_at: str = ""
    updated_at: str = ""

    @property
    def kind(self) -> ChannelKind:
        return self.settings.kind

    @property
    def rate(self) -> int:
        """Deliveries a minute."""
        return self.rate_per_minute or RATE_PER_MINUTE[self.kind]

    def shown(self) -> dict[str, Any]:
        """Without its secrets."""
        fields = self.model_dump(mode="json", exclude={"settings"})
        return fields | {"kind": self.kind, "settings": self.settings.shown(), "rate_per_minute": self.rate}

    def stored(self) -> dict[str, Any]:
        """With its secrets, for the store alone."""
        return self.model_dump(mode="json", exclude={"settings"}) | {"settings": self.settings.stored()}


def channel_settings(draft: ChannelDraft, known: Channel | None, *, where: str = "body") -> Settings:
    """The draft's settings, secrets that it leaves out from the channel that it replaces. `Invalid` if one is missing,
    or would go to another address than the one that it was given for.
    """
    settings, was = draft.settings, None if known is None else known.settings
    kept: dict[str, SecretStr] = {}
    for name, value in settings.secrets().items():
        if value is not None:
            continue
        stored = was.secrets().get(name) if was is not None and was.kind == settings.kind else None
        if was is None or stored is None:
            raise Invalid(f"{where}.settings.{name}", "is missing")
        if any(getattr(was, part) != getattr(settings, part) for part in settings.ADDRESS):
            raise Invalid(f"{where}.settings.{name}", f"must be given again with another {settings.ADDRESS[0]}")
        kept[name] = stored
    return settings.model_copy(update=kept)


def read_channel(raw: Any) -> Channel:
    """A stored one."""
    return parse_document(Channel, raw, where=f"stored channel {raw.get('id')}")


def read_subscription(raw: Any) -> Subscription:
    """A stored one."""
    return parse_document(Subscription, raw, where=f"stored subscription {raw.get('id')}")


# -- deliveries -------------------------------------------------------------------------------------------------------


class Delivery(msgspec.Struct, frozen=True, kw_only=True):
    """One alert, digest or test for one channel. The id is derived, so that it exists once."""

    delivery_id: str
    channel_id: str
    owner: str
    kind: DeliveryKind = "alert"
    state: DeliveryState = "pending"
    alert_id: str = ""
    rule_id: str = ""
    symbol: str = ""
    subscriptions: tuple[str, ...] = ()
    """Those that led here."""
    at_ns: int
    """When what it tells of happened; see `deliveries.deciding.happened_ns`."""
    next_try_ns: int = 0
    """When it may be sent, or, while held, when its digest is due."""
    attempts: int = 0
    error: str = ""
    """Of the last attempt; without secrets."""
    digest_id: str = ""
    """The delivery in which it is told."""
    sent_ns: int = 0
    body: dict[str, Any] = {}
    """What it tells: an alert or a digest as JSON."""


class Told(msgspec.Struct, frozen=True):
    """What is remembered of a delivery for the timing of later ones."""

    subscriptions: tuple[str, ...]
    rule_id: str
    symbol: str
    at_ns: int
    held_until_ns: int
    """0 if it was not held."""
