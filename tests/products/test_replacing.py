"""PUT with a stock: the product's fields and its stock change together, or the response says which of them did."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import httpx
import pytest

from market.contracts import inventory_pb2 as pb
from tests.support.waiting import PATIENCE

from .conftest import FakeInventory, PausingFaults, RunningProducts, Start, serving, stock_of

RACES = 60


async def put(
    products: RunningProducts, product: dict[str, Any], tag: str | None = None, **fields: Any
) -> httpx.Response:
    headers = {} if tag is None else {"If-Match": tag}
    return await products.http.put("/api/product", json={**product, **fields}, headers=headers)


def version_of(response: httpx.Response) -> int:
    return int(response.headers["etag"].strip('"').partition(".")[0])


async def test_a_put_refused_with_412_changes_nothing(products: RunningProducts, inventory_stub):
    product = await products.create(stock=1000)
    tag, changed = '"1"', 0
    for n in range(RACES):
        responses = await asyncio.gather(
            *(put(products, product, tag, name=f"{n}.{editor}", stock=10 * n + editor) for editor in range(2))
        )
        assert sorted(r.status_code for r in responses) == [200, 412]
        winner = next(editor for editor, r in enumerate(responses) if r.status_code == 200)
        assert (await products.get(product["id"]))["name"] == f"{n}.{winner}"
        changed += await stock_of(inventory_stub, product["id"]) != 10 * n + winner
        tag = responses[winner].headers["etag"]
    assert changed == 0, f"{changed} of {RACES} refused requests changed the stock"


async def test_of_two_editors_the_last_one_has_its_fields_and_its_stock_in_force(
    products: RunningProducts, inventory_stub
):
    product = await products.create(stock=1000)
    mixed = 0
    for n in range(RACES):
        editors = [10 * n + editor for editor in range(4)]
        responses = await asyncio.gather(*(put(products, product, name=str(stock), stock=stock) for stock in editors))
        assert [r.status_code for r in responses] == [200] * 4
        last = max(zip(responses, editors, strict=True), key=lambda entry: version_of(entry[0]))[1]
        name, stock = (await products.get(product["id"]))["name"], await stock_of(inventory_stub, product["id"])
        assert name == str(last)
        mixed += stock != last
    assert mixed == 0, f"in {mixed} of {RACES} races the fields and the stock are of different editors"


@pytest.mark.parametrize("point", ["products.before-set-stock", "products.after-set-stock"])
async def test_a_slow_editor_does_not_replace_the_stock_of_a_later_one(
    start: Start, inventory_port, inventory_stub, point
):
    faults = PausingFaults(point)
    faults.reached.set()
    async with start(inventory_port, faults=faults) as products:
        product = await products.create(stock=9)
        faults.reached.clear()
        slow = asyncio.create_task(put(products, product, name="Slow", stock=0))
        await asyncio.wait_for(faults.reached.wait(), PATIENCE)
        later = await put(products, product, name="Later", stock=5)
        line = pb.Item(product_id=product["id"], quantity=2)
        assert (await inventory_stub.Reserve(pb.ReserveRequest(reservation_id=str(uuid4()), items=[line]))).reserved
        faults.resume.set()
        assert ((await slow).status_code, later.status_code) == (200, 200)
        assert (version_of(await slow), version_of(later)) == (2, 3)
        assert (await products.get(product["id"], stock="true", availability="false"))["stock"] == 3
        assert (await products.get(product["id"]))["name"] == "Later"
        if point == "products.before-set-stock":
            # What it shows is what is in force.
            assert (await slow).json()["available"] is True
            assert await products.redis.get(f"avail:{product['id']}") == b"1"


async def test_an_editor_without_a_stock_leaves_the_stock_of_a_slower_one_in_force(
    start: Start, inventory_port, inventory_stub
):
    faults = PausingFaults("products.before-set-stock")
    faults.reached.set()
    async with start(inventory_port, faults=faults) as products:
        product = await products.create(stock=9)
        faults.reached.clear()
        slow = asyncio.create_task(put(products, product, name="Slow", stock=4))
        await asyncio.wait_for(faults.reached.wait(), PATIENCE)
        assert (await put(products, product, name="Later")).status_code == 200
        faults.resume.set()
        assert (await slow).status_code == 200
        assert (await products.get(product["id"]))["name"] == "Later"
        assert await stock_of(inventory_stub, product["id"]) == 4


async def test_if_only_the_fields_were_replaced_the_503_says_so_and_has_the_new_tag(start: Start):
    inventory = FakeInventory()
    async with serving(inventory) as port, start(port) as products:
        product = await products.create(stock=1)
        inventory.read_only = True
        response = await put(products, product, '"1"', name="New", stock=2)
        document = response.json()
        assert (response.status_code, response.headers["etag"]) == (503, '"2"')
        assert {name: document[name] for name in ("type", "fields", "stock", "etag")} == {
            "type": "urn:market:problem:unavailable",
            "fields": "replaced",
            "stock": "unknown",
            "etag": '"2"',
        }
        assert document["detail"].endswith(
            "; the fields of the product are replaced, its stock is either unchanged or replaced"
        )
        assert int(response.headers["retry-after"]) >= 1
        assert (await products.get(product["id"]))["name"] == "New"
        inventory.read_only = False
        assert (await put(products, product, '"1"', name="New", stock=2)).status_code == 412
        assert inventory.stock[product["id"]] == 1
        assert (await put(products, product, '"2"', name="New", stock=2)).headers["etag"] == '"3.available"'
        assert inventory.stock[product["id"]] == 2


async def test_a_stock_whose_deadline_passes_is_a_503_with_the_new_tag(start: Start):
    inventory = FakeInventory()
    async with serving(inventory) as port, start(port) as products:
        product = await products.create(stock=1)
        gate = inventory.write_gate = asyncio.Event()
        changed = {**product, "name": "New", "stock": 2}
        # On a busy machine the deadline may pass before the fields are replaced, so a few attempts are allowed.
        for _ in range(10):
            response = await products.http.put("/api/product", json=changed, headers={"X-Deadline-Ms": "1000"})
            assert response.status_code == 503
            if response.json()["fields"] == "replaced":
                break
        gate.set()
        assert (response.json()["fields"], response.json()["stock"]) == ("replaced", "unknown")
        version = await products.db.fetchval("SELECT version FROM products WHERE id = $1", product["id"])
        assert version > 1
        assert response.headers["etag"] == f'"{version}"'


async def test_a_table_restored_from_a_backup_catches_up_with_the_versions_in_inventory(
    products: RunningProducts, inventory_stub
):
    product = await products.create(stock=1)
    for stock in (2, 3, 4):
        await put(products, product, stock=stock)
    await products.db.execute("UPDATE products SET version = 1 WHERE id = $1", product["id"])
    response = await put(products, product, '"1"', name="New", stock=8)
    assert (response.status_code, response.headers["etag"]) == (200, '"5.available"')
    assert await stock_of(inventory_stub, product["id"]) == 8
    assert (await products.get(product["id"]))["name"] == "New"


async def test_an_inventory_without_versions_sets_the_stock(start: Start):
    inventory = FakeInventory()
    async with serving(inventory) as port, start(port) as products:
        product = await products.create(stock=1)
        assert (await put(products, product, '"1"', stock=2)).headers["etag"] == '"2.available"'
        assert inventory.writes == [(product["id"], 1), (product["id"], 2)]
