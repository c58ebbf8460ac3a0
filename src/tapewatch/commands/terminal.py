"""What the commands share: options, files, progress bars, and running what is asynchronous."""

import asyncio
import os
import re
import tomllib
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tapewatch.errors import ConfigError, Invalid, TapewatchError
from tapewatch.private_files import check_private

CONFIG_VARIABLE = "TAPEWATCH_CONFIG"
_PASSWORD = re.compile(r":[^@/]+@|password=")


def read_settings(path: Path) -> dict[str, Any]:
    """The file of options of `tapewatch run`. One with a password in it must be its owner's alone."""
    try:
        settings = tomllib.loads(read(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config: {path} is not TOML: {error}") from None
    addresses = (settings.get(name) for name in ("bus", "store", "replica"))
    if any(isinstance(url, str) and _PASSWORD.search(url) for url in addresses):
        check_private(path, "--config")
    return settings


def _address(context: typer.Context, parameter: typer.CallbackParam, given: str | None) -> str | None:
    """What the processes of `tapewatch run` use, where neither the command line nor the environment names another."""
    path = os.environ.get(CONFIG_VARIABLE)
    if given is not None or not path or context.params.get("data_dir") is not None:
        return given
    address = read_settings(Path(path)).get(parameter.name or "")
    return address if isinstance(address, str) else None


JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where the store is kept.")]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store", envvar="TAPEWATCH_STORE", callback=_address, help="A shared store, postgresql://…, not a folder."
    ),
]
BusUrl = Annotated[
    str | None, typer.Option("--bus", envvar="TAPEWATCH_BUS", callback=_address, help="A shared Redis, redis://…")
]

errors = Console(stderr=True, highlight=False)


def read(path: Path) -> bytes:
    """A file's content; `Invalid` names the file that cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise Invalid(str(path), f"cannot be read: {error.strerror}") from None


@contextmanager
def progress(unit: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, nothing elsewhere; yields a function of (done, total)."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task(unit, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine; a group of one error is that error."""
    import uvloop

    try:
        with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(work)
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise error from (None if isinstance(error, TapewatchError) else group)
