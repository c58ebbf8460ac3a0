"""Durations, data folders and what belongs together; the rest of the options is tested on the command line."""

import re
from pathlib import Path
from typing import Any

import pytest

from tapewatch.config import UpConfig, default_data_dir, duration_s, scan_interval_ns, symbols_of
from tapewatch.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "seconds"), [("100ms", 0.1), ("1s", 1.0), ("1.5s", 1.5), ("2m", 120.0), ("1h", 3600.0), (" 5s ", 5.0)]
)
def test_duration_is_read(text: str, seconds: float) -> None:
    assert duration_s(text, option="--ttl") == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "1", "s", "1 s", "-1s", "1S", "1d", "1e3s", "nans", "\u0661s", "1s\n1s", "9" * 400 + "s"],
)
def test_what_is_no_duration_names_the_option(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^--ttl: .* is not a duration such as 100ms, 1s or 2m$"):
        duration_s(text, option="--ttl")


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("100ms", 10**8),
        ("0.3s", 3 * 10**8),
        ("700ms", 7 * 10**8),
        ("1s", 10**9),
        ("60s", 6 * 10**10),
        ("1m", 6 * 10**10),
    ],
)
def test_scan_interval_is_whole_tenths_of_a_second(text: str, ns: int) -> None:
    assert scan_interval_ns(text) == ns


@pytest.mark.parametrize("text", ["0s", "99ms", "0.25s", "61s", "2m", "1h"])
def test_scan_interval_outside_its_range_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a multiple of 100ms, from 100ms to 60s"):
        scan_interval_ns(text)


def test_data_folder_is_the_first_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/h")
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    monkeypatch.delenv("TAPEWATCH_DATA_DIR", raising=False)
    assert default_data_dir() == Path("/h/.local/share/tapewatch")
    monkeypatch.setenv("XDG_DATA_HOME", "/x")
    assert default_data_dir() == Path("/x/tapewatch")
    monkeypatch.setenv("TAPEWATCH_DATA_DIR", "/mine")
    assert default_data_dir() == Path("/mine")


def test_defaults_belong_together() -> None:
    config = UpConfig()
    assert (config.feed, config.host, config.port) == ("synthetic", "127.0.0.1", 8000)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_addresses_are_allowed(host: str) -> None:
    assert UpConfig(host=host).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1.example.com", "192.168.1.5"])
def test_other_addresses_are_told_apart(host: str) -> None:
    assert not UpConfig(host=host).is_loopback


@pytest.mark.parametrize("host", ["", " ", "-", "http://127.0.0.1", "127.0.0.1\n", "a" * 300])
def test_what_is_no_address_is_refused(host: str) -> None:
    with pytest.raises(ConfigError, match="--host"):
        UpConfig(host=host)


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"feed": "nasdaq"}, "--feed: 'nasdaq' is not a feed"),
        ({"fallback": "massive"}, "--fallback goes with a live feed"),
        ({"feed_url": "ws://127.0.0.1:1"}, "--feed-url goes with a live feed"),
        ({"watch": ("AAPL",)}, "--watch goes with a live feed"),
        ({"quotes": True}, "--quotes goes with a live feed"),
        ({"feed": "alpaca", "fallback": "synthetic"}, "is not a live feed"),
        ({"feed": "alpaca", "fallback": "alpaca"}, "it is the feed itself"),
        ({"feed": "alpaca", "fallback_url": "ws://127.0.0.1:1"}, "goes with --fallback"),
        ({"feed": "alpaca", "reference": "databento"}, "--reference: 'databento'"),
        ({"feed": "alpaca", "kept_trades": 5}, "--kept-trades: 5"),
    ],
)
def test_live_option_that_makes_no_sense_is_one_clear_error(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        UpConfig(**options)


@pytest.mark.parametrize(
    ("options", "profile", "source"),
    [
        ({"feed": "alpaca"}, "alpaca", "alpaca"),
        ({"feed": "massive"}, "massive", "massive"),
        ({"feed": "massive", "feed_url": "ws://127.0.0.1:1/stocks"}, "massive", None),
        ({"feed": "massive", "reference": "none", "eligibility": "sip"}, "sip", None),
        ({"feed": "databento"}, "alpaca", None),
        ({"feed": "databento", "reference": "massive"}, "alpaca", "massive"),
        ({}, "alpaca", None),
    ],
)
def test_feed_brings_its_own_profile_and_reference(options: dict[str, Any], profile: str, source: str | None) -> None:
    config = UpConfig(**options)
    assert (config.profile, config.reference_source) == (profile, source)


def test_symbols_to_watch_are_a_list_or_all() -> None:
    assert symbols_of(None) == symbols_of("*") == ("*",)
    assert symbols_of("AAPL, BRK.B,AAPL") == ("AAPL", "BRK.B")
    for wrong in ("", "aapl", "A,,B", "A B", "../x"):
        with pytest.raises(ConfigError, match="--watch"):
            symbols_of(wrong)


@pytest.mark.parametrize(
    "origin",
    ["*", "null", "https://", "desk.example.com", "https://desk.example.com/", "https://a.example,https://b.example"],
)
def test_origin_that_is_not_exact_is_refused(origin: str) -> None:
    with pytest.raises(ConfigError, match="--allow-origin"):
        UpConfig(allow_origins=(origin,))
    assert UpConfig(
        allow_origins=("https://desk.example.com", "http://localhost:5173", "http://[::1]:80")
    ).allow_origins


@pytest.mark.parametrize("network", ["*", "10.0.0.0/33", "10.0.0.1/8", "proxy.example.com", "10.0.0.0/8,::1"])
def test_proxy_that_is_no_network_is_refused(network: str) -> None:
    with pytest.raises(ConfigError, match="--trusted-proxy"):
        UpConfig(trusted_proxies=(network,))
    assert UpConfig().server_options == {}
    options = UpConfig(trusted_proxies=("10.0.0.0/8", "::1")).server_options
    assert options == {"forwarded_allow_ips": "10.0.0.0/8,::1"}


@pytest.mark.parametrize("option", ["max_clients", "max_clients_of_user"])
@pytest.mark.parametrize("count", [0, -1, 50_001])
def test_number_of_clients_outside_its_range_is_refused(option: str, count: int) -> None:
    options: dict[str, Any] = {option: count}
    with pytest.raises(ConfigError, match=f"--{option.replace('_', '-')}: {count} is not between 1 and 50000"):
        UpConfig(**options)
