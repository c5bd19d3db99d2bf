"""HTTP/1.1 for the load generator: one request at a time per kept-alive connection, and minimal parsing of
responses."""

from __future__ import annotations

import asyncio
import re
from typing import Any

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """Calls `run.completed` for each response. `due`: when the request was due, by time.perf_counter."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.due = 0.0
        self.buffer = b""
        # The size of the whole response, once its header has arrived.
        self.expected_size = 0
        # Of the last response that was a refusal, in seconds.
        self.retry_after = 1.0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        if len(data) < self.expected_size:
            self.buffer = data
            return
        header_end = data.find(b"\r\n\r\n")
        if header_end < 0:
            self.buffer = data
            return
        length = _CONTENT_LENGTH.search(data, 0, header_end)
        if length is None:
            raise RuntimeError(f"a response without Content-Length: {data[:200]!r}")
        body_start = header_end + 4
        self.expected_size = body_start + int(length[1])
        if len(data) < self.expected_size:
            self.buffer = data
            return
        self.buffer, self.expected_size = b"", 0
        if data[9:12] in (b"429", b"503") and (pause := _RETRY_AFTER.search(data, 0, header_end)):
            self.retry_after = float(pause[1])
        # The status of a GraphQL response is 200 even if it contains errors; they come first in the body.
        succeeded = data[9:10] == b"2" and not data.startswith(b'{"errors"', body_start)
        self.run.completed(self, self.due, data[9:12].decode(), succeeded, data[body_start:])

    def connection_lost(self, _: Exception | None) -> None:
        if not self.run.stopped:
            print("a connection was closed", flush=True)
            raise SystemExit(1)


async def connect(run: Any, host: str, port: int, _streams: int) -> list[Connection]:
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(run), host, port)
    return [connection]


def request(method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
    """Return the request's bytes. Underscores in the names of headers become hyphens."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "host: 127.0.0.1",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")
