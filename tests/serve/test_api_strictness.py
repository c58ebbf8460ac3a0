"""Hostile input over HTTP: every row is refused with a problem document, nothing is stored, all others are served."""

import asyncio
import gzip
import json
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tapewatch.serve import bodies, server
from tapewatch.serve.api.alerts import parse_instant_ns, read_cursor, write_cursor

pytestmark = pytest.mark.anyio
RULES = "/api/v1/rules"
DRY_RUN = ("POST", f"{RULES}/dry-run")
JSON = {"Content-Type": "application/json"}


def body(**fields: str) -> bytes:
    """A rule in JSON, with fields replaced by raw JSON; ``surrogatepass`` lets half a character through."""
    raw = {"name": '"n"', "conditions": '[{"metric":"price","operator":">","value":1}]'} | fields
    return ("{" + ",".join(f'"{key}":{value}' for key, value in raw.items()) + "}").encode("utf-8", "surrogatepass")


def condition(metric: str = '"price"', operator: str = '">"', value: str = "1") -> bytes:
    return body(conditions=f'[{{"metric":{metric},"operator":{operator},"value":{value}}}]')


BODIES: dict[str, bytes] = {
    "value is NaN": condition(value="NaN"),
    "value is Infinity": condition(value="Infinity"),
    "value is -Infinity": condition(value="-Infinity"),
    "value is 1e999": condition(value="1e999"),
    "value is the text nan": condition(value='"nan"'),
    "value is a text": condition(value='"1"'),
    "value is true": condition(value="true"),
    "value is null": condition(value="null"),
    "value is too large": condition(value="1e16"),
    "value is 10^400": condition(value="1" + "0" * 400),
    "value has 5,000 digits": condition(value="9" * 5000),
    "cooldown is 10^30": body(cooldown="1" + "0" * 30),
    "cooldown is negative": body(cooldown="-1"),
    "cooldown is NaN": body(cooldown="NaN"),
    "cooldown is true": body(cooldown="true"),
    "enabled is 1": body(enabled="1"),
    "enabled is a text": body(enabled='"yes"'),
    "name is missing": b'{"conditions":[{"metric":"price","operator":">","value":1}]}',
    "name is a number": body(name="1"),
    "name is empty": body(name='""'),
    "name is 10 kB": body(name=json.dumps("n" * 10_000)),
    "name has NUL": body(name='"a\\u0000b"'),
    "name has a newline": body(name='"a\\nb"'),
    "name has a raw newline": body(name='"a\nb"'),
    "name has half a character": body(name='"\\ud800"'),
    "name has half a character in UTF-8": body(name='"\ud800"'),
    "name turns the writing direction": body(name='"abc\\u202edef"'),
    "name has zero width": body(name='"ab\\u200bc"'),
    "name has a private character": body(name='"\\ue000"'),
    "description is 3 kB": body(description=json.dumps("d" * 3_000)),
    "description has NUL": body(description='"\\u0000"'),
    "unknown field": body(owner_id='"me"'),
    "unknown field with half a character": body(**{"\\ud800": "1"}),
    "unknown field of 60 kB": body(**{"k" * 60_000: "1"}),
    "field of the machine": body(created_at='"2020-01-01T00:00:00Z"'),
    "__proto__": body(__proto__='{"admin":true}'),
    "unknown field in a condition": body(conditions='[{"metric":"price","operator":">","value":1,"x":1}]'),
    "doubled key": body().replace(b'"name":"n"', b'"name":"n","name":"m"'),
    "doubled key in a condition": body(conditions='[{"metric":"price","metric":"price","operator":">","value":1}]'),
    "id with a slash": body(id='"a/b"'),
    "id with dots": body(id='"../x"'),
    "id with a newline at its end": body(id='"abc\\n"'),
    "id is empty": body(id='""'),
    "id is null": body(id="null"),
    "version is null": body(version="null"),
    "id is 65 characters": body(id=json.dumps("i" * 65)),
    "when is empty": body(when='""'),
    "when is null": body(when="null"),
    "when is a list": body(when="[]"),
    "when says something else": body(when='"price > 2"'),
    "when has NUL": body(when='"price > 1\\u0000"'),
    "when is 10 kB": body(when=json.dumps("price > 1 or " * 800 + "price > 1")),
    "when is 5,000 parentheses": body(when=json.dumps("(" * 5_000)),
    "when is code": body(when="\"__import__('os').system('id')\""),
    "gate cannot be read": body(gate='"price >"'),
    "rearm without edges": body(rearm='"price < 1"', fire='"level"'),
    "fire is unknown": body(fire='"twice"'),
    "severity is unknown": body(severity='"deadly"'),
    "a tag with a space": body(tags='["a b"]'),
    "17 tags": body(tags=json.dumps([f"t{n}" for n in range(17)])),
    "a condition is a text": body(conditions='["price > 1"]'),
    "a condition of nothing": body(conditions="[{}]"),
    "a condition of two kinds": body(conditions='[{"all":[{"watchlist":"w"}],"any":[]}]'),
    "300 negations": body(conditions="[" + '{"not":' * 300 + '{"watchlist":"w"}' + "}" * 300 + "]"),
    "2,000 conditions in one": body(conditions='[{"any":[' + ",".join(['{"watchlist":"w"}'] * 2_000) + "]}]"),
    "held for ever": body(conditions='[{"held":{"watchlist":"w"},"seconds":1e9}]'),
    "conditions are missing": b'{"name":"n"}',
    "conditions are empty": body(conditions="[]"),
    "conditions are an object": body(conditions="{}"),
    "conditions are 65": body(conditions=json.dumps([{"metric": "price", "operator": ">", "value": 1}] * 65)),
    "operator is unknown": condition(operator='"=>"'),
    "operator is code": condition(operator='"__import__"'),
    "metric is unknown": condition(metric='"price_of_eggs"'),
    "metric is code": condition(metric="\"__import__('os').system('id')\""),
    "metric is a look-alike": condition(metric='"\u0441lose_prev_day"'),
    "metric has full-width digits": condition(metric='"change_pct_\uff15m"'),
    "metric is 60 kB": condition(metric=json.dumps("m" * 60_000)),
    "metric is a list": condition(metric="[]"),
    "nothing": b"",
    "null": b"null",
    "a list": b"[" + body() + b"]",
    "a text": b'"rule"',
    "two documents": body() + body(),
    "a comment": b"/* */" + body(),
    "a byte order mark": b"\xef\xbb\xbf" + body(),
    "UTF-16": body().decode().encode("utf-16"),
    "UTF-32": body().decode().encode("utf-32"),
    "Latin-1": '{"name":"é"}'.encode("latin-1"),
    "30,000 nested arrays": b"[" * 30_000,
    "30,000 nested objects": b'{"a":' * 12_000,
    "10,000 keys": ("{" + ",".join(f'"{n}":1' for n in range(6_000)) + "}").encode(),
    "cut off": body()[:-5],
}


@pytest.mark.parametrize("hostile", BODIES.values(), ids=BODIES.keys())
async def test_body_hostile_is_refused_and_never_stored(api: httpx.AsyncClient, hostile: bytes) -> None:
    started = time.process_time()
    for method, path in (("POST", RULES), ("POST", f"{RULES}/validate"), ("PUT", f"{RULES}/there"), DRY_RUN):
        answer = await api.request(method, path, content=hostile, headers=JSON)
        assert answer.status_code == 422, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        problem = answer.json()
        assert problem["status"] == 422
        assert problem["where"].startswith("body")
        assert "Traceback" not in answer.text
        assert len(answer.content) < 1_500
    assert time.process_time() - started < 1.0
    listed = await api.get(RULES)
    assert (listed.status_code, listed.json()) == (200, {"items": [], "total": 0})


def bodies_of(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Operations that read a body, with their example."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if "requestBody" in operation:
                example = operation["requestBody"]["content"]["application/json"]["example"]
                yield method.upper(), re.sub(r"\{\w+\}", "1", path), example


ADDED = {
    "owner": '"owner_id":"bob"',
    "scope": '"scopes_":["users:write"]',
    "time of the machine": '"created_at":"2020-01-01T00:00:00Z"',
    "__proto__": '"__proto__":{"admin":true}',
    "constructor": '"constructor":{"prototype":{"admin":true}}',
    "class": '"__class__":"User"',
    "NaN": '"x":NaN',
    "Infinity": '"x":-Infinity',
    "5,000 digits": f'"x":{"9" * 5_000}',
    "half a character": '"\\ud800":1',
    "30,000 nested arrays": '"x":' + "[" * 30_000,
}


@pytest.mark.parametrize("added", ADDED.values(), ids=ADDED)
async def test_nothing_is_added_to_any_body(api: httpx.AsyncClient, added: str) -> None:
    document = (await api.get("/api/v1/openapi.json")).json()
    asked = 0
    for method, path, example in bodies_of(document):
        raw = f"{json.dumps(example)[:-1]},{added}}}"
        answer = await api.request(method, path, content=raw.encode(), headers=JSON)
        assert answer.status_code == 422, (method, path, answer.text)
        assert answer.json()["where"].startswith("body"), (method, path)
        asked += 1
    assert asked > 20


TEXTS = {
    "NUL": "a\x00b",
    "a line end": "a\nSet-Cookie: b",
    "an escape sequence": "a\x1b[2J",
    "a turned writing direction": "abc\u202edef",
    "isolated writing": "a\u2066b",
    "no width": "a\u200bb",
    "a byte order mark": "\ufeffab",
    "a private character": "a\ue000b",
    "half a character": "a\ud800b",
    "10,000 letters": "n" * 10_000,
    "a number": 1,
    "a list": ["a"],
    "an object": {"$gt": ""},
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
async def test_no_name_or_note_of_anything_takes_what_cannot_be_shown(api: httpx.AsyncClient, text: Any) -> None:
    asked = []
    for method, path, example in bodies_of((await api.get("/api/v1/openapi.json")).json()):
        for field in {"name", "description", "display_name", "note"} & example.keys():
            answer = await api.request(method, path, content=json.dumps(example | {field: text}), headers=JSON)
            assert (answer.status_code, answer.json().get("where")) == (422, f"body.{field}"), (
                method,
                path,
                answer.text,
            )
            asked.append(field)
    assert len(asked) > 12
    assert {"name", "display_name", "note"} <= set(asked)


async def test_no_field_of_any_body_comes_twice(api: httpx.AsyncClient) -> None:
    for method, path, example in bodies_of((await api.get("/api/v1/openapi.json")).json()):
        first = json.dumps(dict([next(iter(example.items()))]))
        raw = f"{json.dumps(example)[:-1]},{first[1:]}"
        answer = await api.request(method, path, content=raw.encode(), headers=JSON)
        assert (answer.status_code, "twice" in answer.text) == (422, True), (method, path, answer.text)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b'{"version":0}',
        b'{"version":"1"}',
        b'{"version":1.5}',
        b'{"version":1,"x":1}',
        b'{"version":NaN}',
        b"1",
    ],
)
async def test_rollback_hostile_is_422(api: httpx.AsyncClient, raw: bytes) -> None:
    await api.post(RULES, content=body(id='"mine"'), headers=JSON)
    answer = await api.post(f"{RULES}/mine/rollback", content=raw, headers=JSON)
    assert answer.status_code == 422
    assert answer.json()["where"].startswith("body")
    assert (await api.get(f"{RULES}/mine")).json()["version"] == 1


@pytest.mark.parametrize(
    "content_type",
    [
        *("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "", "text/json"),
        *("application/jsonx", "application/json; charset=utf-16", "application/json, text/plain"),
    ],
)
async def test_body_of_another_type_is_415(api: httpx.AsyncClient, content_type: str) -> None:
    answer = await api.post(RULES, content=body(), headers={"Content-Type": content_type})
    assert answer.status_code == 415
    assert (await api.get(RULES)).json()["total"] == 0


async def test_body_compressed_is_415(api: httpx.AsyncClient) -> None:
    bomb = gzip.compress(b" " * 10_000_000)
    answer = await api.post(RULES, content=bomb, headers=JSON | {"Content-Encoding": "gzip"})
    assert answer.status_code == 415


async def test_body_of_64_kb_is_read_and_one_byte_more_is_413(api: httpx.AsyncClient) -> None:
    full = body() + b" " * (bodies.MAX_BODY_BYTES - len(body()))
    assert (await api.post(RULES, content=full, headers=JSON)).status_code == 201
    assert (await api.post(RULES, content=full + b" ", headers=JSON)).status_code == 413


async def test_body_chunked_is_cut_off_at_64_kb(api: httpx.AsyncClient) -> None:
    sent = 0

    async def chunks() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(5_000):
            sent += 1024
            yield b" " * 1024

    # The server may close while we are still sending, which is the point.
    with suppress(httpx.WriteError, httpx.ReadError):
        assert (await api.post(RULES, content=chunks(), headers=JSON)).status_code == 413
    assert sent < 5_000 * 1024
    assert (await api.get(RULES)).status_code == 200


async def raw(address: str, request: bytes) -> bytes:
    """What the server says to these bytes until it closes."""
    host, _, port = address.partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (
            b"POST /api/v1/rules HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999999\r\nContent-Type: application/json",
            413,
        ),
        (b"POST /api/v1/rules HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", 400),
        (b"POST /api/v1/rules HTTP/1.1\r\nHost: h\r\nContent-Length: -5", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nHost: evil", 400),
        (b"GET / HTTP/1.1", 400),
        (b"BREW / HTTP/1.1\r\nHost: h", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\x00b", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n b", 400),
        (b"POST /api/v1/rules HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 2", 400),
        (b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: h", 400),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X: y\r\n" * 20_000 + b"Z", 400),
        (b"TRACE /api/v1/rules HTTP/1.1\r\nHost: h\r\nConnection: close", 405),
    ],
    ids=[
        *("endless length", "smuggling", "negative length", "two hosts", "no host", "no method", "NUL in a header"),
        *("folded header", "two lengths", "long address", "many headers", "TRACE"),
    ],
)
async def test_request_malformed_is_refused(address: str, request_bytes: bytes, status: int) -> None:
    answer = await raw(address, request_bytes + b"\r\n\r\n")
    assert answer.split(b" ", 2)[1] == str(status).encode()
    assert b"Traceback" not in answer


CHUNKED = b"POST /api/v1/rules HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n"


async def test_header_that_never_ends_is_cut_off_before_it_fills_memory(address: str) -> None:
    # Whether the refusal is heard depends on how much of the rest is on its way when the connection ends.
    assert (await raw(address, b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"a" * 600_000))[:13] in {b"", b"HTTP/1.1 400 "}
    answer = await raw(address, CHUNKED + b"\r\n2\r\n{}\r\n0\r\nX: " + b"a" * 600_000)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


async def test_body_that_is_no_chunk_is_400_at_once(address: str) -> None:
    assert (await raw(address, CHUNKED + b"\r\ntwo\r\n{}")).startswith(b"HTTP/1.1 400 ")


async def test_requests_that_follow_at_once_are_answered_in_order_eight_may_wait(address: str) -> None:
    asked = b"GET /api/v1/rules?limit=%d HTTP/1.1\r\nHost: h\r\n\r\n"
    seven = b"".join(asked % limit for limit in range(1, 8))
    last = b"GET /none HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    statuses = [part[:3] for part in (await raw(address, seven + last)).split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200"] * 7 + [b"404"]
    many = await raw(address, (asked % 1) * 1_000)
    assert many.count(b"HTTP/1.1 200") == 9
    assert b"HTTP/1.1 400" not in many


async def test_what_follows_a_body_is_not_part_of_its_head(address: str) -> None:
    trailer = b"\r\n2\r\n{}\r\n0\r\nX-Request-Id: brought-late\r\nHost: evil\r\n\r\n"
    answer = await raw(address, CHUNKED + trailer + b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"brought-late" not in answer
    assert answer.count(b"HTTP/1.1 200") == 1


@pytest.mark.parametrize("given", [b"abcdefgh\nSet-Cookie: x=1", b"abcdefgh\rSet-Cookie: x=1"])
async def test_line_end_in_a_header_never_comes_back_in_an_answer(address: str, given: bytes) -> None:
    request = b"GET /health HTTP/1.1\r\nHost: h\r\nConnection: close\r\nX-Request-Id: " + given + b"\r\n\r\n"
    assert b"set-cookie: x" not in (await raw(address, request)).lower()


async def test_hundred_thousand_nested_arrays_are_413_before_they_are_parsed(api: httpx.AsyncClient) -> None:
    started = time.process_time()
    with suppress(httpx.WriteError, httpx.ReadError):
        answer = await api.post(RULES, content=b"[" * 100_000, headers=JSON)
        assert answer.status_code == 413
    assert time.process_time() - started < 0.2
    assert (await api.get(RULES)).status_code == 200


async def test_body_that_never_ends_is_408(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "_READ_TIMEOUT_S", 0.1)
    head = b"POST /api/v1/rules HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    assert (await raw(address, head)).startswith(b"HTTP/1.1 408 ")


async def test_headers_that_never_end_are_cut_off(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEADERS_TIMEOUT_S", 0.1)
    assert await raw(address, b"GET /health HTTP/1.1\r\nHost: h\r\nX: ") == b""
    first_answered = await raw(address, b"GET /health HTTP/1.1\r\nHost: h\r\n\r\nGET /health HTTP/1.1\r\nX: ")
    assert first_answered.count(b"HTTP/1.1 200") == 1


QUERIES = [
    "/rules?limit=-1",
    "/rules?limit=0",
    "/rules?limit=501",
    "/rules?limit=1_000",
    "/rules?limit=%2B5",
    "/rules?limit=05",
    "/rules?limit=5.0",
    "/rules?limit=1e2",
    "/rules?limit=NaN",
    "/rules?limit=true",
    "/rules?limit=",
    "/rules?limit=%D9%A5",
    "/rules?limit=1" + "0" * 30,
    "/rules?offset=-1",
    "/rules?offset=1000000001",
    "/rules?limt=5",
    "/rules?limit=5&limit=6",
    "/rules?sort=name;drop",
    "/rules/mine?verbose=1",
    "/rules?user_id=bob",
    "/rules?owner=bob",
    "/alerts?owner=bob",
    "/alerts?sort=owner;--",
    "/alerts?since=1970-01-01T00:00:00Z&until=2199-01-01T00:00:00Z",
    "/deliveries?owner=bob",
    "/rules?enabled=1",
    "/rules?enabled=True",
    "/rules?enabled=",
    "/rules?tag=%25",
    "/rules?q=",
    "/rules?q=%00",
    "/rules?q=" + "a" * 121,
    "/rules/mine/versions?limit=0",
    "/rules/mine/versions/0",
    "/rules/mine/versions/01",
    "/rules/mine/versions/1e1",
    "/rules/mine/versions/-1",
    "/rules/templates?x=1",
    "/scoreboard?x=1",
    "/watchlists?limit=0",
    "/watchlists/a%00",
    "/alerts?symbol=%00",
    "/alerts?symbol=AAPL%00",
    "/alerts?symbol=" + "A" * 25,
    "/alerts?symbol='%20OR%201=1",
    "/alerts?rule_id=%25",
    "/alerts?since=yesterday",
    "/alerts?since=2024-02-30T00:00:00Z",
    "/alerts?since=2024-01-01",
    "/alerts?since=2024-01-01T00:00:00",
    "/alerts?since=2024-01-01T00:00:00%2B24:00",
    "/alerts?since=NaN",
    "/alerts?until=0",
    "/alerts?until=%D9%A2024-01-01T00:00:00Z",
    "/alerts?cursor=x",
    "/alerts?cursor=%00",
    "/alerts?cursor=" + "A" * 201,
    "/alerts?cursor=LTE6eA",
    "/alerts?cursor=OTk5OTk5OTk5OTk5OTk5OTk5OTp4",
    "/alerts?min_price=nan",
    "/symbols?prefix=%00",
    "/symbols?prefix=%25",
    "/symbols?prefix=" + "A" * 25,
    "/toplists/system/gainers_5m?limit=1_0",
    "/toplists?x=1",
    "/metrics?x=1",
    "/system/status?x=1",
    "/symbols/AA%00PL",
    "/symbols/" + "A" * 25,
    "/rules/..%00",
    "/alerts/%FF",
]


@pytest.mark.parametrize("query", QUERIES)
async def test_query_hostile_is_422(api: httpx.AsyncClient, query: str) -> None:
    answer = await api.get(f"/api/v1{query}")
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"]
    assert answer.json()["where"].startswith(("query.", "path."))
    assert (await api.get(RULES)).status_code == 200


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T01:00:00.000000001+01:00", 1),
        ("1969-12-31T23:00:00-01:00", 0),
        ("2013-10-07t13:30:01.5z", 1_381_152_601_500_000_000),
        ("0001-01-01T00:00:00+23:59", 0),
        ("9999-12-31T23:59:59-23:59", 2**63 - 1),
    ],
)
def test_instant_is_read_to_the_nanosecond_and_kept_in_range(text: str, ns: int) -> None:
    assert parse_instant_ns(text, where="q") == ns


def test_cursor_read_is_the_place_written() -> None:
    assert read_cursor(write_cursor(2**63 - 1, "a" * 32)) == (2**63 - 1, "a" * 32)
