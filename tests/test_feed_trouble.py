"""What the status says of a feed that is away, and of one that delivers what cannot be used."""

from typing import Any

import pytest

from tapewatch.app.status import feed_trouble


def feed(*connections: dict[str, Any], state: str = "running") -> dict[str, Any]:
    return {"state": state, "problem": "bad key", "connections": list(connections)}


def connection(name: str = "alpaca", **facts: Any) -> dict[str, Any]:
    return {"name": name, "state": "running", "problem": None, "rows": 0, "rejected": {}} | facts


@pytest.mark.parametrize(
    ("rows", "rejected"), [(0, {}), (10, {"price": 5}), (99_000, {"price": 990}), (0, {"price": 10})]
)
def test_feed_of_which_little_is_rejected_is_no_trouble(rows: int, rejected: dict[str, int]) -> None:
    assert feed_trouble(feed(connection(rows=rows, rejected=rejected))) == ""


def test_feed_of_which_more_than_a_hundredth_cannot_be_used_is_trouble_that_names_the_reason() -> None:
    changed = connection(rows=90_000, rejected={"unknown_type": 9_000, "price": 1_000})
    assert feed_trouble(feed(changed)) == "alpaca: 10% of what it sends cannot be used, most of it for unknown_type"


def test_feed_that_sends_nothing_of_use_is_trouble() -> None:
    assert feed_trouble(feed(connection(rejected={"not_json": 5_000}))).startswith("alpaca: 100% of what it sends")


def test_feeds_that_are_away_are_named_first() -> None:
    gone = connection("massive", state="lost", problem="closed")
    broken = connection(rows=0, rejected={"not_json": 5_000})
    told = feed_trouble(feed(gone, broken))
    assert told == (
        "one feed is away; massive: closed; alpaca: 100% of what it sends cannot be used, most of it for not_json"
    )
    assert feed_trouble(feed(gone)) == "no feed delivers; massive: closed"


def test_feed_that_refused_says_why() -> None:
    assert feed_trouble(feed(state="refused")) == "the feed refused: bad key"
