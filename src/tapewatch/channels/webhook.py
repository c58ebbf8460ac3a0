"""Webhooks: a signed POST over TLS to an address that was checked.

The receiver's words are never kept, and its answer is read for its status alone: what is inside the operator's network
cannot be read through us, even where it may be reached.
"""

import asyncio
import hashlib
import hmac
import ssl
from functools import cached_property
from http import HTTPStatus

import httpx
import msgspec

from tapewatch import __version__
from tapewatch.channels.addresses import Addresses, AddressRefused, AddressUnknown
from tapewatch.channels.sending import SendFailed
from tapewatch.deliveries.messages import as_json
from tapewatch.delivery_documents import Channel, Delivery, WebhookSettings
from tapewatch.engine.columns import SECOND_NS
from tapewatch.ports import Clock

SIGNATURE_HEADER = "X-Tapewatch-Signature"
ANSWER_S = 3.0
MOST_ANSWER_BYTES = 64 * 1024
MOST_RETRY_AFTER_S = 3_600
_TRY_AGAIN = frozenset({
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.CONFLICT,
    HTTPStatus.TOO_EARLY,
    HTTPStatus.TOO_MANY_REQUESTS,
})  # fmt: skip


def signature(secret: str, body: bytes, *, at_s: int) -> str:
    """Of the time and the body, so that neither can be changed and an old one can be told from a new one."""
    digest = hmac.new(secret.encode(), f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


class WebhookSender:
    """`tls` in place of the machine's certificates, for tests."""

    def __init__(self, addresses: Addresses, clock: Clock, *, tls: ssl.SSLContext | None = None) -> None:
        self._addresses, self._clock, self._given_tls = addresses, clock, tls

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return self._given_tls or ssl.create_default_context()

    async def send(self, channel: Channel, delivery: Delivery) -> None:
        settings = channel.settings
        if not isinstance(settings, WebhookSettings) or settings.secret is None:
            raise SendFailed("the channel has no secret", permanent=True)
        now_ns = self._clock.now_ns()
        body = msgspec.json.encode(as_json(delivery, now_ns=now_ns))
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"tapewatch/{__version__}",
            "Idempotency-Key": delivery.delivery_id,
            SIGNATURE_HEADER: signature(settings.secret.get_secret_value(), body, at_s=now_ns // SECOND_NS),
            "Accept-Encoding": "identity",
            "Connection": "close",
        }
        try:
            async with asyncio.timeout(ANSWER_S):
                await self._post(settings.url, body, headers)
        except TimeoutError:
            raise SendFailed(f"no answer within {ANSWER_S:.0f} s") from None

    async def _post(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        try:
            target = await self._addresses.target(url)
        except AddressRefused as error:
            raise SendFailed(f"refused: {error}", permanent=True) from None
        except AddressUnknown as error:
            raise SendFailed(str(error)) from None
        headers = headers | {"Host": target.host_header}
        # A new client for each: nothing is shared between receivers, and no connection is kept to an address that a
        # name may have left.
        async with httpx.AsyncClient(
            verify=self._tls, trust_env=False, follow_redirects=False, timeout=ANSWER_S
        ) as client:
            request = client.build_request(
                "POST", target.url, content=body, headers=headers, extensions={"sni_hostname": target.host}
            )
            try:
                answer = await client.send(request, stream=True)
                try:
                    await _read_some(answer)
                finally:
                    await answer.aclose()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                raise SendFailed(_problem(error)) from None
        _judge(answer)


async def _read_some(answer: httpx.Response) -> None:
    """A receiver may finish what it says, if it is short."""
    read = 0
    async for chunk in answer.aiter_raw():
        read += len(chunk)
        if read > MOST_ANSWER_BYTES:
            return


def _judge(answer: httpx.Response) -> None:
    status = answer.status_code
    if 200 <= status < 300:
        return
    if status in _TRY_AGAIN or status >= 500:
        raise SendFailed(f"HTTP {status}", retry_after_s=_retry_after_s(answer.headers.get("retry-after", "")))
    if 300 <= status < 400:
        raise SendFailed(f"HTTP {status}: redirects are not followed", permanent=True)
    raise SendFailed(f"HTTP {status}", permanent=status == HTTPStatus.GONE)


def _retry_after_s(text: str) -> float | None:
    return float(min(int(text), MOST_RETRY_AFTER_S)) if text.isascii() and text.isdigit() and len(text) < 9 else None


def _problem(error: Exception) -> str:
    """Without the words of the library, which name addresses."""
    if isinstance(error, httpx.ConnectError):
        return "the certificate is not valid for this host" if "CERTIFICATE" in str(error) else "cannot be connected to"
    return "the connection broke" if isinstance(error, httpx.NetworkError) else "the answer is not HTTP"
