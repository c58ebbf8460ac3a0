"""Live providers by name: which session, over which wire, with which keys."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from tapewatch.credentials import Credentials, load_credentials
from tapewatch.engine.calendar import TradingDays
from tapewatch.errors import ConfigError
from tapewatch.feeds.alpaca import AlpacaSession, AlpacaSettings
from tapewatch.feeds.databento import PORT, DatabentoSession, DatabentoSettings
from tapewatch.feeds.dictionary import Dictionary
from tapewatch.feeds.live import LiveFeed
from tapewatch.feeds.massive import MassiveSession, MassiveSettings
from tapewatch.feeds.quarantine import Quarantine
from tapewatch.feeds.transport import tcp, websocket
from tapewatch.ports import Clock

_LOCAL = Credentials("local-key", "local-secret")
"""For a replay server on this machine, which takes any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOptions:
    """What to ask a provider for."""

    name: str
    url: str | None = None
    """Another address than the provider's own, such as that of `tapewatch serve-feed`."""
    plan: str | None = None
    """Alpaca's feed (sip, iex, ...) or Databento's dataset."""
    symbols: tuple[str, ...] = ("*",)
    quotes: bool = False
    secrets: Path | None = None


@dataclass(frozen=True, slots=True)
class _Words:
    """What must outlive a connection: codes of symbols and conditions, and what was refused."""

    symbols: Dictionary
    conditions: Dictionary
    quarantine: Quarantine


def open_feed(options: ProviderOptions, *, clock: Clock, days: TradingDays) -> LiveFeed:
    """A feed of one provider; `ConfigError` for what is missing or makes no sense."""
    build = _BUILDERS.get(options.name)
    if build is None:
        raise ConfigError(f"{options.name!r} is not a provider; there are: {', '.join(PROVIDERS)}")
    if options.url is not None:
        _check_url(options.url, options.name)
    words = _Words(Dictionary(), Dictionary(), Quarantine())
    return build(options, _credentials(options), words, clock, days)


def _credentials(options: ProviderOptions) -> Credentials:
    try:
        return load_credentials(options.name, secrets=options.secrets)
    except ConfigError:
        if options.secrets is None and options.url is not None and _is_loopback(options.url):
            return _LOCAL
        raise


def _alpaca(
    options: ProviderOptions, credentials: Credentials, words: _Words, clock: Clock, days: TradingDays
) -> LiveFeed:
    plan = options.plan or "sip"
    settings = AlpacaSettings(key=credentials.key, secret=credentials.secret, feed=plan, symbols=options.symbols)
    if options.quotes:
        settings = replace(settings, channels=(*settings.channels, "quotes"))
    if options.url is not None:
        address = urlsplit(options.url)
        settings = replace(settings, host=f"{address.scheme}://{address.netloc}")  # the path is the plan's
    return LiveFeed(
        name="alpaca",
        open_session=lambda: AlpacaSession(
            settings, symbols=words.symbols, conditions=words.conditions, quarantine=words.quarantine
        ),
        connect=lambda: websocket(settings.url, headers=settings.headers),
        clock=clock,
        days=days,
        delay_s=_DELAYED_S if plan.startswith("delayed") else 0.0,
    )


def _massive(
    options: ProviderOptions, credentials: Credentials, words: _Words, clock: Clock, days: TradingDays
) -> LiveFeed:
    settings = MassiveSettings(key=credentials.key, symbols=options.symbols)
    if options.quotes:
        settings = replace(settings, channels=(*settings.channels, "Q"))
    if options.url is not None:
        path = urlsplit(options.url).path.rstrip("/")
        settings = replace(settings, url=options.url if path else f"{options.url.rstrip('/')}/stocks")
    return LiveFeed(
        name="massive",
        open_session=lambda: MassiveSession(
            settings, symbols=words.symbols, conditions=words.conditions, quarantine=words.quarantine
        ),
        connect=lambda: websocket(settings.url, headers=settings.headers),
        clock=clock,
        days=days,
        delay_s=_DELAYED_S if "delayed" in settings.url else 0.0,
    )


def _databento(
    options: ProviderOptions, credentials: Credentials, words: _Words, clock: Clock, days: TradingDays
) -> LiveFeed:
    if options.quotes:
        raise ConfigError("--quotes: databento is read for trades only")
    address = urlsplit(options.url or "")
    settings = DatabentoSettings(
        key=credentials.key,
        dataset=options.plan or "EQUS.MINI",
        symbols=options.symbols,
        host=address.hostname or "",
        port=address.port or PORT,
    )

    def open_session() -> DatabentoSession:
        # The gateway sends again what was missed since the newest row; what comes twice is left out by ingest.
        return DatabentoSession(
            settings,
            symbols=words.symbols,
            conditions=words.conditions,
            quarantine=words.quarantine,
            start_ns=feed.newest_ns if feed.newest_ns >= 0 else None,
        )

    feed = LiveFeed(
        name="databento", open_session=open_session, connect=lambda: tcp(*settings.address), clock=clock, days=days
    )
    return feed


_DELAYED_S = 15 * 60.0
_Builder = Callable[[ProviderOptions, Credentials, _Words, Clock, TradingDays], LiveFeed]
_BUILDERS: Mapping[str, _Builder] = {"alpaca": _alpaca, "massive": _massive, "databento": _databento}
_SCHEMES = {"alpaca": ("wss", "ws"), "massive": ("wss", "ws"), "databento": ("tcp", "tcp")}
PROVIDERS = tuple(_BUILDERS)


def _check_url(url: str, provider: str) -> None:
    """A key must not travel in clear over a network."""
    secure, plain = _SCHEMES[provider]
    try:
        address = urlsplit(url)
        _ = address.port
    except ValueError:
        raise ConfigError("--feed-url: is not an address") from None
    if address.username or address.password or address.query:  # a key, perhaps, and it is not shown
        raise ConfigError(f"--feed-url: has a user or a query; an address is such as {plain}://127.0.0.1:8901")
    if address.scheme not in (secure, plain) or not address.hostname:
        raise ConfigError(f"--feed-url: {url!r} is not an address such as {plain}://127.0.0.1:8901")
    if address.scheme != secure and not _is_loopback(url):
        raise ConfigError(f"--feed-url: keys travel in clear over {address.scheme}://; use {secure}:// or loopback")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False
