"""The doctor: what it finds on a machine that lacks something."""

import json
import shutil
import socket
import sqlite3
import sys
from collections import namedtuple
from datetime import date
from pathlib import Path

import pytest
from servers import free_port

from tapewatch import doctor
from tapewatch.cli import main


def store(path: Path, revision: str | None) -> Path:
    connection = sqlite3.connect(path)
    if revision is not None:
        connection.execute("CREATE TABLE alembic_version (version_num TEXT)")
        connection.execute("INSERT INTO alembic_version VALUES (?)", [revision])
        connection.commit()
    connection.close()
    return path


def test_every_check_has_a_name_of_its_own_and_says_something(tmp_path: Path) -> None:
    findings = doctor.examine(tmp_path / "data")
    names = [finding.check for finding in findings]
    assert names == [
        "Python",
        "numpy",
        "pyarrow",
        "page",
        "clock",
        "time zone",
        "calendar",
        "data folder",
        "disk",
        "SQLite",
        "store",
        "port",
    ]
    assert all(finding.says and "\n" not in finding.says for finding in findings)
    assert all(finding.ok for finding in findings if finding.check not in {"page", "disk", "port"}), findings
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("where", ["config", "environment", "command line"])
def test_servers_are_asked_wherever_their_addresses_stand(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bus, store = f"redis://127.0.0.1:{free_port()}/0", f"postgresql://u@127.0.0.1:{free_port()}/d"
    words = ["doctor", "--json"]
    if where == "config":
        (tmp_path / "config.toml").write_text(f'bus = "{bus}"\nstore = "{store}"\npartitions = 4\n')
        monkeypatch.setenv("TAPEWATCH_CONFIG", str(tmp_path / "config.toml"))
    elif where == "environment":
        monkeypatch.setenv("TAPEWATCH_BUS", bus)
        monkeypatch.setenv("TAPEWATCH_STORE", store)
    else:
        words += ["--bus", bus, "--store", store]
    monkeypatch.setenv("TAPEWATCH_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setattr(sys, "argv", ["tapewatch", *words])
    with pytest.raises(SystemExit):
        main()
    said = {each["check"]: each for each in json.loads(capsys.readouterr().out)["findings"]}
    for check in ("bus", "shared store"):
        assert not said[check]["ok"]
        assert "127.0.0.1" in said[check]["says"]


def test_check_that_breaks_is_a_finding() -> None:
    def check() -> tuple[bool, str]:
        raise RuntimeError("broken")

    assert doctor._finding("x", check) == doctor.Finding("x", ok=False, says="cannot be checked: RuntimeError: broken")


def test_page_is_built_or_says_how(tmp_path: Path) -> None:
    ok, says = doctor.check_page(tmp_path)
    assert not ok
    assert "`make web`" in says
    (tmp_path / "index.html").write_text("")
    assert doctor.check_page(tmp_path) == (True, "built")


def test_library_that_is_missing_is_named() -> None:
    ok, says = doctor.check_library("numpyy")
    assert not ok
    assert "No module named 'numpyy'" in says


@pytest.mark.parametrize(
    ("today", "ok"), [(date(2000, 1, 1), False), (date(1970, 1, 1), False), (date(2026, 1, 1), True)]
)
def test_clock_of_the_last_century_is_wrong(today: date, ok: bool) -> None:  # noqa: FBT001
    assert doctor.check_clock(today)[0] is ok


def test_calendar_that_ends_is_said_before_it_ends() -> None:
    assert doctor.check_calendar(date(2025, 3, 3))[0]
    ok, says = doctor.check_calendar(date(2099, 1, 1))
    assert not ok
    assert says.endswith("update exchange-calendars")


def test_data_folder_that_cannot_be_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.check_folder(tmp_path / "new" / "deeper") == (True, f"{tmp_path / 'new' / 'deeper'} will be created")
    assert doctor.check_folder(tmp_path) == (True, f"{tmp_path} can be written to")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        ok, says = doctor.check_folder(place)
        assert not ok
        assert f"{tmp_path / 'file'} is a file, not a folder" in says


def test_full_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")  # noqa: PYI024  the shape of shutil's own
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10**10, 10**10, 5 * 10**8))
    ok, says = doctor.check_disk(tmp_path / "new")
    assert not ok
    assert says.startswith("0.5 GB free; ")


def test_store_is_judged_by_its_revision(tmp_path: Path) -> None:
    assert doctor.check_store(tmp_path / "none.db") == (True, "will be created")
    assert doctor.check_store(store(tmp_path / "now.db", "0001"))[0]
    ok, says = doctor.check_store(store(tmp_path / "new.db", "9999"))
    assert not ok
    assert says == "revision 9999 is a newer release's; install that release"


def test_file_that_is_no_store_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("nothing of the kind " * 100)
    for path in (tmp_path / "text.db", store(tmp_path / "other.db", None), tmp_path):
        ok, says = doctor.check_store(path)
        assert not ok
        assert "cannot be read as a store" in says


def test_port_in_use_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        assert doctor.check_port(port)[0] is False
        assert "Address already in use" in doctor.check_port(port)[1]
    assert doctor.check_port(port) == (True, f"{port} is free")
