"""Limits the messages held in memory."""

from __future__ import annotations

from threading import Lock

from market.notifications import metrics


class MemoryBudget:
    """Counts the messages held in memory, and their bytes. Thread-safe.

    The budget becomes exhausted when one of the two counts reaches its limit. It stays exhausted until both counts have
    fallen to half of their limits.
    """

    def __init__(self, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._messages = self._bytes = 0
        self._lock = Lock()
        self._exhausted = False

    def acquire(self, size: int) -> None:
        """Add a message of `size` bytes.

        Does not wait: the message has been read already, so it is counted even if that exceeds a limit.
        """
        self._change(1, size)

    def release(self, size: int) -> None:
        """Subtract a message of `size` bytes."""
        self._change(-1, -size)

    def _change(self, messages: int, size: int) -> None:
        with self._lock:
            self._messages += messages
            self._bytes += size
            used = max(self._messages / self._max_messages, self._bytes / self._max_bytes)
            # Two thresholds, so that partitions are not paused and resumed with every message.
            self._exhausted = used >= 1 or (self._exhausted and used > 0.5)
            metrics.UNSETTLED.set(self._messages)
            metrics.UNSETTLED_BYTES.set(self._bytes)

    @property
    def exhausted(self) -> bool:
        return self._exhausted
