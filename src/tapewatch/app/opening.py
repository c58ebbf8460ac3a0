"""Feeds, sources of reference data and stores, made of what the configuration says."""

import asyncio
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from tapewatch.accounts.secret import load_client_secret
from tapewatch.adapters.sql import SqlStore
from tapewatch.app.program import quieten
from tapewatch.channels.addresses import Addresses
from tapewatch.channels.apprise_channel import AppriseSender
from tapewatch.channels.sending import Senders
from tapewatch.channels.webhook import WebhookSender
from tapewatch.config import LIVE_FEEDS, UpConfig
from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import Batch, Gap
from tapewatch.errors import ConfigError
from tapewatch.feeds.synthetic import SyntheticFeed, TradingDay
from tapewatch.nyse import trading_days
from tapewatch.ports import Clock, Feed, Store
from tapewatch.serve.board_view import BoardView
from tapewatch.serve.openid_sign_in import OpenIdProvider

_MANY_TICKS_PER_S = 100_000
"""More than that come in larger batches: then what a batch costs counts, and a tenth of a second holds enough."""

if TYPE_CHECKING:  # 20 MB that a feed without reference data does without
    from tapewatch.feeds.reference.alpaca_rest import AlpacaReference
    from tapewatch.feeds.reference.massive_rest import MassiveReference

    RestSource = AlpacaReference | MassiveReference


async def fill(gap: Gap, source: "RestSource", board: BoardView) -> tuple[Batch, bool]:
    """The trades of a gap, those of the most traded symbols first."""
    from tapewatch.feeds.reference.backfill import backfill

    symbols, volume = board.column("volume_day")
    known = {name: value for name, value in zip(symbols, volume.tolist(), strict=True) if value > 0}
    filled = await backfill(gap, history=source, volumes=known)
    return filled.batch, filled.complete


def reference_of(config: UpConfig, clock: Clock) -> "RestSource | None":
    if config.reference_source is None:
        return None
    from tapewatch.feeds.reference.sources import rest_source

    return rest_source(config.reference_source, clock, secrets=config.secrets)


def addresses_of(config: UpConfig) -> Addresses:
    """Where channels may be sent to."""
    return Addresses(tuple(map(ip_network, config.webhook_networks)), frozenset(config.webhook_ports))


def senders_of(config: UpConfig, clock: Clock) -> Senders:
    addresses = addresses_of(config)
    return Senders(webhook=WebhookSender(addresses, clock), others=AppriseSender(addresses, clock))


def openid_of(config: UpConfig, clock: Clock) -> OpenIdProvider | None:
    """The provider that people sign in through. It is not asked for anything before somebody does."""
    if config.openid is None:
        return None
    return OpenIdProvider(config.openid, clock, secret=load_client_secret(config.openid.secret_file))


def feed_of(config: UpConfig, clock: Clock, *, begun_ns: int | None = None) -> Feed:
    """`begun_ns`: when the synthetic market of an installation began; None: now."""
    if config.feed in LIVE_FEEDS:
        return _live_feed(config, clock)
    if config.feed == "replay":
        from tapewatch.feeds.replay import ReplayFeed  # and pyarrow with it: 70 MB that the synthetic feed does without

        column = load_profile(config.profile).column
        return ReplayFeed(config.tapes, clock=clock, speed=config.speed, conditions_column=column)
    days = trading_days()
    now_ns = clock.now_ns() if begun_ns is None else begun_ns
    first = max(int((days.close_ns <= now_ns).sum()) - 1, 0)
    sessions = [
        TradingDay(pre_ns=int(pre), open_ns=int(open_), close_ns=int(close), post_ns=int(post))
        for pre, open_, close, post in zip(
            days.pre_ns[first : first + 250],
            days.open_ns[first : first + 250],
            days.close_ns[first : first + 250],
            days.post_ns[first : first + 250],
            strict=True,
        )
    ]
    return SyntheticFeed(
        seed=config.seed,
        symbols=config.symbols,
        ticks_per_s=config.ticks_per_s,
        days=sessions,
        start_ns=sessions[0].open_ns,
        speed=config.speed,
        clock=clock,
        batch_s=0.1 if config.ticks_per_s > _MANY_TICKS_PER_S else 0.05,
    )


def _live_feed(config: UpConfig, clock: Clock) -> Feed:
    from tapewatch.feeds.failover import FailoverFeed
    from tapewatch.feeds.providers import ProviderOptions, open_feed

    def opened(name: str, url: str | None, plan: str | None) -> Feed:
        options = ProviderOptions(
            name=name, url=url, plan=plan, symbols=config.watch, quotes=config.quotes, secrets=config.secrets
        )
        return open_feed(options, clock=clock, days=trading_days())

    primary = opened(config.feed, config.feed_url, config.plan)
    fallback = None if config.fallback is None else opened(config.fallback, config.fallback_url, None)
    return FailoverFeed(primary, fallback, clock)


async def check_host(config: UpConfig, store: Store, clock: Clock, *, where: str) -> bool:
    """Whether there are accounts. `ConfigError` if there are none and others than this machine could connect, or people
    sign in through a provider; `where` is the store as the command line names it.
    """
    found = bool((await store.accounts(clock.now_ns())).users)
    if not (found or config.is_loopback):
        raise ConfigError(
            f"--host: {config.host} can be reached from other machines, so accounts come first: "
            f"tapewatch user add NAME --role admin {where}"
        )
    if config.openid is not None and not found:
        raise ConfigError(f"--oidc-issuer: an admin comes first: tapewatch user add NAME --role admin {where}")
    return found


async def open_store(data_dir: Path) -> Store:
    """The embedded store of a data directory, upgraded."""
    quieten()
    try:
        await asyncio.to_thread(data_dir.mkdir, mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--data-dir: cannot use {data_dir}: {error.strerror}") from None
    return await _upgraded(SqlStore(data_dir / "tapewatch.db"))


async def open_store_at(address: str | Path, *, replica: str | None = None) -> Store:
    """The store at a URL, or in a data directory; upgraded."""
    if not isinstance(address, str) or "://" not in address:
        return await open_store(Path(address))
    quieten()
    return await _upgraded(SqlStore(address, replica_url=replica))


async def _upgraded(store: SqlStore) -> Store:
    try:
        await store.upgrade()
    except BaseException:
        await store.close()
        raise
    return store
