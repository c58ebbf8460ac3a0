"""`tapewatch verify`: are the stored bars and alerts what the tape says they must be?"""

import asyncio
import json
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tapewatch.commands.terminal import DataDir, JsonFlag, progress, read, run
from tapewatch.config import default_data_dir, scan_interval_ns, symbols_of
from tapewatch.errors import ConfigError, NotFound

if TYPE_CHECKING:  # pyarrow and the store's driver wait until the command runs
    from tapewatch.documents import Rule, Watchlist
    from tapewatch.ledger.checker import Verdict
    from tapewatch.ledger.witnesses import FoundAlert, Stretch
    from tapewatch.ports import Store

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_END_NS = 2**62
_MINUTE_NS = 60_000_000_000


def verify(
    tapes: Annotated[list[Path], typer.Argument(help="The tape files (Parquet) that the store was made from.")],
    data_dir: DataDir = None,
    store: Annotated[str | None, typer.Option(help="The store's URL, instead of --data-dir.")] = None,
    rules_file: Annotated[
        Path | None, typer.Option("--rules", help="A file of rules; else those that the store holds.")
    ] = None,
    eligibility: Annotated[str, typer.Option(help="Which trades may set prices: a profile or a table.")] = "alpaca",
    scan_interval: Annotated[str, typer.Option(help="How often rules were asked: 100ms to 60s.")] = "1s",
    symbols: Annotated[str | None, typer.Option(help="Only these, such as AAPL,MSFT.")] = None,
    since: Annotated[str | None, typer.Option("--from", help="Only from this time on: 2025-03-03T14:31:00Z.")] = None,
    until: Annotated[str | None, typer.Option(help="Only up to this time.")] = None,
    gap: Annotated[
        list[str] | None, typer.Option(help="A declared gap, FROM/TO; what it touches is left out. May be repeated.")
    ] = None,
    keep_test_symbols: Annotated[bool, typer.Option("--keep-test-symbols", help="Keep exchange test symbols.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Check the stored bars and alerts against the tape, by a second program that shares no code with the engine.

    Exit status 0 only if everything is as it must be, 1 if not.
    """
    if store is not None and data_dir is not None:
        raise ConfigError("--store: give either a store's URL or --data-dir")
    start_ns = 0 if since is None else _instant(since, "--from")
    end_ns = _END_NS if until is None else _instant(until, "--until")
    if end_ns <= start_ns:
        raise ConfigError("--until: must be later than --from")
    work = _Work(
        tapes=tapes,
        store=store or data_dir or default_data_dir(),
        rules_file=rules_file,
        eligibility=eligibility,
        interval_ns=scan_interval_ns(scan_interval),
        symbols=None if symbols is None else symbols_of(symbols),
        start_ns=start_ns,
        end_ns=end_ns,
        gaps=tuple(map(_stretch, gap or ())),
        keep_test_symbols=keep_test_symbols,
    )
    run(work.run())
    verdict = work.verdict
    from tapewatch.ledger import report

    if as_json:
        print(json.dumps(report.as_json(verdict), allow_nan=False))
    else:
        for line in report.lines(verdict):
            print(line)
    if not verdict.ok:
        raise typer.Exit(1)


class _Work:
    """One verification."""

    verdict: "Verdict"

    def __init__(
        self,
        *,
        tapes: list[Path],
        store: str | Path,
        rules_file: Path | None,
        eligibility: str,
        interval_ns: int,
        symbols: tuple[str, ...] | None,
        start_ns: int,
        end_ns: int,
        gaps: tuple["Stretch", ...],
        keep_test_symbols: bool,
    ) -> None:
        self._tapes, self._address, self._rules_file, self._eligibility = tapes, store, rules_file, eligibility
        self._interval_ns, self._gaps, self._keep_test_symbols = interval_ns, gaps, keep_test_symbols
        self._symbols = None if symbols is None or "*" in symbols else symbols
        self._start_ns, self._end_ns = start_ns, end_ns

    async def run(self) -> None:
        from tapewatch.app.opening import open_store_at
        from tapewatch.eligibility import load_profile

        load_profile(self._eligibility)  # a mistake in it is told in one line
        if isinstance(self._address, Path) and not (self._address / "tapewatch.db").is_file():
            raise ConfigError(f"--data-dir: there is no store in {self._address}")
        store = await open_store_at(self._address)
        try:
            self.verdict = await self._verdict(store)
        finally:
            await store.close()

    async def _verdict(self, store: "Store") -> "Verdict":
        from tapewatch.ledger.asked import asked, listed
        from tapewatch.ledger.checker import Scope, check
        from tapewatch.ledger.oracle import expect
        from tapewatch.ledger.witnesses import Witnesses, stored_alerts, stored_bars

        rules, watchlists = await self._rules(store)
        with progress("trades") as advance:
            expected = await asyncio.to_thread(
                expect,
                self._tapes,
                [asked(rule) for rule in rules if rule.enabled],
                eligibility=self._eligibility,
                watchlists=listed(watchlists),
                scan_interval_ns=self._interval_ns,
                symbols=self._symbols,
                reference_known=bool(await store.daily_days()),
                keep_test_symbols=self._keep_test_symbols,
                on_progress=advance,
            )
        start_ns = max(self._start_ns, expected.began_ns // _MINUTE_NS * _MINUTE_NS)
        end_ns = max(start_ns, min(self._end_ns, expected.ended_ns + 1))
        with progress("symbols") as advance:
            bars = await stored_bars(
                store, sorted(expected.symbols), start_ns=start_ns, end_ns=end_ns, on_progress=advance
            )
        alerts = await stored_alerts(store, start_ns=start_ns, end_ns=end_ns)
        if self._symbols is not None:
            alerts = [alert for alert in alerts if alert.symbol in self._symbols]
        others = await self._other_rules(store, alerts, judged=expected.rules)
        witnesses = Witnesses(bars=bars, alerts=alerts, gaps=self._gaps, other_rules=others)
        return check(expected, witnesses, scope=Scope(start_ns, end_ns))

    async def _rules(self, store: "Store") -> "tuple[list[Rule], list[Watchlist]]":
        """Those of the file in the version that the store has of them, or the store's."""
        from tapewatch.documents import load_rule_file
        from tapewatch.ledger.asked import same_question

        if self._rules_file is None:
            snapshot = await store.rules()
            return snapshot.rules, snapshot.watchlists
        rules, watchlists = load_rule_file(read(self._rules_file), where=str(self._rules_file))
        for place, rule in enumerate(rules):
            for stored in await _versions(store, rule.id):
                if same_question(rule, stored):
                    rules[place] = rule.model_copy(update={"version": stored.version})
                    break
        return rules, watchlists

    async def _other_rules(
        self, store: "Store", alerts: "Iterable[FoundAlert]", *, judged: frozenset[tuple[str, int]]
    ) -> frozenset[tuple[str, int]]:
        """Further versions and rules that the store knows: of their alerts nothing can be said."""
        strange = {alert.rule_id for alert in alerts if (alert.rule_id, alert.rule_version) not in judged}
        known = {(rule.id, rule.version) for name in strange for rule in await _versions(store, name)}
        return frozenset(known - judged)


async def _versions(store: "Store", rule_id: str) -> "list[Rule]":
    """All versions of a rule, newest first; none of one that never was."""
    found: list[Rule] = []
    try:
        while page := await store.rule_versions(rule_id, offset=len(found)):
            found += page
    except NotFound:
        return []
    return found


def _stretch(text: str) -> "Stretch":
    from tapewatch.ledger.witnesses import Stretch

    start, _, end = text.partition("/")
    stretch = Stretch(_instant(start, "--gap"), _instant(end, "--gap"))
    if stretch.end_ns <= stretch.start_ns:
        raise ConfigError(f"--gap: {text!r} ends before it begins")
    return stretch


def _instant(text: str, option: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(f"{option}: {text!r} is not a time such as 2025-03-03T14:31:00Z") from None
    if moment.tzinfo is None:
        raise ConfigError(f"{option}: {text!r} lacks its zone: 2025-03-03T14:31:00Z, or -05:00 for New York in winter")
    return (moment - _EPOCH) // timedelta(microseconds=1) * 1_000
