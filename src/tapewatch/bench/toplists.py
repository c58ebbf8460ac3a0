"""The figure of users' toplists: many lists over one board."""

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from tapewatch.engine.board import BoardRows
from tapewatch.engine.metrics import PUBLISHED
from tapewatch.engine.rules.text import parse_condition
from tapewatch.engine.toplists import RankedBy, Surroundings, UserRankings

SYMBOLS = 10_000
LISTS = 200
SHOWN = 500
WHAT = (
    f"ranking {LISTS} users' toplists over a board of {SYMBOLS:,} symbols: sixteen metrics in both orders, thirty "
    f"filters of two to four conditions and one list in five without, the first {SHOWN} of each"
)
_FILTERS = (
    "price between {low} and {high} and volume_day >= {volume}",
    "price >= {low} and volume_day >= {volume} and change_pct_day >= 0.5",
    "exchange in (XNAS, XNYS) and price >= {low} and price <= {high} and volume_day >= {volume}",
    "price > vwap_session and volume_day >= {volume}",
    "(change_pct_5m > 1 or change_pct_day > 3) and price >= {low}",
    "price / atr_14_1m > 40 and volume_day >= {volume}",
)


def user_lists() -> list[RankedBy]:
    draw = np.random.default_rng(5)
    filters = [
        parse_condition(text.format(low=1 + n, high=60 + 20 * n, volume=50_000 * (n + 1)))
        for text in _FILTERS
        for n in range(5)
    ]
    return [
        RankedBy(
            metric=PUBLISHED[3 * int(draw.integers(16))],
            descending=bool(draw.integers(2)),
            where=None if n % 5 == 0 else filters[int(draw.integers(len(filters)))],
        )
        for n in range(LISTS)
    ]


def board() -> BoardRows:
    draw = np.random.default_rng(6)
    values = draw.normal(20.0, 30.0, (len(PUBLISHED), SYMBOLS))
    values[draw.random(values.shape) < 0.05] = np.nan
    values[PUBLISHED.index("price")] = np.exp(draw.normal(3.5, 1.0, SYMBOLS))
    values[PUBLISHED.index("volume_day")] = np.round(np.exp(draw.normal(12.0, 2.0, SYMBOLS)))
    names = tuple(f"S{n:05}" for n in range(SYMBOLS))
    return BoardRows(ts_ns=1, session="regular", symbols=names, metrics=PUBLISHED, values=values)


def rankings() -> Iterator[float]:
    """Milliseconds each."""
    now = board()
    exchanges = {symbol: ("XNAS", "XNYS", "ARCX")[n % 3] for n, symbol in enumerate(now.symbols)}
    lists = UserRankings(user_lists(), Surroundings(labels={"exchange": exchanges}))
    lists.rank(now, limit=SHOWN)
    for run in range(15):
        now = replace(now, ts_ns=now.ts_ns + 1, values=np.roll(now.values, run + 1, axis=1))
        started = time.perf_counter()
        lists.rank(now, limit=SHOWN)
        yield (time.perf_counter() - started) * 1e3
