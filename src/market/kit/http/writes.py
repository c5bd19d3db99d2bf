"""Collects the writes to HTTP connections, and sends them at the end of each iteration of the event loop.

uvloop sends each write immediately. A response consists of two writes, its headers and its body, so sending it would
take two system calls and wake the receiver twice. If several requests shared a batch, their responses are ready at the
same time. Sent together, they arrive together, so the client's next requests share a batch again (docs/decisions/0005).

A lone response or request is sent as soon as it is complete, because the end of the iteration would come about 0.1 ms
later on an idle machine.
"""

from __future__ import annotations

import asyncio
from typing import Any

from market.kit.process import logs

log = logs.get_logger("http")

# More data than this is sent immediately, so that flow control notices a slow client.
_MAX_BYTES = 65536


class WriteQueue:
    """The data that was written to connections in the current iteration of the event loop."""

    def __init__(self) -> None:
        # By connection, its data in the order of the writes.
        self._parts: dict[asyncio.WriteTransport, list[bytes]] = {}

    def write(self, transport: asyncio.WriteTransport, data: bytes) -> None:
        """Send the data at the end of the iteration, after the connection's earlier data."""
        parts = self._parts.get(transport)
        if parts is None:
            if not self._parts:
                asyncio.get_running_loop().call_soon(self._flush_all)
            self._parts[transport] = [data]
        else:
            parts.append(data)
        if len(data) > _MAX_BYTES or (parts is not None and self.size(transport) > _MAX_BYTES):
            self.flush(transport)

    def size(self, transport: asyncio.WriteTransport) -> int:
        """Return the number of the connection's bytes in the queue."""
        return sum(map(len, self._parts.get(transport, ())))

    def flush(self, transport: asyncio.WriteTransport) -> None:
        """Send the connection's data immediately."""
        _send(transport, self._parts.pop(transport, []))

    def discard(self, transport: asyncio.WriteTransport) -> None:
        """Drop the connection's data."""
        self._parts.pop(transport, None)

    def _flush_all(self) -> None:
        written, self._parts = self._parts, {}
        for transport, parts in written.items():
            try:
                _send(transport, parts)
            except Exception:
                # An error in one connection must not affect the others.
                log.exception("write failed")
                transport.abort()


def _send(transport: asyncio.WriteTransport, parts: list[bytes]) -> None:
    if len(parts) == 1:
        transport.write(parts[0])
    elif parts:
        transport.writelines(parts)


class QueuedTransport(asyncio.Transport):
    """Wraps a transport, so that writes go through a WriteQueue."""

    def __init__(self, transport: asyncio.Transport, queue: WriteQueue) -> None:
        super().__init__()
        self._transport = transport
        self._queue = queue

    def write(self, data: Any) -> None:
        self._queue.write(self._transport, data)

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def flush(self) -> None:
        """Send what was written so far immediately."""
        self._queue.flush(self._transport)

    def write_eof(self) -> None:
        self._queue.flush(self._transport)
        self._transport.write_eof()

    def can_write_eof(self) -> bool:
        return self._transport.can_write_eof()

    def close(self) -> None:
        """Close the connection after sending all data."""
        self._queue.flush(self._transport)
        self._transport.close()

    def abort(self) -> None:
        """Close the connection immediately, and drop unsent data."""
        self._queue.discard(self._transport)
        self._transport.abort()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def get_write_buffer_size(self) -> int:
        return self._transport.get_write_buffer_size() + self._queue.size(self._transport)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._transport.get_write_buffer_limits()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._transport.set_write_buffer_limits(high, low)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._transport.get_extra_info(name, default)

    def is_reading(self) -> bool:
        return self._transport.is_reading()

    def pause_reading(self) -> None:
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._transport.resume_reading()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._transport.set_protocol(protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._transport.get_protocol()
