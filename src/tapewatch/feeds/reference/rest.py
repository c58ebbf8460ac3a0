"""Asking a provider's REST: at a bounded rate, with bounded retries, and with answers that are checked or refused.

Keys travel in headers only. Errors name the provider and the path, never a header, a query or a body.
"""

import random
import re
from collections.abc import AsyncIterator, Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import NamedTuple, TypeVar

import httpx
import msgspec

from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import ConfigError, FeedRefused, Invalid, NotFound, Unavailable
from tapewatch.ports import Clock

T = TypeVar("T")

ATTEMPTS = 5
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
TIMEOUT_S = 30.0
MOST_BYTES = 128 * 1024 * 1024
MOST_PAGES = 10_000
_FAULT_PLACE = re.compile(r"(.*) - at `(.*)`$", re.DOTALL)


class Following(NamedTuple):
    """Where the next page is: further parameters of the same request, or another path with its own ones."""

    token: str
    query: Mapping[str, str]
    path: str | None = None


class Rest:
    """One base address. Requests leave one after the other, `requests_per_minute` at most."""

    def __init__(
        self, provider: str, address: str, *, headers: Mapping[str, str], clock: Clock, requests_per_minute: float
    ) -> None:
        if not re.fullmatch(r"https?://[^/?#@\s]+(/[^?#@\s]*)?", address):
            raise ConfigError(f"{provider}: {address!r} is not an address such as https://example.com")
        self.provider = provider
        self._clock = clock
        self._interval_ns = round(60 * SECOND_NS / requests_per_minute)
        self._next_ns = 0
        self._client = httpx.AsyncClient(base_url=address, headers=dict(headers), timeout=TIMEOUT_S)

    async def get(self, path: str, answer: type[T], **query: str | int) -> T:
        """The answer as `answer`, or `Invalid` naming the path and the field that is wrong."""
        return decode(await self.fetch(path, **query), answer, where=f"{self.provider} {path}")

    async def pages(
        self, path: str, answer: type[T], following: Callable[[T], "Following | None"], **query: str | int
    ) -> AsyncIterator[T]:
        """Page by page; `following` says where the next one is, None after the last."""
        seen: set[str] = set()
        while True:
            page = await self.get(path, answer, **query)
            yield page
            more = following(page)
            if more is None:
                return
            if more.token in seen or len(seen) >= MOST_PAGES:
                raise Invalid(f"{self.provider} {path}", "its pages do not end")
            seen.add(more.token)
            query = {**query, **more.query} if more.path is None else dict(more.query)
            path = more.path or path

    async def fetch(self, path: str, **query: str | int) -> bytes:
        """The body. `FeedRefused`, `NotFound`, `Invalid` (a bad request) at once; `Unavailable` after some attempts."""
        wait_s, where = FIRST_WAIT_S, f"{self.provider} {path}"
        for attempt in range(ATTEMPTS):
            if attempt:
                await self._clock.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311  # jitter needs no secrecy
                wait_s = min(wait_s * 4, LONGEST_WAIT_S)
            await self._turn()
            try:
                status, headers, body = await self._once(path, query)
            except httpx.TransportError as error:
                problem = type(error).__name__
                continue
            except httpx.HTTPError as error:  # an encoding that is broken, a redirection that leads nowhere
                raise Invalid(where, f"its answer cannot be read ({type(error).__name__})") from None
            if status == httpx.codes.OK:
                return body
            problem = f"HTTP {status}"
            if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
                raise FeedRefused(
                    f"{where} was refused (HTTP {status}): the key is wrong, or its plan does not include this"
                )
            if status == httpx.codes.NOT_FOUND:
                raise NotFound(f"{where} is not there (HTTP 404)")
            if status == httpx.codes.TOO_MANY_REQUESTS:
                wait_s = max(wait_s, self._retry_after_s(headers.get("retry-after", "")))
            elif status < httpx.codes.INTERNAL_SERVER_ERROR:
                raise Invalid(where, f"the request was not accepted (HTTP {status})")
        raise Unavailable(f"{where} does not answer after {ATTEMPTS} attempts: {problem}")

    async def close(self) -> None:
        await self._client.aclose()

    async def _turn(self) -> None:
        """Wait for the next free place in the rate."""
        now_ns = self._clock.now_ns()
        place_ns = max(now_ns, self._next_ns)
        self._next_ns = place_ns + self._interval_ns
        if place_ns > now_ns:
            await self._clock.sleep((place_ns - now_ns) / SECOND_NS)

    async def _once(self, path: str, query: Mapping[str, str | int]) -> tuple[int, httpx.Headers, bytes]:
        body = bytearray()
        async with self._client.stream("GET", path, params=dict(query)) as response:
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > MOST_BYTES:
                    raise Invalid(f"{self.provider} {path}", f"its answer is longer than {MOST_BYTES >> 20} MB")
        return response.status_code, response.headers, bytes(body)

    def _retry_after_s(self, text: str) -> float:
        """The header's seconds, or its date; a minute at most, 0 when it says nothing."""
        try:
            wait_s = (
                float(text)
                if text.isdecimal()
                else parsedate_to_datetime(text).timestamp() - self._clock.now_ns() / SECOND_NS
            )
        except (ValueError, TypeError, OverflowError):
            return 0.0
        # The jitter takes up to a half away, and the server meant all of it.
        return 2 * min(max(wait_s, 0.0), LONGEST_WAIT_S)


def decode(body: bytes, answer: type[T], *, where: str) -> T:
    """JSON as `answer`; `Invalid` says where and which field."""
    try:
        return msgspec.json.decode(body, type=answer)
    except msgspec.ValidationError as error:
        place = _FAULT_PLACE.match(str(error))
        why, field = (place[1], place[2]) if place else (str(error), "$")
        raise Invalid(f"{where} field {field}", why[0].lower() + why[1:]) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Invalid(where, "its answer is not valid JSON") from None
