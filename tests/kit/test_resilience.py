"""The circuit, the budget, and retries: a dead neighbour does not take us along, and a hurried caller is no dead neighbour."""

from __future__ import annotations

import asyncio

import pytest

from market.kit import context
from market.kit.errors import Conflict, DeadlineExceeded, Unavailable
from market.kit.resilience import CircuitBreaker, CircuitOpen, RetryBudget, backoff, retry
from tests.support.clocks import FakeClock


class Neighbour:
    """Fails with the given errors in turn, then answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "well"


async def fails(circuit: CircuitBreaker, neighbour: Neighbour, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Unavailable):
            await circuit(neighbour)


async def test_a_circuit_opens_after_failures_in_a_row_and_closes_by_itself(clock: FakeClock) -> None:
    circuit = CircuitBreaker("test", failures=3, open_seconds=0.1, clock=clock)
    neighbour = Neighbour(*[Unavailable("down")] * 4)
    await fails(circuit, neighbour, 3)
    assert circuit.is_open
    with pytest.raises(CircuitOpen):
        await circuit(neighbour)
    clock.advance(0.09)
    assert circuit.is_open
    assert neighbour.calls == 3
    clock.advance(0.02)
    # One tries, and fails: open for another while.
    await fails(circuit, neighbour, 2)
    assert neighbour.calls == 4
    clock.advance(0.12)
    assert await circuit(neighbour) == "well"
    assert not circuit.is_open


async def test_while_one_call_tries_the_others_are_refused(clock: FakeClock) -> None:
    circuit = CircuitBreaker("test", failures=1, open_seconds=0.05, clock=clock)
    await fails(circuit, Neighbour(Unavailable("down")), 1)
    clock.advance(0.06)
    waiting = asyncio.Event()

    async def slow() -> str:
        await waiting.wait()
        return "well"

    trial = asyncio.create_task(circuit(slow))
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen):
        await circuit(slow)
    waiting.set()
    assert await trial == "well"
    assert await circuit(slow) == "well"


async def test_a_trial_that_is_cancelled_leaves_the_way_free_for_another(clock: FakeClock) -> None:
    circuit = CircuitBreaker("test", failures=1, open_seconds=0.01, clock=clock)
    await fails(circuit, Neighbour(Unavailable("down")), 1)
    clock.advance(0.02)
    trial = asyncio.create_task(circuit(asyncio.Event().wait))
    await asyncio.sleep(0)
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    assert await circuit(Neighbour()) == "well"


async def test_an_answer_that_is_no_failure_of_the_neighbour_does_not_count() -> None:
    circuit = CircuitBreaker("test", failures=2)
    for _ in range(5):
        with pytest.raises(Conflict):
            await circuit(Neighbour(Conflict("short")))
    assert not circuit.is_open


async def test_a_caller_in_a_hurry_does_not_open_the_circuit_and_a_slow_neighbour_does(
    clock: FakeClock,
) -> None:
    circuit = CircuitBreaker("test", failures=2, slow_after_seconds=0.05, clock=clock)
    await fails(circuit, Neighbour(*[DeadlineExceeded("hurry")] * 5), 5)
    assert not circuit.is_open

    async def slow() -> str:
        clock.advance(0.06)
        raise DeadlineExceeded("slow")

    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            await circuit(slow)
    assert circuit.is_open


async def test_a_call_is_tried_again_until_it_succeeds_or_attempts_run_out() -> None:
    neighbour = Neighbour(Unavailable("a"), Unavailable("b"))
    assert await retry(neighbour, budget=RetryBudget("test")) == "well"
    assert neighbour.calls == 3
    neighbour = Neighbour(*[Unavailable("x")] * 9)
    with pytest.raises(Unavailable):
        await retry(neighbour, budget=RetryBudget("test"))
    assert neighbour.calls == 3


async def test_what_is_no_failure_and_what_the_circuit_refused_is_not_tried_again() -> None:
    for error in (Conflict("short"), CircuitOpen("open")):
        neighbour = Neighbour(error)
        with pytest.raises(type(error)):
            await retry(neighbour, budget=RetryBudget("test"))
        assert neighbour.calls == 1


async def test_retries_are_a_part_of_the_calls_at_most() -> None:
    budget = RetryBudget("test", ratio=0.1, reserve=5)
    calls = 0

    async def down() -> str:
        nonlocal calls
        calls += 1
        raise Unavailable("down")

    with context.deadline_in(60):
        for _ in range(30):
            with pytest.raises(Unavailable):
                await retry(down, budget=budget, attempts=2)
    # 30 calls, the reserve, and a tenth of the calls.
    assert 35 <= calls <= 38


async def test_there_is_no_retry_that_the_caller_would_not_live_to_see() -> None:
    neighbour = Neighbour(*[Unavailable("x")] * 9)
    with context.deadline_in(0):
        with pytest.raises(Unavailable):
            await retry(neighbour, budget=RetryBudget("test"))
    assert neighbour.calls == 1


def test_a_pause_is_never_longer_than_the_most() -> None:
    assert all(0 <= backoff(n, max_seconds=0.5) <= 0.5 for n in range(1, 2000))
