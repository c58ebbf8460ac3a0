"""Access tokens: which are good, and everything that people have tried with tokens elsewhere."""

import base64
import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapewatch.accounts.tokens import (
    ACCESS_S,
    LONGEST_TOKEN,
    Keys,
    is_secret,
    new_api_token,
    new_refresh_token,
    new_session_id,
    parse_api_token,
    parse_refresh_token,
)
from tapewatch.engine.columns import SECOND_NS
from tapewatch.errors import ConfigError, Unauthorized

SECRET = "5f1c0e7a9b3d2846c1f0a7e9d8b35264"  # noqa: S105  # of tests
OTHER = "0b7d42f5a9c81e63d5f0a2b4c6e8917d"
NOW_S = 1_800_000_000
NOW_NS = NOW_S * SECOND_NS
HOME = "installation-one"
KEYS = Keys(SECRET)
PUBLIC_KEY = (
    "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEEVs/o5+uQbTjL3chynL4wXgUg2R9\n"
    "q9UU8I5mEovUf86QZ7kOBIjJwqnzD1omageEHWwHdBO6B+dFabmdT9POxg==\n-----END PUBLIC KEY-----\n"
)


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a good token; None takes one away."""
    good = {
        "iss": "tapewatch",
        "aud": HOME,
        "sub": "u1",
        "exp": NOW_S + 600,
        "iat": NOW_S - 60,
        "jti": "j1",
        "sid": "s1",
        "typ": "access",
        "epoch": 3,
    } | changes
    return {name: value for name, value in good.items() if value is not None}


def part(document: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


def signed(payload: Any, *, header: Any = None, secret: str = SECRET) -> str:
    """By hand, as an attacker does who has the secret: libraries refuse to make most of these."""
    message = f"{part(header or {'alg': 'HS256', 'typ': 'JWT'})}.{part(payload)}"
    key = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    signature = key.sign(message.encode(), secret.encode())
    return f"{message}.{base64.urlsafe_b64encode(signature).decode().rstrip('=')}"


def is_refused(token: str, *, keys: Keys = KEYS, now_ns: int = NOW_NS) -> bool:
    try:
        keys.read(token, audience=HOME, now_ns=now_ns)
    except Unauthorized:
        return True
    return False


def test_token_says_who_until_when() -> None:
    token = KEYS.sign(user_id="u1", session_id="s1", epoch=3, audience=HOME, now_ns=NOW_NS)
    read = KEYS.read(token, audience=HOME, now_ns=NOW_NS + SECOND_NS)
    assert (read.user_id, read.session_id, read.epoch) == ("u1", "s1", 3)
    assert read.expires_ns == NOW_NS + ACCESS_S * SECOND_NS
    assert len(token) < 600


def test_token_made_by_hand_is_good() -> None:
    assert not is_refused(signed(claims()))
    assert not is_refused(signed(claims(), header={"alg": "HS256"}))
    assert not is_refused(signed(claims(nbf=NOW_S - 1)))


@pytest.mark.parametrize("token", ["", "null", "undefined", ".", "..", "a.b.c", "é" * 30, "\ud800", "Bearer x", "\0"])
def test_what_is_no_token_is_refused(token: str) -> None:
    assert is_refused(token)


@pytest.mark.parametrize("name", ["none", "None", "nOnE", "NONE", "", "hs256", "HS384", "HS512", "RS256", "ES256"])
def test_no_other_algorithm_is_taken(name: str) -> None:
    assert is_refused(signed(claims(), header={"alg": name, "typ": "JWT"}))
    unsigned = f"{part({'alg': name, 'typ': 'JWT'})}.{part(claims())}."
    assert is_refused(unsigned)


def test_public_key_is_no_secret() -> None:
    assert is_refused(signed(claims(), secret=PUBLIC_KEY))


@pytest.mark.parametrize(
    "member",
    [
        {"jku": "https://evil.example/keys"},
        {"x5u": "https://evil.example/cert"},
        {"jwk": {"kty": "oct", "k": "c2VjcmV0"}},
        {"kid": "../../dev/null"},
        {"kid": "1' UNION SELECT 'secret"},
        {"crit": ["exp"]},
        {"crit": ["made-up"], "made-up": True},
        {"b64": False},
        {"zip": "DEF"},
        {"cty": "JWT"},
        {"enc": "A256GCM"},
        {"typ": "JWE"},
        {"typ": "at+jwt"},
        {"typ": None},
    ],
    ids=str,
)
def test_header_says_nothing_but_algorithm_and_type(member: dict[str, Any]) -> None:
    assert is_refused(signed(claims(), header={"alg": "HS256", "typ": "JWT"} | member))


def test_header_with_a_doubled_member_is_refused() -> None:
    head = base64.urlsafe_b64encode(b'{"alg":"none","alg":"HS256","typ":"JWT"}').decode().rstrip("=")
    good = signed(claims())
    assert is_refused(f"{head}.{good.partition('.')[2]}")


@pytest.mark.parametrize(
    "changes",
    [
        {"exp": NOW_S},
        {"exp": NOW_S - 1},
        {"exp": None},
        {"exp": str(NOW_S + 600)},
        {"exp": NOW_S + 600.0},
        {"exp": NOW_S + 600.5},
        {"exp": 10**20},
        {"exp": True},
        {"exp": NOW_S + 3600},
        {"exp": -1},
        {"nbf": NOW_S + 3600},
        {"nbf": str(NOW_S)},
        {"nbf": NOW_S + 0.5},
        {"iat": NOW_S + 3600, "exp": NOW_S + 3700},
        {"iat": None},
        {"iat": float(NOW_S)},
        {"iss": "somebody"},
        {"iss": None},
        {"iss": ["tapewatch"]},
        {"aud": "installation-two"},
        {"aud": [HOME]},
        {"aud": [HOME, "installation-two"]},
        {"aud": None},
        {"typ": "refresh"},
        {"typ": None},
        {"typ": ["access"]},
        {"sub": None},
        {"sub": 1},
        {"sid": None},
        {"jti": None},
        {"epoch": None},
        {"epoch": "3"},
        {"epoch": 3.0},
        {"epoch": True},
        {"role": "admin"},
    ],
    ids=str,
)
def test_claims_are_all_there_and_strict(changes: dict[str, Any]) -> None:
    assert is_refused(signed(claims(**changes)))


@pytest.mark.parametrize("payload", [[], "text", 1, None, {}, [claims()]], ids=str)
def test_payload_that_is_no_object_of_claims_is_refused(payload: Any) -> None:
    assert is_refused(signed(payload))


@pytest.mark.parametrize(
    "token",
    [
        "a" * 1_000_000,
        "." * 1_000_000,
        signed({"a": "b" * 1_000_000}),
        f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{'W1tb' * 900}.x",
        "eyJhbGciOiJkaXIiLCJlbmMiOiJBMjU2R0NNIiwiemlwIjoiREVGIn0..AAAA.AAAA.AAAA",
        base64.urlsafe_b64encode(b"[" * 3_000).decode(),
    ],
    ids=["1 MB", "1 MB of dots", "1 MB signed", "nested", "JWE", "nested header"],
)
def test_huge_and_deep_tokens_are_refused_in_no_time(token: str) -> None:
    began = time.perf_counter()
    for _ in range(10):
        assert is_refused(token)
    assert (time.perf_counter() - began) / 10 < 0.005


def test_token_beyond_the_bound_is_refused_though_it_is_signed() -> None:
    assert len(signed(claims(sub="u" * LONGEST_TOKEN))) > LONGEST_TOKEN
    assert is_refused(signed(claims(sub="u" * LONGEST_TOKEN)))


def test_older_key_verifies_until_its_time() -> None:
    keys = Keys(OTHER, {SECRET: NOW_NS + 60 * SECOND_NS})
    old = KEYS.sign(user_id="u1", session_id="s1", epoch=1, audience=HOME, now_ns=NOW_NS)
    new = keys.sign(user_id="u1", session_id="s1", epoch=1, audience=HOME, now_ns=NOW_NS)
    assert not is_refused(old, keys=keys, now_ns=NOW_NS + 59 * SECOND_NS)
    assert is_refused(old, keys=keys, now_ns=NOW_NS + 60 * SECOND_NS)
    assert not is_refused(new, keys=keys, now_ns=NOW_NS + 61 * SECOND_NS)
    assert is_refused(new)  # the newest one signed it


def test_keys_are_read_from_lines() -> None:
    keys = Keys.parse(f"{OTHER}\n\n{SECRET} until 2027-01-15T08:00:00Z\n")
    assert NOW_NS == 1_800_000_000 * SECOND_NS  # which is that very time
    old = KEYS.sign(user_id="u1", session_id="s1", epoch=1, audience=HOME, now_ns=NOW_NS - 10 * SECOND_NS)
    assert not is_refused(old, keys=keys, now_ns=NOW_NS - 1)
    assert is_refused(old, keys=keys, now_ns=NOW_NS)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "at least 32 bytes"),
        ("short", "at least 32 bytes"),
        (SECRET[:31], "at least 32 bytes"),
        ("a" * 64, "an example that everybody knows"),
        ("abcabcabcabcabcabcabcabcabcabcabcabc", "an example that everybody knows"),
        ("your-256-bit-secret-your-256-bit-secret", "an example that everybody knows"),
        ("a-string-secret-at-least-256-bits-long", "an example that everybody knows"),
        ("your-super-secret-jwt-token-with-at-least-32-characters-long", "an example that everybody knows"),
        ("09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7", "an example that everybody knows"),
        ("please-CHANGE_ME-please-0123456789abcdef", "an example that everybody knows"),
        (f"{SECRET}\n{OTHER}", "a line is: SECRET until"),
        (f"{SECRET}\n{OTHER} until tomorrow", "a line is: SECRET until"),
        (f"{SECRET}\n{OTHER} until 2027-01-15T08:00:00", "a line is: SECRET until"),
        (f"{SECRET}\nshort until 2027-01-15T08:00:00Z", "at least 32 bytes"),
        (f"{SECRET} until 2027-01-15T08:00:00Z", "without spaces"),
    ],
)
def test_weak_and_published_secrets_are_refused_and_not_repeated(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        Keys.parse(text, where="TAPEWATCH_SECRET")
    assert str(caught.value).startswith("TAPEWATCH_SECRET: ")
    assert SECRET not in str(caught.value)


def test_keys_show_no_secret() -> None:
    assert SECRET not in repr(KEYS) + repr(vars(KEYS))


@given(st.text(alphabet=st.characters(max_codepoint=300), max_size=200))
def test_any_text_is_refused_and_nothing_else_happens(text: str) -> None:
    assert is_refused(text)
    assert parse_api_token(text) is None
    assert parse_refresh_token(text) is None


@given(place=st.integers(0, 10_000), letter=st.sampled_from("ABab01-_."))
def test_token_that_was_touched_anywhere_is_refused(place: int, letter: str) -> None:
    token = signed(claims())
    place %= len(token)
    touched = token[:place] + letter + token[place + 1 :]
    if touched != token and place < len(token) - 1:  # the last letter has bits that mean nothing
        assert is_refused(touched)


def test_api_token_is_taken_apart_again() -> None:
    token_id, secret_hash, token = new_api_token()
    parts = parse_api_token(token)
    assert parts is not None
    assert parts[0] == token_id
    assert is_secret(parts[1], secret_hash)
    assert not is_secret(parts[1][:-1] + ("A" if parts[1][-1] != "A" else "B"), secret_hash)
    assert parts[1] not in secret_hash


def test_refresh_token_is_taken_apart_again() -> None:
    session_id = new_session_id()
    refresh_hash, token = new_refresh_token(session_id)
    parts = parse_refresh_token(token)
    assert parts is not None
    assert parts[0] == session_id
    assert is_secret(parts[1], refresh_hash)
    assert new_refresh_token(session_id)[1] != token
