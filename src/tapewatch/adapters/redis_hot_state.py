"""Hot state on a Redis server (7.0 or newer, or Valkey). Keys are those of the caller, and a public interface.

A server that is full refuses with `Unavailable`. It must not evict: a claim that vanished early could be granted twice.
"""

import math
from collections.abc import Mapping, Sequence

from tapewatch.adapters.redis_server import CONNECT_TIMEOUT_S, TIMEOUT_S, RedisServer
from tapewatch.ports import Ranked

STEP = 1_000
"""Keys or members that one command carries, so that neither side is held up for long."""
_RENEW = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
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
        values: list[bytes | None] = []
        async with self._server.speaking() as client:
            for start in range(0, len(keys), STEP):
                values += await client.mget(keys[start : start + STEP])
        return values

    async def put(self, values: Mapping[str, bytes], *, ttl_s: float) -> None:
        ttl_ms = _ms(ttl_s)
        items = list(values.items())
        async with self._server.speaking() as client:
            for start in range(0, len(items), STEP):
                async with client.pipeline(transaction=False) as pipeline:
                    for key, value in items[start : start + STEP]:
                        pipeline.set(key, value, px=ttl_ms)
                    await pipeline.execute()

    async def claim(self, key: str, token: str, *, ttl_s: float, renew: bool = False) -> bool:
        ttl_ms = _ms(ttl_s)
        async with self._server.speaking() as client:
            if renew:
                return bool(await client.eval(_RENEW, 1, key, token, ttl_ms))
            return bool(await client.set(key, token, nx=True, px=ttl_ms))

    async def release(self, key: str, token: str) -> None:
        async with self._server.speaking() as client:
            await client.eval(_RELEASE, 1, key, token)

    async def rank(self, key: str, ranking: Sequence[Ranked], *, ttl_s: float) -> None:
        ttl_ms = _ms(ttl_s)
        scores = list({ranked.member: float(ranked.score) for ranked in ranking}.items())
        if not all(math.isfinite(score) for _, score in scores):
            raise ValueError(f"a score of the ranking {key} is not finite")
        async with self._server.speaking() as client, client.pipeline(transaction=True) as pipeline:
            pipeline.delete(key)
            for start in range(0, len(scores), STEP):
                pipeline.zadd(key, dict(scores[start : start + STEP]))
            pipeline.pexpire(key, ttl_ms)
            await pipeline.execute()

    async def ranking(self, key: str, *, limit: int, offset: int = 0, descending: bool = True) -> list[Ranked]:
        if limit < 0 or offset < 0:
            raise ValueError("limit and offset cannot be negative")
        async with self._server.speaking() as client:
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


def _ms(ttl_s: float) -> int:
    if not (ttl_s > 0 and math.isfinite(ttl_s)):
        raise ValueError(f"ttl_s must be positive and finite, not {ttl_s}")
    return math.ceil(ttl_s * 1_000)
