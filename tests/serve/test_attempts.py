"""Back-off of failed attempts."""

from tapewatch.engine.columns import SECOND_NS
from tapewatch.serve.attempts import MOST_KEYS, Attempts

NOW_NS = 1_800_000_000 * SECOND_NS


def test_some_are_free_and_then_each_waits_twice_as_long() -> None:
    attempts = Attempts(free=3, longest_s=10)
    now_ns, waits = NOW_NS, []
    for _ in range(10):
        wait_s = attempts.wait_s("ann", now_ns)
        waits.append(wait_s)
        now_ns += wait_s * SECOND_NS
        assert attempts.wait_s("ann", now_ns) == 0
        attempts.count("ann", now_ns)
    assert waits == [0, 0, 0, 1, 2, 4, 8, 10, 10, 10]


def test_others_do_not_wait() -> None:
    attempts = Attempts(free=1, longest_s=10)
    attempts.count("ann", NOW_NS)
    assert (attempts.wait_s("ann", NOW_NS), attempts.wait_s("bob", NOW_NS)) == (1, 0)


def test_success_forgets_and_an_hour_does() -> None:
    attempts = Attempts(free=1, longest_s=10)
    attempts.count("ann", NOW_NS)
    attempts.forget("ann")
    assert attempts.wait_s("ann", NOW_NS) == 0
    for _ in range(20):
        attempts.count("ann", NOW_NS)
    later_ns = NOW_NS + 3_601 * SECOND_NS
    attempts.count("ann", later_ns)
    assert attempts.wait_s("ann", later_ns) == 1


def test_one_that_did_not_fail_is_taken_back() -> None:
    attempts = Attempts(free=1, longest_s=10)
    attempts.count("here", NOW_NS)
    attempts.take_back("here")
    attempts.take_back("nowhere")
    assert attempts.wait_s("here", NOW_NS) == 0


def test_made_up_keys_do_not_fill_memory() -> None:
    attempts = Attempts(free=1, longest_s=10)
    for number in range(MOST_KEYS + 500):
        attempts.count(str(number), NOW_NS)
    assert len(attempts._failed) == MOST_KEYS
    assert (attempts.wait_s("0", NOW_NS), attempts.wait_s(str(MOST_KEYS), NOW_NS)) == (0, 1)
