"""Whose a WebSocket is: how a client authenticates, renews, and is sent away, over real sockets."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import Any

import pytest
from minted_accounts import MintedAccounts, MovedClock
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tapewatch.adapters.memory import MemoryBus
from tapewatch.documents import Alert, rfc3339
from tapewatch.ports import Alerts
from tapewatch.serve.gateway import Gateway

pytestmark = pytest.mark.anyio
Open = Callable[..., Any]
MakeAlert = Callable[..., Alert]
FIRST_MESSAGE_S = 0.3


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def accounts(clock: MovedClock) -> MintedAccounts:
    return MintedAccounts(clock)


@pytest.fixture
def gateway_options(accounts: MintedAccounts) -> dict[str, Any]:
    return {"accounts": accounts, "watch_s": 0.02, "first_message_s": FIRST_MESSAGE_S, "close_grace_s": 0.5}


@pytest.fixture
def make_alert(make_alert: MakeAlert) -> MakeAlert:
    """Alerts of the user whom `mint` takes if it is told no other."""
    return partial(make_alert, owner="ada")


async def say(client: ClientConnection, kind: str, **fields: Any) -> None:
    await client.send(json.dumps({"type": kind, **fields}))


async def show(client: ClientConnection, token: str) -> None:
    await say(client, "authenticate", data={"token": token})


async def hear(client: ClientConnection) -> Any:
    return json.loads(await asyncio.wait_for(client.recv(), 10))


async def closed(client: ClientConnection) -> tuple[int, str]:
    with suppress(ConnectionClosed):
        while True:
            await asyncio.wait_for(client.recv(), 3)
    return client.close_code or 0, client.close_reason or ""


async def settled(client: ClientConnection) -> None:
    await say(client, "ping")
    assert await hear(client) == {"type": "pong"}


@pytest.fixture
def stranger(address: str) -> Open:
    """A socket on which nothing was said."""
    return lambda **options: connect(f"ws://{address}/ws", proxy=None, **options)


@pytest.fixture
def enter(stranger: Open) -> Open:
    """A socket of the token's user, after its welcome."""

    @asynccontextmanager
    async def entered(token: str) -> AsyncIterator[ClientConnection]:
        async with stranger() as client:
            await show(client, token)
            assert [(await hear(client))["type"] for _ in range(2)] == ["authenticated", "welcome"]
            yield client

    return entered


async def test_first_message_authenticates_and_alerts_come(
    stranger: Open, accounts: MintedAccounts, bus: MemoryBus, make_alert: MakeAlert
) -> None:
    token = accounts.mint("ada", "viewer", scopes=["alerts:read", "toplists:read", "rules:write"])
    async with stranger() as client:
        await show(client, token)
        answer, welcome = await hear(client), await hear(client)
        await bus.publish("alerts.filtered:0", Alerts((make_alert(1),)))
        alert = await hear(client)
    assert answer == {
        "type": "authenticated",
        "data": {
            "user": "ada",
            "role": "viewer",
            "scopes": ["alerts:read", "toplists:read"],
            "expires_at": rfc3339(accounts.expires_ns(token)),
        },
    }
    assert welcome["type"] == "welcome"
    assert alert["data"]["alert_id"] == make_alert(1).alert_id


async def test_subprotocol_authenticates_and_is_not_echoed(stranger: Open, accounts: MintedAccounts) -> None:
    async with stranger(subprotocols=["tapewatch.v1", f"bearer.{accounts.mint()}"]) as client:
        assert client.subprotocol == "tapewatch.v1"
        assert [(await hear(client))["type"] for _ in range(2)] == ["authenticated", "welcome"]


async def test_subprotocol_alone_waits_for_the_first_message(stranger: Open, accounts: MintedAccounts) -> None:
    async with stranger(subprotocols=["tapewatch.v1"]) as client:
        await show(client, accounts.mint())
        assert (await hear(client))["type"] == "authenticated"


async def test_bearer_without_the_protocol_is_no_authentication(stranger: Open, accounts: MintedAccounts) -> None:
    async with stranger(subprotocols=[f"bearer.{accounts.mint()}"]) as client:
        assert await closed(client) == (4401, "authenticate first")
        assert client.subprotocol is None
    assert accounts.asked == []


@pytest.mark.parametrize("query", ["token={}", "access_token={}", "x={}", "{}"])
async def test_token_in_the_query_is_refused_at_the_handshake(
    address: str, accounts: MintedAccounts, query: str
) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://{address}/ws?{query.format(accounts.mint())}", proxy=None)
    assert refused.value.response.status_code == 403
    assert accounts.asked == []


async def test_cookie_and_header_are_no_authentication(stranger: Open, accounts: MintedAccounts) -> None:
    token = accounts.mint()
    async with stranger(additional_headers={"Cookie": f"token={token}", "Authorization": f"Bearer {token}"}) as client:
        assert (await closed(client))[0] == 4401


async def test_silence_is_closed_in_time(stranger: Open, gateway: Gateway) -> None:
    started = time.perf_counter()
    async with stranger() as client:
        assert await closed(client) == (4401, "authenticate first")
    assert FIRST_MESSAGE_S <= time.perf_counter() - started < FIRST_MESSAGE_S + 1
    assert gateway.clients == 0


GARBAGE: list[str | bytes] = [
    *("", "{", "[]", "null", '"token"', "\x00", '{"type":"ping"}', '{"type":"authenticate"}'),
    *('{"type":"authenticate","data":{}}', '{"type":"authenticate","data":{"token":""}}', b"\xff\x00"),
    *('{"type":"authenticate","data":{"token":null}}', '{"type":"authenticate","data":{"token":"x","more":1}}'),
    '{"type":"authenticate","data":{"token":"a","token":"b"}}',
    '{"type":"authenticate","__proto__":{"token":"x"},"data":{"token":"x"}}',
    '{"type":"authenticate","token":"x"}',
    '{"type":"resume","data":{}}',
    '{"type":"subscribe_toplist","toplist_id":"gainers_1m"}',
    json.dumps({"type": "authenticate", "data": {"token": "x" * 8_193}}),
    b'{"type":"authenticate","data":{"token":"x"}}',
]


@pytest.mark.parametrize("garbage", GARBAGE, ids=[repr(text)[:50] for text in GARBAGE])
async def test_first_message_of_another_kind_closes_without_an_answer(
    stranger: Open, accounts: MintedAccounts, garbage: str | bytes
) -> None:
    async with stranger() as client:
        await client.send(garbage)
        with pytest.raises(ConnectionClosed):
            await asyncio.wait_for(client.recv(), 3)
        assert (client.close_code, client.close_reason) == (4401, "authenticate first")
    assert accounts.asked == []


@pytest.mark.parametrize("token", ["null", "Bearer x", "x" * 8_192, "\N{GREEK SMALL LETTER ALPHA}", "a.b.c"])
async def test_token_that_does_not_hold_closes(stranger: Open, token: str) -> None:
    async with stranger() as client:
        await show(client, token)
        assert await closed(client) == (4401, "token refused")


async def test_token_expired_is_refused_like_any_other(
    stranger: Open, accounts: MintedAccounts, clock: MovedClock
) -> None:
    token = accounts.mint(lasts_s=10)
    clock.move(11)
    async with stranger(subprotocols=["tapewatch.v1", f"bearer.{token}"]) as client:
        assert await closed(client) == (4401, "token refused")


async def test_accounts_away_ask_to_come_again(stranger: Open, accounts: MintedAccounts) -> None:
    async with stranger() as client:
        accounts.is_away = True
        await show(client, accounts.mint())
        assert await closed(client) == (1013, "try again later")
    with pytest.raises(InvalidStatus) as refused:
        await stranger()
    assert refused.value.response.status_code == 503


async def test_what_comes_right_behind_the_token_is_obeyed_in_order(
    stranger: Open, accounts: MintedAccounts, bus: MemoryBus
) -> None:
    await bus.notify("toplists.updated", b'{"type":"toplist_update","data":{"toplist_id":"gainers_1m"}}')
    async with stranger() as client:
        await show(client, accounts.mint())
        await say(client, "resume", data={"places": {"0": "0-0", "1": "0-0"}})
        await say(client, "subscribe_toplist", toplist_id="gainers_1m")
        heard = [(await hear(client))["type"] for _ in range(4)]
    assert heard == ["authenticated", "welcome", "resumed", "toplist_update"]


async def test_messages_before_the_token_reach_nothing(
    stranger: Open, accounts: MintedAccounts, gateway: Gateway
) -> None:
    async with stranger() as client:
        await say(client, "subscribe_toplist", toplist_id="gainers_1m")
        await show(client, accounts.mint())
        assert await closed(client) == (4401, "authenticate first")
    assert accounts.asked == []
    assert gateway.clients == 0


async def test_expiry_is_announced_and_closes_after_its_grace(
    enter: Open, accounts: MintedAccounts, clock: MovedClock
) -> None:
    token = accounts.mint(lasts_s=900)
    async with enter(token) as client:
        await asyncio.sleep(0.06)
        await settled(client)
        clock.move(845)
        notice = {"type": "token_expiring", "data": {"expires_at": rfc3339(accounts.expires_ns(token))}}
        assert await hear(client) == notice
        clock.move(75)  # 20 s after the end
        await asyncio.sleep(0.06)
        await settled(client)  # and it was said once
        clock.move(10)
        assert await closed(client) == (4401, "token expired")


async def test_another_token_on_the_open_socket_renews_it(
    enter: Open, accounts: MintedAccounts, clock: MovedClock, bus: MemoryBus, make_alert: MakeAlert
) -> None:
    async with enter(accounts.mint(lasts_s=30)) as client:
        assert (await hear(client))["type"] == "token_expiring"
        fresh = accounts.mint(lasts_s=900)
        await show(client, fresh)
        answer = await hear(client)
        assert (answer["type"], answer["data"]["expires_at"]) == ("authenticated", rfc3339(accounts.expires_ns(fresh)))
        clock.move(120)
        await asyncio.sleep(0.06)
        await bus.publish("alerts.filtered:0", Alerts((make_alert(1),)))
        assert (await hear(client))["type"] == "alert"
        clock.move(725)
        assert (await hear(client))["type"] == "token_expiring"


async def test_renewal_is_not_the_first_message(enter: Open, accounts: MintedAccounts) -> None:
    async with enter(accounts.mint()) as client:
        await show(client, accounts.mint())
        assert (await hear(client))["type"] == "authenticated"
        await say(client, "resume", data={"places": {"0": "0-0", "1": "0-0"}})
        assert (await hear(client))["type"] == "resumed"


async def test_token_of_another_user_renews_nothing(enter: Open, accounts: MintedAccounts) -> None:
    async with enter(accounts.mint("ada")) as client:
        for token in (accounts.mint("bob", "admin"), "none"):
            await show(client, token)
            assert (await hear(client))["data"]["code"] == "bad_token"
        accounts.is_away = True
        await show(client, accounts.mint("ada"))
        assert (await hear(client))["data"]["code"] == "unavailable"
        await settled(client)


async def test_renewal_with_fewer_scopes_takes_away_what_they_allowed(
    enter: Open, accounts: MintedAccounts, bus: MemoryBus, make_alert: MakeAlert
) -> None:
    async with enter(accounts.mint()) as client:
        await say(client, "subscribe_toplist", toplist_id="gainers_1m")
        await settled(client)
        await show(client, accounts.mint(scopes=["rules:read"]))
        assert (await hear(client))["data"]["scopes"] == ["rules:read"]
        await bus.publish("alerts.filtered:0", Alerts((make_alert(1),)))
        await bus.notify("toplists.updated", b'{"type":"toplist_update","data":{"toplist_id":"gainers_1m"}}')
        await asyncio.sleep(0.02)
        await settled(client)
        await show(client, accounts.mint())
        await hear(client)
        await bus.publish("alerts.filtered:0", Alerts((make_alert(2),)))
        assert (await hear(client))["data"]["alert_id"] == make_alert(2).alert_id


async def test_token_without_a_scope_gets_nothing_of_it(
    enter: Open, accounts: MintedAccounts, bus: MemoryBus, make_alert: MakeAlert
) -> None:
    async with enter(accounts.mint(scopes=["rules:read"])) as client:
        wishes: list[dict[str, Any]] = [
            {"kind": "resume", "data": {"places": {"0": "0-0", "1": "0-0"}}},
            {"kind": "subscribe_alerts"},
            {"kind": "subscribe_toplist", "toplist_id": "gainers_1m"},
        ]
        for wish in wishes:
            await say(client, **wish)
            assert (await hear(client))["data"]["code"] == "forbidden"
        await bus.publish("alerts.filtered:0", Alerts((make_alert(1),)))
        await bus.notify("toplists.updated", b'{"type":"toplist_update","data":{"toplist_id":"gainers_1m"}}')
        await asyncio.sleep(0.02)
        await settled(client)


async def test_session_that_ends_closes_all_its_sockets_and_no_others(enter: Open, accounts: MintedAccounts) -> None:
    ended, other = accounts.mint("ada"), accounts.mint("bob")
    async with enter(ended) as one, enter(ended) as two, enter(other) as three:
        accounts.end(ended)
        assert [await closed(client) for client in (one, two)] == [(4401, "session ended")] * 2
        await settled(three)


async def test_user_may_have_ten_sockets(enter: Open, stranger: Open, accounts: MintedAccounts) -> None:
    async with AsyncExitStack() as open_ones:
        clients = [await open_ones.enter_async_context(enter(accounts.mint("ada"))) for _ in range(10)]
        async with stranger() as one_more:
            await show(one_more, accounts.mint("ada"))
            assert await closed(one_more) == (4429, "too many connections")
        async with stranger(subprotocols=["tapewatch.v1", f"bearer.{accounts.mint('ada')}"]) as one_more:
            assert (await closed(one_more))[0] == 4429
        async with enter(accounts.mint("bob")):
            pass
        await settled(clients[0])
        await clients[0].close()
        await asyncio.sleep(0.05)
        async with enter(accounts.mint("ada")) as again:
            await settled(again)


class TestStrangers:
    """Sockets that have not authenticated."""

    @pytest.fixture
    def gateway_options(self, accounts: MintedAccounts) -> dict[str, Any]:
        return {"accounts": accounts, "watch_s": 0.02, "first_message_s": 10.0, "close_grace_s": 0.5}

    async def test_a_hundred_may_wait_and_who_authenticates_makes_room(
        self, stranger: Open, accounts: MintedAccounts
    ) -> None:
        async with AsyncExitStack() as open_ones:
            waiting = [await open_ones.enter_async_context(stranger()) for _ in range(100)]
            with pytest.raises(InvalidStatus) as refused:
                await stranger()
            assert refused.value.response.status_code == 503
            assert "retry-after" in refused.value.response.headers
            await show(waiting[0], accounts.mint())
            await hear(waiting[0])
            await open_ones.enter_async_context(stranger())
            for client in waiting:
                client.transport.abort()

    async def test_address_with_most_of_them_makes_room_for_another(
        self, stranger: Open, accounts: MintedAccounts
    ) -> None:
        async with AsyncExitStack() as open_ones:
            waiting = [await open_ones.enter_async_context(stranger()) for _ in range(100)]
            async with stranger(local_addr=("127.0.0.2", 0)) as another:
                assert await closed(waiting[0]) == (1013, "try again later")
                await show(another, accounts.mint())
                assert (await hear(another))["type"] == "authenticated"
            for client in waiting:
                client.transport.abort()

    async def test_alerts_do_not_wait_for_them(self, stranger: Open, bus: MemoryBus, make_alert: MakeAlert) -> None:
        async with stranger() as client:
            await bus.publish("alerts.filtered:0", Alerts((make_alert(1, shared=True),)))
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(client.recv(), 0.1)


class TestWithoutUsers:
    """Accounts that are not required: on loopback, while there is no user."""

    @pytest.fixture
    def accounts(self, clock: MovedClock) -> MintedAccounts:
        accounts = MintedAccounts(clock)
        accounts.required = False
        return accounts

    async def test_everybody_is_local_and_a_token_is_not_looked_at(
        self, stranger: Open, accounts: MintedAccounts
    ) -> None:
        async with stranger() as client:
            assert (await hear(client))["type"] == "welcome"
            await show(client, "whatever")
            answer = await hear(client)
            assert (answer["data"]["user"], answer["data"]["expires_at"]) == ("local", None)
            await say(client, "resume", data={"places": {"0": "0-0", "1": "0-0"}})
            assert (await hear(client))["type"] == "resumed"
        assert accounts.asked == []

    async def test_first_user_ends_what_was_open_to_all(self, stranger: Open, accounts: MintedAccounts) -> None:
        async with stranger() as client:
            await hear(client)
            accounts.required = True
            assert await closed(client) == (4401, "authenticate first")
