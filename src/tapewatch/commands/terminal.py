"""What the commands share: options, files, progress bars, and running what is asynchronous."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tapewatch.errors import Invalid, TapewatchError

JsonFlag = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Where the store is kept.")]

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
