"""Providers by name: addresses, keys and what is refused before anything is said on a wire."""

from pathlib import Path

import pytest

from tapewatch.clock import SystemClock
from tapewatch.errors import ConfigError
from tapewatch.feeds.live import LiveFeed
from tapewatch.feeds.providers import PROVIDERS, ProviderOptions, open_feed
from tapewatch.nyse import trading_days

KEYS = ("APCA_API_KEY_ID", "APCA_API_SECRET_KEY", "MASSIVE_API_KEY", "POLYGON_API_KEY", "DATABENTO_API_KEY")
LOCAL = {"alpaca": "ws://127.0.0.1:8901", "massive": "ws://[::1]:8901", "databento": "tcp://localhost:8901"}


@pytest.fixture(autouse=True)
def _no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEYS:
        monkeypatch.delenv(name, raising=False)


def opened(name: str, **options: object) -> LiveFeed:
    return open_feed(ProviderOptions(name=name, **options), clock=SystemClock(), days=trading_days())  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PROVIDERS)
def test_provider_without_a_key_is_refused_and_the_variable_named(name: str) -> None:
    with pytest.raises(ConfigError, match="API_KEY"):
        opened(name)


@pytest.mark.parametrize("name", PROVIDERS)
def test_replay_server_on_this_machine_needs_no_key(name: str) -> None:
    assert opened(name, url=LOCAL[name]).name == name


@pytest.mark.parametrize("name", PROVIDERS)
def test_secrets_file_without_the_key_is_told_even_for_this_machine(name: str, tmp_path: Path) -> None:
    secrets = tmp_path / "secrets.toml"
    secrets.write_text("")
    secrets.chmod(0o600)
    with pytest.raises(ConfigError, match="needs"):
        opened(name, url=LOCAL[name], secrets=secrets)


@pytest.mark.parametrize(
    "url",
    [
        "ws://feed.example.com/v2/sip",
        "http://127.0.0.1:1",
        "ws://",
        "ws://user@127.0.0.1:1",
        "ws://127.0.0.1:99999",
        "ws://127.0.0.1:1/?key=planted",
        "127.0.0.1:8901",
        "ws://127.0.0.1.example.com:1",
    ],
)
def test_address_over_which_a_key_must_not_go_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APCA_API_KEY_ID", "key")
    monkeypatch.setenv("APCA_API_SECRET_KEY", "planted-secret")
    with pytest.raises(ConfigError, match="--feed-url") as caught:
        opened("alpaca", url=url)
    assert "planted-secret" not in str(caught.value)


def test_encrypted_address_elsewhere_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASSIVE_API_KEY", "key")
    assert opened("massive", url="wss://delayed.example.com/stocks").name == "massive"


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("nasdaq", {}, "is not a provider"),
        ("alpaca", {"url": LOCAL["alpaca"], "plan": "gold"}, "is not a feed of Alpaca"),
        ("databento", {"url": LOCAL["databento"], "quotes": True}, "trades only"),
        ("databento", {"url": LOCAL["databento"], "plan": "a b"}, "is not a dataset"),
    ],
)
def test_option_that_makes_no_sense_is_one_clear_error(name: str, options: dict[str, object], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        opened(name, **options)
