"""Ranked lists: sortings of the board."""

from dataclasses import dataclass

import numpy as np

from tapewatch.engine.columns import F64, I64


@dataclass(frozen=True, slots=True, kw_only=True)
class Toplist:
    """A system list: every symbol whose `metric` is known, in order of it."""

    id: str
    title: str
    metric: str
    window: str
    descending: bool = True

    @property
    def key(self) -> str:
        """Where the ranking stands in hot state, such as ``toplist:change_pct:5m``.

        A list in ascending order shares the ranking of its descending twin: it is the same order read from the end.
        """
        return f"toplist:{self.metric.removesuffix(f'_{self.window}')}:{self.window}"


def _system() -> list[Toplist]:
    lists: list[Toplist] = []
    for window in ("1m", "5m", "15m", "1h", "day"):
        change = f"change_pct_{window}"
        lists += [
            Toplist(id=f"gainers_{window}", title=f"Gainers {window}", metric=change, window=window),
            Toplist(id=f"losers_{window}", title=f"Losers {window}", metric=change, window=window, descending=False),
            Toplist(id=f"volume_{window}", title=f"Volume {window}", metric=f"volume_{window}", window=window),
        ]
    lists += [
        Toplist(id=f"relative_volume_{w}", title=f"Relative volume {w}", metric=f"relative_volume_{w}", window=w)
        for w in ("5m", "15m", "1h")
    ]
    rsi, vwap = "rsi_14_1m", "vwap_distance_pct"
    lists += [
        Toplist(id="rsi_high", title="RSI 14 highest", metric=rsi, window="1m"),
        Toplist(id="rsi_low", title="RSI 14 lowest", metric=rsi, window="1m", descending=False),
        Toplist(id="vwap_above", title="Furthest above VWAP", metric=vwap, window="session"),
        Toplist(id="vwap_below", title="Furthest below VWAP", metric=vwap, window="session", descending=False),
    ]
    return lists


SYSTEM_TOPLISTS: dict[str, Toplist] = {toplist.id: toplist for toplist in _system()}


def rank(values: F64, *, descending: bool, limit: int, offset: int = 0) -> I64:
    """Indices of `values` (shape (n,)) from place `offset` on, `limit` at most; unknown is left out, ties by index."""
    known = np.flatnonzero(~np.isnan(values))
    keys = values[known]
    if descending:
        keys = -keys
    wanted = offset + limit
    if wanted < len(known):
        # Everything up to the last wanted value, ties included, so that the stable sort below settles them by index.
        edge = np.partition(keys, wanted - 1)[wanted - 1]
        near = keys <= edge
        known, keys = known[near], keys[near]
    return known[np.argsort(keys, kind="stable")][offset:wanted]
