"""The circuit breaker, the retry budget and retries."""

from __future__ import annotations

import asyncio

import pytest

from market.kit import context
from market.kit.errors import Conflict, DeadlineExceeded, Unavailable
from market.kit.resilience import CircuitBreaker, CircuitOpen, RetryBudget, backoff, retry
from tests.support.clocks import FakeClock


class Upstream:
    """Fails with the given errors in turn, then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "ok"


async def fail(circuit: CircuitBreaker, upstream: Upstream, times: int) -> None:
    for _ in range(times):
        with pytest.raises(Unavailable):
            await circuit(upstream)


async def test_a_circuit_opens_after_consecutive_failures_and_closes_automatically(clock: FakeClock) -> None:
    circuit = CircuitBreaker("test", failure_threshold=3, open_seconds=0.1, clock=clock)
    upstream = Upstream(*[Unavailable("down")] * 4)
    await fail(circuit, upstream, 3)
    assert circuit.is_open
    with pytest.raises(CircuitOpen):
        await circuit(upstream)
    clock.advance(0.09)
    assert circuit.is_open
    assert upstream.calls == 3
    clock.advance(0.02)
    # The trial call fails, and the circuit stays open for another period.
    await fail(circuit, upstream, 2)
    assert upstream.calls == 4
    clock.advance(0.12)
    assert await circuit(upstream) == "ok"
    assert not circuit.is_open


async def test_other_calls_are_refused_during_the_trial_call(clock: FakeClock) -> None:
    circuit = CircuitBreaker("test", failure_threshold=1, open_seconds=0.05, clock=clock)
    await fail(circuit, Upstream(Unavailable("down")), 1)
    clock.advance(0.06)
    waiting = asyncio.Event()

    async def slow() -> str:
        await waiting.wait()
        return "ok"

    trial = asyncio.create_task(circuit(slow))
    await asyncio.sleep(0)
    with pytest.raises(CircuitOpen):
        await circuit(slow)
    waiting.set()
    assert await trial == "ok"
    assert await circuit(slow) == "ok"


async def test_a_cancelled_trial_call_allows_another(clock: FakeClock) -> None:
    circuit = CircuitBreaker("test", failure_threshold=1, open_seconds=0.01, clock=clock)
    await fail(circuit, Upstream(Unavailable("down")), 1)
    clock.advance(0.02)
    trial = asyncio.create_task(circuit(asyncio.Event().wait))
    await asyncio.sleep(0)
    trial.cancel()
    await asyncio.gather(trial, return_exceptions=True)
    assert await circuit(Upstream()) == "ok"


async def test_an_error_that_is_not_a_failure_of_the_upstream_does_not_count() -> None:
    circuit = CircuitBreaker("test", failure_threshold=2)
    for _ in range(5):
        with pytest.raises(Conflict):
            await circuit(Upstream(Conflict("short")))
    assert not circuit.is_open


async def test_any_response_to_the_trial_call_closes_the_circuit(clock: FakeClock) -> None:
    circuit = CircuitBreaker("test", failure_threshold=2, open_seconds=0.1, clock=clock)
    await fail(circuit, Upstream(*[Unavailable("down")] * 2), 2)
    clock.advance(0.2)
    with pytest.raises(Conflict):
        await circuit(Upstream(Conflict("short")))
    # The upstream has responded, so one more failure is the first again.
    await fail(circuit, Upstream(Unavailable("down")), 1)
    assert not circuit.is_open


async def test_an_early_deadline_does_not_open_the_circuit_but_a_slow_upstream_does(
    clock: FakeClock,
) -> None:
    circuit = CircuitBreaker("test", failure_threshold=2, ignore_deadlines_below_seconds=0.05, clock=clock)
    await fail(circuit, Upstream(*[DeadlineExceeded("early")] * 5), 5)
    assert not circuit.is_open

    async def slow() -> str:
        clock.advance(0.06)
        raise DeadlineExceeded("slow")

    for _ in range(2):
        with pytest.raises(DeadlineExceeded):
            await circuit(slow)
    assert circuit.is_open


async def test_a_call_is_retried_until_it_succeeds_or_attempts_run_out() -> None:
    upstream = Upstream(Unavailable("a"), Unavailable("b"))
    assert await retry(upstream, budget=RetryBudget("test")) == "ok"
    assert upstream.calls == 3
    upstream = Upstream(*[Unavailable("x")] * 9)
    with pytest.raises(Unavailable):
        await retry(upstream, budget=RetryBudget("test"))
    assert upstream.calls == 3


async def test_neither_other_errors_nor_refusals_of_the_circuit_are_retried() -> None:
    for error in (Conflict("short"), CircuitOpen("open")):
        upstream = Upstream(error)
        with pytest.raises(type(error)):
            await retry(upstream, budget=RetryBudget("test"))
        assert upstream.calls == 1


async def test_retries_are_limited_to_a_share_of_the_calls() -> None:
    budget = RetryBudget("test", ratio=0.1, max_tokens=5)
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


async def test_a_call_is_not_retried_beyond_its_deadline() -> None:
    upstream = Upstream(*[Unavailable("x")] * 9)
    with context.deadline_in(0):
        with pytest.raises(Unavailable):
            await retry(upstream, budget=RetryBudget("test"))
    assert upstream.calls == 1


def test_a_back_off_never_exceeds_its_maximum() -> None:
    assert all(0 <= backoff(n, max_seconds=0.5) <= 0.5 for n in range(1, 2000))
