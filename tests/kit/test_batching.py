"""Gathering: nobody waits alone, each has their own result, and a failure is one caller's failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.kit import context
from market.kit.batching import Batcher
from market.kit.errors import DeadlineExceeded


class Recorder:
    """A flush that doubles numbers, remembers its batches, and waits until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()
        self.under_way = self.most_under_way = 0
        self.seen: list[tuple[str, float | None]] = []

    async def __call__(self, items: list[int]) -> Sequence[int | BaseException]:
        self.batches.append(items)
        self.seen.append((context.request_id.get(), context.deadline.get()))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        await self.open.wait()
        self.under_way -= 1
        return [ValueError(str(i)) if i < 0 else 2 * i for i in items]


async def test_a_lone_caller_goes_at_once_and_what_comes_meanwhile_goes_together() -> None:
    flush = Recorder()
    batcher: Batcher[int, int] = Batcher(flush, name="test")
    first = asyncio.create_task(batcher(1))
    await asyncio.sleep(0.01)
    others = [asyncio.create_task(batcher(i)) for i in (2, 3, 4)]
    await asyncio.sleep(0.01)
    assert (flush.batches, batcher.pending) == ([[1]], 3)
    flush.open.set()
    assert await asyncio.gather(first, *others) == [2, 4, 6, 8]
    assert flush.batches == [[1], [2, 3, 4]]


async def test_one_failure_in_a_batch_is_one_callers_failure() -> None:
    flush = Recorder()
    flush.open.set()
    batcher: Batcher[int, int] = Batcher(flush, name="test")
    results = await asyncio.gather(*(batcher(i) for i in (1, -2, 3)), return_exceptions=True)
    assert (results[0], results[2]) == (2, 6)
    assert isinstance(results[1], ValueError)
    assert len(flush.batches) == 1


async def test_a_batch_that_fails_as_a_whole_fails_for_all_and_the_next_goes_on() -> None:
    calls = 0

    async def flush(items: list[int]) -> Sequence[int]:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("gone")
        return items[:1] if calls == 2 else items

    batcher: Batcher[int, int] = Batcher(flush, name="test")
    results = await asyncio.gather(batcher(1), batcher(2), return_exceptions=True)
    assert [type(r) for r in results] == [OSError, OSError]
    results = await asyncio.gather(batcher(1), batcher(2), return_exceptions=True)
    assert [type(r) for r in results] == [RuntimeError, RuntimeError]
    assert await batcher(5) == 5


async def test_batches_have_at_most_so_many_items_and_so_much_weight() -> None:
    flush = Recorder()
    flush.open.set()
    batcher: Batcher[int, int] = Batcher(flush, name="test", max_batch_size=3, cost=lambda i: i, max_cost=10)
    await batcher.map([1, 1, 1, 1, 9, 1, 20, 5])
    assert flush.batches == [[1, 1, 1], [1, 9], [1], [20], [5]]


async def test_so_many_calls_are_under_way_at_once_and_no_more() -> None:
    flush = Recorder()
    batcher: Batcher[int, int] = Batcher(flush, name="test", max_batch_size=10, max_concurrency=2)
    work = asyncio.create_task(batcher.map(range(45)))
    await asyncio.sleep(0.01)
    assert flush.under_way == 2
    flush.open.set()
    assert await work == [2 * i for i in range(45)]
    assert flush.most_under_way == 2
    assert sorted(map(len, flush.batches)) == [5, 10, 10, 10, 10]


async def test_equal_items_that_wait_together_go_out_once() -> None:
    flush = Recorder()
    batcher: Batcher[int, int] = Batcher(flush, name="test", dedupe=True)
    first = asyncio.create_task(batcher(1))
    await asyncio.sleep(0.01)
    again = [asyncio.create_task(batcher(i)) for i in (1, 1, 2, 1)]
    await asyncio.sleep(0.01)
    flush.open.set()
    assert await asyncio.gather(first, *again) == [2, 2, 2, 4, 2]
    # What was under way already may be older than the one who asks: it is not shared.
    assert flush.batches == [[1], [1, 2]]


async def test_a_caller_who_went_away_before_the_call_does_not_go_out() -> None:
    flush = Recorder()
    batcher: Batcher[int, int] = Batcher(flush, name="test")
    first = asyncio.create_task(batcher(1))
    await asyncio.sleep(0.01)
    gone, stays = asyncio.create_task(batcher(2)), asyncio.create_task(batcher(3))
    await asyncio.sleep(0.01)
    gone.cancel()
    await asyncio.sleep(0.01)
    flush.open.set()
    assert await asyncio.gather(first, stays) == [2, 6]
    assert flush.batches == [[1], [3]]


async def test_a_callers_deadline_ends_its_waiting_and_not_the_batch() -> None:
    flush = Recorder()
    batcher: Batcher[int, int] = Batcher(flush, name="test")

    async def hurried() -> int:
        with context.deadline_in(0.05):
            return await batcher(1)

    patient = asyncio.create_task(batcher(2))
    with pytest.raises(DeadlineExceeded):
        await hurried()
    flush.open.set()
    assert await patient == 4


async def test_a_batch_has_the_most_patient_callers_deadline_and_a_lone_callers_request_id() -> None:
    flush = Recorder()
    flush.open.set()
    batcher: Batcher[int, int] = Batcher(flush, name="test")

    async def call(item: int, id: str, seconds: float) -> int:
        context.request_id.set(id)
        with context.deadline_in(seconds):
            return await batcher(item)

    began = time.monotonic()
    await asyncio.create_task(call(1, "one", 500))
    between = time.monotonic()
    await asyncio.gather(call(2, "two", 300), call(3, "three", 900))
    (alone, near), (together, far) = flush.seen
    assert (alone, together) == ("one", "")
    assert near is not None
    assert far is not None
    assert began + 500 <= near <= between + 500
    assert between + 900 <= far <= time.monotonic() + 900


async def test_all_raises_the_first_failure_and_each_answers_for_each() -> None:
    flush = Recorder()
    flush.open.set()
    batcher: Batcher[int, int] = Batcher(flush, name="test")
    with pytest.raises(ValueError, match="-2"):
        await batcher.map([1, -2, 3, -4])
    results = await batcher.map_settled([1, -2, 3])
    assert (results[0], str(results[1]), results[2]) == (2, "-2", 6)


async def test_who_waits_when_the_loop_ends_is_let_go() -> None:
    flush = Recorder()
    batcher: Batcher[int, int] = Batcher(flush, name="test")
    waiting = [asyncio.create_task(batcher(i)) for i in (1, 2)]
    await asyncio.sleep(0.01)
    late = asyncio.create_task(batcher(3))
    await asyncio.sleep(0.01)
    for task in list(batcher._tasks):
        task.cancel()
    results = await asyncio.gather(*waiting, late, return_exceptions=True)
    assert [type(r) for r in results] == [asyncio.CancelledError] * 3


@given(
    items=st.lists(st.integers(-3, 9), max_size=40),
    most=st.integers(1, 7),
    under_way=st.integers(1, 3),
    fold=st.booleans(),
    pauses=st.lists(st.sampled_from([0, 0.001]), min_size=40, max_size=40),
)
def test_whatever_comes_when_each_has_the_result_of_one_at_a_time(
    items: list[int], most: int, under_way: int, fold: bool, pauses: list[float]
) -> None:
    async def flush(batch: list[int]) -> Sequence[int | BaseException]:
        assert 0 < len(batch) <= most
        await asyncio.sleep(0)
        return [ValueError(str(i)) if i < 0 else 2 * i for i in batch]

    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(
            flush, name="test", max_batch_size=most, max_concurrency=under_way, dedupe=fold
        )

        async def call(item: int, pause: float) -> str:
            await asyncio.sleep(pause)
            try:
                return str(await batcher(item))
            except ValueError as e:
                return str(e)

        found = await asyncio.gather(*(call(i, p) for i, p in zip(items, pauses, strict=False)))
        assert found == [str(i if i < 0 else 2 * i) for i in items]
        assert batcher.pending == 0

    asyncio.run(run())
