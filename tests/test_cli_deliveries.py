"""`tapewatch deliveries` of a server that runs."""

import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest

from tapewatch.adapters.sql import SqlStore
from tapewatch.cli import main
from tapewatch.clock import SystemClock
from tapewatch.contracts.store_deliveries import make_delivery
from tapewatch.delivery_documents import DeliveryState

Tell = Callable[..., tuple[int, str, str]]
STATES: tuple[DeliveryState, ...] = ("dead", "sent", "dead", "digested", "sent", "dead")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its outbox has deliveries to channels that are no more, so that nobody sends what is sent again."""
    folder = tmp_path_factory.mktemp("server")

    async def fill() -> None:
        store = SqlStore(folder / "tapewatch.db")
        await store.upgrade()
        now_ns = SystemClock().now_ns()
        saved = [
            make_delivery(
                n, state=state, at_ns=now_ns + n, channel_id="old" if n < 3 else "new", error="HTTP 500" * (n == 5)
            )
            for n, state in enumerate(STATES)
        ]
        await store.save_deliveries(saved, reader="tests")
        await store.close()

    asyncio.run(fill())
    words = ["--symbols", "5", "--ticks-per-second", "1", "--port", "0", "--data-dir", str(folder)]
    with (
        (folder / "stderr.txt").open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", "tapewatch", "up", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line.startswith("tapewatch is up: "), (folder / "stderr.txt").read_text()
            yield line.split()[3]
        finally:
            process.terminate()
            assert process.wait(timeout=20) == 0


@pytest.fixture
def tell(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tell:
    """Exit status, what it printed, and what it complained of."""
    monkeypatch.delenv("TAPEWATCH_TOKEN", raising=False)

    def tell(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tapewatch", "deliveries", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return tell


@contextmanager
def answering(answers: list[tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """A server that gives these answers, the last one for ever."""

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing: standard error belongs to the command."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        running = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        running.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            running.join()


def listed(tell: Tell, server: str, *words: object) -> list[Any]:
    code, said, _ = tell("list", "--url", server, "--json", *words)
    assert code == 0
    deliveries: list[Any] = json.loads(said)["deliveries"]
    return deliveries


def test_deliveries_are_listed_and_sent_again(tell: Tell, server: str) -> None:
    assert [each["state"] for each in listed(tell, server)] == list(STATES[::-1])
    assert [each["delivery_id"] for each in listed(tell, server, "--limit", 2)] == ["d00005", "d00004"]
    assert [each["delivery_id"] for each in listed(tell, server, "--channel", "old")] == ["d00002", "d00001", "d00000"]
    code, said, _ = tell("list", "--state", "dead", "--url", server)
    lines = said.splitlines()
    assert (code, lines[-1]) == (0, "3 dead")
    assert [line.split()[0] for line in lines[:-1]] == ["d00005", "d00002", "d00000"]
    assert lines[0].endswith("AAPL gapper  HTTP 500")
    assert tell("list", "--state", "held", "--url", server)[1] == "no deliveries\n"

    assert tell("replay", "d00001", "--url", server) == (0, "d00001 will be sent again\n", "")
    assert httpx.get(f"{server}/api/v1/deliveries/d00001", trust_env=False).json()["state"] == "pending"
    code, _, complaint = tell("replay", "d00001", "--url", server)
    assert (code, "what is dead or sent can be sent again" in complaint) == (1, True)
    code, _, complaint = tell("replay", "none", "--url", server)
    assert (code, "there is no delivery none" in complaint) == (1, True)

    said = tell("replay", "--dead", "--channel", "new", "--url", server, "--json")[1]
    assert json.loads(said) == {"replayed": ["d00005"]}
    assert tell("replay", "--dead", "--url", server) == (0, "2 dead letters will be sent again\n", "")
    assert tell("replay", "--dead", "--url", server)[1] == "0 dead letters will be sent again\n"
    assert {each["delivery_id"] for each in listed(tell, server, "--state", "pending")} == {
        f"d{n:05}" for n in (0, 1, 2, 5)
    }


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("list --state lost", "--state: 'lost' is none of: pending, held, sent, dead, digested"),
        ("list --limit 0", "--limit: 0 is not between 1 and 100000"),
        ("list --url nowhere", "--url: 'nowhere' is not an address such as http://127.0.0.1:8000"),
        ("replay", "name one delivery, or give --dead for all dead letters"),
        ("replay x --dead", "name one delivery, or give --dead for all dead letters"),
        ("replay x --channel c", "--channel goes with --dead"),
    ],
)
def test_what_cannot_be_asked_is_one_line(tell: Tell, words: str, says: str) -> None:
    assert tell(*words.split()) == (2, "", f"tapewatch: {says}\n")


@pytest.mark.parametrize(
    "body", [b"<html>", b"[]", b"{}", b'{"items": 5, "next_cursor": null}', b'{"items": [1], "next_cursor": null}']
)
def test_server_that_is_something_else_is_one_line(tell: Tell, body: bytes) -> None:
    with answering([(200, {}, body)]) as url:
        for words in (("list",), ("replay", "--dead")):
            code, said, complaint = tell(*words, "--url", url)
            assert (code, said, complaint.count("\n")) == (1, "", 1)
            assert "not as a tapewatch of this release does" in complaint


def test_limit_of_the_server_is_waited_for(tell: Tell) -> None:
    page = json.dumps({"items": [], "next_cursor": None}).encode()
    with answering([(429, {"Retry-After": "1"}, b"{}"), (200, {}, page)]) as url:
        assert listed(tell, url) == []
    with answering([(429, {"Retry-After": "3600"}, b'{"detail": "too many"}')]) as url:
        code, _, complaint = tell("list", "--url", url)
        assert (code, "too many" in complaint) == (2, True)
