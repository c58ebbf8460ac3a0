"""Splits: factors against a loop over every row, and prices that look like a split nobody told."""

import numpy as np
import pytest

from tapewatch.engine.splits import SplitSpec, price_factors, suspect_split


def test_factors_are_the_product_of_splits_between_the_day_and_today() -> None:
    random = np.random.default_rng(3)
    symbols = tuple(f"S{n}" for n in range(6))
    splits = list(
        {
            (symbol, int(day)): SplitSpec(symbol, int(day), float(factor))
            for symbol, day, factor in zip(
                random.choice([*symbols, "OTHER"], 40),
                random.integers(20_000, 20_060, 40),
                random.choice([0.5, 0.1, 0.25, 8.0, 20.0], 40),
                strict=True,
            )
        }.values()
    )
    symbol = random.integers(0, 6, 500).astype(np.int32)
    day = random.integers(19_990, 20_070, 500).astype(np.int32)
    for today in (19_999, 20_030, 20_100):
        slow = np.ones(500)
        for row in range(500):
            for split in splits:
                if split.symbol == symbols[symbol[row]] and day[row] < split.ex_day <= today:
                    slow[row] *= split.factor
        assert price_factors(symbols, symbol, day, splits, today=today) == pytest.approx(slow, rel=1e-12)


def test_day_of_the_split_itself_is_in_new_shares() -> None:
    split = [SplitSpec("A", 100, 0.25)]
    rows = np.zeros(3, np.int32), np.array([99, 100, 101], np.int32)
    assert price_factors(("A",), *rows, split, today=100).tolist() == [0.25, 1.0, 1.0]
    assert price_factors(("A",), *rows, split, today=99).tolist() == [1.0, 1.0, 1.0]
    assert price_factors(("A",), *rows, [], today=200).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("first", "previous", "suspect"),
    [
        (200.0, 10.0, True),  # a reverse split of 1 for 20 that was not told
        (10.0, 100.0, True),  # ten new shares for one
        (20.39, 10.0, True),
        (20.41, 10.0, False),
        (19.61, 10.0, True),
        (19.5, 10.0, False),
        (4.91, 10.0, True),
        (4.8, 10.0, False),
        (10.0, 10.0, False),
        (15.0, 10.0, False),
        (10.2, 10.0, False),
        (np.nan, 10.0, False),
        (20.0, np.nan, False),
        (20.0, 0.0, False),
        (0.0, 10.0, False),
        (np.inf, 10.0, False),
    ],
)
def test_price_near_an_integer_multiple_of_the_close_is_suspect(first: float, previous: float, suspect: bool) -> None:  # noqa: FBT001
    assert suspect_split(np.array([first]), np.array([previous])).tolist() == [suspect]
