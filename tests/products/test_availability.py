"""`available`: with the cache, without it, without inventory, and how soon it is correct again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from market.contracts import inventory_pb2 as pb
from market.products import config
from market.products.availability.cache import AvailabilityCache, connect
from market.products.availability.lookup import AvailabilityLookup
from tests.support.clocks import FakeClock
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, until

from .conftest import FakeInventory, RunningProducts, Start, serving


async def redis_commands(products: RunningProducts) -> dict[str, int]:
    """Return how often Redis has executed each command."""
    stats = await products.redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): s["calls"] for name, s in stats.items()}


async def list_available(products: RunningProducts, ids: list[str]) -> list[bool | None]:
    response = await products.http.get("/api/product", params={"ids": ",".join(ids)})
    assert response.status_code == 200
    return [item["available"] for item in response.json()["items"]]


async def create_with_stock(products: RunningProducts, inventory: FakeInventory, *stock: int) -> list[str]:
    """Create products with these quantities, and empty the cache; return their ids."""
    ids = [(await products.create(stock=n))["id"] for n in stock]
    await products.redis.flushall()
    inventory.checks.clear()
    return ids


async def test_a_page_costs_one_mget_and_one_call_for_all_missing_entries(
    products_with_fake: RunningProducts, inventory: FakeInventory
):
    ids = await create_with_stock(products_with_fake, inventory, 1, 0, 3, 0)
    await list_available(products_with_fake, ids[:1])
    before = await redis_commands(products_with_fake)
    assert await list_available(products_with_fake, ids) == [True, False, True, False]
    assert [sorted(check) for check in inventory.checks] == [ids[:1], sorted(ids[1:])]
    after = await redis_commands(products_with_fake)
    assert (after["mget"] - before["mget"], after["set"] - before["set"]) == (1, 3)
    assert await list_available(products_with_fake, ids) == [True, False, True, False]
    assert len(inventory.checks) == 2


async def test_an_entry_lives_as_long_as_configured_plus_or_minus_a_fifth(
    products_with_fake: RunningProducts, inventory: FakeInventory
):
    assert config.Availability().ttl_seconds == 5
    ttl = products_with_fake.config.availability.ttl_seconds
    ids = await create_with_stock(products_with_fake, inventory, *[1] * 20)

    async def now() -> float:
        seconds, microseconds = await products_with_fake.redis.time()
        return seconds + microseconds / 1e6

    before = await now()
    await list_available(products_with_fake, ids)
    after = await now()
    ends = [await products_with_fake.redis.pexpiretime(f"avail:{id}") / 1000 for id in ids]
    assert all(before + 0.8 * ttl - 0.01 <= end <= after + 1.2 * ttl + 0.01 for end in ends)
    assert max(ends) - min(ends) > 0.06 * ttl


class GatedInventory:
    """An inventory whose calls wait until the test opens the gate."""

    def __init__(self) -> None:
        self.checks: list[list[str]] = []
        self.gate = asyncio.Event()

    async def check_available(self, product_ids: Sequence[str]) -> dict[str, bool]:
        self.checks.append(list(product_ids))
        await self.gate.wait()
        return dict.fromkeys(product_ids, True)


class CountingCache(AvailabilityCache):
    """Counts its finished reads."""

    reads = 0

    async def get_many(self, product_ids: Sequence[str]) -> dict[str, bool]:
        found = await super().get_many(product_ids)
        self.reads += 1
        return found


async def test_concurrent_readers_share_one_call(products: RunningProducts):
    ids = [str(uuid4()) for _ in range(3)]
    inventory = GatedInventory()
    async with connect(products.config.redis.url) as client:
        cache = CountingCache(client, ttl_seconds=300, timeout_seconds=PATIENCE)
        availability = AvailabilityLookup(cache, inventory, timeout_seconds=PATIENCE)
        first = asyncio.gather(
            *(availability.get_many(ids[:2]) for _ in range(30)), *(availability.get_many(ids[:1]) for _ in range(30))
        )
        # Two reads of the cache, which may finish in either order; so inventory gets the two ids in one call or in two.
        await until(lambda: cache.reads == 2 and sum(map(len, inventory.checks)) >= 2)
        second = asyncio.gather(*(availability.get_many(ids) for _ in range(30)))
        # Two calls are as many as may be in flight: then the third id waits for one of them.
        await until(lambda: cache.reads == 3 and set(availability._in_flight) == set(ids))
        inventory.gate.set()
        assert await first == [dict.fromkeys(ids[:2], True)] * 30 + [{ids[0]: True}] * 30
        assert await second == [dict.fromkeys(ids, True)] * 30
    # Inventory gets each of the three once, whatever the number of readers.
    assert sorted(product_id for check in inventory.checks for product_id in check) == sorted(ids)
    assert inventory.checks[-1] == ids[2:]


async def test_availability_false_calls_neither_redis_nor_inventory(
    products_with_fake: RunningProducts, inventory: FakeInventory
):
    ids = await create_with_stock(products_with_fake, inventory, 1)
    before = (await redis_commands(products_with_fake)).get("mget", 0)
    assert (await products_with_fake.get(ids[0], availability="false"))["available"] is None
    page = await products_with_fake.http.get("/api/product", params={"ids": ids[0], "availability": "false"})
    assert page.json()["items"][0]["available"] is None
    assert inventory.checks == []
    assert (await redis_commands(products_with_fake)).get("mget", 0) == before


async def test_an_outdated_result_does_not_replace_the_entry_written_after_set_stock(
    products_with_fake: RunningProducts, inventory: FakeInventory
):
    (id,) = await create_with_stock(products_with_fake, inventory, 0)
    gate = inventory.gate = asyncio.Event()
    # This reader calls inventory before the stock is set, and gets the response afterwards.
    reader = asyncio.create_task(products_with_fake.get(id))
    await until(lambda: inventory.checks)
    inventory.gate = None
    product = await products_with_fake.get(id, availability="false")
    assert (await products_with_fake.http.put("/api/product", json={**product, "stock": 7})).status_code == 200
    gate.set()
    assert (await reader)["available"] is False
    assert await products_with_fake.redis.get(f"avail:{id}") == b"1"
    assert (await products_with_fake.get(id))["available"] is True


async def test_a_sold_out_product_becomes_unavailable_within_the_ttl(products: RunningProducts, inventory_stub):
    product = await products.create(stock=1)
    assert (await products.get(product["id"]))["available"] is True
    line = pb.Item(product_id=product["id"], quantity=1)
    assert (await inventory_stub.Reserve(pb.ReserveRequest(reservation_id=str(uuid4()), items=[line]))).reserved
    sold = time.monotonic()
    while True:
        # The time of the request counts: how long the response takes depends on the machine.
        requested = time.monotonic()
        if not (await products.get(product["id"]))["available"]:
            break
        assert requested - sold < 1.2 + 0.3, "an entry lives for a second here, plus or minus a fifth"
        await asyncio.sleep(0.02)


async def test_errors_of_inventory_are_not_cached_and_the_product_is_returned(start: Start):
    inventory = FakeInventory()
    async with serving(inventory) as port, start(port) as products:
        (id,) = await create_with_stock(products, inventory, 1)
        inventory.down = True
        assert (await products.get(id))["available"] is None
        inventory.down = False
        assert (await products.get(id))["available"] is True


async def test_a_hanging_inventory_delays_reads_by_a_second_until_its_circuit_opens(start: Start, clock: FakeClock):
    assert config.Availability().timeout_seconds == 1
    inventory = FakeInventory()
    async with serving(inventory) as port, start(port, inventory_seconds=1.0, clock=clock) as products:
        ids = await create_with_stock(products, inventory, *[1] * 6)
        gate = inventory.gate = asyncio.Event()
        for _ in range(2):
            started = time.monotonic()
            assert [p["available"] for p in await asyncio.gather(*(products.get(id) for id in ids[:3]))] == [None] * 3
            # Far below the deadline of the request.
            assert time.monotonic() - started < PATIENCE / 3
        inventory.gate, inventory.down = None, True
        gate.set()
        for id in ids * 5:
            assert (await products.get(id))["available"] is None
        # Calls in flight may be retried after a pause, and must not succeed then.
        calls = -1
        while calls != len(inventory.checks):
            calls = len(inventory.checks)
            await asyncio.sleep(1)
        # The circuit is open: inventory is not called, and no reader waits.
        inventory.checks.clear()
        inventory.down = False
        assert (await products.get(ids[0]))["available"] is None
        assert inventory.checks == []
        end = time.monotonic() + PATIENCE
        clock.advance(0.31)
        # The next read is the trial call. On a busy machine its second may pass, so several are allowed.
        while (await products.get(ids[0]))["available"] is not True:
            assert time.monotonic() < end
            clock.advance(0.31)


async def test_the_deadline_of_the_client_is_kept(products_with_fake: RunningProducts, inventory: FakeInventory):
    (id,) = await create_with_stock(products_with_fake, inventory, 1)
    gate = inventory.gate = asyncio.Event()
    # On a busy machine the second may pass before inventory is called, so a few attempts are allowed.
    for _ in range(10):
        started = time.monotonic()
        response = await products_with_fake.http.get(f"/api/product/{id}", headers={"X-Deadline-Ms": "1000"})
        assert time.monotonic() - started < PATIENCE / 2, "the call may take the whole deadline"
        if response.status_code == 200:
            break
    gate.set()
    assert (response.status_code, response.json()["available"]) == (200, None)


async def test_the_service_starts_and_serves_without_redis_and_inventory(start: Start, products: RunningProducts):
    product = await products.create(stock=1)
    async with start(free_port(), redis_port=free_port()) as products:
        assert (await products.get(product["id"]))["available"] is None
        refused = await products.http.put("/api/product", json={**product, "name": "New", "stock": 2})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (await products.http.put("/api/product", json={**product, "name": "New"})).status_code == 200
        assert (await products.get(product["id"]))["name"] == "New"


@pytest.mark.parametrize(
    "rules", ["on >changed ~* +@all", "off >right ~* +@all", "on >right ~* -@all", None], ids=lambda r: r or "no user"
)
async def test_a_login_that_redis_refuses_is_a_cache_that_is_unavailable(
    products_with_fake: RunningProducts, redis_server, rules: str | None
):
    user = f"u{uuid4().hex}"
    if rules is not None:
        await products_with_fake.redis.execute_command("ACL", "SETUSER", user, *rules.split())
    try:
        async with connect(f"redis://{user}:right@{redis_server.host}:{redis_server.port}/0") as client:
            cache = AvailabilityCache(client, ttl_seconds=60, timeout_seconds=PATIENCE)
            for _ in range(7):
                assert await cache.get_many([user]) == {}
            await cache.fill({user: True})
            await cache.overwrite({user: True})
    finally:
        await products_with_fake.redis.execute_command("ACL", "DELUSER", user)
    assert await products_with_fake.redis.get(f"avail:{user}") is None


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_without_redis_every_read_calls_inventory_until_redis_has_recovered(
    start: Start, redis_server, how, clock: FakeClock
):
    inventory = FakeInventory()
    async with serving(inventory) as port, start(port, redis_seconds=1.0, clock=clock) as products:
        (id,) = await create_with_stock(products, inventory, 1)
        getattr(redis_server, how)()
        try:
            seconds = []
            for n in range(15):
                started = time.monotonic()
                assert (await products.get(id))["available"] is True
                seconds.append(time.monotonic() - started)
                assert len(inventory.checks) == n + 1
            assert max(seconds) < PATIENCE / 2
            # After five failures Redis is not used until the circuit's clock, which stands still, has moved by a
            # second.
            assert min(seconds[5:]) < 1.0
        finally:
            redis_server.restart() if how == "kill" else redis_server.resume()
        end = time.monotonic() + PATIENCE
        while inventory.checks:
            assert time.monotonic() < end, "the cache is not used again"
            clock.advance(1.05)
            await products.get(id)
            inventory.checks.clear()
            assert (await products.get(id))["available"] is True


async def test_an_unavailable_cache_is_logged_once_and_a_single_slow_access_is_not():
    slow = True

    class Slow:
        async def mget(self, ids: list[str]) -> list[bytes | None]:
            await asyncio.sleep(PATIENCE if slow else 0)
            return [b"1"] * len(ids)

    clock = FakeClock()
    cache = AvailabilityCache(Slow(), ttl_seconds=5, timeout_seconds=0.5, clock=clock)
    with capture_logs() as lines:
        await cache.get_many(["a"])
        slow = False
        assert await cache.get_many(["a"]) == {"a": True}
        assert lines == []
        slow = True
        for _ in range(8):
            assert await cache.get_many(["a"]) == {}
        slow = False
        clock.advance(1.05)
        assert await cache.get_many(["a"]) == {"a": True}
    assert [(line["log_level"], line["event"]) for line in lines] == [
        ("warning", "availability cache unavailable"),
        ("info", "availability cache recovered"),
    ]


async def test_an_invalid_cache_entry_is_ignored(products_with_fake: RunningProducts, inventory: FakeInventory):
    (id,) = await create_with_stock(products_with_fake, inventory, 1)
    await products_with_fake.redis.set(f"avail:{id}", "nonsense")
    assert (await products_with_fake.get(id))["available"] is True
    assert inventory.checks == [[id]]


async def test_a_timed_out_access_never_leaves_its_reply_to_the_next_one(products: RunningProducts):
    """Timed out at every possible moment, also between a command and its reply: no connection may keep a reply."""
    truth = {str(uuid4()): n % 2 == 0 for n in range(300)}
    async with connect(products.config.redis.url) as client:
        await AvailabilityCache(client, ttl_seconds=3600, timeout_seconds=PATIENCE).fill(truth)
        right = timed_out = 0
        # Adapted to the machine, so that about half of the accesses time out.
        width = 0.02
        for _ in range(600):
            if right > 100 and timed_out > 100:
                break
            # Each has a circuit breaker of its own; a shared one would soon be open.
            caches = [
                AvailabilityCache(client, ttl_seconds=60, timeout_seconds=random.uniform(0, width))
                for _cache in range(10)
            ]
            before = right - timed_out
            samples = [random.sample(list(truth), 20) for _cache in caches]
            for ids, found in zip(
                samples,
                await asyncio.gather(*(c.get_many(ids) for c, ids in zip(caches, samples, strict=True))),
                strict=True,
            ):
                if found:
                    assert found == {id: truth[id] for id in ids}
                    right += 1
                else:
                    timed_out += 1
            width *= 1.1 if right - timed_out < before else 0.9
        assert await AvailabilityCache(client, ttl_seconds=60, timeout_seconds=PATIENCE).get_many(list(truth)) == truth
    assert right > 100
    assert timed_out > 100
