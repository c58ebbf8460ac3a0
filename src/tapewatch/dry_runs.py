"""Dry runs beside a running server: a rule over past tape in a process of its own, so that nothing live waits for it.

The tape is, in this order: the recordings in the data directory's folder ``tapes``, the tapes that are being replayed,
or a synthetic day that is written once.
"""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

from tapewatch.documents import Rule, Watchlist, ruleset
from tapewatch.engine.rules import Ruleset
from tapewatch.errors import Invalid, TapewatchError, Unavailable
from tapewatch.ports import Store
from tapewatch.serve.services import DryRunReport

SYNTHETIC_DAY = "2025-03-03"
_SYMBOLS, _TRADES, _SEED = 150, 120_000, 1


class DryRuns:
    def __init__(
        self, store: Store, *, data_dir: Path, tapes: Sequence[Path], profile: str, scan_interval_ns: int
    ) -> None:
        self._store, self._data_dir, self._tapes = store, data_dir, tuple(tapes)
        self._profile, self._scan_interval_ns = profile, scan_interval_ns

    async def __call__(self, rules: list[Rule]) -> DryRunReport:
        """What the one rule would have done. When this is cancelled, the process ends."""
        (owner,) = {rule.owner for rule in rules}
        lists = [known for known in await self._store.watchlists() if known.may_be_named_by(owner)]
        spawning = multiprocessing.get_context("spawn")
        here, there = spawning.Pipe(duplex=False)
        process = spawning.Process(
            target=_work,
            args=(there, _asked(rules, lists), self._data_dir, self._tapes, self._profile, self._scan_interval_ns),
            daemon=True,
            name="dry run",
        )
        started = time.monotonic()
        starting = asyncio.ensure_future(asyncio.to_thread(process.start))
        try:
            await asyncio.shield(starting)  # a thread goes on unwatched: the process would be left behind
            there.close()
            answer = await _received(here)
        finally:
            await asyncio.wait([starting])
            there.close()
            if process.pid is not None:
                process.kill()
                await asyncio.to_thread(process.join)
            here.close()
        if isinstance(answer, TapewatchError):
            raise answer
        return DryRunReport(**cast(dict[str, Any], answer), seconds=time.monotonic() - started)


def _asked(rules: list[Rule], lists: list[Watchlist]) -> Ruleset:
    """As it would be on the tape; a draft that is switched off is tried all the same."""
    return ruleset(1, [rule.model_copy(update={"enabled": True}) for rule in rules], lists)


async def _received(connection: Connection) -> object:
    """What comes through the pipe, without a thread that waits for it."""
    arrived, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(connection.fileno(), arrived.set)
    try:
        await arrived.wait()
    finally:
        loop.remove_reader(connection.fileno())
    try:
        return await asyncio.to_thread(connection.recv)
    except EOFError:
        raise Unavailable("the dry run ended without an answer") from None


def _work(
    connection: Connection, asked: Ruleset, data_dir: Path, tapes: tuple[Path, ...], profile: str, scan_interval_ns: int
) -> None:
    """In the process of its own."""
    from tapewatch.backtest import dry_run
    from tapewatch.eligibility import load_profile

    with contextlib.suppress(KeyboardInterrupt, BrokenPipeError):  # the server ends, or nobody waits any more
        try:
            chosen = sorted((data_dir / "tapes").glob("*.parquet")) or list(tapes) or [_synthetic_day(data_dir)]
            tried = dry_run(asked, chosen, profile=load_profile(profile), scan_interval_ns=scan_interval_ns)
        except TapewatchError as error:
            connection.send(error)
            return
        (rule,) = tried.rules
        connection.send(
            {
                "fires": rule.fires,
                "symbols": rule.score.symbols,
                "symbols_share": rule.share,
                "examples": rule.examples,
                "too_broad": rule.too_broad,
                "measured_s": rule.cost_s,
            }
        )


def _synthetic_day(data_dir: Path) -> Path:
    from tapewatch.feeds.synthetic import TradingDay, write_day
    from tapewatch.nyse import day_of

    path = data_dir / "synthetic-day.parquet"
    if not path.is_file():
        pre_ns, open_ns, close_ns, post_ns = day_of(SYNTHETIC_DAY)
        day = TradingDay(pre_ns=pre_ns, open_ns=open_ns, close_ns=close_ns, post_ns=post_ns)
        part = path.with_suffix(".part")
        try:
            write_day(part, seed=_SEED, symbols=_SYMBOLS, trades=_TRADES, day=day)
            part.replace(path)
        except OSError as error:
            raise Invalid(str(path), f"cannot be written: {error.strerror}") from None
    return path
