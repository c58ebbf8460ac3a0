"""`tapewatch.client` at a server with accounts: it authenticates, renews, and does not knock for ever."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from gateway_house import House, Publisher, house
from minted_accounts import MintedAccounts, MovedClock

from tapewatch.adapters.memory import MemoryBus
from tapewatch.client import Client, Refused, ToplistUpdated, connect
from tapewatch.documents import Alert
from tapewatch.serve import gateway as gateway_module

pytestmark = pytest.mark.anyio
SOON: Any = {"first_wait_s": 0.01, "longest_wait_s": 0.05, "proxy": None}


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def accounts(clock: MovedClock) -> MintedAccounts:
    return MintedAccounts(clock)


@pytest.fixture
def publisher(bus: MemoryBus, make_alert: Callable[..., Alert]) -> Publisher:
    """Of alerts of the user whom `mint` takes if it is told no other."""
    return Publisher(bus, partial(make_alert, owner="ada"))


@pytest.fixture
async def at(bus: MemoryBus, accounts: MintedAccounts, clock: MovedClock) -> AsyncIterator[House]:
    options: dict[str, Any] = {"accounts": accounts, "watch_s": 0.02, "first_message_s": 0.3, "clock": clock}
    async with house(bus, **options) as at:
        yield at


async def next_id(client: Client) -> str:
    alert = await asyncio.wait_for(client.next_alert(), 5)
    return str(alert["alert_id"])


async def test_token_lets_in_and_again_after_a_loss(at: House, accounts: MintedAccounts, publisher: Publisher) -> None:
    async with connect(at.url, token=accounts.mint(), **SOON) as client:
        await publisher.publish(0)
        heard = [await next_id(client)]
        at.cut()
        await publisher.publish(0)
        heard.append(await next_id(client))
        assert heard == publisher.ids[0]
        assert client.connects == 2


@pytest.mark.parametrize("token", [None, "none"])
async def test_refused_token_is_told_at_once(at: House, accounts: MintedAccounts, token: str | None) -> None:
    with pytest.raises(Refused, match="wants a"):
        async with asyncio.timeout(5), connect(at.url, token=token, **SOON):
            pass
    assert len(accounts.asked) == (token is not None)


async def test_function_is_asked_for_each_connection(at: House, accounts: MintedAccounts, publisher: Publisher) -> None:
    given: list[str] = []

    async def fresh() -> str:
        given.append(accounts.mint())
        return given[-1]

    async with connect(at.url, token=fresh, **SOON) as client:
        accounts.end(*given)  # the server closes, and a new token opens
        waiting = asyncio.create_task(next_id(client))
        while len(given) < 2:  # noqa: ASYNC110  # the client tells nobody that it asks
            await asyncio.sleep(0.005)
        await publisher.publish(0)
        assert await waiting == publisher.ids[0][0]
    assert accounts.asked == given


async def test_session_that_ended_for_good_is_told(at: House, accounts: MintedAccounts) -> None:
    token = accounts.mint()
    async with connect(at.url, token=token, **SOON) as client:
        accounts.end(token)
        with pytest.raises(Refused, match="another token"):
            await next_id(client)


async def test_token_is_renewed_on_the_open_connection(
    at: House, accounts: MintedAccounts, clock: MovedClock, publisher: Publisher
) -> None:
    async def fresh() -> str:
        return accounts.mint(lasts_s=900)

    async with connect(at.url, token=fresh, **SOON) as client:
        for _ in range(3):
            clock.move(850)
            asked = len(accounts.asked)
            waiting = asyncio.create_task(next_id(client))
            while len(accounts.asked) == asked:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            await publisher.publish(0)
            assert await waiting == publisher.ids[0][-1]
        assert client.connects == 1


async def test_renewal_that_fails_is_tried_again_on_a_new_connection(
    at: House, accounts: MintedAccounts, clock: MovedClock, publisher: Publisher
) -> None:
    answers: list[str | Exception] = [accounts.mint(lasts_s=50), LookupError("no"), OSError("away"), accounts.mint()]

    async def fresh() -> str:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with connect(at.url, token=fresh, **SOON) as client:
        waiting = asyncio.create_task(next_id(client))
        while len(answers) > 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        clock.move(80)
        while answers:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await publisher.publish(0)
        assert await waiting == publisher.ids[0][0]
        assert client.connects == 2


async def test_what_the_function_raises_comes_out(at: House) -> None:
    async def fresh() -> str:
        raise LookupError("no password")

    with pytest.raises(LookupError, match="no password"):
        async with connect(at.url, token=fresh, **SOON):
            pass


async def test_alerts_that_the_token_does_not_allow_are_refused_and_lists_come(
    at: House, bus: MemoryBus, accounts: MintedAccounts
) -> None:
    token = accounts.mint(scopes=["toplists:read"])
    async with connect(at.url, token=token, places={"0": "0-0", "1": "0-0"}, **SOON) as client:
        await client.subscribe("gainers_1m")
        await bus.notify("toplists.updated", b'{"type":"toplist_update","data":{"toplist_id":"gainers_1m"}}')
        event = await asyncio.wait_for(client.next_event(), 5)
        assert event == ToplistUpdated({"toplist_id": "gainers_1m"})
        with pytest.raises(Refused, match="alerts:read"):
            await client.next_alert()


async def test_token_does_no_harm_where_there_are_no_accounts(bus: MemoryBus, publisher: Publisher) -> None:
    async with house(bus) as at, connect(at.url, token="whatever", **SOON) as client:  # noqa: S106
        await publisher.publish(0)
        assert await next_id(client) == publisher.ids[0][0]
        at.cut()
        await publisher.publish(0)
        assert await next_id(client) == publisher.ids[0][1]


async def test_token_is_in_no_text_of_an_error(at: House) -> None:
    secret = "".join(reversed("fleste-ehT"))
    with pytest.raises(Refused) as refused:
        async with connect(at.url, token=secret, **SOON):
            pass
    assert secret not in "".join(traceback.format_exception(refused.value))
    message = gateway_module._AuthenticateMessage.model_validate({"type": "authenticate", "data": {"token": secret}})
    assert secret not in repr(message)
