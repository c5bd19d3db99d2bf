"""HTTP/1.1 for the generator: one request at a time on a kept connection, answers read just far enough to count them."""

from __future__ import annotations

import asyncio
import re
from typing import Any

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Connection(asyncio.Protocol):
    """Tells `load.answered` of each answer."""

    def __init__(self, load: Any) -> None:
        self.load = load
        self.due = 0.0
        self.buffer = b""
        self.missing = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, request: bytes, due: float) -> None:
        self.due = due
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        if len(data) < self.missing:
            self.buffer = data
            return
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self.buffer = data
            return
        found = _LENGTH.search(data, 0, end)
        if found is None:
            raise RuntimeError(f"an answer without a length: {data[:200]!r}")
        self.missing = end + 4 + int(found[1])
        if len(data) < self.missing:
            self.buffer = data
            return
        self.buffer, self.missing = b"", 0
        # GraphQL says 200 of its errors too, in front.
        good = data[9:10] == b"2" and not data.startswith(b'{"errors"', end + 4)
        self.load.answered(self, self.due, data[9:12].decode(), good, data[end + 4 :])

    def connection_lost(self, _: Exception | None) -> None:
        if not self.load.stopped:
            print("a connection was closed", flush=True)
            raise SystemExit(1)


async def connect(load: Any, host: str, port: int, _streams: int) -> list[Connection]:
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(load), host, port)
    return [connection]


def request(method: str, path: str, body: bytes | None = None, **headers: str) -> bytes:
    """The request's bytes."""
    lines = [
        f"{method} {path} HTTP/1.1",
        "host: 127.0.0.1",
        *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
    ]
    if body is not None:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (body or b"")
