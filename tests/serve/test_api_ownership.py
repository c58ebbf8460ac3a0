"""REST for several people: each sees their own and what is shared, changes their own, learns nothing else."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from typing import Any

import httpx
import msgspec
import pytest

from tapewatch.accounts.roles import Role
from tapewatch.accounts.tokens import new_api_token
from tapewatch.accounts.users import ApiToken, User
from tapewatch.adapters.memory import MemoryHotState
from tapewatch.adapters.sql import SqlStore
from tapewatch.documents import Alert
from tapewatch.ports import AuditQuery
from tapewatch.serve.api import rules as rules_module
from tapewatch.serve.api import watchlists as watchlists_module
from tapewatch.serve.app import create_app
from tapewatch.serve.services import Services

pytestmark = pytest.mark.anyio
RULES, LISTS, ALERTS = "/api/v1/rules", "/api/v1/watchlists", "/api/v1/alerts"
ROLES: dict[str, Role] = {"ann": "trader", "bob": "trader", "root": "admin"}
REQUEST_ID = "the-same-of-all"
"""What answers say of their request tells them not apart."""
As = Callable[[str], httpx.AsyncClient]


@pytest.fixture
async def by(services: Services, store: SqlStore) -> AsyncIterator[As]:
    """A client of the API for each user, who comes in with a token of theirs."""
    app = create_app(services)
    clients: dict[str, httpx.AsyncClient] = {}
    async with AsyncExitStack() as opened:
        for user, role in ROLES.items():
            await store.add_user(User(user_id=user, name=user, role=role, password_hash="", created_at_ns=1))
            token_id, secret_hash, token = new_api_token()
            await store.add_token(
                ApiToken(
                    token_id=token_id, user_id=user, name="t", secret_hash=secret_hash, scopes=None, created_at_ns=1
                )
            )
            client = httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app),
                base_url="http://tapewatch",
                headers={"Authorization": f"Bearer {token}", "X-Request-Id": REQUEST_ID},
                trust_env=False,
            )
            clients[user] = await opened.enter_async_context(client)
        yield clients.__getitem__


def told(answer: httpx.Response, named: str) -> tuple[int, str, str]:
    """All that an answer says of a thing by this name."""
    return answer.status_code, answer.headers.get("etag", ""), answer.text.replace(named, "X")


async def same_as_missing(client: httpx.AsyncClient, method: str, path: str, **body: Any) -> None:
    """Of a thing of somebody else that `{}` in the path stands for, ``theirs``."""
    theirs = await client.request(method, path.format("theirs"), **body)
    missing = await client.request(method, path.format("missing"), **body)
    assert told(theirs, "theirs") == told(missing, "missing")
    assert theirs.status_code == 404


@pytest.fixture
async def theirs(by: As, draft: dict[str, Any]) -> None:
    """A rule and a list of bob's that he shares with nobody."""
    assert (await by("bob").post(RULES, json=draft | {"id": "theirs"})).status_code == 201
    assert (await by("bob").put(f"{RULES}/theirs", json=draft | {"name": "Second"})).status_code == 200
    assert (await by("bob").post(LISTS, json={"id": "theirs", "name": "w", "symbols": ["A"]})).status_code == 201


READS = ("{}", "{}/versions", "{}/versions/1", "{}/versions/7", "{}/near-misses", "{}/explain?symbol=AAPL")


async def test_reads_of_another_s_are_answered_as_if_there_was_nothing(by: As, theirs: None) -> None:
    for path in READS:
        await same_as_missing(by("ann"), "GET", f"{RULES}/{path}")
    await same_as_missing(by("ann"), "GET", f"{LISTS}/{{}}")
    assert (await by("ann").get(RULES)).json() == (await by("ann").get(LISTS)).json() == {"items": [], "total": 0}
    for path in READS[:3]:
        assert (await by("root").get(f"{RULES}/{path.format('theirs')}")).status_code == 200
    assert (await by("root").get(RULES)).json()["total"] == (await by("root").get(LISTS)).json()["total"] == 1


@pytest.mark.parametrize("shared", [False, True])
async def test_changes_of_another_s_are_answered_as_if_there_was_nothing(
    by: As, theirs: None, draft: dict[str, Any], store: SqlStore, *, shared: bool
) -> None:
    listed = {"name": "w", "symbols": ["A"]}
    if shared:
        await by("bob").put(f"{RULES}/theirs", json=draft | {"shared": True})
        await by("bob").put(f"{LISTS}/theirs", json=listed | {"shared": True})
    before = await store.rules(), await store.watchlists()
    for method, path, body in (
        ("PUT", "{}", draft),
        ("DELETE", "{}", None),
        ("POST", "{}/enable", None),
        ("POST", "{}/disable", None),
        ("POST", "{}/rollback", {"version": 1}),
    ):
        await same_as_missing(by("ann"), method, f"{RULES}/{path}", **({} if body is None else {"json": body}))
    await same_as_missing(by("ann"), "PUT", f"{LISTS}/{{}}", json=listed)
    await same_as_missing(by("ann"), "DELETE", f"{LISTS}/{{}}")
    await same_as_missing(by("ann"), "DELETE", f"{LISTS}/{{}}", headers={"If-Match": '"9"'})
    assert (await store.rules(), await store.watchlists()) == before


async def test_what_is_shared_is_seen_until_it_is_not(by: As, theirs: None, draft: dict[str, Any]) -> None:
    for shared in (True, False):
        await by("bob").put(f"{RULES}/theirs", json=draft | {"shared": shared})
        await by("bob").put(f"{LISTS}/theirs", json={"name": "w", "symbols": ["A"], "shared": shared})
        for path in (f"{RULES}/theirs", f"{RULES}/theirs/versions", f"{RULES}/theirs/versions/1", f"{LISTS}/theirs"):
            assert (await by("ann").get(path)).status_code == (200 if shared else 404)
        assert (await by("ann").get(RULES)).json()["total"] == shared
        assert (await by("ann").get(LISTS)).json()["total"] == shared
    await by("bob").put(f"{RULES}/theirs", json=draft | {"shared": True})
    await by("bob").delete(f"{RULES}/theirs")
    for name in ("ann", "bob", "root"):
        for path in READS:
            assert (await by(name).get(f"{RULES}/{path.format('theirs')}")).status_code == 404


async def test_owner_is_who_creates_and_stays_whoever_changes(by: As, draft: dict[str, Any], store: SqlStore) -> None:
    made = (await by("ann").post(RULES, json=draft | {"id": "r", "shared": True})).json()
    assert (made["owner"], made["shared"]) == ("ann", True)
    changed = (await by("root").put(f"{RULES}/r", json=draft)).json()
    assert (changed["owner"], changed["shared"], changed["version"]) == ("ann", False, 2)
    for change in ("enable", "disable", "enable"):
        assert (await by("root").post(f"{RULES}/r/{change}")).json()["owner"] == "ann"
    assert (await by("ann").post(f"{RULES}/r/rollback", json={"version": 1})).json()["shared"] is True
    for path, body in ((RULES, draft), (LISTS, {"name": "w", "symbols": []})):
        answer = await by("ann").post(path, json=body | {"owner": "bob"})
        assert (answer.status_code, answer.json()["where"]) == (422, "body.owner")
    listed = (await by("ann").post(LISTS, json={"id": "w", "name": "w", "symbols": []})).json()
    assert listed["owner"] == "ann"
    changed = (await by("root").put(f"{LISTS}/w", json={"name": "w", "symbols": []})).json()
    assert (changed["owner"], changed["version"]) == ("ann", 2)
    await by("ann").delete(f"{LISTS}/w")
    changes = [(entry.kind, entry.version, entry.actor) for entry in await store.audit(AuditQuery())][::-1]
    actors = [change for change in changes if change[0] not in {"user", "token"}]
    assert actors == [
        ("rule", 1, "ann"),
        ("rule", 2, "root"),
        ("rule", 3, "root"),
        ("rule", 4, "root"),
        ("rule", 5, "ann"),
        ("watchlist", 1, "ann"),
        ("watchlist", 2, "root"),
        ("watchlist", 2, "ann"),
    ]


async def test_id_of_another_is_taken(by: As, theirs: None, draft: dict[str, Any]) -> None:
    for path, body in ((RULES, draft), (LISTS, {"name": "w", "symbols": []})):
        answer = await by("ann").post(path, json=body | {"id": "theirs"})
        assert (answer.status_code, answer.json()["detail"]) == (409, "the id theirs is taken")


async def test_rule_names_only_lists_that_its_owner_sees(by: As, theirs: None) -> None:
    def named(watchlist: str, field: str = "when") -> dict[str, Any]:
        return {"name": "n", "when": "price > 1", field: f"symbol in watchlist {watchlist}"}

    for field in ("when", "gate", "rearm"):
        for watchlist in ("theirs", "missing"):
            answer = await by("ann").post(RULES, json=named(watchlist, field))
            assert answer.status_code == 422
            assert answer.json()["where"] == f"body.{field}"
            assert answer.json()["detail"] == f"names the unknown watchlist {watchlist}"
            warned = (await by("ann").post(f"{RULES}/validate", json=named(watchlist, field))).json()["warnings"]
            assert warned == [f"there is no watchlist {watchlist}: it counts as empty"]
    answer = await by("ann").post(RULES, json={"name": "n", "conditions": [{"watchlist": "theirs"}]})
    assert (answer.status_code, answer.json()["where"]) == (422, "body.conditions")
    await by("bob").put(f"{LISTS}/theirs", json={"name": "w", "symbols": ["A"], "shared": True})
    assert (await by("ann").post(RULES, json=named("theirs") | {"id": "r"})).status_code == 201
    assert (await by("ann").post(f"{RULES}/r/disable")).status_code == 200
    await by("bob").put(f"{LISTS}/theirs", json={"name": "w", "symbols": ["A"]})
    for answer in (
        await by("ann").post(f"{RULES}/r/enable"),
        await by("ann").post(f"{RULES}/r/rollback", json={"version": 1}),
    ):
        assert (answer.status_code, answer.json()["detail"]) == (422, "names the unknown watchlist theirs")
    # It is the owner who must see it, not who changes the rule.
    assert (await by("root").put(f"{RULES}/r", json=named("theirs"))).status_code == 422
    assert (await by("ann").put(f"{RULES}/r", json=named("theirs"))).status_code == 422


async def test_alerts_are_those_of_own_rules_and_of_rules_that_were_shared(
    by: As, store: SqlStore, theirs: None, draft: dict[str, Any], make_alert: Callable[..., Alert]
) -> None:
    await by("bob").post(f"{RULES}/theirs/disable")
    alerts = [
        make_alert(1, owner="ann", rule_id="deleted-since", scanned_ns=5),
        make_alert(2, owner="bob", rule_id="theirs"),
        make_alert(3, owner="bob", rule_id="theirs", shared=True),
        make_alert(4, owner="gone"),
    ]
    await store.save_alerts(alerts, reader="alerts:0")

    async def numbers(user: str, **query: Any) -> list[int]:
        found = (await by(user).get(ALERTS, params=query)).json()["items"]
        return [int(alert["alert_id"], 16) for alert in found]

    assert await numbers("ann") == [3, 1]
    assert await numbers("bob") == [3, 2]
    assert await numbers("root") == [4, 3, 2, 1]
    assert await numbers("ann", rule_id="theirs") == [3]
    first = (await by("ann").get(ALERTS, params={"limit": 1})).json()
    second = (await by("ann").get(ALERTS, params={"limit": 1, "cursor": first["next_cursor"]})).json()
    assert second["next_cursor"] is None
    (own,) = second["items"]
    assert (own["owner"], own["shared"]) == ("ann", False)
    assert own["latency"] == {"received": None, "scanned": "1970-01-01T00:00:00.000000005Z", "filtered": None}
    hidden, missing = alerts[1].alert_id, f"{9:032x}"
    for path in ("", "/explanation"):
        one, other = [await by("ann").get(f"{ALERTS}/{alert_id}{path}") for alert_id in (hidden, missing)]
        assert told(one, hidden) == told(other, missing)
        assert one.status_code == 404
    assert (await by("ann").get(f"{ALERTS}/{alerts[2].alert_id}")).status_code == 200
    # What fired while it was shared may be explained, with the rule as it was.
    explained = await by("ann").get(f"{ALERTS}/{alerts[2].alert_id}/explanation")
    assert (explained.status_code, explained.json()["when"]) == (200, "change_pct_5m > 2")


async def test_of_fifty_that_create_the_last_one_at_once_one_gets_it(
    by: As, draft: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules_module, "RULES_A_USER", 3)
    monkeypatch.setattr(watchlists_module, "WATCHLISTS_A_USER", 3)
    listed: dict[str, Any] = {"name": "w", "symbols": []}
    for path, body, what in ((RULES, draft, "rules"), (LISTS, listed, "watchlists")):
        for _ in range(2):
            assert (await by("ann").post(path, json=body)).status_code == 201
        answers = await asyncio.gather(*(by("ann").post(path, json=body) for _ in range(50)))
        assert sorted(answer.status_code for answer in answers) == [201] + [409] * 49
        refused = {answer.json()["detail"] for answer in answers if answer.status_code == 409}
        assert refused == {f"there are 3 {what} already, which is as many as a user may have"}
        assert (await by("ann").get(path)).json()["total"] == 3
        assert (await by("bob").post(path, json=body)).status_code == 201


async def test_scoreboard_holds_what_one_sees_and_its_sums(by: As, hot: MemoryHotState) -> None:
    rules = [
        {"rule_id": "a", "owner": "ann", "shared": False, "alerts": 3, "unfollowed": 1},
        {"rule_id": "b", "owner": "bob", "shared": False, "alerts": 10, "unfollowed": 2},
        {"rule_id": "c", "owner": "bob", "shared": True, "alerts": 5, "unfollowed": 0},
    ]
    board = {"date": "2025-03-03", "as_of": None, "symbols": 9, "alerts": 18, "unfollowed": 3, "rules": rules}
    await hot.put({"scoreboard": msgspec.json.encode(board)}, ttl_s=60)
    assert (await by("root").get("/api/v1/scoreboard")).json() == board
    assert (await by("ann").get("/api/v1/scoreboard")).json() == {
        **board,
        "alerts": 8,
        "unfollowed": 1,
        "rules": [rules[0], rules[2]],
    }
