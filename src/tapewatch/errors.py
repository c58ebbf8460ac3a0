"""Errors, each named by what the caller should do about it.

    TapewatchError
    ├── ConfigError       mend the configuration or the command; the program exits with 2 and one line
    ├── Invalid           mend the input; says where and why (HTTP 422)
    ├── NotFound          ask for something else (404)
    ├── VersionConflict   read again, then write (409)
    ├── Unauthorized      say who you are, by signing in or with a token (401)
    ├── Forbidden         ask somebody who may (403)
    ├── Unavailable       wait and try again, bounded and jittered (503)
    ├── FeedLost          reconnect
    ├── FeedRefused       do not reconnect: the provider refused the credentials or the request
    ├── PositionLost      the log no longer holds that position: rebuild from the store
    ├── LeaseLost         stop this partition now
    └── BadBatch          quarantine the batch, count it, go on

Drivers' exceptions are translated inside adapters only. A broken invariant is none of these: it crashes.
"""

from typing import Literal

FeedLoss = Literal["network", "closed", "silent", "slow_consumer", "connection_limit", "protocol"]


class TapewatchError(Exception):
    """The root: catching it catches nothing that is a bug."""


class ConfigError(TapewatchError):
    """A setting, an option or a file that the operator must mend."""


class Invalid(TapewatchError):
    """Input that breaks a rule of its own format. `where` names the field, row or line; `why` is a whole phrase."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(f"{where}: {why}" if where else why)
        self.where = where
        self.why = why

    def __reduce__(self) -> tuple[type["Invalid"], tuple[str, str]]:  # an exception is otherwise made of its text
        return type(self), (self.where, self.why)


class NotFound(TapewatchError):
    """There is no such thing."""


class VersionConflict(TapewatchError):
    """Somebody else wrote in between."""


class Unauthorized(TapewatchError):
    """The caller must say who they are. Why a token was refused is not told."""

    def __init__(self, problem: str = "sign in, or send a token that is good") -> None:
        super().__init__(problem)


class Forbidden(TapewatchError):
    """The caller may not do this."""


class Unavailable(TapewatchError):
    """A server that this work depends on is away for now."""


class FeedLost(TapewatchError):
    """The connection to the provider ended. `reason` is a word that people and metrics can group by."""

    def __init__(self, problem: str, *, reason: FeedLoss = "network") -> None:
        super().__init__(problem)
        self.reason: FeedLoss = reason


class FeedRefused(TapewatchError):
    """The provider will not serve us until somebody changes something."""


class PositionLost(TapewatchError):
    """The log was trimmed past the position that was asked for."""


class LeaseLost(TapewatchError):
    """Somebody else owns this now."""


class BadBatch(TapewatchError):
    """A batch that breaks the tape's own rules."""
