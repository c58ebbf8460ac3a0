"""Trades that a gap swallowed, fetched afterwards: bounded, the most traded symbols first.

They carry the ids of the live feed, so that those that arrived after all are recognised and count once. When everything
is there, the caller says so on the tape with a gap that ends where it starts.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from tapewatch.engine.columns import MINUTE_NS, OPEN_END_NS, ROW_COLUMNS, Batch, Gap, make_batch
from tapewatch.feeds.reference.prints import TradeHistory


@dataclass(frozen=True, slots=True, kw_only=True)
class BackfillBounds:
    """What one gap may cost. A longer gap is filled at its end, which is what windows and revisions reach."""

    symbols: int = 500
    span_ns: int = 30 * MINUTE_NS
    trades: int = 500_000


class Backfilled(NamedTuple):
    """`batch` holds the trades by time, without marks. `complete`: all of the gap's trades of all symbols are in it."""

    batch: Batch
    symbols: int
    complete: bool


async def backfill(
    gap: Gap, *, history: TradeHistory, volumes: Mapping[str, float], bounds: BackfillBounds | None = None
) -> Backfilled:
    """The trades of `volumes`' symbols in a gap that has ended, in the order of their volume.

    Errors are those of the source, and then nothing is returned; to ask again does no harm.
    """
    if gap.end_ns >= OPEN_END_NS:
        raise ValueError("a gap that has not ended cannot be filled")
    bounds = bounds or BackfillBounds()
    start_ns = max(gap.start_ns, gap.end_ns - bounds.span_ns)
    wanted = sorted(volumes, key=lambda symbol: (-volumes[symbol], symbol))
    asked = wanted[: bounds.symbols]
    pages: list[Batch] = []
    rows = done = 0
    if start_ns < gap.end_ns:
        for first in range(0, len(asked), history.symbols_per_request):
            some = asked[first : first + history.symbols_per_request]
            async for page in history.trades(some, start_ns=start_ns, end_ns=gap.end_ns):
                pages.append(page)
                rows += len(page)
                if rows >= bounds.trades:
                    return Backfilled(_by_time(pages, most=bounds.trades), done, complete=False)
            done += len(some)
    complete = start_ns == gap.start_ns and len(asked) == len(wanted)
    return Backfilled(_by_time(pages, most=bounds.trades), done, complete=complete)


def _by_time(pages: list[Batch], *, most: int) -> Batch:
    """The pages as one batch; their dictionaries grow, so the last one's hold for all."""
    if not pages:
        return make_batch()
    columns: dict[str, Any] = {name: np.concatenate([getattr(p, name) for p in pages])[:most] for name in ROW_COLUMNS}
    order = np.argsort(columns["ts_ns"], kind="stable")
    return make_batch(
        symbols=pages[-1].symbols,
        conditions=pages[-1].conditions,
        **{name: column[order] for name, column in columns.items()},
    )
