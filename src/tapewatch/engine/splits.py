"""Splits: which factor takes a past price to today's shares, and which change of price looks like one that nobody told.

A split takes effect at 04:00 of its ex-date: prices of the days before it are multiplied by the factor (old shares per
new one, 0.25 for four new shares for one), volumes divided by it. Days are counted since 1970-01-01.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tapewatch.engine.columns import F64, I32, Bool

SUSPECT_WITHIN = 0.02
_DAY_BITS = 20


class SplitSpec(NamedTuple):
    """A split as the engine takes it."""

    symbol: str
    ex_day: int
    factor: float


def price_factors(
    symbols: Sequence[str], symbol: NDArray[np.integer], day: I32, splits: Sequence[SplitSpec], *, today: int
) -> F64:
    """For each row (`symbol` an index into `symbols`, `day` its trading date), shape (n,): the product of the factors
    of all splits of that symbol with day < ex_day <= today; 1 where there is none.
    """
    index = {name: place for place, name in enumerate(symbols)}
    known = {
        (index[split.symbol] << _DAY_BITS) + split.ex_day: split.factor
        for split in splits
        if split.symbol in index and split.ex_day <= today
    }
    factors = np.ones(len(day))
    if not known:
        return factors
    keys = np.array(sorted(known), np.int64)
    following = np.array([known[key] for key in keys.tolist()])
    for i in range(len(keys) - 2, -1, -1):  # splits, not rows: a few hundred
        if keys[i] >> _DAY_BITS == keys[i + 1] >> _DAY_BITS:
            following[i] *= following[i + 1]
    row_keys = (symbol.astype(np.int64) << _DAY_BITS) + day
    place = np.minimum(np.searchsorted(keys, row_keys, side="right"), len(keys) - 1)
    concerned = (keys[place] > row_keys) & (keys[place] >> _DAY_BITS == symbol)
    factors[concerned] = following[place[concerned]]
    return factors


def suspect_split(first_price: F64, close_prev: F64) -> Bool:
    """Whether the day's first price looks like a split that is not known: over the previous close, which known splits
    have been applied to, it lies within 2 % of an integer of 2 or more, or of the reciprocal of one.

    Shapes (n,). An unknown price is not suspect. The change of the day of a suspect symbol says nothing.
    """
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        ratio = first_price / close_prev
        multiple = np.where(ratio < 1.0, 1.0 / ratio, ratio)
        nearest = np.rint(multiple)
        suspect: Bool = (
            (nearest >= 2.0) & (np.abs(multiple - nearest) <= SUSPECT_WITHIN * nearest) & np.isfinite(multiple)
        )
    return suspect
