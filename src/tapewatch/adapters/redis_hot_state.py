"""Hot state on a Redis server (7.0 or newer, or Valkey). Keys are those of the caller, and a public interface.

A server that is full refuses with `Unavailable`. It must not evict: a claim that vanished early could be granted twice.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

from tapewatch.adapters.redis_server import CONNECT_TIMEOUT_S, TIMEOUT_S, RedisServer
from tapewatch.ports import Ranked

STEP = 1_000
"""Keys or members that one command carries, so that neither side is held up for long."""
RENEW = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_PUT = "for i, key in ipairs(KEYS) do redis.call('SET', key, ARGV[i + 1], 'PX', ARGV[1]) end"
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
_SWAP = """
local held, before = redis.call('GET', KEYS[1]), ARGV[2]
if ARGV[1] == '0' then before = false end
if held ~= before then return 0 end
if ARGV[3] == '1' then
  redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
else
  redis.call('DEL', KEYS[1])
end
return 1
"""
# ZRANGE REV gives equal scores by falling name. The page's first and last score may go on outside of it, so their
# members are asked for by score; those between are whole and put in order by the caller.
_PAGE_DOWN = """
local offset, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local page = redis.call('ZRANGE', KEYS[1], offset, offset + limit - 1, 'REV', 'WITHSCORES')
if #page == 0 then return {page, {}, {}} end
local function tied(score)
  local above = redis.call('ZCOUNT', KEYS[1], '(' .. score, '+inf')
  local skip = math.max(offset - above, 0)
  local room = limit - math.max(above - offset, 0)
  return redis.call('ZRANGE', KEYS[1], score, score, 'BYSCORE', 'LIMIT', skip, room)
end
return {page, tied(page[2]), tied(page[#page])}
"""


class RedisHotState:
    """`HotState` on Redis. Each method but a `put` of many keys is one step for everybody."""

    def __init__(self, url: str, *, connect_timeout_s: float = CONNECT_TIMEOUT_S, timeout_s: float = TIMEOUT_S) -> None:
        self._server = RedisServer(url, what="the hot state", connect_timeout_s=connect_timeout_s, timeout_s=timeout_s)

    async def get(self, keys: Sequence[str]) -> list[bytes | None]:
        asked = self._together(list(dict.fromkeys(keys)))
        found = await self._all_of([("MGET", *its) for its in asked], [its[0] for its in asked])
        values = dict(zip(chain(*asked), chain(*found), strict=True))
        return [values[key] for key in keys]

    async def put(self, values: Mapping[str, bytes], *, ttl_s: float) -> None:
        ttl_ms = _ms(ttl_s)
        groups = self._together(list(values))
        puts = [("EVAL", _PUT, len(keys), *keys, ttl_ms, *(values[key] for key in keys)) for keys in groups]
        await self._all_of(puts, [keys[0] for keys in groups])

    async def claim(self, key: str, token: str, *, ttl_s: float, renew: bool = False) -> bool:
        ttl_ms = _ms(ttl_s)
        async with self._server.speaking(key) as client:
            if renew:
                return bool(await client.eval(RENEW, 1, key, token, ttl_ms))
            return bool(await client.set(key, token, nx=True, px=ttl_ms))

    async def hold(self, keys: Sequence[str], token: str, *, ttl_s: float) -> list[bool]:
        ttl_ms = _ms(ttl_s)
        return [bool(held) for held in await self._server.each(RENEW, [(key, token, ttl_ms) for key in keys])]

    async def release(self, key: str, token: str) -> None:
        async with self._server.speaking(key) as client:
            await client.eval(_RELEASE, 1, key, token)

    async def swap(self, key: str, before: bytes | None, after: bytes | None, *, ttl_s: float) -> bool:
        ttl_ms = _ms(ttl_s)
        both = [part for value in (before, after) for part in (int(value is not None), value or b"")]
        async with self._server.speaking(key) as client:
            return bool(await client.eval(_SWAP, 1, key, *both, ttl_ms))

    async def rank(self, key: str, ranking: Sequence[Ranked], *, ttl_s: float) -> None:
        ttl_ms = _ms(ttl_s)
        scores = list({ranked.member: float(ranked.score) for ranked in ranking}.items())
        if not all(math.isfinite(score) for _, score in scores):
            raise ValueError(f"a score of the ranking {key} is not finite")
        async with self._server.speaking(key) as client, client.pipeline(transaction=True) as pipeline:
            pipeline.delete(key)
            for start in range(0, len(scores), STEP):
                part = ((score, member) for member, score in scores[start : start + STEP])
                pipeline.execute_command("ZADD", key, *chain.from_iterable(part))
            pipeline.pexpire(key, ttl_ms)
            await pipeline.execute()

    async def ranking(self, key: str, *, limit: int, offset: int = 0, descending: bool = True) -> list[Ranked]:
        if limit < 0 or offset < 0:
            raise ValueError("limit and offset cannot be negative")
        async with self._server.speaking(key) as client:
            if not limit:
                return []
            if not descending:
                found = await client.zrange(key, offset, offset + limit - 1, withscores=True)
                return [Ranked(member.decode(), score) for member, score in found]
            page, best, worst = await client.eval(_PAGE_DOWN, 1, key, offset, limit)
        if not page:
            return []
        first, last = float(page[1]), float(page[-1])
        between = [
            Ranked(member.decode(), float(score))
            for member, score in zip(page[::2], page[1::2], strict=True)
            if last < float(score) < first
        ]
        between.sort(key=lambda ranked: (-ranked.score, ranked.member))
        top = [Ranked(member.decode(), first) for member in best]
        bottom = [Ranked(member.decode(), last) for member in worst] if last < first else []
        return top + between + bottom

    async def close(self) -> None:
        await self._server.close()

    def _together(self, keys: Sequence[str]) -> list[list[str]]:
        """What one command may name, and not too much of it."""
        by_place: dict[int, list[str]] = {}
        for key in keys:
            by_place.setdefault(self._server.place(key), []).append(key)
        return [its[start : start + STEP] for its in by_place.values() for start in range(0, len(its), STEP)]

    async def _all_of(self, commands: Sequence[tuple[Any, ...]], keys: Sequence[str]) -> list[Any]:
        """The replies to commands, each about the key beside it."""
        replies: list[Any] = []
        async with self._server.speaking():  # a closed one says so, although there is nothing to ask
            for start in range(0, len(commands), STEP):
                part = slice(start, start + STEP)
                replies += await self._server.all_of(commands[part], keys[part])
        return replies


def _ms(ttl_s: float) -> int:
    if not (ttl_s > 0 and math.isfinite(ttl_s)):
        raise ValueError(f"ttl_s must be positive and finite, not {ttl_s}")
    return math.ceil(ttl_s * 1_000)
