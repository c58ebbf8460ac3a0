"""The command line. Every command exits 0 on success and 2 on a usage or configuration error, with one clear line."""

import asyncio
import dataclasses
import json
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tapewatch import __version__
from tapewatch.config import UpConfig, default_data_dir, scan_interval_ns, symbols_of
from tapewatch.errors import ConfigError, Invalid, TapewatchError

app = typer.Typer(
    name="tapewatch",
    help="A real-time scanner for US equities: every trade in, alerts and ranked lists out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
rules_app = typer.Typer(help="Check and test rules.", no_args_is_help=True)
db_app = typer.Typer(help="The store's life.", no_args_is_help=True)
app.add_typer(rules_app, name="rules")
app.add_typer(db_app, name="db")
reference_app = typer.Typer(help="The symbol master, splits and daily history.", no_args_is_help=True)
app.add_typer(reference_app, name="reference")

_errors = Console(stderr=True, highlight=False)
_LONGEST_LINE = 600
# Typer keeps a copy of click to itself and exports the error of usage only through this child of it.
_UsageError = cast(type[Exception], typer.BadParameter.__base__)

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where the store is kept.")]


def main() -> None:
    """Run, and turn what the user can mend into one line."""
    try:
        code = app(prog_name="tapewatch", standalone_mode=False)
    except _UsageError as error:
        _fail_usage(error)
    except typer.Abort:  # Ctrl+C, with some releases of typer
        raise SystemExit(130) from None
    except (ConfigError, Invalid) as error:
        _fail(error)
    except TapewatchError as error:
        _fail(error, code=1)
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        sys.stderr.close()
        raise SystemExit(1) from None
    raise SystemExit(code or 0)


def _fail(error: Exception, *, code: int = 2, text: str | None = None) -> NoReturn:
    """One line, whatever was in the input: a file may hold line ends, escape sequences and texts of a megabyte."""
    line = " ".join((str(error) if text is None else text).split())
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line[: _LONGEST_LINE + 1])
    print(f"tapewatch: {shown if len(shown) <= _LONGEST_LINE else shown[:_LONGEST_LINE] + '...'}", file=sys.stderr)
    raise SystemExit(code) from None


def _fail_usage(error: Any) -> NoReturn:
    message = error.format_message().strip().rstrip(".")
    if not message:  # no arguments at all: the help has been shown
        raise SystemExit(2) from None
    command = error.ctx.command_path if error.ctx else "tapewatch"
    _fail(error, text=f"{message[0].lower()}{message[1:]} (see {command} --help)")


def _version(value: bool) -> None:
    if value:
        print(f"tapewatch {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del version


@app.command()
def up(
    feed: Annotated[str, typer.Option(help="synthetic, replay, alpaca, massive or databento.")] = "synthetic",
    feed_url: Annotated[str | None, typer.Option(help="Another address of the feed, as of a replay server.")] = None,
    plan: Annotated[str | None, typer.Option(help="Alpaca: sip, iex, delayed, ...; Databento: the dataset.")] = None,
    watch: Annotated[str | None, typer.Option(help="Symbols of a live feed, such as AAPL,MSFT; else all.")] = None,
    quotes: Annotated[bool, typer.Option("--quotes", help="Ask the live feed for quotes, too.")] = False,
    fallback: Annotated[str | None, typer.Option(help="A second live feed for when the first fails.")] = None,
    fallback_url: Annotated[str | None, typer.Option(help="Another address of the fallback.")] = None,
    reference: Annotated[
        str | None, typer.Option(help="Where splits, closes and back-fills come from: alpaca, massive or none.")
    ] = None,
    secrets: Annotated[Path | None, typer.Option(help="A file of keys (TOML), beside the environment.")] = None,
    tape: Annotated[list[Path] | None, typer.Option(help="A tape file for --feed replay; may be repeated.")] = None,
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    data_dir: DataDir = None,
    rules: Annotated[Path | None, typer.Option(help="A file of rules to take over at the start.")] = None,
    eligibility: Annotated[
        str | None,
        typer.Option(help="Which trades may set prices: a profile or a table file; else the feed's own."),
    ] = None,
    kept_trades: Annotated[int, typer.Option(help="Trades that can still be cancelled or corrected.")] = 500_000,
    scan_interval: Annotated[str, typer.Option(help="How often rules are asked: 100ms to 60s.")] = "1s",
    symbols: Annotated[int, typer.Option(help="Symbols of the synthetic market.")] = 10_000,
    ticks_per_second: Annotated[float, typer.Option(help="Trades a second of the synthetic market.")] = 5_000.0,
    seed: Annotated[int, typer.Option(help="Seed of the synthetic market.")] = 1,
    speed: Annotated[float, typer.Option(help="How much faster than the clock the feed's time runs.")] = 1.0,
    log_json: Annotated[bool, typer.Option("--log-json", help="Logs as JSON lines.")] = False,
) -> None:
    """Everything in one process: scanner, REST, WebSocket and page on one port."""
    config = UpConfig(
        feed=feed,
        tapes=tuple(tape or ()),
        host=host,
        port=port,
        data_dir=data_dir or default_data_dir(),
        rules=rules,
        feed_url=feed_url,
        plan=plan,
        fallback=fallback,
        fallback_url=fallback_url,
        watch=symbols_of(watch),
        quotes=quotes,
        secrets=secrets,
        reference=reference,
        eligibility=eligibility,
        kept_trades=kept_trades,
        scan_interval_ns=scan_interval_ns(scan_interval),
        symbols=symbols,
        ticks_per_s=ticks_per_second,
        seed=seed,
        speed=speed,
        log_json=log_json,
    )
    from tapewatch.app import run_up
    from tapewatch.telemetry import configure_logging

    configure_logging(json=config.log_json)

    def ready(url: str) -> None:
        print(f"tapewatch is up: {url}  (Ctrl+C stops it)", flush=True)

    _run(run_up(config, on_ready=ready))


def _run(work: Any) -> None:
    """Run a coroutine; a group of one error is that error."""
    import uvloop

    try:
        with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from (None if isinstance(error, TapewatchError) else group)


@app.command()
def replay(
    tapes: Annotated[list[Path], typer.Argument(help="Tape files (Parquet), in any order.")],
    out: Annotated[Path, typer.Option(help="Folder for bars, indicators, alerts and the summary.")],
    rules: Annotated[Path | None, typer.Option(help="A file of rules (JSON).")] = None,
    eligibility: Annotated[str, typer.Option(help="Which trades may set prices: a profile's name.")] = "alpaca",
    scan_interval: Annotated[str, typer.Option(help="How often rules are asked: 100ms to 60s.")] = "1s",
    keep_test_symbols: Annotated[bool, typer.Option("--keep-test-symbols", help="Keep exchange test symbols.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run tape files through the engine as fast as it can, and write what came out."""
    from tapewatch.documents import load_rules
    from tapewatch.eligibility import load_profile
    from tapewatch.replay import scan_tape, write

    interval_ns = scan_interval_ns(scan_interval)
    profile = load_profile(eligibility)
    loaded = load_rules(_read(rules), where=str(rules)) if rules else []
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file, not a folder")
    with _progress("trades") as advance:
        replayed = scan_tape(
            tapes,
            profile=profile,
            rules=loaded,
            scan_interval_ns=interval_ns,
            keep_test_symbols=keep_test_symbols,
            on_progress=advance,
        )
    try:
        write(replayed, out)
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {out}: {error.strerror}") from None
    summary = replayed.summary
    if as_json:
        print(json.dumps(summary))
        return
    trades = summary["trades"]
    print(
        f"{trades['read']:,} trades read, {trades['used']:,} used, {trades['rejected']:,} rejected; "
        f"{summary['bars']:,} bars, {summary['alerts']:,} alerts in {summary['elapsed_s']:.1f} s -> {out}"
    )
    for reason, item in {**summary["rejected"], **summary["dropped"]}.items():
        if item["count"]:
            first = f", first: {item['first']}" if item["first"] else ""
            print(f"  {reason}: {item['count']:,}{first}")


@app.command()
def synthesize(
    out: Annotated[Path, typer.Argument(help="The tape file to write.")],
    day: Annotated[str, typer.Option(help="A trading day, YYYY-MM-DD.")] = "2025-03-03",
    symbols: Annotated[int, typer.Option(help="How many symbols.")] = 1_000,
    trades: Annotated[int, typer.Option(help="About how many trades.")] = 1_000_000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same tape.")] = 1,
    session: Annotated[str, typer.Option(help="day (04:00 to 20:00) or regular.")] = "day",
) -> None:
    """Write a made-up trading day as a tape file, for trying replay without market data."""
    from tapewatch.feeds.synthetic import TradingDay, write_day
    from tapewatch.nyse import day_of

    if session not in {"day", "regular"}:
        raise ConfigError(f"--session: {session!r} is neither day nor regular")
    if not 1 <= symbols <= 100_000 or trades < 1:
        raise ConfigError("--symbols must be between 1 and 100000, --trades at least 1")
    pre_ns, open_ns, close_ns, post_ns = day_of(day)
    try:
        with _progress("rows") as advance:
            rows = write_day(
                out,
                seed=seed,
                symbols=symbols,
                trades=trades,
                day=TradingDay(pre_ns=pre_ns, open_ns=open_ns, close_ns=close_ns, post_ns=post_ns),
                start_ns=open_ns if session == "regular" else None,
                end_ns=close_ns if session == "regular" else None,
                on_progress=lambda written, _now: advance(min(written, trades), trades),
            )
    except OSError as error:
        raise ConfigError(f"cannot write to {out}: {os.strerror(error.errno or 0)}") from None
    print(f"{rows:,} trades of {symbols:,} symbols -> {out}")


@app.command("serve-feed")
def serve_feed(
    provider: Annotated[str, typer.Argument(help="alpaca, massive or databento.")],
    tapes: Annotated[list[Path], typer.Argument(help="Tape files (Parquet), in any order.")],
    host: Annotated[str, typer.Option(help="Loopback address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8901,
    speed: Annotated[str, typer.Option(help="How much faster than the clock the tape runs, or max.")] = "1",
    start: Annotated[str, typer.Option(help="When the tape begins: on-subscribe or at-once.")] = "on-subscribe",
    while_away: Annotated[str, typer.Option(help="The tape while nobody is subscribed: go-on or hold.")] = "go-on",
    fault: Annotated[
        list[str] | None, typer.Option(help="What is to go wrong, such as drop:every=2000; may be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed goes wrong in the same way.")] = 1,
) -> None:
    """Serve tape files in a provider's own protocol, for trying and testing without a subscription.

    Any key is accepted, unless TAPEWATCH_SERVE_KEY (and TAPEWATCH_SERVE_SECRET) say which. Faults: drop, stall,
    malformed and duplicate (every=ROWS, p=CHANCE, at=HH:MM:SS on the tape, seconds=S; stall also for=S),
    reorder (window=FRAMES, p), withhold (from, to), refuse (first=CONNECTIONS, p, status), no-plan,
    connection-limit (max), symbol-limit (max), slow-consumer (after=SECONDS).
    """
    from tapewatch.feeds.servers.access import Credentials
    from tapewatch.feeds.servers.run import describe, make_server, run_server

    server = make_server(
        provider,
        paths=tapes,
        host=host,
        port=port,
        speed=speed,
        start=start,
        while_away=while_away,
        faults=fault or (),
        seed=seed,
        credentials=Credentials.from_environment(),
    )

    def ready(url: str) -> None:
        print(f"serving {provider}: {url}  (Ctrl+C stops it)", flush=True)

    with _errors.status("starting") if _errors.is_terminal else nullcontext() as status:
        _run(run_server(server, on_ready=ready, on_progress=status.update if status else lambda _line: None))
    print(describe(server))


@rules_app.command("check")
def rules_check(
    file: Annotated[Path, typer.Argument(help="A file of rules (JSON).")],
    as_json: JsonFlag = False,
) -> None:
    """Say whether a file of rules is sound."""
    from tapewatch.documents import load_rules

    loaded = load_rules(_read(file), where=str(file))
    if as_json:
        print(json.dumps({"rules": [rule.model_dump() for rule in loaded]}))
    else:
        print(f"{file}: {len(loaded)} rules, all sound")


@rules_app.command("test")
def rules_test(
    files: Annotated[list[Path], typer.Argument(help="Scenario files (YAML), or folders of them.")],
    as_json: JsonFlag = False,
) -> None:
    """Run scenario files: given this tape and these rules, at this second expect this."""
    from tapewatch.scenarios import find_scenarios, run_scenario

    results = [run_scenario(scenario) for scenario in find_scenarios(files)]
    failed = [result for result in results if result.failures]
    if as_json:
        print(json.dumps({"scenarios": [{"name": r.name, "failures": r.failures} for r in results]}))
    else:
        for result in results:
            print(f"{'FAIL' if result.failures else 'ok  '} {result.name}")
            for failure in result.failures:
                print(f"     {failure}")
        print(f"{len(results) - len(failed)} passed, {len(failed)} failed")
    if failed:
        raise typer.Exit(1)


@db_app.command("upgrade")
def db_upgrade(data_dir: DataDir = None) -> None:
    """Create the store, or bring it up to this release."""
    from tapewatch.app import open_store

    folder = data_dir or default_data_dir()

    async def upgrade() -> None:
        store = await open_store(folder)
        await store.close()

    _run(upgrade())
    print(f"the store in {folder} is up to date")


@reference_app.command("refresh")
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
    from tapewatch.app import open_store
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

    async def run() -> None:
        store = await open_store(data_dir or default_data_dir())
        try:
            with _progress("reference data") as advance:
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

    _run(run())


@reference_app.command("conditions")
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

    async def run() -> None:
        try:
            answers.append(await cast(MassiveReference, source).conditions())
        finally:
            await source.close()

    _run(run())
    try:
        out.write_text(profile_from_massive(*answers), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out: cannot write {out}: {error.strerror}") from None
    load_profile(str(out))
    print(f"sale conditions of today -> {out}")


@reference_app.command("load")
def reference_load(
    files: Annotated[list[Path], typer.Argument(help="CSV or Parquet: symbols, splits, daily bars.")],
    data_dir: DataDir = None,
    as_json: JsonFlag = False,
) -> None:
    """Take over the symbol master, splits and daily history from files."""
    from tapewatch.app import open_store
    from tapewatch.feeds.reference.files import FileReference
    from tapewatch.roles.reference import load

    async def run() -> None:
        store = await open_store(data_dir or default_data_dir())
        try:
            with _progress("reference data") as advance:
                loaded = await load(
                    FileReference(files), store, on_progress=lambda _what, done, total: advance(done, total)
                )
        finally:
            await store.close()
        _tell_refreshed(loaded, as_json=as_json)

    _run(run())


def _tell_refreshed(refreshed: Any, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(dataclasses.asdict(refreshed)))
    else:
        print(
            f"{refreshed.securities:,} securities ({refreshed.delisted:,} no longer listed), "
            f"{refreshed.splits:,} splits, {refreshed.bars:,} daily bars of {refreshed.days:,} days"
        )


@app.command()
def doctor(data_dir: DataDir = None, as_json: JsonFlag = False) -> None:
    """Check this machine and say what to mend."""
    from tapewatch.doctor import examine

    findings = examine(data_dir or default_data_dir())
    if as_json:
        print(json.dumps({"findings": [{"check": f.check, "ok": f.ok, "says": f.says} for f in findings]}))
    else:
        for finding in findings:
            print(f"{'ok  ' if finding.ok else 'MEND'} {finding.check}: {finding.says}")
    if not all(finding.ok for finding in findings):
        raise typer.Exit(1)


@app.command()
def bench(
    names: Annotated[list[str] | None, typer.Argument(help="Which figures; all of them if none is named.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the figures to this file.")] = None,
    seconds: Annotated[float, typer.Option(help="How long the figures of a running server are watched.")] = 60.0,
) -> None:
    """Measure the project's figures on this machine, with medians."""
    from tapewatch.bench import FIGURES, measure

    unknown = [name for name in names or () if name not in FIGURES]
    if unknown:
        raise ConfigError(f"unknown figure {unknown[0]!r}; there are: {', '.join(FIGURES)}")
    measure(names or list(FIGURES), json_file=json_file, watch_s=seconds)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(str(path), f"cannot be read: {error.strerror}") from None


@contextmanager
def _progress(unit: str) -> Any:
    """A bar on a terminal, nothing elsewhere; yields a function of (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_errors, transient=True, disable=not _errors.is_terminal) as progress:
        task = progress.add_task(unit, total=None)
        update: Callable[[int, int], None] = lambda done, total: progress.update(task, completed=done, total=total)  # noqa: E731
        yield update
