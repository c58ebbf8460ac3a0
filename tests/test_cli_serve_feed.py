"""`tapewatch serve-feed` as people type it: what it says, what it answers to mistakes, and how it ends."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from tapewatch.cli import main

OPEN_NS = 1_741_012_200_000_000_000
"""2025-03-03 09:30 in New York."""


@pytest.fixture
def tape(tmp_path: Path) -> Path:
    """A hundred trades of one stock within ten seconds."""
    n = range(100)
    table = {
        "symbol": ["AAA" for _ in n],
        "ts_ns": [OPEN_NS + place * 100_000_000 for place in n],
        "price": [10.0 + place / 100 for place in n],
        "size": [100.0 for _ in n],
        "conditions": ["@" for _ in n],
        "exchange": ["Q" for _ in n],
        "tape": ["C" for _ in n],
    }
    pq.write_table(pa.table(table), tmp_path / "tape.parquet")
    return tmp_path / "tape.parquet"


@asynccontextmanager
async def serving(*words: object, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """The installed program as a shell starts it, and the address that it prints."""
    program = Path(sys.executable).parent / "tapewatch"
    process = await asyncio.create_subprocess_exec(
        program,
        "serve-feed",
        *map(str, words),
        "--port",
        "0",
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(30):
            line = (await process.stdout.readline()).decode()
        assert line.endswith("  (Ctrl+C stops it)\n"), line
        yield process, line.split()[2]
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def end(process: asyncio.subprocess.Process, number: int) -> tuple[str, str]:
    """What else it said; it must end at once and well."""
    process.send_signal(number)
    async with asyncio.timeout(10):
        out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode(), err.decode()


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_alpaca_is_served_until_somebody_stops_it(tape: Path, number: int) -> None:
    async with serving("alpaca", tape, "--speed", "max") as (process, url):
        assert url.endswith("/v2/sip")
        async with connect(url) as connection:
            for message in ({"action": "auth", "key": "K", "secret": "S"}, {"action": "subscribe", "trades": ["*"]}):
                await connection.recv()
                await connection.send(json.dumps(message))
            await connection.recv()
            assert len(json.loads(await connection.recv())) == 100
            out, err = await end(process, number)
    assert "100 of 100 rows played, 100 sent | " in out
    assert (out.count("\n"), err) == (1, "")


@pytest.mark.anyio
async def test_massive_is_served_with_the_key_of_the_environment(tape: Path) -> None:
    async with serving("massive", tape, TAPEWATCH_SERVE_KEY="planted-key") as (process, url):
        for key, answer in (("other", "auth_failed"), ("planted-key", "auth_success")):
            async with connect(url) as connection:
                await connection.recv()
                await connection.send(json.dumps({"action": "auth", "params": key}))
                assert json.loads(await connection.recv())[0]["status"] == answer
        out, err = await end(process, signal.SIGINT)
    assert out.startswith("waiting for the first subscription | 0 of 100 rows played")
    assert "planted-key" not in out + err


@pytest.mark.anyio
async def test_faults_and_seed_are_taken_from_the_words(tape: Path) -> None:
    words = ("--speed", "max", "--fault", "drop:every=100", "--fault", "refuse:first=1", "--seed", 7)
    async with serving("massive", tape, *words) as (process, url):
        with pytest.raises(InvalidStatus):
            await connect(url)
        async with connect(url) as connection:
            await connection.recv()
            for action, params in (("auth", "K"), ("subscribe", "T.*")):
                await connection.send(json.dumps({"action": action, "params": params}))
                await connection.recv()
            assert len(json.loads(await connection.recv())) == 100
            await connection.wait_closed()
            assert connection.close_code == 1006
        await end(process, signal.SIGINT)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["nasdaq", "TAPE"], "'nasdaq' is not a provider; there are: alpaca, massive, databento"),
        (["alpaca"], "missing argument 'tapes' (see tapewatch serve-feed --help)"),
        (["alpaca", "none.parquet"], "none.parquet: no such file"),
        (["alpaca", "TAPE", "--speed", "fast"], "--speed: 'fast' is neither a number above zero nor max"),
        (["alpaca", "TAPE", "--speed", "nan"], "--speed: 'nan' is neither"),
        (["alpaca", "TAPE", "--speed", "inf"], "--speed: 'inf' is neither"),
        (["alpaca", "TAPE", "--speed", "0"], "--speed: '0' is neither"),
        (["alpaca", "TAPE", "--start", "now"], "--start: 'now' is not one of: on-subscribe, at-once"),
        (["alpaca", "TAPE", "--while-away", "sleep"], "--while-away: 'sleep' is not one of: go-on, hold"),
        (["alpaca", "TAPE", "--host", "0.0.0.0"], "--host: '0.0.0.0' is not a loopback address"),
        (["alpaca", "TAPE", "--port", "70000"], "--port: 70000 is not a port (0 to 65535)"),
        (["massive", "TAPE", "--fault", "explode"], "--fault: unknown fault 'explode'; there are: drop, stall"),
        (["massive", "TAPE", "--fault", "drop:every=x"], "--fault drop: every: 'x' is not a whole number above zero"),
        (["massive", "TAPE", "--fault", "drop"], "--fault drop: needs every or p or at or seconds"),
    ],
)
def test_mistake_gets_one_line(
    tape: Path, words: list[str], named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed: list[Any] = [str(tape) if word == "TAPE" else word for word in words]
    monkeypatch.setattr(sys, "argv", ["tapewatch", "serve-feed", *typed])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert named in said.err
    assert said.err.count("\n") == 1


def test_port_that_is_taken_is_named(
    tape: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["tapewatch", "serve-feed", "alpaca", str(tape), "--port", str(port)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == f"tapewatch: --port: cannot listen on 127.0.0.1:{port}: Address already in use\n"
