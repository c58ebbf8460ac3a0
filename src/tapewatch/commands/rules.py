"""`tapewatch rules`: check, test, explain, diff and apply rules that are kept in files."""

import json
from collections.abc import Collection, Iterator, Sized
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import typer

from tapewatch.commands.terminal import DataDir, JsonFlag, progress, run
from tapewatch.config import default_data_dir, scan_interval_ns
from tapewatch.errors import ConfigError, NotFound

app = typer.Typer(help="Check, test, explain, compare and apply rules.", no_args_is_help=True)

Paths = Annotated[list[Path], typer.Argument(help="Rule files (text or JSON), or folders of them.")]
Url = Annotated[str | None, typer.Option("--url", help="A running server, such as http://127.0.0.1:8000.")]
_SIGNS = {"new": "+", "changed": "~", "same": " ", "extra": "-"}
_LONGEST_DIFF = 400
_END_NS = 2**62
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@app.command("check")
def rules_check(paths: Paths, as_json: JsonFlag = False) -> None:
    """Say whether rule files are sound, and what each rule costs."""
    from tapewatch.engine.rules.cost import cost
    from tapewatch.rules_as_code import read_rule_book

    book = read_rule_book(paths)
    specs = [rule.spec() for rule in book.rules.values()]
    costs = {spec.id: cost(spec.when, spec.gate, spec.rearm) for spec in specs}
    if as_json:
        rules = [{**rule.model_dump(), "cost_us": costs[rule.id].scan_us} for rule in book.rules.values()]
        print(json.dumps({"rules": rules, "watchlists": [w.model_dump() for w in book.watchlists.values()]}))
        return
    for rule in book.rules.values():
        print(f"{rule.id}: {rule.when}")
        print(f"    reads {', '.join(costs[rule.id].metrics) or 'no metric'}; {costs[rule.id].scan_us:,.0f} us a scan")
    where = ", ".join(str(path) for path in paths)
    print(f"{where}: {_counted(book.rules, 'rule')} and {_counted(book.watchlists, 'watchlist')}, all sound")


@app.command("test")
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


@app.command("explain")
def rules_explain(
    rule: Annotated[str, typer.Argument(help="A rule's id.")],
    symbol: Annotated[str | None, typer.Argument(help="A symbol; without one, the near misses.")] = None,
    rules: Annotated[list[Path] | None, typer.Option("--rules", help="Rule files, or folders of them.")] = None,
    at: Annotated[
        str | None, typer.Option(help="When, such as 2025-03-03T14:31:00Z; else the end of the tape.")
    ] = None,
    tape: Annotated[list[Path] | None, typer.Option(help="A tape file; may be repeated.")] = None,
    url: Url = None,
    eligibility: Annotated[str, typer.Option(help="Which trades may set prices: a profile's name.")] = "alpaca",
    scan_interval: Annotated[str, typer.Option(help="How often rules are asked: 100ms to 60s.")] = "1s",
    as_json: JsonFlag = False,
) -> None:
    """Why a rule fired for a symbol or did not: on a tape at an instant (--rules, --tape, --at), or now (--url)."""
    if url is not None:
        _explain_now(url, rule, symbol, as_json=as_json)
        return
    if not rules or not tape:
        raise ConfigError("--rules and --tape say what to explain, or --url which running server to ask")
    from tapewatch.documents import ruleset
    from tapewatch.eligibility import load_profile
    from tapewatch.engine.rules.explain import explain, near_misses
    from tapewatch.explanations import explanation_json, explanation_lines, near_miss_json
    from tapewatch.replay import TapeScan
    from tapewatch.rules_as_code import read_rule_book

    book = read_rule_book(rules)
    if rule not in book.rules:
        raise NotFound(f"rule {rule} is not in these files; there are: {', '.join(sorted(book.rules)) or 'none'}")
    scan = TapeScan(
        tape,
        profile=load_profile(eligibility),
        rules=ruleset(1, [book.rules[rule]], book.watchlists.values()),
        scan_interval_ns=scan_interval_ns(scan_interval),
    )
    with progress("trades") as advance:
        scan.until(_END_NS if at is None else _instant(at), advance)
    scanner = scan.scanner
    if symbol is not None:
        found = explain(scanner.plan, rule, symbol, reason=scanner.board.reason, age_s=scanner.board.age_s)
        if found is None:
            raise NotFound(f"rule {rule} is disabled")
        document = explanation_json(found)
        print(json.dumps(document) if as_json else "\n".join(explanation_lines(document)))
        return
    near = near_misses(scanner.plan, rule, reason=scanner.board.reason)
    if near is None:
        raise NotFound(f"rule {rule} is disabled")
    misses = [near_miss_json(miss) for miss in near]
    print(json.dumps({"near_misses": misses}) if as_json else "\n".join(_miss_lines(misses)))


@app.command("diff")
def rules_diff(paths: Paths, url: Url = None, data_dir: DataDir = None, as_json: JsonFlag = False) -> None:
    """What `apply` would change in an installation. Exits 1 when there is a difference."""
    planned = _planned(paths, url, data_dir, write=False, prune=False)
    _print_changes(planned, as_json=as_json)
    if any(change.kind in {"new", "changed"} for change in planned):
        raise typer.Exit(1)


@app.command("apply")
def rules_apply(
    paths: Paths,
    url: Url = None,
    data_dir: DataDir = None,
    prune: Annotated[bool, typer.Option("--prune", help="Delete what the files do not have.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make an installation's rules and watchlists those of the files: of a running server, or of a store."""
    planned = _planned(paths, url, data_dir, write=True, prune=prune)
    _print_changes(planned, as_json=as_json, silent={"same"} if prune else {"same", "extra"})


def _planned(paths: list[Path], url: str | None, data_dir: Path | None, *, write: bool, prune: bool) -> list[Any]:
    from tapewatch.app.opening import open_store
    from tapewatch.clock import SystemClock
    from tapewatch.rules_as_code import Change, Installation, InStore, OnServer, apply, changes, read_rule_book

    wanted = read_rule_book(paths)
    planned: list[Change] = []

    async def work() -> None:
        installation: Installation
        if url is not None:
            installation = OnServer(url)
        else:
            installation = InStore(await open_store(data_dir or default_data_dir()), SystemClock())
        try:
            planned.extend(changes(wanted, await installation.found()))
            if write:
                await apply(installation, planned, prune=prune)
        finally:
            await installation.close()

    run(work())
    return planned


def _print_changes(planned: list[Any], *, as_json: bool, silent: Collection[str] = ("same",)) -> None:
    if as_json:
        print(json.dumps({"changes": [{"kind": c.kind, "what": c.what, "id": c.id} for c in planned]}))
        return
    for change in planned:
        if change.kind in silent:
            continue
        print(f"{_SIGNS[change.kind]} {change.what} {change.id}")
        if change.kind == "changed":
            for line in list(change.lines())[:_LONGEST_DIFF]:
                print(f"    {line}")
    counts = {kind: sum(change.kind == kind for change in planned) for kind in _SIGNS}
    print(
        f"{counts['new']} new, {counts['changed']} changed, {counts['same']} the same, "
        f"{counts['extra']} only in the installation"
    )


def _explain_now(url: str, rule: str, symbol: str | None, *, as_json: bool) -> None:
    from tapewatch.explanations import explanation_lines
    from tapewatch.rules_as_code import OnServer
    from tapewatch.running_server import UNREADABLE, stranger

    answers: list[Any] = []

    async def work() -> None:
        server = OnServer(url)
        try:
            answers.append(await server.explain(rule, symbol))
        finally:
            await server.close()

    run(work())
    (answer,) = answers
    try:
        document, lines = (
            ({"near_misses": answer["items"]}, list(_miss_lines(answer["items"])))
            if symbol is None
            else (answer, list(explanation_lines(answer)))
        )
    except UNREADABLE:
        raise stranger(url) from None
    print(json.dumps(document) if as_json else "\n".join(lines))


def _miss_lines(misses: list[Any]) -> Iterator[str]:
    for miss in misses:
        far = f"lacks {miss['lacks']:+,.6g}" if miss["lacks"] is not None else miss["unknown"] or ""
        if miss["lacks_pct"] is not None:
            far += f" ({miss['lacks_pct']:,.2f} %)"
        yield f"{miss['symbol']:8} {miss['missing']}   {far}".rstrip()
    yield f"{_counted(misses, 'symbol')} with all conditions but one"


def _counted(things: Sized, name: str) -> str:
    return f"{len(things):,} {name}{'s' * (len(things) != 1)}"


def _instant(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"--at: {text!r} is not a time such as 2025-03-03T14:31:00Z") from None
    if moment.tzinfo is None:
        raise ConfigError(f"--at: {text!r} lacks its zone: 2025-03-03T14:31:00Z, or -05:00 for New York in winter")
    at_ns = (moment - _EPOCH) // timedelta(microseconds=1) * 1_000
    if not 0 <= at_ns < _END_NS:
        raise ConfigError(f"--at: {text!r} is on no tape")
    return at_ns
