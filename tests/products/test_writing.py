"""Writes to two stores under one key: repeats, races, and failures between the two writes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from uuid import uuid4

import asyncpg
import httpx
import pytest

from market.contracts import inventory_pb2 as pb
from market.kit.config import Postgres
from market.kit.migrations import migrate
from market.products.app import MIGRATIONS
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess
from tests.support.waiting import PATIENCE, until

from .conftest import LAMP, FakeInventory, PausingFaults, RunningProducts, Start, serving, stock_of

MIGRATION_NAMES = sorted(file.name for file in files(MIGRATIONS).iterdir() if file.name.endswith(".sql"))


async def post(products: RunningProducts, key: str, **fields) -> httpx.Response:
    return await products.http.post("/api/product", json={**LAMP, **fields}, headers={"Idempotency-Key": key})


async def test_a_repeat_returns_the_same_product_and_does_not_set_the_stock_again(
    products_with_fake: RunningProducts, inventory: FakeInventory
):
    key = f"import:{uuid4()}"
    first = await post(products_with_fake, key, stock=5)
    repeat = await post(products_with_fake, key, stock=5)
    assert (first.status_code, repeat.status_code) == (201, 200)
    assert "idempotency-replayed" not in first.headers
    assert repeat.headers["idempotency-replayed"] == "true"
    assert (repeat.json(), repeat.headers["etag"], repeat.headers["location"]) == (
        first.json(),
        first.headers["etag"],
        first.headers["location"],
    )
    assert inventory.writes == [(first.json()["id"], 5)]


@pytest.mark.parametrize("same", [{"price": "12.50"}, {"price": "0012.5"}, {"image_url": None}, {"stock": 0}])
async def test_a_repeat_may_spell_the_same_request_differently(products: RunningProducts, same):
    key = str(uuid4())
    first = await post(products, key)
    assert (await post(products, key, **same)).json()["id"] == first.json()["id"]


@pytest.mark.parametrize(
    "other",
    [
        {"name": "Other"},
        {"price": "12.51"},
        {"stock": 1},
        {"image_url": "/a"},
        {"currency": "EUR"},
        {"description": ""},
    ],
)
async def test_the_same_key_with_a_different_request_is_rejected(
    products_with_fake: RunningProducts, inventory: FakeInventory, other
):
    key = str(uuid4())
    await post(products_with_fake, key)
    inventory.writes.clear()
    refused = await post(products_with_fake, key, **other)
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:market:problem:idempotency-key-reused")
    assert inventory.writes == []


async def test_a_repeat_returns_the_product_as_it_is_now(products: RunningProducts):
    key = str(uuid4())
    product = (await post(products, key)).json()
    await products.http.put("/api/product", json={**product, "name": "Renamed"})
    assert (await post(products, key)).json()["name"] == "Renamed"


async def test_a_key_lives_as_long_as_its_product(products: RunningProducts):
    key = str(uuid4())
    product = (await post(products, key)).json()
    await products.http.delete(f"/api/product/{product['id']}")
    again = await post(products, key, name="Another")
    assert again.status_code == 201
    assert again.json()["id"] != product["id"]


async def test_many_concurrent_posts_with_one_key_create_one_product(products: RunningProducts, inventory_stub):
    key = str(uuid4())
    before = await products.count()
    responses = await asyncio.gather(*(post(products, key, stock=3) for _ in range(20)))
    assert sorted(a.status_code for a in responses) == [200] * 19 + [201]
    assert len({a.json()["id"] for a in responses}) == 1
    assert await products.count() == before + 1
    assert await stock_of(inventory_stub, responses[0].json()["id"]) == 3


async def test_one_of_two_different_concurrent_requests_with_one_key_is_rejected(products: RunningProducts):
    key = str(uuid4())
    responses = await asyncio.gather(*(post(products, key, name=f"N{n % 2}") for n in range(10)))
    created = next(a for a in responses if a.status_code == 201).json()
    assert sorted(a.status_code for a in responses) == [200] * 4 + [201] + [422] * 5
    assert all(a.json()["name"] == created["name"] for a in responses if a.status_code == 200)


async def test_a_late_repeat_does_not_change_the_stock_of_a_product_being_sold(
    start: Start, inventory_port, inventory_stub
):
    key = str(uuid4())
    faults = PausingFaults("products.before-set-stock")
    async with start(inventory_port, faults=faults) as products:
        late = asyncio.create_task(post(products, key, stock=3))
        await asyncio.wait_for(faults.reached.wait(), PATIENCE)
        product = (await post(products, key, stock=3)).json()
        line = pb.Item(product_id=product["id"], quantity=2)
        assert (await inventory_stub.Reserve(pb.ReserveRequest(reservation_id=str(uuid4()), items=[line]))).reserved
        faults.resume.set()
        response = await late
        assert (response.status_code, response.json()["id"]) == (200, product["id"])
        assert await stock_of(inventory_stub, product["id"]) == 1


async def test_if_the_stock_cannot_be_set_nothing_changes(start: Start):
    inventory = FakeInventory()
    async with serving(inventory) as port, start(port) as products:
        product = await products.create(stock=1)
        count = await products.count()
        inventory.down = True
        key = str(uuid4())
        created = await post(products, key)
        changed = await products.http.put("/api/product", json={**product, "name": "New", "stock": 2})
        assert (created.status_code, changed.status_code) == (503, 503)
        assert (changed.json()["fields"], changed.json()["stock"]) == ("unchanged", "unchanged")
        assert changed.headers["etag"] == changed.json()["etag"] == '"1"'
        assert {created.headers["content-type"], changed.headers["content-type"]} == {"application/problem+json"}
        assert await products.count() == count
        assert (await products.get(product["id"], availability="false")) == {**product, "available": None}
        # One call for each product that was to be created: it is never retried automatically.
        assert len(inventory.writes) == 2
        inventory.down = False
        assert (await post(products, key)).status_code == 201


async def test_setting_the_stock_too_slowly_is_503(start: Start):
    inventory = FakeInventory()
    async with serving(inventory) as port, start(port) as products:
        # Connect first.
        await products.create()
        gate = inventory.gate = asyncio.Event()
        inventory.writes.clear()
        # On a busy machine the second may pass before anything is sent, so a few attempts are allowed.
        for _ in range(10):
            response = await products.http.post("/api/product", json=LAMP, headers={"X-Deadline-Ms": "1000"})
            assert response.status_code == 503
            if inventory.writes:
                break
        gate.set()
        assert inventory.writes
        # Each attempt has a product id of its own, and sets its stock once.
        assert len({id for id, _ in inventory.writes}) == len(inventory.writes)


async def test_a_product_modified_between_check_and_update_is_412_and_its_stock_is_unchanged(start: Start):
    inventory = FakeInventory()
    async with serving(inventory) as port, start(port) as products:
        product = await products.create(stock=7)
        inventory.writes.clear()
        # The check has passed while the request waits for inventory.
        gate = inventory.gate = asyncio.Event()
        slow = asyncio.create_task(
            products.http.put("/api/product", json={**product, "name": "Slow", "stock": 1}, headers={"If-Match": '"1"'})
        )
        await until(lambda: inventory.reads)
        change = {**product, "name": "Fast"}
        fast = asyncio.create_task(products.http.put("/api/product", json=change, headers={"X-Deadline-Ms": "9000"}))
        await until_renamed(products, product["id"], "Fast")
        gate.set()
        assert ((await slow).status_code, (await fast).status_code) == (412, 200)
        assert (await products.get(product["id"]))["name"] == "Fast"
        assert inventory.writes == []


async def until_renamed(products: RunningProducts, product_id: str, name: str) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await products.get(product_id, availability="false"))["name"] != name:
            await asyncio.sleep(0.01)


async def test_requests_get_503_while_postgresql_is_down_and_succeed_afterwards(start: Start, inventory_port, postgres):
    async with start(inventory_port) as products:
        product = await products.create(stock=1)
        postgres.kill()
        try:
            for response in (
                await products.http.get(f"/api/product/{product['id']}"),
                await products.http.get("/api/product"),
            ):
                assert (response.status_code, response.headers["content-type"]) == (503, "application/problem+json")
        finally:
            postgres.restart()
        async with asyncio.timeout(PATIENCE):
            while (
                response := await products.http.get(f"/api/product/{product['id']}", params={"availability": "false"})
            ).status_code != 200:
                await asyncio.sleep(0.05)
        assert response.json() == {**product, "available": None}


@pytest.fixture
async def process(migrated_database, postgres, redis_server, inventory_port, tmp_path) -> AsyncIterator[ServiceProcess]:
    config = {
        "admin": {"port": free_port()},
        "http": {"port": free_port()},
        "shutdown": {"drain_seconds": 0},
        "postgres": {
            "host": postgres.host,
            "port": postgres.port,
            "database": "products",
            "user": "products",
            "password": postgres.password,
            "timeout_seconds": PATIENCE,
        },
        "redis": {"url": f"redis://{redis_server.host}:{redis_server.port}/0"},
        "inventory": {"target": f"dns:///127.0.0.1:{inventory_port}", "timeout_seconds": PATIENCE},
        "testing": True,
    }
    process = ServiceProcess("products", config, tmp_path)
    process.start()
    await process.ready()
    yield process
    await process.stop()


@asynccontextmanager
async def calling(process: ServiceProcess) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{process.config['http']['port']}", timeout=PATIENCE
    ) as http:
        yield http


async def crash(process: ServiceProcess, point: str, request) -> None:
    """Send the request to a process that crashes at the point, and start it again."""
    process.arm(point)

    async def until_crashed(http: httpx.AsyncClient) -> None:
        for _ in range(20):
            # The deadline of three seconds may pass before the point is reached.
            assert (await request(http)).status_code == 503

    async with calling(process) as http:
        with pytest.raises(httpx.TransportError):
            await until_crashed(http)
    assert await process.exited() == -signal.SIGKILL
    process.start()
    await process.ready()


async def decided(request, http: httpx.AsyncClient) -> tuple[httpx.Response, bool]:
    """Return the first response but 503, and whether there was a 503 before, which may have taken effect."""
    unsure = False
    async with asyncio.timeout(2 * PATIENCE):
        while (response := await request(http)).status_code == 503:
            unsure = True
    return response, unsure


@pytest.mark.parametrize("point", ["products.before-set-stock", "products.after-set-stock"])
async def test_a_crash_while_a_product_is_created_and_a_repeat_create_one_product(
    process: ServiceProcess, products: RunningProducts, inventory_stub, point
):
    before = await products.count()
    body, headers = {**LAMP, "stock": 4}, {"Idempotency-Key": str(uuid4())}

    async def create(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post("/api/product", json=body, headers=headers)

    await crash(process, point, create)
    assert await products.count() == before
    async with calling(process) as http:
        (first, unsure), (second, _) = await decided(create, http), await decided(create, http)
    assert (first.status_code, second.status_code) == (200 if unsure and first.status_code == 200 else 201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert await products.count() == before + 1
    assert await stock_of(inventory_stub, first.json()["id"]) == 4


@pytest.mark.parametrize(("point", "stock"), [("products.before-set-stock", 9), ("products.after-set-stock", 1)])
async def test_after_a_crash_while_a_product_is_replaced_the_request_is_repeated_with_the_new_tag(
    process: ServiceProcess, products: RunningProducts, inventory_stub, point, stock
):
    product = await products.create(stock=9)
    change = {**product, "name": "New", "stock": 1}

    async def put(http: httpx.AsyncClient) -> httpx.Response:
        return await http.put("/api/product", json=change, headers={"If-Match": tag})

    async def put_in_any_version(http: httpx.AsyncClient) -> httpx.Response:
        return await http.put("/api/product", json=change)

    # Unconditional, because a 503 before the crash may have replaced the fields already.
    await crash(process, point, put_in_any_version)
    assert (await products.get(product["id"]))["name"] == "New"
    assert await stock_of(inventory_stub, product["id"]) == stock
    # A repeat in the old version changes nothing, one in the new version completes the change.
    tag = '"1"'
    async with calling(process) as http:
        assert (await decided(put, http))[0].status_code == 412
        assert await stock_of(inventory_stub, product["id"]) == stock
        tag = (await http.get(f"/api/product/{product['id']}")).headers["etag"]
        response, unsure = await decided(put, http)
        assert response.status_code == 200 or (unsure and response.status_code == 412)
    assert await stock_of(inventory_stub, product["id"]) == 1


@pytest.mark.parametrize(("point", "stock"), [("products.before-add-delivery", 9), ("products.after-add-delivery", 14)])
async def test_after_a_crash_while_a_delivery_is_added_its_repeat_adds_it_once(
    process: ServiceProcess, products: RunningProducts, inventory_stub, point, stock
):
    product = await products.create(stock=9)
    change = {**product, "name": "New", "delivery": {"id": str(uuid4()), "quantity": 5}}

    async def put(http: httpx.AsyncClient) -> httpx.Response:
        return await http.put("/api/product", json=change)

    await crash(process, point, put)
    assert await stock_of(inventory_stub, product["id"]) == stock
    # Another change, so that the version of the product has moved.
    assert (await products.http.put("/api/product", json={**product, "name": "Another"})).status_code == 200
    async with calling(process) as http:
        for _ in range(3):
            assert (await decided(put, http))[0].status_code == 200
    assert (await products.get(product["id"]))["name"] == "New"
    assert await stock_of(inventory_stub, product["id"]) == 14


async def test_sigterm_exits_with_zero(process: ServiceProcess):
    assert await process.stop() == 0


async def test_concurrent_and_repeated_migrations_are_safe(postgres):
    name = f"m{uuid4().hex[:10]}"
    # A schema of its own takes the place of a database of its own.
    admin = await asyncpg.connect(postgres.uri("products"))
    try:
        await admin.execute(f"CREATE SCHEMA {name}")
        await admin.execute(f"ALTER ROLE products SET search_path = {name}")
        config = Postgres(
            host=postgres.host, port=postgres.port, database="products", user="products", password=postgres.password
        )
        done = await asyncio.gather(migrate(config, MIGRATIONS), migrate(config, MIGRATIONS))
        assert sorted(done, key=len) == [[], MIGRATION_NAMES]
        assert await migrate(config, MIGRATIONS) == []
    finally:
        await admin.execute("ALTER ROLE products RESET search_path")
        await admin.execute(f"DROP SCHEMA {name} CASCADE")
        await admin.close()
