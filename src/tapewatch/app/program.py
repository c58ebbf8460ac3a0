"""What every long-running program of ours has: signals that stop it, a listener, a server, and a tuned interpreter."""

import asyncio
import contextlib
import ctypes
import gc
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterator

import structlog
import uvicorn

from tapewatch.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_APART_BYTES = {True: 64 * 1024, False: 32 * 1024 * 1024}
_HELD_BYTES = 256 * 1024 * 1024
_CRASH_S = 5.0
_OTHER_FILES = 256
"""Beside the sockets of clients: requests, servers, the store."""
_QUIET = ("alembic", "uvicorn", "httpx")
"""Libraries whose news is of no use to a trader; their warnings are."""

log = structlog.get_logger("tapewatch")


def tune_process(*, thrifty: bool) -> None:
    """For a process that must answer within milliseconds beside the store's thread, for days.

    1. Nothing that lives now will ever be garbage; to look through it again and again would stop the loop for a tenth
       of a second.
    2. The thread that saves ten thousand bars gives the loop its turn after half a millisecond, not five.
    3. A `thrifty` process gets columns of ten thousand symbols from the kernel and gives them back. In the heap they
       would settle between small arrays that live for minutes, and memory would grow by a quarter in ten minutes. The
       others keep what they once had: a step takes two thirds of the time, because no page is cleared for it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)
    sys.setswitchinterval(0.0005)
    with contextlib.suppress(OSError, AttributeError):  # only glibc has these knobs
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_M_MMAP_THRESHOLD, _APART_BYTES[thrifty])
        if not thrifty:
            libc.mallopt(_M_TRIM_THRESHOLD, _HELD_BYTES)
        libc.mallopt(_M_ARENA_MAX, 2)


def allow_open_files(clients: int) -> None:
    """As many as that many sockets need, where the system lets a process raise its own limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + _OTHER_FILES
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("not all clients may connect: raise ulimit -n", max_clients=clients, open_files=allowed)


def leave_no_core() -> None:
    """A process that crashes leaves no image of its memory on a disk: passwords and tokens are in it."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


class Server(uvicorn.Server):
    """uvicorn that says when it listens, and leaves signals to `run_up`: its own way ends the process before the roles
    have saved what is pending.
    """

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.serving = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.serving.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def leave_no_ruin(task: "asyncio.Task[None]") -> None:
    """A callback for tasks that must not end by an error: the process ends, though others of its tasks may be stuck.
    Whoever watches it starts another, which takes up where this one ended.
    """
    if not task.cancelled() and task.exception() is not None:
        asyncio.get_running_loop().call_later(_CRASH_S, os._exit, 1)


def quieten() -> None:
    for library in _QUIET:
        logging.getLogger(library).setLevel(logging.WARNING)


@contextlib.contextmanager
def stopping_signals() -> Iterator[asyncio.Event]:
    """An event that SIGINT and SIGTERM set."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    try:
        yield stop
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen()  # at once: until somebody listens, a second process can bind the same port
    except OSError as error:
        listener.close()
        raise ConfigError(f"--port: cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
