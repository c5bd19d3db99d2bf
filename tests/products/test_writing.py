"""Two stores, one key: repeats, races, failures between the two."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest

from market.contracts import inventory_pb2 as pb
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess
from tests.support.waiting import PATIENCE

from .conftest import LAMP, Held, Inventory, Running, Start, quantity, served


async def post(products: Running, key: str, **fields) -> httpx.Response:
    return await products.http.post("/api/product", json={**LAMP, **fields}, headers={"Idempotency-Key": key})


async def test_a_repeat_is_the_same_product_and_sets_no_stock_again(told: tuple[Running, Inventory]):
    products, inventory = told
    key = f"import:{uuid4()}"
    first = await post(products, key, stock=5)
    repeat = await post(products, key, stock=5)
    assert (first.status_code, repeat.status_code) == (201, 200)
    assert "idempotency-replayed" not in first.headers
    assert repeat.headers["idempotency-replayed"] == "true"
    assert (repeat.json(), repeat.headers["etag"], repeat.headers["location"]) == (
        first.json(),
        first.headers["etag"],
        first.headers["location"],
    )
    assert inventory.set == [(first.json()["id"], 5)]


@pytest.mark.parametrize("same", [{"price": "12.50"}, {"price": "0012.5"}, {"image_url": None}, {"stock": 0}])
async def test_a_repeat_may_write_the_same_request_in_another_way(shop: Running, same):
    key = str(uuid4())
    first = await post(shop, key)
    assert (await post(shop, key, **same)).json()["id"] == first.json()["id"]


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
async def test_the_same_key_with_another_request_is_refused(told: tuple[Running, Inventory], other):
    products, inventory = told
    key = str(uuid4())
    await post(products, key)
    inventory.set.clear()
    refused = await post(products, key, **other)
    assert (refused.status_code, refused.json()["type"]) == (422, "urn:market:problem:idempotency-key-reused")
    assert inventory.set == []


async def test_a_repeat_answers_the_product_as_it_is_now(shop: Running):
    key = str(uuid4())
    product = (await post(shop, key)).json()
    await shop.http.put("/api/product", json={**product, "name": "Renamed"})
    assert (await post(shop, key)).json()["name"] == "Renamed"


async def test_a_key_lives_as_long_as_its_product(shop: Running):
    key = str(uuid4())
    product = (await post(shop, key)).json()
    await shop.http.delete(f"/api/product/{product['id']}")
    again = await post(shop, key, name="Another")
    assert again.status_code == 201
    assert again.json()["id"] != product["id"]


async def test_of_many_posts_with_one_key_one_makes_the_product(shop: Running, stock):
    key = str(uuid4())
    before = await shop.count()
    answers = await asyncio.gather(*(post(shop, key, stock=3) for _ in range(20)))
    assert sorted(a.status_code for a in answers) == [200] * 19 + [201]
    assert len({a.json()["id"] for a in answers}) == 1
    assert await shop.count() == before + 1
    assert await quantity(stock, answers[0].json()["id"]) == 3


async def test_of_two_different_requests_with_one_key_at_once_one_is_refused(shop: Running):
    key = str(uuid4())
    answers = await asyncio.gather(*(post(shop, key, name=f"N{n % 2}") for n in range(10)))
    made = next(a for a in answers if a.status_code == 201).json()
    assert sorted(a.status_code for a in answers) == [200] * 4 + [201] + [422] * 5
    assert all(a.json()["name"] == made["name"] for a in answers if a.status_code == 200)


async def test_a_late_repeat_does_not_touch_the_stock_that_is_being_sold(start: Start, inventory_port, stock):
    key = str(uuid4())
    held = Held("products.before-set-stock")
    async with start(inventory_port, faults=held) as products:
        late = asyncio.create_task(post(products, key, stock=3))
        await asyncio.wait_for(held.reached.wait(), PATIENCE)
        product = (await post(products, key, stock=3)).json()
        line = pb.Item(product_id=product["id"], quantity=2)
        assert (await stock.Reserve(pb.ReserveRequest(reservation_id=str(uuid4()), items=[line]))).reserved
        held.go.set()
        answer = await late
        assert (answer.status_code, answer.json()["id"]) == (200, product["id"])
        assert await quantity(stock, product["id"]) == 1


async def test_when_the_stock_cannot_be_set_nothing_has_changed(start: Start):
    inventory = Inventory()
    async with served(inventory) as port, start(port) as products:
        product = await products.create(stock=1)
        count = await products.count()
        inventory.down = True
        key = str(uuid4())
        created = await post(products, key)
        changed = await products.http.put("/api/product", json={**product, "name": "New", "stock": 2})
        assert (created.status_code, changed.status_code) == (503, 503)
        assert {created.headers["content-type"], changed.headers["content-type"]} == {"application/problem+json"}
        assert await products.count() == count
        assert (await products.get(product["id"], availability="false")) == {**product, "available": None}
        # Once for each call: it is never repeated by itself.
        assert len(inventory.set) == 3
        inventory.down = False
        assert (await post(products, key)).status_code == 201


async def test_a_stock_that_is_not_answered_in_time_is_503(start: Start):
    inventory = Inventory()
    async with served(inventory) as port, start(port) as products:
        # The connection is there.
        await products.create()
        gate = inventory.gate = asyncio.Event()
        inventory.set.clear()
        # A busy machine may eat the time before anything was sent; one try that goes well shows it.
        for _ in range(10):
            answer = await products.http.post("/api/product", json=LAMP, headers={"X-Deadline-Ms": "1000"})
            assert answer.status_code == 503
            if inventory.set:
                break
        gate.set()
        assert inventory.set
        # Each try mints an id of its own, and asks once for it.
        assert len({id for id, _ in inventory.set}) == len(inventory.set)


async def test_a_product_changed_between_check_and_update_is_412(start: Start, inventory_port):
    held = Held("products.after-set-stock")
    held.reached.set()
    async with start(inventory_port, faults=held) as products:
        product = await products.create()
        held.reached.clear()
        slow = asyncio.create_task(
            products.http.put("/api/product", json={**product, "name": "Slow", "stock": 1}, headers={"If-Match": '"1"'})
        )
        await asyncio.wait_for(held.reached.wait(), PATIENCE)
        assert (await products.http.put("/api/product", json={**product, "name": "Fast"})).status_code == 200
        held.go.set()
        assert (await slow).status_code == 412
        assert (await products.get(product["id"]))["name"] == "Fast"


async def test_while_postgresql_is_away_it_is_503_and_then_works_again(start: Start, inventory_port, postgres):
    async with start(inventory_port) as products:
        product = await products.create(stock=1)
        postgres.kill()
        try:
            for answer in (
                await products.http.get(f"/api/product/{product['id']}"),
                await products.http.get("/api/product"),
            ):
                assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json")
        finally:
            postgres.restart()
        async with asyncio.timeout(PATIENCE):
            while (
                answer := await products.http.get(f"/api/product/{product['id']}", params={"availability": "false"})
            ).status_code != 200:
                await asyncio.sleep(0.05)
        assert answer.json() == {**product, "available": None}


@pytest.fixture
async def process(migrated, postgres, redis_server, inventory_port, tmp_path) -> AsyncIterator[ServiceProcess]:
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


async def die(process: ServiceProcess, point: str, tmp_path: Path, request) -> None:
    """Sends the request to a process that dies at the point, and starts it again."""
    process.arm(point)

    async def until_dead(http: httpx.AsyncClient) -> None:
        for _ in range(20):
            # Its three seconds may be over before it comes to the point.
            assert (await request(http)).status_code == 503

    async with calling(process) as http:
        with pytest.raises(httpx.TransportError):
            await until_dead(http)
    assert await process.exited() == -signal.SIGKILL
    process.start()
    await process.ready()


async def decided(request, http: httpx.AsyncClient) -> tuple[httpx.Response, bool]:
    """The first answer that is no 503, and whether there was one before it: then the request may have taken effect already."""
    unsure = False
    async with asyncio.timeout(2 * PATIENCE):
        while (answer := await request(http)).status_code == 503:
            unsure = True
    return answer, unsure


@pytest.mark.parametrize("point", ["products.before-set-stock", "products.after-set-stock"])
async def test_a_crash_while_a_product_is_made_and_a_repeat_make_one_product(
    process: ServiceProcess, shop: Running, stock, tmp_path, point
):
    before = await shop.count()
    body, headers = {**LAMP, "stock": 4}, {"Idempotency-Key": str(uuid4())}

    async def create(http: httpx.AsyncClient) -> httpx.Response:
        return await http.post("/api/product", json=body, headers=headers)

    await die(process, point, tmp_path, create)
    assert await shop.count() == before
    async with calling(process) as http:
        (first, unsure), (second, _) = await decided(create, http), await decided(create, http)
    assert (first.status_code, second.status_code) == (200 if unsure and first.status_code == 200 else 201, 200)
    assert first.json()["id"] == second.json()["id"]
    assert await shop.count() == before + 1
    assert await quantity(stock, first.json()["id"]) == 4


async def test_a_crash_while_a_product_is_changed_sells_nothing_that_is_not_there(
    process: ServiceProcess, shop: Running, stock, tmp_path
):
    product = await shop.create(stock=9)
    change = {**product, "name": "New", "stock": 1}

    async def put(http: httpx.AsyncClient) -> httpx.Response:
        return await http.put("/api/product", json=change, headers={"If-Match": '"1"'})

    await die(process, "products.after-set-stock", tmp_path, put)
    # The new stock beside the old row: no more can be sold than there is.
    assert (await shop.get(product["id"]))["name"] == "Lamp"
    assert await quantity(stock, product["id"]) == 1
    async with calling(process) as http:
        answer, unsure = await decided(put, http)
        assert answer.status_code == 200 or (unsure and answer.status_code == 412)
    assert (await shop.get(product["id"]))["name"] == "New"
    assert await quantity(stock, product["id"]) == 1


async def test_sigterm_ends_the_process_with_0(process: ServiceProcess):
    assert await process.stop() == 0


async def test_two_migrations_at_once_are_safe_and_a_second_changes_nothing(postgres):
    from market.kit.config import Postgres
    from market.kit.postgres import migrate
    from market.products.app import MIGRATIONS

    name = f"m{uuid4().hex[:10]}"
    # Its own schema stands for a database of its own.
    admin = await asyncpg.connect(postgres.uri("products"))
    try:
        await admin.execute(f"CREATE SCHEMA {name}")
        await admin.execute(f"ALTER ROLE products SET search_path = {name}")
        config = Postgres(
            host=postgres.host, port=postgres.port, database="products", user="products", password=postgres.password
        )
        done = await asyncio.gather(migrate(config, MIGRATIONS), migrate(config, MIGRATIONS))
        assert sorted(map(len, done)) == [0, 1]
        assert await migrate(config, MIGRATIONS) == []
    finally:
        await admin.execute("ALTER ROLE products RESET search_path")
        await admin.execute(f"DROP SCHEMA {name} CASCADE")
        await admin.close()
