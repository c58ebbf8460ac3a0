"""What goes through Apprise: mail to a server on this machine, and what is refused."""

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_network
from typing import Any

import pytest
from hooks import Names

from tapewatch.channels import apprise_channel
from tapewatch.channels.addresses import Addresses, AddressRefused
from tapewatch.channels.apprise_channel import AppriseSender, apprise_url, check_apprise_url
from tapewatch.channels.sending import SendFailed
from tapewatch.clock import SystemClock
from tapewatch.contracts.samples import make_alert
from tapewatch.contracts.store_deliveries import make_channel, make_delivery
from tapewatch.delivery_documents import Channel

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of the library and its plugins
]

PASSWORD = "pass:word/with@everything%"  # noqa: S105  # of nobody
TOKEN = "123456789:ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghi"  # noqa: S105
CHAT: dict[str, dict[str, Any]] = {
    "telegram": {"kind": "telegram", "token": TOKEN, "chat_id": "-100123"},
    "discord": {"kind": "discord", "url": "https://discord.com/api/webhooks/123456789012/" + "k" * 40},
    "slack": {"kind": "slack", "url": "https://hooks.slack.com/services/T0000000/B0000000/" + "k" * 24},
    "apprise": {"kind": "apprise", "url": "pover://" + "u" * 30 + "@" + "t" * 30},
}


def mail(port: int, host: str = "mail.example.com") -> Channel:
    settings = {
        "kind": "email",
        "host": host,
        "user": "me@example.com",
        "password": PASSWORD,
        "sender": "alerts@example.com",
        "to": ["ann@example.com", "bob@example.com"],
    }
    channel = make_channel("mail", settings=settings)
    return channel.model_copy(update={"settings": channel.settings.model_copy(update={"port": port})})


def alert() -> Any:
    return make_delivery(1, at_ns=SystemClock().now_ns(), body=make_alert(1).as_json())


@asynccontextmanager
async def listening(*, hangs: bool = False) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Whatever connects is greeted like by a mail server without STARTTLS."""
    heard: list[bytes] = []
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(b"")
        if hangs:
            await ended.wait()
        else:
            writer.write(b"220 test\r\n")
            with suppress(ConnectionError):
                while line := await reader.readline():
                    heard.append(line)
                    known = line.upper().startswith((b"EHLO", b"HELO"))
                    writer.write(b"250 no more\r\n" if known else b"502 no\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], heard
    finally:
        ended.set()
        server.close()


def allowed(**names: Any) -> Addresses:
    resolver = Names({"mail.example.com": [["127.0.0.1"]], **names})
    return Addresses((ip_network("127.0.0.0/8"),), resolve=resolver.resolve)


async def test_mail_without_tls_is_not_handed_over_and_nothing_says_the_password(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    async with listening() as (port, heard):
        # By its address: this machine knows no mail.example.com.
        with pytest.raises(SendFailed, match="did not take it") as caught:
            await AppriseSender(allowed(), SystemClock()).send(mail(port, "127.0.0.1"), alert())
    assert any(b"EHLO" in line.upper() for line in heard)
    assert not any(b"AUTH" in line.upper() for line in heard)
    assert PASSWORD not in str(caught.value) + caplog.text
    assert "mailtos" not in caplog.text
    assert not [record for record in caplog.records if record.name.startswith(("apprise", "urllib3", "requests"))]


async def test_mail_server_inside_is_not_connected_to() -> None:
    async with listening() as (port, heard):
        names = Names({"mail.example.com": [["127.0.0.1"]]})
        with pytest.raises(SendFailed, match="refused") as caught:
            await AppriseSender(Addresses(resolve=names.resolve), SystemClock()).send(mail(port), alert())
        assert caught.value.permanent
    assert heard == []


async def test_name_that_leads_inside_when_apprise_asks_for_it_is_not_connected_to(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What we ask is told a public address, what the library asks another one."""
    async with listening() as (port, heard):
        names = Names({"mail.example.com": [["93.184.216.34"]]})
        addresses = Addresses(ports=frozenset({port}), resolve=names.resolve)
        ask = socket.getaddrinfo

        def rebound(host: Any, *rest: Any, **more: Any) -> Any:
            return ask("127.0.0.1" if host == "mail.example.com" else host, *rest, **more)

        monkeypatch.setattr(socket, "getaddrinfo", rebound)
        with pytest.raises(SendFailed, match="not public"):
            await AppriseSender(addresses, SystemClock()).send(mail(port), alert())
    assert heard == []


async def test_other_threads_connect_as_ever() -> None:
    apprise_channel._stand_guard()
    async with listening() as (port, heard):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.close()
        await asyncio.to_thread(lambda: socket.create_connection(("127.0.0.1", port)).close())
        await asyncio.sleep(0.05)
    assert len([line for line in heard if line == b""]) == 2


async def test_one_that_hangs_is_left_and_holds_up_its_own_channel_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(apprise_channel, "ANSWER_S", 0.3)
    sender = AppriseSender(allowed(), SystemClock())
    async with listening(hangs=True) as (port, _), listening() as (other_port, _):
        with pytest.raises(SendFailed, match="not done within"):
            await sender.send(mail(port, "127.0.0.1"), alert())
        with pytest.raises(SendFailed, match="has not ended"):
            await sender.send(mail(port, "127.0.0.1"), alert())
        monkeypatch.setattr(apprise_channel, "ANSWER_S", 10.0)
        other = mail(other_port, "127.0.0.1").model_copy(update={"id": "other"})
        with pytest.raises(SendFailed, match="did not take it"):
            await sender.send(other, alert())
    for thread in [each for each in threading.enumerate() if each.name.startswith("apprise")]:
        await asyncio.to_thread(thread.join, 10)


@pytest.mark.parametrize("kind", CHAT)
async def test_apprise_understands_what_we_make_of_each_kind(kind: str) -> None:
    channel = make_channel(kind, settings=CHAT[kind])
    service = apprise_channel._instance(apprise_url(channel))
    assert service is not None
    if kind == "telegram":
        assert service.bot_token == TOKEN
        assert [target[0] for target in service.targets] == [-100123]
    secret = str(CHAT[kind].get("token") or CHAT[kind]["url"])
    assert secret not in repr(channel) + str(channel.shown())


async def test_mail_is_told_to_all_by_the_account_that_was_given() -> None:
    service = apprise_channel._instance(apprise_url(mail(587)))
    assert (service.user, service.password, service.smtp_host, service.port) == (
        "me@example.com",
        PASSWORD,
        "mail.example.com",
        587,
    )
    assert [address for _, address in service.targets] == ["ann@example.com", "bob@example.com"]
    assert service.from_addr[1] == "alerts@example.com"
    assert (service.secure, service.secure_mode) == (True, "starttls")


@pytest.mark.parametrize(
    "url",
    [
        "json://10.0.0.1/",
        "jsons://hooks.example.com/",
        "xml://hooks.example.com/",
        "form://hooks.example.com/",
        "file:///etc/passwd",
        "exec://ls",
        "syslog://",
        "rsyslog://10.0.0.1",
        "dbus://",
        "gnome://",
        "windows://",
        "macosx://",
        "mailtos://me:pass@example.com?pgppub=/etc/passwd",
        "gotify://hooks.example.com/token",
        "ntfys://10.0.0.1/topic",
        "ntfys://127.0.0.1/topic",
        "ntfys://[::1]/topic",
        "ntfys://localhost/topic",
        "ntfys://2130706433/topic",
        "gotifys://inside.example.com/AbCdEfGhIjKlMnO",
        "gotifys://hooks.example.com:6379/AbCdEfGhIjKlMnO",
        "pover://" + "u" * 30 + "@" + "t" * 30 + "?verify=no",
        "slack://T0000000/B0000000/ABCDEFGHIJKLMNOP12345678?template=/etc/passwd",
        "pover://short",
        "nothing",
        "",
    ],
)
async def test_url_of_apprise_that_reads_or_reaches_what_it_should_not_is_refused(url: str) -> None:
    names = Names({"hooks.example.com": [["93.184.216.34"]], "inside.example.com": [["10.0.0.1"]]})
    with pytest.raises(AddressRefused) as caught:
        await check_apprise_url(url, Addresses(resolve=names.resolve))
    assert "/etc/passwd" not in str(caught.value)


async def test_url_of_apprise_on_a_public_host_is_taken() -> None:
    names = Names({"hooks.example.com": [["93.184.216.34"]]})
    await check_apprise_url("ntfys://hooks.example.com/topic?priority=high", Addresses(resolve=names.resolve))
    await check_apprise_url(CHAT["apprise"]["url"], Addresses(resolve=names.resolve))
