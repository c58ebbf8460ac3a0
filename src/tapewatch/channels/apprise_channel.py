"""E-mail, Telegram, Discord, Slack and others, through Apprise.

Apprise is synchronous and connects by itself. It works in a thread of the channel's own, in which no connection to an
address that was not allowed is made, wherever a name or a redirect leads, and in which libraries log nothing: their
logs name URLs, which are secrets here.
"""

import asyncio
import logging
import re
import sys
import threading
from functools import cache
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, quote, urlsplit

from tapewatch.channels.addresses import Addresses, AddressRefused, AddressUnknown
from tapewatch.channels.sending import SendFailed
from tapewatch.deliveries.messages import as_text
from tapewatch.delivery_documents import (
    AppriseSettings,
    Channel,
    Delivery,
    DiscordSettings,
    EmailSettings,
    SlackSettings,
    TelegramSettings,
)
from tapewatch.ports import Clock

ANSWER_S = 15.0
_SOCKET_S = "cto=4&rto=4"
HOSTED = (
    *("discord", "gchat", "lark", "line", "opsgenie", "pagerduty", "pbul", "pover", "prowl"),
    *("simplepush", "slack", "spush", "tgram", "twilio", "wxteams", "zulip"),
)
"""Services whose host Apprise knows."""
ON_A_HOST = ("gotifys", "matrixs", "mmosts", "nctalks", "ntfys", "rockets")
"""Services on a host that the URL names, over TLS."""
_OPTIONS = frozenset({"format", "image", "priority", "sound", "silent", "preview", "topic", "thread", "to", "mode"})
"""Others read files of this machine, or leave certificates unchecked."""
_LOGGERS = ("apprise", "requests", "urllib3", "urllib3.connectionpool", "urllib3.util.retry", "requests_oauthlib")

_here = threading.local()
"""`addresses` in a thread that sends."""


async def check_apprise_url(url: str, addresses: Addresses) -> None:
    """`AddressRefused` or `AddressUnknown` if it is not one that we send to."""
    _check_form(url)
    parts = urlsplit(url)
    if parts.scheme in ON_A_HOST:
        await addresses.address_of((parts.hostname or "").removesuffix("."), parts.port or 443)
    if await asyncio.to_thread(_instance, url) is None:
        raise AddressRefused(f"is not a URL that Apprise knows of {parts.scheme}://")


def _check_form(url: str) -> None:
    try:
        parts = urlsplit(url)
        scheme, _ = parts.scheme, parts.port
    except ValueError:
        raise AddressRefused("is not a URL of Apprise") from None
    if scheme not in {*HOSTED, *ON_A_HOST}:
        allowed = ", ".join(sorted({*HOSTED, *ON_A_HOST}))
        raise AddressRefused(f"{scheme[:20]!r} is not a service that we send to: {allowed}")
    for name, _ in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _OPTIONS:
            raise AddressRefused(f"the option {name[:30]!r} is not allowed")


async def check_mail_host(settings: EmailSettings, addresses: Addresses) -> None:
    """Servers for mail have ports of their own."""
    await _with_port(addresses, settings.port).address_of(settings.host.lower(), settings.port)


def _with_port(addresses: Addresses, port: int) -> Addresses:
    return Addresses(addresses.allowed, addresses.ports | {port}, addresses.resolve)


class AppriseSender:
    def __init__(self, addresses: Addresses, clock: Clock) -> None:
        self._addresses, self._clock = addresses, clock
        self._at_work: dict[str, threading.Thread] = {}

    async def send(self, channel: Channel, delivery: Delivery) -> None:
        before = self._at_work.get(channel.id)
        if before is not None and before.is_alive():
            raise SendFailed("the attempt before has not ended yet")
        url = apprise_url(channel)
        try:
            async with asyncio.timeout(ANSWER_S):
                settings = channel.settings
                if isinstance(settings, EmailSettings):
                    await check_mail_host(settings, self._addresses)
                elif isinstance(settings, AppriseSettings):
                    await check_apprise_url(url, self._addresses)
                title, text = as_text(delivery, now_ns=self._clock.now_ns())
                await self._notify(channel.id, url, title, text)
        except TimeoutError:
            raise SendFailed(f"not done within {ANSWER_S:.0f} s") from None
        except AddressRefused as error:
            raise SendFailed(f"refused: {error}", permanent=True) from None
        except AddressUnknown as error:
            raise SendFailed(str(error)) from None

    async def _notify(self, channel_id: str, url: str, title: str, text: str) -> None:
        loop, done = asyncio.get_running_loop(), asyncio.get_running_loop().create_future()

        def tell(outcome: str) -> None:
            if not done.done():
                done.set_result(outcome)

        def work() -> None:
            outcome = _notified(url, title, text, self._addresses)
            try:
                loop.call_soon_threadsafe(tell, outcome)
            except RuntimeError:  # the loop has ended meanwhile
                return

        # A thread of its own, which nobody waits for: one that hangs holds up its own channel alone.
        thread = threading.Thread(target=work, name=f"apprise {channel_id}", daemon=True)
        self._at_work[channel_id] = thread
        thread.start()
        problem = await done
        if problem:
            raise SendFailed(problem)


def apprise_url(channel: Channel) -> str:
    """Of any kind but a webhook. It is a secret."""
    match channel.settings:
        case EmailSettings() as mail:
            mode = "ssl" if mail.security == "tls" else "starttls"
            password = mail.password.get_secret_value() if mail.password else ""
            return (
                f"mailtos://{_quoted(mail.user)}:{_quoted(password)}@{mail.host}:{mail.port}/?smtp={_quoted(mail.host)}"
                f"&from={_quoted(mail.sender)}&to={_quoted(','.join(mail.to))}&mode={mode}&{_SOCKET_S}"
            )
        case TelegramSettings(token=token, chat_id=chat) if token is not None:
            return f"tgram://{token.get_secret_value()}/{_quoted(chat)}/?{_SOCKET_S}"
        case DiscordSettings(url=url) if url is not None:
            hook, token = url.get_secret_value().split("/")[-2:]
            return f"discord://{hook}/{token}/?{_SOCKET_S}"
        case SlackSettings(url=url) if url is not None:
            team, app, token = url.get_secret_value().split("/")[-3:]
            return f"slack://{team}/{app}/{token}/?{_SOCKET_S}"
        case AppriseSettings(url=url) if url is not None:
            return str(url.get_secret_value())
    raise SendFailed("the channel has no secret", permanent=True)


def _quoted(text: str) -> str:
    return quote(text, safe="")


# -- in the thread ----------------------------------------------------------------------------------------------------


def _notified(url: str, title: str, text: str, addresses: Addresses) -> str:
    """What went wrong; empty if nothing did."""
    _stand_guard()
    _here.addresses, _here.refused = addresses, False
    try:
        service = _instance(url)
        if service is None:
            return "Apprise does not know this URL"
        sent = service.notify(title=title, body=text)
    except Exception as error:  # noqa: BLE001  # of any of its plugins, and with whatever in its text
        return f"failed: {type(error).__name__}"
    finally:
        refused, _here.addresses = _here.refused, None
    if sent:
        return ""
    return "refused: it led to an address that is not public" if refused else "the service did not take it"


def _instance(url: str) -> Any:
    """Apprise's object for the URL; None if it knows none."""
    _stand_guard()
    import apprise  # slow, and many installations have no such channel

    before, _here.addresses = getattr(_here, "addresses", None), getattr(_here, "addresses", None) or Addresses()
    try:
        asset = apprise.AppriseAsset(app_id="tapewatch", app_desc="tapewatch", app_url="", storage_mode="memory")
        return apprise.Apprise.instantiate(url, asset=asset, suppress_exceptions=True)
    finally:
        _here.addresses = before


def _connects(event: str, arguments: tuple[Any, ...]) -> None:
    """Of Python's audit events those that leave the machine, in threads that send."""
    if event not in {"socket.connect", "socket.sendto"}:
        return
    addresses: Addresses | None = getattr(_here, "addresses", None)
    if addresses is None:
        return
    place = arguments[1]
    host = str(place[0]) if isinstance(place, tuple) else ""
    plain = re.sub(r"%.*", "", host)
    try:
        allowed = addresses.allows(ip_address(plain))
    except ValueError:
        allowed = False
    if not allowed:
        _here.refused = True
        raise ConnectionRefusedError("not a public address")


def _is_loud(_: logging.LogRecord) -> bool:
    return getattr(_here, "addresses", None) is None


@cache
def _stand_guard() -> None:
    """Once in a process; other threads go on as ever."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_is_loud)
    sys.addaudithook(_connects)
