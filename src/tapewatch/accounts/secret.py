"""Where the secret that signs access tokens comes from: the environment, a file, or a file that we make; and the one
that an OpenID provider gave us.

Neither is never on a command line, and never shown.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path

from tapewatch.accounts.tokens import Keys
from tapewatch.errors import ConfigError
from tapewatch.private_files import read_private

VARIABLE = "TAPEWATCH_SECRET"
CLIENT_VARIABLE = "TAPEWATCH_OIDC_SECRET"
NAME = "secret"
"""In the data folder."""
_LONGEST_SECRET = 512


def load_keys(path: Path | None) -> Keys | None:
    """From the environment, else from the file; None if neither is given. `ConfigError` for a weak secret, or a file
    that others may read.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return Keys.parse(given, where=VARIABLE)
    return None if path is None else _read(path, "--secret-file")


def load_client_secret(path: Path | None) -> str | None:
    """From the environment, else from the file; None if neither is given."""
    given = os.environ.get(CLIENT_VARIABLE)
    where = CLIENT_VARIABLE if given else f"--oidc-secret-file: {path}"
    if not given:
        if path is None:
            return None
        given = read_private(path, "--oidc-secret-file")
    secret = given.strip()
    if not 0 < len(secret) <= _LONGEST_SECRET or not secret.isascii() or not secret.isprintable():
        raise ConfigError(f"{where} does not look like a client secret: one line of letters, digits and signs")
    return secret


def kept_keys(data_dir: Path) -> Keys:
    """From the data folder, where a secret is made when there is none."""
    path = data_dir / NAME
    with suppress(FileExistsError):
        _make(path)
    return _read(path, "--data-dir")


def _make(path: Path) -> None:
    # Whole or not at all, and of two processes that start at once both read the same one.
    draft = path.with_name(f".{NAME}.{os.getpid()}")
    if path.exists():
        raise FileExistsError
    try:
        draft.unlink(missing_ok=True)  # of a process that died; and nothing is written through another's link
        with os.fdopen(os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(f"{secrets.token_hex(32)}\n")
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise ConfigError(f"--data-dir: cannot write {path}: {error.strerror}") from None
    finally:
        draft.unlink(missing_ok=True)


def _read(path: Path, option: str) -> Keys:
    return Keys.parse(read_private(path, option), where=f"{option}: {path}")
