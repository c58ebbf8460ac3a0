"""Looks at this machine and says what to mend before `tapewatch up`.

Owns the checks, each one sentence. It changes nothing that stays, opens no connection to anywhere, and never raises for
what it finds: a check that fails is a finding.
"""

import asyncio
import os
import shutil
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from importlib import import_module
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from zoneinfo import ZoneInfo

from tapewatch.config import UpConfig
from tapewatch.errors import TapewatchError

OLDEST_PYTHON = (3, 11)
OLDEST_SQLITE = (3, 24, 0)
"""The first with upserts (ON CONFLICT DO UPDATE); write-ahead logs are older."""
NEEDED_BYTES = 1_000_000_000
FIRST_RELEASE = date(2025, 1, 1)
"""A clock that stands before this is wrong."""
WARNING_DAYS = 60


@dataclass(frozen=True, slots=True)
class Finding:
    """One check: is it as it should be, and a sentence about it."""

    check: str
    ok: bool
    says: str


def examine(data_dir: Path, *, bus: str | None = None, store: str | None = None) -> list[Finding]:
    """All checks. `data_dir` is where the store is kept; it need not exist yet. `bus` and `store` are the addresses of
    servers, where there are some.
    """
    checks: list[tuple[str, Callable[[], tuple[bool, str]]]] = [
        ("Python", check_python),
        ("numpy", lambda: check_library("numpy")),
        ("pyarrow", lambda: check_library("pyarrow")),
        ("page", lambda: check_page(Path(str(files("tapewatch") / "serve" / "ui")))),
        ("clock", lambda: check_clock(datetime.now(UTC).date())),
        ("time zone", check_time_zone),
        ("calendar", lambda: check_calendar(datetime.now(UTC).date())),
        ("data folder", lambda: check_folder(data_dir)),
        ("disk", lambda: check_disk(data_dir)),
        ("SQLite", check_sqlite),
        ("store", lambda: check_store(data_dir / "tapewatch.db")),
        ("port", lambda: check_port(UpConfig(data_dir=data_dir).port)),
    ]
    if bus:
        checks.append(("bus", lambda: check_bus(bus)))
    if store:
        checks.append(("shared store", lambda: check_shared_store(store)))
    return [_finding(name, check) for name, check in checks]


def _finding(name: str, check: Callable[[], tuple[bool, str]]) -> Finding:
    try:
        ok, says = check()
    except Exception as error:  # noqa: BLE001  a broken machine fails in ways that nobody lists
        ok, says = False, f"cannot be checked: {type(error).__name__}: {error}"
    return Finding(name, ok, says)


def check_python() -> tuple[bool, str]:
    here = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] < OLDEST_PYTHON:
        return False, f"{here} is too old; install {'.'.join(map(str, OLDEST_PYTHON))} or newer"
    return True, here


def check_library(name: str) -> tuple[bool, str]:
    try:
        import_module(name)
    except ImportError as error:
        return False, f"cannot be imported ({error}); run `make setup`"
    return True, version(name)


def check_page(ui: Path) -> tuple[bool, str]:
    if not (ui / "index.html").is_file():
        return False, "not built; run `make web`. Without it REST and WebSocket work"
    return True, "built"


def check_clock(today: date) -> tuple[bool, str]:
    if today < FIRST_RELEASE:
        return False, f"says {today}, which is before this program was written; set the clock"
    started_ns = time.monotonic_ns()
    wall_ns = time.time_ns()
    ran_ns, apart_ns = time.monotonic_ns() - started_ns, time.time_ns() - wall_ns
    if apart_ns < 0 or abs(apart_ns - ran_ns) > 1_000_000_000:
        return False, "jumps; let one program keep it, such as chrony or systemd-timesyncd"
    return True, f"says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"


def check_time_zone() -> tuple[bool, str]:
    new_york = ZoneInfo("America/New_York")
    winter, summer = (datetime(2025, month, 15, tzinfo=new_york).utcoffset() for month in (1, 7))
    if winter is None or summer is None or (summer - winter).total_seconds() != 3600:
        return False, "the data of New York's time zone are wrong; reinstall the tzdata package"
    return True, "New York's is known"


def check_calendar(today: date) -> tuple[bool, str]:
    from tapewatch.nyse import trading_days

    last = datetime.fromtimestamp(int(trading_days().open_ns[-1]) // 1_000_000_000, UTC).date()
    left = (last - today).days
    if left < 0:
        return False, f"the NYSE's trading days are known only until {last}; update exchange-calendars"
    if left < WARNING_DAYS:
        return False, f"the NYSE's trading days are known until {last}, {left} days on; update exchange-calendars"
    return True, f"the NYSE's trading days are known until {last}"


def check_folder(data_dir: Path) -> tuple[bool, str]:
    place = _existing(data_dir)
    if not place.is_dir():
        return False, f"{place} is a file, not a folder; choose another --data-dir"
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return False, f"{place} cannot be written to: {error.strerror}; choose another --data-dir"
    return True, f"{data_dir} can be written to" if place == data_dir else f"{data_dir} will be created"


def check_disk(data_dir: Path) -> tuple[bool, str]:
    free = shutil.disk_usage(_existing(data_dir)).free
    says = f"{free / 1e9:.1f} GB free"
    if free < NEEDED_BYTES:
        return False, f"{says}; a trading day of bars and alerts needs {NEEDED_BYTES / 1e9:.0f} GB"
    return True, says


def _existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    return next(place for place in _upwards(path.absolute()) if os.path.lexists(place))


def _upwards(path: Path) -> Iterator[Path]:
    yield path
    yield from path.parents


def check_sqlite() -> tuple[bool, str]:
    here = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        return False, f"{here} is too old; install {'.'.join(map(str, OLDEST_SQLITE))} or newer"
    return True, here


def check_store(database: Path) -> tuple[bool, str]:
    """Against the steps that this release knows."""
    if not database.exists():
        return True, "will be created"
    from alembic.script import ScriptDirectory

    from tapewatch.adapters import migrations

    steps = ScriptDirectory(str(Path(migrations.__file__).parent))
    known, newest = {step.revision for step in steps.walk_revisions()}, steps.get_current_head()
    try:
        connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
        try:
            found = {str(revision) for (revision,) in connection.execute("SELECT version_num FROM alembic_version")}
        finally:
            connection.close()
    except sqlite3.Error as error:
        return False, f"{database} cannot be read as a store ({error}); restore a backup, or move the file away"
    if found - known:
        return False, f"revision {', '.join(sorted(found))} is a newer release's; install that release"
    if newest not in found:
        return True, f"revision {', '.join(sorted(found)) or 'none'}; will be upgraded to {newest}"
    return True, f"revision {newest}"


def check_bus(address: str) -> tuple[bool, str]:
    from tapewatch.adapters.redis import RedisBus

    async def ask() -> None:
        bus = RedisBus(address)
        try:
            await bus.tail("ticks:0")
        finally:
            await bus.close()

    return _asked(ask, "answers, and its version and the password are right")


def check_shared_store(address: str) -> tuple[bool, str]:
    from tapewatch.adapters.sql import SqlStore

    async def ask() -> None:
        store = SqlStore(address)
        try:
            await store.ruleset_number()
        finally:
            await store.close()

    return _asked(ask, "answers, and has the tables of this release")


def _asked(ask: Callable[[], Coroutine[None, None, None]], well: str) -> tuple[bool, str]:
    try:
        asyncio.run(ask())
    except TapewatchError as error:
        return False, str(error)
    return True, well


def check_port(port: int) -> tuple[bool, str]:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            return False, f"{port} cannot be listened on: {error.strerror}; end what uses it, or choose another --port"
    return True, f"{port} is free"
