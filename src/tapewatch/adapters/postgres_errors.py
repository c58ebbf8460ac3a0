"""What PostgreSQL's errors mean for the caller, by SQLSTATE. No text here shows a password."""

import ssl
from typing import Any

import asyncpg
from sqlalchemy import exc
from sqlalchemy.engine import URL

from tapewatch.errors import ConfigError, TapewatchError, Unavailable

FAILURES: tuple[type[Exception], ...] = (
    exc.DBAPIError,
    exc.TimeoutError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # of a connection that broke between two steps of a statement
    OSError,  # a TimeoutError is one
)

_AWAY = {
    "25006": "it is a read-only standby",
    "25P03": "a transaction took too long",
    "40003": "whether the last write was committed is not known",
    "53300": "it has too many connections",
    "57014": "a statement took too long",
}
"""Each passes, or it is for the server's operator to mend, not for this program's."""
_AWAY_CLASSES = {
    "08": "the connection broke",
    "40": "it chose another writer",
    "53": "it is short of resources",
    "55": "another writer holds what this one needs",
    "57": "it is starting or stopping",
    "58": "its disk failed it",
}


def place(url: URL) -> str:
    """The database for people, without its user's password."""
    if "host" in url.query:
        return f"{url.database} at {url.query['host']}"
    return f"{url.database} at {url.host or 'localhost'}:{url.port or 5432}"


def translated(error: Exception, url: URL) -> TapewatchError | None:
    """The error that tells the caller what to do; None for a mistake in our own statements or rows."""
    where = f"the store {place(url)}"
    if isinstance(error, exc.TimeoutError):
        return Unavailable(f"all connections to {where} are busy")
    cause: Any = error
    if isinstance(error, exc.DBAPIError):
        cause = error.orig if error.orig is None else error.orig.__cause__ or error.orig
    state = _state(cause)
    if state is not None:
        return _by_state(state, cause, url)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return ConfigError(f"the certificate of {where} is not trusted: {cause.verify_message}; see sslrootcert")
    if isinstance(cause, FileNotFoundError) and any(option.startswith("ssl") for option in url.query):
        return ConfigError(f"a certificate or key that the address of {where} names is not there")
    if isinstance(cause, asyncpg.exceptions.ClientConfigurationError):
        return ConfigError(f"the address of {where} makes no sense: {_line(cause)}")
    if isinstance(cause, TimeoutError):
        return Unavailable(f"{where} does not answer in time")
    if isinstance(cause, OSError):
        return Unavailable(f"{where} cannot be reached: {cause.strerror or cause}")
    if isinstance(cause, asyncpg.InternalClientError) or (
        isinstance(cause, asyncpg.InterfaceError) and "closed" in str(cause)
    ):
        return Unavailable(f"{where} does not answer: the connection broke")
    return None


def _state(error: BaseException) -> str | None:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else None


def _by_state(state: str, cause: Exception, url: URL) -> TapewatchError | None:
    where = f"the store {place(url)}"
    if state in {"28P01", "28000"}:
        return ConfigError(f"{where} refuses the user {url.username}: {_line(cause)}")
    if state == "3D000":
        return ConfigError(f"there is no database {place(url)}: create it, then run `tapewatch db upgrade`")
    if state in {"42P01", "42703", "3F000"}:
        return ConfigError(f"{where} lacks tables of this release: run `tapewatch db upgrade`")
    if state == "42501":
        return ConfigError(
            f"the user {url.username} of {where} lacks a right: {_line(cause)}. "
            "The tables are made and upgraded by their owner: tapewatch db upgrade"
        )
    if state in {"XX001", "XX002"}:
        return ConfigError(f"{where} is damaged: {_line(cause)}; restore a backup")
    if "cached statement plan is invalid" in str(cause):
        return Unavailable(f"{where} was upgraded just now")
    reason = _AWAY.get(state) or _AWAY_CLASSES.get(state[:2])
    return None if reason is None else Unavailable(f"{where} does not serve this now: {reason} ({_line(cause)})")


def _line(error: Exception) -> str:
    return str(getattr(error, "message", None) or error).strip().split("\n")[0]
