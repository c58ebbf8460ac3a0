"""What an operator may say of an OpenID provider, and where the client's secret comes from."""

from pathlib import Path
from typing import Any

import pytest

from tapewatch.accounts.openid_settings import OpenIdSettings, openid_settings
from tapewatch.accounts.secret import CLIENT_VARIABLE, load_client_secret
from tapewatch.config import LOOPBACK, UpConfig
from tapewatch.errors import ConfigError

GIVEN: dict[str, Any] = {
    "issuer": "https://id.example.com/realms/desk",
    "client_id": "tapewatch",
    "public_url": "https://scan.example.com",
    "secret_file": None,
    "name": None,
    "scopes": (),
    "default_role": "viewer",
    "role_claim": None,
    "roles": (),
}

NOTHING: dict[str, Any] = GIVEN | {"issuer": None, "client_id": None, "public_url": None}


def settings(**changes: Any) -> OpenIdSettings:
    made = openid_settings(**GIVEN | changes)
    assert made is not None
    return made


def test_options_become_settings() -> None:
    made = settings(role_claim="groups", roles=["/desk=trader", "a=b=admin"], default_role="none", name="Example")
    assert (made.shown_name, made.default_role) == ("Example", None)
    assert made.roles == {"/desk": "trader", "a=b": "admin"}
    assert (settings().shown_name, settings().default_role, settings().is_secure) == ("id.example.com", "viewer", True)
    assert settings(scopes=["groups"]).scopes == ("groups",)
    assert openid_settings(**NOTHING) is None


@pytest.mark.parametrize(
    ("given", "origin"),
    [
        ("https://scan.example.com/", "https://scan.example.com"),
        ("https://Scan.Example.com:443", "https://scan.example.com"),
        ("https://scan.example.com:8443", "https://scan.example.com:8443"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("http://localhost", "http://localhost"),
    ],
)
def test_public_address_is_the_origin_as_browsers_name_it(given: str, origin: str) -> None:
    assert settings(public_url=given).public_url == origin


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"issuer": "http://id.example.com"}, "--oidc-issuer"),
        ({"issuer": "http://10.0.0.1"}, "--oidc-issuer"),
        ({"issuer": "http://localhost.example.com"}, "--oidc-issuer"),
        ({"issuer": "https://ann:secret@id.example.com"}, "--oidc-issuer"),
        ({"issuer": "https://id.example.com?tenant=1"}, "--oidc-issuer"),
        ({"issuer": "id.example.com"}, "--oidc-issuer"),
        ({"issuer": "https://id.example.com#x"}, "--oidc-issuer"),
        ({"client_id": None}, "--oidc-client-id"),
        ({"client_id": ""}, "--oidc-client-id"),
        ({"client_id": "a\nb"}, "--oidc-client-id"),
        ({"public_url": None}, "--public-url"),
        ({"public_url": "http://scan.example.com"}, "--public-url"),
        ({"public_url": "https://scan.example.com/tapewatch"}, "--public-url"),
        ({"public_url": "https://scan.example.com?x"}, "--public-url"),
        ({"public_url": "https://"}, "--public-url"),
        ({"public_url": "https://ann:secret@scan.example.com"}, "--public-url"),
        ({"public_url": "//scan.example.com"}, "--public-url"),
        ({"public_url": "https://[::1"}, "--public-url"),
        ({"name": "x" * 61}, "--oidc-name"),
        ({"scopes": ["a b"]}, "--oidc-scope"),
        ({"scopes": [""]}, "--oidc-scope"),
        ({"default_role": "root"}, "--oidc-default-role"),
        ({"role_claim": "groups"}, "--oidc-role"),
        ({"roles": ["desk=trader"]}, "--oidc-role"),
        ({"role_claim": "groups", "roles": ["desk"]}, "--oidc-role"),
        ({"role_claim": "groups", "roles": ["desk=root"]}, "--oidc-role"),
        ({"role_claim": "groups", "roles": ["=admin"]}, "--oidc-role"),
    ],
)
def test_option_that_is_wrong_is_named(changes: dict[str, Any], option: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{option}"):
        settings(**changes)


@pytest.mark.parametrize("option", ["client_id", "public_url", "name", "role_claim"])
def test_option_without_a_provider_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="goes with --oidc-issuer"):
        openid_settings(**NOTHING | {option: "x"})


def test_server_on_loopback_goes_by_its_public_name_too() -> None:
    assert UpConfig().hosts == LOOPBACK
    assert UpConfig(openid=settings()).hosts == LOOPBACK | {"scan.example.com"}
    assert UpConfig(host="0.0.0.0", openid=settings()).hosts == frozenset()


def test_client_secret_comes_from_the_environment_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(CLIENT_VARIABLE, raising=False)
    assert load_client_secret(None) is None
    path = tmp_path / "secret"
    path.write_text("from the file 50%\n")
    path.chmod(0o640)
    with pytest.raises(ConfigError, match=r"^--oidc-secret-file: others may read"):
        load_client_secret(path)
    path.chmod(0o600)
    assert load_client_secret(path) == "from the file 50%"
    monkeypatch.setenv(CLIENT_VARIABLE, "from the environment")
    assert load_client_secret(path) == "from the environment"
    monkeypatch.delenv(CLIENT_VARIABLE)
    for text in ("", "two\nlines", "é" * 20, "x" * 600):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"^--oidc-secret-file.*does not look like") as caught:
            load_client_secret(path)
        assert not text or text not in str(caught.value)
