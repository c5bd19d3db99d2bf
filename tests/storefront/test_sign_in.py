"""Signing in at the storefront: the way to the issuer and back, the cookies, renewals, and signing out."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from prometheus_client import REGISTRY

from tests.issuer.signed_in_shop import subject_of
from tests.storefront.signed_in import NEW_SECRET, OLD_SECRET, Browser, SigningIn
from tests.storefront.visitor import Document, Form
from tests.support.waiting import until

# Tokens are valid for an hour.
SOON, LATER = 3000, 700


def cookies_set(response: httpx.Response) -> dict[str, str]:
    """Return the attributes of the cookies that a response sets, by name."""
    pairs = (header.partition("=") for header in response.headers.get_list("set-cookie"))
    return {name: rest.partition(";")[2].lower() for name, _, rest in pairs}


def token_of(world: SigningIn) -> str:
    """Return the token of the last call to the gateway."""
    header = world.gateway.authorizations[-1]
    assert header is not None
    return header.removeprefix("Bearer ")


async def renewed(browser: Browser) -> None:
    """Wait until a response has renewed tokens. A request does not wait for long while its own token is still valid."""

    async def is_renewed() -> bool:
        response = await browser.get("/orders")
        assert response.status_code == 200
        return "market_access" in cookies_set(response)

    await until(is_renewed, what="renewed tokens")


async def test_a_visitor_signs_in_and_returns_to_the_page(world: SigningIn, browser: Browser) -> None:
    catalogue = await browser.get("/")
    assert (catalogue.status_code, "Sign in" in Document(catalogue.text).text) == (200, True)
    assert world.gateway.authorizations == [None]
    before = browser.http.cookies["market_session"]
    address = await browser.reach_provider("/orders?after=x")
    query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
    assert query["redirect_uri"] == f"{world.url}/sign-in/callback"
    assert (query["response_type"], query["code_challenge_method"]) == ("code", "S256")
    callback = await browser.follow(await browser.choose(address, "ann"))
    assert (callback.status_code, callback.headers["location"]) == (303, "/orders?after=x")
    for name in ("market_session", "market_access", "market_renewal"):
        assert "httponly" in cookies_set(callback)[name]
        assert "samesite=lax" in cookies_set(callback)[name]
    assert browser.http.cookies["market_session"] != before
    page = await browser.follow(callback)
    assert "Signed in as ann" in Document(page.text).text
    assert subject_of(token_of(world)) == "ann"
    # What the browser has of the token cannot be read in it.
    assert token_of(world) not in page.text + "".join(browser.http.cookies.values())


async def test_sign_ins_and_renewals_are_counted(world: SigningIn, browser: Browser) -> None:
    def counted() -> list[float]:
        failed, renewals = "market_storefront_sign_ins_failed_total", "market_storefront_renewals_total"
        values = [
            REGISTRY.get_sample_value("market_storefront_sign_ins_started_total"),
            REGISTRY.get_sample_value("market_storefront_sign_ins_completed_total"),
            *(
                REGISTRY.get_sample_value(failed, {"reason": reason})
                for reason in ("attempt", "no_code", "unavailable")
            ),
            *(REGISTRY.get_sample_value(renewals, {"result": result}) for result in ("renewed", "refused")),
        ]
        return [value or 0.0 for value in values]

    before = counted()
    await browser.get("/sign-in/callback?code=c&state=s")
    address = await browser.reach_provider("/orders")
    [state] = parse_qs(urlsplit(address).query)["state"]
    await browser.get(f"/sign-in/callback?error=access_denied&state={state}")
    callback = await browser.choose(await browser.reach_provider("/orders"), "ann")
    await world.provider.stop()
    assert (await browser.follow(callback)).status_code == 503
    await world.provider.start()
    await browser.sign_in()
    world.clock.advance(SOON)
    await renewed(browser)
    world.provider.forget()
    world.clock.advance(2 * SOON)
    await browser.get("/orders")
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [3, 1, 1, 1, 1, 1, 1]


async def test_a_merchant_sees_the_role(browser: Browser) -> None:
    page = await browser.follow(await browser.sign_in(person="mia"))
    assert "Signed in as mia merchant" in Document(page.text).text


async def test_an_authorization_response_that_this_browser_has_not_requested_signs_nobody_in(
    world: SigningIn, browser: Browser
) -> None:
    redirect = await browser.choose(await browser.reach_provider("/orders"), "ann")
    location = redirect.headers["location"]
    async with world.new_browser() as other:
        await other.reach_provider("/orders")
        for wrong in (location, f"{world.url}/sign-in/callback?code=c", f"{world.url}/sign-in/callback?error=e"):
            response = await other.get(wrong)
            assert (response.status_code, "market_access" in cookies_set(response)) == (400, False)
            assert "You were not signed in" in response.text
    assert (await browser.get(location)).status_code == 303
    # A code and its state are valid for one authorization response.
    assert (await browser.get(location)).status_code == 400


async def test_authorization_responses_with_another_nonce_or_another_issuer_are_refused(browser: Browser) -> None:
    address = await browser.reach_provider("/orders")
    [nonce] = parse_qs(urlsplit(address).query)["nonce"]
    response = await browser.follow(await browser.choose(address.replace(nonce, "another"), "ann"))
    assert (response.status_code, "market_access" in cookies_set(response)) == (400, False)
    callback = await browser.choose(await browser.reach_provider("/orders"), "ann")
    response = await browser.get(callback.headers["location"] + "&iss=https://other.example")
    assert (response.status_code, "market_access" in cookies_set(response)) == (400, False)


@pytest.mark.parametrize("target", ["https://evil.example/", "//evil.example/", "/\\evil.example/", "/" * 2000])
async def test_one_returns_to_pages_of_the_shop_only(browser: Browser, target: str) -> None:
    response = await browser.http.get("/sign-in", params={"next": target})
    callback = await browser.follow(await browser.choose(response.headers["location"], "ann"))
    assert (callback.status_code, callback.headers["location"]) == (303, "/")


async def test_a_token_is_renewed_once_for_all_requests_of_a_session(world: SigningIn, browser: Browser) -> None:
    await browser.follow(await browser.sign_in())
    first = token_of(world)
    world.clock.advance(SOON)
    world.provider.may_answer.clear()
    requests = [asyncio.create_task(browser.get("/orders")) for _ in range(8)]
    await world.provider.arrived.wait()
    world.provider.may_answer.set()
    assert {response.status_code for response in await asyncio.gather(*requests)} == {200}
    assert (await browser.get("/orders")).status_code == 200
    assert (world.provider.renewals, subject_of(token_of(world))) == (1, "ann")
    assert token_of(world) != first


async def test_responses_that_caches_may_store_set_no_cookies(world: SigningIn, browser: Browser) -> None:
    await browser.sign_in()
    world.clock.advance(SOON)
    response = await browser.get("/robots.txt")
    assert (response.headers["cache-control"], cookies_set(response)) == ("public, max-age=3600", {})
    assert world.provider.renewals == 0


async def test_two_copies_renew_the_same_session_without_ending_it(world: SigningIn, browser: Browser) -> None:
    other = await world.add_storefront(OLD_SECRET)
    await browser.follow(await browser.sign_in())
    world.clock.advance(SOON)
    old = dict(browser.http.cookies)
    await renewed(browser)
    # With the cookies of before, as if both had been asked at the same time. The provider refuses the second renewal.
    async with world.new_browser(other) as late:
        late.http.cookies.update(old)
        response = await late.get("/orders")
        assert (response.status_code, cookies_set(response)) == (200, {})
    await until(lambda: world.provider.renewals == 2, what="the second renewal")


async def test_the_session_ends_when_the_issuer_refuses_the_renewal(world: SigningIn, browser: Browser) -> None:
    page = Document((await browser.follow(await browser.sign_in())).text)
    world.provider.forget()
    world.clock.advance(SOON)
    assert (await browser.get("/orders")).status_code == 200
    world.clock.advance(LATER)
    response = await browser.send(page.form("/language"), language="en")
    assert "max-age=0" in cookies_set(response)["market_access"]
    assert "max-age=0" in cookies_set(response)["market_renewal"]
    assert (await browser.get("/orders")).headers["location"] == "/sign-in?next=%2Forders"
    form = Form("/checkout", "post", page.form("/language").fields)
    response = await browser.send(form)
    assert (response.status_code, "what you have sent was not done" in response.text) == (401, True)
    # The script of the page with a pending order, which was sent before.
    response = await browser.http.get("/checkout/pending", headers={"sec-fetch-mode": "cors"})
    assert (response.status_code, "was not done" in response.text) == (401, False)
    assert "/sign-in?next=%2Fcheckout%2Fpending" in Document(response.text).links


async def test_a_token_that_the_shop_refuses_ends_the_session(world: SigningIn, browser: Browser) -> None:
    await browser.sign_in()
    world.gateway.code = "UNAUTHENTICATED"
    response = await browser.get("/orders")
    text = Document(response.text).text
    assert (response.status_code, "Signed in as" in text, "Please sign in" in text) == (401, False, True)
    assert (await browser.get("/orders")).headers["location"] == "/sign-in?next=%2Forders"


async def test_an_unavailable_issuer_ends_no_session(world: SigningIn, browser: Browser) -> None:
    await browser.follow(await browser.sign_in())
    first = token_of(world)
    await world.provider.stop()
    world.clock.advance(SOON)
    assert (await browser.get("/orders")).status_code == 200
    await world.provider.start()
    world.clock.advance(10)
    await renewed(browser)
    assert (await browser.get("/orders")).status_code == 200
    assert (world.provider.renewals, token_of(world) == first) == (1, False)
    await world.provider.stop()
    world.clock.advance(LATER)
    response = await browser.get("/orders")
    assert (response.status_code, cookies_set(response)) == (503, {})
    response = await browser.get("/")
    assert (response.status_code, cookies_set(response)) == (200, {})
    assert world.gateway.authorizations[-1] is None


async def test_people_sign_in_again_after_the_longest_session(world: SigningIn, browser: Browser) -> None:
    await browser.follow(await browser.sign_in())
    # It is limited to half an hour here, which is shorter than a token is valid.
    short = await world.add_storefront(OLD_SECRET, max_session_seconds=1800)
    async with world.new_browser(short) as again:
        again.http.cookies.update(browser.http.cookies)
        world.clock.advance(1700)
        assert (await again.get("/orders")).status_code == 200
        world.clock.advance(200)
        assert (await again.get("/orders")).headers["location"] == "/sign-in?next=%2Forders"


async def test_signing_out_ends_the_session_here_and_at_the_issuer(world: SigningIn, browser: Browser) -> None:
    page = await browser.follow(await browser.sign_in())
    copied = dict(browser.http.cookies)
    assert f"form-action 'self' http://127.0.0.1:{world.port_of['issuer']}" in page.headers["content-security-policy"]
    form = Document(page.text).form("/sign-out")
    assert (await browser.send(form, form_token="guessed")).status_code == 403
    response = await browser.send(form)
    assert response.headers["location"].startswith(f"http://127.0.0.1:{world.port_of['issuer']}/sign-out?")
    back = await browser.follow(response)
    assert (back.status_code, back.headers["location"]) == (303, f"{world.url}/")
    assert "Signed in" not in (await browser.follow(back)).text
    # Somebody who has copied the cookies cannot renew the token.
    world.clock.advance(SOON + LATER)
    async with world.new_browser() as thief:
        thief.http.cookies.update(copied)
        assert (await thief.get("/orders")).status_code == 303


async def test_an_order_whose_outcome_is_unknown_is_placed_for_nobody_else(world: SigningIn, browser: Browser) -> None:
    page = Document((await browser.follow(await browser.sign_in())).text)
    order = {"key": "k", "currency": "GBP", "line": "00000000-0000-4000-8000-000000000001:1:19.90"}
    world.gateway.code = "UNAVAILABLE"
    response = await browser.send(Form("/checkout", "post", page.form("/sign-out").fields), **order)
    assert response.headers["location"] == "/checkout/pending?wait=1"
    # Somebody else at the same computer.
    await browser.follow(await browser.send(page.form("/sign-out")))
    await browser.sign_in(person="mia")
    calls = len(world.gateway.authorizations)
    assert (await browser.get("/checkout/pending")).headers["location"] == "/orders"
    assert len(world.gateway.authorizations) == calls
    await browser.sign_in(path="/sign-in?next=/")
    assert (await browser.get("/checkout/pending")).status_code == 202
    assert (len(world.gateway.authorizations), subject_of(token_of(world))) == (calls + 1, "ann")


async def test_one_signs_out_here_while_the_issuer_is_unavailable(world: SigningIn, browser: Browser) -> None:
    other = await world.add_storefront(OLD_SECRET)
    form = Document((await browser.follow(await browser.sign_in())).text).form("/sign-out")
    await world.provider.stop()
    # This copy has not asked the issuer yet where one signs out.
    async with world.new_browser(other) as again:
        again.http.cookies.update(browser.http.cookies)
        response = await again.send(form)
        assert "You have signed out of this shop" in response.text
        assert (await again.get("/orders")).headers["location"] == "/sign-in?next=%2Forders"


async def test_tokens_belong_to_one_session(world: SigningIn, browser: Browser) -> None:
    await browser.sign_in()
    async with world.new_browser() as other:
        await other.get("/")
        for name in ("market_access", "market_renewal"):
            other.http.cookies.set(name, browser.http.cookies[name])
        assert "Signed in" not in (await other.get("/")).text


async def test_the_secrets_of_the_cookies_are_rotated_without_signing_anybody_out(
    world: SigningIn, browser: Browser
) -> None:
    rotated, finished = await world.add_storefront(NEW_SECRET, OLD_SECRET), await world.add_storefront(NEW_SECRET)
    page = Document((await browser.follow(await browser.sign_in())).text)
    async with world.new_browser(rotated) as again:
        again.http.cookies.update(browser.http.cookies)
        assert (await again.get("/orders")).status_code == 200
        # A form of a page that the copy with the earlier secret has made.
        assert (await again.send(page.form("/language"), language="en")).status_code == 303
    async with world.new_browser(finished) as again:
        again.http.cookies.update(browser.http.cookies)
        assert (await again.get("/orders")).status_code == 303


async def test_cookies_of_a_shop_with_https_are_sent_over_tls_only(world: SigningIn) -> None:
    url = await world.add_storefront(OLD_SECRET, public_url="https://shop.example.com")
    async with world.new_browser(url) as browser:
        response = await browser.get("/sign-in?next=/")
    [(name, attributes)] = cookies_set(response).items()
    assert (name, "secure" in attributes, "httponly" in attributes) == ("__Host-market_attempt", True, True)
    assert parse_qs(urlsplit(response.headers["location"]).query)["redirect_uri"] == [
        "https://shop.example.com/sign-in/callback"
    ]
