"""Keys come from the environment or a file of one's own, and are never shown."""

from pathlib import Path

import pytest

from tapewatch.credentials import Credentials, load_credentials
from tapewatch.errors import ConfigError

NAMES = ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY", "MASSIVE_API_KEY", "POLYGON_API_KEY", "DATABENTO_API_KEY")


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    path = tmp_path / "secrets.toml"
    path.write_text('APCA_API_KEY_ID = "file-key"\nAPCA_API_SECRET_KEY = "file-secret"\n')
    path.chmod(0o600)
    return path


def test_environment_comes_before_the_file(monkeypatch: pytest.MonkeyPatch, secrets: Path) -> None:
    assert load_credentials("alpaca", secrets=secrets) == Credentials("file-key", "file-secret")
    monkeypatch.setenv("APCA_API_KEY_ID", "own-key")
    assert load_credentials("alpaca", secrets=secrets) == Credentials("own-key", "file-secret")


def test_old_name_of_a_provider_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYGON_API_KEY", "old")
    assert load_credentials("massive").key == "old"


def test_text_of_credentials_tells_nothing(secrets: Path) -> None:
    assert "file" not in repr(load_credentials("alpaca", secrets=secrets))


@pytest.mark.parametrize(("provider", "missing"), [("alpaca", "APCA_API_KEY_ID"), ("massive", "MASSIVE_API_KEY")])
def test_missing_key_is_named(provider: str, missing: str) -> None:
    with pytest.raises(ConfigError, match=missing):
        load_credentials(provider)


def test_file_that_others_may_read_is_refused(secrets: Path) -> None:
    secrets.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_credentials("alpaca", secrets=secrets)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("APCA_API_KEY_ID = planted-secret", "is not TOML"),
        ('APCA_KEY = "planted-secret"', "unknown name 'APCA_KEY'"),
        ("APCA_API_KEY_ID = 5", "must be a text"),
        ('APCA_API_KEY_ID = "planted secret"', "does not look like a key"),
    ],
)
def test_wrong_file_is_one_clear_error_without_its_content(secrets: Path, text: str, complaint: str) -> None:
    secrets.write_text(text + "\n")
    with pytest.raises(ConfigError, match=complaint) as caught:
        load_credentials("alpaca", secrets=secrets)
    assert "planted" not in str(caught.value)


def test_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*nowhere.toml"):
        load_credentials("alpaca", secrets=tmp_path / "nowhere.toml")
