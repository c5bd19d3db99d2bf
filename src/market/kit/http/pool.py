"""HTTP/1.1 to one neighbour: kept-alive connections, one request at a time on each.

A small client for services that talk to services: no redirects, cookies, proxies or compression. Parsing is
llhttp (httptools, uvicorn's parser). What is wrong with the neighbour's answer ends its connection.
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

# Uvicorn closes after 75 s without a request: below that we do not meet its closing.
_IDLE_SECONDS = 60.0
# Then a new connection is made, so that new copies of the neighbour get their share.
_AGE_SECONDS = 120.0
# A pod whose node is gone does not even refuse; another connection may lead to another pod.
_CONNECT_SECONDS = 1.0
_MOST_BODY = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What came back. The names of `headers` are in lower case."""

    status: int
    body: bytes
    headers: Mapping[str, str]


class ConnectError(Exception):
    """No connection could be made: nothing was sent."""


class ProtocolError(Exception):
    """The connection ended, or went wrong, before the answer was whole."""


class Connection(asyncio.Protocol):
    """One connection. It may be used again after an answer while `reusable`."""

    def __init__(self, pool: ConnectionPool) -> None:
        self._pool = pool
        self._loop = pool.loop
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[HttpResponse] | None = None
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0
        # Within an answer whose headers are there.
        self._begun = False
        self.reusable = True
        self.born = self.idle_since = self._loop.time()

    @property
    def rests_well(self) -> bool:
        """Whether it can take another request."""
        return self.reusable and self._transport is not None and not self._transport.is_closing()

    async def ask(self, data: bytes, seconds: float) -> HttpResponse:
        """Sends a request and gives its answer. Raises TimeoutError, ProtocolError; then the connection is no more."""
        assert self._transport is not None
        assert self._waiter is None
        waiter: asyncio.Future[HttpResponse] = self._loop.create_future()
        self._waiter = waiter
        timer = self._loop.call_later(seconds, self._fail, TimeoutError())
        try:
            self._transport.write(data)
            return await waiter
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
            self._waiter = None

    def close(self) -> None:
        self.reusable = False
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, e: Exception) -> None:
        self.reusable = False
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(e)

    # asyncio calls these.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked: uvloop's is no subclass of it.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if self._waiter is None:
            # Nobody asked.
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as e:
            self._fail(ProtocolError(f"the answer is not HTTP: {e}"))

    def connection_lost(self, exc: Exception | None) -> None:
        # An answer without a length ends with its connection.
        if self._begun and not {"content-length", "transfer-encoding"} & self._headers.keys() and exc is None:
            self.reusable = False
            self.on_message_complete()
        self._fail(ProtocolError("the connection was closed" if exc is None else type(exc).__name__))
        self._pool.lost(self)

    # The parser calls these.

    def on_message_begin(self) -> None:
        self._headers, self._body, self._size, self._begun = {}, [], 0, False

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._begun = True

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._size += len(body)
        if self._size > _MOST_BODY:
            self._fail(ProtocolError(f"the answer has more than {_MOST_BODY} bytes"))

    def on_message_complete(self) -> None:
        self._begun = False
        status = self._parser.get_status_code()
        if status < 200:
            # An interim answer: the real one follows.
            return
        waiter = self._waiter
        # A second answer to one request is not to be trusted further.
        if waiter is None or waiter.done() or not self._parser.should_keep_alive():
            self.reusable = False
        if waiter is not None and not waiter.done():
            waiter.set_result(
                HttpResponse(status, self._body[0] if len(self._body) == 1 else b"".join(self._body), self._headers)
            )


class ConnectionPool:
    """The connections to one neighbour, at most `most`; who finds none free waits in line."""

    def __init__(self, url: str, most: int) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url} is not the address of an HTTP server")
        self.loop = asyncio.get_running_loop()
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._host = parts.hostname
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._head = f" HTTP/1.1\r\nhost: {parts.netloc.rpartition('@')[2]}\r\n"
        self._most = most
        self._open = 0
        self._idle: deque[Connection] = deque()
        # Each is given a connection, or None: the right to open one.
        self._line: deque[asyncio.Future[Connection | None]] = deque()

    async def request(
        self, method: str, path: str, headers: Callable[[], Mapping[str, str]], body: bytes | None, seconds: float
    ) -> HttpResponse:
        """The answer to one request; `seconds` are for all of it, the wait for a connection included.

        The headers are asked for when it is sent, since one of them says how much time is left. Not for HEAD.
        Raises TimeoutError, ConnectError, ProtocolError.
        """
        started = self.loop.time()
        connection = self._rested()
        if connection is None:
            async with asyncio.timeout(seconds):
                connection = await self._next()
            seconds = max(0.0, seconds - (self.loop.time() - started))
        try:
            return await connection.ask(self._written(method, path, headers(), body), seconds)
        finally:
            self._give_back(connection)

    def close(self) -> None:
        """Ends what rests; what is under way ends by its caller's time."""
        while self._idle:
            self._idle.pop().close()
        self._most = 0

    def _written(self, method: str, path: str, headers: Mapping[str, str], body: bytes | None) -> bytes:
        lines = [f"{method} {self._prefix}{path}{self._head}"]
        lines += [f"{name}: {value}\r\n" for name, value in headers.items()]
        if body is not None:
            lines.append(f"content-length: {len(body)}\r\n")
        text = "".join(lines)
        # A line break in a path or a value would begin a header of its own. The first line has its end and the host's.
        if text.count("\n") != len(lines) + 1 or text.count("\r") != len(lines) + 1 or " " in path:
            raise ValueError("a path or a header holds what it must not")
        return text.encode("latin-1") + b"\r\n" + (body or b"")

    def _rested(self) -> Connection | None:
        """A connection that rests, the one used last: the others may grow old."""
        while self._idle:
            connection = self._idle.pop()
            if connection.rests_well and self.loop.time() - connection.idle_since < _IDLE_SECONDS:
                return connection
            connection.close()
            self._open -= 1
        return None

    async def _next(self) -> Connection:
        if self._open < self._most:
            self._open += 1
            return await self._connected()
        turn: asyncio.Future[Connection | None] = self.loop.create_future()
        self._line.append(turn)
        try:
            connection = await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # It was given something in the same moment: that goes to the next.
                given = turn.result()
                self._give_back(given) if given is not None else self._freed()
            raise
        if connection is not None:
            if connection.rests_well:
                return connection
            connection.close()
        return await self._connected()

    async def _connected(self) -> Connection:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                _, connection = await self.loop.create_connection(
                    lambda: Connection(self),
                    self._host,
                    self._port,
                    ssl=self._tls,
                    server_hostname=self._host if self._tls else None,
                )
        except OSError as e:
            # TimeoutError is one, without words.
            self._freed()
            raise ConnectError(e.strerror or str(e) or f"no connection within {_CONNECT_SECONDS:g} s") from None
        except BaseException:
            self._freed()
            raise
        return connection

    def _give_back(self, connection: Connection) -> None:
        now = connection.idle_since = self.loop.time()
        if not connection.rests_well or now - connection.born > _AGE_SECONDS or self._open > self._most:
            connection.close()
            self._freed()
            return
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(connection)
                return
        self._idle.append(connection)
        if now - self._idle[0].idle_since > _IDLE_SECONDS:
            self._idle.popleft().close()
            self._open -= 1

    def _freed(self) -> None:
        """One connection fewer: the next in line may open one."""
        while self._line:
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._open -= 1

    def lost(self, connection: Connection) -> None:
        """A connection has ended; one that rested is taken out."""
        if connection in self._idle:
            self._idle.remove(connection)
            self._open -= 1
