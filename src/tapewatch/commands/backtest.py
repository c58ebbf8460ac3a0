"""`tapewatch backtest`: what rules would have told on days that have passed, and what the price did afterwards."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tapewatch.commands.terminal import JsonFlag, progress, read
from tapewatch.config import scan_interval_ns
from tapewatch.errors import ConfigError

if TYPE_CHECKING:  # pyarrow waits until the command runs
    from tapewatch.backtest import Backtest
    from tapewatch.engine.scores import Score

_WIDTH = 132
"""Columns of the table, at least: a narrow terminal breaks lines, which is better than losing digits."""
_LONGEST_NAME = 28


def backtest(
    rules: Annotated[Path, typer.Argument(help="A file of rules (text or JSON).")],
    *,
    tape: Annotated[list[Path], typer.Option(help="A tape file (Parquet); may be repeated.")],
    out: Annotated[Path | None, typer.Option(help="Folder for alerts, outcomes and scores.")] = None,
    eligibility: Annotated[str, typer.Option(help="Which trades may set prices: a profile's name.")] = "alpaca",
    scan_interval: Annotated[str, typer.Option(help="How often rules are asked: 100ms to 60s.")] = "1s",
    keep_test_symbols: Annotated[bool, typer.Option("--keep-test-symbols", help="Keep exchange test symbols.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Run rules over past days and follow each alert: what the price did in the next minutes and until the close."""
    from tapewatch.backtest import backtest as run
    from tapewatch.backtest import write
    from tapewatch.documents import Alert, load_rule_file, ruleset
    from tapewatch.eligibility import load_profile

    interval_ns = scan_interval_ns(scan_interval)
    profile = load_profile(eligibility)
    asked = ruleset(1, *load_rule_file(read(rules), where=str(rules)))
    if not asked.rules:
        raise ConfigError(f"{rules}: holds no rule that is switched on")
    with _alerts_file(out) as alerts, progress("trades") as advance:
        tested = run(
            asked,
            tape,
            profile=profile,
            scan_interval_ns=interval_ns,
            keep_test_symbols=keep_test_symbols,
            on_matches=lambda matches: (
                alerts.writelines(json.dumps(Alert.of(match).as_json(), allow_nan=False) + "\n" for match in matches)
                if alerts
                else None
            ),
            on_progress=advance,
        )
        if out is not None:
            write(tested, out)
    if as_json:
        typer.echo(json.dumps(tested.as_json(), allow_nan=False))
        return
    _show(tested)
    if out is not None:
        typer.echo(f"alerts.jsonl, outcomes.parquet and scores.json -> {out}")


@contextmanager
def _alerts_file(out: Path | None) -> Iterator[TextIO | None]:
    """Open before the work begins, so that a folder that cannot be written to is told at once."""
    if out is None:
        yield None
        return
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out: {out} is a file, not a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (out / "alerts.jsonl").open("w", encoding="utf-8") as file:
            yield file
    except OSError as error:
        raise ConfigError(f"--out: cannot write to {out}: {error.strerror}") from None


def _show(tested: "Backtest") -> None:
    from tapewatch.engine.outcomes import HORIZONS

    console = Console(highlight=False)
    console.width = max(console.width, _WIDTH)
    days, summary = len(tested.traded), tested.summary
    span = "no day" if not days else f"{days} day{'s' * (days > 1)}, {' to '.join(_ends(list(tested.traded)))}"
    console.print(
        f"{span}; {summary['symbols']:,} symbol{'s' * (summary['symbols'] != 1)}, {summary['trades']:,} trades, "
        f"{summary['alerts']:,} alerts in {summary['elapsed_s']:.1f} s",
        soft_wrap=True,
    )
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("rule", max_width=_LONGEST_NAME, overflow="fold")
    for name in ("alerts", "a day", "symbols", *(f"after {h}" if h != "close" else "close" for h in HORIZONS)):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("best", "worst"):
        table.add_column(name, justify="right", no_wrap=True)
    for rule, score in zip(tested.rules, tested.scores, strict=True):
        *returns, best, worst = score.outcomes.values()
        table.add_row(
            Text(rule.name),
            f"{score.alerts:,}",
            f"{score.alerts / max(1, days):,.1f}",
            f"{score.symbols:,}",
            *map(_share_and_mean, returns),
            _signed(best.mean_pct),
            _signed(worst.mean_pct),
        )
    console.print(table)
    console.print(
        "share of alerts with a higher price, and mean change in %; best and worst move in %, mean", soft_wrap=True
    )
    names = {(rule.id, rule.version): rule.name for rule in tested.rules}
    for key, why in tested.warnings().items():
        console.print(Text(f"warning: {names[key]}: {why}"), style="yellow", soft_wrap=True)
    if summary["unfollowed"]:
        console.print(
            f"warning: {summary['unfollowed']:,} alerts were not followed: too many were open at once",
            style="yellow",
            soft_wrap=True,
        )


def _ends(dates: list[str]) -> list[str]:
    return list(dict.fromkeys((dates[0], dates[-1])))


def _share_and_mean(score: "Score") -> str:
    return f"{score.positive_pct:.0f}% {_signed(score.mean_pct)}" if score.known else "-"


def _signed(value: float) -> str:
    return "-" if math.isnan(value) else f"{round(value, 2) + 0.0:+.2f}"  # no minus before a zero
