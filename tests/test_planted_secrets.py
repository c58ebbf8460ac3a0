"""Secrets that are planted wherever one may stand, and whatever the program then says: it is none of them."""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tapewatch.cli import main
from tapewatch.config import RunConfig

PLANTED = "Pl4nted-by-a-test-9d8b35264f1c0e7a"
REDIS = f"redis://user:{PLANTED}@127.0.0.1:1/0"
DATABASE = f"postgresql://user:{PLANTED}@127.0.0.1:1/tapewatch"
KEYS = {"APCA_API_KEY_ID": f"{PLANTED}-id", "APCA_API_SECRET_KEY": PLANTED}

Say = Callable[..., tuple[int, str]]


@pytest.fixture
def say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Exit status, and all that a command printed."""
    monkeypatch.chdir(tmp_path)
    for name in ("TAPEWATCH_BUS", "TAPEWATCH_STORE", "TAPEWATCH_SECRET", "TAPEWATCH_TOKEN", *KEYS):
        monkeypatch.delenv(name, raising=False)

    def say(*words: str, typed: str = "", **environment: str) -> tuple[int, str]:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["tapewatch", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out + captured.err

    return say


FILES = {
    "mine.rules": "rule a when price > 1\n",
    "bus.toml": f'bus = "{REDIS}"\nstore = "{DATABASE}"\nreplica = "{DATABASE}"\n',
    "unclosed.toml": f'bus = "{REDIS}\n',
    "number.toml": f'port = "{PLANTED}"\n',
    "unknown.toml": f'buss = "{REDIS}"\n',
    "table.toml": f'[bus]\nurl = "{REDIS}"\n',
    "keys.toml": f'APCA_API_KEY_ID = "{PLANTED}"\nAPCA_API_SECRET_KEY = {PLANTED}\n',
    "open.toml": f'APCA_API_KEY_ID = "{PLANTED}"\n',
    "secret": f"{PLANTED} {PLANTED}\n",
    "secrets": f"{PLANTED}\n{PLANTED} until never\n",
    "password": f"{PLANTED}\x00\n",
}
PUBLIC = {"open.toml", "mine.rules"}

WRONG: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "option of a Redis URL": (("run", "bars", "--bus", f"{REDIS}?x={PLANTED}", "--store", DATABASE), {}),
    "Redis URL of another kind": (("run", "bars", "--bus", f"http://u:{PLANTED}@h", "--store", DATABASE), {}),
    "port of the database is the password's end": (
        ("run", "bars", "--bus", REDIS, "--store", f"postgresql://user:pass@word:{PLANTED}/tapewatch"),
        {},
    ),
    "database of another kind": (("run", "bars", "--bus", REDIS, "--store", f"mysql://u:{PLANTED}@h/d"), {}),
    "address that is cut off": (("user", "list", "--store", f"postgres://u:{PLANTED}@[::1/d"), {}),
    "database that is away": (("user", "list", "--store", DATABASE), {}),
    "file of options that is not closed": (("run", "bars", "--config", "unclosed.toml"), {}),
    "file of options with a text for a number": (("run", "bars", "--config", "number.toml"), {}),
    "file of options with another name": (("run", "bars", "--config", "unknown.toml"), {}),
    "file of options with a table": (("run", "bars", "--config", "table.toml"), {}),
    "role that is none, options from the environment": (
        ("run", "broker"),
        {"TAPEWATCH_BUS": REDIS, "TAPEWATCH_STORE": DATABASE, "TAPEWATCH_STORE_REPLICA": DATABASE},
    ),
    "feed's address with a user": (("up", "--feed", "alpaca", "--feed-url", f"wss://u:{PLANTED}@h/"), KEYS),
    "feed's address with a key": (("up", "--feed", "alpaca", "--feed-url", f"wss://h/?apiKey={PLANTED}"), KEYS),
    "feed's address without TLS": (("up", "--feed", "alpaca", "--feed-url", "ws://feed.example.com/"), KEYS),
    "key with a space": (("up", "--feed", "alpaca"), KEYS | {"APCA_API_SECRET_KEY": f"{PLANTED} x"}),
    "keys in a file that is not TOML": (("up", "--feed", "alpaca", "--secrets", "keys.toml"), {}),
    "keys in a file that others may read": (("up", "--feed", "alpaca", "--secrets", "open.toml"), {}),
    "secret in the environment that is weak": (("up",), {"TAPEWATCH_SECRET": PLANTED[:20]}),
    "secret with a space in its file": (("up", "--secret-file", "secret"), {}),
    "secret whose older one has no end": (("up", "--secret-file", "secrets"), {}),
    "server's address with a user": (("rules", "diff", "mine.rules", "--url", f"http://u:{PLANTED}@127.0.0.1:1"), {}),
    "server's address with a query": (("rules", "diff", "mine.rules", "--url", f"http://127.0.0.1:1/?t={PLANTED}"), {}),
    "token with a line end": (
        ("rules", "diff", "mine.rules", "--url", "http://127.0.0.1:1"),
        {"TAPEWATCH_TOKEN": f"{PLANTED}\nx"},
    ),
    "server that is away": (
        ("rules", "diff", "mine.rules", "--url", "http://127.0.0.1:1"),
        {"TAPEWATCH_TOKEN": PLANTED},
    ),
    "password that is none": (("user", "add", "ann", "--password-file", "password", "--data-dir", "data"), {}),
}


@pytest.fixture
def files(tmp_path: Path) -> None:
    for name, text in FILES.items():
        path = tmp_path / name
        path.write_text(text)
        path.chmod(0o644 if name in PUBLIC else 0o600)


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(("words", "environment"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_with_a_secret_is_one_line_without_it(
    say: Say, words: tuple[str, ...], environment: dict[str, str]
) -> None:
    code, said = say(*words, **environment)
    assert code in {1, 2}
    assert said.startswith("tapewatch: ")
    assert said.count("\n") == 1
    assert PLANTED not in said
    assert PLANTED[:20] not in said


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("words", "environment"),
    [
        (("run", "--help"), {"TAPEWATCH_BUS": REDIS, "TAPEWATCH_STORE": DATABASE, "TAPEWATCH_STORE_REPLICA": DATABASE}),
        (("run", "--config", "bus.toml", "--help"), {}),
        (("user", "add", "--help"), {"TAPEWATCH_STORE": DATABASE, "TAPEWATCH_SECRET": PLANTED}),
        (("up", "--help"), KEYS | {"TAPEWATCH_SECRET": PLANTED}),
    ],
    ids=["environment", "file of options", "store of accounts", "keys"],
)
def test_help_shows_no_secret(
    say: Say, words: tuple[str, ...], environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")  # so that nothing is cut off
    code, said = say(*words, **environment)
    assert code == 0
    assert "Pl4nted" not in said


def test_doctor_names_servers_without_their_passwords(say: Say) -> None:
    environment = {"TAPEWATCH_BUS": REDIS, "TAPEWATCH_STORE": DATABASE, "TAPEWATCH_SECRET": PLANTED, **KEYS}
    code, said = say("doctor", "--data-dir", "data", **environment)
    assert (code, "127.0.0.1:1" in said, PLANTED in said) == (1, True, False)


def test_text_of_a_configuration_has_no_password() -> None:
    config = RunConfig(roles=("api",), bus=REDIS, store=DATABASE, replica=DATABASE)
    assert PLANTED not in f"{config!r} {config}"
