"""Files of secrets: whose eyes they are for, and which commands take the store from one."""

import os
import sys
from pathlib import Path

import pytest

from tapewatch.cli import main
from tapewatch.errors import ConfigError
from tapewatch.private_files import check_private, read_private

US, OUR_GROUP, ROOT = 10_001, 10_001, 0


class File:
    """What the system says of one."""

    def __init__(self, mode: int, *, user: int, group: int) -> None:
        self._said = os.stat_result((0o100000 | mode, 0, 0, 1, user, group, 0, 0, 0, 0))

    def stat(self) -> os.stat_result:
        return self._said


@pytest.mark.parametrize(
    ("mode", "user", "group", "refused"),
    [
        (0o400, US, OUR_GROUP, False),
        (0o600, US, OUR_GROUP, False),
        (0o440, US, OUR_GROUP, True),  # ours, and lent to a group
        (0o440, ROOT, OUR_GROUP, False),  # as Kubernetes mounts it
        (0o640, ROOT, OUR_GROUP, False),
        (0o460, ROOT, OUR_GROUP, True),
        (0o444, ROOT, OUR_GROUP, True),
        (0o440, ROOT, 100, True),  # a group that others are in
        (0o440, ROOT, ROOT, True),
        (0o440, 1_000, OUR_GROUP, True),  # somebody else's
    ],
)
def test_files_of_root_s_may_be_read_by_our_group(
    monkeypatch: pytest.MonkeyPatch, *, mode: int, user: int, group: int, refused: bool
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: US)
    monkeypatch.setattr(os, "getegid", lambda: OUR_GROUP)
    monkeypatch.setattr(os, "getgroups", lambda: [OUR_GROUP, ROOT])
    file: Path = File(mode, user=user, group=group)  # type: ignore[assignment]  # all that is asked of it
    if refused:
        with pytest.raises(ConfigError, match="chmod 600"):
            check_private(file, "--secret-file")
    else:
        check_private(file, "--secret-file")


def test_root_s_own_files_are_for_root_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: ROOT)
    with pytest.raises(ConfigError, match="chmod 600"):
        check_private(File(0o440, user=ROOT, group=os.getegid()), "--secrets")  # type: ignore[arg-type]


def test_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"\xff\xfe")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="is not text"):
        read_private(path, "--secret-file")


def told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["tapewatch", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out + captured.err


@pytest.mark.parametrize(
    ("text", "mode", "refused"),
    [
        ('bus = "redis://:planted@127.0.0.1:1/0"', 0o644, True),
        ('store = "postgresql://user:planted@127.0.0.1:1/d"', 0o640, True),
        ('bus = "redis+sentinel://a:1,b:2/tape/0?sentinel_password=planted"', 0o604, True),
        ('bus = "redis://:planted@127.0.0.1:1/0"', 0o400, False),
        ('bus = "redis://127.0.0.1:1/0"\nstore = "postgresql://user@127.0.0.1:1/d"', 0o644, False),
        ('bus = "redis+sentinel://user@127.0.0.1:1,127.0.0.1:2/tape/0"', 0o644, False),
    ],
)
def test_options_with_a_password_are_for_their_owner_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    *,
    text: str,
    mode: int,
    refused: bool,
) -> None:
    path = tmp_path / "tapewatch.toml"
    path.write_text(f"{text}\npartitions = 0\n")
    path.chmod(mode)
    code, said = told(monkeypatch, capsys, "run", "bars", "--config", str(path))
    assert (code, "others may read" in said, "planted" in said) == (2, refused, False)


def test_commands_take_the_store_from_the_file_of_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, shared, own = tmp_path / "tapewatch.toml", tmp_path / "shared", tmp_path / "own"
    path.write_text(f'bus = "redis://127.0.0.1:1/0"\nstore = "{shared}"\nfeed = "synthetic"\n')
    password = tmp_path / "password"
    password.write_text("correct horse battery staple\n")
    monkeypatch.setenv("TAPEWATCH_CONFIG", str(path))
    assert told(monkeypatch, capsys, "db", "upgrade") == (0, "the store at --store is up to date\n")
    code, _ = told(monkeypatch, capsys, "user", "add", "ann", "--password-file", str(password))
    assert (code, (shared / "tapewatch.db").exists()) == (0, True)
    assert "ann" in told(monkeypatch, capsys, "user", "list")[1]
    assert told(monkeypatch, capsys, "user", "list", "--data-dir", str(own)) == (0, "")  # what is typed goes before
    assert told(monkeypatch, capsys, "user", "list", "--store", str(own)) == (0, "")
    monkeypatch.setenv("TAPEWATCH_STORE", str(own))
    assert told(monkeypatch, capsys, "user", "list") == (0, "")


def test_file_of_options_that_is_away_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TAPEWATCH_CONFIG", "/nowhere.toml")
    code, said = told(monkeypatch, capsys, "user", "list")
    assert (code, said.count("\n"), "/nowhere.toml" in said) == (2, 1, True)
