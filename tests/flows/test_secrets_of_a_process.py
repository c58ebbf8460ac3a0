"""`tapewatch up` with secrets everywhere, a provider that repeats them, and users who try things: nothing that it says,
serves or leaves readable holds one.
"""

import asyncio
import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import WebSocketException
from websockets.http11 import Request, Response

pytestmark = pytest.mark.anyio
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")
KEY, KEY_SECRET = "PLANTEDKEY0123456789", "planted+of/the+provider0123456789"
SIGNING = "5f1c0e7a9b3d2846c1f0a7e9d8b35264-planted"
PASSWORD = "planted correct horse battery"  # noqa: S105  # of a test
HOOK = "planted-of-a-webhook-0123456789"
BOT = "12345678:planted-of-a-telegram-bot-0123456789"
FORGED = "\n2026-01-01T00:00:00Z [info     ] \x1b[2Jadmin signed in"


class Provider:
    """Speaks Alpaca's protocol, and says what it was told to whoever may hear: each connection in another way."""

    def __init__(self) -> None:
        self.connections = 0
        self.heard: list[str] = []

    async def talk(self, line: ServerConnection) -> None:
        self.connections += 1
        say = msgspec.msgpack.encode
        await line.send(say([{"T": "success", "msg": "connected"}]))
        told = msgspec.msgpack.decode(await line.recv(decode=False))
        self.heard.append(json.dumps(told))
        echo = f"{told} {FORGED}"
        if self.connections == 1:
            await line.close(1008, f"key {KEY_SECRET}")
        elif self.connections == 2:
            await line.send(say([{"T": "error", "code": 999, "msg": echo}]))
            await line.send(say([{"T": echo}, {"T": "t", "S": echo, "x": echo}]))
            await line.send(echo.encode())
            await asyncio.sleep(0.2)
            await line.close()
        else:
            await line.send(say([{"T": "error", "code": 402, "msg": f"auth failed for {echo}"}]))
            await line.wait_closed()

    async def open(self, line: ServerConnection, _request: Request) -> Response | None:
        if self.connections != 2 or self.heard[-1] == "refused":
            return None
        self.heard.append("refused")
        return line.respond(HTTPStatus.INTERNAL_SERVER_ERROR, f"{KEY} {KEY_SECRET} {FORGED}")


@asynccontextmanager
async def up(folder: Path, *options: str) -> AsyncIterator[tuple[str, Path, int]]:
    """Its address, what it printed, and its process id; at the end it is stopped, as somebody at a terminal would."""
    said = folder / "said.txt"
    environment = {
        "APCA_API_KEY_ID": KEY,
        "APCA_API_SECRET_KEY": KEY_SECRET,
        "TAPEWATCH_SECRET": SIGNING,
        "PYTHONUNBUFFERED": "1",
    }
    with said.open("wb") as sink:
        process = subprocess.Popen(  # noqa: ASYNC220  # it is waited for below
            [sys.executable, "-m", "tapewatch", "up", "--port", "0", "--data-dir", str(folder / "data"), *options],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        )
    try:
        async with asyncio.timeout(60):
            while not (found := ADDRESS.search(said.read_text(errors="replace"))):
                assert process.poll() is None, said.read_text()
                await asyncio.sleep(0.05)
        yield found[0], said, process.pid
        process.send_signal(signal.SIGINT)
        await asyncio.to_thread(process.wait, 20)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def add_admin(folder: Path) -> None:
    (folder / "password").write_text(f"{PASSWORD}\n")
    options = ["--role", "admin", "--password-file", str(folder / "password"), "--data-dir", str(folder / "data")]
    subprocess.run([sys.executable, "-m", "tapewatch", "user", "add", "ada", *options], check=True, capture_output=True)


async def try_things(address: str, planted: set[str]) -> list[str]:
    """What the server answered to somebody with all rights, and to somebody with none. Tokens are added to what is
    planted; where they are given they may stand.
    """
    answers: list[str] = []
    async with httpx.AsyncClient(base_url=f"{address}/api/v1", trust_env=False, timeout=20) as api:
        login = (await api.post("/auth/login", json={"name": "ada", "password": PASSWORD})).json()
        made = (await api.post("/user/tokens", json={"name": "t"}, headers=bearer(login["access_token"]))).json()
        planted |= {login["access_token"], login["refresh_token"], made["token"]}
        api.headers.update(bearer(login["access_token"]))

        async def ask(method: str, path: str, **more: Any) -> httpx.Response:
            answer = await api.request(method, path, **more)
            answers.append(f"{answer.headers} {answer.text}")
            return answer

        for settings in (
            {"kind": "webhook", "url": "https://127.0.0.1:1/in", "secret": HOOK},
            {"kind": "telegram", "token": BOT, "chat_id": "1"},
            {"kind": "webhook", "url": "https://10.0.0.1/in", "secret": HOOK},
            {"kind": "webhook", "url": "https://127.0.0.1:1/in", "secret": f"{HOOK}\x00"},
            {"kind": "telegram", "token": f"{BOT} ", "chat_id": "1"},
            {"kind": "apprise", "url": f"json://planted:{HOOK}@example.com"},
        ):
            created = await ask("POST", "/channels", json={"name": "c", "settings": settings})
            if created.status_code == HTTPStatus.CREATED and settings["kind"] == "webhook":
                await ask("POST", f"/channels/{created.json()['id']}/test")
        for path in ("/channels", "/deliveries", "/audit", "/users", "/user/profile", "/user/tokens", "/system/status"):
            assert (await ask("GET", path)).status_code == HTTPStatus.OK, path
        await ask("GET", "/system/quality")
        await ask("POST", "/user/password", json={"password": f"{PASSWORD}!", "new_password": PASSWORD})
        await ask("POST", "/users", json={"name": "bob", "password": PASSWORD, "role": "nobody"})
        await ask("POST", "/auth/login", json={"name": "ada", "password": f"{PASSWORD}!"})
        await ask("POST", "/auth/refresh", json={"refresh_token": f"{login['refresh_token']}x"})
        await ask("GET", "/rules", headers=bearer(f"{login['access_token']}x"))
        await ask("GET", "/rules", headers=bearer(f"{made['token']}x"))
        await ask("GET", f"/rules?token={made['token']}")
        await ask("GET", f"/{made['token']}%0A2026-01-01T00:00:00Z%1b[2J")
        await raw(address, b"\x16\x03\x01 no HTTP\r\n\r\n")
        answers.append((await api.get(f"{address}/metrics")).text)
        assert 'errors_total{where="http"} 1.0' in answers[-1]
        for query, first in ((f"?token={made['token']}", None), ("", f"{made['token']}x"), ("", made["token"])):
            answers.append(await listen(f"{address.replace('http', 'ws')}/ws{query}", first))
        await ask("POST", "/auth/logout")
    return answers


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def raw(address: str, request: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rpartition(":")[2]))
    writer.write(request)
    await reader.read()
    writer.close()


async def listen(url: str, first: str | None) -> str:
    heard = ""
    try:
        async with asyncio.timeout(2), connect(url, proxy=None) as line:
            if first is not None:
                await line.send(json.dumps({"type": "authenticate", "data": {"token": first}}))
            async for frame in line:
                heard += str(frame)
    except (TimeoutError, WebSocketException) as error:
        heard += str(error)
    return heard


@pytest.fixture
async def provider() -> AsyncIterator[tuple[Provider, Server]]:
    provider = Provider()
    async with serve(provider.talk, "127.0.0.1", 0, process_request=provider.open) as server:
        yield provider, server


@pytest.mark.parametrize("logs", ["text", "json"])
async def test_no_secret_leaves_the_process(tmp_path: Path, provider: tuple[Provider, Server], logs: str) -> None:
    talker, server = provider
    port = next(iter(server.sockets)).getsockname()[1]
    add_admin(tmp_path)
    planted = {KEY, KEY_SECRET, SIGNING, PASSWORD, HOOK, BOT}
    options = ["--feed", "alpaca", "--feed-url", f"ws://127.0.0.1:{port}", "--watch", "AAPL"]
    options += ["--allow-webhook-to", "127.0.0.0/8"]
    async with up(tmp_path, *options, *(["--log-json"] if logs == "json" else [])) as (address, said, pid):
        answers = await try_things(address, planted)
        command_line = psutil.Process(pid).cmdline()
        async with asyncio.timeout(40):
            while talker.connections < 3:  # noqa: ASYNC110  # it waits longer before each
                await asyncio.sleep(0.1)
            while "feed refused" not in said.read_text():  # noqa: ASYNC110  # nor does a file
                await asyncio.sleep(0.02)
    log = said.read_text()
    assert KEY_SECRET in talker.heard[0]  # or nothing was tried
    for secret in planted:
        assert secret not in log, secret
        assert secret not in " ".join(command_line), secret
        for answer in answers:
            assert secret not in answer, (secret, answer[:300])
    assert "a delivery failed" in log
    lines = log.splitlines()
    assert all(line.isprintable() for line in lines)
    assert not any(line.startswith("2026-01-01") for line in lines)
    assert not any("uvicorn" in line for line in lines)  # what strangers do wrong is counted, not written down
    for path in (tmp_path / "data").iterdir():
        assert not path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO), path
    store = b"".join(path.read_bytes() for path in (tmp_path / "data").glob("tapewatch.db*"))
    for secret in planted - {HOOK, BOT}:  # those must be sent: the store has them as they are
        assert secret.encode() not in store, secret
