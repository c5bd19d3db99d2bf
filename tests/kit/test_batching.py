"""Batching: pending items share a call, and each caller gets its own result or failure."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextvars import ContextVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from market.kit import context
from market.kit.batching import Batcher, BatcherBySize
from market.kit.config import Tracing
from market.kit.errors import DeadlineExceeded
from market.kit.process.tracing import Tracer, id_generator, sampler


class Recorder:
    """A flush that doubles numbers, records its batches, and blocks until `open` is set."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.open = asyncio.Event()
        self.in_flight = self.max_in_flight = 0
        self.seen: list[tuple[str, float | None]] = []

    async def __call__(self, items: list[int]) -> Sequence[int | BaseException]:
        self.batches.append(items)
        self.seen.append((context.request_id.get(), context.deadline.get()))
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        await self.open.wait()
        self.in_flight -= 1
        return [ValueError(str(i)) if i < 0 else 2 * i for i in items]


async def test_the_first_item_is_sent_at_once_and_later_ones_share_the_next_call() -> None:
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


async def test_items_that_arrive_during_the_pause_after_a_call_share_the_next_one() -> None:
    flush = Recorder()
    flush.open.set()
    batcher: Batcher[int, int] = Batcher(flush, name="test", pause_seconds=1)
    assert await batcher(1) == 2
    others = []
    for i in (2, 3, 4):
        others.append(asyncio.create_task(batcher(i)))
        await asyncio.sleep(0.01)
    assert await asyncio.gather(*others) == [4, 6, 8]
    assert flush.batches == [[1], [2, 3, 4]]


async def test_there_is_no_pause_while_whole_batches_are_pending() -> None:
    flush = Recorder()
    flush.open.set()
    batcher: Batcher[int, int] = Batcher(flush, name="test", max_batch_size=2, pause_seconds=1000)
    callers = [asyncio.create_task(batcher(i)) for i in range(1, 6)]
    assert await asyncio.gather(*callers[:4]) == [2, 4, 6, 8]
    # The fifth item has the pause before it.
    await asyncio.sleep(0.01)
    assert (flush.batches, batcher.pending) == ([[1, 2], [3, 4]], 1)
    callers[4].cancel()


async def test_an_item_that_fails_fails_its_own_caller_only() -> None:
    flush = Recorder()
    flush.open.set()
    batcher: Batcher[int, int] = Batcher(flush, name="test")
    results = await asyncio.gather(*(batcher(i) for i in (1, -2, 3)), return_exceptions=True)
    assert (results[0], results[2]) == (2, 6)
    assert isinstance(results[1], ValueError)
    assert len(flush.batches) == 1


async def test_a_failed_call_fails_every_caller_of_its_batch_and_no_other() -> None:
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


async def test_a_batch_exceeds_neither_max_batch_size_nor_max_cost() -> None:
    flush = Recorder()
    flush.open.set()
    batcher: Batcher[int, int] = Batcher(flush, name="test", max_batch_size=3, cost=lambda i: i, max_cost=10)
    await batcher.map([1, 1, 1, 1, 9, 1, 20, 5])
    assert flush.batches == [[1, 1, 1], [1, 9], [1], [20], [5]]


async def test_at_most_max_concurrency_calls_are_in_flight() -> None:
    flush = Recorder()
    batcher: Batcher[int, int] = Batcher(flush, name="test", max_batch_size=10, max_concurrency=2)
    work = asyncio.create_task(batcher.map(range(45)))
    await asyncio.sleep(0.01)
    assert flush.in_flight == 2
    flush.open.set()
    assert await work == [2 * i for i in range(45)]
    assert flush.max_in_flight == 2
    assert sorted(map(len, flush.batches)) == [5, 10, 10, 10, 10]


async def test_equal_pending_items_are_sent_once() -> None:
    flush = Recorder()
    batcher: Batcher[int, int] = Batcher(flush, name="test", dedupe=True)
    first = asyncio.create_task(batcher(1))
    await asyncio.sleep(0.01)
    again = [asyncio.create_task(batcher(i)) for i in (1, 1, 2, 1)]
    await asyncio.sleep(0.01)
    flush.open.set()
    assert await asyncio.gather(first, *again) == [2, 2, 2, 4, 2]
    # A call in flight may have read an older state: its result is not shared.
    assert flush.batches == [[1], [1, 2]]


async def test_the_item_of_a_cancelled_caller_is_not_sent() -> None:
    flush = Recorder()
    batcher: Batcher[int, int] = Batcher(flush, name="test")
    first = asyncio.create_task(batcher(1))
    await asyncio.sleep(0.01)
    cancelled, waiting = asyncio.create_task(batcher(2)), asyncio.create_task(batcher(3))
    await asyncio.sleep(0.01)
    cancelled.cancel()
    await asyncio.sleep(0.01)
    flush.open.set()
    assert await asyncio.gather(first, waiting) == [2, 6]
    assert flush.batches == [[1], [3]]


async def test_a_deadline_ends_the_wait_of_its_caller_but_not_the_batch() -> None:
    flush = Recorder()
    batcher: Batcher[int, int] = Batcher(flush, name="test")

    async def with_deadline() -> int:
        with context.deadline_in(0.05):
            return await batcher(1)

    without_deadline = asyncio.create_task(batcher(2))
    with pytest.raises(DeadlineExceeded):
        await with_deadline()
    flush.open.set()
    assert await without_deadline == 4


async def test_a_batch_has_the_latest_deadline_of_its_callers_and_the_request_id_of_a_single_one() -> None:
    flush = Recorder()
    flush.open.set()
    batcher: Batcher[int, int] = Batcher(flush, name="test")

    async def call(item: int, request_id: str, seconds: float) -> int:
        context.request_id.set(request_id)
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


async def test_a_batch_inherits_nothing_from_the_caller_that_starts_it() -> None:
    seen: list[object] = []
    inherited: ContextVar[str] = ContextVar("inherited", default="")

    async def flush(items: list[int]) -> list[int]:
        seen.append((inherited.get(), context.current_trace(), trace.get_current_span().get_span_context().is_valid))
        return items

    batcher: Batcher[int, int] = Batcher(flush, name="test")

    async def call(item: int, parent: str, bag: str) -> int:
        inherited.set("from a caller")
        context.set_trace(parent, "a=1", bag)
        return await batcher(item)

    await asyncio.gather(call(1, parent_of(1), "user=7"), call(2, parent_of(2), "user=8"))
    assert seen == [("", ("", "", ""), False)]
    # What a single caller sends along is sent on.
    await asyncio.create_task(call(3, parent_of(3), "user=9"))
    assert seen[1:] == [("", (parent_of(3), "a=1", "user=9"), False)]


async def test_the_span_of_a_batch_is_a_child_of_a_single_caller_and_linked_to_several() -> None:
    exporter = InMemorySpanExporter()
    spans = traced(exporter, Tracing(sample_ratio=0.01))
    sent: list[str] = []

    async def flush(items: list[int]) -> list[int]:
        sent.append(context.traceparent.get())
        return items

    batcher: Batcher[int, int] = Batcher(flush, name="test", dedupe=True)

    async def call(item: int, parent: str) -> int:
        context.set_trace(parent)
        with spans.span("call"):
            return await batcher(item)

    # Of these trace ids, the ratio samples 1 to 3.
    await asyncio.create_task(call(1, parent_of(1)))
    batch, caller = exporter.get_finished_spans()
    assert (batch.name, batch.parent, batch.links) == ("batch test", caller.context, ())
    exporter.clear()

    unsampled = "00-" + "f" * 32 + "-" + "1" * 16 + "-01"
    await asyncio.gather(
        *(call(item, parent) for item, parent in ((7, unsampled), (2, parent_of(2)), (2, parent_of(3))))
    )
    batch, *callers = exporter.get_finished_spans()
    assert (batch.name, batch.parent) == ("batch test", None)
    assert [link.context for link in batch.links] == [caller.context for caller in callers]
    assert {caller.context.trace_id for caller in callers} == {2, 3}
    # A trace of its own, which the ratio samples in the next service, too.
    assert batch.context.trace_id not in {2, 3}
    assert batch.context.trace_id & (1 << 64) - 1 == 2
    assert sent[1][:-2] == f"00-{batch.context.trace_id:032x}-{batch.context.span_id:016x}-"
    exporter.clear()

    await asyncio.gather(call(7, unsampled), call(8, unsampled.replace("f", "e")))
    assert exporter.get_finished_spans() == ()


def parent_of(trace_id: int) -> str:
    return f"00-{trace_id:032x}-{'1' * 16}-01"


def traced(exporter: InMemorySpanExporter, config: Tracing) -> Tracer:
    provider = TracerProvider(sampler=sampler(config), id_generator=id_generator())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return Tracer(provider.get_tracer("test"))


async def test_map_raises_the_first_exception_and_map_with_exceptions_returns_all_of_them() -> None:
    flush = Recorder()
    flush.open.set()
    batcher: Batcher[int, int] = Batcher(flush, name="test")
    with pytest.raises(ValueError, match="-2"):
        await batcher.map([1, -2, 3, -4])
    results = await batcher.map_with_exceptions([1, -2, 3])
    assert (results[0], str(results[1]), results[2]) == (2, "-2", 6)


async def test_callers_are_cancelled_when_the_event_loop_closes() -> None:
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
    max_batch_size=st.integers(1, 7),
    max_concurrency=st.integers(1, 3),
    dedupe=st.booleans(),
    pauses=st.lists(st.sampled_from([0, 0.001]), min_size=40, max_size=40),
)
def test_results_are_those_of_one_call_per_item_whatever_the_timing(
    items: list[int], max_batch_size: int, max_concurrency: int, dedupe: bool, pauses: list[float]
) -> None:
    async def flush(batch: list[int]) -> Sequence[int | BaseException]:
        assert 0 < len(batch) <= max_batch_size
        await asyncio.sleep(0)
        return [ValueError(str(i)) if i < 0 else 2 * i for i in batch]

    async def run() -> None:
        batcher: Batcher[int, int] = Batcher(
            flush, name="test", max_batch_size=max_batch_size, max_concurrency=max_concurrency, dedupe=dedupe
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


def _by_size(flush: Recorder) -> BatcherBySize[int, int]:
    return BatcherBySize(flush, name="test", cost=abs, small_cost=10, max_cost=30, max_large_cost=100)


async def test_small_items_do_not_wait_for_large_ones() -> None:
    flush = Recorder()
    batcher = _by_size(flush)
    large = [asyncio.create_task(batcher(i)) for i in (60, 70, 40, 60)]
    await asyncio.sleep(0.01)
    small = asyncio.create_task(batcher(3))
    await asyncio.sleep(0.01)
    # The first large item went alone, and the small one did not wait for its call.
    assert (flush.batches, batcher.pending) == ([[60], [3]], 3)
    flush.open.set()
    assert await asyncio.gather(*large, small) == [120, 140, 80, 120, 6]
    # A call with large items has its own maximum cost: 70 and 40 are too much together.
    assert flush.batches == [[60], [3], [70], [40, 60]]


async def test_results_of_items_of_both_sizes_are_in_order() -> None:
    flush = Recorder()
    flush.open.set()
    batcher = _by_size(flush)
    results = await batcher.map_with_exceptions([1, 50, -2, -60, 3])
    assert [str(r) for r in results] == ["2", "100", "-2", "-60", "6"]
    assert [type(r) for r in results] == [int, int, ValueError, ValueError, int]
    assert flush.batches == [[1, -2, 3], [50], [-60]]
    assert await batcher.map_with_exceptions([4, 5]) == [8, 10]
