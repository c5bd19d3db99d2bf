"""An idempotency key belongs to the signed-in caller, also while other instances do not require sign-in."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
from structlog.testing import capture_logs

from tests.support import earlier_version
from tests.support.issuer import Issuer
from tests.support.repeats import assert_created_once, repeated_while_unknown
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .gates import arm, gate_at, gated_service
from .service import IDLE, MakeSettings, OrdersProcess, Service, on_new_database, serving
from .sign_in import Caller, Shop
from .stock import Stock

# The last version without sign-in.
WITHOUT_SIGN_IN = "8f084be"


@pytest.fixture
async def lamp(catalogue: FakeCatalogue, stock: Stock) -> str:
    """A product with 100 units in stock."""
    product_id = catalogue.add()
    await stock.set(product_id, 100)
    return product_id


@pytest.fixture(scope="module")
async def settings(make_settings: MakeSettings, migrated: None) -> MakeSettings:
    """Make configurations with one database, for instances with and without sign-in."""
    return await on_new_database(make_settings, recovery=IDLE)


@pytest.fixture
async def own_shop(settings: MakeSettings, issuer: Issuer, tmp_path: Path) -> AsyncIterator[Shop]:
    """An instance that requires sign-in, whose failure points can be armed."""
    sign_in = {"mode": "required", "issuer": issuer.url}
    async with gated_service(settings(auth=sign_in), tmp_path) as service:
        yield Shop(service, issuer)


@pytest.fixture
async def open_service(settings: MakeSettings) -> AsyncIterator[Service]:
    """An instance in mode `open` with the same database."""
    async with serving(settings(), background=False) as service:
        yield service


@pytest.fixture
def key() -> str:
    return uuid4().hex


@pytest.fixture
def ann(own_shop: Shop) -> Caller:
    return own_shop.sign_in(f"ann-{uuid4().hex[:8]}")


@pytest.fixture
def mia(own_shop: Shop) -> Caller:
    return own_shop.sign_in(f"mia-{uuid4().hex[:8]}", "merchant")


def result(response: httpx.Response) -> tuple[int, str]:
    """Return the status, and the order's id or the problem's type."""
    body = response.json()
    return response.status_code, body["id"] if response.is_success else body["type"].removeprefix("urn:market:problem:")


async def test_equal_keys_of_different_subjects_place_an_order_each(
    own_shop: Shop, lamp: str, key: str, stock: Stock
) -> None:
    buyers = [own_shop.sign_in(f"{name}-{key}") for name in ("ann", "bob", "cleo")]
    merchant = own_shop.sign_in(f"mia-{key}", "merchant")
    calls = [(caller, {}) for caller in [*buyers, merchant] * 3]
    responses = await asyncio.gather(*(caller.place([(lamp, 1)], key=key, **fields) for caller, fields in calls))
    assert sorted(r.status_code for r in responses) == [200] * 8 + [201] * 4
    for caller in (*buyers, merchant):
        own = {r.json()["id"] for r, call in zip(responses, calls, strict=True) if call[0] is caller}
        assert len(own) == 1
    assert len({r.json()["id"] for r in responses}) == 4
    assert await stock.available(lamp) == 96


async def test_a_replay_by_another_subject_never_shows_the_order(
    own_shop: Shop, ann: Caller, mia: Caller, lamp: str, key: str
) -> None:
    placed = await ann.place([(lamp, 1)], key=key)
    user = placed.json()["user"]
    for other, fields in ((own_shop.sign_in("bob"), {}), (mia, {"user": user}), (mia, {})):
        response = await other.place([(lamp, 1)], key=key, **fields)
        if response.status_code == 422:
            # The merchant's own key, which the loop has used for another request.
            assert result(response) == (422, "idempotency-key-reused")
        else:
            assert response.status_code == 201
            assert response.json()["id"] != placed.json()["id"]
    assert result(await ann.place([(lamp, 1)], key=key)) == (200, placed.json()["id"])


async def test_a_merchants_key_belongs_to_the_merchant_no_matter_who_the_order_is_for(
    own_shop: Shop, ann: Caller, mia: Caller, lamp: str, key: str
) -> None:
    placed = await mia.place([(lamp, 1)], key=key, user="bob")
    assert placed.status_code == 201
    assert result(await mia.place([(lamp, 1)], key=key, user="bob")) == (200, placed.json()["id"])
    for fields in ({}, {"user": "cleo"}):
        assert result(await mia.place([(lamp, 1)], key=key, **fields)) == (422, "idempotency-key-reused")
    # Bob's own key is free.
    bob = own_shop.sign_in("bob")
    own = await bob.place([(lamp, 1)], key=key)
    assert own.status_code == 201
    assert own.json()["id"] != placed.json()["id"]
    for caller, fields, expected in ((bob, {}, own), (mia, {"user": "bob"}, placed)):
        assert result(await caller.place([(lamp, 1)], key=key, **fields)) == (200, expected.json()["id"])
    # So is that of another merchant, for the same user.
    other = await own_shop.sign_in("max", "merchant").place([(lamp, 1)], key=key, user="bob")
    assert other.status_code == 201
    assert len({r.json()["id"] for r in (placed, own, other)}) == 3


async def test_a_merchant_gets_no_second_order_with_a_key_from_before_sign_in_that_no_index_covers(
    own_shop: Shop, open_service: Service, lamp: str, key: str, stock: Stock
) -> None:
    """The order that has the key lacks the field `key`, because another user's order already had it."""
    merchant = f"mia-{key}"
    for user in (f"ann-{key}", merchant):
        assert (await open_service.place([(lamp, 1)], key=key, user=user)).status_code == 201
    response = await own_shop.sign_in(merchant, "merchant").place([(lamp, 1)], key=key, user="bob")
    assert result(response) == (422, "idempotency-key-reused")
    assert await stock.available(lamp) == 98


async def test_the_same_request_is_recognized_with_and_without_the_user_and_with_a_new_address(
    own_shop: Shop, lamp: str, key: str
) -> None:
    name = f"ann-{key}"
    placed = await own_shop.sign_in(name).place([(lamp, 1)], key=key)
    assert (placed.status_code, placed.json()["email"]) == (201, None)
    with_address = own_shop.sign_in(name, email="ann@shop.example")
    for fields in ({}, {"user": name}):
        assert result(await with_address.place([(lamp, 1)], key=key, **fields)) == (200, placed.json()["id"])


async def test_a_rejected_order_frees_the_subjects_key(
    own_shop: Shop, mia: Caller, lamp: str, key: str, stock: Stock
) -> None:
    assert result(await mia.place([(lamp, 1000)], key=key, user="bob")) == (409, "out-of-stock")
    stored = await own_shop.documents.find_one({"user": "bob", "status": "rejected", "reason": "out-of-stock"})
    assert not {"subject_key", "idempotency_key", "key", "digest"} & stored.keys()
    placed = await mia.place([(lamp, 1)], key=key, user="cleo")
    assert placed.status_code == 201
    assert result(await mia.place([(lamp, 1)], key=key, user="cleo")) == (200, placed.json()["id"])


async def test_a_subjects_key_is_freed_by_the_rejection_of_an_earlier_version(
    own_shop: Shop, mia: Caller, lamp: str, key: str
) -> None:
    arm(own_shop.service, "orders.after-intent", "fail")
    assert (await mia.place([(lamp, 1)], key=key, user="bob")).status_code == 503
    # It does not know the field `subject_key`.
    rejection = {"$set": {"status": "rejected"}, "$unset": {"idempotency_key": 1, "key": 1, "digest": 1, "since": 1}}
    await own_shop.documents.update_one({"subject_key.key": key}, rejection)
    placed = await mia.place([(lamp, 2)], key=key, user="bob")
    assert placed.status_code == 201
    assert result(await mia.place([(lamp, 2)], key=key, user="bob")) == (200, placed.json()["id"])


async def test_a_repeat_that_finishes_a_merchants_order_is_in_the_audit_log(
    own_shop: Shop, mia: Caller, lamp: str, key: str
) -> None:
    arm(own_shop.service, "orders.after-intent", "fail")
    assert (await mia.place([(lamp, 1)], key=key, user="bob")).status_code == 503
    with capture_logs() as lines:
        responses = [await mia.place([(lamp, 1)], key=key, user="bob") for _ in range(2)]
    assert [r.status_code for r in responses] == [200, 200]
    assert [line["event"] for line in lines if line.get("component") == "audit"] == ["order placed"]


async def test_a_merchants_order_whose_outcome_is_unknown_is_in_the_audit_log(
    own_shop: Shop, mia: Caller, lamp: str, key: str
) -> None:
    arm(own_shop.service, "orders.before-confirm", "fail")
    with capture_logs() as lines:
        assert (await mia.place([(lamp, 1)], key=key, user="bob")).status_code == 503
    [entry] = [line for line in lines if line.get("component") == "audit"]
    assert (entry["event"], entry["subject"].partition("-")[0]) == ("order placed", "mia")
    assert entry["after"] == {"user": "bob", "status": "outcome unknown"}


async def test_keys_of_orders_that_were_placed_in_mode_open_stay_valid(
    own_shop: Shop, open_service: Service, mia: Caller, lamp: str, key: str
) -> None:
    name = f"ann-{key}"
    placed = await open_service.place([(lamp, 1)], user=name, key=key)
    assert placed.status_code == 201
    # For the user who signs in now, and for a merchant who repeats exactly what was sent.
    ann = own_shop.sign_in(name, email="ann@shop.example")
    assert result(await ann.place([(lamp, 1)], key=key)) == (200, placed.json()["id"])
    assert result(await ann.place([(lamp, 2)], key=key)) == (422, "idempotency-key-reused")
    assert result(await mia.place([(lamp, 1)], key=key, user=name)) == (200, placed.json()["id"])
    # Another request of the merchant with this key is another order.
    other = await mia.place([(lamp, 2)], key=key, user=name)
    assert other.status_code == 201
    assert result(await mia.place([(lamp, 2)], key=key, user=name)) == (200, other.json()["id"])
    assert result(await open_service.place([(lamp, 1)], user=name, key=key)) == (200, placed.json()["id"])


@pytest.mark.parametrize("merchant", [False, True])
async def test_one_request_to_instances_with_and_without_sign_in_places_one_order(
    own_shop: Shop, open_service: Service, lamp: str, stock: Stock, merchant: bool
) -> None:
    """As while sign-in is being introduced, and each repeat may reach an instance of the other kind."""
    mia = own_shop.sign_in("mia", "merchant")
    requests = [(f"user-{n}-{uuid4().hex[:8]}", uuid4().hex) for n in range(15)]

    async def place(signed_in: bool, user: str, key: str) -> list[httpx.Response]:
        caller = (mia if merchant else own_shop.sign_in(user)) if signed_in else open_service
        return await repeated_while_unknown(lambda: caller.place([(lamp, 1)], user=user, key=key))

    calls = [(signed_in, user, key) for user, key in requests for signed_in in (False, True) * 2]
    random.Random(3).shuffle(calls)
    responses = await asyncio.gather(*(place(*call) for call in calls))
    for user, key in requests:
        own = [r for r, call in zip(responses, calls, strict=True) if call[1] == user]
        own += [await place(signed_in, user, key) for signed_in in (False, True)]
        assert_created_once(own)
    assert await stock.available(lamp) == 100 - len(requests)


async def test_a_key_waits_while_a_merchants_pending_order_for_the_user_has_it(
    own_shop: Shop, mia: Caller, lamp: str, key: str
) -> None:
    """If that order were rejected, an instance in mode `open` could place the user's order a second time."""
    name = f"ann-{key}"
    gate = gate_at(own_shop.service, "orders.after-intent")
    first = asyncio.create_task(mia.place([(lamp, 1)], user=name, key=key))
    await gate.wait_until_reached()
    second = asyncio.create_task(own_shop.sign_in(name).place([(lamp, 1)], key=key))
    await asyncio.sleep(0.5)
    assert not second.done()
    gate.open()
    merchants, own = await first, await second
    assert [merchants.status_code, own.status_code] == [201, 201]
    stored = {str(d["_id"]): d for d in await own_shop.documents.find({"user": name}).to_list()}
    assert stored[merchants.json()["id"]]["idempotency_key"] == key
    assert not {"idempotency_key", "key"} & stored[own.json()["id"]].keys()
    assert stored[own.json()["id"]]["subject_key"] == {"subject": name, "key": key}


@pytest.mark.parametrize("merchant", [False, True])
async def test_an_earlier_version_and_this_one_with_sign_in_place_one_order_per_request(
    settings: MakeSettings, own_shop: Shop, lamp: str, stock: Stock, tmp_path: Path, merchant: bool
) -> None:
    environment = await asyncio.to_thread(earlier_version.unpack, WITHOUT_SIGN_IN, tmp_path / "earlier")
    earlier = OrdersProcess(settings(), tmp_path, env=environment)
    mia = own_shop.sign_in("mia", "merchant")
    try:
        earlier.start()
        await earlier.ready()
        requests = [(f"user-{n}-{uuid4().hex[:8]}", uuid4().hex) for n in range(10)]
        calls = [(signed_in, user, key) for user, key in requests for signed_in in (False, True) * 2]
        random.Random(4).shuffle(calls)

        async def place(signed_in: bool, user: str, key: str) -> list[httpx.Response]:
            caller = (mia if merchant else own_shop.sign_in(user)) if signed_in else earlier
            return await repeated_while_unknown(lambda: caller.place([(lamp, 1)], user=user, key=key))

        responses = await asyncio.gather(*(place(*call) for call in calls))
        for user, key in requests:
            own = [r for r, call in zip(responses, calls, strict=True) if call[1] == user]
            own += [await place(signed_in, user, key) for signed_in in (False, True)]
            assert_created_once(own)
        assert await stock.available(lamp) == 100 - len(requests)
        # The earlier version reads and cancels what this one has stored, with its new fields.
        order_id = (await mia.place([(lamp, 1)], user="bob", key=uuid4().hex)).json()["id"]
        assert (await earlier.http.get(f"/api/order/{order_id}")).json()["user"] == "bob"
        assert (await earlier.http.delete(f"/api/order/{order_id}")).status_code == 204
        cancelled = {"_id": UUID(order_id), "status": "cancelled"}
        assert (await until(lambda: own_shop.documents.find_one(cancelled), what="cancelled"))["placed_by"] == "mia"
    finally:
        await earlier.close()
