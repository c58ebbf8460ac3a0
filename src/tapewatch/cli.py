"""The command line. Every command exits 0 on success and 2 on a usage or configuration error, with one clear line."""

import json
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import typer

from tapewatch import __version__
from tapewatch.accounts.openid_settings import openid_settings
from tapewatch.commands import accounts, deliveries, reference, rules
from tapewatch.commands.backtest import backtest
from tapewatch.commands.terminal import BusUrl, DataDir, JsonFlag, StoreUrl, errors, progress, read, read_settings, run
from tapewatch.commands.verify import verify
from tapewatch.config import PARTITIONS, RunConfig, UpConfig, default_data_dir, scan_interval_ns, shard_of, symbols_of
from tapewatch.errors import ConfigError, Invalid, TapewatchError

app = typer.Typer(
    name="tapewatch",
    help="A real-time scanner for US equities: every trade in, alerts and ranked lists out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
db_app = typer.Typer(help="The store's life.", no_args_is_help=True)
app.add_typer(db_app, name="db")
app.add_typer(rules.app, name="rules")
app.command("backtest")(backtest)
app.command("verify")(verify)
app.add_typer(reference.app, name="reference")
app.add_typer(accounts.users_app, name="user")
app.add_typer(accounts.tokens_app, name="token")
app.add_typer(deliveries.app, name="deliveries")

_LONGEST_LINE = 600
# Typer keeps a copy of click to itself and exports the error of usage only through this child of it.
_UsageError = cast(type[Exception], typer.BadParameter.__base__)


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


# What `up` and `run` ask alike.
FeedUrl = Annotated[str | None, typer.Option(help="Another address of the feed, as of a replay server.")]
Plan = Annotated[str | None, typer.Option(help="Alpaca: sip, iex, delayed, ...; Databento: the dataset.")]
Watch = Annotated[str | None, typer.Option(help="Symbols of a live feed, such as AAPL,MSFT; else all.")]
Quotes = Annotated[bool, typer.Option("--quotes", help="Ask the live feed for quotes, too.")]
Fallback = Annotated[str | None, typer.Option(help="A second live feed for when the first fails.")]
FallbackUrl = Annotated[str | None, typer.Option(help="Another address of the fallback.")]
Reference = Annotated[
    str | None, typer.Option(help="Where splits, closes and back-fills come from: alpaca, massive or none.")
]
Secrets = Annotated[Path | None, typer.Option(help="A file of keys (TOML), beside the environment.")]
Tape = Annotated[list[Path] | None, typer.Option(help="A tape file for --feed replay; may be repeated.")]
Host = Annotated[
    str, typer.Option(envvar="TAPEWATCH_HOST", help="Address to listen on; beyond this machine only with accounts.")
]
SecretFile = Annotated[
    Path | None,
    typer.Option(envvar="TAPEWATCH_SECRET_FILE", help="What signs access tokens, beside TAPEWATCH_SECRET."),
]
PublicUrl = Annotated[
    str | None,
    typer.Option(envvar="TAPEWATCH_PUBLIC_URL", help="The page's own address for --oidc-issuer: https://HOST."),
]
OidcIssuer = Annotated[
    str | None, typer.Option(envvar="TAPEWATCH_OIDC_ISSUER", help="The OpenID provider that people may sign in with.")
]
OidcClientId = Annotated[
    str | None, typer.Option(envvar="TAPEWATCH_OIDC_CLIENT_ID", help="What the provider calls this installation.")
]
OidcSecretFile = Annotated[
    Path | None,
    typer.Option(
        envvar="TAPEWATCH_OIDC_SECRET_FILE", help="The client's secret, beside TAPEWATCH_OIDC_SECRET; else none."
    ),
]
OidcName = Annotated[
    str | None, typer.Option(envvar="TAPEWATCH_OIDC_NAME", help="The provider on the button; else its host.")
]
OidcScope = Annotated[
    list[str] | None, typer.Option(help="Asked for besides openid, instead of profile and email; may be repeated.")
]
OidcDefaultRole = Annotated[
    str,
    typer.Option(envvar="TAPEWATCH_OIDC_DEFAULT_ROLE", help="Of whom no role is known; none keeps strangers out."),
]
OidcRoleClaim = Annotated[
    str | None, typer.Option(envvar="TAPEWATCH_OIDC_ROLE_CLAIM", help="The claim that gives roles, such as groups.")
]
OidcRole = Annotated[
    list[str] | None, typer.Option(help="A value of that claim and its role, such as desk=trader; may be repeated.")
]
KeptTrades = Annotated[int, typer.Option(help="Trades that can still be cancelled or corrected.")]
Symbols = Annotated[int, typer.Option(help="Symbols of the synthetic market.")]
TicksPerSecond = Annotated[float, typer.Option(help="Trades a second of the synthetic market.")]
Seed = Annotated[int, typer.Option(help="Seed of the synthetic market.")]
Speed = Annotated[float, typer.Option(help="How much faster than the clock the feed's time runs.")]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(help="An origin whose pages may use the API with a token, such as https://desk.example.com; repeat."),
]
TrustedProxy = Annotated[
    list[str] | None,
    typer.Option(help="A network whose X-Forwarded-For is believed, such as 10.0.0.0/8; may be repeated."),
]
RateLimit = Annotated[
    bool | None,
    typer.Option(
        "--rate-limit/--no-rate-limit", help="100 requests a minute a user, 1,000 an address; else with accounts only."
    ),
]
MaxClients = Annotated[
    int, typer.Option(envvar="TAPEWATCH_MAX_CLIENTS", help="WebSocket clients of this process, 50,000 at most.")
]
MaxClientsOfUser = Annotated[
    int, typer.Option(envvar="TAPEWATCH_MAX_CLIENTS_OF_USER", help="How many of them one user may have.")
]
WebhookTo = Annotated[
    list[str] | None, typer.Option("--allow-webhook-to", help="A private network for channels; may be repeated.")
]
WebhookPort = Annotated[
    list[int] | None, typer.Option(help="A port of public hosts for webhooks, instead of 443; may be repeated.")
]
LogJson = Annotated[bool, typer.Option("--log-json", help="Logs as JSON lines.")]


@app.command()
def up(
    feed: Annotated[str, typer.Option(help="synthetic, replay, alpaca, massive or databento.")] = "synthetic",
    feed_url: FeedUrl = None,
    plan: Plan = None,
    watch: Watch = None,
    quotes: Quotes = False,
    fallback: Fallback = None,
    fallback_url: FallbackUrl = None,
    reference: Reference = None,
    secrets: Secrets = None,
    tape: Tape = None,
    host: Host = "127.0.0.1",
    secret_file: SecretFile = None,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.")] = 8000,
    data_dir: DataDir = None,
    rules_file: Annotated[
        Path | None, typer.Option("--rules", help="A file of rules to take over at the start.")
    ] = None,
    eligibility: Annotated[
        str | None,
        typer.Option(help="Which trades may set prices: a profile or a table file; else the feed's own."),
    ] = None,
    kept_trades: KeptTrades = 500_000,
    scan_interval: Annotated[str, typer.Option(help="How often rules are asked: 100ms to 60s.")] = "1s",
    symbols: Symbols = 10_000,
    ticks_per_second: TicksPerSecond = 5_000.0,
    seed: Seed = 1,
    speed: Speed = 1.0,
    allow_webhook_to: WebhookTo = None,
    webhook_port: WebhookPort = None,
    log_json: LogJson = False,
    allow_origin: AllowOrigin = None,
    trusted_proxy: TrustedProxy = None,
    rate_limit: RateLimit = None,
    max_clients: MaxClients = 2_000,
    max_clients_of_user: MaxClientsOfUser = 10,
    public_url: PublicUrl = None,
    oidc_issuer: OidcIssuer = None,
    oidc_client_id: OidcClientId = None,
    oidc_secret_file: OidcSecretFile = None,
    oidc_name: OidcName = None,
    oidc_scope: OidcScope = None,
    oidc_default_role: OidcDefaultRole = "viewer",
    oidc_role_claim: OidcRoleClaim = None,
    oidc_role: OidcRole = None,
) -> None:
    """Everything in one process: scanner, REST, WebSocket and page on one port."""
    config = UpConfig(
        feed=feed,
        tapes=tuple(tape or ()),
        host=host,
        secret_file=secret_file,
        port=port,
        data_dir=data_dir or default_data_dir(),
        rules=rules_file,
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
        webhook_networks=tuple(allow_webhook_to or ()),
        webhook_ports=tuple(webhook_port or (443,)),
        log_json=log_json,
        allow_origins=tuple(allow_origin or ()),
        trusted_proxies=tuple(trusted_proxy or ()),
        rate_limit=rate_limit,
        max_clients=max_clients,
        max_clients_of_user=max_clients_of_user,
        openid=openid_settings(
            issuer=oidc_issuer,
            client_id=oidc_client_id,
            public_url=public_url,
            secret_file=oidc_secret_file,
            name=oidc_name,
            scopes=oidc_scope or (),
            default_role=oidc_default_role,
            role_claim=oidc_role_claim,
            roles=oidc_role or (),
        ),
    )
    from tapewatch.app.embedded import run_up
    from tapewatch.telemetry import configure_logging

    configure_logging(json=config.log_json)

    def ready(url: str) -> None:
        print(f"tapewatch is up: {url}  (Ctrl+C stops it)", flush=True)

    run(run_up(config, on_ready=ready))


def _settings(context: typer.Context, path: Path | None) -> Path | None:
    """Options from a TOML file, such as ``bus = "redis://…"``; the command line and the environment go before it."""
    if path is None:
        return None
    settings = read_settings(path)
    known = {parameter.name: parameter for parameter in context.command.params}
    options: dict[str, Any] = {}
    for name, value in settings.items():
        option = name.replace("-", "_")
        if option not in known or option in {"roles", "config"}:
            raise ConfigError(f"--config: {path} has a setting {name!r}, which is no option of {context.command_path}")
        if not isinstance(value, (str, int, float, bool, list)):
            raise ConfigError(f"--config: {name} in {path} is neither text, a number, true or false, nor a list")
        options[option] = value
    context.default_map = {**(context.default_map or {}), **options}
    return path


@app.command("run")
def run_role(
    roles: Annotated[
        list[str], typer.Argument(help="ingest, bars, indicators, scanner, alerts, toplists, deliveries, gateway, api.")
    ],
    bus: Annotated[  # --help shows what a file says as the default, and addresses have passwords
        str,
        typer.Option(envvar="TAPEWATCH_BUS", show_default=False, help="Redis: redis://user:password@host:6379/0"),
    ] = "",
    store: Annotated[
        str,
        typer.Option(
            envvar="TAPEWATCH_STORE",
            show_default=False,
            help="TimescaleDB: postgresql://user:password@host/database",
        ),
    ] = "",
    replica: Annotated[
        str | None,
        typer.Option(
            envvar="TAPEWATCH_STORE_REPLICA", show_default=False, help="A replica of the store, to read from."
        ),
    ] = None,
    partitions: Annotated[
        int, typer.Option(envvar="TAPEWATCH_PARTITIONS", help="Of the tape; fixed for the life of an installation.")
    ] = PARTITIONS,
    shard: Annotated[
        str | None, typer.Option(envvar="TAPEWATCH_SHARD", help="A fixed share such as 2/8, instead of sharing out.")
    ] = None,
    probe_port: Annotated[
        int | None, typer.Option(envvar="TAPEWATCH_PROBE_PORT", help="Where /health, /ready and /metrics are served.")
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(envvar="TAPEWATCH_JOURNAL", help="Folder of ingest's journal; else in the data folder."),
    ] = None,
    stream_mb: Annotated[
        int, typer.Option(envvar="TAPEWATCH_STREAM_MB", help="Memory of the bus that the tape's streams may take.")
    ] = 2_048,
    feed: Annotated[
        str, typer.Option(envvar="TAPEWATCH_FEED", help="synthetic, replay, alpaca, massive or databento.")
    ] = "synthetic",
    feed_url: FeedUrl = None,
    plan: Plan = None,
    watch: Watch = None,
    quotes: Quotes = False,
    fallback: Fallback = None,
    fallback_url: FallbackUrl = None,
    reference: Reference = None,
    secrets: Secrets = None,
    tape: Tape = None,
    host: Host = "127.0.0.1",
    secret_file: SecretFile = None,
    port: Annotated[
        int, typer.Option(envvar="TAPEWATCH_PORT", help="Port of gateway and api; 0 takes a free one.")
    ] = 8000,
    data_dir: DataDir = None,
    eligibility: Annotated[
        str | None,
        typer.Option(envvar="TAPEWATCH_ELIGIBILITY", help="Which trades may set prices; else the feed's own profile."),
    ] = None,
    kept_trades: KeptTrades = 500_000,
    scan_interval: Annotated[
        str, typer.Option(envvar="TAPEWATCH_SCAN_INTERVAL", help="How often rules are asked: 100ms to 60s.")
    ] = "1s",
    symbols: Symbols = 10_000,
    ticks_per_second: TicksPerSecond = 5_000.0,
    seed: Seed = 1,
    speed: Speed = 1.0,
    allow_webhook_to: WebhookTo = None,
    webhook_port: WebhookPort = None,
    log_json: LogJson = False,
    allow_origin: AllowOrigin = None,
    trusted_proxy: TrustedProxy = None,
    rate_limit: RateLimit = None,
    max_clients: MaxClients = 2_000,
    max_clients_of_user: MaxClientsOfUser = 10,
    public_url: PublicUrl = None,
    oidc_issuer: OidcIssuer = None,
    oidc_client_id: OidcClientId = None,
    oidc_secret_file: OidcSecretFile = None,
    oidc_name: OidcName = None,
    oidc_scope: OidcScope = None,
    oidc_default_role: OidcDefaultRole = "viewer",
    oidc_role_claim: OidcRoleClaim = None,
    oidc_role: OidcRole = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", envvar="TAPEWATCH_CONFIG", callback=_settings, is_eager=True, help="Options as TOML."),
    ] = None,
) -> None:
    """One role, or some, in a process of their own: many machines share Redis and TimescaleDB."""
    del config_file  # its settings have become defaults of the others
    config = RunConfig(
        roles=tuple(dict.fromkeys(roles)),
        bus=bus,
        store=store,
        replica=replica,
        partitions=partitions,
        shard=shard_of(shard),
        probe_port=probe_port,
        journal=journal,
        stream_mb=stream_mb,
        feed=feed,
        tapes=tuple(tape or ()),
        host=host,
        secret_file=secret_file,
        port=port,
        data_dir=data_dir or default_data_dir(),
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
        webhook_networks=tuple(allow_webhook_to or ()),
        webhook_ports=tuple(webhook_port or (443,)),
        log_json=log_json,
        allow_origins=tuple(allow_origin or ()),
        trusted_proxies=tuple(trusted_proxy or ()),
        rate_limit=rate_limit,
        max_clients=max_clients,
        max_clients_of_user=max_clients_of_user,
        openid=openid_settings(
            issuer=oidc_issuer,
            client_id=oidc_client_id,
            public_url=public_url,
            secret_file=oidc_secret_file,
            name=oidc_name,
            scopes=oidc_scope or (),
            default_role=oidc_default_role,
            role_claim=oidc_role_claim,
            roles=oidc_role or (),
        ),
    )
    from tapewatch.app.distributed import run_roles
    from tapewatch.telemetry import configure_logging

    configure_logging(json=config.log_json)
    run(run_roles(config, on_ready=lambda says: print(f"{says}  (Ctrl+C stops it)", flush=True)))


@app.command()
def replay(
    tapes: Annotated[list[Path], typer.Argument(help="Tape files (Parquet), in any order.")],
    out: Annotated[Path, typer.Option(help="Folder for bars, indicators, alerts and the summary.")],
    rules_file: Annotated[Path | None, typer.Option("--rules", help="A file of rules (text or JSON).")] = None,
    eligibility: Annotated[str, typer.Option(help="Which trades may set prices: a profile's name.")] = "alpaca",
    scan_interval: Annotated[str, typer.Option(help="How often rules are asked: 100ms to 60s.")] = "1s",
    keep_test_symbols: Annotated[bool, typer.Option("--keep-test-symbols", help="Keep exchange test symbols.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run tape files through the engine as fast as it can, and write what came out."""
    from tapewatch.documents import load_rule_file, ruleset
    from tapewatch.eligibility import load_profile
    from tapewatch.replay import scan_tape, write

    interval_ns = scan_interval_ns(scan_interval)
    profile = load_profile(eligibility)
    loaded, watchlists = load_rule_file(read(rules_file), where=str(rules_file)) if rules_file else ([], [])
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file, not a folder")
    with progress("trades") as advance:
        replayed = scan_tape(
            tapes,
            profile=profile,
            rules=ruleset(1, loaded, watchlists),
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
    for reason, item in {**summary["rejected"], **summary["dropped"], "conflict": summary["conflict"]}.items():
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
        with progress("rows") as advance:
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

    with errors.status("starting") if errors.is_terminal else nullcontext() as status:
        run(run_server(server, on_ready=ready, on_progress=status.update if status else lambda _line: None))
    print(describe(server))


@db_app.command("upgrade")
def db_upgrade(
    data_dir: DataDir = None,
    store: StoreUrl = None,
) -> None:
    """Create the store, or bring it up to this release."""
    from tapewatch.app.opening import open_store_at

    folder = data_dir or default_data_dir()

    async def upgrade() -> None:
        opened = await open_store_at(store or folder)
        await opened.close()

    run(upgrade())
    print(f"the store {'at --store' if store else f'in {folder}'} is up to date")


@app.command()
def doctor(data_dir: DataDir = None, bus: BusUrl = None, store: StoreUrl = None, as_json: JsonFlag = False) -> None:
    """Check this machine and the servers, and say what to mend."""
    from tapewatch.doctor import examine

    findings = examine(data_dir or default_data_dir(), bus=bus, store=store)
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
