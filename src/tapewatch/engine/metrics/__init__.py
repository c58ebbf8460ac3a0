"""The metric catalogue. Names carry their unit and, last, their window.

Values live on the board as float64; NaN means unknown, and unknown never fires a rule.
"""

from difflib import get_close_matches

from tapewatch.engine.metrics import (
    candles,
    clock,
    daily,
    day,
    fresh,
    index,
    opening,
    prices,
    prints,
    quotes,
    studies,
    usual,
    windows,
)
from tapewatch.engine.metrics.declare import Kept, Metric
from tapewatch.engine.quantities import split_back

FAMILIES = (prices, day, daily, windows, prints, usual, opening, fresh, quotes, clock, index, studies, candles)
"""Modules with `METRICS`; the first line of each says what they are of."""
CATALOGUE: dict[str, Metric] = {metric.name: metric for family in FAMILIES for metric in family.METRICS}
PUBLISHED = tuple(name for name, metric in CATALOGUE.items() if metric.published)
"""Metrics of the boards that lists and pages see."""
_ALIASES = (("_60m", "_1h"), ("_120m", "_2h"), ("_240m", "_4h"), ("_1d", "_day"))


def canonical_metric(name: str) -> str:
    """The catalogue's spelling: ``_60m`` is ``_1h`` and ``_1d`` is ``_day``. ValueError names what comes close."""
    canonical = name
    for alias, suffix in _ALIASES:
        if canonical.endswith(alias):
            canonical = canonical.removesuffix(alias) + suffix
    if canonical in CATALOGUE:
        return canonical
    close = get_close_matches(name, CATALOGUE, n=3, cutoff=0.6)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    shown = name if len(name) <= 64 else name[:61] + "..."
    raise ValueError(f"unknown metric {shown!r}{hint}")


def is_row(name: str) -> bool:
    """Whether the board can have a row of that name, such as ``close_5m[1]``."""
    metric, back = split_back(name)
    return metric in CATALOGUE and 0 <= back <= CATALOGUE[metric].back


__all__ = ["CATALOGUE", "FAMILIES", "PUBLISHED", "Kept", "Metric", "canonical_metric", "is_row"]
