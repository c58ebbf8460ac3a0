"""`tapewatch reference`: the symbol master, splits and daily history."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from tapewatch.commands.terminal import DataDir, JsonFlag, progress, run
from tapewatch.config import default_data_dir
from tapewatch.errors import ConfigError

app = typer.Typer(help="The symbol master, splits and daily history.", no_args_is_help=True)


@app.command("refresh")
def reference_refresh(
    provider: Annotated[str, typer.Argument(help="alpaca or massive.")],
    data_dir: DataDir = None,
    secrets: Annotated[Path | None, typer.Option(help="A file of keys (TOML), beside the environment.")] = None,
    requests_per_minute: Annotated[float | None, typer.Option(help="What the provider's plan allows.")] = None,
    details: Annotated[int, typer.Option(help="Securities to ask for one by one, for market capitalisation.")] = 0,
    address: Annotated[str | None, typer.Option(help="Another address of the provider's REST.")] = None,
    trading_address: Annotated[str | None, typer.Option(help="Another address of Alpaca's trading REST.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring the symbol master, splits and a year of daily history up to date from a provider."""
    from tapewatch.app.opening import open_store
    from tapewatch.clock import SystemClock
    from tapewatch.feeds.reference.sources import rest_source
    from tapewatch.nyse import trading_days
    from tapewatch.roles.reference import TradingDates, refresh

    clock, dates = SystemClock(), TradingDates(trading_days())
    source = rest_source(
        provider,
        clock,
        secrets=secrets,
        requests_per_minute=requests_per_minute,
        address=address,
        trading_address=trading_address,
    )

    async def work() -> None:
        store = await open_store(data_dir or default_data_dir())
        try:
            with progress("reference data") as advance:
                refreshed = await refresh(
                    source,
                    store,
                    dates=dates,
                    day=dates.days.at(clock.now_ns()).day,
                    details=details,
                    on_progress=lambda _what, done, total: advance(done, total),
                )
        finally:
            await source.close()
            await store.close()
        _tell_refreshed(refreshed, as_json=as_json)

    run(work())


@app.command("conditions")
def reference_conditions(
    out: Annotated[Path, typer.Option(help="The table to write, for --eligibility.")] = Path("massive.toml"),
    secrets: Annotated[Path | None, typer.Option(help="A file of keys (TOML), beside the environment.")] = None,
    address: Annotated[str | None, typer.Option(help="Another address of the provider's REST.")] = None,
) -> None:
    """Make an eligibility table of Massive's sale conditions as they are today."""
    from tapewatch.clock import SystemClock
    from tapewatch.eligibility import load_profile, profile_from_massive
    from tapewatch.feeds.reference.massive_rest import MassiveReference
    from tapewatch.feeds.reference.sources import rest_source

    if out.suffix != ".toml":
        raise ConfigError(f"--out: {out} must end in .toml")
    source = rest_source("massive", SystemClock(), secrets=secrets, address=address)

    answers: list[bytes] = []

    async def work() -> None:
        try:
            answers.append(await cast(MassiveReference, source).conditions())
        finally:
            await source.close()

    run(work())
    try:
        out.write_text(profile_from_massive(*answers), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from None
    load_profile(str(out))
    print(f"sale conditions of today -> {out}")


@app.command("load")
def reference_load(
    files: Annotated[list[Path], typer.Argument(help="CSV or Parquet: symbols, splits, daily bars.")],
    data_dir: DataDir = None,
    as_json: JsonFlag = False,
) -> None:
    """Take over the symbol master, splits and daily history from files."""
    from tapewatch.app.opening import open_store
    from tapewatch.feeds.reference.files import FileReference
    from tapewatch.roles.reference import load

    async def work() -> None:
        store = await open_store(data_dir or default_data_dir())
        try:
            with progress("reference data") as advance:
                loaded = await load(
                    FileReference(files), store, on_progress=lambda _what, done, total: advance(done, total)
                )
        finally:
            await store.close()
        _tell_refreshed(loaded, as_json=as_json)

    run(work())


def _tell_refreshed(refreshed: Any, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(refreshed)))
    else:
        print(
            f"{refreshed.securities:,} securities ({refreshed.delisted:,} no longer listed), "
            f"{refreshed.splits:,} splits, {refreshed.bars:,} daily bars of {refreshed.days:,} days"
        )
