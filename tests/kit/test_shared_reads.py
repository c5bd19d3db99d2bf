"""Shared reads: concurrent callers share a call, and none gets a result that was read before it called."""

from __future__ import annotations

import asyncio

import pytest

from market.kit import context
from market.kit.batching import SharedReads
from market.kit.errors import DeadlineExceeded


class Register:
    """Values that are read by name. A read returns the value that it found at its start, once `release` is called."""

    def __init__(self) -> None:
        self.values = {"a": 1, "b": 1}
        self.started: list[str] = []
        self._gates: list[asyncio.Future[None]] = []
        self._starts: asyncio.Queue[str] = asyncio.Queue()

    async def read(self, name: str) -> int:
        value = self.values[name]
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._gates.append(gate)
        self.started.append(name)
        self._starts.put_nowait(name)
        await gate
        return value

    async def next_start(self) -> str:
        return await self._starts.get()

    def release(self, number: int, error: Exception | None = None) -> None:
        """End the read that has started as the `number`th, with an error if there is one."""
        if error is None:
            self._gates[number].set_result(None)
        else:
            self._gates[number].set_exception(error)


async def _call(reads: SharedReads[str, int], name: str) -> asyncio.Task[int]:
    """Start a call, and return it once it waits."""
    waits = asyncio.Event()

    async def call() -> int:
        waits.set()
        return await reads(name)

    task = asyncio.create_task(call())
    await waits.wait()
    return task


async def test_callers_that_come_during_a_read_share_the_next_one_and_see_what_was_written_meanwhile() -> None:
    register = Register()
    reads: SharedReads[str, int] = SharedReads(register.read, name="test")
    first = await _call(reads, "a")
    await register.next_start()
    register.values["a"] = 2
    later = [await _call(reads, "a") for _ in range(3)]
    register.release(0)
    assert await first == 1
    await register.next_start()
    register.release(1)
    assert await asyncio.gather(*later) == [2, 2, 2]
    assert register.started == ["a", "a"]


async def test_different_items_do_not_wait_for_each_other() -> None:
    register = Register()
    reads: SharedReads[str, int] = SharedReads(register.read, name="test")
    slow = await _call(reads, "a")
    await register.next_start()
    quick = await _call(reads, "b")
    assert await register.next_start() == "b"
    register.release(1)
    assert await quick == 1
    assert not slow.done()
    register.release(0)
    assert await slow == 1


async def test_an_error_reaches_all_callers_of_the_read_and_the_next_caller_reads_again() -> None:
    register = Register()
    reads: SharedReads[str, int] = SharedReads(register.read, name="test")
    first = await _call(reads, "a")
    later = [await _call(reads, "a") for _ in range(2)]
    register.release(0, LookupError("first"))
    with pytest.raises(LookupError, match="first"):
        await first
    await register.next_start()
    await register.next_start()
    register.release(1, LookupError("second"))
    results = await asyncio.gather(*later, return_exceptions=True)
    assert [repr(result) for result in results] == ["LookupError('second')"] * 2
    again = await _call(reads, "a")
    await register.next_start()
    register.release(2)
    assert await again == 1


async def test_a_call_is_pending_until_its_read_begins() -> None:
    register = Register()
    reads: SharedReads[str, int] = SharedReads(register.read, name="test")
    assert not reads.has_pending("a")
    first = await _call(reads, "a")
    # A caller that is alone reads at once.
    assert register.started == ["a"]
    assert not reads.has_pending("a")
    later = await _call(reads, "a")
    assert reads.has_pending("a")
    assert not reads.has_pending("b")
    register.release(0)
    await register.next_start()
    await register.next_start()
    assert not reads.has_pending("a")
    last = await _call(reads, "a")
    assert reads.has_pending("a")
    register.release(1)
    await register.next_start()
    register.release(2)
    assert await asyncio.gather(first, later, last) == [1, 1, 1]


async def test_a_caller_that_is_alone_reads_in_its_own_context_and_others_in_that_of_a_batch() -> None:
    seen: list[str] = []
    gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def read(name: str) -> str:
        seen.append(context.request_id.get())
        await gate
        return name

    reads: SharedReads[str, str] = SharedReads(read, name="test")
    callers = []
    for request_id in ("first", "second", "third"):
        context.request_id.set(request_id)
        callers.append(asyncio.create_task(reads("a")))
    await asyncio.sleep(0)
    gate.set_result(None)
    assert await asyncio.gather(*callers) == ["a", "a", "a"]
    assert seen == ["first", ""]


@pytest.mark.parametrize("cancelled", [0, 1])
async def test_a_cancelled_caller_affects_no_other_caller(cancelled: int) -> None:
    register = Register()
    reads: SharedReads[str, int] = SharedReads(register.read, name="test")
    callers = [await _call(reads, "a") for _ in range(3)]
    register.values["a"] = 2
    callers[cancelled].cancel()
    await asyncio.wait([callers[cancelled]])
    if cancelled == 1:
        register.release(0)
        assert await callers[0] == 1
    await register.next_start()
    await register.next_start()
    register.release(1)
    assert await callers[2] == 2
    assert register.started == ["a", "a"]
    assert reads.items == 0


async def test_a_caller_whose_deadline_passes_does_not_wait_for_a_shared_read() -> None:
    register = Register()
    reads: SharedReads[str, int] = SharedReads(register.read, name="test")
    first = await _call(reads, "a")
    with context.deadline_in(0.0), pytest.raises(DeadlineExceeded):
        await reads("a")
    register.release(0)
    assert await first == 1
    assert register.started == ["a"]


async def test_nothing_is_kept_for_an_item_that_nobody_waits_for() -> None:
    register = Register()
    reads: SharedReads[str, int] = SharedReads(register.read, name="test")
    callers = [await _call(reads, name) for name in ("a", "a", "b")]
    assert reads.items == 2
    for _ in range(2):
        await register.next_start()
    register.release(0)
    register.release(1)
    await register.next_start()
    register.release(2)
    assert await asyncio.gather(*callers) == [1, 1, 1]
    assert reads.items == 0
    assert not reads.has_pending("a")
