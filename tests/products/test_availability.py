"""`available`: through the cache, without it, without inventory, and how soon it is true again."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from market.contracts import inventory_pb2 as pb
from market.kit import resilience
from market.products import config
from market.products.app import connect
from market.products.availability import Availability, Cache
from tests.support.ports import free_port
from tests.support.waiting import PATIENCE, until

from .conftest import Inventory, Running, Start, served


async def commands(products: Running) -> dict[str, int]:
    """How often Redis was given each command."""
    stats = await products.redis.info("commandstats")
    return {name.removeprefix("cmdstat_"): s["calls"] for name, s in stats.items()}


async def listed(products: Running, ids: list[str]) -> list[bool | None]:
    answer = await products.http.get("/api/product", params={"ids": ",".join(ids)})
    assert answer.status_code == 200
    return [item["available"] for item in answer.json()["items"]]


async def made(products: Running, inventory: Inventory, *stock: int) -> list[str]:
    """New products with that stock, of which the cache knows nothing."""
    ids = [(await products.create(stock=n))["id"] for n in stock]
    await products.redis.flushall()
    inventory.asked.clear()
    return ids


async def test_a_page_costs_one_mget_and_one_call_for_all_that_is_missing(told: tuple[Running, Inventory]):
    products, inventory = told
    ids = await made(products, inventory, 1, 0, 3, 0)
    await listed(products, ids[:1])
    before = await commands(products)
    assert await listed(products, ids) == [True, False, True, False]
    assert [sorted(asked) for asked in inventory.asked] == [ids[:1], sorted(ids[1:])]
    after = await commands(products)
    assert (after["mget"] - before["mget"], after["set"] - before["set"]) == (1, 3)
    assert await listed(products, ids) == [True, False, True, False]
    assert len(inventory.asked) == 2


async def test_an_answer_lives_as_long_as_configured_give_or_take_a_fifth(told: tuple[Running, Inventory]):
    products, inventory = told
    assert config.Availability().ttl_seconds == 5
    ttl = products.config.availability.ttl_seconds
    ids = await made(products, inventory, *[1] * 20)

    async def now() -> float:
        seconds, microseconds = await products.redis.time()
        return seconds + microseconds / 1e6

    before = await now()
    await listed(products, ids)
    after = await now()
    ends = [await products.redis.pexpiretime(f"avail:{id}") / 1000 for id in ids]
    assert all(before + 0.8 * ttl - 0.01 <= end <= after + 1.2 * ttl + 0.01 for end in ends)
    assert max(ends) - min(ends) > 0.06 * ttl


class Gate:
    """An inventory that answers when the test opens it."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.open = asyncio.Event()

    async def available(self, ids: Sequence[str]) -> dict[str, bool]:
        self.asked.append(list(ids))
        await self.open.wait()
        return dict.fromkeys(ids, True)


class Counted(Cache):
    """Says how often it has answered."""

    answered = 0

    async def known(self, ids: Sequence[str]) -> dict[str, bool]:
        found = await super().known(ids)
        self.answered += 1
        return found


async def test_those_who_ask_at_once_share_one_call(shop: Running):
    ids = [str(uuid4()) for _ in range(3)]
    gate = Gate()
    async with connect(shop.config.redis.url) as client:
        cache = Counted(client, ttl=300, seconds=PATIENCE)
        availability = Availability(cache, gate, seconds=PATIENCE)
        # Some ask while the first is under way, some for what is under way and for more.
        first = asyncio.gather(
            *(availability.of(ids[:2]) for _ in range(30)), *(availability.of(ids[:1]) for _ in range(30))
        )
        # Two looks into the cache, of which either may be answered first; so the two ids are asked for together or in turn.
        await until(lambda: cache.answered == 2 and sum(map(len, gate.asked)) >= 2)
        second = asyncio.gather(*(availability.of(ids) for _ in range(30)))
        # Asked for in turn, they take both of the calls that may be under way: then the third id waits for one of them.
        await until(lambda: cache.answered == 3 and set(availability._under_way) == set(ids))
        gate.open.set()
        assert await first == [dict.fromkeys(ids[:2], True)] * 30 + [{ids[0]: True}] * 30
        assert await second == [dict.fromkeys(ids, True)] * 30
    # However many asked: each of the three once.
    assert sorted(id for asked in gate.asked for id in asked) == sorted(ids)
    assert gate.asked[-1] == ids[2:]


async def test_availability_false_asks_nobody(told: tuple[Running, Inventory]):
    products, inventory = told
    ids = await made(products, inventory, 1)
    before = (await commands(products)).get("mget", 0)
    assert (await products.get(ids[0], availability="false"))["available"] is None
    page = await products.http.get("/api/product", params={"ids": ids[0], "availability": "false"})
    assert page.json()["items"][0]["available"] is None
    assert inventory.asked == []
    assert (await commands(products)).get("mget", 0) == before


async def test_after_set_stock_an_old_answer_is_overwritten_and_does_not_come_back(told: tuple[Running, Inventory]):
    products, inventory = told
    (id,) = await made(products, inventory, 0)
    gate = inventory.gate = asyncio.Event()
    # This reader asks before the stock is set, and has its answer afterwards.
    reader = asyncio.create_task(products.get(id))
    await until(lambda: inventory.asked)
    inventory.gate = None
    product = await products.get(id, availability="false")
    assert (await products.http.put("/api/product", json={**product, "stock": 7})).status_code == 200
    gate.set()
    assert (await reader)["available"] is False
    assert await products.redis.get(f"avail:{id}") == b"1"
    assert (await products.get(id))["available"] is True


async def test_the_last_unit_sold_shows_within_the_entrys_life(shop: Running, stock):
    product = await shop.create(stock=1)
    assert (await shop.get(product["id"]))["available"] is True
    line = pb.Item(product_id=product["id"], quantity=1)
    assert (await stock.Reserve(pb.ReserveRequest(reservation_id=str(uuid4()), items=[line]))).reserved
    sold = time.monotonic()
    while True:
        # When it was asked counts: how long the answer takes is the machine's business.
        asked = time.monotonic()
        if not (await shop.get(product["id"]))["available"]:
            break
        assert asked - sold < 1.2 + 0.3, "the cache lives a second here, give or take a fifth"
        await asyncio.sleep(0.02)


async def test_errors_are_not_cached_and_the_product_is_served(start: Start):
    inventory = Inventory()
    async with served(inventory) as port, start(port) as products:
        (id,) = await made(products, inventory, 1)
        inventory.down = True
        assert (await products.get(id))["available"] is None
        inventory.down = False
        assert (await products.get(id))["available"] is True


async def test_an_inventory_that_hangs_costs_a_second_and_then_nothing_until_it_answers(
    start: Start, stop_clock: Callable[..., Any]
):
    assert config.Availability().timeout_seconds == 1
    inventory = Inventory()
    async with served(inventory) as port, start(port, inventory_seconds=1.0) as products:
        ids = await made(products, inventory, *[1] * 6)
        gate = inventory.gate = asyncio.Event()
        for _ in range(2):
            started = time.monotonic()
            assert [p["available"] for p in await asyncio.gather(*(products.get(id) for id in ids[:3]))] == [None] * 3
            # Far below what the reader itself would wait.
            assert time.monotonic() - started < PATIENCE / 3
        inventory.gate, inventory.down = None, True
        gate.set()
        # Now the time of its circuit stands still.
        clock = stop_clock(resilience)
        for id in ids * 5:
            assert (await products.get(id))["available"] is None
        # What was under way may be tried once more after a pause, and must not find an inventory that is well.
        asked = -1
        while asked != len(inventory.asked):
            asked = len(inventory.asked)
            await asyncio.sleep(1)
        # Its circuit is open: nobody is asked, nobody waits.
        inventory.asked.clear()
        inventory.down = False
        assert (await products.get(ids[0]))["available"] is None
        assert inventory.asked == []
        end = time.monotonic() + PATIENCE
        clock.now += 0.31
        # The first one tries. It has a second, which a busy machine may eat.
        while (await products.get(ids[0]))["available"] is not True:
            assert time.monotonic() < end
            clock.now += 0.31


async def test_the_callers_own_deadline_is_kept(told: tuple[Running, Inventory]):
    products, inventory = told
    (id,) = await made(products, inventory, 1)
    gate = inventory.gate = asyncio.Event()
    # A busy machine may eat the time before anything was asked; one try that goes well shows it.
    for _ in range(10):
        started = time.monotonic()
        answer = await products.http.get(f"/api/product/{id}", headers={"X-Deadline-Ms": "1000"})
        assert time.monotonic() - started < PATIENCE / 2, "inventory may take all of it"
        if answer.status_code == 200:
            break
    gate.set()
    assert (answer.status_code, answer.json()["available"]) == (200, None)


async def test_a_service_starts_and_serves_without_redis_and_without_inventory(start: Start, shop: Running):
    product = await shop.create(stock=1)
    async with start(free_port(), redis_port=free_port()) as products:
        assert (await products.get(product["id"]))["available"] is None
        refused = await products.http.put("/api/product", json={**product, "name": "New", "stock": 2})
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert (await products.http.put("/api/product", json={**product, "name": "New"})).status_code == 200
        assert (await products.get(product["id"]))["name"] == "New"


@pytest.mark.parametrize("how", ["kill", "pause"])
async def test_without_redis_inventory_is_asked_each_time_until_redis_is_back(
    start: Start, redis_server, how, stop_clock: Callable[..., Any]
):
    inventory = Inventory()
    clock = stop_clock(resilience)
    async with served(inventory) as port, start(port, redis_seconds=1.0) as products:
        (id,) = await made(products, inventory, 1)
        getattr(redis_server, how)()
        try:
            seconds = []
            for n in range(15):
                started = time.monotonic()
                assert (await products.get(id))["available"] is True
                seconds.append(time.monotonic() - started)
                assert len(inventory.asked) == n + 1
            assert max(seconds) < PATIENCE / 2
            # After five failures it is left alone; for a second, and the circuit's clock stands still.
            assert min(seconds[5:]) < 1.0
        finally:
            redis_server.restart() if how == "kill" else redis_server.resume()
        end = time.monotonic() + PATIENCE
        while inventory.asked:
            assert time.monotonic() < end, "it is back, and nobody uses it"
            clock.now += 1.05
            await products.get(id)
            inventory.asked.clear()
            assert (await products.get(id))["available"] is True


async def test_a_redis_that_is_away_is_said_once_and_one_slow_answer_is_no_news():
    slow = True

    class Slow:
        async def mget(self, ids: list[str]) -> list[bytes | None]:
            await asyncio.sleep(1 if slow else 0)
            return [b"1"] * len(ids)

    cache = Cache(Slow(), ttl=5, seconds=0.01)
    with capture_logs() as said:
        await cache.known(["a"])
        slow = False
        assert await cache.known(["a"]) == {"a": True}
        assert said == []
        slow = True
        for _ in range(8):
            assert await cache.known(["a"]) == {}
        slow = False
        await asyncio.sleep(1.05)
        assert await cache.known(["a"]) == {"a": True}
    assert [line["log_level"] for line in said] == ["warning", "info"]


async def test_what_is_no_answer_of_ours_in_redis_is_asked_anew(told: tuple[Running, Inventory]):
    products, inventory = told
    (id,) = await made(products, inventory, 1)
    await products.redis.set(f"avail:{id}", "nonsense")
    assert (await products.get(id))["available"] is True
    assert inventory.asked == [[id]]


async def test_a_look_up_that_was_given_up_never_answers_the_next_one(shop: Running):
    """Given up at every possible moment, between the command and its answer too: no connection may keep an answer back."""
    truth = {str(uuid4()): n % 2 == 0 for n in range(300)}
    async with connect(shop.config.redis.url) as client:
        await Cache(client, ttl=3600, seconds=PATIENCE).fill(truth)
        right = given_up = 0
        # As wide as this machine wants it, so that about half are given up.
        width = 0.02
        for _ in range(600):
            if right > 100 and given_up > 100:
                break
            # Each has a circuit of its own, or it would soon be open.
            caches = [Cache(client, ttl=60, seconds=random.uniform(0, width)) for _cache in range(10)]
            before = right - given_up
            asked = [random.sample(list(truth), 20) for _cache in caches]
            for ids, found in zip(
                asked, await asyncio.gather(*(c.known(ids) for c, ids in zip(caches, asked, strict=True))), strict=True
            ):
                if found:
                    assert found == {id: truth[id] for id in ids}
                    right += 1
                else:
                    given_up += 1
            width *= 1.1 if right - given_up < before else 0.9
        assert await Cache(client, ttl=60, seconds=PATIENCE).known(list(truth)) == truth
    assert right > 100
    assert given_up > 100
