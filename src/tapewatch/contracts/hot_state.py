"""What every `HotState` keeps its word about. The fixtures are named by `HotStateContract`."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from tapewatch.contracts.samples import HOSTILE_TEXTS
from tapewatch.ports import HotState, Ranked

Elapse = Callable[[float], Awaitable[None]]

TTL_S = 0.4
LESS_S = 0.1
MORE_S = 0.5
LONG_S = 60.0


@pytest.mark.anyio
class HotStateContract:
    """Give `hot_state`, open and empty, closed by the fixture. An adapter with its own idea of time also gives
    `elapse`, which lets that many seconds pass; the suite's own waits for them.
    """

    @pytest.fixture
    def hot_state(self) -> HotState:
        raise NotImplementedError

    @pytest.fixture
    def elapse(self) -> Elapse:
        return asyncio.sleep

    async def test_get_gives_values_in_the_order_of_the_keys_and_none_for_the_rest(self, hot_state: HotState) -> None:
        await hot_state.put({"a": b"1", "b": b"", "c": bytes(range(256))}, ttl_s=LONG_S)
        assert await hot_state.get(["c", "x", "a", "b", "a"]) == [bytes(range(256)), None, b"1", b"", b"1"]

    async def test_nothing_asked_or_put_is_nothing_done(self, hot_state: HotState) -> None:
        await hot_state.put({}, ttl_s=LONG_S)
        assert await hot_state.get([]) == []

    async def test_hostile_keys_are_kept_apart(self, hot_state: HotState) -> None:
        values = {f"livebar:{text}": text.encode() for text in HOSTILE_TEXTS}
        await hot_state.put(values, ttl_s=LONG_S)
        assert await hot_state.get(list(values)) == list(values.values())

    async def test_ten_thousand_values_at_once(self, hot_state: HotState) -> None:
        values = {f"livebar:S{number}": b"%d" % number for number in range(10_000)}
        await hot_state.put(values, ttl_s=LONG_S)
        assert await hot_state.get(list(values)) == list(values.values())

    async def test_put_replaces_value_and_expiry(self, hot_state: HotState, elapse: Elapse) -> None:
        await hot_state.put({"a": b"1", "b": b"1"}, ttl_s=TTL_S)
        await hot_state.put({"a": b"2"}, ttl_s=LONG_S)
        assert await hot_state.get(["a", "b"]) == [b"2", b"1"]
        await elapse(MORE_S)
        assert await hot_state.get(["a", "b"]) == [b"2", None]

    async def test_put_with_a_shorter_life_expires_sooner(self, hot_state: HotState, elapse: Elapse) -> None:
        await hot_state.put({"a": b"1"}, ttl_s=LONG_S)
        await hot_state.put({"a": b"2"}, ttl_s=TTL_S)
        await elapse(MORE_S)
        assert await hot_state.get(["a"]) == [None]

    async def test_value_lives_for_its_time_and_no_longer(self, hot_state: HotState, elapse: Elapse) -> None:
        await hot_state.put({"a": b"1"}, ttl_s=TTL_S)
        await elapse(LESS_S)
        assert await hot_state.get(["a"]) == [b"1"]
        await elapse(MORE_S)
        assert await hot_state.get(["a"]) == [None]

    async def test_claim_is_granted_once(self, hot_state: HotState) -> None:
        assert await hot_state.claim("lease:0", "me", ttl_s=LONG_S)
        assert not await hot_state.claim("lease:0", "you", ttl_s=LONG_S)
        assert not await hot_state.claim("lease:0", "me", ttl_s=LONG_S)
        assert await hot_state.claim("lease:1", "you", ttl_s=LONG_S)

    async def test_of_many_that_claim_at_once_one_wins(self, hot_state: HotState) -> None:
        for attempt in range(5):
            claims = (hot_state.claim(f"once:{attempt}", f"token-{n}", ttl_s=LONG_S) for n in range(50))
            assert sum(await asyncio.gather(*claims)) == 1

    async def test_expired_claim_is_free(self, hot_state: HotState, elapse: Elapse) -> None:
        assert await hot_state.claim("lease:0", "me", ttl_s=TTL_S)
        await elapse(MORE_S)
        claims = (hot_state.claim("lease:0", f"token-{n}", ttl_s=LONG_S) for n in range(20))
        assert sum(await asyncio.gather(*claims)) == 1

    async def test_holder_renews_and_nobody_else(self, hot_state: HotState, elapse: Elapse) -> None:
        assert await hot_state.claim("lease:0", "me", ttl_s=TTL_S)
        assert not await hot_state.claim("lease:0", "you", ttl_s=LONG_S, renew=True)
        assert await hot_state.claim("lease:0", "me", ttl_s=LONG_S, renew=True)
        await elapse(MORE_S)
        assert not await hot_state.claim("lease:0", "you", ttl_s=LONG_S)

    async def test_refused_claim_does_not_extend_the_holders(self, hot_state: HotState, elapse: Elapse) -> None:
        assert await hot_state.claim("lease:0", "me", ttl_s=TTL_S)
        assert not await hot_state.claim("lease:0", "me", ttl_s=LONG_S)
        assert not await hot_state.claim("lease:0", "you", ttl_s=LONG_S, renew=True)
        await elapse(MORE_S)
        assert await hot_state.claim("lease:0", "you", ttl_s=LONG_S)

    async def test_renewing_a_free_claim_takes_it(self, hot_state: HotState) -> None:
        assert await hot_state.claim("lease:0", "me", ttl_s=LONG_S, renew=True)
        assert not await hot_state.claim("lease:0", "you", ttl_s=LONG_S)

    async def test_many_claims_are_held_in_one_call(self, hot_state: HotState, elapse: Elapse) -> None:
        keys = [f"lease:{number}" for number in range(70)]
        assert await hot_state.claim(keys[3], "you", ttl_s=LONG_S)
        expected = [number != 3 for number in range(70)]
        assert await hot_state.hold(keys, "me", ttl_s=TTL_S) == expected
        assert await hot_state.hold(keys, "me", ttl_s=LONG_S) == expected
        assert await hot_state.hold(list(reversed(keys)), "you", ttl_s=LONG_S) == [not mine for mine in expected[::-1]]
        await elapse(MORE_S)
        assert await hot_state.hold([keys[7], keys[3], keys[0]], "me", ttl_s=LONG_S) == [True, False, True]
        assert not await hot_state.claim(keys[7], "you", ttl_s=LONG_S, renew=True)
        assert await hot_state.hold([], "me", ttl_s=LONG_S) == []

    async def test_held_claims_expire_and_are_free(self, hot_state: HotState, elapse: Elapse) -> None:
        keys = ["lease:0", "lease:1"]
        assert await hot_state.hold(keys, "me", ttl_s=TTL_S) == [True, True]
        await hot_state.release("lease:0", "me")
        assert await hot_state.hold(keys, "you", ttl_s=LONG_S) == [True, False]
        await elapse(MORE_S)
        assert await hot_state.hold(keys, "you", ttl_s=LONG_S) == [True, True]

    async def test_of_many_that_hold_at_once_one_wins(self, hot_state: HotState) -> None:
        keys = [f"lease:{number}" for number in range(5)]
        answers = await asyncio.gather(*(hot_state.hold(keys, f"token-{n}", ttl_s=LONG_S) for n in range(20)))
        assert [sum(column) for column in zip(*answers, strict=True)] == [1] * 5

    async def test_released_claim_is_free(self, hot_state: HotState) -> None:
        assert await hot_state.claim("lease:0", "me", ttl_s=LONG_S)
        await hot_state.release("lease:0", "me")
        assert await hot_state.claim("lease:0", "you", ttl_s=LONG_S)

    async def test_release_of_what_is_not_held_changes_nothing(self, hot_state: HotState) -> None:
        await hot_state.release("lease:0", "me")
        assert await hot_state.claim("lease:0", "me", ttl_s=LONG_S)
        await hot_state.release("lease:0", "you")
        assert not await hot_state.claim("lease:0", "you", ttl_s=LONG_S)

    async def test_late_release_does_not_free_the_next_holders_claim(self, hot_state: HotState, elapse: Elapse) -> None:
        assert await hot_state.claim("lease:0", "me", ttl_s=TTL_S)
        await elapse(MORE_S)
        assert await hot_state.claim("lease:0", "you", ttl_s=LONG_S)
        await hot_state.release("lease:0", "me")
        assert not await hot_state.claim("lease:0", "me", ttl_s=LONG_S)

    async def test_value_is_swapped_if_it_is_still_what_it_was(self, hot_state: HotState) -> None:
        assert not await hot_state.swap("a", b"1", b"2", ttl_s=LONG_S)
        assert await hot_state.swap("a", None, b"", ttl_s=LONG_S)
        assert not await hot_state.swap("a", None, b"1", ttl_s=LONG_S)
        assert await hot_state.get(["a"]) == [b""]
        assert await hot_state.swap("a", b"", bytes(range(256)), ttl_s=LONG_S)
        assert not await hot_state.swap("a", b"", b"1", ttl_s=LONG_S)
        assert await hot_state.get(["a"]) == [bytes(range(256))]
        assert not await hot_state.swap("a", b"1", None, ttl_s=LONG_S)
        assert await hot_state.swap("a", bytes(range(256)), None, ttl_s=LONG_S)
        assert await hot_state.get(["a"]) == [None]
        assert await hot_state.swap("a", None, None, ttl_s=LONG_S)
        assert await hot_state.claim("a", "me", ttl_s=LONG_S)

    async def test_swapped_value_lives_for_its_own_time(self, hot_state: HotState, elapse: Elapse) -> None:
        await hot_state.put({"a": b"1", "b": b"1"}, ttl_s=TTL_S)
        assert await hot_state.swap("a", b"1", b"2", ttl_s=LONG_S)
        assert not await hot_state.swap("b", b"2", b"3", ttl_s=LONG_S)
        await elapse(MORE_S)
        assert await hot_state.get(["a", "b"]) == [b"2", None]
        assert not await hot_state.swap("b", b"1", b"2", ttl_s=LONG_S)
        assert await hot_state.swap("b", None, b"2", ttl_s=TTL_S)
        await elapse(MORE_S)
        assert await hot_state.get(["b"]) == [None]

    async def test_of_many_that_swap_at_once_each_counts_once(self, hot_state: HotState) -> None:
        async def count() -> None:
            while True:
                (known,) = await hot_state.get(["n"])
                if await hot_state.swap("n", known, b"%d" % (int(known or b"0") + 1), ttl_s=LONG_S):
                    return

        await asyncio.gather(*(count() for _ in range(20)))
        assert await hot_state.get(["n"]) == [b"20"]

    async def test_ranking_is_by_score_and_then_by_name_in_both_directions(self, hot_state: HotState) -> None:
        given = [Ranked("B", 2.0), Ranked("C", -1.5), Ranked("A", 2.0), Ranked("D", 1e300), Ranked("É", 2.0)]
        await hot_state.rank("toplist:x", given, ttl_s=LONG_S)
        down = await hot_state.ranking("toplist:x", limit=10)
        assert down == [Ranked("D", 1e300), Ranked("A", 2.0), Ranked("B", 2.0), Ranked("É", 2.0), Ranked("C", -1.5)]
        up = await hot_state.ranking("toplist:x", limit=10, descending=False)
        assert up == [Ranked("C", -1.5), Ranked("A", 2.0), Ranked("B", 2.0), Ranked("É", 2.0), Ranked("D", 1e300)]

    async def test_ranking_pages_by_offset_and_limit(self, hot_state: HotState) -> None:
        given = [Ranked(f"S{number:03}", float(number % 7)) for number in range(100)]
        await hot_state.rank("toplist:x", given, ttl_s=LONG_S)
        whole = await hot_state.ranking("toplist:x", limit=1_000)
        assert len(whole) == 100
        pages = [await hot_state.ranking("toplist:x", limit=30, offset=offset) for offset in (0, 30, 60, 90, 120)]
        assert [ranked for page in pages for ranked in page] == whole
        assert await hot_state.ranking("toplist:x", limit=0) == []

    async def test_rank_replaces_the_whole_ranking(self, hot_state: HotState) -> None:
        await hot_state.rank("toplist:x", [Ranked("A", 1.0), Ranked("B", 2.0)], ttl_s=LONG_S)
        await hot_state.rank("toplist:x", [Ranked("C", 0.1 + 0.2)], ttl_s=LONG_S)
        assert await hot_state.ranking("toplist:x", limit=10) == [Ranked("C", 0.1 + 0.2)]
        await hot_state.rank("toplist:x", [], ttl_s=LONG_S)
        assert await hot_state.ranking("toplist:x", limit=10) == []

    async def test_reader_never_sees_half_a_ranking(self, hot_state: HotState) -> None:
        generations = [[Ranked(f"S{n}", float(generation)) for n in range(50)] for generation in range(10)]
        await hot_state.rank("toplist:x", generations[0], ttl_s=LONG_S)

        async def replace_all() -> None:
            for generation in generations:
                await hot_state.rank("toplist:x", generation, ttl_s=LONG_S)

        writing = asyncio.ensure_future(replace_all())
        while not writing.done():
            seen = await hot_state.ranking("toplist:x", limit=100)
            assert len(seen) == 50
            assert len({ranked.score for ranked in seen}) == 1
            await asyncio.sleep(0)
        await writing

    async def test_ranking_expires(self, hot_state: HotState, elapse: Elapse) -> None:
        await hot_state.rank("toplist:x", [Ranked("A", 1.0)], ttl_s=TTL_S)
        await elapse(LESS_S)
        assert await hot_state.ranking("toplist:x", limit=10) == [Ranked("A", 1.0)]
        await elapse(MORE_S)
        assert await hot_state.ranking("toplist:x", limit=10) == []

    async def test_ranking_that_never_was_is_empty(self, hot_state: HotState) -> None:
        assert await hot_state.ranking("toplist:x", limit=10) == []

    async def test_close_may_be_called_again(self, hot_state: HotState) -> None:
        await hot_state.close()
        await hot_state.close()
