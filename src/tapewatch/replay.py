"""`tapewatch replay`: tape files through the engine, as fast as it can, into files that people can check.

Bars and alerts are the live product's, by the same code. Indicators are computed from the final bars.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tapewatch.documents import Alert, Rule, ruleset
from tapewatch.engine.bars import empty_bars
from tapewatch.engine.columns import SECOND_NS, Bars, concat_bars
from tapewatch.engine.conditions import Profile
from tapewatch.engine.indicators import INDICATORS, Indicators, by_minute
from tapewatch.engine.rules import Match, Ruleset
from tapewatch.engine.scanner import Scanner, Step
from tapewatch.errors import ConfigError
from tapewatch.feeds.marks import PULSE_NS
from tapewatch.feeds.tape_file import TapeReader
from tapewatch.nyse import trading_days

_BAR_FIELDS = ("ts_ns", "open", "high", "low", "close", "volume", "vwap", "trade_count", "revision")


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """What a replay gave. Bars are final, ordered by symbol and time."""

    bars: Bars
    matches: list[Match]
    summary: dict[str, Any]


class TapeScan:
    """Tape files on their way through the engine: what a replay and a backtest have in common. A `Ruleset` may bring
    more than documents do, such as watchlists.
    """

    def __init__(
        self,
        tapes: Sequence[Path],
        *,
        profile: Profile,
        rules: Sequence[Rule] | Ruleset = (),
        scan_interval_ns: int = SECOND_NS,
        keep_test_symbols: bool = False,
    ) -> None:
        if scan_interval_ns % PULSE_NS or scan_interval_ns <= 0:
            raise ConfigError(f"the scan interval must be a multiple of {PULSE_NS // 1_000_000} ms")
        self.reader = TapeReader(tapes, conditions_column=profile.column, keep_test_symbols=keep_test_symbols)
        # In a tape file cancelled and corrected trades are marked as such; none is withdrawn later.
        self.scanner = Scanner(days=trading_days(), profile=profile, scan_interval_ns=scan_interval_ns, kept_trades=0)
        self.scanner.apply(rules if isinstance(rules, Ruleset) else ruleset(1, rules))

    def steps(self, on_progress: Callable[[int, int], None] = lambda _rows, _total: None) -> Iterator[Step]:
        """What each batch led to. `on_progress` gets rows read and rows in all."""
        for batch in self.reader.batches():
            yield self.scanner.step(batch)
            on_progress(self.reader.seen.rows, self.reader.total_rows)

    def until(self, at_ns: int, on_progress: Callable[[int, int], None] = lambda _rows, _total: None) -> None:
        """Go on until the scan at `at_ns`, or the last one before it, is the last that was made. Nothing of the tape
        behind that scan is taken in; before the tape begins there is none.
        """
        scan_ns = at_ns // self.scanner.scan_interval_ns * self.scanner.scan_interval_ns
        for batch in self.reader.batches():
            mark = int(np.searchsorted(batch.marks_ns, scan_ns))
            if mark == len(batch.marks_ns):
                self.scanner.step(batch)
                on_progress(self.reader.seen.rows, self.reader.total_rows)
                continue
            # Where the tape is silent its marks jump over the scan, and the scan stands before that mark's row.
            row = int(batch.marks_row[mark])
            if mark or self.scanner.watermark_ns or batch.marks_ns[0] == scan_ns:
                marks_row = np.append(batch.marks_row[:mark], row)
                marks_ns = np.append(batch.marks_ns[:mark], scan_ns)
                self.scanner.step(replace(batch.rows(0, row), marks_row=marks_row, marks_ns=marks_ns))
            return


def scan_tape(
    tapes: Sequence[Path],
    *,
    profile: Profile,
    rules: Sequence[Rule] | Ruleset = (),
    scan_interval_ns: int = SECOND_NS,
    keep_test_symbols: bool = False,
    on_progress: Callable[[int, int], None] = lambda _rows, _total: None,
) -> Replayed:
    """Run tape files through the engine. `on_progress` gets rows read and rows in all."""
    started = time.perf_counter()
    tape = TapeScan(
        tapes, profile=profile, rules=rules, scan_interval_ns=scan_interval_ns, keep_test_symbols=keep_test_symbols
    )
    parts: list[Bars] = []
    matches: list[Match] = []
    scans = 0
    for step in tape.steps(on_progress):
        parts += step.bars
        matches += step.matches
        scans += step.scans
    bars = final_bars(parts)
    return Replayed(
        bars=bars,
        matches=matches,
        summary=_summary(tape.reader, tape.scanner, bars, matches, scans, time.perf_counter() - started),
    )


def final_bars(parts: list[Bars]) -> Bars:
    """The last revision of each bar, ordered by symbol and time, without those that were withdrawn."""
    if not parts:
        return empty_bars()
    bars = concat_bars(parts)
    alphabet = np.argsort(np.argsort(np.array(bars.symbols)))
    order = np.lexsort((np.arange(len(bars)), bars.ts_ns, alphabet[bars.symbol]))
    symbol, ts_ns = bars.symbol[order], bars.ts_ns[order]
    last = np.ones(len(order), np.bool_)
    last[:-1] = (symbol[1:] != symbol[:-1]) | (ts_ns[1:] != ts_ns[:-1])
    return bars.take(order[last & ~np.isnan(bars.close[order])])


def indicator_columns(bars: Bars) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Shape (len(INDICATORS), len(bars)): each bar's indicators, from these bars alone."""
    values = np.full((len(INDICATORS), len(bars)), np.nan)
    engine = Indicators(trading_days())
    by_time = np.argsort(bars.ts_ns, kind="stable")
    fresh = bars.take(by_time)
    done = 0
    for minute in by_minute(fresh):
        rows = engine.update(minute.as_closed())
        values[:, by_time[done : done + len(minute)]] = rows.values
        done += len(minute)
    return values


def write(replayed: Replayed, out: Path) -> None:
    """The four files of a replay."""
    out.mkdir(parents=True, exist_ok=True)
    bars = replayed.bars
    symbols = pa.DictionaryArray.from_arrays(pa.array(bars.symbol), pa.array(list(bars.symbols), pa.string()))
    symbol_column = symbols.cast(pa.string())
    pq.write_table(
        pa.table({"symbol": symbol_column, **{name: getattr(bars, name) for name in _BAR_FIELDS}}),
        out / "bars.parquet",
        compression="zstd",
    )
    columns = dict(zip(INDICATORS, indicator_columns(bars), strict=True))
    pq.write_table(
        pa.table({"symbol": symbol_column, "ts_ns": bars.ts_ns, **columns}),
        out / "indicators.parquet",
        compression="zstd",
    )
    with (out / "alerts.jsonl").open("w", encoding="utf-8") as file:
        for match in replayed.matches:
            file.write(json.dumps(Alert.of(match).as_json(), allow_nan=False) + "\n")
    (out / "summary.json").write_text(json.dumps(replayed.summary, indent=2) + "\n", encoding="utf-8")


def _summary(
    reader: TapeReader, scanner: Scanner, bars: Bars, matches: list[Match], scans: int, elapsed_s: float
) -> dict[str, Any]:
    seen, tally = reader.seen, scanner.tally
    rejected = dict(seen.rejected)
    for reason in ("future", "too_late"):
        if tally[reason]:
            rejected[reason] = tally[reason]
    return {
        "trades": {
            "read": seen.rows,
            "used": tally["trades"] - tally["without_effect"],
            "late": tally["late"],
            "duplicate": seen.dropped["duplicate"],
            "ineligible": tally["volume_only"] + tally["without_effect"],
            "volume_only": tally["volume_only"],
            "without_effect": tally["without_effect"],
            "unknown_condition": tally["unknown_condition"],
            "rejected": sum(rejected.values()),
        },
        "rejected": {
            reason: {"count": count, "first": seen.first.get(reason)} for reason, count in sorted(rejected.items())
        },
        "dropped": {
            reason: {"count": count, "first": seen.first.get(reason)} for reason, count in sorted(seen.dropped.items())
        },
        "conflict": {"count": seen.conflicts, "first": seen.first.get("conflict")},
        "noted": dict(sorted(seen.noted.items())),
        "symbols": len(scanner.symbols),
        "bars": len(bars),
        "revised_bars": int(np.count_nonzero(bars.revision)),
        "scans": scans,
        "alerts": len(matches),
        "cooled_down": scanner.cooled_down,
        "elapsed_s": round(elapsed_s, 3),
    }
