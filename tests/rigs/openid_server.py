"""An OpenID provider on loopback whose every word a test can change. It checks what a provider has to check: the code
is good once, for the client and the redirect address that it was given for, and only with the verifier of PKCE.
"""

import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import cache
from typing import Any
from urllib.parse import parse_qs, unquote_plus, urlencode, urlsplit

import jwt
import uvicorn
from cryptography.hazmat.primitives.asymmetric import rsa
from own_loop import loopback, served
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

CLIENT_SECRET = "what the provider gave us: 50 %"  # noqa: S105  # of tests


@cache
def key_named(kid: str) -> rsa.RSAPrivateKey:
    """Made once for all tests of a process."""
    del kid
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


class OpenIdServer:
    """What it does wrong is what a test sets; it counts what it was asked for, by path."""

    def __init__(self, port: int) -> None:
        self.issuer = f"http://127.0.0.1:{port}"
        self.client_id = "tapewatch"
        self.secret: str | None = CLIENT_SECRET
        """None: its client has none, and shows none."""
        self.key_id = "first"
        self.published = ["first"]
        self.description: dict[str, Any] = {}
        """What the discovery document says otherwise."""
        self.claims: dict[str, Any] = {}
        """What ID tokens say otherwise."""
        self.sign: Callable[[dict[str, Any]], str] = self.signed
        self.replaces: dict[str, Response] = {}
        """By path, what is answered instead."""
        self.asked: list[str] = []
        self._codes: dict[str, dict[str, str]] = {}

    # What the browser does there.

    def let_in(self, authorization_url: str, subject: str = "248289761001", **more: str) -> dict[str, str]:
        """The query with which it sends the browser back."""
        parts = urlsplit(authorization_url)
        assert f"{parts.scheme}://{parts.netloc}{parts.path}" == f"{self.issuer}/authorize"
        query = {name: value for name, (value,) in parse_qs(parts.query).items()}
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        assert query["client_id"] == self.client_id
        code = secrets.token_urlsafe(16)
        self._codes[code] = query | {"subject": subject}
        return {"code": code, "state": query["state"], **more}

    # What the client asks.

    def signed(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, key_named(self.key_id), algorithm="RS256", headers={"kid": self.key_id})

    async def _answer(self, request: Request) -> Response:
        path = request.url.path
        self.asked.append(path)
        if path in self.replaces:
            return self.replaces[path]
        if path == "/.well-known/openid-configuration":
            return JSONResponse(self._description())
        if path == "/jwks":
            public = [
                jwt.algorithms.RSAAlgorithm.to_jwk(key_named(kid).public_key(), as_dict=True) for kid in self.published
            ]
            return JSONResponse(
                {"keys": [{**key, "kid": kid} for key, kid in zip(public, self.published, strict=True)]}
            )
        return self._token(
            request, {name: value for name, (value,) in parse_qs((await request.body()).decode()).items()}
        )

    def _description(self) -> dict[str, Any]:
        document = {
            "issuer": self.issuer,
            "authorization_endpoint": f"{self.issuer}/authorize",
            "token_endpoint": f"{self.issuer}/token",
            "jwks_uri": f"{self.issuer}/jwks",
        } | self.description
        return {name: value for name, value in document.items() if value is not None}

    def _token(self, request: Request, form: dict[str, str]) -> Response:
        if _shown(request, form) != (self.client_id, self.secret):
            return JSONResponse({"error": "invalid_client"}, 401)
        given = self._codes.pop(form["code"], None)
        challenge = (
            base64.urlsafe_b64encode(hashlib.sha256(form["code_verifier"].encode()).digest()).decode().rstrip("=")
        )
        if (
            given is None
            or form["grant_type"] != "authorization_code"
            or form["redirect_uri"] != given["redirect_uri"]
            or challenge != given["code_challenge"]
        ):
            return JSONResponse({"error": "invalid_grant"}, 400)
        now_s = int(time.time())
        claims = {
            "iss": self.issuer,
            "sub": given["subject"],
            "aud": self.client_id,
            "nonce": given["nonce"],
            "iat": now_s,
            "exp": now_s + 300,
        } | self.claims
        token = self.sign({name: value for name, value in claims.items() if value is not None})
        return JSONResponse({"access_token": "not used", "token_type": "Bearer", "id_token": token})


def _shown(request: Request, form: dict[str, str]) -> tuple[str, str | None]:
    """The client's id and secret."""
    if "authorization" not in request.headers:
        return form["client_id"], form.get("client_secret")
    given = base64.b64decode(request.headers["authorization"].removeprefix("Basic ")).decode()
    user, _, secret = given.partition(":")
    return unquote_plus(user), unquote_plus(secret)


def callback(query: dict[str, str]) -> str:
    return f"/api/v1/auth/openid/callback?{urlencode(query)}"


@asynccontextmanager
async def openid_server() -> AsyncIterator[OpenIdServer]:
    """In the test's own loop."""
    listening, port = loopback()
    provider = OpenIdServer(port)
    route = Route("/{path:path}", provider._answer, methods=["GET", "POST"])  # its own module
    config = uvicorn.Config(Starlette(routes=[route]), log_config=None, lifespan="off", ws="none")
    async with served(config, listening):
        yield provider
