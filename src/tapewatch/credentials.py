"""Keys of data providers: from the environment or a secrets file, never from a command line, never shown.

The secrets file is TOML with the same names as the environment's, such as ``APCA_API_KEY_ID = "…"``; a variable of the
environment comes first.
"""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tapewatch.errors import ConfigError
from tapewatch.private_files import read_private

_NAMES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "alpaca": (("APCA_API_KEY_ID",), ("APCA_API_SECRET_KEY",)),
    "massive": (("MASSIVE_API_KEY", "POLYGON_API_KEY"),),
    "databento": (("DATABENTO_API_KEY",),),
}
_LONGEST = 512


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a provider wants to see. Its text form tells nothing."""

    key: str = field(repr=False)
    secret: str = field(repr=False, default="")


def load_credentials(provider: str, *, secrets: Path | None = None) -> Credentials:
    """`ConfigError` naming what is missing, or a secrets file that others may read."""
    stored = _read(secrets) if secrets is not None else {}
    found = []
    for names in _NAMES[provider]:
        value = next((v for name in names if (v := os.environ.get(name) or stored.get(name))), None)
        if value is None:
            raise ConfigError(f"the feed {provider} needs {' or '.join(names)} in the environment or in --secrets FILE")
        if not value.isascii() or not value.isprintable() or " " in value or len(value) > _LONGEST:
            raise ConfigError(f"{names[0]} does not look like a key: spaces, line ends or other letters are in it")
        found.append(value)
    return Credentials(*found)


def _read(path: Path) -> dict[str, str]:
    try:
        values = tomllib.loads(read_private(path, "--secrets"))
    except tomllib.TOMLDecodeError:  # its text may hold a piece of a key
        raise ConfigError(f'--secrets: {path} is not TOML; it holds lines such as APCA_API_KEY_ID = "…"') from None
    known = {name for groups in _NAMES.values() for names in groups for name in names}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"--secrets: {path} has the unknown name {name!r}; known: {', '.join(sorted(known))}")
        if not isinstance(value, str):
            raise ConfigError(f"--secrets: {name} in {path} must be a text in quotes")
    return values
