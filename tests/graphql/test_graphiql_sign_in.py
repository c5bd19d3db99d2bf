"""Signing in from GraphiQL, in a real browser, at an issuer that cooperates or does not."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from market.graphql.config import GatewayHttp, GraphiQL
from tests.graphql.graphql_gateway import Gateway
from tests.graphql.signed_in import protected_gateway
from tests.support.browser import CHROMIUM, Tab, tab
from tests.support.graphiql import BAR, EDITORS, press, run_query
from tests.support.issuer import DISCOVERY, TOKEN, Fault
from tests.support.ports import free_port
from tests.support.sign_in_issuer import AUTHORIZE, CLIENT_ID, SignInIssuer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

HELD = "JSON.stringify([{...sessionStorage}, {...localStorage}])"
ORDERS = "{ orders { total items { user } } }"


@asynccontextmanager
async def shop(**settings: Any) -> AsyncIterator[tuple[Gateway, SignInIssuer]]:
    """Run a gateway whose GraphiQL may sign visitors in, and its issuer."""
    port = free_port()
    async with SignInIssuer(f"http://127.0.0.1:{port}").serving() as issuer:
        http = GatewayHttp(port=port)
        graphiql = GraphiQL(**{"client_id": CLIENT_ID, **settings})
        async with protected_gateway(issuer, http=http, graphiql=graphiql) as gateway:
            yield gateway, issuer


async def _type_token(page: Tab, token: str) -> None:
    field = "document.querySelector('#access input')"
    await page.until(f"{field} !== null")
    await page.evaluate(f"{field}.value = {json.dumps(token)}; {field}.dispatchEvent(new Event('change'))")


async def test_a_visitor_signs_in_places_an_order_and_signs_out(tmp_path: Path) -> None:
    async with shop(authorization_parameters={"audience": "market"}) as (gateway, issuer), tab(tmp_path) as page:
        await page.open(f"{gateway.http.base_url}/")
        assert (await run_query(page, ORDERS))["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
        await press(page, "Sign in")
        assert await page.until(f"{BAR}.startsWith('Signed in') && {BAR}") == "Signed in as Ann Example. Sign out"
        # What was in the editor is there again.
        await page.until(f"{EDITORS}.length >= 3 && {EDITORS}[0].CodeMirror.getValue() === {json.dumps(ORDERS)}")
        result = await run_query(page, ORDERS)
        assert (result["data"]["orders"]["total"], result["data"]["orders"]["items"][0]["user"]) == (25, "ann")
        line = f'{{productId: "{next(iter(gateway.products.resources))}", quantity: 1}}'
        create = f"mutation {{ createOrder(input: {{items: [{line}]}}) {{ user }} }}"
        assert await run_query(page, create) == {"data": {"createOrder": {"user": "ann"}}}

        [asked] = issuer.authorizations
        [exchanged] = issuer.exchanges
        assert asked == {
            "audience": "market",
            "response_type": "code",
            "client_id": CLIENT_ID,
            "redirect_uri": f"{issuer.origin}/graphql",
            "scope": "openid email",
            "state": asked["state"],
            "nonce": asked["nonce"],
            "code_challenge": asked["code_challenge"],
            "code_challenge_method": "S256",
        }
        assert len({len(asked[name]) for name in ("state", "nonce", "code_challenge")} | {43}) == 1
        assert "client_secret" not in exchanged
        assert await page.evaluate("location.href") == f"{issuer.origin}/graphql"
        assert [url for url in page.requests for token in issuer.issued if token in url] == []
        in_session, in_local = json.loads(await page.evaluate(HELD))
        assert issuer.issued[0] in in_session["market.token"]
        assert "market.sign-in" not in in_session
        assert [token for token in issuer.issued if token in json.dumps(in_local)] == []

        await page.open(f"{gateway.http.base_url}/")
        await page.until(f"{BAR} === 'Signed in as Ann Example. Sign out'")
        await press(page, "Sign out")
        await page.until(f"{BAR} === 'Sign in or'")
        assert issuer.issued[0] not in await page.evaluate(HELD)
        assert (await run_query(page, ORDERS))["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
        # After signing out, the visitor is asked to sign in again.
        await press(page, "Sign in")
        await page.until(f"{BAR}.startsWith('Signed in')")
        assert issuer.authorizations[-1]["prompt"] == "login"
        assert issuer.authorizations[-1]["state"] != asked["state"]


async def test_a_response_that_does_not_belong_to_the_sign_in_is_refused(tmp_path: Path) -> None:
    cases: list[tuple[dict[str, str], dict[str, Any], str]] = [
        ({"state": "x"}, {}, "this page has not started the sign-in, or too long ago"),
        ({"iss": "https://issuer.example.com"}, {}, "another issuer has responded"),
        ({"code": "x"}, {}, "the code is not valid"),
        ({}, {"nonce": "x"}, "the ID token is for another sign-in"),
        ({}, {"audience": "another-client"}, "the ID token is for another client"),
        ({}, {"audience": [CLIENT_ID], "azp": "another-client"}, "the ID token is for another client"),
        ({}, {"issuer": "https://issuer.example.com"}, "the ID token is for another issuer"),
        ({}, {"expires_in": -300}, "the ID token is for an earlier time"),
    ]
    async with shop() as (gateway, issuer), tab(tmp_path) as page:
        for issuer.wrong_response, issuer.wrong_claims, reason in cases:
            await page.open(f"{gateway.http.base_url}/")
            await press(page, "Sign in")
            assert await page.until(f"{BAR}.includes('failed') && {BAR}") == f"Sign in or Sign-in failed: {reason}."
            assert await page.evaluate("location.href") == f"{issuer.origin}/graphql"
            assert "market.token" not in await page.evaluate(HELD)
        issuer.wrong_response, issuer.wrong_claims, issuer.person = {}, {}, None
        await press(page, "Sign in")
        await page.until(f"{BAR} === 'Sign in or Sign-in failed: the person has declined.'")
        # A link that somebody else has made: nothing was started here.
        exchanges = len(issuer.exchanges)
        await page.open(f"{issuer.origin}/graphql?code=stolen&state=forged")
        await page.until(f"{BAR}.includes('this page has not started the sign-in')")
        assert len(issuer.exchanges) == exchanges


async def test_the_page_says_how_the_issuer_fails_and_works_on(tmp_path: Path) -> None:
    async with shop() as (gateway, issuer), tab(tmp_path) as page:
        metadata = issuer.response("GET", DISCOVERY, {}, b"")[1]
        cases: list[tuple[str, tuple[int, Any], str]] = [
            (DISCOVERY, (200, b"<!doctype html>"), "the issuer has returned no JSON object"),
            (DISCOVERY, (200, [metadata]), "the issuer has returned no JSON object"),
            (DISCOVERY, (200, {**metadata, "padding": "x" * 300_000}), "the issuer has returned too much"),
            (DISCOVERY, (503, {"error": 7}), "the issuer has returned status 503"),
            (
                DISCOVERY,
                (200, {**metadata, "issuer": "https://x.test"}),
                "the issuer states another name for itself",
            ),
            (
                DISCOVERY,
                (200, {**metadata, "token_endpoint": "https://x.test/token"}),
                "the issuer's token_endpoint is not on its own origin",
            ),
            (
                DISCOVERY,
                (200, {**metadata, "authorization_endpoint": [AUTHORIZE]}),
                "the issuer's authorization_endpoint is not on its own origin",
            ),
            (TOKEN, (200, {"access_token": 7, "token_type": "Bearer"}), "the issuer has returned no bearer token"),
            (TOKEN, (200, {"access_token": "x", "token_type": "DPoP"}), "the issuer has returned no bearer token"),
            (TOKEN, (200, {"access_token": "x", "token_type": "Bearer"}), "the issuer has returned no ID token"),
        ]
        await page.open(f"{gateway.http.base_url}/")
        for path, response, reason in cases:
            issuer.replaced = {path: response}
            await press(page, "Sign in")
            await page.until(f"{BAR} === {json.dumps(f'Sign in or Sign-in failed: {reason}.')}")
            await _clear_message(page)
        issuer.replaced = {}
        for fault, reason in ((Fault.REDIRECT, "cannot be reached"), (Fault.SLOW, "has not responded in time")):
            async with issuer.faulty(fault):
                await press(page, "Sign in")
                await page.until(f"{BAR} === 'Sign in or Sign-in failed: the issuer {reason}.'")
                await _clear_message(page)
        async with issuer.away():
            await press(page, "Sign in")
            await page.until(f"{BAR} === 'Sign in or Sign-in failed: the issuer cannot be reached.'")
        assert await run_query(page, "{ products(limit: 1) { limit } }") == {"data": {"products": {"limit": 1}}}


async def _clear_message(page: Tab) -> None:
    await page.evaluate("document.querySelector('#access .message').textContent = ''")


async def test_a_token_that_a_visitor_enters_is_sent_and_is_kept_by_the_tab_alone(tmp_path: Path) -> None:
    async with shop(client_id=None) as (gateway, issuer), tab(tmp_path) as page:
        ann, bob = issuer.token("ann"), issuer.token("bob")
        await page.open(f"{gateway.http.base_url}/")
        await page.until(f"document.querySelector('#access input') !== null && {BAR} === ''")
        await _type_token(page, f"Bearer {ann}")
        await page.until(f"{BAR} === 'Requests have an access token. Remove'")
        assert (await run_query(page, ORDERS))["data"]["orders"]["total"] == 25
        # The editor of headers comes first.
        assert (await run_query(page, ORDERS, json.dumps({"Authorization": f"Bearer {bob}"})))["data"]["orders"][
            "total"
        ] == 5
        # GraphiQL keeps a history.
        await page.until("localStorage['graphiql:queries']?.includes('orders')")
        _, in_local = json.loads(await page.evaluate(HELD))
        assert [token for token in (ann, bob) if token in json.dumps(in_local)] == []
        await press(page, "Remove")
        await _type_token(page, "two words")
        await page.until(f"{BAR} === 'Not used: a token has no spaces and no characters beyond ASCII.'")
        await _type_token(page, issuer.token("ann", expires_in=-300))
        assert (await run_query(page, ORDERS))["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
        await page.until(f"{BAR}.startsWith('The token was not accepted: the token')")


async def test_the_page_may_call_the_issuers_origin_and_no_other(tmp_path: Path) -> None:
    calls = "fetch(URL, {mode: 'no-cors'}).then(() => 'called', () => 'refused')"
    async with shop() as (gateway, issuer), tab(tmp_path) as page:
        policy = (await gateway.http.get("/")).headers["content-security-policy"]
        assert f"connect-src 'self' {issuer.url};" in policy
        await page.open(f"{gateway.http.base_url}/")
        await page.until(f"{EDITORS}.length >= 3")
        assert await page.evaluate(calls.replace("URL", json.dumps(issuer.url + DISCOVERY))) == "called"
        other = gateway.orders.url
        assert await page.evaluate(calls.replace("URL", json.dumps(other))) == "refused"
    async with shop(client_id=None) as (gateway, _):
        policy = (await gateway.http.get("/")).headers["content-security-policy"]
        assert "connect-src 'self';" in policy
