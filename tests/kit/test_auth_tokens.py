"""Verification of tokens that a real issuer on this machine has signed."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY

from market.kit.auth.authenticator import Authenticator, authenticator
from market.kit.auth.bearer import bearer_token
from market.kit.auth.config import Auth
from market.kit.auth.identity import Identity, Role
from market.kit.errors import Unauthenticated
from tests.support.issuer import Issuer, SigningKey, sign


@pytest.fixture(scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as running:
        yield running


@asynccontextmanager
async def verifying(issuer: Issuer, *, clock: Any = time.time, callers: Any = None, **auth: Any) -> AsyncIterator[Any]:
    config = Auth(**{"mode": "required", "issuer": issuer.url, "min_refetch_seconds": 0.1, **auth})
    async with authenticator(config, callers=callers, clock=clock) as authentication:
        yield authentication


async def refusal(authentication: Authenticator, token: str) -> str:
    """Return the reason for which the token is refused."""
    with pytest.raises(Unauthenticated) as refused:
        await authentication.authenticate(token)
    assert refused.value.challenge.startswith('Bearer realm="market", error="invalid_token", error_description="')
    # RFC 6750 section 3 allows neither quotes nor backslashes nor anything but ASCII.
    assert refused.value.challenge.isascii()
    assert refused.value.challenge.count('"') == 6
    return str(refused.value)


async def test_in_mode_open_there_is_no_authenticator() -> None:
    async with authenticator(Auth()) as authentication:
        assert authentication is None


@pytest.mark.parametrize("algorithm", ["ES256", "RS256", "PS256", "EdDSA"])
async def test_a_token_identifies_its_subject(issuer: Issuer, algorithm: str) -> None:
    key = next(key for key in issuer.keys if key.algorithm == algorithm)
    token = issuer.token("ann", roles=["merchant", "unknown"], email="ann@example.com", key=key)
    async with verifying(issuer) as authentication:
        identity = await authentication.authenticate(token)
        assert identity == Identity("ann", frozenset({Role.MERCHANT}), "ann@example.com")
    assert token not in repr(identity)


@pytest.mark.parametrize("header", ["Bearer t.o.k", "bearer t.o.k", "BEARER   t.o.k "])
def test_the_token_is_what_follows_the_scheme(header: str) -> None:
    """The scheme may have any case (RFC 9110 section 11.1), and be followed by several spaces."""
    assert bearer_token(header) == "t.o.k"


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer  ", "Basic YTpi", "t.o.k", "Bearer\tt.o.k"])
def test_another_scheme_than_bearer_is_refused(header: str) -> None:
    with pytest.raises(Unauthenticated, match="the token must be sent as Authorization: Bearer"):
        bearer_token(header)


async def test_one_token_is_cached_once(issuer: Issuer) -> None:
    token = issuer.token("ann")
    async with verifying(issuer) as authentication:
        for spaces in range(1, 5):
            await authentication.authenticate(bearer_token(f"Bearer{' ' * spaces}{token}"))
        assert REGISTRY.get_sample_value("market_auth_cached_tokens") == 1


@pytest.mark.parametrize(
    ("claims", "roles"),
    [
        ({}, {Role.BUYER}),
        ({"roles": []}, {Role.BUYER}),
        ({"roles": ["admin"]}, {Role.BUYER}),
        ({"roles": ["operator"]}, {Role.OPERATOR}),
        ({"roles": ["merchant", "buyer"]}, {Role.MERCHANT, Role.BUYER}),
    ],
)
async def test_a_caller_who_signs_in_without_another_role_is_a_buyer(
    issuer: Issuer, claims: dict[str, Any], roles: set[Role]
) -> None:
    async with verifying(issuer) as authentication:
        assert (await authentication.authenticate(issuer.token(**claims))).roles == roles


@pytest.mark.parametrize(
    ("path", "claims"),
    [
        ("realm_access.roles", {"realm_access": {"roles": ["Verkauf"]}}),
        ("resource_access.market.roles", {"resource_access": {"market": {"roles": ["Verkauf", "Einkauf"]}}}),
        ("https://shop.example/roles", {"https://shop.example/roles": ["Verkauf"]}),
    ],
)
async def test_the_issuer_may_name_roles_in_its_own_way(issuer: Issuer, path: str, claims: dict[str, Any]) -> None:
    async with verifying(issuer, roles_claim=path, roles={"Verkauf": Role.MERCHANT}) as authentication:
        identity = await authentication.authenticate(issuer.token(roles=None, **claims))
    assert identity.roles == {Role.MERCHANT}


async def test_only_a_verified_address_is_the_callers(issuer: Issuer) -> None:
    async with verifying(issuer) as authentication:
        for claims in (
            {"email": "ann@example.com", "email_verified": False},
            {"email": "ann@example.com", "email_verified": "true"},
            {"email": "ann@example.com", "email_verified": None},
            {"email": ["ann@example.com"], "email_verified": True},
            {"email": "a" * 300 + "@example.com", "email_verified": True},
        ):
            assert (await authentication.authenticate(issuer.token(**claims))).email is None


async def test_a_service_is_known_by_the_subject_of_its_token(issuer: Issuer) -> None:
    subject = "system:serviceaccount:market:order-service"
    async with verifying(issuer, callers={subject: "orders"}) as authentication:
        identity = await authentication.authenticate(issuer.token(subject))
        other = await authentication.authenticate(issuer.token("system:serviceaccount:market:other"))
    assert identity == Identity(subject, frozenset({Role.SERVICE}), None, "orders")
    assert other.service is None


@pytest.mark.parametrize("typ", ["at+jwt", "AT+JWT", "application/at+jwt"])
async def test_access_tokens_have_a_type(issuer: Issuer, typ: str) -> None:
    async with verifying(issuer, require_access_token_type=True) as authentication:
        assert (await authentication.authenticate(issuer.token(typ=typ))).subject == "ann"
        for other in ("JWT", None):
            reason = await refusal(authentication, issuer.token(typ=other))
            assert reason == "the token has a type that is not accepted"
    async with verifying(issuer) as authentication:
        for other in ("JWT", None):
            assert (await authentication.authenticate(issuer.token(typ=other))).subject == "ann"
        assert (
            await refusal(authentication, issuer.token(typ="secevent+jwt"))
            == "the token has a type that is not accepted"
        )


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ({"issuer": "https://login.example.com"}, "was issued by another issuer"),
        ({"iss": 7}, "was issued by another issuer"),
        ({"audience": "another-shop"}, "was issued for another audience"),
        ({"audience": ["another-shop", "account"]}, "was issued for another audience"),
        ({"audience": {"market": True}}, "was issued for another audience"),
        ({"audience": None}, "lacks one of the claims iss, aud, exp and sub"),
        ({"subject": None}, "lacks one of the claims iss, aud, exp and sub"),
        ({"exp": None}, "lacks one of the claims iss, aud, exp and sub"),
        ({"expires_in": -300}, "has expired"),
        ({"exp": "tomorrow"}, "has an invalid exp; it must be a number of seconds"),
        ({"exp": True}, "has an invalid exp; it must be a number of seconds"),
        ({"exp": [1]}, "has an invalid exp; it must be a number of seconds"),
        ({"not_before": 300}, "is not valid yet"),
        ({"nbf": "now"}, "has an invalid nbf; it must be a number of seconds"),
        ({"iat": 4_000_000_000}, "was issued in the future"),
        ({"subject": ""}, "has an invalid sub; it must have 1 to 200 visible characters"),
        ({"subject": "a" * 201}, "has an invalid sub; it must have 1 to 200 visible characters"),
        ({"subject": "ann\nroot"}, "has an invalid sub; it must have 1 to 200 visible characters"),
        ({"subject": "\u202eann"}, "has an invalid sub; it must have 1 to 200 visible characters"),
        ({"sub": 7}, "has an invalid sub; it must have 1 to 200 visible characters"),
        ({"sub": ["ann"]}, "has an invalid sub; it must have 1 to 200 visible characters"),
        ({"roles": "merchant"}, "has roles that are not a list of strings"),
        ({"roles": {"merchant": True}}, "has roles that are not a list of strings"),
        ({"roles": ["merchant", 7]}, "has roles that are not a list of strings"),
        ({"roles": 7}, "has roles that are not a list of strings"),
        ({"algorithm": "none"}, "has an algorithm that is not accepted"),
        ({"algorithm": "HS256"}, "has an algorithm that is not accepted"),
        ({"algorithm": "ES384"}, "has an algorithm that is not accepted"),
        ({"algorithm": "RS256"}, "has an invalid signature"),
        ({"kid": "unknown"}, "was signed with an unknown key"),
        ({"kid": "k" * 600}, "was signed with an unknown key"),
        ({"padding": "x" * 100_000}, "is longer than 8192 bytes"),
    ],
)
async def test_a_token_that_breaks_a_rule_is_refused_with_the_rule(
    issuer: Issuer, token: dict[str, Any], reason: str
) -> None:
    async with verifying(issuer) as authentication:
        assert await refusal(authentication, issuer.token(**token)) == f"the token {reason}"


async def test_roles_on_a_path_that_leads_nowhere_are_no_roles(issuer: Issuer) -> None:
    async with verifying(issuer, roles_claim="realm_access.roles") as authentication:
        assert (await authentication.authenticate(issuer.token())).roles == {Role.BUYER}
        for value in ("merchant", ["merchant"], 7):
            reason = await refusal(authentication, issuer.token(realm_access=value))
            assert reason == "the token has roles that are not a list of strings"


async def test_the_key_is_what_counts_not_its_id(issuer: Issuer) -> None:
    forged = issuer.token(key=SigningKey(), kid=issuer.signing_key.kid)
    async with verifying(issuer) as authentication:
        assert await refusal(authentication, forged) == "the token has an invalid signature"


async def test_a_public_key_is_no_secret_for_hmac(issuer: Issuer) -> None:
    """The attack on verifiers that use whatever algorithm a token names (RFC 8725 section 2.1)."""
    key = issuer.keys[1]
    assert key.algorithm == "RS256"
    async with verifying(issuer) as authentication:
        reason = await refusal(authentication, issuer.token(key=key, algorithm="HS256"))
    assert reason == "the token has an algorithm that is not accepted"


@pytest.mark.parametrize(
    "header",
    [{"crit": ["exp"]}, {"crit": []}, {"crit": ["b64"], "b64": False}, {"b64": False}, {"crit": "b64"}, {"b64": True}],
)
async def test_extensions_that_change_what_is_signed_are_refused(issuer: Issuer, header: dict[str, Any]) -> None:
    claims = payload(issuer.token())
    key = issuer.signing_key
    token = sign({"alg": key.algorithm, "kid": key.kid, **header}, claims, key)
    async with verifying(issuer) as authentication:
        assert await refusal(authentication, token) == "the token has header parameters that are not supported"


async def test_unknown_header_parameters_are_ignored_and_keys_in_them_not_trusted(issuer: Issuer) -> None:
    claims, own, foreign = payload(issuer.token()), issuer.signing_key, SigningKey()
    extra = {"nonce": "x", "x5c": ["a" * 2000], "jku": "http://127.0.0.1:1/keys", "jwk": foreign.jwk}
    async with verifying(issuer) as authentication:
        token = sign({"alg": "ES256", "kid": own.kid, **extra}, claims, own)
        assert (await authentication.authenticate(token)).subject == "ann"
        token = sign({"alg": "ES256", "kid": own.kid, **extra}, claims, foreign)
        assert await refusal(authentication, token) == "the token has an invalid signature"


async def test_a_token_without_a_key_id_is_accepted_if_there_is_only_one_key(issuer: Issuer) -> None:
    key = issuer.signing_key
    token = sign({"alg": key.algorithm}, payload(issuer.token()), key)
    async with verifying(issuer) as authentication:
        assert await refusal(authentication, token) == "the token was signed with an unknown key"
    async with Issuer().serving() as small:
        small.keys = [key]
        token = sign({"alg": key.algorithm}, payload(small.token()), key)
        async with verifying(small) as authentication:
            assert (await authentication.authenticate(token)).subject == "ann"


async def test_a_changed_payload_is_refused(issuer: Issuer) -> None:
    header, body, signature = issuer.token().split(".")
    claims = {**payload(f"{header}.{body}."), "roles": ["merchant"]}
    changed = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    async with verifying(issuer) as authentication:
        assert await refusal(authentication, f"{header}.{changed}.{signature}") == "the token has an invalid signature"


async def test_clocks_may_differ_by_the_leeway(issuer: Issuer) -> None:
    async with verifying(issuer, leeway_seconds=60) as authentication:
        for token in (issuer.token(expires_in=-55), issuer.token(not_before=55)):
            assert (await authentication.authenticate(token)).subject == "ann"
        assert await refusal(authentication, issuer.token(expires_in=-65)) == "the token has expired"
        assert await refusal(authentication, issuer.token(not_before=65)) == "the token is not valid yet"


async def test_a_clock_that_is_off_by_five_minutes_is_reported(issuer: Issuer) -> None:
    token = issuer.token(expires_in=60)
    for offset, reason in ((300, "the token has expired"), (-300, "the token was issued in the future")):
        async with verifying(issuer, clock=lambda offset=offset: time.time() + offset) as authentication:
            assert await refusal(authentication, token) == reason


async def test_a_remembered_token_ends_when_it_expires(issuer: Issuer) -> None:
    now = [time.time()]
    token = issuer.token(expires_in=100)
    async with verifying(issuer, clock=lambda: now[0], leeway_seconds=30) as authentication:
        assert (await authentication.authenticate(token)).subject == "ann"
        now[0] += 128
        assert (await authentication.authenticate(token)).subject == "ann"
        now[0] += 3
        assert await refusal(authentication, token) == "the token has expired"


async def test_refused_tokens_are_counted_by_the_rule_that_they_break(issuer: Issuer) -> None:
    def count() -> float:
        return REGISTRY.get_sample_value("market_auth_invalid_tokens_total", {"rule": "expired"}) or 0.0

    before = count()
    async with verifying(issuer) as authentication:
        for _ in range(2):
            await refusal(authentication, issuer.token(expires_in=-300))
    assert count() == before + 2


def payload(token: str) -> dict[str, Any]:
    """Return the claims of a token."""
    text = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return claims
