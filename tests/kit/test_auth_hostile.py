"""Hostile tokens: whatever a client sends, it is refused in words and in bounded time."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.kit.auth.authenticator import Authenticator, authenticator
from market.kit.auth.bearer import bearer_token
from market.kit.auth.config import Auth
from market.kit.auth.identity import Role
from market.kit.errors import Unauthenticated, Unavailable
from tests.support.issuer import Issuer, sign
from tests.support.waiting import until


@pytest.fixture(scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as running:
        yield running


@pytest.fixture(scope="module")
async def authentication(issuer: Issuer) -> AsyncIterator[Authenticator]:
    # Keys that are unknown must not slow this test down: they are fetched again once.
    async with authenticator(
        Auth(mode="required", issuer=issuer.url, min_refetch_seconds=300, timeout_seconds=0.1)
    ) as one:
        assert one is not None

        async def has_keys() -> bool:
            try:
                await one.authenticate(issuer.token())
            except Unavailable:
                # The first fetch took too long, and is repeated.
                return False
            return True

        await until(has_keys, what="the issuer's keys")
        yield one


async def outcome(authentication: Authenticator, authorization: str) -> str:
    """Return the subject, or the reason for the refusal. Nothing but Unauthenticated may be raised, or Unavailable."""
    started = time.thread_time()
    challenge = ""
    try:
        result = (await authentication.authenticate(bearer_token(authorization))).subject
    except Unauthenticated as e:
        result, challenge = str(e), e.challenge
    except Unavailable:
        # It names a key that the issuer could have, which cannot be looked up within the short timeout.
        result = "the token has an unknown key"
    assert challenge.isascii()
    assert challenge.isprintable()
    assert time.thread_time() - started < 5
    return result


bounded = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
# Headers may have any bytes (RFC 9110), which the edge decodes as Latin-1.
header_text = st.text(st.characters(max_codepoint=255), max_size=200)
base64_text = st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=.+/", max_size=200)


@bounded
@given(text=header_text | base64_text | st.tuples(base64_text, base64_text, base64_text).map(".".join))
async def test_any_text_is_refused(authentication: Authenticator, text: str) -> None:
    assert (await outcome(authentication, text)).startswith("the token ")
    assert (await outcome(authentication, f"Bearer {text}")).startswith("the token ")


@bounded
@given(header=json_values | st.dictionaries(st.sampled_from(["alg", "kid", "typ", "crit", "b64", "x5c"]), json_values))
async def test_any_header_is_refused(authentication: Authenticator, header: Any) -> None:
    text = ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in (encode(header), b"{}", b"x"))
    assert (await outcome(authentication, f"Bearer {text}")).startswith("the token ")


@bounded
@given(claims=json_values)
async def test_any_payload_that_the_issuer_has_signed_is_refused(
    authentication: Authenticator, issuer: Issuer, claims: Any
) -> None:
    key = issuer.signing_key
    token = sign({"alg": key.algorithm, "kid": key.kid}, claims, key)
    assert (await outcome(authentication, f"Bearer {token}")).startswith("the token ")


@bounded
@given(
    name=st.sampled_from(
        ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "roles", "email", "email_verified", "scope"]
    ),
    value=json_values,
)
async def test_a_claim_of_any_type_is_refused_or_harmless(
    authentication: Authenticator, issuer: Issuer, name: str, value: Any
) -> None:
    key = issuer.signing_key
    now = int(time.time())
    claims = {"iss": issuer.url, "sub": "ann", "aud": "market", "exp": now + 600, "roles": [], name: value}
    token = sign({"alg": key.algorithm, "kid": key.kid}, claims, key)
    result = await outcome(authentication, f"Bearer {token}")
    if not result.startswith("the token "):
        identity = await authentication.authenticate(token)
        assert identity.subject == claims["sub"]
        assert identity.roles <= {Role.BUYER, Role.MERCHANT, Role.OPERATOR, Role.SERVICE}
        assert identity.email is None


@bounded
@given(position=st.integers(min_value=0), bit=st.integers(min_value=0, max_value=7))
async def test_a_token_with_one_changed_bit_is_refused(
    authentication: Authenticator, issuer: Issuer, position: int, bit: int
) -> None:
    data = bytearray(issuer.token(algorithm="ES256").encode())
    data[position % len(data)] ^= 1 << bit
    assert (await outcome(authentication, f"Bearer {data.decode('latin-1')}")).startswith("the token ")


@pytest.mark.parametrize("character", ["[", '{"a":', "\x00", "9", "e", '"'])
async def test_deep_and_long_documents_are_refused(
    authentication: Authenticator, issuer: Issuer, character: str
) -> None:
    for size in (1_000, 5_000, 70_000):
        part = base64.urlsafe_b64encode((character * (size // len(character))).encode()).rstrip(b"=").decode()
        key = issuer.signing_key
        header = base64.urlsafe_b64encode(encode({"alg": key.algorithm, "kid": key.kid})).rstrip(b"=").decode()
        signature = base64.urlsafe_b64encode(key.sign(f"{header}.{part}".encode())).rstrip(b"=").decode()
        for token in (f"{part}.{part}.{part}", f"{header}.{part}.{signature}", part):
            result = await outcome(authentication, f"Bearer {token}")
            assert result in ("the token is not a signed JWT", "the token is longer than 8192 bytes")


def encode(value: Any) -> bytes:
    return json.dumps(value).encode()
