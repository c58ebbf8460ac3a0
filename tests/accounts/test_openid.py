"""Attempts, discovery documents, key sets and ID tokens: which are good, and what people have tried with them."""

import base64
import hashlib
import hmac
import json
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.accounts.openid import (
    ATTEMPT_S,
    LONGEST_TOKEN,
    MOST_KEYS,
    Attempt,
    Provider,
    ProviderKeys,
    UnknownKey,
    check_id_token,
    display_name_of,
    names_of,
    role_of,
)
from tapewatch.accounts.openid_settings import OpenIdSettings
from tapewatch.accounts.users import check_name
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import Invalid, Unauthorized

ISSUER, CLIENT = "https://id.example.com", "tapewatch"
NOW_S = 1_800_000_000
NOW_NS = NOW_S * SECOND_NS
SERVER_KEY = b"0123456789abcdef" * 2
NONCE = "the nonce of this attempt"
RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
EC = ec.generate_private_key(ec.SECP256R1())
DISCOVERY = {
    "issuer": ISSUER,
    "authorization_endpoint": f"{ISSUER}/authorize",
    "token_endpoint": f"{ISSUER}/token",
    "jwks_uri": "https://keys.example.com/jwks",
}


def settings(**changes: Any) -> OpenIdSettings:
    return OpenIdSettings(
        **{"issuer": ISSUER, "client_id": CLIENT, "public_url": "https://scan.example.com", **changes}
    )


def provider(**changes: Any) -> Provider:
    document = {name: value for name, value in (DISCOVERY | changes).items() if value is not None}
    return Provider.parse(json.dumps(document).encode(), issuer=ISSUER)


def public(key: Any, **fields: Any) -> dict[str, Any]:
    """As a provider publishes it."""
    algorithm: Any = jwt.algorithms.RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else jwt.algorithms.ECAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "use": "sig", **fields}


def keys(*entries: Any) -> ProviderKeys:
    return ProviderKeys.parse(json.dumps({"keys": list(entries)}).encode())


KEYS = keys(public(RSA, kid="rsa", alg="RS256"), public(EC, kid="ec"))


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a good token; None takes one away."""
    good = {
        "iss": ISSUER,
        "sub": "248289761001",
        "aud": CLIENT,
        "nonce": NONCE,
        "exp": NOW_S + 300,
        "iat": NOW_S - 1,
    } | changes
    return {name: value for name, value in good.items() if value is not None}


def signed(key: Any = RSA, *, header: dict[str, Any] | None = None, **changes: Any) -> str:
    algorithm = "RS256" if isinstance(key, rsa.RSAPrivateKey) else "ES256"
    kid = "rsa" if algorithm == "RS256" else "ec"
    return jwt.encode(claims(**changes), key, algorithm=algorithm, headers={"kid": kid, **(header or {})})


def encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def part(document: Any) -> str:
    return encoded(json.dumps(document).encode())


def by_hand(header: dict[str, Any], secret: bytes | None = None, **changes: Any) -> str:
    """What libraries refuse to make."""
    text = f"{part(header)}.{part(claims(**changes))}"
    if secret is None:
        return f"{text}."
    mac = hmac.digest(secret, text.encode(), "sha256")
    return f"{text}.{encoded(mac)}"


def by_provider(header: bytes = b'{"alg": "RS256", "kid": "rsa"}', **changes: Any) -> str:
    """Rightly signed, whatever it says: libraries check what they sign."""
    text = f"{encoded(header)}.{part(claims(**changes))}"
    signature = jwt.algorithms.RSAAlgorithm(jwt.algorithms.RSAAlgorithm.SHA256).sign(text.encode(), RSA)
    return f"{text}.{encoded(signature)}"


def check(token: str, *, known: ProviderKeys = KEYS, now_ns: int = NOW_NS) -> dict[str, Any]:
    return check_id_token(token, keys=known, issuer=ISSUER, client_id=CLIENT, nonce=NONCE, now_ns=now_ns)


# -- attempts ---------------------------------------------------------------------------------------------------------


def test_attempt_is_read_from_its_cookie_until_it_ends() -> None:
    attempt = Attempt.begin(SERVER_KEY, now_ns=NOW_NS)
    assert Attempt.read(attempt.cookie, SERVER_KEY, now_ns=NOW_NS) == attempt
    last_ns = NOW_NS + ATTEMPT_S * SECOND_NS
    assert Attempt.read(attempt.cookie, SERVER_KEY, now_ns=last_ns - 1) == attempt
    assert Attempt.read(attempt.cookie, SERVER_KEY, now_ns=last_ns) is None
    assert Attempt.read(attempt.cookie, b"another" * 5, now_ns=NOW_NS) is None
    assert attempt.is_state(attempt.state)
    assert not attempt.is_state("")
    assert not attempt.is_state("é\ud800")


def test_cookie_tells_nothing_of_what_is_derived_from_it() -> None:
    one, other = (Attempt.begin(SERVER_KEY, now_ns=NOW_NS) for _ in range(2))
    parts = {one.state, one.nonce, one.verifier, other.state, other.nonce, other.verifier}
    assert len(parts) == 6
    assert not any(derived in one.cookie for derived in parts)
    assert not any(derived in repr(one) for derived in (*parts, one.cookie))
    assert 43 <= len(one.verifier) <= 128
    digest = hashlib.sha256(one.verifier.encode()).digest()
    assert base64.urlsafe_b64decode(one.challenge + "=") == digest


@given(st.integers(0, 200), st.sampled_from("AZaz09-_."))
def test_changed_cookie_is_none_of_ours(place: int, letter: str) -> None:
    cookie = Attempt.begin(SERVER_KEY, now_ns=NOW_NS).cookie
    place %= len(cookie)
    changed = cookie[:place] + letter + cookie[place + 1 :]
    if changed != cookie:
        assert Attempt.read(changed, SERVER_KEY, now_ns=NOW_NS) is None


@given(st.text(max_size=200))
def test_any_text_is_no_cookie(text: str) -> None:
    assert Attempt.read(text, SERVER_KEY, now_ns=NOW_NS) is None


# -- the provider -----------------------------------------------------------------------------------------------------


def test_browser_goes_to_the_provider_with_state_nonce_and_challenge() -> None:
    attempt = Attempt.begin(SERVER_KEY, now_ns=NOW_NS)
    address = urlsplit(provider().authorization_url(settings(scopes=("openid", "groups")), attempt))
    assert f"{address.scheme}://{address.netloc}{address.path}" == f"{ISSUER}/authorize"
    assert {name: values[0] for name, values in parse_qs(address.query).items()} == {
        "response_type": "code",
        "client_id": CLIENT,
        "redirect_uri": "https://scan.example.com/api/v1/auth/openid/callback",
        "scope": "openid groups",
        "state": attempt.state,
        "nonce": attempt.nonce,
        "code_challenge": attempt.challenge,
        "code_challenge_method": "S256",
    }
    assert attempt.verifier not in address.query
    with_query = provider(authorization_endpoint=f"{ISSUER}/authorize?policy=p")
    assert "?policy=p&response_type=code" in with_query.authorization_url(settings(), attempt)


def test_secret_goes_where_the_provider_takes_it() -> None:
    attempt = Attempt.begin(SERVER_KEY, now_ns=NOW_NS)
    form, headers = provider().token_request(settings(client_id="a:b"), attempt, code="c", secret="s %")  # noqa: S106
    assert "client_secret" not in form
    assert form["code_verifier"] == attempt.verifier
    assert headers == {"Authorization": f"Basic {base64.b64encode(b'a%3Ab:s+%25').decode()}"}
    in_body = provider(token_endpoint_auth_methods_supported=["client_secret_post", "private_key_jwt"])
    form, headers = in_body.token_request(settings(), attempt, code="c", secret="s")  # noqa: S106
    assert (form["client_secret"], headers) == ("s", {})
    form, headers = in_body.token_request(settings(), attempt, code="c", secret=None)
    assert ("client_secret" in form, headers) == (False, {})


@pytest.mark.parametrize(
    "other", ["https://id.example.com/", "https://ID.example.com", "https://evil.example", None, 1]
)
def test_document_of_another_issuer_is_refused(other: Any) -> None:
    with pytest.raises(Invalid, match="issuer"):
        provider(issuer=other)


@pytest.mark.parametrize("name", ["authorization_endpoint", "token_endpoint", "jwks_uri"])
@pytest.mark.parametrize(
    "address",
    [
        None,
        1,
        "",
        "/token",
        "http://id.example.com/token",
        "http://127.0.0.1/token",  # of a provider that is elsewhere
        "javascript:alert(1)",
        "https://",
        "https://ann:secret@id.example.com/",
        "https://id.example.com\\@evil.example/",
        "https://id.example.com/\nX: y",
        "https://id.example.com/#here",
        "https://[::1/",
        "https://id.example.com:x/",
        "https://id.example.com/" + "x" * 2_000,
    ],
)
def test_endpoint_that_is_no_address_over_tls_is_refused(name: str, address: Any) -> None:
    with pytest.raises(Invalid, match=name):
        provider(**{name: address})


@pytest.mark.parametrize("raw", [b"", b"[]", b"{", b"null", b"\xff", b'{"issuer": NaN}', b"[" * 100_000])
def test_what_is_no_document_is_refused(raw: bytes) -> None:
    with pytest.raises(Invalid):
        Provider.parse(raw, issuer=ISSUER)
    with pytest.raises(Invalid):
        ProviderKeys.parse(raw)


def test_provider_on_this_machine_may_be_plain() -> None:
    issuer = "http://localhost:9400"
    document = {name: value.replace(ISSUER, issuer) for name, value in DISCOVERY.items()}
    assert Provider.parse(json.dumps(document).encode(), issuer=issuer).token_endpoint == f"{issuer}/token"


# -- keys -------------------------------------------------------------------------------------------------------------


def test_keys_of_other_kinds_sizes_and_uses_are_passed_over() -> None:
    small = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)  # noqa: S505  # that is the point
    p384 = ec.generate_private_key(ec.SECP384R1())
    good = public(RSA, kid="good")
    modulus = RSA.public_key().public_numbers().n
    found = keys(
        None,
        "key",
        {},
        {"kty": "oct", "k": part("x"), "kid": "secret"},
        {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43},
        public(small, kid="small"),
        public(p384, kid="p384", crv="P-384"),
        public(RSA, kid="encrypts", use="enc"),
        public(RSA, kid="other", alg="PS256"),
        public(RSA, kid="signs", key_ops=["sign"]),
        {**good, "n": 5},
        {**good, "n": "!"},
        {**good, "e": part("x" * 2_000)},
        {**good, "n": base64.urlsafe_b64encode((modulus << 8_000).to_bytes(1_300, "big")).decode()},
        good,
    )
    assert [key.kid for key in found.keys] == ["good"]
    assert len(keys(*[good] * (MOST_KEYS + 5)).keys) == MOST_KEYS


def test_private_part_that_is_published_signs_nothing_here() -> None:
    private = jwt.algorithms.RSAAlgorithm.to_jwk(RSA, as_dict=True)
    (key,) = keys({**private, "kid": "rsa", "key_ops": ["verify"]}).keys
    assert isinstance(key.public, rsa.RSAPublicKey)


# -- ID tokens --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [RSA, EC])
def test_good_token_is_taken(key: Any) -> None:
    assert check(signed(key)) == claims()
    assert check(signed(key, aud=[CLIENT]))["aud"] == [CLIENT]
    assert check(signed(key, aud=["other", CLIENT], azp=CLIENT))["azp"] == CLIENT
    assert check(signed(key, exp=NOW_S + 10.5, nbf=NOW_S))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"iss": "https://id.example.com/"}, "another issuer"),
        ({"iss": None}, "another issuer"),
        ({"iss": [ISSUER]}, "another issuer"),
        ({"aud": "other"}, "another client"),
        ({"aud": None}, "another client"),
        ({"aud": []}, "another client"),
        ({"aud": f"{CLIENT} other"}, "another client"),
        ({"aud": [CLIENT, "other"]}, "another client"),
        ({"aud": [CLIENT, "other"], "azp": "other"}, "another client"),
        ({"azp": "other"}, "another client"),
        ({"nonce": "another"}, "another sign-in"),
        ({"nonce": None}, "another sign-in"),
        ({"nonce": [NONCE]}, "another sign-in"),
        ({"nonce": ""}, "another sign-in"),
        ({"exp": NOW_S - 60}, "expired"),
        ({"exp": None}, "exp is no time"),
        ({"exp": str(NOW_S + 300)}, "exp is no time"),
        ({"exp": True}, "exp is no time"),
        ({"iat": None}, "iat is no time"),
        ({"iat": NOW_S + 61}, "begins later"),
        ({"nbf": NOW_S + 61}, "begins later"),
        ({"iat": NOW_S - ATTEMPT_S - 61}, "before this sign-in began"),
        ({"sub": None}, "names nobody"),
        ({"sub": ""}, "names nobody"),
        ({"sub": "x" * 256}, "names nobody"),
        ({"sub": "a\0b"}, "names nobody"),
        ({"sub": ["ann"]}, "names nobody"),
    ],
)
def test_token_that_is_not_for_this_attempt_is_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(Unauthorized, match=why):
        check(by_provider(**changes))


def test_token_that_does_not_name_its_key_is_tried_with_each() -> None:
    known = keys(public(OTHER_RSA), public(EC), public(RSA, kid="rsa"))
    assert check(by_provider(b'{"alg": "RS256"}'), known=known) == claims()
    with pytest.raises(UnknownKey, match="not signed by the provider"):
        check(by_provider(b'{"alg": "RS256"}'), known=keys(public(OTHER_RSA)))


def test_clocks_may_differ_by_a_minute() -> None:
    assert check(by_provider(exp=NOW_S - 59))
    assert check(by_provider(iat=NOW_S + 59))
    assert check(by_provider(nbf=NOW_S + 59))


PEM = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DER = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
JWK = json.dumps(public(RSA, kid="rsa", alg="RS256")).encode()
FORGED = {
    "unsigned": by_hand({"alg": "none"}),
    "unsigned, in capitals": by_hand({"alg": "NONE", "kid": "rsa"}),
    "unsigned, as RS256": by_hand({"alg": "RS256", "kid": "rsa"}),
    "HMAC with the public key (PEM)": by_hand({"alg": "HS256", "kid": "rsa"}, PEM),
    "HMAC with the public key (DER)": by_hand({"alg": "HS256", "kid": "rsa"}, DER),
    "HMAC with the published key": by_hand({"alg": "HS256", "kid": "rsa"}, JWK),
    "HMAC, said to be RS256": by_hand({"alg": "RS256", "kid": "rsa"}, PEM),
    "a key of the sender's": signed(OTHER_RSA),
    "a key that it brings along": signed(OTHER_RSA, header={"jwk": public(OTHER_RSA)}),
    "a key that is elsewhere": signed(OTHER_RSA, header={"jku": "https://evil.example/jwks"}),
    "a key of another kind": signed(EC, header={"kid": "rsa"}),
    "another algorithm of the right key": jwt.encode(claims(), RSA, algorithm="RS512", headers={"kid": "rsa"}),
    "PSS with the right key": jwt.encode(claims(), RSA, algorithm="PS256", headers={"kid": "rsa"}),
    "an extension": signed(header={"crit": ["exp"], "exp": 1}),
    "an access token": signed(header={"typ": "at+jwt"}),
    "a token of a sign-out": signed(header={"typ": "logout+jwt"}),
    "a number for a key": by_provider(b'{"alg": "RS256", "kid": 7}'),
    "algorithms in a list": by_provider(b'{"alg": ["RS256"], "kid": "rsa"}'),
    "claims that are a list": jwt.PyJWS().encode(b"[]", RSA, algorithm="RS256", headers={"kid": "rsa"}),
    "claims of which one stands twice": jwt.PyJWS().encode(
        json.dumps(claims())[:-1].encode() + b', "sub": "root"}', RSA, algorithm="RS256", headers={"kid": "rsa"}
    ),
    "no header": f"{part([])}.{part(claims())}.x",
    "two algorithms": by_provider(b'{"alg": "none", "kid": "rsa", "alg": "RS256"}'),
    "too long": signed(groups=["x" * 100] * (LONGEST_TOKEN // 100)),
    "five parts": f"{signed()}.x.y",
    "two parts": signed().rpartition(".")[0],
    "nothing": "",
    "dots": "..",
    "other letters": "é.é.é",
}


@pytest.mark.parametrize("token", FORGED.values(), ids=FORGED.keys())
def test_forged_token_is_refused(token: str) -> None:
    with pytest.raises(Unauthorized):
        check(token)


def test_signed_text_that_was_changed_is_refused() -> None:
    head, _, signature = signed().split(".")
    with pytest.raises(Unauthorized, match="not signed by the provider"):
        check(f"{head}.{part(claims(sub='root'))}.{signature}")


def test_unknown_key_is_told_from_a_wrong_signature() -> None:
    with pytest.raises(UnknownKey):
        check(signed(header={"kid": "new"}))
    with pytest.raises(UnknownKey):
        check(signed(), known=ProviderKeys())
    with pytest.raises(Unauthorized) as caught:
        check(signed(OTHER_RSA))
    assert not isinstance(caught.value, UnknownKey)


@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=100))
def test_any_bytes_are_refused_and_nothing_else_happens(head: bytes, body: bytes, signature: bytes) -> None:
    token = ".".join(base64.urlsafe_b64encode(raw).decode().rstrip("=") for raw in (head, body, signature))
    with pytest.raises(Unauthorized):
        check(token)


# -- who that is ------------------------------------------------------------------------------------------------------


def test_strongest_role_of_the_claim_counts() -> None:
    mapped = settings(role_claim="groups", roles={"desk": "trader", "root": "admin", "audit": "operator"})
    assert role_of(claims(groups=["desk", "audit", "unknown", 5, None]), mapped) == "operator"
    assert role_of(claims(groups="desk"), mapped) == "trader"
    for nothing in ([], None, "unknown", ["Root"], {"root": True}, 1, [["root"]]):
        assert role_of({"groups": nothing}, mapped) == "viewer"
    closed = settings(role_claim="groups", roles={"desk": "trader"}, default_role=None)
    assert role_of(claims(groups=["audit"]), closed) is None
    assert role_of(claims(groups=["root"]), settings()) == "viewer"


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ({"preferred_username": "ann", "email": "a@example.com", "email_verified": True}, "ann"),
        ({"email": "a@example.com", "email_verified": True}, "a@example.com"),
        ({"email": "a@example.com", "email_verified": "true", "name": "Ann O'Hara"}, "Ann-O-Hara"),
        ({"preferred_username": "x" * 300}, "x" * 64),
        ({"preferred_username": "../../etc"}, "etc"),
        ({"preferred_username": 5, "name": "Änne"}, "nne"),
    ],
)
def test_new_user_is_called_as_the_provider_says(said: dict[str, Any], name: str) -> None:
    best, second, last = names_of(claims(**said))
    assert best == name
    assert len({best, second, last, *names_of(claims(**said, sub="another"))}) == 5
    for one in (best, second, last):
        check_name(one)


@given(st.dictionaries(st.sampled_from(["preferred_username", "email", "name"]), st.text() | st.none(), max_size=3))
def test_whatever_the_provider_says_is_a_name_here(said: dict[str, Any]) -> None:
    for name in names_of(claims(email_verified=True, **said)):
        check_name(name)
    shown = display_name_of(said)
    assert len(shown) <= 100
    assert shown.isprintable()
