"""A pool of HTTP/1.1 keep-alive connections to one upstream, with one request at a time on each.

It is for calls between services, so it has no redirects, cookies, proxies or compression (docs/decisions/0007). The
parser is llhttp (httptools, as in uvicorn). If a response is not valid HTTP, the connection is closed.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast
from urllib.parse import urlsplit

import httptools

from market.kit.http.writes import WriteQueue

# Less than the servers' HttpLimits.keep_alive_seconds (75 s). Otherwise a server could close a connection just as a
# request is sent on it.
_MAX_IDLE_SECONDS = 60.0
# Older connections are replaced, so that new pods of the upstream get requests.
_MAX_AGE_SECONDS = 120.0
# Short, because a dead node does not reply, and the next attempt may reach another pod.
_CONNECT_TIMEOUT_SECONDS = 1.0
_MAX_BODY_BYTES = 64 * 1024 * 1024
_MAX_HEADER_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """A response. The names of `headers` are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class ConnectError(Exception):
    """No connection could be established; nothing was sent."""


class ProtocolError(Exception):
    """The connection ended, or the response was invalid, before the response was complete."""


class ResponseTooLarge(Exception):
    """The response is larger than the caller accepts.

    The rest of its body was not read, and the connection was closed.
    """

    def __init__(self, size: int) -> None:
        super().__init__(f"a response of {size} bytes is larger than the caller accepts")
        self.size = size


# Takes the size of a response's body, and returns whether the caller accepts it. It is called before the body is read.
# If the size is not known in advance, it is called after each part, with the number of bytes read so far.
AcceptSize = Callable[[int], bool]


class Connection(asyncio.Protocol):
    """One connection. After a response, it can be used for another request if `is_reusable`."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[HttpResponse] | None = None
        self._accept_size: AcceptSize | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0
        self._header_bytes = 0
        # True between the headers and the end of a response.
        self._in_body = False
        self._keep_alive = True
        self.opened_at = self.idle_since = self._loop.time()

    @property
    def is_reusable(self) -> bool:
        """Whether another request can be sent on the connection."""
        return self._keep_alive and self._transport is not None and not self._transport.is_closing()

    async def send(self, data: bytes, seconds: float, accept_size: AcceptSize | None = None) -> HttpResponse:
        """Send a request and return its response.

        Raises TimeoutError, ProtocolError or ResponseTooLarge, and closes the connection.
        """
        assert self._transport is not None
        assert self._waiter is None
        waiter: asyncio.Future[HttpResponse] = self._loop.create_future()
        self._waiter = waiter
        self._accept_size = accept_size
        timer = self._loop.call_later(seconds, self._fail, TimeoutError())
        try:
            if self._pool.in_use > 1:
                self._pool.writes.write(self._transport, data)
            else:
                # No other request can be sent together with this one.
                self._transport.write(data)
            return await waiter
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
            self._waiter = self._accept_size = None
            # An idle connection must not keep the last response in memory.
            self._headers, self._body = {}, []

    def close(self) -> None:
        """Close the connection immediately. A request on it fails with ProtocolError."""
        self._keep_alive = False
        if self._transport is not None:
            self._pool.writes.discard(self._transport)
            self._transport.abort()

    def _fail(self, e: Exception) -> None:
        self._keep_alive = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(e)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Cast without a check, because uvloop's transport is not a subclass.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            # The bytes belong to no request, so the connection is unusable.
            self.close()
            return
        if not self._in_body:
            self._header_bytes += len(data)
            if self._header_bytes > _MAX_HEADER_BYTES:
                self._fail(ProtocolError(f"the headers are larger than {_MAX_HEADER_BYTES} bytes"))
                return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            self._fail(ProtocolError(f"the response is not HTTP: {e}"))

    def connection_lost(self, exc: Exception | None) -> None:
        # Without a length, the end of the connection is the end of the response.
        if self._in_body and not {"content-length", "transfer-encoding"} & self._headers.keys() and exc is None:
            self._keep_alive = False
            self.on_message_complete()
        self._fail(ProtocolError("the connection was closed" if exc is None else type(exc).__name__))
        self._pool.remove_idle(self)

    # httptools.HttpResponseParser

    def on_message_begin(self) -> None:
        self._headers, self._body, self._size, self._in_body = {}, [], 0, False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._in_body = True
        self._header_bytes = 0
        length = self._headers.get("content-length", "")
        if length.isdigit():
            self._check_size(int(length))

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._size += len(body)
        if "content-length" not in self._headers:
            self._check_size(self._size)

    def _check_size(self, size: int) -> None:
        if self._waiter is None or self._waiter.done():
            return
        if size > _MAX_BODY_BYTES:
            self._fail(ProtocolError(f"the response is larger than {_MAX_BODY_BYTES} bytes"))
        elif self._accept_size is not None:
            try:
                if not self._accept_size(size):
                    self._fail(ResponseTooLarge(size))
            except Exception as e:
                self._fail(e)

    def on_message_complete(self) -> None:
        self._in_body = False
        status = self._parser.get_status_code()
        if status < 200:
            # An interim response (1xx): the final one follows.
            return
        waiter = self._waiter
        # A second response to one request makes the connection unusable.
        if waiter is None or waiter.done() or not self._parser.should_keep_alive():
            self._keep_alive = False
        if waiter is not None and not waiter.done():
            waiter.set_result(
                HttpResponse(status, self._body[0] if len(self._body) == 1 else b"".join(self._body), self._headers)
            )


class ConnectionPool:
    """The connections to one upstream, opened on demand. Callers wait in FIFO order when all are in use.

    url: scheme, host, port, and a path that precedes every request's path.
    tls: verifies the upstream's certificate; the system's trust store by default.
    connect_timeout_seconds: how long one connection attempt may take.
    """

    def __init__(
        self,
        url: str,
        max_connections: int,
        *,
        tls: ssl.SSLContext | None = None,
        connect_timeout_seconds: float = _CONNECT_TIMEOUT_SECONDS,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is not an HTTP URL")
        self.loop = asyncio.get_running_loop()
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._connect_timeout_seconds = connect_timeout_seconds
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._host_header = f"host: {parts.netloc.rpartition('@')[2]}"
        self._max_connections = max_connections
        self._open = 0
        # The requests that are sent at the end of the current iteration of the event loop.
        self.writes = WriteQueue()
        self._idle: deque[Connection] = deque()
        # The result of each future is a connection, or None if the caller may open a new one.
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()

    async def request(
        self,
        method: str,
        path: str,
        headers: Callable[[], Mapping[str, str]],
        body: bytes | None,
        seconds: float,
        accept_size: AcceptSize | None = None,
    ) -> HttpResponse:
        """Return the response. HEAD is not supported.

        headers: called when the request is sent, because one of the headers contains the remaining time.
        seconds: the total timeout, including the wait for a connection.

        Raises ConnectError, TimeoutError, ProtocolError, ResponseTooLarge, any exception that `accept_size` raises, and
        ValueError for a path or header that contains a line break.
        """
        started = self.loop.time()
        connection = self._take_idle()
        if connection is None:
            async with asyncio.timeout(seconds):
                connection = await self._wait_for_connection()
            seconds = max(0.0, seconds - (self.loop.time() - started))
        try:
            return await connection.send(self._encode(method, path, headers(), body), seconds, accept_size)
        finally:
            self._release(connection)

    @property
    def in_use(self) -> int:
        """The number of connections that are not idle."""
        return self._open - len(self._idle)

    def close(self) -> None:
        """Close the idle connections. Those in use are closed when their request ends."""
        while self._idle:
            self._idle.pop().close()
        self._max_connections = 0

    def _encode(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        lines = [f"{method} {self._prefix}{path} HTTP/1.1", self._host_header]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None:
            lines.append(f"content-length: {len(body)}")
        text = "\r\n".join([*lines, "", ""])
        # A line break in a path or a header would inject another header.
        if text.count("\n") != len(lines) + 1 or text.count("\r") != len(lines) + 1 or " " in path:
            raise ValueError("a path or a header contains a forbidden character")
        return text.encode("latin-1") + (body or b"")

    def _take_idle(self) -> Connection | None:
        """Return the idle connection that was used last, so that the others can expire. Return None if none is idle."""
        while self._idle:
            connection = self._idle.pop()
            if connection.is_reusable and self.loop.time() - connection.idle_since < _MAX_IDLE_SECONDS:
                return connection
            connection.close()
            self._open -= 1
        return None

    async def _wait_for_connection(self) -> Connection:
        if self._open < self._max_connections:
            self._open += 1
            return await self._open_connection()
        waiter: asyncio.Future[Connection | None] = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            connection = await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                # The caller has just got a connection, or may open one. Pass this on to the next caller.
                granted = waiter.result()
                if granted is not None:
                    self._release(granted)
                else:
                    self._release_slot()
            raise
        if connection is not None:
            if connection.is_reusable:
                return connection
            connection.close()
        return await self._open_connection()

    async def _open_connection(self) -> Connection:
        try:
            async with asyncio.timeout(self._connect_timeout_seconds):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except OSError as e:
            # TimeoutError is an OSError without a message.
            self._release_slot()
            raise ConnectError(
                e.strerror or str(e) or f"no connection within {self._connect_timeout_seconds:g} s"
            ) from None
        except BaseException:
            self._release_slot()
            raise
        return connection

    def _release(self, connection: Connection) -> None:
        now = connection.idle_since = self.loop.time()
        if (
            not connection.is_reusable
            or now - connection.opened_at > _MAX_AGE_SECONDS
            or self._open > self._max_connections
        ):
            connection.close()
            self._release_slot()
            return
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(connection)
                return
        self._idle.append(connection)
        if now - self._idle[0].idle_since > _MAX_IDLE_SECONDS:
            self._idle.popleft().close()
            self._open -= 1

    def _release_slot(self) -> None:
        """Let the next waiting caller open a connection in place of one that was closed."""
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return
        self._open -= 1

    def remove_idle(self, connection: Connection) -> None:
        """Remove a connection that was closed, if it is idle."""
        if connection in self._idle:
            self._idle.remove(connection)
            self._open -= 1
