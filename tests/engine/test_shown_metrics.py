"""Rows that boards have because toplists ask for them: they come with the ruleset and go with it."""

from dataclasses import replace

import pytest

from tapewatch.eligibility import load_profile
from tapewatch.engine.columns import SECOND_NS, pulse
from tapewatch.engine.metrics import PUBLISHED
from tapewatch.engine.rules import Ruleset
from tapewatch.engine.scanner import Scanner
from tapewatch.nyse import day_of, trading_days
from tapewatch.wire import decode, encode

OPEN_NS = day_of("2025-03-03")[1]


def test_board_has_what_the_ruleset_shows_from_its_place_on_the_tape_on() -> None:
    scanner = Scanner(days=trading_days(), profile=load_profile("alpaca"), board_interval_ns=SECOND_NS)
    scanner.step(pulse(OPEN_NS))
    shown: list[tuple[str, ...]] = []
    ruleset = Ruleset(number=1, rules=())
    for second, names in enumerate(((), ("beta_1y", "close_5m[1]"), ()), start=1):
        scanner.apply(replace(ruleset, number=second, shown=names))
        (board,) = scanner.step(pulse(OPEN_NS + second * SECOND_NS)).boards
        assert board.metrics[: len(PUBLISHED)] == PUBLISHED
        shown.append(board.metrics[len(PUBLISHED) :])
    assert shown == [(), ("beta_1y", "close_5m[1]"), ()]


@pytest.mark.parametrize("shown", [(), ("beta_1y", "close_5m[1]")])
def test_ruleset_travels_with_what_it_shows(shown: tuple[str, ...]) -> None:
    ruleset = Ruleset(number=1, rules=(), shown=shown)
    assert decode(encode(ruleset)) == ruleset


def test_metric_that_this_release_lacks_is_left_out() -> None:
    ruleset = Ruleset(number=1, rules=(), shown=("beta_1y", "of_tomorrow"))
    assert decode(encode(ruleset)) == replace(ruleset, shown=("beta_1y",))
