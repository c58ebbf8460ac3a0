"""Settings of `tapewatch up` and `tapewatch run`, checked once, and how durations and paths are read."""

import ipaddress
import os
import re
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from urllib.parse import urlsplit

from tapewatch.accounts.openid_settings import OpenIdSettings
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import ConfigError

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_ORIGIN = re.compile(r"https?://(?:[a-z0-9](?:[a-z0-9.\-]{0,252})|\[[0-9a-f:.]{2,45}\])(?::[1-9][0-9]{0,4})?")
_SYMBOL = re.compile(r"[A-Z][A-Z0-9.\-/]{0,15}")
LIVE_FEEDS = ("alpaca", "massive", "databento")
_REFERENCES = ("alpaca", "massive")
FEEDS = ("synthetic", "replay", *LIVE_FEEDS)
PARTITIONED = ("bars", "indicators", "scanner", "alerts")
"""Roles whose members share the partitions."""
SINGLE = ("ingest", "toplists", "deliveries")
"""Roles of which one member works, and the others stand by."""
ROLES = ("ingest", *PARTITIONED, "toplists", "deliveries", "gateway", "api")
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]", "::1"})
_HOST = re.compile(r"[A-Za-z0-9:][A-Za-z0-9.:\-]{0,252}")
PARTITIONS = 16
RULES_A_USER, WATCHLISTS_A_USER = 500, 200
"""That somebody may have at a time."""
MOST_PARTITIONS = 1024
_SHARD = re.compile(r"([0-9]{1,4})/([0-9]{1,4})")


def duration_s(text: str, *, option: str) -> float:
    """Such as ``100ms``, ``1s``, ``2m``."""
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ConfigError(f"{option}: {text!r} is not a duration such as 100ms, 1s or 2m")
    return float(match[1]) * _UNIT_S[match[2]]


def scan_interval_ns(text: str) -> int:
    """Whole tenths of a second: the tape's own grain."""
    seconds = duration_s(text, option="--scan-interval")
    tenths = round(seconds * 10)
    if tenths < 1 or abs(seconds * 10 - tenths) > 1e-9 or seconds > 60:
        raise ConfigError(f"--scan-interval: {text!r} must be a multiple of 100ms, from 100ms to 60s")
    return tenths * SECOND_NS // 10


def default_data_dir() -> Path:
    """`TAPEWATCH_DATA_DIR`, else the user's own place for program data."""
    named = os.environ.get("TAPEWATCH_DATA_DIR")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "tapewatch"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpConfig:
    """Everything in one process."""

    feed: str = "synthetic"
    tapes: tuple[Path, ...] = ()
    host: str = "127.0.0.1"
    port: int = 8000
    secret_file: Path | None = None
    """What signs access tokens; None: TAPEWATCH_SECRET, and with `up` a file in the data folder."""
    openid: OpenIdSettings | None = None
    data_dir: Path = field(default_factory=default_data_dir)
    rules: Path | None = None
    feed_url: str | None = None
    plan: str | None = None
    fallback: str | None = None
    fallback_url: str | None = None
    watch: tuple[str, ...] = ("*",)
    quotes: bool = False
    secrets: Path | None = None
    reference: str | None = None
    """Where reference data and back-fills come from: a provider, ``none``, or None for the feed's own."""
    eligibility: str | None = None
    """None: the feed's own vendor's."""
    kept_trades: int = 500_000
    """Trades that can still be cancelled or corrected."""
    scan_interval_ns: int = SECOND_NS
    seed: int = 1
    symbols: int = 10_000
    ticks_per_s: float = 5_000.0
    speed: float = 1.0
    log_json: bool = False
    allow_origins: tuple[str, ...] = ()
    """Of pages from elsewhere that may use the API with a token."""
    trusted_proxies: tuple[str, ...] = ()
    """Networks whose X-Forwarded-For is believed."""
    rate_limit: bool | None = None
    """Whether users and addresses are limited; None: where there are accounts."""
    max_clients: int = 2_000
    """WebSocket clients of this process."""
    max_clients_of_user: int = 10
    webhook_networks: tuple[str, ...] = ()
    """Private networks that channels may be sent to, such as 10.1.0.0/16."""
    webhook_ports: tuple[int, ...] = (443,)
    """Of public hosts."""

    def __post_init__(self) -> None:
        for origin in self.allow_origins:
            if not _ORIGIN.fullmatch(origin):
                raise ConfigError(f"--allow-origin: {origin!r} is not an origin such as https://desk.example.com")
        for network in self.trusted_proxies:
            try:
                ipaddress.ip_network(network)
            except ValueError:
                raise ConfigError(
                    f"--trusted-proxy: {network!r} is not an address or a network such as 10.0.0.0/8"
                ) from None
        if self.feed not in FEEDS:
            raise ConfigError(f"--feed: {self.feed!r} is not a feed; there are: {', '.join(FEEDS)}")
        if self.fallback is not None and self.fallback not in LIVE_FEEDS:
            raise ConfigError(f"--fallback: {self.fallback!r} is not a live feed; there are: {', '.join(LIVE_FEEDS)}")
        if self.feed not in LIVE_FEEDS:
            for option, given in (
                ("--fallback", self.fallback),
                ("--feed-url", self.feed_url),
                ("--plan", self.plan),
                ("--quotes", self.quotes),
                ("--watch", self.watch != ("*",)),
            ):
                if given:
                    raise ConfigError(f"{option} goes with a live feed: {', '.join(LIVE_FEEDS)}")
        if self.fallback_url is not None and self.fallback is None:
            raise ConfigError("--fallback-url goes with --fallback")
        if self.fallback == self.feed and self.fallback_url == self.feed_url:
            raise ConfigError("--fallback: it is the feed itself; most plans allow one connection")
        if self.reference not in {None, "none", *_REFERENCES}:
            raise ConfigError(f"--reference: {self.reference!r} is none of: {', '.join(_REFERENCES)}, none")
        if not 1_000 <= self.kept_trades <= 50_000_000:
            raise ConfigError(f"--kept-trades: {self.kept_trades} is not between 1000 and 50000000")
        if self.feed == "replay" and not self.tapes:
            raise ConfigError("--feed replay needs at least one --tape FILE")
        if self.tapes and self.feed != "replay":
            raise ConfigError("--tape goes with --feed replay")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"--port: {self.port} is not a port (0 to 65535)")
        if not _HOST.fullmatch(self.host):
            raise ConfigError(f"--host: {self.host!r} is not an address to listen on, such as 127.0.0.1 or 0.0.0.0")
        if not 1 <= self.symbols <= 100_000:
            raise ConfigError(f"--symbols: {self.symbols} is not between 1 and 100000")
        if not 0 < self.ticks_per_s <= 500_000:
            raise ConfigError(f"--ticks-per-second: {self.ticks_per_s:g} is not between 0 and 500000")
        if not 1 <= self.max_clients <= 50_000:
            raise ConfigError(f"--max-clients: {self.max_clients} is not between 1 and 50000")
        if not 1 <= self.max_clients_of_user <= 50_000:
            raise ConfigError(f"--max-clients-of-user: {self.max_clients_of_user} is not between 1 and 50000")
        if not self.speed > 0:
            raise ConfigError(f"--speed: {self.speed:g} is not positive")
        for network in self.webhook_networks:
            try:
                ip_network(network)
            except ValueError:
                raise ConfigError(f"--allow-webhook-to: {network!r} is not a network such as 10.1.0.0/16") from None
        for port in self.webhook_ports:
            if not 1 <= port <= 65_535:
                raise ConfigError(f"--webhook-port: {port} is not a port (1 to 65535)")

    @property
    def is_loopback(self) -> bool:
        """Only this machine reaches it; elsewhere accounts come first."""
        return self.host in LOOPBACK

    @property
    def hosts(self) -> frozenset[str]:
        """The names that the server goes by; none: any."""
        if not self.is_loopback:
            return frozenset()
        public = None if self.openid is None else urlsplit(self.openid.public_url).hostname
        return LOOPBACK | ({public} if public else set())

    @property
    def server_options(self) -> dict[str, str]:
        """What the HTTP server is told of the proxies before it."""
        return {"forwarded_allow_ips": ",".join(self.trusted_proxies)} if self.trusted_proxies else {}

    @property
    def profile(self) -> str:
        """Which trades may set prices."""
        return self.eligibility or ("massive" if self.feed == "massive" else "alpaca")

    @property
    def reference_source(self) -> str | None:
        """A provider of reference data; a replay server has none."""
        if self.reference is None:
            return self.feed if self.feed in _REFERENCES and self.feed_url is None else None
        return None if self.reference == "none" else self.reference


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig(UpConfig):
    """Some roles in a process of their own, over a bus and a store that all share."""

    roles: tuple[str, ...]
    bus: str = field(repr=False)
    store: str = field(repr=False)
    replica: str | None = field(default=None, repr=False)
    """Addresses hold passwords."""
    partitions: int = PARTITIONS
    shard: tuple[int, int] | None = None
    """Of (2, 8) the partitions 2, 10, 18, …; None: the members share them out by themselves."""
    probe_port: int | None = None
    journal: Path | None = None
    stream_mb: int = 2_048
    """What the tape's streams may take of the bus's memory together: the longer they reach back, the longer a reader
    may be away.
    """

    def __post_init__(self) -> None:
        UpConfig.__post_init__(self)  # a class with slots is made twice, and `super` would mean the first
        for role in self.roles:
            if role not in ROLES:
                raise ConfigError(f"{role!r} is not a role; there are: {', '.join(ROLES)}")
        if not self.roles:
            raise ConfigError(f"name at least one role: {', '.join(ROLES)}")
        if not self.bus:
            raise ConfigError("--bus (or TAPEWATCH_BUS) is missing: the address of Redis, such as redis://host:6379/0")
        if not self.store:
            raise ConfigError(
                "--store (or TAPEWATCH_STORE) is missing: the address of TimescaleDB, such as postgresql://user@host/db"
            )
        if not 1 <= self.partitions <= MOST_PARTITIONS:
            raise ConfigError(f"--partitions: {self.partitions} is not between 1 and {MOST_PARTITIONS}")
        if self.shard is not None and not set(self.roles) & set(PARTITIONED):
            raise ConfigError(f"--shard goes with roles that share partitions: {', '.join(PARTITIONED)}")
        if not 16 <= self.stream_mb <= 1_000_000:
            raise ConfigError(f"--stream-mb: {self.stream_mb} is not between 16 and 1000000")
        if self.probe_port is not None and not 0 <= self.probe_port <= 65_535:
            raise ConfigError(f"--probe-port: {self.probe_port} is not a port (0 to 65535)")

    @property
    def stream_bytes_each(self) -> int:
        """Of a partition."""
        return self.stream_mb * 1_000_000 // self.partitions

    @property
    def kept_trades_each(self) -> int:
        """Of a partition."""
        return max(1_000, self.kept_trades // self.partitions)


def shard_of(text: str | None) -> tuple[int, int] | None:
    """Such as ``2/8``: the third of eight."""
    if text is None:
        return None
    match = _SHARD.fullmatch(text.strip())
    if match is None or not int(match[1]) < int(match[2]):
        raise ConfigError(f"--shard: {text!r} is not a share such as 0/8 to 7/8")
    return int(match[1]), int(match[2])


def symbols_of(text: str | None) -> tuple[str, ...]:
    """Such as ``AAPL,MSFT``; None and ``*`` are all."""
    if text is None or text.strip() == "*":
        return ("*",)
    symbols = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for symbol in symbols:
        if not _SYMBOL.fullmatch(symbol):
            raise ConfigError(f"--watch: {symbol!r} is not a symbol; write them as AAPL,MSFT")
    return symbols
