"""Webhooks over real TLS: what is sent and to whom, and what a hostile receiver can do."""

import asyncio
import gzip
import json
import ssl
import time
import tracemalloc
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hooks import NAME, Names, Receiver, answer, here, make_tls, receiving

from tapewatch.channels import webhook
from tapewatch.channels.addresses import Addresses
from tapewatch.channels.sending import SendFailed
from tapewatch.channels.webhook import WebhookSender, signature
from tapewatch.clock import SystemClock
from tapewatch.contracts.samples import make_alert
from tapewatch.contracts.store_deliveries import SECRET, make_channel, make_delivery
from tapewatch.delivery_documents import Channel, Delivery
from tapewatch.engine.columns import SECOND_NS

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return make_tls()


@pytest.fixture
async def receiver(tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> AsyncIterator[Receiver]:
    async with receiving(tls[0]) as receiver:
        yield receiver


@pytest.fixture
def names() -> Names:
    return Names({NAME: [["127.0.0.1"]]})


@pytest.fixture
def sender(names: Names, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> WebhookSender:
    return WebhookSender(here(names), SystemClock(), tls=tls[1])


def channel(receiver: Receiver, *, host: str = NAME, path: str = "/in?key=1") -> Channel:
    settings = {"kind": "webhook", "url": f"https://{host}:{receiver.port}{path}", "secret": SECRET}
    return make_channel("c", settings=settings)


def delivery(**changes: Any) -> Delivery:
    return make_delivery(1, at_ns=SystemClock().now_ns(), attempts=1, body=make_alert(1).as_json(), **changes)


async def test_alert_arrives_signed_at_the_name_s_own_host(sender: WebhookSender, receiver: Receiver) -> None:
    sent = delivery()
    await sender.send(channel(receiver), sent)
    ((headers, body),) = receiver.requests
    assert headers["request"] == "POST /in?key=1 HTTP/1.1"
    assert headers["host"] == f"{NAME}:{receiver.port}"
    assert headers["idempotency-key"] == sent.delivery_id
    assert headers["content-type"] == "application/json"
    assert receiver.server_names == [NAME]
    at_s = int(headers["x-tapewatch-signature"].split(",")[0].removeprefix("t="))
    assert abs(at_s - time.time()) < 5
    assert headers["x-tapewatch-signature"] == signature(SECRET, body, at_s=at_s)
    assert signature(SECRET, body + b" ", at_s=at_s) != signature(SECRET, body, at_s=at_s)
    assert signature(SECRET, body, at_s=at_s + 1) != signature(SECRET, body, at_s=at_s)
    told = json.loads(body)
    assert told["alert"] == make_alert(1).as_json()
    assert (told["type"], told["delivery_id"], told["late_s"], told["attempt"]) == ("alert", "d00001", None, 1)


async def test_late_alert_says_so(sender: WebhookSender, receiver: Receiver) -> None:
    await sender.send(channel(receiver), make_delivery(1, at_ns=SystemClock().now_ns() - 90 * SECOND_NS))
    assert 89 <= json.loads(receiver.requests[0][1])["late_s"] <= 92


async def test_name_that_leads_inside_at_the_time_of_sending_is_not_connected_to(
    receiver: Receiver, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    names = Names({NAME: [["93.184.216.34"], ["127.0.0.1"]]})
    addresses = Addresses(ports=frozenset({443, receiver.port}), resolve=names.resolve)
    assert (await addresses.target(f"https://{NAME}/")).address == "93.184.216.34"  # as it was saved
    with pytest.raises(SendFailed, match="not a public address") as caught:
        await WebhookSender(addresses, SystemClock(), tls=tls[1]).send(channel(receiver), delivery())
    assert caught.value.permanent
    assert receiver.connections == 0


async def test_name_is_asked_once_so_that_what_was_checked_is_what_is_connected_to(
    sender: WebhookSender, receiver: Receiver, names: Names
) -> None:
    names.answers[NAME] = [["127.0.0.1"], ["127.0.0.2"]]
    await sender.send(channel(receiver), delivery())
    assert names.asked == [NAME]


async def test_certificate_of_another_name_is_refused(sender: WebhookSender, receiver: Receiver, names: Names) -> None:
    names.answers["other.example.com"] = [["127.0.0.1"]]
    with pytest.raises(SendFailed, match="certificate"):
        await sender.send(channel(receiver, host="other.example.com"), delivery())
    assert receiver.requests == []


@pytest.mark.parametrize("location", ["https://127.0.0.1/", "http://169.254.169.254/", "file:///etc/passwd"])
async def test_redirect_is_not_followed(sender: WebhookSender, receiver: Receiver, location: str) -> None:
    receiver.answers = [answer(302, f"Location: {location}")]
    with pytest.raises(SendFailed, match="redirects") as caught:
        await sender.send(channel(receiver), delivery())
    assert caught.value.permanent
    assert receiver.connections == 1


@pytest.mark.parametrize(
    ("status", "headers", "permanent", "after_s"),
    [
        (500, [], False, None),
        (503, ["Retry-After: 7"], False, 7.0),
        (429, ["Retry-After: 99999999"], False, 3600.0),
        (429, ["Retry-After: -1"], False, None),
        (404, [], False, None),
        (410, [], True, None),
    ],
)
async def test_refusal_says_whether_another_try_makes_sense(
    *,
    sender: WebhookSender,
    receiver: Receiver,
    status: int,
    headers: list[str],
    permanent: bool,
    after_s: float | None,
) -> None:
    receiver.answers = [answer(status, *headers, body=b"words of the receiver")]
    with pytest.raises(SendFailed) as caught:
        await sender.send(channel(receiver), delivery())
    assert str(caught.value) == f"HTTP {status}"
    assert (caught.value.permanent, caught.value.retry_after_s) == (permanent, after_s)


async def test_receiver_that_never_answers_is_left(
    sender: WebhookSender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert webhook.ANSWER_S == 3.0
    monkeypatch.setattr(webhook, "ANSWER_S", 0.3)
    receiver.hangs = True
    started = time.monotonic()
    with pytest.raises(SendFailed, match=r"no answer|broke|not HTTP"):
        await sender.send(channel(receiver), delivery())
    assert time.monotonic() - started < 1.5


@pytest.mark.parametrize(
    "drop",
    [b"HTTP/1.1 100 Continue\r\n\r\n", b"H", b"HTTP/1.1 200 OK\r\nX: y\r\n"],
    ids=["100 Continue", "a byte", "headers"],
)
async def test_answer_that_drips_has_its_time_in_all(
    sender: WebhookSender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, drop: bytes
) -> None:
    monkeypatch.setattr(webhook, "ANSWER_S", 0.5)
    receiver.answers, receiver.drips = [drop], True
    started = time.monotonic()
    with pytest.raises(SendFailed):
        await sender.send(channel(receiver), delivery())
    assert time.monotonic() - started < 2


async def test_answer_that_unpacks_to_a_mountain_is_not_unpacked(sender: WebhookSender, receiver: Receiver) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    receiver.answers = [answer(200, "Content-Encoding: gzip", body=bomb)]
    tracemalloc.start()
    await sender.send(channel(receiver), delivery())
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()
    assert receiver.requests[0][0]["accept-encoding"] == "identity"


async def test_answer_without_an_end_is_cut_off(sender: WebhookSender, receiver: Receiver) -> None:
    receiver.answers = [b"HTTP/1.1 200 OK\r\n\r\n"]
    receiver.pours = True
    await sender.send(channel(receiver), delivery())
    await asyncio.sleep(0.05)
    assert receiver.poured < 32_000_000  # what the kernel's buffers hold, and no gigabyte


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000])
async def test_answer_that_is_not_http_is_a_failure(sender: WebhookSender, receiver: Receiver, said: bytes) -> None:
    receiver.answers = [said]
    with pytest.raises(SendFailed):
        await sender.send(channel(receiver), delivery())


async def test_nobody_listening_is_a_failure_that_names_no_secret(sender: WebhookSender, receiver: Receiver) -> None:
    receiver.port = 1
    with pytest.raises(SendFailed, match="cannot be connected to") as caught:
        await sender.send(channel(receiver), delivery())
    assert SECRET not in repr(caught.value)
