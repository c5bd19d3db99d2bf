"""All connections of one HTTP server, and the limits that they share."""

from __future__ import annotations

import resource
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge

from market.kit.config import HttpLimits
from market.kit.http.writes import WriteQueue
from market.kit.process import logs

if TYPE_CHECKING:
    from market.kit.http.protocol import HttpProtocol

log = logs.get_logger("http")

CONNECTIONS = Gauge("market_http_connections", "Open HTTP connections.")
CUT_OFF = Counter("market_http_connections_cut_off_total", "HTTP connections ended by a limit.", ["limit"])
REFUSED = Counter(
    "market_http_requests_refused_total", "HTTP requests refused before they reached a route.", ["status"]
)

# File descriptors for other purposes than HTTP connections: stores, brokers, upstreams, the admin port.
_RESERVED_DESCRIPTORS = 256
# A client's read rate is measured over at least this time. Otherwise a client that has just fallen behind would seem to
# be the slowest.
_MIN_MEASURED_SECONDS = 0.5


class Connections:
    """Limits the number of connections, and the memory for incomplete requests and unsent responses.

    A connection waits for its client if it is idle or its request is incomplete.
    - If there are too many connections, the one that has waited longest for its client is closed.
    - If incomplete requests take too much memory, the connection with the oldest one is closed.
    - If unsent responses take too much memory, the connection whose client reads slowest is closed.
    """

    def __init__(self, limits: HttpLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.clock = clock
        # The responses that are sent at the end of the current iteration of the event loop.
        self.writes = WriteQueue()
        # When the next sweep is due. A timeout is enforced at most 1 s late, and at most a quarter of the shortest
        # timeout late.
        self._sweep_at = 0.0
        self._sweep_seconds = min(
            1.0,
            min(
                limits.header_timeout_seconds,
                limits.body_timeout_seconds,
                limits.keep_alive_seconds,
                limits.send_timeout_seconds,
            )
            / 4,
        )
        self._max_connections = min(limits.max_connections, max(1, _raise_open_files_limit() - _RESERVED_DESCRIPTORS))
        self._open: set[HttpProtocol] = set()
        # The connections that wait for their client. The one that has waited longest is first.
        self.waiting: OrderedDict[HttpProtocol, None] = OrderedDict()
        # The number of bytes received of each connection's incomplete request. The oldest request is first.
        self._receiving: OrderedDict[HttpProtocol, int] = OrderedDict()
        self._receive_buffer_bytes = 0
        # The connections whose client has fallen behind in reading a response. They stay here until all of it is sent.
        self._sending: set[HttpProtocol] = set()

    def add(self, connection: HttpProtocol) -> bool:
        """Add a connection. At the limit, close the one that has waited longest; return False if none is waiting."""
        if len(self._open) >= self._max_connections:
            if not self.waiting:
                return False
            self._cut_off(next(iter(self.waiting)), "connections")
        self._open.add(connection)
        self.waiting[connection] = None
        CONNECTIONS.inc()
        return True

    def remove(self, connection: HttpProtocol) -> None:
        """Remove a connection that has ended, if it was added."""
        if connection in self._open:
            self._open.remove(connection)
            CONNECTIONS.dec()
        self.waiting.pop(connection, None)
        self.clear_received_bytes(connection)
        self._sending.discard(connection)

    @property
    def running(self) -> int:
        """The number of connections that do not wait for their client: those that run a request or are closing."""
        return len(self._open) - len(self.waiting)

    def add_received_bytes(self, connection: HttpProtocol, received_bytes: int) -> None:
        """Count bytes of an incomplete request.

        If all connections together exceed the limit, close those whose incomplete requests are the oldest.
        """
        self._receiving[connection] = self._receiving.get(connection, 0) + received_bytes
        self._receive_buffer_bytes += received_bytes
        while self._receive_buffer_bytes > self.limits.max_receive_buffer_bytes and len(self._receiving) > 1:
            self._cut_off(next(iter(self._receiving)), "receive_buffer_bytes")

    def clear_received_bytes(self, connection: HttpProtocol) -> None:
        """Stop counting the bytes of the connection's request: it is complete, or was refused."""
        if self._receiving:
            self._receive_buffer_bytes -= self._receiving.pop(connection, 0)

    def writing_paused(self, connection: HttpProtocol) -> None:
        """Record that the connection's client has fallen behind. Close the slowest others if a limit is exceeded."""
        self._sending.add(connection)
        buffered = {c: c.buffered_response_bytes for c in self._sending}
        total = sum(buffered.values())
        if total <= self.limits.max_send_buffer_bytes:
            return
        now = self.clock()
        others = (c for c in self._sending if c is not connection)
        for slowest in sorted(others, key=lambda c: c.send_rate(now, _MIN_MEASURED_SECONDS)):
            self._cut_off(slowest, "send_buffer_bytes")
            total -= buffered[slowest]
            if total <= self.limits.max_send_buffer_bytes:
                return

    def writing_resumed(self, connection: HttpProtocol) -> None:
        """Record that the connection's client has caught up."""
        if not connection.unsent_bytes:
            self._sending.discard(connection)

    def sweep(self) -> None:
        """Close connections that have exceeded a timeout. Call it ten times a second or more; most calls do nothing."""
        now = self.clock()
        if now < self._sweep_at:
            return
        self._sweep_at = now + self._sweep_seconds
        self._sending = {connection for connection in self._sending if connection.unsent_bytes}
        for connection in list(self._open):
            try:
                limit = connection.enforce_deadlines(now)
            except Exception:
                # An error in one connection must not stop enforcement for the others.
                log.exception("connection check failed")
                connection.transport.abort()
                limit = None
            if limit is not None:
                CUT_OFF.labels(limit).inc()

    def _cut_off(self, connection: HttpProtocol, limit: str) -> None:
        CUT_OFF.labels(limit).inc()
        self.remove(connection)
        connection.cut_off()


def _raise_open_files_limit() -> int:
    """Raise the soft limit on open files to the hard limit, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError):
            log.warning("cannot raise the open file limit", limit=soft)
    return soft if soft != resource.RLIM_INFINITY else 1 << 30
