"""A small seeded tape and rules that fire all over it: what a fault run plays.

The tape begins with the regular session of one day. Prints come every four seconds of the tape, many at once: the
replay feed cuts a batch for each instant at which something printed, so a tape that is played fast still makes a
bounded number of them. It has odd lots, prints without effect on prices, prints that arrive seconds, minutes and a
quarter of an hour late, repeated and cancelled ones, and symbols that are quiet all day, come late, or stop for half an
hour.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tapewatch.engine.columns import MINUTE_NS, SECOND_NS
from tapewatch.nyse import day_of

DAY = "2025-03-03"
SPEED = 60.0
"""A minute of the tape in a second. The scanners of four partitions take about half a processor then."""
WALL_S = 90.0
EVERY_S = 4
"""Seconds of the tape from one instant with prints to the next."""
_QUIET = 12
"""Symbols with a handful of trades all day; the first of them trades once."""
_LATE_START, _HALTED = 3, 5
"""Symbols, by number: one trades in the last quarter only, one does not for half an hour."""
_REGULAR = (("", 0.62), ("I", 0.26), ("F", 0.10), ("4", 0.01), ("Z", 0.01))
_LATE = ((2.0, 0.010), (90.0, 0.008), (900.0, 0.003))
"""Mean lateness in seconds, and the share of prints that are so late."""
_REPEATED, _CANCELLED = 0.01, 0.001

RULES = """\
rule crosses-vwap "Crosses VWAP upwards"
  when price crosses_above vwap_session
   and minutes_since_open >= 2
  cooldown 10m
  tags crossing

rule high-of-day "New high of the day"
  when price crosses_above high_day_before
   and minutes_since_open >= 3
  gate volume_session >= 2_000
  rearm when price < 0.995 * high_day
  cooldown 3m
  severity notice
  tags edge, rearm

rule low-of-day "New low of the day"
  when price crosses_below low_day_before
   and minutes_since_open >= 3
  rearm when price > 1.005 * low_day
  cooldown 3m
  tags edge, rearm

rule stretched "Far above VWAP"
  when price > vwap_session
   and rsi_14_1m > 75
  cooldown 10m
  tags edge, cooldown

rule moving "Moves within five minutes"
  when change_pct_5m > 0.2
  fire level
  cooldown 7m
  tags level, cooldown

rule busy "A busy quarter of an hour"
  when volume_2m >= 3_000
  fire once per bar 15m
  tags level

rule heavy "Traded heavily, said once an hour"
  when volume_session >= 60_000
  fire level
  cooldown 1h
  tags level, cooldown
"""
"""Such as the oracle can judge: all of what fires must be right, to the instant."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tape:
    path: Path
    rules: Path
    seed: int
    speed: float
    every_s: int
    rows: int
    symbols: tuple[str, ...]

    @property
    def entries_per_s(self) -> float:
        """Batches, and so entries of each stream of ticks, in a second of the clock."""
        return self.speed / self.every_s


def write_tape(
    folder: Path,
    *,
    seed: int = 1,
    symbols: int = 200,
    trades: int = 40_000,
    wall_s: float = WALL_S,
    speed: float = SPEED,
    every_s: int = EVERY_S,
) -> Tape:
    """``tape.parquet`` and ``fault.rules`` in the folder. The same arguments give the same bytes."""
    _, open_ns, close_ns, _ = day_of(DAY)
    seconds = min(int(wall_s * speed), (close_ns - open_ns) // SECOND_NS)
    if symbols <= 2 * _QUIET or seconds < 60:
        raise ValueError(f"a tape has more than {2 * _QUIET} symbols, and a minute at least")
    rng = np.random.default_rng([seed, symbols, trades, seconds])
    names = tuple(f"{chr(65 + n % 26)}{chr(65 + n // 26 % 26)}{chr(65 + n // 676)}X" for n in range(symbols))
    symbol, second = _who_and_when(rng, symbols, trades, seconds)
    second -= second % every_s
    price = _prices(rng, symbol, second, symbols)
    letters = rng.choice(len(_REGULAR), len(symbol), p=[share for _, share in _REGULAR])
    odd = letters == 1
    lots = 100.0 * rng.choice([1, 2, 3, 5, 10], len(symbol), p=[0.55, 0.2, 0.1, 0.1, 0.05])
    table: dict[str, NDArray[Any]] = {
        "symbol": symbol,
        # Prints of one instant follow each other by a microsecond, so that every one has a time of its own.
        "ts_ns": open_ns + second * SECOND_NS + (np.arange(len(symbol)) % 1_000) * 1_000,
        "price": price,
        "size": np.where(odd, rng.integers(1, 100, len(symbol)).astype(float), lots),
        "letters": letters,
        "trade_id": np.arange(1, len(symbol) + 1),
        "correction": np.zeros(len(symbol), np.int64),
    }
    table = _as_it_arrives(rng, table)
    path, rules = folder / "tape.parquet", folder / "fault.rules"
    _write(path, table, names)
    rules.write_text(RULES, encoding="utf-8")
    return Tape(
        path=path, rules=rules, seed=seed, speed=speed, every_s=every_s, rows=len(table["symbol"]), symbols=names
    )


def _who_and_when(
    rng: np.random.Generator, symbols: int, trades: int, seconds: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Symbol and second of each trade, by time."""
    busy = symbols - _QUIET
    weight = 1.0 / np.arange(1, busy + 1) ** 0.7
    symbol = rng.choice(busy, trades, p=weight / weight.sum())
    second = np.minimum((rng.beta(0.8, 0.9, trades) * seconds).astype(np.int64), seconds - 1)
    keep = (symbol != _LATE_START) | (second >= seconds * 3 // 4)
    halted = (second >= seconds // 2) & (second < seconds // 2 + 30 * 60)
    keep &= (symbol != _HALTED) | ~halted
    quiet = np.repeat(np.arange(busy, symbols), [1, *[6] * (_QUIET - 1)])
    symbol = np.concatenate([symbol[keep], quiet])
    second = np.concatenate([second[keep], rng.integers(0, seconds, len(quiet))])
    order = np.argsort(second, kind="stable")
    return symbol[order], second[order]


def _prices(
    rng: np.random.Generator, symbol: NDArray[np.int64], second: NDArray[np.int64], symbols: int
) -> NDArray[np.float64]:
    """A walk and a wave for each symbol, in cents: levels are crossed again and again."""
    price = np.empty(len(symbol))
    for n in range(symbols):
        rows = np.flatnonzero(symbol == n)
        steps = np.diff(second[rows], prepend=second[rows[:1]])
        walk = np.cumsum(rng.normal(0.0, 1.0, len(rows)) * np.sqrt(steps) * 1.5e-4)
        period_s, phase = rng.uniform(1_800, 9_000), rng.uniform(0, 2 * np.pi)
        wave = rng.uniform(0.003, 0.02) * np.sin(2 * np.pi * second[rows] / period_s + phase)
        price[rows] = rng.uniform(8, 300) * np.exp(walk + wave)
    return np.round(price, 2)


def _as_it_arrives(rng: np.random.Generator, table: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Late ones where they arrive, repeated ones once more, and cancelled ones with the record that said so."""
    n = len(table["symbol"])
    arrival = table["ts_ns"].copy()
    kind = rng.choice(len(_LATE) + 1, n, p=[*(share for _, share in _LATE), 1 - sum(share for _, share in _LATE)])
    for which, (mean_s, _) in enumerate(_LATE):
        late = kind == which
        arrival[late] += (SECOND_NS * (1 + rng.exponential(mean_s, int(late.sum())))).astype(np.int64)
    repeated = np.flatnonzero(rng.random(n) < _REPEATED)
    cancelled = np.flatnonzero(rng.random(n) < _CANCELLED)
    table["correction"][cancelled] = 8
    again = {name: column[repeated] for name, column in table.items()}
    busts = {name: column[cancelled] for name, column in table.items()}
    busts["correction"] = np.full(len(cancelled), 10)
    arrival = np.concatenate(
        [arrival, arrival[repeated] + rng.integers(1, 30, len(repeated)) * SECOND_NS, arrival[cancelled] + MINUTE_NS]
    )
    order = np.argsort(arrival, kind="stable")
    return {name: np.concatenate([table[name], again[name], busts[name]])[order] for name in table}


def _write(path: Path, table: dict[str, NDArray[Any]], names: tuple[str, ...]) -> None:
    tape = table["symbol"] % 3
    # Tape C writes a regular sale as @, the others as a blank.
    words = [sign + letters for sign in " @" for letters, _ in _REGULAR]
    condition = (tape == 2) * len(_REGULAR) + table["letters"]
    texts = {
        "symbol": (table["symbol"], names),
        "conditions": (condition, words),
        "exchange": (np.where(table["letters"] == 4, 1, table["trade_id"] % 3), ("N", "D", "Q")),
        "tape": (tape, ("A", "B", "C")),
        "correction": (np.searchsorted([0, 8, 10], table["correction"]), ("00", "08", "10")),
    }
    columns = {name: pa.array(list(words)).take(pa.array(at)) for name, (at, words) in texts.items()}
    columns |= {name: pa.array(table[name]) for name in ("ts_ns", "price", "size", "trade_id")}
    pq.write_table(pa.table(columns), path, compression="zstd")
