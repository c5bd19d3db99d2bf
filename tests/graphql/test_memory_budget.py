"""The memory budget of requests: what one may have, which ones wait and for how long, and what is released."""

from __future__ import annotations

import asyncio
import json

import pytest

from market.graphql.clients import ProductsClient
from market.graphql.config import DocumentCacheSize, Limits, Memory
from market.graphql.engine.executor import Executor
from market.graphql.memory.budget import MemoryBudget
from market.graphql.service import Deps
from market.kit import context
from market.kit.errors import BadInput, Overloaded
from tests.graphql.upstreams import MIB, NOTHING, PRODUCTS, Upstream
from tests.support.waiting import until


def budget_of(**changes: int) -> MemoryBudget:
    sizes = {"small_request_bytes": 10_000, "small_requests_bytes": 100_000}
    return MemoryBudget(Memory(**{**sizes, "request_bytes": 60_000, "large_requests_bytes": 80_000, **changes}))


async def test_one_request_may_not_have_more_than_its_limit() -> None:
    budget = budget_of()
    memory = budget.request()
    await memory.take(60_000)
    with pytest.raises(BadInput, match="needs up to 60001 bytes of memory, and may have 60000"):
        await memory.take(1)
    assert memory.held == 60_000
    memory.close()
    assert (budget.small, budget.large, memory.held) == (0, 0, 0)


async def test_memory_that_a_request_can_do_without_is_taken_only_if_it_is_free() -> None:
    budget = budget_of()
    memory, other = budget.request(), budget.request()
    await memory.take(50_000)
    assert not memory.take_if_free(10_001)
    await other.take(50_000)
    assert memory.held == 50_000
    assert memory.take_if_free(10_000) is (budget.large <= 70_000)
    memory.close()
    assert other.take_if_free(10_000)
    other.close()
    assert (budget.small, budget.large) == (0, 0)


async def test_small_requests_have_memory_while_large_ones_hold_all_of_theirs() -> None:
    budget = budget_of()
    large = [budget.request() for _ in range(2)]
    await large[0].take(60_000)
    await large[1].take(40_000)
    assert (budget.small, budget.large) == (20_000, 80_000)
    small = [budget.request() for _ in range(8)]
    for memory in small:
        assert memory.try_take(10_000)
    assert not budget.request().try_take(1)


async def test_large_requests_wait_in_order_until_memory_is_free() -> None:
    budget = budget_of()
    first, *others = [budget.request() for _ in range(4)]
    await first.take(60_000)
    granted: list[int] = []

    async def take(number: int, size: int) -> None:
        await others[number].take(size)
        granted.append(number)

    tasks = [
        asyncio.create_task(take(0, 50_000)),
        asyncio.create_task(take(1, 20_000)),
        asyncio.create_task(take(2, 50_000)),
    ]
    await asyncio.sleep(0.01)
    # The second would fit, but does not overtake the first.
    assert granted == []
    first.release(20_000)
    await asyncio.sleep(0.01)
    assert granted == [0, 1]
    others[0].close()
    await asyncio.gather(*tasks)
    assert granted == [0, 1, 2]
    for memory in (first, *others):
        memory.close()
    assert (budget.small, budget.large) == (0, 0)


async def test_of_two_requests_that_hold_memory_and_need_more_one_fails_and_the_other_goes_on() -> None:
    budget = budget_of()
    first, second = budget.request(), budget.request()
    await first.take(45_000)
    await second.take(45_000)
    waiting = asyncio.create_task(first.take(15_000))
    await asyncio.sleep(0.01)
    with pytest.raises(Overloaded):
        await second.take(15_000)
    second.close()
    await waiting
    assert first.held == 60_000


async def test_a_wait_for_memory_ends_at_the_deadline_and_takes_nothing() -> None:
    budget = budget_of()
    first, second, third = budget.request(), budget.request(), budget.request()
    await first.take(60_000)
    with context.deadline_in(0.5), pytest.raises(Overloaded, match="too many large requests"):
        await second.take(50_000)
    waiting = asyncio.create_task(second.take(50_000))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    # One that ends at the very moment when memory becomes free takes none either.
    waiting, last = asyncio.create_task(second.take(50_000)), asyncio.create_task(third.take(50_000))
    await asyncio.sleep(0.01)
    waiting.cancel()
    first.close()
    await last
    assert (second.held, third.held) == (0, 50_000)
    third.close()
    assert (budget.small, budget.large) == (0, 0)


async def test_a_response_that_waits_for_memory_is_requested_again_when_there_is_some() -> None:
    upstream = Upstream(lambda _: PRODUCTS["long"])
    deps = Deps(ProductsClient(upstream), NOTHING)  # type: ignore[arg-type]
    executor = Executor(deps, Limits(), DocumentCacheSize())
    budget = MemoryBudget(Memory())
    other, memory = budget.request(), budget.request()
    await other.take(70 * MIB)
    prepared = await executor.prepare("{ products { items { name } } }", None, memory)
    execution = asyncio.create_task(executor.execute(prepared, {}, memory))
    await until(lambda: budget._waiters)
    assert (upstream.calls, execution.done()) == (1, False)
    other.close()
    assert len(json.loads((await execution).body)["data"]["products"]["items"]) == 100
    assert upstream.calls == 2


def test_memory_for_one_request_beyond_that_of_all_is_a_configuration_error() -> None:
    with pytest.raises(ValueError, match="request_bytes must not exceed large_requests_bytes, got 8192 and 4096"):
        Memory(request_bytes=8192, large_requests_bytes=4096)
