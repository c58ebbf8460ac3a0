"""Files that hold secrets: one that others may read is refused, not used."""

import os
import stat
from pathlib import Path

from tapewatch.errors import ConfigError


def read_private(path: Path, option: str) -> str:
    """Its text. `ConfigError` names the option and the file, and holds nothing of what is in it."""
    try:
        check_private(path, option)
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{option}: cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{option}: {path} is not text") from None


def check_private(path: Path, option: str) -> None:
    """`ConfigError` if others may read it; `OSError` if it is not there."""
    if _others_may_read(path.stat()):
        raise ConfigError(f"{option}: others may read {path}; chmod 600 it")


def _others_may_read(file: os.stat_result) -> bool:
    """Others than us and root. Kubernetes gives a secret's file to root and to the container's own group (0440)."""
    others = stat.S_IRWXG | stat.S_IRWXO
    if file.st_uid == 0 != os.geteuid() and file.st_gid in {os.getegid(), *os.getgroups()} - {0}:
        others &= ~stat.S_IRGRP
    return bool(file.st_mode & others)
