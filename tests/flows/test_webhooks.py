"""From a trade on the tape to a program of the user's: signed, once, and over a restart."""

import asyncio
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trustme
from hooks import Receiver, answer, receiving, server_tls

from tapewatch.clock import SystemClock
from tapewatch.engine.columns import SECOND_NS

pytestmark = pytest.mark.anyio

HERE = "127.0.0.1"
ALLOWED = ("127.0.0.0/8",)
SECRET = "a secret of the receiver's and ours"  # noqa: S105  # of nobody
ABOVE = {
    "id": "above",
    "name": "Above",
    "conditions": [{"metric": "price", "operator": ">", "value": 110.0}],
    "cooldown": 0,
}
_PATIENCE_S = 20.0


class LaterClock(SystemClock):
    """Of a system that is started later than it is."""

    def __init__(self, later_s: float = 0.0) -> None:
        self._later_ns = round(later_s * SECOND_NS)

    def now_ns(self) -> int:
        return super().now_ns() + self._later_ns


@pytest.fixture
async def receiver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Receiver]:
    """Its certificate is one that this machine trusts."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    async with receiving(server_tls(authority, HERE)) as receiver:
        yield receiver


async def until(condition: Callable[[], Awaitable[Any]]) -> None:
    async with asyncio.timeout(_PATIENCE_S):
        while not await condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def subscribed(up: Any, receiver: Receiver, name: str, **changes: Any) -> tuple[str, str]:
    """The ids of a new channel and a new subscription that leads to it, once they are in force."""
    settings = {"kind": "webhook", "url": f"https://{HERE}:{receiver.port}/{name}", "secret": SECRET}
    channel = await posted(up, "channels", name=name, settings=settings)
    wanted = {"what": {"all": True}, "channels": [channel["id"]], "digest": None, **changes}
    subscription = await posted(up, "subscriptions", name=name, **wanted)
    await in_force(up, receiver, channel["id"])
    return channel["id"], subscription["id"]


async def in_force(up: Any, receiver: Receiver, channel_id: str) -> None:
    """Who sends reads what was changed before each message, so a test message comes after that."""
    sent = await posted(up, f"channels/{channel_id}/test")

    async def came() -> bool:
        return any(body["delivery_id"] == sent["delivery_id"] for _, body in said(receiver))

    await until(came)


async def posted(up: Any, path: str, **document: Any) -> Any:
    body = {"json": document} if document else {}
    return (await up.api.post(f"/api/v1/{path}", **body)).raise_for_status().json()


def said(receiver: Receiver) -> list[tuple[dict[str, str], dict[str, Any]]]:
    return [(headers, json.loads(body)) for headers, body in receiver.requests]


def told(receiver: Receiver, name: str) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """What came on that path, but for test messages."""
    return [
        (headers, body)
        for headers, body in said(receiver)
        if headers["request"] == f"POST /{name} HTTP/1.1" and body["type"] != "test"
    ]


def symbols(receiver: Receiver, name: str) -> list[str]:
    return [body["alert"]["symbol"] for _, body in told(receiver, name)]


def check_signature(headers: dict[str, str], body: bytes) -> None:
    at, _, given = headers["x-tapewatch-signature"].removeprefix("t=").partition(",v1=")
    assert given == hmac.new(SECRET.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()


async def test_alert_reaches_programs_once_although_one_is_muted_both_fail_and_the_system_is_restarted(
    running: Any, stored: Any, scripted: Any, market: Any, receiver: Receiver
) -> None:
    aapl, msft, c, tsla = gates = [asyncio.Event() for _ in range(4)]
    script: list[Any] = []
    for place, (gate, symbol) in enumerate(zip(gates, ("AAPL", "MSFT", "C", "TSLA"), strict=True)):
        second = 10 * place
        script += [gate, market.prints(second, {symbol: 120.0}), *map(market.quiet, range(second + 1, second + 4))]
    async with running(scripted(script), webhooks_to=ALLOWED) as up:
        await up.save_rule(ABOVE)
        await subscribed(up, receiver, "first")
        channel_id, subscription_id = await subscribed(up, receiver, "second")

        async def came(count: int, *names: str) -> None:
            async def enough() -> bool:
                return all(len(told(receiver, name)) == count for name in names)

            await until(enough)

        aapl.set()
        await came(1, "first", "second")
        await posted(up, f"subscriptions/{subscription_id}/mute", seconds=3_600)
        await in_force(up, receiver, channel_id)
        msft.set()
        await came(2, "first")
        await posted(up, f"subscriptions/{subscription_id}/mute", seconds=0)
        await in_force(up, receiver, channel_id)
        receiver.answers = [answer(503)]
        c.set()

        async def both_failed() -> bool:
            items = (await up.get("deliveries", state="pending"))["items"]
            return [item["error"] for item in items if item["symbol"] == "C"] == ["HTTP 503"] * 2

        await until(both_failed)
        alerts = {alert["symbol"]: alert for alert in await up.alerts_over_rest(3)}
        tsla.set()
        await up.played()
    failed = len(receiver.requests)
    receiver.answers = [answer(200)]
    prices = [100.0] * 3 + [120.0] * 3
    script = [market.prints(400 + second, {"BRK.B": price}) for second, price in enumerate(prices)]
    async with running(scripted(script), clock=LaterClock(120), webhooks_to=ALLOWED) as up:
        await up.played()

        async def all_sent() -> bool:
            items = (await up.get("deliveries", limit=500))["items"]
            return len(items) == 9 + 4 and {item["state"] for item in items} == {"sent"}

        await until(all_sent)
    async with running(scripted([]), clock=LaterClock(240), webhooks_to=ALLOWED) as up:
        await in_force(up, receiver, channel_id)
    for headers, body in receiver.requests:
        check_signature(headers, body)
    _, saved = await stored(market.symbols)
    assert [alert.symbol for alert in saved] == ["AAPL", "MSFT", "C", "TSLA", "BRK.B"]
    assert set(symbols(receiver, "first")) == {alert.symbol for alert in saved}
    assert set(symbols(receiver, "second")) == {"AAPL", "C", "TSLA", "BRK.B"}
    for name in ("first", "second"):
        mine = told(receiver, name)
        keys = {(body["alert"]["alert_id"], headers["idempotency-key"]) for headers, body in mine}
        assert len(keys) == len({alert_id for alert_id, _ in keys})  # each try of an alert has the same key
        assert all(headers["idempotency-key"] == body["delivery_id"] for headers, body in mine)
        tries = [body["attempt"] for _, body in mine if body["alert"]["symbol"] == "C"]
        assert tries == list(range(1, len(tries) + 1))
        assert len(tries) >= 2
        ((_, first),) = (pair for pair in mine if pair[1]["alert"]["symbol"] == "AAPL")
        assert {**first["alert"], "mark": None} == alerts["AAPL"]
        assert first["late_s"] is None
        (late,) = (body["late_s"] for _, body in _taken(receiver, name, failed) if body["alert"]["symbol"] == "TSLA")
        assert late >= 110
        # Those that were answered with 2xx came once.
        assert set(Counter(body["delivery_id"] for _, body in _taken(receiver, name, failed)).values()) == {1}


def _taken(receiver: Receiver, name: str, failed: int) -> list[tuple[dict[str, str], dict[str, Any]]]:
    """What came on a path after so many requests."""
    later = Receiver(requests=receiver.requests[failed:])
    return told(later, name)


async def test_quiet_hours_that_end_while_the_system_is_down_are_told_in_one_digest(
    running: Any, scripted: Any, market: Any, receiver: Receiver
) -> None:
    now = datetime.now(UTC)
    quiet = {
        "from": f"{now - timedelta(hours=1):%H}:00",
        "to": f"{now + timedelta(hours=2):%H}:00",
        "time_zone": "UTC",
    }
    gate = asyncio.Event()
    script = [gate, market.prints(0, {"AAPL": 120.0, "MSFT": 130.0}), *map(market.quiet, range(1, 4))]
    async with running(scripted(script), webhooks_to=ALLOWED) as up:
        await up.save_rule(ABOVE)
        channel_id, _ = await subscribed(up, receiver, "calm", quiet_hours=quiet)
        gate.set()

        async def held() -> bool:
            return len((await up.get("deliveries", state="held"))["items"]) == 2

        await until(held)
        alerts = await up.alerts_over_rest(2)
    async with running(scripted([]), clock=LaterClock(60), webhooks_to=ALLOWED) as up:
        await in_force(up, receiver, channel_id)
    assert told(receiver, "calm") == []
    for later_s in (4 * 3_600, 5 * 3_600):
        async with running(scripted([]), clock=LaterClock(later_s), webhooks_to=ALLOWED) as up:
            await in_force(up, receiver, channel_id)

            async def sent() -> bool:
                items = (await up.get("deliveries"))["items"]
                return {item["state"] for item in items} == {"sent", "digested"}

            await until(sent)
    ((_, body),) = told(receiver, "calm")
    assert body["type"] == "digest"
    assert body["digest"]["count"] == 2
    assert {alert["alert_id"] for alert in body["digest"]["alerts"]} == {alert["alert_id"] for alert in alerts}
    for headers, raw in receiver.requests:
        check_signature(headers, raw)
