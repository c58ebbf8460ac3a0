"""What a Redis URL may say."""

import pytest

from tapewatch.adapters.redis_address import parsed
from tapewatch.errors import ConfigError


def test_single_server_with_a_user_and_tls() -> None:
    address = parsed("rediss://me:p%40ss@cache.example:7000/2?ssl_ca_certs=/etc/ca.pem")
    assert (address.kind, address.hosts, address.name) == (
        "server",
        (("cache.example", 7000),),
        "rediss://cache.example:7000/2",
    )
    assert {"username": "me", "password": "p@ss", "db": 2, "ssl": True, "ssl_ca_certs": "/etc/ca.pem"}.items() <= (
        address.settings.items()
    )
    assert address.secrets == {"p%40ss", "p@ss"}


def test_sentinels_with_a_password_of_their_own() -> None:
    address = parsed("redis+sentinel://me:s3cret@a:1,b,[::1]:3/tape/1?sentinel_user=watch&sentinel_password=0ther")
    assert address.kind == "sentinel"
    assert address.hosts == (("a", 1), ("b", 26379), ("::1", 3))
    assert address.master == "tape"
    assert address.name == "redis+sentinel://a:1,b:26379,[::1]:3/tape/1"
    assert (address.settings["username"], address.settings["password"], address.settings["db"]) == ("me", "s3cret", 1)
    assert address.sentinel_settings == {"username": "watch", "password": "0ther"}
    assert address.secrets == {"s3cret", "0ther"}


def test_cluster_is_found_through_any_of_some_nodes() -> None:
    address = parsed("rediss+cluster://:s3cret@a,b:6380")
    assert (address.kind, address.hosts) == ("cluster", (("a", 6379), ("b", 6380)))
    assert address.settings["ssl"] is True
    assert address.name == "rediss+cluster://a:6379,b:6380"


@pytest.mark.parametrize(
    "url",
    [
        "redis://:s3cret@a,b/0",
        "redis://:s3cret@a/0/1",
        "redis+sentinel://:s3cret@a:26379",
        "redis+sentinel://:s3cret@a:26379/tape/one",
        "redis+sentinel://:s3cret@a,:1/tape/0",
        "redis+cluster://:s3cret@a/0",
        "redis+other://:s3cret@a",
        "redis+cluster://:s3cret@a?sentinel_password=s3cret",
    ],
)
def test_url_that_makes_no_sense_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="Redis URL") as raised:
        parsed(url)
    assert "s3cret" not in str(raised.value)
