"""The project's figures: one file a subject, one command for all (`tapewatch bench`).

A figure is the median of several runs, with the lowest and the highest beside it. What is measured is said in words, in
the output and in docs/performance.md.
"""

import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import median

from tapewatch import __version__
from tapewatch.bench import (
    decode,
    decode_dbn,
    distributed,
    engine,
    gateway,
    rest,
    rules,
    server,
    tape_path,
    tapes,
    toplists,
)


@dataclass(frozen=True, slots=True)
class Figure:
    name: str
    value: float
    unit: str
    runs: int
    min: float
    max: float
    what: str


@dataclass(frozen=True, slots=True)
class _Subject:
    unit: str
    what: str
    runs: Callable[[], Iterable[float]]


FIGURES: dict[str, _Subject] = {
    "scan_10000x1000": _Subject("ms", engine.SCAN_WHAT.format(rules="1,000"), partial(engine.scan_cycles, 1_000)),
    "scan_10000x10000": _Subject("ms", engine.SCAN_WHAT.format(rules="10,000"), partial(engine.scan_cycles, 10_000)),
    **{
        f"rules_{symbols}x{count}": _Subject(
            "ms", rules.what(symbols, count, templates), partial(rules.full_scans, symbols, count, templates)
        )
        for symbols, count, templates in rules.SIZES
    },
    "rule_compile": _Subject("ms", rules.COMPILE_WHAT, rules.compiles),
    "catalogue": _Subject("ms", engine.CATALOGUE_WHAT, engine.catalogues),
    "step": _Subject("ticks/s", engine.STEP_WHAT, engine.steps),
    "minute_close": _Subject("ms", engine.CLOSE_WHAT, engine.minute_closes),
    "board": _Subject("ms", engine.BOARD_WHAT, engine.boards),
    "user_toplists": _Subject("ms", toplists.WHAT, toplists.rankings),
    "replay": _Subject("trades/s", tapes.REPLAY_WHAT, tapes.replays),
    "replay_real_days": _Subject("s", tapes.REAL_WHAT, tapes.real_days),
    "replay_session": _Subject("s", tapes.SESSION_WHAT, tapes.session),
    "decode_massive": _Subject("trades/s", decode.MASSIVE_WHAT, decode.massive),
    "decode_alpaca": _Subject("trades/s", decode.ALPACA_WHAT, decode.alpaca),
    "decode_databento": _Subject("trades/s", decode_dbn.DATABENTO_WHAT, decode_dbn.databento),
    "up": _Subject("", server.WHAT, lambda: ()),
    "bars_written": _Subject("rows/s", distributed.BARS_WHAT, distributed.bars_written),
    **{name: _Subject("", distributed.WHAT, lambda: ()) for name in ("many_100ms", "many_1s", "many_2_scanners")},
    "gateway_5000": _Subject("", gateway.WHAT, lambda: ()),
    "rest_reads": _Subject("", rest.WHAT, lambda: ()),
    "tape_path": _Subject("", tape_path.WHAT, lambda: ()),
}


_WATCHES: dict[str, Callable[[float], list[tuple[str, float, str, float, float, str]]]] = {
    "up": server.watch,
    "many_100ms": distributed.watch,
    "many_1s": partial(distributed.watch, interval_ms=1_000),
    "many_2_scanners": partial(distributed.watch, scanners=2),
    "gateway_5000": gateway.watch,
    "rest_reads": rest.watch,
    "tape_path": tape_path.watch,
}
"""Figures of running servers, watched for a while."""


def measure(names: Sequence[str], *, json_file: Path | None, watch_s: float) -> list[Figure]:
    """Run these subjects, print each figure as it comes, and write them all to `json_file`."""
    figures: list[Figure] = []
    for name in names:
        subject = FIGURES[name]
        if name in _WATCHES:
            rows = _WATCHES[name](watch_s)
            found = [Figure(n, v, unit, 1, low, high, what) for n, v, unit, low, high, what in rows]
        else:
            runs = list(subject.runs())
            found = (
                []
                if not runs
                else [Figure(name, median(runs), subject.unit, len(runs), min(runs), max(runs), subject.what)]
            )
        if not found:
            print(f"{name:18} not measured: {subject.what}")
        for figure in found:
            print(
                f"{figure.name:18} {figure.value:>14,.2f} {figure.unit:9} "
                f"(min {figure.min:,.2f}, max {figure.max:,.2f}, runs {figure.runs})  {figure.what}",
                flush=True,
            )
        figures += found
    if json_file is not None:
        document = {"machine": _machine(), "figures": [asdict(figure) for figure in figures]}
        json_file.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    return figures


def _machine() -> dict[str, str | int]:
    return {
        "cores": os.cpu_count() or 0,
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "tapewatch": __version__,
    }
