"""The desk's page of mails that could not be sent: who sees what, and that a mail is sent once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from market.kit.errors import TYPE_PREFIX
from market.kit.http.server import HttpServer
from tests.storefront.signed_in import Browser, SigningIn
from tests.storefront.visitor import Document, Form, Shop, Visitor
from tests.support.waiting import until

PATH = "/desk/dead-letters"
REPLAY, DROP = ("action", "replay"), ("action", "drop")


async def reject(shop: Shop, *addresses: str) -> None:
    """Let the mail server reject the mails to these addresses, and accept all others."""
    faults = [{"mode": "550", "stage": "rcpt", "to": address} for address in addresses]
    (await shop.http.post(f"{shop.stack.urls['mail']}/api/faults", json=faults)).raise_for_status()


async def mails_to(shop: Shop, address: str) -> int:
    response = await shop.http.get(f"{shop.stack.urls['mail']}/api/messages", params={"to": address})
    return len(response.json()["items"])


async def order_with_unsent_mail(shop: Shop, visitor: Visitor, address: str) -> tuple[str, Form]:
    """Place an order whose mail is rejected. Return its id, and the form of its row once the desk lists it."""
    await reject(shop, address)
    product = await shop.create_product()
    body = {"user": address, "items": [{"product_id": product["id"], "quantity": 1}]}
    headers = {"Idempotency-Key": uuid4().hex}
    order = {}

    async def placed() -> bool:
        response = await shop.http.post(f"{shop.stack.urls['orders']}/api/order", json=body, headers=headers)
        order.update(response.json())
        return response.is_success

    await until(placed)
    return order["id"], await until(lambda: form_of(visitor, order["id"]), what="the desk lists the mail")


async def form_of(visitor: Visitor, order_id: str) -> Form | None:
    """Return the form in the row of the order's mail; None if the page does not list it."""
    page = (await visitor.get(PATH)).text
    row = next((row for row in page.split("<tr>") if f"/orders/{order_id}" in row), None)
    return None if row is None else Document(row.partition("</tr>")[0]).forms[0]


def letter_of(form: Form) -> str:
    return dict(form.fields)["letter"]


async def resolve(visitor: Visitor, form: Form, button: tuple[str, str], *texts: str, letters: tuple[str, ...]) -> None:
    """Send the form until each of these letters has one of the results. On a busy machine a result may be unknown."""

    async def is_resolved() -> bool:
        page = Document((await visitor.send(form, button)).text)
        return all(any(f"{letter}: {text}" in page.text for text in texts) for letter in letters)

    await until(is_resolved, what=" or ".join(texts))


SENT = "The mail was sent.", "It had been replayed before."
DROPPED = "Dropped. No mail is sent.", "It had been dropped before."


async def test_a_rejected_mail_is_listed_and_sent_once_after_the_mail_server_was_mended(
    shop: Shop, visitor: Visitor
) -> None:
    address = f"r{uuid4().hex[:12]}@example.test"
    order_id, form = await order_with_unsent_mail(shop, visitor, address)
    page = await visitor.open(PATH)
    for text in ("Order confirmed", "The mail server has refused the mail. 1 attempt.", "r***@example.test"):
        assert text in page.text
    assert address not in page.text
    assert f"/desk/orders/{order_id}" in page.links

    letters = (letter_of(form),)
    await resolve(visitor, form, REPLAY, "The mail server has refused the mail again. 550", letters=letters)
    assert f"Order {order_id}" in Document((await visitor.send(form, REPLAY)).text).text
    assert address not in (await visitor.send(form, REPLAY)).text

    await reject(shop)
    await resolve(visitor, form, REPLAY, *SENT, letters=letters)
    await resolve(visitor, form, REPLAY, "It had been replayed before.", letters=letters)
    assert await form_of(visitor, order_id) is None
    assert await mails_to(shop, address) == 1


async def test_all_mails_of_the_page_are_sent_and_the_result_of_each_is_shown(shop: Shop, visitor: Visitor) -> None:
    addresses = [f"a{uuid4().hex[:12]}@example.test" for _ in range(2)]
    unsent = [await order_with_unsent_mail(shop, visitor, address) for address in addresses]
    await reject(shop)
    form = [form for form in (await visitor.open(PATH)).forms if form.action == PATH][-1]
    letters = tuple(letter_of(row) for _, row in unsent)
    # The shop may have others, of other tests.
    assert set(letters) <= {value for name, value in form.fields if name == "letter"}
    await resolve(visitor, form, REPLAY, *SENT, letters=letters)
    assert [await mails_to(shop, address) for address in addresses] == [1, 1]
    assert [await form_of(visitor, order_id) for order_id, _ in unsent] == [None, None]


async def test_a_dropped_mail_is_never_sent(shop: Shop, visitor: Visitor) -> None:
    address = f"d{uuid4().hex[:12]}@example.test"
    order_id, form = await order_with_unsent_mail(shop, visitor, address)
    await reject(shop)
    letters = (letter_of(form),)
    await resolve(visitor, form, DROP, *DROPPED, letters=letters)
    await resolve(visitor, form, REPLAY, "It had been dropped before.", letters=letters)
    assert await form_of(visitor, order_id) is None
    assert await mails_to(shop, address) == 0


async def test_a_form_of_another_page_or_with_other_values_is_refused(shop: Shop, visitor: Visitor) -> None:
    token = dict((await visitor.open("/")).forms[-1].fields)["form_token"]
    fields = {"form_token": token, "letter": "0-0", "action": "replay"}
    for headers, changes, status in (
        ({"origin": "https://evil.example"}, {}, 403),
        ({"origin": shop.url}, {"form_token": "x"}, 403),
        ({"origin": shop.url}, {"action": "delete"}, 400),
        ({"origin": shop.url}, {"letter": []}, 400),
        ({"origin": shop.url}, {"order": "<b>"}, 400),
        ({"origin": shop.url}, {"letter": ["0-0"] * 21}, 400),
    ):
        response = await visitor.http.post(PATH, data={**fields, **changes}, headers=headers)
        assert response.status_code == status, changes


@dataclass
class Notifications:
    """Responds as notifications does.

    calls: method, path and token of each call
    responses: status and body of the next ones
    retry_after: the header of all of them
    """

    calls: list[tuple[str, str, str | None]] = field(default_factory=list)
    responses: list[tuple[int, Any]] = field(default_factory=list)
    retry_after: str | None = None

    async def respond(self, request: Request) -> Response:
        self.calls.append((request.method, request.url.path, request.headers.get("authorization")))
        status, body = self.responses.pop(0)
        media_type = "application/problem+json" if status >= 400 else "application/json"
        headers = {} if self.retry_after is None else {"retry-after": self.retry_after}
        return Response(json.dumps(body), status, headers, media_type)


LETTER = {
    "id": "3-7",
    "time": "2026-03-01T10:20:30.123+00:00",
    "reason": "new-reason",
    "detail": "<script>alert(1)</script>",
    "order_id": None,
    "event": None,
    "attempts": None,
    "recipient": None,
    "status": "open",
    "done_at": None,
}
PAGE = {"items": [LETTER, {**LETTER, "id": "3-8", "time": ""}], "limit": 20, "next": "abc", "complete": False}


@pytest.fixture
async def notifications(world: SigningIn) -> AsyncIterator[Notifications]:
    notifications = Notifications()
    routes = [Route("/{path:path}", notifications.respond, methods=["GET", "POST"])]
    server = HttpServer(Starlette(routes=routes), "127.0.0.1", world.port_of["notifications"])
    await server.start()
    yield notifications
    await server.stop(0)


async def signed_in(browser: Browser, person: str) -> None:
    await browser.sign_in("/desk", person)


async def test_an_operator_acts_with_their_own_token_and_sees_each_result(
    world: SigningIn, notifications: Notifications
) -> None:
    async with world.new_browser() as browser:
        await signed_in(browser, "olga")
        notifications.responses = [(200, PAGE)]
        page = Document((response := await browser.get(PATH)).text)
        assert "<script>alert" not in response.text
        for text in ("It could not be mailed.", "There are more than this page can find.", "unknown"):
            assert text in page.text
        assert f"{PATH}?after=abc" in page.links
        busy = {"type": f"{TYPE_PREFIX}attempt-in-progress", "detail": "busy"}
        notifications.responses = [(409, busy), (404, {"type": f"{TYPE_PREFIX}not-found"})]
        form = page.forms[-1]
        origin = str(browser.http.base_url).rstrip("/")
        data = {"form_token": dict(form.fields)["form_token"], "letter": ["3-7", "3-8"], "action": "replay"}
        result = Document((await browser.http.post(PATH, data=data, headers={"origin": origin})).text)
        assert "3-7: Somebody else is replaying or dropping it at the moment." in result.text
        assert "3-8: It is no longer stored." in result.text
        notifications.responses = [(200, {"id": "3-7", "result": "mailed-before"}), (503, {"detail": "Kafka"})]
        result = Document((await browser.http.post(PATH, data=data, headers={"origin": origin})).text)
        assert "3-7: The mail had been sent before. It was not sent again." in result.text
        assert "3-8: The result is not known." in result.text
    assert [call[:2] for call in notifications.calls] == [
        ("GET", "/api/dead-letters"),
        *[("POST", f"/api/dead-letters/{letter}/replay") for letter in ("3-7", "3-8", "3-7", "3-8")],
    ]
    [token] = {token for *_, token in notifications.calls}
    assert token is not None
    assert token.startswith("Bearer ")


async def test_a_merchant_sees_the_list_and_may_not_replay(world: SigningIn, notifications: Notifications) -> None:
    async with world.new_browser() as browser:
        await signed_in(browser, "mia")
        notifications.responses = [(200, PAGE)]
        page = Document((await browser.get(PATH)).text)
        assert all(form.action != PATH for form in page.forms)
        [form] = [form for form in page.forms if form.action == "/language"][:1]
        token = dict(form.fields)["form_token"]
        data = {"form_token": token, "letter": "3-7", "action": "replay"}
        origin = str(browser.http.base_url).rstrip("/")
        response = await browser.http.post(PATH, data=data, headers={"origin": origin})
        assert response.status_code == 403
    assert len(notifications.calls) == 1


async def test_a_buyer_and_a_stranger_do_not_reach_notifications(
    world: SigningIn, notifications: Notifications
) -> None:
    async with world.new_browser() as browser:
        assert (await browser.get(PATH)).status_code == 303
        await signed_in(browser, "ann")
        assert (await browser.get(PATH)).status_code == 403
    assert notifications.calls == []


@pytest.mark.parametrize(
    ("header", "expected"),
    [("17", "17"), (None, "1"), ("-3", "1"), ("86400", "1"), ("Sat, 28 Nov 2026 10:00:00 GMT", "1")],
)
async def test_the_page_says_when_notifications_wants_to_be_called_again(
    world: SigningIn, notifications: Notifications, header: str | None, expected: str
) -> None:
    notifications.retry_after = header
    async with world.new_browser() as browser:
        await signed_in(browser, "olga")
        for status, body in (
            (503, {"type": f"{TYPE_PREFIX}overloaded", "detail": "too many requests are waiting"}),
            (429, {"type": f"{TYPE_PREFIX}too-many-requests", "detail": "too many requests"}),
            (500, {"type": f"{TYPE_PREFIX}internal-error"}),
        ):
            notifications.responses = [(status, body)] * 4
            response = await browser.get(PATH)
            assert (response.status_code, response.headers.get("retry-after")) == (503, expected), body


async def test_the_reason_and_the_result_are_said_in_both_languages(
    world: SigningIn, notifications: Notifications
) -> None:
    failed = {**LETTER, "reason": "retries-exhausted", "detail": "RuntimeError: broken"}
    still_open = {"id": "3-7", "result": "open", "reason": "internal-error", "detail": None}
    for language, reason, result in (
        ("en", "or an internal error has prevented it.", "3-7: An internal error has prevented it."),
        ("ru", "или мешала внутренняя ошибка.", "3-7: Этому помешала внутренняя ошибка."),
    ):
        async with world.new_browser() as browser:
            browser.http.headers["accept-language"] = language
            await signed_in(browser, "olga")
            notifications.responses = [(200, {**PAGE, "items": [failed]}), (200, still_open)]
            page = Document((await browser.get(PATH)).text)
            assert reason in page.text
            assert result in Document((await browser.send(page.form(PATH), action="replay")).text).text


async def test_without_notifications_the_page_says_that_a_part_of_the_shop_does_not_respond(world: SigningIn) -> None:
    async with world.new_browser() as browser:
        await signed_in(browser, "olga")
        response = await browser.get(PATH)
        assert (response.status_code, "retry-after" in response.headers) == (503, True)
        assert "A part of the shop does not respond." in Document(response.text).text
