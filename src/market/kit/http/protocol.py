"""One HTTP connection: uvicorn's protocol, with timeouts, size limits and stricter parsing.

uvicorn starts the application as soon as it has received the headers, and waits indefinitely for clients that send or
read slowly. Here the application starts once the body is complete, so only complete requests are in flight.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any, NoReturn

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from market.kit.errors import HeadersTooLarge, Malformed, NotImplementedByServer, Overloaded, Problem, RequestTimeout
from market.kit.http import refusals, upgrades
from market.kit.http.connections import REFUSED, Connections
from market.kit.http.writes import QueuedTransport
from market.kit.process import logs

log = logs.get_logger("http")

# The parser's state: between requests, in the headers, or in the body.
_BETWEEN, _HEADERS, _BODY = range(3)
# The maximum number of pipelined requests: those that the client sent before it got the response to an earlier one.
_MAX_PIPELINED = 100
# How long the rest of a refused request is read and discarded. Closing a connection that has unread input resets it, so
# the client could lose the response (RFC 9112 section 9.6).
_LINGER_SECONDS = 2.0
_HOST = re.compile(rb"[A-Za-z0-9\-._~!$&'()*+,;=%:\[\]]*")


class HttpProtocol(HttpToolsProtocol):
    """One connection. It waits for its client, runs a request, or is closing.

    Pipelined requests wait in uvicorn's `pipeline`, newest first.

    connections: all connections of the server, with their limits.
    """

    def __init__(self, connections: Connections, **uvicorn_arguments: Any) -> None:
        super().__init__(**uvicorn_arguments)
        # The name `connections` is taken: in uvicorn's protocol, it is a set.
        self._server_connections = connections
        self._limits = connections.limits
        self._state = _BETWEEN
        self._begun_requests = 0
        self._header_bytes = 0
        # How many bytes were received of the header section, trailer section or chunk extension that is incomplete. The
        # parser does not limit them.
        self._section_bytes = 0
        # Whether the bytes that were last fed to the parser included bytes of a body.
        self._input_has_body = False
        # When the current deadline started.
        self._since = 0.0
        # The next request to run. It waits for its body, or for the client to read the previous response.
        self._next_cycle: RequestResponseCycle | None = None
        self._is_running = False
        self._offers_upgrade = False
        # Whether further input is discarded without being parsed.
        self._discards_input = False
        self._is_oversized = False
        self._is_lingering = False
        # The error in the request that is being parsed. It is sent after the responses to earlier requests.
        self._refusal: Problem | None = None
        # When the client fell behind (the write buffer was full), and how many bytes were unsent at that time.
        self._sending_since: float | None = None
        self._sending_bytes = 0

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._queued_transport = QueuedTransport(transport, self._server_connections.writes)
        super().connection_made(self._queued_transport)
        self._since = self._server_connections.clock()
        if not self._server_connections.add(self):
            self._refuse(Overloaded("too many connections"))
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._next_cycle = None
        self._server_connections.remove(self)

    def data_received(self, data: bytes) -> None:
        rest = data
        while rest and not self._discards_input:
            size = len(rest)
            begun_before, state_before = self._begun_requests, self._state
            self._input_has_body = False
            try:
                self.parser.feed_data(rest)
                rest = b""
            except httptools.HttpParserUpgrade as e:
                rest = rest[e.args[0] :]
                self._parse_without_upgrade()
            except httptools.HttpParserError as e:
                self._refuse(self._refusal or refusals.from_parser_error(e))
                return
            if (self._state != _BETWEEN or self.pipeline) and not self._discards_input:
                self._count_received(size, self._begun_requests - begun_before, state_before)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._sending_since = self._server_connections.clock()
        self._sending_bytes = self.unsent_bytes
        self._server_connections.writing_paused(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._sending_since = None
        self._server_connections.writing_resumed(self)
        self._run_next()

    def shutdown(self) -> None:
        """Close the connection once the requests in flight have got their responses."""
        if self._is_running or self.pipeline:
            super().shutdown()
        else:
            # Nothing has been done for an incomplete request.
            self.transport.close()

    @property
    def unsent_bytes(self) -> int:
        """The number of response bytes in the transport's write buffer."""
        return self.transport.get_write_buffer_size()

    @property
    def buffered_response_bytes(self) -> int:
        """The number of response bytes in memory.

        The event loop frees a buffer only when all of it has been sent. So until then, this is the number of bytes that
        were unsent when the client fell behind.
        """
        unsent = self.unsent_bytes
        return max(unsent, self._sending_bytes) if unsent else 0

    def send_rate(self, now: float, min_seconds: float) -> float:
        """Return the client's read rate since it fell behind, in bytes per second, over at least `min_seconds`."""
        seconds = max(min_seconds, now - (self._sending_since or now))
        return (self._sending_bytes - self.unsent_bytes) / seconds

    def cut_off(self) -> None:
        """Abort the connection, and discard further input and unsent output."""
        self._discards_input = True
        self.transport.abort()

    def enforce_deadlines(self, now: float) -> str | None:
        """Close the connection if a deadline has passed. Return the limit that the client exceeded, or None."""
        limits = self._limits
        if self._sending_since is not None:
            max_seconds = limits.send_timeout_seconds + self._sending_bytes / limits.min_send_bytes_per_second
            return self._cut_off_if_exceeded(max_seconds, now - self._sending_since, "send_timeout_seconds")
        waited = now - self._since
        if self.transport.is_closing() or self._is_lingering:
            if self.unsent_bytes:
                return self._cut_off_if_exceeded(limits.send_timeout_seconds, waited, "send_timeout_seconds")
            if waited > _LINGER_SECONDS:
                self.transport.abort()
        elif self._is_running:
            if self._discards_input:
                # The body is too large, and the rest of it is being discarded.
                return self._cut_off_if_exceeded(limits.body_timeout_seconds, waited, "body_timeout_seconds")
        elif self._state == _HEADERS:
            if waited > limits.header_timeout_seconds:
                self._refuse(RequestTimeout(f"the headers must arrive within {limits.header_timeout_seconds:g} s"))
                return "header_timeout_seconds"
        elif self._state == _BODY:
            if waited > limits.body_timeout_seconds:
                self._refuse(RequestTimeout(f"the body must arrive within {limits.body_timeout_seconds:g} s"))
                return "body_timeout_seconds"
        elif self.unsent_bytes:
            return self._cut_off_if_exceeded(limits.send_timeout_seconds, waited, "send_timeout_seconds")
        elif waited > limits.keep_alive_seconds:
            self.transport.close()
        return None

    def _cut_off_if_exceeded(self, max_seconds: float, elapsed: float, limit: str) -> str | None:
        if elapsed <= max_seconds:
            return None
        self.cut_off()
        return limit

    # The parser's callbacks.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begun_requests += 1
        self._state = _HEADERS
        self._header_bytes = self._section_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._state != _HEADERS:
            # This is a trailer. It may be dropped (RFC 9110 section 6.5.1), and must not be treated as a header.
            return
        self._header_bytes += len(name) + len(value) + len(": \r\n")
        self.headers.append((name.lower(), value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        limits = self._limits
        parser = self.parser
        names = [name for name, _ in self.headers]
        if len(self.url) + self._header_bytes > limits.max_header_bytes:
            self._raise_refusal(self._headers_too_large())
        if len(names) > limits.max_headers:
            self._raise_refusal(
                HeadersTooLarge("headers", f"at most {limits.max_headers} are allowed, got {len(names)}")
            )
        hosts = names.count(b"host")
        if hosts != 1 and (hosts or parser.get_http_version() == "1.1"):
            self._raise_refusal(Malformed("Host", "must not be repeated" if hosts else "is missing"))
        if hosts and not _HOST.fullmatch(self._header(b"host")):
            self._raise_refusal(Malformed("Host", "must be a host name or an address"))
        if b"transfer-encoding" in names and self._header(b"transfer-encoding").lower() != b"chunked":
            self._raise_refusal(NotImplementedByServer("Transfer-Encoding: must be chunked"))
        if parser.should_upgrade():
            if parser.get_method() == b"CONNECT":
                self._raise_refusal(NotImplementedByServer("CONNECT: this server is not a proxy"))
            self._offers_upgrade = True
            return
        if len(self.pipeline) >= _MAX_PIPELINED:
            self._raise_refusal(Overloaded(f"at most {_MAX_PIPELINED} requests may be pipelined"))
        self._state = _BODY
        self._section_bytes = 0
        self._is_oversized = b"content-length" in names and int(self._header(b"content-length")) > limits.max_body_bytes
        # HTTP/1.0 clients do not understand 100 Continue (RFC 9110 section 10.1.1).
        expects_continue = b"expect" in names and self._header(b"expect").lower() == b"100-continue"
        self.expect_100_continue = expects_continue and parser.get_http_version() != "1.0"
        super().on_headers_complete()
        if self._is_oversized:
            # Discard the body now, even if the request has to wait for the responses to earlier requests.
            self._discards_input = True

    def on_body(self, body: bytes) -> None:
        if self._discards_input:
            return
        self._input_has_body = True
        self.cycle.body += body
        if len(self.cycle.body) > self._limits.max_body_bytes:
            self._is_oversized = self._discards_input = True
            if self._next_cycle is self.cycle:
                self._run_oversized(self.cycle)

    def on_message_complete(self) -> None:
        if self._offers_upgrade or self._discards_input:
            return
        self._state = _BETWEEN
        if not self.pipeline:
            self._server_connections.clear_received_bytes(self)
        self.cycle.more_body = False
        self._run_next()

    def _header(self, wanted: bytes) -> bytes:
        """Return a header of the current request by its name in lower case. Repeated headers are joined."""
        return b", ".join(value for name, value in self.headers if name == wanted)

    def _parse_without_upgrade(self) -> None:
        """Parse the current request a second time, without its offer of an upgrade (RFC 9110 section 7.8).

        The parser has stopped after the headers, because it takes the bytes that follow for the new protocol. In fact,
        they are the body of the request.
        """
        request_line = [self.parser.get_method(), self.url, b"HTTP/" + self.parser.get_http_version().encode()]
        head = upgrades.head_without_offer(b" ".join(request_line), self.headers)
        self._offers_upgrade = False
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.parser.feed_data(head)

    def _count_received(self, size: int, begun: int, state_before: int) -> None:
        """Count bytes that have just been received of an incomplete request or of pipelined requests.

        size: the number of bytes.
        begun: the number of requests that begin in these bytes.
        state_before: the parser's state before these bytes.
        """
        if (begun or state_before != self._state) and not self._is_running:
            # The deadline for the headers or for the body starts.
            self._since = self._server_connections.clock()
            if begun and self in self._server_connections.waiting:
                self._server_connections.waiting.move_to_end(self)
        if self._state == _HEADERS:
            requests = begun if state_before == _BETWEEN else begun + 1
            # If there are several requests in these bytes, it is unknown how many bytes belong to the last one.
            if requests == 1:
                self._section_bytes += size
        elif self._input_has_body or begun or state_before != _BODY:
            self._section_bytes = 0
        else:
            # A trailer section or a chunk extension.
            self._section_bytes += size
        if self._section_bytes > self._limits.max_header_bytes:
            self._refuse(self._headers_too_large())
            return
        self._server_connections.add_received_bytes(self, size)
        if self._next_cycle is not None and self._next_cycle is self.cycle:
            self._send_continue()

    def _headers_too_large(self) -> HeadersTooLarge:
        return HeadersTooLarge("headers", f"must be at most {self._limits.max_header_bytes} bytes in total")

    # Running requests, one at a time.

    def _start_asgi_task(self, cycle: RequestResponseCycle, _: Any) -> None:
        # uvicorn calls this after the headers, unless an earlier request has no response yet.
        self._next_cycle = cycle
        if self._is_oversized and cycle is self.cycle:
            self._run_oversized(cycle)
        else:
            self._run_next()

    def _run_next(self) -> None:
        cycle = self._next_cycle
        # The next request starts only once the client has read the previous response.
        if cycle is not None and not cycle.more_body and not self.flow.write_paused:
            self._run(cycle)

    def _run(self, cycle: RequestResponseCycle) -> None:
        self._next_cycle = None
        self._is_running = True
        cycle.waiting_for_100_continue = False
        cycle.message_event.set()
        if cycle.body:
            # Edge limits the total size of the bodies in flight (see in_flight.py).
            cycle.scope["state"]["body_bytes"] = len(cycle.body)
        self._server_connections.waiting.pop(self, None)
        super()._start_asgi_task(cycle, self.app)

    def _run_oversized(self, cycle: RequestResponseCycle) -> None:
        """Run a request with an oversized body. The application refuses it, and the connection is closed."""
        self._discards_input = True
        self._server_connections.clear_received_bytes(self)
        self._since = self._server_connections.clock()
        cycle.keep_alive = False
        cycle.transport = refusals.LingeringTransport(self)  # type: ignore[assignment]
        self._run(cycle)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self._server_connections.running <= 1:
            # No other response can be sent together with this one.
            self._queued_transport.flush()
        self._is_running = False
        self._since = self._server_connections.clock()
        if self.transport.is_closing() or self._is_lingering:
            return
        self._server_connections.waiting[self] = None
        self.flow.resume_reading()
        if self.pipeline:
            cycle, app = self.pipeline.pop()
            self._start_asgi_task(cycle, app)
            if self._next_cycle is not None and self._next_cycle.more_body:
                self._send_continue()
        elif self._refusal is not None:
            self._send_refusal()
        elif self._state == _BETWEEN:
            self._server_connections.clear_received_bytes(self)

    def _send_continue(self) -> None:
        if self._next_cycle is not None and self._next_cycle.waiting_for_100_continue:
            self._next_cycle.waiting_for_100_continue = False
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    # Requests that are refused before they are complete.

    def _raise_refusal(self, problem: Problem) -> NoReturn:
        """Refuse the current request from a parser callback. The exception stops the parser."""
        self._refusal = problem
        raise ValueError(str(problem))

    def _refuse(self, problem: Problem) -> None:
        """Refuse the current request once earlier requests have got their responses. Discard further input."""
        self._refusal = problem
        self._discards_input = True
        self._server_connections.clear_received_bytes(self)
        cycle = self.cycle
        if cycle is not None and cycle.more_body:
            if self._next_cycle is cycle:
                self._next_cycle = None
            elif self.pipeline and self.pipeline[0][0] is cycle:
                self.pipeline.popleft()
        if not self._is_running and self._next_cycle is None:
            self._send_refusal()

    def _send_refusal(self) -> None:
        assert self._refusal is not None
        REFUSED.labels(self._refusal.status).inc()
        log.debug("request refused", status=self._refusal.status, reason=str(self._refusal))
        self.transport.write(refusals.encode(self._refusal, self.server_state.default_headers))
        self.linger()

    def linger(self) -> None:
        """Half-close the connection, and discard further input, so that the client has time to read the response."""
        self._discards_input = self._is_lingering = True
        self._since = self._server_connections.clock()
        if not self.transport.is_closing():
            self.flow.resume_reading()
            self.transport.write_eof()
