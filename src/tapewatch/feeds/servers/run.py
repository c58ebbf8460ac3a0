"""A replay server in a terminal: `tapewatch serve-feed`."""

import asyncio
import math
import signal
from collections.abc import Callable
from datetime import datetime
from typing import Any, get_args
from zoneinfo import ZoneInfo

from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import ConfigError
from tapewatch.feeds.servers.play import FeedServer, Start, WhileAway

PROVIDERS = ("alpaca", "massive", "databento")
_NEW_YORK = ZoneInfo("America/New_York")
_REPORT_S = 1.0


def make_server(provider: str, *, speed: str, start: str, while_away: str, **options: Any) -> FeedServer:
    """From the words of a command line; the other options are those of the servers. `ConfigError` or `Invalid` for what
    makes no sense.
    """
    if provider not in PROVIDERS:
        raise ConfigError(f"{provider!r} is not a provider; there are: {', '.join(PROVIDERS)}")
    for name, value, allowed in (("start", start, get_args(Start)), ("while-away", while_away, get_args(WhileAway))):
        if value not in allowed:
            raise ConfigError(f"--{name}: {value!r} is not one of: {', '.join(allowed)}")
    options |= {"speed": _speed(speed), "start": start, "while_away": while_away, "keep_rows": False}
    match provider:
        case "alpaca":
            from tapewatch.feeds.servers.alpaca import AlpacaServer

            return AlpacaServer(**options)
        case "massive":
            from tapewatch.feeds.servers.massive import MassiveServer

            return MassiveServer(**options)
        case _:
            from tapewatch.feeds.servers.databento import DatabentoServer

            return DatabentoServer(**options)


async def run_server(
    server: FeedServer, *, on_ready: Callable[[str], None], on_progress: Callable[[str], None]
) -> None:
    """Until SIGINT or SIGTERM; after the tape's end, clients stay connected."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        async with server:
            on_ready(server.url)
            playing = asyncio.create_task(server.player.finish())
            stopping = asyncio.create_task(stop.wait())
            waiting = {playing, stopping}
            while not stopping.done():
                done, _ = await asyncio.wait(waiting, timeout=_REPORT_S, return_when=asyncio.FIRST_COMPLETED)
                on_progress(describe(server))
                if playing in done:
                    waiting.remove(playing)
                    await playing
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def describe(server: FeedServer) -> str:
    """One line: how far the tape is and who gets it."""
    player = server.player
    rows = sum(sent.counts["rows"] for sent in server.sent)
    where = "waiting for the first subscription"
    if player.event_ns:
        where = f"{datetime.fromtimestamp(player.event_ns // SECOND_NS, _NEW_YORK):%Y-%m-%d %H:%M:%S} New York"
    if player.ended.is_set():
        where = "the tape has ended"
    return (
        f"{where} | {player.played_rows:,} of {player.tape.total_rows:,} rows played, {rows:,} sent | "
        f"{player.listeners} subscribed, {len(server.sent)} connected so far"
    )


def _speed(text: str) -> float:
    if text == "max":
        return math.inf
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < math.inf:
        raise ConfigError(f"--speed: {text!r} is neither a number above zero nor max")
    return speed
