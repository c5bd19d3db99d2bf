"""PUT with a delivery: its units are added to the stock once, however often and in whatever version it is sent."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import grpc
import httpx
import pytest
from structlog.testing import capture_logs

from market.contracts import inventory_pb2 as pb
from tests.support.waiting import PATIENCE

from .conftest import FakeInventory, PausingFaults, RunningProducts, Start, assert_problem, serving, stock_of

MAX_STOCK = 2_147_483_647


async def put(
    products: RunningProducts, product: dict[str, Any], tag: str | None = None, **fields: Any
) -> httpx.Response:
    headers = {} if tag is None else {"If-Match": tag}
    return await products.http.put("/api/product", json={**product, **fields}, headers=headers)


def units(quantity: int, delivery_id: str | None = None) -> dict[str, Any]:
    return {"id": delivery_id or str(uuid4()), "quantity": quantity}


class DeliveringInventory(FakeInventory):
    """The fake with deliveries. A test sets `refusal`, which is the outcome of a delivery that was checked before."""

    refusal: pb.DeliveryOutcome | None = None

    async def AddDelivery(self, request: Any, context: Any) -> Any:
        await self._fail_or_wait(context)
        stock = self.stock.get(request.product_id, 0)
        if request.validate_only:
            return pb.AddDeliveryResponse(outcome=pb.DELIVERY_OUTCOME_ADDED, quantity=stock)
        if self.read_only:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "made read-only by the test")
        if self.refusal is not None:
            return pb.AddDeliveryResponse(outcome=self.refusal, quantity=MAX_STOCK - 3)
        self.stock[request.product_id] = stock + request.quantity
        return pb.AddDeliveryResponse(
            outcome=pb.DELIVERY_OUTCOME_ADDED,
            quantity=stock + request.quantity,
            product_version=request.product_version,
        )


async def test_a_delivery_is_added_to_the_stock_with_the_new_fields(start: Start, inventory_port, inventory_stub):
    # Entries of its cache live for minutes.
    async with start(inventory_port) as products:
        product = await products.create(stock=0)
        assert await products.redis.get(f"avail:{product['id']}") == b"0"
        response = await put(products, product, '"1"', name="New", delivery=units(5))
        assert (response.status_code, response.headers["etag"]) == (200, '"2.available"')
        assert response.json() == {
            **product,
            "name": "New",
            "available": True,
            "version": 2,
            "updated_at": response.json()["updated_at"],
        }
        assert await products.redis.get(f"avail:{product['id']}") == b"1"
        assert (await put(products, product, '"2"', delivery=units(3))).status_code == 200
        assert await stock_of(inventory_stub, product["id"]) == 8


async def test_a_delivery_sent_many_times_at_once_and_later_is_added_once(products: RunningProducts, inventory_stub):
    product = await products.create(stock=10)
    delivery = units(5)
    responses = await asyncio.gather(*(put(products, product, delivery=delivery) for _ in range(8)))
    assert [r.status_code for r in responses] == [200] * 8
    assert (await put(products, product, name="Another", delivery=units(1))).status_code == 200
    assert (await put(products, product, delivery=delivery)).status_code == 200
    assert await stock_of(inventory_stub, product["id"]) == 16


async def test_a_delivery_refused_with_412_changes_nothing_and_can_be_sent_again(
    products: RunningProducts, inventory_stub
):
    product = await products.create(stock=10)
    delivery = units(5)
    await put(products, product, name="First")
    response = await put(products, product, '"1"', name="Second", delivery=delivery)
    assert_problem(response, 412)
    assert response.json()["version"] == 2
    assert (await products.get(product["id"]))["name"] == "First"
    assert await stock_of(inventory_stub, product["id"]) == 10
    assert (await put(products, product, '"2"', name="Second", delivery=delivery)).status_code == 200
    assert await stock_of(inventory_stub, product["id"]) == 15


async def refused(products: RunningProducts, product: dict[str, Any], **fields: Any) -> list[dict[str, str]]:
    """Send a PUT that must be refused with 422 and change nothing; return its errors."""
    before = await products.get(product["id"], stock="true", availability="false")
    response = await put(products, product, **{"name": "Refused", **fields})
    assert_problem(response, 422)
    assert await products.get(product["id"], stock="true", availability="false") == before
    return list(response.json()["errors"])


async def test_the_same_id_with_another_quantity_changes_nothing(products: RunningProducts):
    product = await products.create(stock=10)
    delivery = units(5)
    await put(products, product, delivery=delivery)
    assert await refused(products, product, delivery={**delivery, "quantity": 6}) == [
        {"field": "delivery.id", "reason": "was already used for a delivery of another quantity"}
    ]


async def test_a_delivery_that_makes_the_stock_too_large_changes_nothing(products: RunningProducts, inventory_stub):
    product = await products.create(stock=MAX_STOCK - 3)
    assert await refused(products, product, delivery=units(4)) == [
        {
            "field": "delivery.quantity",
            "reason": "must be at most 3, because the stock is 2147483644 and may be at most 2147483647, got 4",
        }
    ]
    full = units(3)
    for _ in range(2):
        # The repeat is not too large: it was added already.
        assert (await put(products, product, delivery=full)).status_code == 200
    assert await stock_of(inventory_stub, product["id"]) == MAX_STOCK


@pytest.mark.parametrize(
    ("fields", "field", "reason"),
    [
        ({"delivery": units(1), "stock": 0}, "delivery", "cannot be combined with `stock`"),
        ({"delivery": {"id": "x", "quantity": 1}}, "delivery.id", "must be a UUID"),
        ({"delivery": {"id": str(uuid4())}}, "delivery.quantity", "is missing"),
        ({"delivery": {"quantity": 1}}, "delivery.id", "is missing"),
        ({"delivery": units(0)}, "delivery.quantity", "must be between 1 and 2147483647"),
        ({"delivery": units(-1)}, "delivery.quantity", "must be between 1 and 2147483647"),
        ({"delivery": units(MAX_STOCK + 1)}, "delivery.quantity", "must be between 1 and 2147483647"),
        ({"delivery": {**units(1), "note": ""}}, "delivery.note", "is unknown"),
        ({"delivery": None}, "delivery", "must be an object"),
    ],
)
async def test_an_invalid_delivery_is_refused(products: RunningProducts, fields, field, reason):
    product = await products.create(stock=1)
    [error] = await refused(products, product, **fields)
    assert (error["field"], error["reason"].partition(", got")[0]) == (field, reason)


async def test_a_delivery_of_an_unknown_product_is_404(products: RunningProducts, inventory_stub):
    product = await products.create(stock=1)
    unknown = str(uuid4())
    assert_problem(await put(products, product, id=unknown, delivery=units(1)), 404)
    assert await stock_of(inventory_stub, unknown) is None


async def test_a_new_product_takes_a_stock_and_no_delivery(products: RunningProducts):
    product = await products.create()
    body = {name: product[name] for name in ("name", "description", "price", "currency")}
    response = await products.http.post("/api/product", json={**body, "delivery": units(1)})
    assert_problem(response, 422, "delivery")


async def test_a_slow_delivery_is_not_added_to_the_stock_of_a_later_stock_take(
    start: Start, inventory_port, inventory_stub
):
    faults = PausingFaults("products.before-add-delivery")
    async with start(inventory_port, faults=faults) as products:
        product = await products.create(stock=9)
        slow = asyncio.create_task(put(products, product, name="Slow", delivery=units(5)))
        await asyncio.wait_for(faults.reached.wait(), PATIENCE)
        assert (await put(products, product, name="Later", stock=0)).status_code == 200
        faults.resume.set()
        assert ((await slow).status_code, (await slow).json()["available"]) == (200, False)
        assert await stock_of(inventory_stub, product["id"]) == 0
        assert (await products.get(product["id"]))["name"] == "Later"
        assert await products.redis.get(f"avail:{product['id']}") == b"0"


async def test_of_two_deliveries_that_overtake_each_other_both_are_added(start: Start, inventory_port, inventory_stub):
    faults = PausingFaults("products.before-add-delivery")
    async with start(inventory_port, faults=faults) as products:
        product = await products.create(stock=9)
        slow = asyncio.create_task(put(products, product, delivery=units(5)))
        await asyncio.wait_for(faults.reached.wait(), PATIENCE)
        assert (await put(products, product, delivery=units(3))).status_code == 200
        assert await stock_of(inventory_stub, product["id"]) == 12
        faults.resume.set()
        assert ((await slow).status_code, (await slow).json()["version"]) == (200, 2)
        assert await stock_of(inventory_stub, product["id"]) == 17
        assert (await products.get(product["id"]))["version"] == 3


async def test_a_slow_stock_take_keeps_a_later_delivery(start: Start, inventory_port, inventory_stub):
    faults = PausingFaults("products.before-set-stock")
    faults.reached.set()
    async with start(inventory_port, faults=faults) as products:
        product = await products.create(stock=9)
        faults.reached.clear()
        slow = asyncio.create_task(put(products, product, stock=100))
        await asyncio.wait_for(faults.reached.wait(), PATIENCE)
        assert (await put(products, product, delivery=units(3))).status_code == 200
        faults.resume.set()
        with capture_logs() as lines:
            assert (await slow).status_code == 200
        assert await stock_of(inventory_stub, product["id"]) == 103
        [audited] = [line["after"] for line in lines if line["event"] == "stock set" and "version" in line["after"]]
        assert audited == {"stock": 103, "version": 3}


async def test_a_lost_delivery_is_a_503_that_says_so_and_its_repeat_completes_it(start: Start):
    inventory = DeliveringInventory()
    async with serving(inventory) as port, start(port) as products:
        product = await products.create(stock=1)
        delivery = units(5)
        inventory.read_only = True
        response = await put(products, product, '"1"', name="New", delivery=delivery)
        document = response.json()
        assert (response.status_code, response.headers["etag"]) == (503, '"2"')
        assert (document["fields"], document["stock"], document["etag"]) == ("replaced", "unknown", '"2"')
        assert inventory.stock[product["id"]] == 1
        inventory.read_only = False
        assert (await put(products, product, '"1"', name="New", delivery=delivery)).status_code == 412
        assert (await put(products, product, '"2"', name="New", delivery=delivery)).status_code == 200
        assert inventory.stock[product["id"]] == 6


@pytest.mark.parametrize("inventory_type", [DeliveringInventory, FakeInventory])
async def test_while_inventory_is_down_or_knows_no_deliveries_nothing_changes(start: Start, inventory_type):
    inventory = inventory_type()
    async with serving(inventory) as port, start(port) as products:
        product = await products.create(stock=1)
        # The plain fake is an inventory of the previous version, without the call.
        inventory.down = inventory_type is DeliveringInventory
        response = await put(products, product, name="New", delivery=units(5))
        document = response.json()
        assert (response.status_code, document["fields"], document["stock"]) == (503, "unchanged", "unchanged")
        assert response.headers["etag"] == '"1"'
        inventory.down = False
        assert (await products.get(product["id"], availability="false"))["name"] == product["name"]
        assert inventory.stock[product["id"]] == 1


@pytest.mark.parametrize(
    ("refusal", "reason"),
    [
        (
            pb.DELIVERY_OUTCOME_TOO_LARGE,
            "delivery.quantity: must be at most 3, because the stock is 2147483644 and may be at most 2147483647, "
            "got 5",
        ),
        (pb.DELIVERY_OUTCOME_MISMATCH, "delivery.id: was already used for a delivery of another quantity"),
    ],
)
async def test_a_delivery_refused_after_its_check_is_a_409_that_says_what_has_changed(start: Start, refusal, reason):
    inventory = DeliveringInventory()
    inventory.refusal = refusal
    async with serving(inventory) as port, start(port) as products:
        product = await products.create(stock=1)
        response = await put(products, product, name="New", delivery=units(5))
        assert_problem(response, 409)
        document = response.json()
        assert document["detail"] == f"{reason}; the fields of the product are replaced, its stock is unchanged"
        assert (document["fields"], document["stock"]) == ("replaced", "unchanged")
        assert response.headers["etag"] == document["etag"] == '"2"'
        assert (await products.get(product["id"]))["name"] == "New"


async def test_a_table_restored_from_a_backup_takes_deliveries_and_stock_takes(
    products: RunningProducts, inventory_stub
):
    product = await products.create(stock=1)
    await put(products, product, stock=10)
    for _ in range(3):
        await put(products, product, delivery=units(1))
    assert await stock_of(inventory_stub, product["id"]) == 13

    async def restore(version: int) -> None:
        await products.db.execute("UPDATE products SET version = $2 WHERE id = $1", product["id"], version)

    # Inventory has the stock of version 2, and deliveries up to version 5.
    await restore(0)
    response = await put(products, product, delivery=units(5))
    assert (response.status_code, response.json()["version"]) == (200, 6)
    assert await stock_of(inventory_stub, product["id"]) == 18
    await restore(2)
    with capture_logs() as lines:
        response = await put(products, product, delivery=units(5))
    assert (response.status_code, response.json()["version"]) == (200, 7)
    assert await stock_of(inventory_stub, product["id"]) == 23
    assert len([line for line in lines if line["event"] == "delivery added" and "version" in line["after"]]) == 1
    await restore(2)
    # A stock take is exact: it does not keep the deliveries of the versions that were lost.
    assert (await put(products, product, stock=50)).status_code == 200
    assert await stock_of(inventory_stub, product["id"]) == 50


async def test_the_audit_log_has_each_delivery_once(products: RunningProducts):
    product = await products.create(stock=10)
    delivery = units(5)
    with capture_logs() as lines:
        for _ in range(2):
            await put(products, product, delivery=delivery)
    [line] = [line for line in lines if line["event"] == "delivery added" and "version" in line["after"]]
    assert (line["target"], line["before"], line["after"]) == (
        f"product {product['id']}",
        {"stock": 10},
        {"stock": 15, "version": 2, "delivery": delivery["id"], "units": 5},
    )
