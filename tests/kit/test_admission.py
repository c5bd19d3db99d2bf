"""Admission: which requests are handled, which wait and in which order, and which are refused."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.requests import ClientDisconnect, Request

from market.kit import context
from market.kit.config import Admission as Limits
from market.kit.errors import DeadlineExceeded, Overloaded, Problem, TooManyRequests
from market.kit.http.admission import Admission
from tests.support.waiting import until


async def _never() -> dict[str, str]:
    await asyncio.Event().wait()
    return {}


class Requests:
    """Requests to an Admission with the given limits. `time` is its clock; `handled`: names in order of admission."""

    def __init__(self, **limits: Any) -> None:
        # Small up to 100, and one request of 1,000 at a time.
        limits = {"max_large_weight": 1000, **limits}
        self.time = 1000.0
        self.admission = Admission(Limits(**limits), unit="lines", clock=lambda: self.time)
        self.handled: list[str] = []
        self._finish: dict[str, asyncio.Event] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.disconnected: set[str] = set()

    async def send(self, name: str, weight: int, address: str = "203.0.113.1") -> None:
        """Send a request, and return once it is handled, refused or waiting."""
        self._finish[name] = asyncio.Event()
        self._tasks[name] = asyncio.create_task(self._handle(name, weight, address))
        for _ in range(5):
            await asyncio.sleep(0)

    async def _handle(self, name: str, weight: int, address: str) -> None:
        async def receive() -> dict[str, str]:
            if name not in self.disconnected:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        request = Request({"type": "http", "client": (address, 0), "headers": []}, receive)
        async with self.admission(request, weight):
            self.handled.append(name)
            await self._finish[name].wait()

    async def finish(self, *names: str) -> None:
        """End the handling of these requests, and return once the next ones are handled."""
        for name in names:
            self._finish[name].set()
            await self._tasks[name]
        for _ in range(10):
            await asyncio.sleep(0)

    async def error(self, name: str) -> BaseException | None:
        """Wait until the request has ended, and return its error."""
        await asyncio.wait([self._tasks[name]])
        return self._tasks[name].exception()

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is handled or waits, and no caller is remembered."""
        parts = (self.admission._small, self.admission._large)
        return not any(p._in_flight or p._waiting or p._queue or p._callers for p in parts)


@asynccontextmanager
async def requests(**limits: Any) -> AsyncIterator[Requests]:
    it = Requests(**limits)
    try:
        yield it
    finally:
        await it.close()
        assert it.is_idle


async def test_large_requests_are_handled_up_to_their_weight_and_the_others_wait() -> None:
    async with requests() as it:
        for name, weight in (("a", 400), ("b", 600), ("c", 500), ("d", 500)):
            await it.send(name, weight)
        assert it.handled == ["a", "b"]
        await it.finish("a")
        assert it.handled == ["a", "b"]
        await it.finish("b")
        assert it.handled == ["a", "b", "c", "d"]


async def test_a_small_request_does_not_wait_for_large_ones() -> None:
    async with requests() as it:
        for n in range(20):
            await it.send(f"large {n}", 1000)
        await it.send("small", 100)
        await it.send("not small", 101)
        assert it.handled == ["large 0", "small"]


async def test_small_requests_have_a_limit_of_their_own() -> None:
    async with requests(max_small_weight=150) as it:
        for name, weight in (("a", 100), ("b", 50), ("c", 100), ("d", 1)):
            await it.send(name, weight)
        await it.send("large", 1000)
        assert it.handled == ["a", "b", "large"]
        await it.finish("a")
        # The smallest first, although it came last.
        assert it.handled == ["a", "b", "large", "d"]


@pytest.mark.parametrize("address", ["203.0.113.{}", "203.0.113.1"])
async def test_of_those_that_wait_the_small_ones_come_first(address: str) -> None:
    async with requests() as it:
        await it.send("first", 1000)
        for n, weight in enumerate((1000, 700, 200, 400)):
            await it.send(str(weight), weight, address.format(n))
        await it.finish("first")
        await it.finish("200", "400")
        assert it.handled == ["first", "200", "400", "700"]


async def test_a_large_request_is_not_overtaken_by_those_that_arrive_two_seconds_later() -> None:
    async with requests() as it:
        await it.send("first", 1000, "203.0.113.1")
        await it.send("large", 1000, "203.0.113.2")
        it.time += 1.0
        await it.send("soon", 200, "203.0.113.3")
        it.time += 1.0
        await it.send("late", 200, "203.0.113.4")
        await it.finish("first")
        assert it.handled == ["first", "soon"]
        await it.finish("soon")
        assert it.handled == ["first", "soon", "large"]


async def test_a_request_that_fits_does_not_overtake_the_one_whose_turn_it_is() -> None:
    async with requests() as it:
        await it.send("first", 600, "203.0.113.1")
        await it.send("second", 1000, "203.0.113.2")
        it.time += 3.0
        await it.send("third", 200, "203.0.113.3")
        assert it.handled == ["first"]
        await it.finish("first")
        assert it.handled == ["first", "second"]


async def test_callers_take_turns() -> None:
    async with requests() as it:
        await it.send("a0", 1000, "203.0.113.1")
        for n in range(1, 4):
            await it.send(f"a{n}", 1000, "203.0.113.1")
        for n in range(2):
            await it.send(f"b{n}", 1000, "203.0.113.2")
        for finished in ("a0", "b0", "a1", "b1", "a2"):
            await it.finish(finished)
        assert it.handled == ["a0", "b0", "a1", "b1", "a2", "a3"]


async def test_a_caller_beyond_its_share_is_refused_while_another_one_is_served() -> None:
    async with requests(max_caller_weight=3000, max_large_weight=5000) as it:
        for n in range(3):
            await it.send(f"greedy {n}", 1000)
        await it.send("too much", 1000)
        await it.send("honest", 1000, "203.0.113.2")
        # In the part of small requests it has its share still.
        await it.send("small", 1)
        assert it.handled == ["greedy 0", "greedy 1", "greedy 2", "honest", "small"]
        error = await it.error("too much")
        assert isinstance(error, TooManyRequests)
        assert (error.status, error.type, error.code(), error.retry_after) == (
            429,
            "too-many-requests",
            "TOO_MANY_REQUESTS",
            1,
        )
        assert str(error) == (
            "this caller's requests in progress would total 4000 lines, but at most 3000 are allowed; wait for their "
            "responses"
        )
        await it.finish("greedy 0")
        await it.send("again", 1000)
        assert it.handled[-1] == "again"


async def test_what_waits_counts_for_the_callers_share() -> None:
    async with requests(max_caller_weight=2000) as it:
        for n in range(3):
            await it.send(f"greedy {n}", 1000)
        assert it.handled == ["greedy 0"]
        assert isinstance(await it.error("greedy 2"), TooManyRequests)


async def test_a_single_request_is_admitted_whatever_its_weight() -> None:
    async with requests(max_caller_weight=500) as it:
        await it.send("huge", 10**9)
        assert it.handled == ["huge"]
        await it.send("next", 200, "203.0.113.2")
        assert it.handled == ["huge"]
        await it.finish("huge")
        assert it.handled == ["huge", "next"]


async def test_the_queue_is_bounded() -> None:
    async with requests(max_waiting_weight=2500) as it:
        for n in range(4):
            await it.send(f"r{n}", 1000, f"203.0.113.{n}")
        error = await it.error("r3")
        assert isinstance(error, Overloaded)
        assert (error.status, error.retry_after, str(error)) == (503, 1, "too many requests are waiting")
        await it.send("fits", 500, "203.0.113.9")
        await it.finish("r0")
        assert it.handled == ["r0", "fits"]


async def test_a_request_that_waits_too_long_gets_503_and_leaves_no_trace() -> None:
    async with requests(max_wait_seconds=0.05) as it:
        await it.send("first", 1000)
        await it.send("second", 1000)
        error = await it.error("second")
        assert (type(error), str(error)) == (Overloaded, "the request was not admitted within 0.05 s")
        await it.finish("first")
        assert it.is_idle
        assert it.handled == ["first"]


async def test_a_request_waits_no_longer_than_its_deadline() -> None:
    async with requests() as it:
        await it.send("first", 1000)
        with context.deadline_in(0.05):
            await it.send("second", 1000)
        assert isinstance(await it.error("second"), DeadlineExceeded)


async def test_retry_after_is_as_long_as_requests_wait() -> None:
    async with requests(max_caller_weight=2000) as it:
        await it.send("first", 1000)
        await it.send("second", 1000)
        it.time += 4.2
        await it.finish("first")
        await it.send("third", 1000)
        assert it.handled == ["first", "second"]
        await it.send("fourth", 1000)
        error = await it.error("fourth")
        assert isinstance(error, TooManyRequests)
        assert error.retry_after == 5


async def test_the_request_of_a_client_that_has_left_is_not_handled() -> None:
    async with requests() as it:
        await it.send("first", 1000)
        await it.send("left", 1000)
        await it.send("third", 1000)
        it.disconnected.add("left")
        await it.finish("first")
        await until(lambda: it.handled == ["first", "third"], what="the third request")
        assert isinstance(await it.error("left"), ClientDisconnect)


async def test_a_request_that_turns_out_to_be_large_waits_among_the_large_ones() -> None:
    async with requests() as it:
        await it.send("first", 1000)
        steps: list[str] = []

        async def read() -> None:
            async with it.admission(Request({"type": "http", "headers": []}, _never), 1) as admitted:
                steps.append("small")
                await admitted.increase_weight(1)
                await admitted.increase_weight(500)
                steps.append("large")
                await admitted.increase_weight(300)

        reading = asyncio.create_task(read())
        await until(lambda: it.admission._large._waiting == 500, what="the request waits")
        assert steps == ["small"]
        assert it.admission._small._in_flight == 0
        await it.finish("first")
        await reading
        assert steps == ["small", "large"]


async def test_an_error_in_the_handling_ends_it() -> None:
    async with requests() as it:

        async def fail() -> None:
            async with it.admission(Request({"type": "http", "headers": []}), 1000):
                raise KeyError

        with pytest.raises(KeyError):
            await fail()
        assert it.is_idle


async def test_nothing_is_left_after_any_sequence_of_events() -> None:
    for seed in range(30):
        rng = random.Random(seed)
        async with requests(
            max_waiting_weight=6000, max_caller_weight=3000, max_small_weight=200, max_wait_seconds=0.02
        ) as it:
            open_: list[str] = []
            for n in range(60):
                it.time += rng.random()
                if open_ and rng.random() < 0.4:
                    name = open_.pop(rng.randrange(len(open_)))
                    it._finish[name].set()
                    if rng.random() < 0.3:
                        it._tasks[name].cancel()
                else:
                    open_.append(f"r{n}")
                    weight = rng.choice((1, 50, 100, 101, 600, 1000, 1500))
                    await it.send(f"r{n}", weight, f"203.0.113.{rng.randrange(4)}")
                await asyncio.sleep(0.03 if rng.random() < 0.05 else 0)
                await asyncio.sleep(0)
                large = it.admission._large
                assert large._in_flight <= 1000 or large._in_flight == 1500
                # A request whose wait has just ended counts until its task runs.
                assert 6000 >= large._waiting >= sum(weight for _, _, weight, turn in large._queue if not turn.done())
            for name in open_:
                it._finish[name].set()
            for task in it._tasks.values():
                await asyncio.wait([task])
                error = None if task.cancelled() else task.exception()
                assert error is None or isinstance(error, Problem)
            assert it.is_idle


def _sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"market_admission_{name}", labels) or 0.0


async def test_metrics_count_by_size_and_reason_and_never_by_caller() -> None:
    def counts() -> list[float]:
        return [
            _sample("admitted_total", size="small"),
            _sample("admitted_total", size="large"),
            _sample("refused_total", size="large", reason="caller"),
            _sample("refused_total", size="large", reason="queue"),
            _sample("refused_total", size="large", reason="wait"),
            _sample("wait_seconds_count", size="large"),
        ]

    before = counts()
    # Long enough for the requests after it to arrive while one waits.
    async with requests(max_caller_weight=2000, max_waiting_weight=1500, max_wait_seconds=3) as it:
        await it.send("small", 7)
        for n, address in enumerate(("203.0.113.1", "203.0.113.1", "203.0.113.1", "203.0.113.2")):
            await it.send(f"r{n}", 1000, address)
        assert (_sample("in_flight_weight", size="large"), _sample("waiting_weight", size="large")) == (1000, 1000)
        assert _sample("in_flight_weight", size="small") == 7
        await it.error("r1")
    assert [after - b for after, b in zip(counts(), before, strict=True)] == [1, 1, 1, 1, 1, 1]
    labels = {
        name
        for metric in REGISTRY.collect()
        if metric.name.startswith("market_admission")
        for sample in metric.samples
        for name in sample.labels
    }
    assert labels == {"size", "reason", "le"}
