"""docs/asyncapi.yaml: it holds every message that the gateway knows or sends, and each is as it says."""

import ast
import asyncio
import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, get_args

import jsonschema_rs
import numpy as np
import pytest
import yaml
from minted_accounts import MintedAccounts, MovedClock
from websockets.asyncio.client import connect
from wrong_messages import WRONG

from tapewatch.accounts.roles import ROLES, SCOPES
from tapewatch.adapters.memory import MemoryBus, MemoryHotState
from tapewatch.adapters.sql import SqlStore
from tapewatch.clock import SystemClock
from tapewatch.contracts.samples import make_toplist
from tapewatch.documents import Alert
from tapewatch.engine.board import BoardRows
from tapewatch.engine.metrics import CATALOGUE, PUBLISHED
from tapewatch.ports import Alerts
from tapewatch.roles.toplists import ToplistsRole
from tapewatch.roles.user_toplists import config_key
from tapewatch.serve import gateway as gateway_module
from tapewatch.serve.api.query import IDENTIFIER

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
DOCUMENT: dict[str, Any] = yaml.safe_load((ROOT / "docs/asyncapi.yaml").read_text())
MESSAGES: dict[str, Any] = DOCUMENT["components"]["messages"]
EXAMPLES = [(name, one["payload"]) for name, message in MESSAGES.items() for one in message["examples"]]


def of_operation(name: str) -> set[str]:
    return {
        message["$ref"].removeprefix("#/channels/gateway/messages/")
        for message in DOCUMENT["operations"][name]["messages"]
    }


def validator(name: str) -> Any:
    schema = {**MESSAGES[name]["payload"], "components": {"schemas": DOCUMENT["components"]["schemas"]}}
    return jsonschema_rs.Draft202012Validator(schema)


def check(frame: Any) -> None:
    validator(frame["type"]).validate(frame)


def literals_sent() -> Iterator[str]:
    """First arguments of `frame_of`, and of what is put into one."""
    for path in (ROOT / "src/tapewatch/serve").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "frame_of":
                first = node.args[0]
                if isinstance(first, ast.Constant):
                    yield str(first.value)
                else:
                    assert path.name == "alert_log.py", f"{path} sends a type that this test cannot see"
                    yield from ("alert", "alert_note")


def codes_sent() -> set[str]:
    """Codes of errors, as they stand in the gateway and in the admission."""
    text = "".join((ROOT / f"src/tapewatch/serve/{name}.py").read_text() for name in ("gateway", "admission"))
    return set(re.findall(r'(?:_error\(|return )"([a-z_]+)", (?:f?"|error\.)', text))


def references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        for part in node.values():
            yield from references(part)
    elif isinstance(node, list):
        for part in node:
            yield from references(part)


def test_document_is_of_version_3_and_its_references_lead_somewhere() -> None:
    assert DOCUMENT["asyncapi"] == "3.0.0"
    assert DOCUMENT.keys() <= {
        *("asyncapi", "info", "defaultContentType", "servers", "channels", "operations", "components"),
    }
    found = set(references(DOCUMENT))
    for reference in found:
        place: Any = DOCUMENT
        for step in reference.removeprefix("#/").split("/"):
            place = place[step]
    assert {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]} <= found
    assert DOCUMENT["channels"]["gateway"]["messages"].keys() == MESSAGES.keys()


def test_every_message_that_the_gateway_knows_is_in_it() -> None:
    assert of_operation("hearClient") == gateway_module._MODELS.keys()
    assert of_operation("hearClient") == set(get_args(gateway_module._Message.model_fields["type"].annotation))


def test_every_message_that_the_gateway_sends_is_in_it() -> None:
    passed_on = get_args(gateway_module._ToplistFrame.__annotations__["type"])
    assert of_operation("tellClient") == {*literals_sent(), *passed_on}
    assert of_operation("hearClient") | of_operation("tellClient") == MESSAGES.keys()


def test_every_code_of_an_error_is_in_it_and_on_the_page() -> None:
    codes = MESSAGES["error"]["payload"]["properties"]["data"]["properties"]["code"]["enum"]
    assert set(codes) == codes_sent()
    page = (ROOT / "docs/protocol.md").read_text()
    assert [code for code in codes if f"`{code}`" not in page] == []


def test_limits_and_names_are_those_of_the_code() -> None:
    where = MESSAGES["resume"]["payload"]["properties"]["data"]["properties"]
    assert where["last_id"]["pattern"] == IDENTIFIER
    user = MESSAGES["authenticated"]["payload"]["properties"]["data"]["properties"]
    assert user["role"]["enum"] == list(ROLES)
    assert all(re.match(user["scopes"]["items"]["pattern"], scope) for scope in SCOPES)


@pytest.mark.parametrize(("name", "example"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_example_is_as_its_schema_says(name: str, example: Any) -> None:
    assert example["type"] == name
    check(example)
    assert not validator(name).is_valid({**example, "__proto__": {}})
    if name in gateway_module._MODELS:
        gateway_module._MODELS[name].model_validate(example)


def test_examples_of_the_protocol_page_are_as_their_schemas_say() -> None:
    texts = re.findall(r"```json\n(.*?)```", (ROOT / "docs/protocol.md").read_text(), re.DOTALL)
    examples = [json.loads(text) for text in texts]
    for example in examples:
        check(example)
    assert {example["type"] for example in examples} == MESSAGES.keys()


@pytest.mark.parametrize("text", [text for code, text in WRONG if code == "bad_message"], ids=lambda text: text[:40])
def test_message_that_the_gateway_refuses_has_no_schema_either(text: str) -> None:
    frame = json.loads(text)
    kind = frame.get("type") if isinstance(frame, dict) else None
    if kind in MESSAGES and "ud800" not in text:  # a lone surrogate is no text for a validator
        assert not validator(kind).is_valid(frame)


async def test_toplists_of_the_role_are_as_their_schema_says(bus: MemoryBus, hot: MemoryHotState) -> None:
    role = asyncio.create_task(ToplistsRole(bus=bus, hot=hot, clock=SystemClock()).run())
    listening = aiter(bus.listen("toplists.updated"))
    first = asyncio.ensure_future(anext(listening))
    await asyncio.sleep(0)
    values = np.full((len(CATALOGUE), 2), 2.0)
    values[:, 1] = np.nan
    await bus.publish(
        "board:0",
        BoardRows(ts_ns=10**18, session="regular", symbols=("A", "B"), metrics=tuple(CATALOGUE), values=values),
    )
    check(json.loads(await asyncio.wait_for(first, 10)))
    role.cancel()
    await asyncio.gather(role, return_exceptions=True)


async def test_toplists_of_users_and_their_events_are_as_their_schemas_say(
    bus: MemoryBus, hot: MemoryHotState, store: SqlStore
) -> None:
    await store.save_toplist(make_toplist("t", owner="ann", columns=["price", "rsi"], alerts=True))
    frames = aiter(bus.listen("toplists.updated"))
    role = asyncio.create_task(ToplistsRole(bus=bus, hot=hot, clock=SystemClock(), store=store).run())
    heard: set[str] = set()
    async with asyncio.timeout(5):
        while (await hot.get([config_key("t")]))[0] is None:  # noqa: ASYNC110  # hot state tells nobody
            await asyncio.sleep(0.001)
        for ts_ns, symbols in ((10**18, ("A", "B")), (10**18 + 10**9, ("B", "C"))):
            values = np.full((len(PUBLISHED), 2), 2.0)
            now = BoardRows(ts_ns=ts_ns, session="regular", symbols=symbols, metrics=PUBLISHED, values=values)
            await bus.publish("board:0", now)
            updated = False
            while not updated:
                frame = json.loads(await anext(frames))
                check(frame)
                updated = frame["data"]["toplist_type"] == "user"
                heard.add(frame["type"])
        frame = json.loads(await anext(frames))
        check(frame)
        heard.add(frame["type"])
    role.cancel()
    await asyncio.gather(role, return_exceptions=True)
    assert heard == {"toplist_update", "toplist_event"}


class TestOverASocket:
    @pytest.fixture
    def clock(self) -> MovedClock:
        return MovedClock()

    @pytest.fixture
    def accounts(self, clock: MovedClock) -> MintedAccounts:
        return MintedAccounts(clock)

    @pytest.fixture
    def gateway_options(self, accounts: MintedAccounts) -> dict[str, Any]:
        return {"accounts": accounts, "watch_s": 0.02, "places_s": 0.05}

    async def test_frames_are_as_their_schemas_say(
        self, address: str, accounts: MintedAccounts, bus: MemoryBus, make_alert: Callable[..., Alert]
    ) -> None:
        heard: set[str] = set()
        async with connect(f"ws://{address}/ws", proxy=None) as client:

            async def say(kind: str, **fields: Any) -> None:
                await client.send(json.dumps({"type": kind, **fields}))

            async def hear(*kinds: str) -> None:
                for kind in kinds:
                    frame = json.loads(await asyncio.wait_for(client.recv(), 10))
                    assert frame["type"] == kind
                    check(frame)
                    heard.add(kind)

            await say("authenticate", data={"token": accounts.mint(lasts_s=30)})
            await say("resume", data={"places": {"0": "0-0", "1": "0-0"}})
            await hear("authenticated", "welcome", "resumed", "token_expiring")
            own = partial(make_alert, owner="ada")
            for alert in (own(1), own(1, note="cancelled"), own(2, price=float("nan"))):
                await bus.publish("alerts.filtered:0", Alerts((alert,)))
            await hear("alert", "alert_note", "alert")
            await say("ping")
            await say("nonsense")
            await hear("pong", "error")
            await bus.publish("alerts.filtered:0", Alerts((make_alert(3, owner="bob"),)))
            await hear("places")
        assert heard == of_operation("tellClient") - {"toplist_update", "toplist_event"}
