"""How much is held in memory between Kafka and the mail server."""

from __future__ import annotations

from threading import Lock

from market.notifications import metrics


class MemoryBudget:
    """Messages and bytes in flight. Exhausted at either limit, until both are down to a half. Thread-safe."""

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._messages = self._bytes = 0
        self._lock = Lock()
        self._exhausted = False

    def acquire(self, size: int) -> None:
        """Count a message of `size` bytes. Never blocks: a message that was read has to be held."""
        self._change(1, size)

    def release(self, size: int) -> None:
        """Count a message of `size` bytes as gone."""
        self._change(-1, -size)

    def _change(self, messages: int, size: int) -> None:
        with self._lock:
            self._messages += messages
            self._bytes += size
            used = max(self._messages / self._max_messages, self._bytes / self._max_bytes)
            # Not toggled at every message.
            self._exhausted = used >= 1 or (self._exhausted and used > 0.5)
            metrics.IN_FLIGHT.set(self._messages)
            metrics.IN_FLIGHT_BYTES.set(self._bytes)

    @property
    def exhausted(self) -> bool:
        return self._exhausted
