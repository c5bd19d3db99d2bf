"""Tokens that no issuer should make: each gets a clear refusal everywhere, and leaves no traceback and no trace."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import grpc
import pytest

from tests.authorization.grpc_calls import inventory_code
from tests.authorization.shop import SUBJECTS, Shop, bearer
from tests.support.issuer import Issuer, SigningKey, sign

DEEP: Any = 1
for _ in range(500):
    DEEP = [DEEP]

CLAIMS: dict[str, dict[str, Any]] = {
    "roles that are a string": {"roles": "merchant"},
    "roles that are an object": {"roles": {"merchant": True}},
    "roles that are a number": {"roles": 7},
    "roles that are not strings": {"roles": ["merchant", 7]},
    "roles that are lists": {"roles": [["merchant"]]},
    "a subject that is a number": {"sub": 7},
    "a subject that is a list": {"sub": ["ann"]},
    "no subject": {"sub": None},
    "an empty subject": {"sub": ""},
    "a subject of 201 characters": {"sub": "a" * 201},
    "a subject with a line break": {"sub": "ann\nbob"},
    "a subject with half a character": {"sub": "ann\ud800"},
    "an audience that is a number": {"aud": 7},
    "an audience that is an object": {"aud": {"market": 1}},
    "an audience of wrong types": {"aud": [["market"], None, 7]},
    "an empty audience": {"aud": []},
    "no audience": {"aud": None},
    "an issuer that is a list": {"iss": ["http://127.0.0.1"]},
    "an expiry that is a word": {"exp": "soon"},
    "an expiry that is a list": {"exp": [9_999_999_999]},
    "an expiry that is true": {"exp": True},
    "no expiry": {"exp": None},
    "an expiry that is not a number": {"exp": float("nan")},
    "a beginning that is an object": {"nbf": {"at": 0}},
    "an issue time that is a list": {"iat": []},
    "an issue time five minutes ahead": {"iat": 9_999_999_999},
    "deep nesting": {"roles": DEEP},
}
# Valid tokens: what they have of wrong types means nothing to the shop.
HARMLESS: dict[str, dict[str, Any]] = {
    "an e-mail address that is a list": {"email": ["ann@people.example"]},
    "an address that is verified by a word": {"email": "ann@people.example", "email_verified": "yes"},
    "roles of nobody": {"roles": ["administrator", ""]},
    "many audiences": {"aud": ["other", "market"]},
    "an expiry with a fraction": {"exp": 9_999_999_999.5},
    "deep nesting in another claim": {"address": DEEP},
}


def _payload(issuer: Issuer) -> dict[str, Any]:
    payload = issuer.token("ann", roles=["merchant"]).split(".")[1]
    return dict(json.loads(base64.urlsafe_b64decode(payload + "==")))


def _header(issuer: Issuer, **parameters: Any) -> str:
    key = issuer.signing_key
    return sign({"alg": key.algorithm, "kid": key.kid, "typ": "at+jwt", **parameters}, _payload(issuer), key)


def _of(payload: Any) -> Callable[[Issuer], str]:
    def make(issuer: Issuer) -> str:
        key = issuer.signing_key
        return sign({"alg": key.algorithm, "kid": key.kid, "typ": "at+jwt"}, payload, key)

    return make


FORMS: dict[str, Callable[[Issuer], str]] = {
    "one part": lambda _: "eyJhbGciOiJub25lIn0",
    "five parts": lambda issuer: f"{issuer.token()}.x.y",
    "no signature": lambda issuer: issuer.token().rpartition(".")[0] + ".",
    "padding": lambda issuer: f"{issuer.token()}==",
    "non-ASCII": lambda issuer: f"\u00fc{issuer.token()}",
    "two tokens": lambda issuer: f"{issuer.token()} {issuer.token()}",
    "a list as payload": _of([]),
    "a number as payload": _of(7),
    "a word as payload": _of("ann"),
    "a kid that is a number": lambda issuer: _header(issuer, kid=7),
    "a kid that is a list": lambda issuer: _header(issuer, kid=["a"]),
    "a long kid": lambda issuer: _header(issuer, kid="k" * 4000),
    "an algorithm that is a list": lambda issuer: _header(issuer, alg=["ES256"]),
    "an unknown critical parameter": lambda issuer: _header(issuer, crit=["exp"], exp=1),
    "a payload that is not encoded": lambda issuer: _header(issuer, crit=["b64"], b64=False),
    "another type": lambda issuer: _header(issuer, typ="dpop+jwt"),
    "its own key": lambda issuer: _with_its_own_key(issuer),
    "an address of keys": lambda issuer: _header(issuer, jku=f"{issuer.url}/elsewhere", kid="unknown"),
    "10 kB": lambda issuer: issuer.token("ann", padding="x" * 7_000),
    "five minutes too late": lambda issuer: issuer.token("ann", expires_in=-300),
    "five minutes too early": lambda issuer: issuer.token("ann", not_before=300),
}


def _with_its_own_key(issuer: Issuer) -> str:
    key = SigningKey()
    return sign({"alg": key.algorithm, "jwk": key.jwk, "typ": "at+jwt"}, _payload(issuer), key)


async def statuses(shop: Shop, token: str) -> set[object]:
    """Return the statuses with which products, orders and the gateway respond to the token, and inventory's code."""
    headers = {name: value.encode() for name, value in bearer(token).items()}
    found: set[object] = set()
    for service, method, path in (
        ("products", "GET", "/api/product?limit=1"),
        ("orders", "GET", "/api/order?limit=1"),
        ("graphql", "GET", "/graphql?query={__typename}"),
    ):
        response = await shop.http.request(method, shop.urls[service] + path, headers=headers)
        assert token not in response.text + response.headers.get("www-authenticate", "")
        found.add(response.status_code)
        if response.status_code == 401:
            assert 'error="invalid_token"' in response.headers["www-authenticate"]
    return found


@pytest.fixture(autouse=True)
def no_traceback(shop: Shop) -> Any:
    """Fail if a service logs a traceback or an error during the test."""
    before = {name: len(log) for name, log in shop.logs.items()}
    yield
    for name, log in shop.logs.items():
        written = log[before[name] :]
        assert "Traceback" not in written, written
        assert '"level": "error"' not in written, written


@pytest.mark.parametrize("claims", CLAIMS.values(), ids=CLAIMS)
async def test_claims_of_wrong_types_are_refused(shop: Shop, claims: dict[str, Any]) -> None:
    assert await statuses(shop, shop.issuer.token(**{"subject": "ann", **claims})) == {401}
    as_service = {"subject": SUBJECTS["orders"], "roles": ["service"], **claims}
    assert await inventory_code(shop, shop.issuer.token(**as_service)) == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("claims", HARMLESS.values(), ids=HARMLESS)
async def test_claims_that_mean_nothing_to_the_shop_are_ignored(shop: Shop, claims: dict[str, Any]) -> None:
    token = shop.issuer.token(**{"subject": "ann", **claims})
    assert await statuses(shop, token) == {200}
    refused = await shop.rest("products", "DELETE", "/api/product/00000000-0000-4000-8000-000000000000", token)
    assert refused.status_code == 403


@pytest.mark.parametrize("make_token", FORMS.values(), ids=FORMS)
async def test_tokens_of_a_wrong_form_are_refused(shop: Shop, make_token: Callable[[Issuer], str]) -> None:
    token = make_token(shop.issuer)
    assert await statuses(shop, token) == {401}
    if token.isascii():
        assert await inventory_code(shop, token) == grpc.StatusCode.UNAUTHENTICATED


async def test_a_token_of_100_kb_is_refused_before_it_is_read(shop: Shop) -> None:
    token = shop.issuer.token("ann", padding="x" * 75_000)
    assert len(token) > 100_000
    assert await statuses(shop, token) == {431}
    assert await inventory_code(shop, token) == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_clock_that_differs_by_less_than_the_leeway_does_not_matter(shop: Shop) -> None:
    for times in ({"expires_in": -10}, {"not_before": 10}):
        assert await statuses(shop, shop.issuer.token("ann", **times)) == {200}  # type: ignore[arg-type]


async def test_a_scheme_other_than_bearer_is_refused(shop: Shop) -> None:
    token = shop.token("ann")
    for value in ("Bearer", "Basic YW5uOmFubg==", f"Token {token}", token, f"Bearer={token}"):
        response = await shop.http.get(f"{shop.urls['orders']}/api/order", headers={"Authorization": value})
        assert (response.status_code, 'error="invalid_token"' in response.headers["www-authenticate"]) == (401, True)
    # The scheme's name may have any case (RFC 9110, section 11.1).
    response = await shop.http.get(f"{shop.urls['orders']}/api/order", headers={"Authorization": f"bearer {token}"})
    assert response.status_code == 200


async def test_a_second_header_with_a_token_is_refused(shop: Shop) -> None:
    tokens = [shop.token("ann"), shop.token("mia", "merchant")]
    headers = [("Authorization", f"Bearer {token}") for token in tokens]
    for service, path in (("products", "/api/product?limit=1"), ("orders", "/api/order"), ("graphql", "/graphql")):
        response = await shop.http.get(shop.urls[service] + path, headers=headers)
        assert response.status_code in (400, 401), response.text


async def test_headers_and_parameters_with_a_name_do_not_name_anybody(shop: Shop) -> None:
    names = ("X-User", "X-Forwarded-User", "X-Auth-Request-User", "X-Remote-User", "Remote-User", "X-Subject")
    headers = dict.fromkeys(names, "ann")
    for service, path in (("orders", "/api/order"), ("products", "/api/product?stock=true")):
        response = await shop.http.get(shop.urls[service] + path, headers=headers)
        assert response.status_code == 401, response.text
    token = shop.token("ann")
    # Tokens in a query would be in logs and histories (RFC 6750, section 5.3).
    response = await shop.http.get(f"{shop.urls['orders']}/api/order?access_token={token}")
    assert response.status_code == 401
