"""`tapewatch user` and `tapewatch token` over a data folder."""

import io
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tapewatch.accounts.secret import kept_keys, load_keys
from tapewatch.accounts.tokens import Keys, parse_api_token
from tapewatch.cli import app, main
from tapewatch.errors import ConfigError

PASSWORD = "correct horse battery"  # noqa: S105  # of tests
SECRET = "5f1c0e7a9b3d2846c1f0a7e9d8b35264"  # noqa: S105
OLD_SECRET = "0b7d42f5a9c81e63d5f0a2b4c6e8917d"  # noqa: S105

Tell = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TAPEWATCH_STORE", "TAPEWATCH_SECRET", "TAPEWATCH_DATA_DIR", "TAPEWATCH_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tell:
    """Exit status, what it printed, and what it complained of."""

    def tell(*words: object, typed: str = "") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tapewatch", *map(str, words), "--data-dir", str(tmp_path / "data")])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, captured.out, captured.err

    return tell


def told(tell: Tell, *words: object, typed: str = "") -> Any:
    code, said, _ = tell(*words, "--json", typed=typed)
    assert code == 0
    return json.loads(said)


def test_user_is_added_listed_and_changed(tell: Tell) -> None:
    ann = told(tell, "user", "add", "Ann", "--role", "admin", typed=f"{PASSWORD}\n")
    assert (ann["name"], ann["role"], ann["disabled"]) == ("Ann", "admin", False)
    assert tell("user", "add", "bob", typed=PASSWORD) == (0, "bob may sign in, as trader\n", "")
    assert told(tell, "user", "role", "BOB", "viewer")["role"] == "viewer"
    assert told(tell, "user", "disable", "bob")["disabled"] is True
    assert tell("user", "list")[1].splitlines() == [
        "Ann                      admin",
        "bob                      viewer     disabled",
    ]
    assert told(tell, "user", "enable", "bob")["disabled"] is False
    assert tell("user", "password", "bob", typed="another password\n") == (0, "bob has another password\n", "")
    assert [user["name"] for user in told(tell, "user", "list")["users"]] == ["Ann", "bob"]


def test_user_of_a_provider_is_added_without_a_password_and_linked(tell: Tell) -> None:
    assert tell("user", "add", "ann", "--no-password") == (0, "ann may sign in, as trader\n", "")
    assert tell("user", "add", "bob", "--no-password", "--password-file", "-")[0] == 2
    identity = ("--issuer", "https://id.example.com", "--subject", "248289761001")
    linked = (0, "248289761001 of https://id.example.com is ann\n", "")
    assert tell("user", "link", "ann", *identity) == linked
    assert tell("user", "link", "ann", *identity) == linked
    told(tell, "user", "add", "bob", typed=PASSWORD)
    code, _, complaint = tell("user", "link", "bob", *identity)
    assert (code, complaint) == (1, "tapewatch: somebody else has this identity\n")
    assert tell("user", "link", "cy", *identity)[0] == 1
    for wrong in (("--issuer", "http://id.example.com"), ("--subject", ""), ("--subject", "a\nb")):
        assert tell("user", "link", "bob", *identity, *wrong)[0] == 2


def test_provider_needs_an_admin_first(tell: Tell) -> None:
    options = ("--oidc-issuer", "https://id.example.com", "--oidc-client-id", "tapewatch")
    code, _, complaint = tell("up", "--port", "0", *options, "--public-url", "https://scan.example.com")
    assert (code, "--oidc-issuer: an admin comes first: tapewatch user add" in complaint) == (2, True)
    code, _, complaint = tell("up", *options)
    assert (code, "--public-url is missing" in complaint) == (2, True)


def test_password_comes_from_a_file(tell: Tell, tmp_path: Path) -> None:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\r\nand a second line\n")
    assert tell("user", "add", "ann", "--password-file", path)[0] == 0
    assert tell("user", "add", "bob", "--password-file", "-", typed=f"{PASSWORD}\n")[0] == 0
    code, _, complaint = tell("user", "add", "cy", "--password-file", tmp_path / "missing")
    assert (code, "cannot be read" in complaint) == (2, True)


def test_password_is_asked_for_twice_on_a_terminal(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    typed = [PASSWORD, PASSWORD, PASSWORD, "something else"]
    monkeypatch.setattr("getpass.getpass", lambda _: typed.pop(0))
    monkeypatch.setattr(io, "StringIO", Terminal)
    assert tell("user", "add", "ann")[0] == 0
    assert tell("user", "add", "bob") == (2, "", "tapewatch: the two passwords differ\n")


@pytest.mark.parametrize(
    ("words", "typed", "code", "says"),
    [
        ("user add ann", "short\n", 2, "password: must have 12 to 256 characters"),
        ("user add ann", "", 2, "password: must have 12 to 256 characters"),
        ("user add ann", "twelve\tletters", 2, "password: has a control character"),
        ("user add ann --role owner", PASSWORD, 2, "--role: 'owner' is none of: viewer, trader, operator, admin"),
        ("user add .ann", PASSWORD, 2, "NAME: must be 1 to 64 letters"),
        ("user add root", PASSWORD, 1, "there is a user root already"),
        ("user disable nobody", "", 1, "there is no user nobody"),
        ("user disable root", "", 1, "this is the last admin; make another one first"),
        ("user role root trader", "", 1, "this is the last admin; make another one first"),
        ("token create --user nobody --name x", "", 1, "there is no user nobody"),
        ("token create --user root --name x --scope all", "", 2, "--scope: 'all' is none of: market:read"),
        ("token create --user root --name x --days 0", "", 2, "--days: 0 is not between 1 and 3650"),
        ("token revoke 00", "", 1, "there is no token 00"),
    ],
)
def test_what_cannot_be_done_is_one_line(tell: Tell, words: str, typed: str, code: int, says: str) -> None:
    tell("user", "add", "root", "--role", "admin", typed=PASSWORD)
    said = tell(*words.split(), typed=typed)
    assert (said[0], said[1]) == (code, "")
    assert says in said[2]
    assert said[2].count("\n") == 1
    assert PASSWORD not in said[2]


def test_token_is_made_listed_and_revoked(tell: Tell) -> None:
    tell("user", "add", "root", "--role", "admin", typed=PASSWORD)
    made = told(tell, "token", "create", "--user", "root", "--name", "x", "--scope", "alerts:read", "--days", 3)
    assert parse_api_token(made["token"]) is not None
    assert (made["user"], made["scopes"]) == ("root", ["alerts:read"])
    code, printed, _ = tell("token", "create", "--user", "root", "--name", "for ever")
    assert (code, parse_api_token(printed.strip()) is not None) == (0, True)
    assert len(told(tell, "token", "list")["tokens"]) == 2
    lines = tell("token", "list")[1]
    assert made["token_id"] in lines
    assert "no end" in lines
    assert made["token"] not in lines
    assert told(tell, "token", "revoke", made["token"]) == {"token_id": made["token_id"], "revoked": True}
    assert [token["name"] for token in told(tell, "token", "list")["tokens"]] == ["for ever"]


def test_help_names_the_commands() -> None:
    for group, commands in (("user", "add list disable enable role password"), ("token", "create list revoke")):
        said = CliRunner().invoke(app, [group, "--help"]).output
        assert all(command in said for command in commands.split())


# -- the secret -------------------------------------------------------------------------------------------------------


def test_secret_is_made_once_and_only_for_its_owner(tmp_path: Path) -> None:
    first = kept_keys(tmp_path)
    path = tmp_path / "secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    token = first.sign(user_id="u", session_id="s", epoch=1, audience="a", now_ns=10**18)
    assert kept_keys(tmp_path).read(token, audience="a", now_ns=10**18).user_id == "u"


def test_secret_is_not_written_through_a_link_of_another(tmp_path: Path) -> None:
    mine, data = tmp_path / "mine", tmp_path / "data"
    mine.write_text("precious")
    data.mkdir()
    (data / f".secret.{os.getpid()}").symlink_to(mine)
    kept_keys(data)
    assert mine.read_text() == "precious"
    assert (data / "secret").stat().st_mode & 0o777 == 0o600
    assert not (data / "secret").is_symlink()


def test_environment_comes_before_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "key"
    path.write_text(f"{OLD_SECRET}\n")
    path.chmod(0o600)
    token = Keys(SECRET).sign(user_id="u", session_id="s", epoch=1, audience="a", now_ns=10**18)
    assert load_keys(None) is None
    monkeypatch.setenv("TAPEWATCH_SECRET", SECRET)
    keys = load_keys(path)
    assert keys is not None
    assert keys.read(token, audience="a", now_ns=10**18).user_id == "u"


def test_secret_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(SECRET)
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600") as caught:
        load_keys(path)
    assert SECRET not in str(caught.value)
    with pytest.raises(ConfigError, match="--secret-file: cannot read"):
        load_keys(tmp_path / "missing")


def test_up_refuses_a_weak_secret(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAPEWATCH_SECRET", "secret")
    code, _, complaint = tell("up", "--port", 0)
    assert code == 2
    assert complaint.startswith("tapewatch: TAPEWATCH_SECRET: a secret has at least 32 bytes")


def test_up_on_every_address_wants_an_account_first(tell: Tell) -> None:
    code, _, complaint = tell("up", "--port", 0, "--host", "0.0.0.0")
    assert code == 2
    assert "accounts come first: tapewatch user add NAME --role admin --data-dir" in complaint
    assert complaint.count("\n") == 1
