"""Processes messages concurrently. Messages with the same key are processed one at a time, by ascending offset.

The messages with the same key are in one queue. A free worker takes the first message of the next queue that is ready.
A message that waits for a retry blocks only its own queue. Mail domains take turns.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Iterable
from typing import Protocol

from market.kit.process import logs
from market.kit.process.tasks import supervise
from market.notifications.consumer.memory import MemoryBudget
from market.notifications.consumer.offsets import OffsetTracker
from market.notifications.consumer.ready import ReadyItems
from market.notifications.domain import MailServerUnavailable, Message, PendingMessage

log = logs.get_logger("dispatcher")

# Makes one attempt at processing a message. Returns None if the message is settled, otherwise the seconds until the
# next attempt.
Handler = Callable[[PendingMessage], Awaitable[float | None]]
# Returns the domain of a message's recipient, or an empty string.
DomainOf = Callable[[Message], str]


class Availability(Protocol):
    """Whether the mail server is available."""

    @property
    def available(self) -> bool:
        """Whether the mail server is available, as far as is known."""

    async def wait_until_available(self) -> None:
        """Wait until the mail server is available."""


class KeyQueue:
    """The unsettled messages with the same key in the same partition, by ascending offset."""

    __slots__ = ("attempt_finished", "domain", "key", "messages", "revoked", "timer", "tracker")

    def __init__(self, key: Hashable, domain: str, tracker: OffsetTracker) -> None:
        self.key = key
        # The mail domain of the first message. The other messages usually have the same domain, because messages with
        # the same key are about the same order.
        self.domain = domain
        self.tracker = tracker
        self.messages: deque[PendingMessage] = deque()
        # Set while the first message waits for a retry.
        self.timer: asyncio.TimerHandle | None = None
        # Set when the attempt at the first message has finished. None while that message is not in flight.
        self.attempt_finished: asyncio.Event | None = None
        self.revoked = False


class Dispatcher:
    """Queues the unsettled messages, and passes them to the handler. Must be constructed inside a running event loop.

    max_concurrency: how many messages may be in flight at the same time
    max_per_domain: how many of them may be for recipients in one domain
    max_waiting: how many messages may wait for a retry at the same time
    """

    def __init__(
        self,
        handler: Handler,
        domain_of: DomainOf,
        mail_server: Availability,
        memory: MemoryBudget,
        *,
        max_concurrency: int,
        max_per_domain: int,
        max_waiting: int,
    ) -> None:
        self._handler = handler
        self._domain_of = domain_of
        self._mail_server = mail_server
        self._memory = memory
        self._max_waiting = max_waiting
        self._waiting = 0
        # Seconds of time.monotonic(); see seconds_without_progress.
        self._progress_at = time.monotonic()
        self._queues: dict[Hashable, KeyQueue] = {}
        self._ready: ReadyItems[KeyQueue] = ReadyItems(max_per_domain)
        loop = asyncio.get_running_loop()
        self._workers = [loop.create_task(supervise("mail-worker", self._work)) for _ in range(max_concurrency)]

    def submit(self, messages: Iterable[tuple[OffsetTracker, PendingMessage]]) -> None:
        """Queue messages. The caller must have acquired memory for each of them; the dispatcher releases it."""
        for tracker, pending in messages:
            message = pending.message
            # The key contains the tracker instead of the partition, so that a partition that is assigned again does not
            # share queues with its earlier assignment. A message without a key has a queue of its own.
            key = (id(tracker), pending.offset if message.key is None else message.key)
            queue = self._queues.get(key)
            if queue is None:
                queue = self._queues[key] = KeyQueue(key, self._domain_of(message), tracker)
                self._make_ready(queue)
            queue.messages.append(pending)

    def seconds_without_progress(self) -> float:
        """Return the seconds since an attempt last finished.

        Times without any message that is ready or in flight do not count, nor do outages of the mail server.
        """
        if self._ready.idle or not self._mail_server.available:
            self._progress_at = time.monotonic()
        return time.monotonic() - self._progress_at

    async def revoke(self, trackers: Iterable[OffsetTracker], timeout_seconds: float) -> None:
        """Drop the partitions' queued messages, and wait up to `timeout_seconds` for those in flight."""
        revoked = set(map(id, trackers))
        in_flight = []
        for queue in [queue for queue in self._queues.values() if id(queue.tracker) in revoked]:
            if queue.attempt_finished is not None:
                in_flight.append(queue.attempt_finished)
            self._drop(queue)
        if in_flight and timeout_seconds > 0:
            waiting = [asyncio.ensure_future(finished.wait()) for finished in in_flight]
            _, late = await asyncio.wait(waiting, timeout=timeout_seconds)
            for task in late:
                task.cancel()
            if late:
                log.warning("messages in flight not finished in time, mails may be repeated", messages=len(late))

    async def close(self) -> None:
        """Stop the workers, and cancel the messages in flight."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)

    def _drop(self, queue: KeyQueue) -> None:
        queue.revoked = True
        del self._queues[queue.key]
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
            self._waiting -= 1
        # The memory of a message in flight is released when its attempt has finished.
        in_flight = queue.messages.popleft() if queue.attempt_finished is not None else None
        for pending in queue.messages:
            self._memory.release(pending.message.size)
        queue.messages.clear()
        if in_flight is not None:
            queue.messages.append(in_flight)

    async def _work(self) -> None:
        while True:
            queue = await self._ready.get()
            try:
                await self._mail_server.wait_until_available()
                if not queue.revoked:
                    await self._process_first(queue)
            finally:
                self._ready.release(queue.domain)
                self._progress_at = time.monotonic()

    async def _process_first(self, queue: KeyQueue) -> None:
        pending = queue.messages[0]
        pending.may_wait_in_memory = self._waiting < self._max_waiting
        queue.attempt_finished = asyncio.Event()
        delay: float | None = 0.0
        try:
            delay = await self._handler(pending)
        except MailServerUnavailable:
            # The queue is ready again immediately, because the workers wait until the mail server is available.
            pass
        except Exception:
            log.exception("handler failed")
            delay = 1.0
        finally:
            queue.attempt_finished.set()
            queue.attempt_finished = None
        settled = delay is None
        if settled:
            queue.messages.popleft()
            queue.tracker.settle(pending.offset)
        if settled or queue.revoked:
            self._memory.release(pending.message.size)
        if queue.revoked:
            return
        if not queue.messages:
            del self._queues[queue.key]
        elif delay:
            self._waiting += 1
            queue.timer = asyncio.get_running_loop().call_later(delay, self._retry, queue)
        else:
            self._make_ready(queue)

    def _retry(self, queue: KeyQueue) -> None:
        queue.timer = None
        self._waiting -= 1
        self._make_ready(queue)

    def _make_ready(self, queue: KeyQueue) -> None:
        if self._ready.idle:
            self._progress_at = time.monotonic()
        self._ready.put(queue.domain, queue)
