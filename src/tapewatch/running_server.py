"""The REST of a running server, as commands ask it: one line says what went wrong, and `TAPEWATCH_TOKEN` who asks."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import httpx

from tapewatch.errors import ConfigError, Invalid, NotFound, TapewatchError, Unauthorized, Unavailable, VersionConflict

UNREADABLE = (AttributeError, KeyError, TypeError, ValueError)
"""Raised by reading an answer of JSON that is not what was asked for."""
_TIMEOUT_S = 10.0
_MOST_WAITS = 3
"""For one request, where the server says that there were too many in this minute."""
_LONGEST_WAIT_S = 60


class RunningServer:
    """`ConfigError` names ``--url`` if that is no address."""

    def __init__(self, url: str) -> None:
        try:
            base = httpx.URL(url)
        except httpx.InvalidURL:
            base = httpx.URL()
        if base.userinfo or base.query:  # it would stand in what we say of the server
            raise ConfigError("--url: has a user or a query; TAPEWATCH_TOKEN says who asks")
        if base.scheme not in {"http", "https"} or not base.host:
            raise ConfigError(f"--url: {url!r} is not an address such as http://127.0.0.1:8000")
        self._client = httpx.AsyncClient(base_url=base, timeout=_TIMEOUT_S, trust_env=False, headers=_proof())

    @property
    def url(self) -> str:
        return str(self._client.base_url)

    async def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """What succeeded; what was refused is an error named by the remedy. A limit is waited for."""
        answer = await self._once(method, path, **more)
        for _ in range(_MOST_WAITS):
            wait_s = _wait_s(answer)
            if wait_s is None:
                break
            await asyncio.sleep(wait_s)
            answer = await self._once(method, path, **more)
        if answer.is_success:
            return answer
        raise _refusal(answer, path)

    async def read(self, method: str, path: str, **more: Any) -> Any:
        """The JSON of an answer."""
        answer = await self.send(method, path, **more)
        try:
            return answer.json()
        except ValueError:
            raise stranger(answer.url) from None

    async def pages(self, path: str, **query: str | int) -> AsyncIterator[list[Any]]:
        """The items of a list that is read from a cursor, page by page."""
        cursor: dict[str, str] = {}
        while True:
            page = await self.read("GET", path, params={**query, **cursor})
            try:
                items, next_cursor = list(page["items"]), page["next_cursor"]
            except UNREADABLE:
                raise stranger(self.url) from None
            yield items
            if next_cursor is None or not items:
                return
            cursor = {"cursor": next_cursor}

    async def close(self) -> None:
        await self._client.aclose()

    async def _once(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            return await self._client.request(method, f"/api/v1/{path}", **more)
        except httpx.HTTPError as error:
            why = str(error) or type(error).__name__
            raise Unavailable(f"{self._client.base_url} does not answer: {why}") from None


def stranger(url: object) -> TapewatchError:
    """For an answer that cannot be read."""
    return Unavailable(f"{url} answers, but not as a tapewatch of this release does")


def _proof() -> dict[str, str]:
    """The header that says who asks, of a server that has accounts."""
    token = os.environ.get("TAPEWATCH_TOKEN", "")
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise ConfigError("TAPEWATCH_TOKEN does not look like a token: spaces, line ends or other letters are in it")
    return {"Authorization": f"Bearer {token}"} if token else {}


def _wait_s(answer: httpx.Response) -> int | None:
    """How long the server asks to wait; None if it does not, or for longer than a command would."""
    text = answer.headers.get("retry-after", "")
    if answer.status_code != httpx.codes.TOO_MANY_REQUESTS or not (text.isascii() and text.isdigit()):
        return None
    return int(text) if len(text) < 5 and int(text) <= _LONGEST_WAIT_S else None


def _refusal(answer: httpx.Response, path: str) -> TapewatchError:
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"HTTP {answer.status_code}"
    if answer.status_code == httpx.codes.UNAUTHORIZED:
        return Unauthorized(f"{answer.url.host} has accounts: set TAPEWATCH_TOKEN to a token that is good")
    if answer.status_code == httpx.codes.NOT_FOUND:
        return NotFound(f"{path}: {detail}")
    if answer.status_code in {httpx.codes.CONFLICT, httpx.codes.PRECONDITION_FAILED}:
        return VersionConflict(f"{path}: {detail}")
    return Invalid(path, detail) if answer.is_client_error else Unavailable(f"{path}: {detail}")
