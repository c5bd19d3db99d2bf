"""The memory of requests: counted before it is spent, for each request and for all that are in flight.

A request counts what it is about to hold (its body, its document, the upstreams' responses and what is made of them,
its own response) as an upper bound in bytes, and releases all of it when its response has been sent. A request up to a
size that ordinary requests do not exceed is small, and its bytes come from a part of the budget that large requests
cannot take. Large requests share the rest, and wait for each other in FIFO order.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextvars import ContextVar

from market.graphql.config import Memory
from market.graphql.metrics import MEMORY_HELD, MEMORY_REFUSALS
from market.kit import context
from market.kit.errors import BadInput, Overloaded

# The maximum wait for memory, unless the request's deadline is earlier.
MAX_WAIT_SECONDS = 10.0


class MemoryBudget:
    """The bytes that all requests in flight may hold together."""

    def __init__(self, config: Memory) -> None:
        self.config = config
        self.small = 0
        self.large = 0
        self._waiters: deque[_Waiter] = deque()
        MEMORY_HELD.labels("small").set_function(lambda: self.small)
        MEMORY_HELD.labels("large").set_function(lambda: self.large)

    def request(self) -> RequestMemory:
        """Return the memory of a new request."""
        return RequestMemory(self)

    def split(self, request: RequestMemory, size: int) -> tuple[int, int]:
        """Return how many bytes would come from the small requests' part, and how many from the large requests'."""
        free = self.config.small_requests_bytes - self.small
        small = max(0, min(size, self.config.small_request_bytes - request.small, free))
        return small, size - small

    def has(self, large: int) -> bool:
        """Return whether this many bytes of the large requests' part are free."""
        return self.large + large <= self.config.large_requests_bytes

    def can_take(self, large: int) -> bool:
        """Return whether this many bytes of the large requests' part are free, and no other request waits for them."""
        return not large or (not self._waiters and self.has(large))

    async def wait(self, request: RequestMemory, size: int) -> None:
        """Wait until the bytes are free, and take them for the request. Raises Overloaded."""
        holds = request.large > 0
        # Two requests that hold memory and wait for each other's would deadlock.
        if holds and any(
            w.request.large > 0 and w.request is not request and not w.granted.cancelled() for w in self._waiters
        ):
            MEMORY_REFUSALS.inc()
            raise Overloaded("too many large requests in flight")
        waiter = _Waiter(request, size)
        if holds:
            self._waiters.appendleft(waiter)
        else:
            self._waiters.append(waiter)
        self.grant()
        try:
            async with asyncio.timeout(context.remaining(MAX_WAIT_SECONDS)):
                await waiter.granted
        except BaseException as e:
            if waiter.granted.done() and not waiter.granted.cancelled():
                # Granted and cancelled at the same moment.
                request.release(size)
            else:
                waiter.granted.cancel()
                self.grant()
            if isinstance(e, TimeoutError):
                MEMORY_REFUSALS.inc()
                raise Overloaded("too many large requests in flight") from None
            raise

    def grant(self) -> None:
        """Grant free bytes to the requests that wait for them."""
        while self._waiters:
            waiter = self._waiters[0]
            if waiter.granted.cancelled():
                self._waiters.popleft()
                continue
            small, large = self.split(waiter.request, waiter.size)
            if large and not self.has(large):
                return
            self._waiters.popleft()
            waiter.request.add(small, large)
            waiter.granted.set_result(None)


class _Waiter:
    def __init__(self, request: RequestMemory, size: int) -> None:
        self.request = request
        self.size = size
        self.granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class RequestMemory:
    """The bytes that one request holds: `small` and `large` by the part of the budget that they come from."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._waiting = 0
        self.small = 0
        self.large = 0

    @property
    def held(self) -> int:
        return self.small + self.large

    def try_take(self, size: int) -> bool:
        """Count more bytes if they are free now. Raises BadInput if they exceed the limit of one request."""
        limit = self._budget.config.request_bytes
        total = self.held + self._waiting + size
        if total > limit:
            MEMORY_REFUSALS.inc()
            reason = (
                f"the request needs up to {total} bytes of memory, and may have {limit}: select fewer items or fields"
            )
            raise BadInput("query", reason)
        small, large = self._budget.split(self, size)
        if not self._budget.can_take(large):
            return False
        self.add(small, large)
        return True

    def take_if_free(self, size: int) -> bool:
        """Count more bytes if the request may have them and they are free now, and return whether they are counted."""
        may_have = self.held + self._waiting + size <= self._budget.config.request_bytes
        return may_have and self.try_take(size)

    async def take(self, size: int) -> None:
        """Count more bytes; wait until they are free.

        Raises BadInput if the limit of one request is exceeded, Overloaded if they are not free in time.
        """
        if self.try_take(size):
            return
        self._waiting += size
        try:
            await self._budget.wait(self, size)
        finally:
            self._waiting -= size

    def add(self, small: int, large: int) -> None:
        """Count bytes that the budget has granted."""
        self.small += small
        self.large += large
        self._budget.small += small
        self._budget.large += large

    def release(self, size: int) -> None:
        """Release up to this many bytes, first those of the large requests' part."""
        large = min(size, self.large)
        small = min(size - large, self.small)
        self.add(-small, -large)
        self._budget.grant()

    def close(self) -> None:
        """Release everything."""
        self.release(self.held)


class ResponseCharge:
    """Counts the upstreams' responses for a request. Each byte counts `factor` times, for the objects made of it."""

    def __init__(self, memory: RequestMemory, factor: float) -> None:
        self.memory = memory
        self.factor = factor


# The charge of the current calls to upstreams. None: they are not counted.
charge: ContextVar[ResponseCharge | None] = ContextVar("charge", default=None)


class ResponseAdmission:
    """Decides by its size whether the response to a call is read. A retry is charged only for the excess."""

    def __init__(self, response_charge: ResponseCharge) -> None:
        self._charge = response_charge
        self._paid = 0

    def __call__(self, size: int) -> bool:
        """Count the response if its bytes are free now. Raises BadInput if they exceed the request's limit."""
        cost = self._cost(size)
        if cost > 0 and not self._charge.memory.try_take(cost):
            return False
        self._paid += max(0, cost)
        return True

    async def prepay(self, size: int) -> None:
        """Wait until a response of this size can be read. Raises BadInput, Overloaded."""
        cost = self._cost(size)
        if cost > 0:
            await self._charge.memory.take(cost)
            self._paid += cost

    def _cost(self, size: int) -> int:
        return int(size * self._charge.factor) - self._paid


def json_cost(text: bytes) -> int:
    """Return an upper bound of the memory of decoded JSON, and of the input objects that are made of it."""
    # Characters may become four bytes wide; each value, key and container is an object, copied when it is coerced, and
    # when it is written for REST.
    return 6 * len(text) + 250 * sum(map(text.count, (b",", b"[", b"{", b":")))
