"""Whose orders a signed-in caller may place, read, list and cancel, and where the mails go."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from structlog.testing import capture_logs

from market.kit.ids import new_id
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .sign_in import Caller, Shop
from .stock import Stock

NOBODY_NAMED = "`user` must be absent, or the subject of the token: only merchants may place orders for others"


@pytest.fixture
async def lamp(catalogue: FakeCatalogue, stock: Stock) -> str:
    """A product with 50 units in stock."""
    product_id = catalogue.add()
    await stock.set(product_id, 50)
    return product_id


@pytest.fixture
def name() -> str:
    """The name of a buyer that no other test uses."""
    return f"ann-{uuid4().hex[:8]}"


@pytest.fixture
async def ann(shop: Shop, name: str) -> Caller:
    return shop.sign_in(name, email="ann@shop.example")


@pytest.fixture
def merchant(shop: Shop) -> Caller:
    return shop.sign_in("mia", "merchant", email="mia@shop.example")


@pytest.fixture
async def anns_order(ann: Caller, lamp: str) -> Any:
    response = await ann.place([(lamp, 1)])
    assert response.status_code == 201, response.text
    return response.json()


def problem(response: httpx.Response) -> tuple[int, str, str]:
    """Return the status, the problem's type without its prefix, and its detail."""
    document = response.json()
    return response.status_code, document["type"].removeprefix("urn:market:problem:"), document["detail"]


async def count(shop: Shop) -> int:
    return int(await shop.documents.count_documents({}))


# Placing


@pytest.mark.parametrize("named", [False, True])
async def test_a_buyers_order_is_for_the_subject_of_the_token(
    shop: Shop, ann: Caller, name: str, lamp: str, named: bool
) -> None:
    response = await ann.place([(lamp, 1)], **({"user": name} if named else {}))
    assert response.status_code == 201
    assert (response.json()["user"], response.json()["email"]) == (name, "ann@shop.example")
    stored = await shop.documents.find_one({"_id": UUID(response.json()["id"])})
    assert (stored["user"], stored["email"]) == (name, "ann@shop.example")
    assert "placed_by" not in stored


async def test_a_user_of_null_is_the_subject_of_the_token(ann: Caller, name: str, lamp: str) -> None:
    response = await ann.place([(lamp, 1)], user=None)
    assert (response.status_code, response.json()["user"]) == (201, name)


async def test_a_buyer_cannot_order_for_another_user(
    shop: Shop, ann: Caller, name: str, lamp: str, stock: Stock
) -> None:
    before = await count(shop)
    for other in (name.upper(), f"{name} ", "bob", "mia"):
        response = await ann.place([(lamp, 1)], user=other, key=uuid4().hex)
        assert problem(response) == (403, "forbidden", NOBODY_NAMED)
        assert 'error="insufficient_scope"' in response.headers["www-authenticate"]
    assert await count(shop) == before
    assert await stock.available(lamp) == 50


async def test_a_merchant_orders_for_anybody_and_otherwise_for_themselves(
    shop: Shop, merchant: Caller, lamp: str
) -> None:
    own = await merchant.place([(lamp, 1)])
    assert (own.status_code, own.json()["user"], own.json()["email"]) == (201, "mia", "mia@shop.example")
    with capture_logs() as lines:
        other = await merchant.place([(lamp, 1)], user="walk-in customer")
    assert (other.status_code, other.json()["user"], other.json()["email"]) == (201, "walk-in customer", None)
    stored = await shop.documents.find_one({"_id": UUID(other.json()["id"])})
    assert stored["placed_by"] == "mia"
    [entry] = [line for line in lines if line.get("component") == "audit"]
    assert (entry["event"], entry["subject"], entry["roles"]) == ("order placed", "mia", ["merchant"])
    assert entry["target"] == f"order {other.json()['id']}"
    assert (entry["before"], entry["after"]) == (None, {"user": "walk-in customer", "status": "confirmed"})


async def test_an_own_order_is_not_in_the_audit_log(ann: Caller, merchant: Caller, lamp: str) -> None:
    with capture_logs() as lines:
        for caller in (ann, merchant):
            placed = await caller.place([(lamp, 1)])
            assert (await caller.cancel(placed.json()["id"])).status_code == 204
    assert [line for line in lines if line.get("component") == "audit"] == []


@pytest.mark.parametrize("roles", [("operator",), ("service",)])
async def test_operators_and_services_place_no_orders(
    shop: Shop, lamp: str, stock: Stock, roles: Sequence[str]
) -> None:
    before = await count(shop)
    response = await shop.sign_in("otto", *roles).place([(lamp, 1)])
    assert problem(response)[:2] == (403, "forbidden")
    assert await count(shop) == before
    assert await stock.available(lamp) == 50


async def test_a_buyer_whose_order_is_refused_learns_what_is_left_of_the_products_that_are_short(
    shop: Shop, ann: Caller, name: str, catalogue: FakeCatalogue, stock: Stock, lamp: str
) -> None:
    """Deliberately, although buyers may not see stock; the reasons are in docs/security.md."""
    chair = catalogue.add()
    await stock.set(chair, 7)
    response = await ann.place([(lamp, 1), (chair, 8)])
    assert problem(response)[:2] == (409, "out-of-stock")
    # Not what is left of the lamp.
    assert response.json()["shortages"] == [{"product_id": chair, "wanted": 8, "left": 7}]
    assert lamp not in response.text
    # Who tries leaves a trace.
    [stored] = await shop.documents.find({"user": name}).to_list()
    assert (stored["status"], stored["reason"]) == ("rejected", "out-of-stock")


async def test_without_a_token_nothing_is_placed_read_listed_or_cancelled(
    shop: Shop, lamp: str, stock: Stock, anns_order: dict[str, Any]
) -> None:
    before = await count(shop)
    nobody = shop.anonymous()
    for response in (
        await nobody.place([(lamp, 1)], user="ann"),
        await nobody.get(anns_order["id"]),
        await nobody.list(user=anns_order["user"]),
        await nobody.cancel(anns_order["id"]),
    ):
        assert problem(response)[:2] == (401, "unauthenticated")
        assert response.headers["www-authenticate"] == 'Bearer realm="market"'
    assert await count(shop) == before
    assert await stock.available(lamp) == 49


# Mails


async def test_a_buyer_without_a_verified_address_gets_no_mails(shop: Shop, name: str, lamp: str) -> None:
    for claims in ({}, {"email": "ann@shop.example", "email_verified": False}, {"email": "no address"}):
        response = await shop.sign_in(name, **claims).place([(lamp, 1)])
        assert (response.status_code, response.json()["email"]) == (201, None), claims


async def test_a_buyer_may_name_only_the_verified_address(shop: Shop, ann: Caller, name: str, lamp: str) -> None:
    for same in ("ann@shop.example", "ann@SHOP.example"):
        assert (await ann.place([(lamp, 1)], email=same)).status_code == 201
    before = await count(shop)
    for other in ("bob@shop.example", "Ann@shop.example", "ann@shop.example.org"):
        status, kind, detail = problem(await ann.place([(lamp, 1)], email=other))
        assert (status, kind) == (403, "forbidden"), other
        assert (
            detail
            == "`email` must be absent, or the verified address in the token: only merchants may name another one"
        )
    unverified = shop.sign_in(name, email="ann@shop.example", email_verified=False)
    assert (await unverified.place([(lamp, 1)], email="ann@shop.example")).status_code == 403
    assert await count(shop) == before


async def test_a_merchant_names_any_address(merchant: Caller, lamp: str) -> None:
    for fields in ({"user": "cleo"}, {}):
        response = await merchant.place([(lamp, 1)], email="cleo@elsewhere.example", **fields)
        assert (response.status_code, response.json()["email"]) == (201, "cleo@elsewhere.example")
    response = await merchant.place([(lamp, 1)], user="cleo@nowhere")
    assert response.status_code == 422
    assert response.json()["errors"] == [
        {"field": "user", "reason": "must be an e-mail address if it contains @ and there is no `email`"}
    ]


async def test_a_subject_with_an_at_sign_need_not_be_an_address(shop: Shop, lamp: str) -> None:
    subject = f"{uuid4().hex}@tenant@directory"
    for fields in ({}, {"user": subject}):
        response = await shop.sign_in(subject, email="ann@shop.example").place([(lamp, 1)], **fields)
        assert (response.status_code, response.json()["email"]) == (201, "ann@shop.example")


async def test_wrong_fields_are_still_named_together(ann: Caller, lamp: str) -> None:
    response = await ann.place([(lamp, 0)], user="\u202e", email="x")
    assert response.status_code == 422
    assert sorted(error["field"] for error in response.json()["errors"]) == ["email", "items[0].quantity", "user"]


# Reading and cancelling


async def test_another_buyers_order_looks_exactly_like_one_that_does_not_exist(
    shop: Shop, anns_order: dict[str, Any], lamp: str, stock: Stock
) -> None:
    bob = shop.sign_in("bob")
    missing = str(new_id())
    published = {"_id": UUID(anns_order["id"]), "outbox": {"$exists": False}}
    document = await until(lambda: shop.documents.find_one(published), what="event published")

    async def head(order_id: str) -> httpx.Response:
        return await bob.http.head(f"/api/order/{order_id}", headers=bob.headers)

    for call in (bob.get, bob.cancel, head):
        for order_id in (anns_order["id"], anns_order["id"].upper()):
            found, absent = await call(order_id), await call(missing if order_id.islower() else missing.upper())
            assert found.status_code == absent.status_code == 404
            assert found.text.replace(order_id, "ID").replace(order_id.lower(), "ID") == absent.text.replace(
                missing, "ID"
            ).replace(missing.upper(), "ID")
            assert comparable(found) == comparable(absent)
    assert await shop.documents.find_one({"_id": UUID(anns_order["id"])}) == document
    assert await stock.reservation(anns_order["id"]) == ("reserved", {lamp: 1})


def comparable(response: httpx.Response) -> list[tuple[str, str]]:
    """Return the headers but for those that differ between any two responses."""
    return [(name, value) for name, value in response.headers.items() if name not in ("x-request-id", "date")]


async def test_mongodb_does_not_transfer_another_buyers_order(shop: Shop, anns_order: dict[str, Any]) -> None:
    """It takes no longer than an order that does not exist, however large it is: nothing of it is decoded."""
    where = {"_id": UUID(anns_order["id"])}
    await shop.documents.update_one(where, {"$set": {"total": "unreadable"}})
    assert (await shop.sign_in("bob").get(anns_order["id"])).status_code == 404
    # A caller who may read it gets the error.
    assert (await shop.sign_in("mia", "merchant").get(anns_order["id"])).status_code == 503
    await shop.documents.delete_one(where)


async def test_reads_of_several_callers_at_once_do_not_mix(shop: Shop, lamp: str) -> None:
    """Reads that arrive at the same time share a query."""
    names = [f"buyer-{uuid4().hex[:8]}" for _ in range(16)]
    callers = [shop.sign_in(name) for name in names]
    orders = [(await caller.place([(lamp, 1)])).json()["id"] for caller in callers]
    orders_of = dict(zip(names, orders, strict=True))
    merchant = shop.sign_in("mia", "merchant")

    async def read(caller: Caller, owner: str) -> tuple[int, str | None]:
        response = await caller.get(orders_of[owner])
        return response.status_code, response.json().get("user")

    # Consecutive reads are of one order, so that the owner's and the others' are in one query.
    readers = [*zip(names, callers, strict=True), ("mia", merchant)]
    calls = [(reader, caller, owner) for owner in names for reader, caller in readers]
    results = await asyncio.gather(*(read(caller, owner) for _, caller, owner in calls))
    for (reader, _, owner), result in zip(calls, results, strict=True):
        assert result == ((200, owner) if reader in (owner, "mia") else (404, None)), (reader, owner)


async def test_an_owner_reads_and_cancels(ann: Caller, anns_order: dict[str, Any]) -> None:
    assert (await ann.get(anns_order["id"])).json() == anns_order
    assert (await ann.cancel(anns_order["id"])).status_code == 204
    assert (await ann.get(anns_order["id"])).json()["status"] == "cancelled"


async def test_an_operator_reads_but_does_not_cancel(
    shop: Shop, anns_order: dict[str, Any], lamp: str, stock: Stock
) -> None:
    operator = shop.sign_in("otto", "operator")
    assert (await operator.get(anns_order["id"])).json() == anns_order
    assert problem(await operator.cancel(anns_order["id"]))[:2] == (403, "forbidden")
    assert (await operator.get(anns_order["id"])).json()["status"] == "confirmed"
    assert await stock.reservation(anns_order["id"]) == ("reserved", {lamp: 1})


async def test_a_merchants_cancellation_is_in_the_audit_log_once(merchant: Caller, anns_order: dict[str, Any]) -> None:
    with capture_logs() as lines:
        for _ in range(2):
            assert (await merchant.cancel(anns_order["id"])).status_code == 204
    [entry] = [line for line in lines if line.get("component") == "audit"]
    assert (entry["event"], entry["subject"], entry["target"]) == (
        "order cancelled",
        "mia",
        f"order {anns_order['id']}",
    )
    assert entry["before"] == {"user": anns_order["user"], "status": "confirmed"}
    assert entry["after"] == {"user": anns_order["user"], "status": "cancelled"}


# Listing


async def test_a_buyers_list_has_own_orders_only(shop: Shop, ann: Caller, name: str, lamp: str) -> None:
    own = [(await ann.place([(lamp, 1)])).json() for _ in range(3)]
    assert (await shop.sign_in("bob").place([(lamp, 1)])).status_code == 201
    for parameters in ({}, {"user": name}):
        page = (await ann.list(**parameters)).json()
        assert (page["items"], page["total"], page["next"]) == (own[::-1], 3, None)
    for other in ("bob", name.upper()):
        status, kind, detail = problem(await ann.list(user=other))
        assert (status, kind) == (403, "forbidden")
        assert detail == (
            "`user` must be absent, or the subject of the token: only merchants and operators may list the orders of "
            "others"
        )
    # The cursor is that of the same list, whether or not it names the user.
    after = (await ann.list(limit=2)).json()["next"]
    assert (await ann.list(user=name, after=after)).json()["items"] == [own[0]]


async def test_the_cursor_of_another_buyers_list_is_rejected(shop: Shop, ann: Caller, lamp: str) -> None:
    for _ in range(2):
        await ann.place([(lamp, 1)])
    after = (await ann.list(limit=1)).json()["next"]
    response = await shop.sign_in("bob").list(after=after)
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "after"


@pytest.mark.parametrize("role", ["merchant", "operator"])
async def test_merchants_and_operators_list_the_orders_of_a_user(
    shop: Shop, anns_order: dict[str, Any], role: str
) -> None:
    page = (await shop.sign_in("somebody", role).list(user=anns_order["user"])).json()
    assert (page["items"], page["total"]) == ([anns_order], 1)
