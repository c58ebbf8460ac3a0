"""Ranking against `sorted`."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapewatch.engine.metrics import CATALOGUE
from tapewatch.engine.toplists import SYSTEM_TOPLISTS, rank

NUMBERS = st.one_of(
    st.sampled_from((math.nan, 0.0, -0.0, 1.0, -1.0, math.inf, -math.inf)), st.floats(-5, 5), st.integers(-2, 2)
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    values=st.lists(NUMBERS.map(float), max_size=60),
    descending=st.booleans(),
    limit=st.integers(0, 70),
    offset=st.integers(0, 70),
)
def test_rank_of_random_values_equals_sorted(values: list[float], descending: bool, limit: int, offset: int) -> None:  # noqa: FBT001
    known = [i for i, value in enumerate(values) if not math.isnan(value)]
    expected = sorted(known, key=lambda i: -values[i] if descending else values[i])[offset : offset + limit]
    assert rank(np.array(values, float), descending=descending, limit=limit, offset=offset).tolist() == expected


def test_rank_of_ties_keeps_the_order_of_symbols() -> None:
    values = np.array([2.0, 1.0, 2.0, 1.0, 2.0])
    assert rank(values, descending=True, limit=4).tolist() == [0, 2, 4, 1]
    assert rank(values, descending=False, limit=3).tolist() == [1, 3, 0]


def test_pages_of_a_rank_add_up_to_the_whole() -> None:
    values = np.random.default_rng(1).integers(0, 9, 100).astype(float)
    whole = rank(values, descending=True, limit=100).tolist()
    pages = [rank(values, descending=True, limit=7, offset=at).tolist() for at in range(0, 105, 7)]
    assert [i for page in pages for i in page] == whole


@pytest.mark.parametrize("descending", [True, False])
def test_rank_leaves_unknown_values_out(descending: bool) -> None:  # noqa: FBT001
    values = np.array([np.nan, 3.0, np.nan])
    assert rank(values, descending=descending, limit=10).tolist() == [1]
    assert rank(values[:1], descending=descending, limit=10).tolist() == []


def test_system_toplists_name_metrics_of_the_catalogue_and_share_keys_with_their_twins() -> None:
    assert {toplist.metric for toplist in SYSTEM_TOPLISTS.values()} <= set(CATALOGUE)
    for toplist in SYSTEM_TOPLISTS.values():
        twins = [other for other in SYSTEM_TOPLISTS.values() if other.key == toplist.key]
        assert {other.metric for other in twins} == {toplist.metric}
        assert len({other.descending for other in twins}) == len(twins)
