"""Alerts as people look for them: filters, both orders, what a user puts on them, and files of them."""

import asyncio
import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest

from tapewatch.accounts.roles import Principal
from tapewatch.adapters.sql import SqlStore
from tapewatch.documents import Alert, rfc3339
from tapewatch.serve.api import alert_export

pytestmark = pytest.mark.anyio
ALERTS = "/api/v1/alerts"
MakeAlert = Callable[..., Alert]


@pytest.fixture
async def alerts(store: SqlStore, make_alert: MakeAlert) -> list[Alert]:
    """Pairs share an instant."""
    some = [
        make_alert(
            n,
            symbol=("AAPL", "MSFT", "BRK.B")[n % 3],
            rule_id=f"r{n % 2}",
            rule_name=("50% off_x", "=HYPERLINK(1)", "Gapper")[n % 3],
            severity=("info", "warning", "critical")[n % 3],
            session=("pre", "regular")[n % 2],
            tags=("gap",) if n % 4 == 0 else ("news", "B.c-d_1"),
            fired_at_ns=make_alert(n // 2).fired_at_ns,
        )
        for n in range(12)
    ]
    await store.save_alerts(some, reader="test")
    return some


async def found(api: httpx.AsyncClient, **params: Any) -> list[int]:
    """Numbers of all alerts, over pages of two."""
    seen: list[int] = []
    params["limit"] = 2
    while True:
        answer = await api.get(ALERTS, params=params)
        assert answer.status_code == 200, answer.text
        seen += [int(item["alert_id"], 16) for item in answer.json()["items"]]
        if answer.json()["next_cursor"] is None:
            return seen
        params["cursor"] = answer.json()["next_cursor"]


async def test_alerts_are_narrowed_by_words_and_walked_in_both_orders(
    api: httpx.AsyncClient, alerts: list[Alert]
) -> None:
    everything = list(range(12))
    assert await found(api, sort="oldest") == everything
    assert await found(api, sort="newest") == everything[::-1]
    for params, wanted in (
        ({"symbol": "AAPL,BRK.B"}, [n for n in everything if n % 3 != 1]),
        ({"rule_id": "r1,none"}, [n for n in everything if n % 2]),
        ({"severity": "critical,warning"}, [n for n in everything if n % 3]),
        ({"session": "pre"}, [n for n in everything if n % 2 == 0]),
        ({"tag": "gap"}, [0, 4, 8]),
        ({"tag": "gap,B.c-d_1"}, everything),
        ({"q": "gAp"}, [2, 5, 8, 11]),
        ({"q": "%"}, [0, 3, 6, 9]),
        ({"q": "_x", "session": "pre", "severity": "info"}, [0, 6]),
        ({"q": "'; DROP TABLE alert_history; --"}, []),
    ):
        assert await found(api, sort="oldest", **params) == wanted, params
        assert await found(api, **params) == wanted[::-1], params
    since = rfc3339(alerts[4].fired_at_ns)
    assert await found(api, since=since, sort="oldest") == everything[4:]


@pytest.mark.parametrize(
    "query",
    [
        "severity=deadly",
        "severity=",
        "severity=info,,warning",
        "symbol=" + ",".join(["A"] * 51),
        "session=night",
        "sort=symbol",
        "sort=newest;drop",
        "tag=a%20b",
        "acknowledged=1",
        "q=%00",
        "since=1970-01-01T00:00:00Z&until=9999-12-31T23:59:59Z",
    ],
)
async def test_filter_hostile_is_422(api: httpx.AsyncClient, query: str) -> None:
    for path in (ALERTS, f"{ALERTS}/export"):
        answer = await api.get(f"{path}?format=csv&{query}" if path != ALERTS else f"{path}?{query}")
        assert answer.status_code == 422, answer.text
        assert answer.json()["where"].startswith("query.")


async def test_alert_is_acknowledged_and_noted_by_one_user_and_stays_as_it_was(
    api: httpx.AsyncClient, store: SqlStore, alerts: list[Alert]
) -> None:
    one = f"{ALERTS}/{alerts[3].alert_id}"
    first = await api.post(f"{one}/acknowledge")
    assert (first.status_code, first.json()["version"], first.headers["etag"]) == (200, 1, '"1"')
    assert (await api.post(f"{one}/acknowledge")).json() == first.json()
    noted = await api.put(f"{one}/note", json={"note": " Sold half «101» "}, headers={"If-Match": '"1"'})
    assert noted.json() == {**first.json(), "note": "Sold half «101»", "version": 2}
    stale = await api.put(f"{one}/note", json={"note": "late"}, headers={"If-Match": '"1"'})
    assert (stale.status_code, stale.json()["type"]) == (412, "urn:tapewatch:problem:precondition-failed")
    assert (await api.get(one)).json() == alerts[3].as_json() | {"mark": noted.json()}
    assert await found(api, acknowledged="true") == [3]
    assert await found(api, acknowledged="false", sort="oldest") == [n for n in range(12) if n != 3]
    assert await store.alert(alerts[3].alert_id) == alerts[3]
    other = Principal.of("other", "trader")
    assert await store.alert_marks(other.user_id, [alerts[3].alert_id]) == {}
    again = (await api.post(f"{one}/unacknowledge")).json()
    assert (again["acknowledged_at"], again["note"], again["version"]) == (None, "Sold half «101»", 3)
    assert await found(api, acknowledged="true") == []


async def test_mark_of_no_alert_and_of_nonsense_is_refused(api: httpx.AsyncClient, alerts: list[Alert]) -> None:
    assert (await api.post(f"{ALERTS}/none/acknowledge")).status_code == 404
    assert (await api.put(f"{ALERTS}/none/note", json={"note": "x"})).status_code == 404
    one = f"{ALERTS}/{alerts[0].alert_id}"
    for body in ("{}", '{"note":1}', '{"note":null}', '{"note":"a\\u0000"}', '{"note":"a","user_id":"x"}', "[]"):
        answer = await api.put(f"{one}/note", content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code == 422
    assert (await api.put(f"{one}/note", json={"note": "n" * 1_001})).status_code == 422
    assert (await api.put(f"{one}/note", json={"note": "x"}, headers={"If-Match": "W/x"})).status_code == 412
    assert (await api.get(one)).json()["mark"] is None


async def test_export_as_csv_has_what_the_list_has_and_no_formula(
    api: httpx.AsyncClient, alerts: list[Alert], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_export, "_PAGE", 5)
    for start, note in (("=", "=1+1"), ("@", "@SUM(A1)"), ("-", "-2"), ("+", "+3")):
        number = "=@-+".index(start)
        await api.put(f"{ALERTS}/{alerts[number].alert_id}/note", json={"note": note})
    answer = await api.get(f"{ALERTS}/export", params={"format": "csv", "sort": "oldest"})
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["content-disposition"] == 'attachment; filename="alerts.csv"'
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [int(row["alert_id"], 16) for row in rows] == list(range(12))
    assert [row["my_note"] for row in rows[:5]] == ["'=1+1", "'@SUM(A1)", "'-2", "'+3", ""]
    assert rows[1]["rule_name"] == "'=HYPERLINK(1)"
    assert rows[0]["rule_name"] == "50% off_x"
    assert (rows[2]["tags"], rows[2]["price"]) == ("news B.c-d_1", "12.0")
    assert json.loads(rows[2]["values"]) == {"change_pct_5m": 2.5, "rsi_14_1m": None}
    some = (await api.get(f"{ALERTS}/export", params={"format": "csv", "limit": 7})).text
    assert [int(row["alert_id"], 16) for row in csv.DictReader(io.StringIO(some))] == list(range(11, 4, -1))
    none = (await api.get(f"{ALERTS}/export", params={"format": "csv", "symbol": "NOPE"})).text
    assert none.splitlines() == [",".join(alert_export._COLUMNS)]


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\tx", "\rx"])
def test_cell_that_a_spreadsheet_would_run_is_quoted(text: str) -> None:
    assert alert_export._cell(text) == f"'{text}"
    assert alert_export._cell(-1.5) == -1.5
    assert alert_export._cell("a=1") == "a=1"


async def test_export_as_parquet_has_types_and_several_pages(
    api: httpx.AsyncClient, alerts: list[Alert], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_export, "_PAGE", 5)
    await api.post(f"{ALERTS}/{alerts[0].alert_id}/acknowledge")
    answer = await api.get(f"{ALERTS}/export", params={"format": "parquet", "sort": "oldest"})
    (tmp_path / "alerts.parquet").write_bytes(answer.content)
    table = pq.read_table(tmp_path / "alerts.parquet")
    assert table.column("alert_id").to_pylist() == [alert.alert_id for alert in alerts]
    assert str(table.schema.field("fired_at").type) == "timestamp[ns, tz=UTC]"
    first = table.slice(0, 1).to_pylist()[0]
    assert first["fired_at"].value == alerts[0].fired_at_ns
    assert (first["tags"], first["values"]) == (["gap"], [("change_pct_5m", 2.5), ("rsi_14_1m", None)])
    assert table.column("acknowledged_at").null_count == 11
    assert table.column("rule_name").to_pylist()[1] == "=HYPERLINK(1)"
    empty = await api.get(f"{ALERTS}/export", params={"format": "parquet", "symbol": "NOPE"})
    (tmp_path / "empty.parquet").write_bytes(empty.content)
    assert pq.read_table(tmp_path / "empty.parquet").num_rows == 0


async def test_third_export_at_once_is_told_to_come_again(
    api: httpx.AsyncClient, alerts: list[Alert], monkeypatch: pytest.MonkeyPatch
) -> None:
    reading, go_on = asyncio.Event(), asyncio.Event()
    to_thread = asyncio.to_thread

    async def slow(*given: Any) -> Any:
        reading.set()
        await go_on.wait()
        return await to_thread(*given)

    monkeypatch.setattr(alert_export, "MOST_AT_ONCE", 2)
    monkeypatch.setattr(asyncio, "to_thread", slow)
    first = [asyncio.create_task(api.get(f"{ALERTS}/export?format=csv")) for _ in range(2)]
    await reading.wait()
    await asyncio.sleep(0.1)
    third = await api.get(f"{ALERTS}/export?format=csv")
    assert (third.status_code, third.headers["retry-after"]) == (503, "5")
    go_on.set()
    assert [answer.status_code for answer in await asyncio.gather(*first)] == [200, 200]
    assert (await api.get(f"{ALERTS}/export?format=csv")).status_code == 200


async def test_export_that_takes_too_long_is_cut_off(
    api: httpx.AsyncClient, alerts: list[Alert], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alert_export, "_EXPORT_S", 0.1)

    async def never(*_: Any) -> Any:
        await asyncio.sleep(60)

    with monkeypatch.context() as patched:
        patched.setattr(asyncio, "to_thread", never)
        with pytest.raises(httpx.RemoteProtocolError):
            await api.get(f"{ALERTS}/export?format=csv")
    monkeypatch.setattr(alert_export, "_EXPORT_S", 10)
    assert (await api.get(f"{ALERTS}/export?format=csv")).status_code == 200


async def test_question_that_takes_the_store_too_long_is_503(
    api: httpx.AsyncClient, store: SqlStore, alerts: list[Alert], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlalchemy as sa

    from tapewatch.adapters import sql, sql_alerts

    first = sa.select(sa.literal_column("1").label("x")).cte("n", recursive=True)
    counting = sa.select(sa.func.count()).select_from(first.union_all(sa.select(first.c.x + 1)))

    def endless(reading: Any, query: Any) -> Any:
        return reading.rows(counting, {})

    monkeypatch.setattr(sql, "QUERY_S", 0.1)
    with monkeypatch.context() as patched:
        patched.setattr(sql_alerts, "read_alert_keys", endless)
        answer = await api.get(ALERTS)
    assert (answer.status_code, answer.json()["type"]) == (503, "urn:tapewatch:problem:unavailable")
    assert answer.headers["retry-after"] == "1"
    assert (await api.get(ALERTS)).status_code == 200
