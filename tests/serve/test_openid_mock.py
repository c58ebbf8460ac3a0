"""Signing in through a provider that others have written, over HTTP from end to end."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
from openid_mock import openid_mock

from tapewatch.accounts.openid_settings import OpenIdSettings
from tapewatch.accounts.users import Identity, User
from tapewatch.adapters.sql import SqlStore
from tapewatch.serve.openid_sign_in import OpenIdProvider
from tapewatch.serve.services import Services

pytestmark = pytest.mark.anyio
AUTH = "/api/v1/auth"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with openid_mock(tmp_path_factory.mktemp("provider")) as issuer:
        yield issuer


async def test_user_of_the_provider_comes_in_with_the_role_of_their_group(
    services: Services, store: SqlStore, serve: Callable[[Services], Any], issuer: str
) -> None:
    await store.add_user(User(user_id="u-root", name="root", role="admin", password_hash="", created_at_ns=1))
    config = OpenIdSettings(
        issuer=issuer,
        client_id="tapewatch",
        public_url="http://127.0.0.1:8000",
        role_claim="groups",
        roles={"desk": "trader"},
    )
    openid = OpenIdProvider(config, services.clock, secret="any will do")  # noqa: S106
    ann = {"preferred_username": "ann", "groups": ["desk", "chess"]}
    async with (
        serve(replace(services, openid=openid)) as address,
        httpx.AsyncClient(base_url=f"http://{address}", trust_env=False) as api,
        httpx.AsyncClient(trust_env=False) as browser,
    ):
        assert (await browser.put(f"{issuer}/users/248289761001", json=ann)).status_code == 204
        begun = (await api.post(f"{AUTH}/openid/begin")).json()["authorization_url"]
        assert begun.startswith(f"{issuer}/oauth2/authorize?")
        consented = await browser.post(begun, data={"sub": "248289761001"})
        assert consented.status_code == 302
        back = httpx.URL(consented.headers["Location"])
        assert str(back).startswith(f"{config.public_url}{AUTH}/openid/callback?")
        done = await api.get(back.raw_path.decode())
        assert done.headers["Location"] == f"{config.public_url}/#sign-in=done"
        token = (await api.post(f"{AUTH}/refresh")).json()["access_token"]
        profile = (await api.get("/api/v1/user/profile", headers={"Authorization": f"Bearer {token}"})).json()
        assert (profile["name"], profile["role"]) == ("ann", "trader")
        assert (await store.user_of(Identity(issuer, "248289761001"))).user_id == profile["user_id"]

        denied = await browser.post(
            (await api.post(f"{AUTH}/openid/begin")).json()["authorization_url"], data={"action": "deny"}
        )
        back = httpx.URL(denied.headers["Location"])
        assert back.params["error"] == "access_denied"
