"""gRPC for the load generator: hand-written HTTP/2 frames, since grpc's own client costs more than the server it calls.

Requests do not use header compression, and response headers are not parsed: a response is successful if its message
arrived and begins as the workload expects.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from typing import Any

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
# The flow-control window that the server may fill.
_RECEIVE_WINDOW = 2**30


def frame(frame_type: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes((frame_type, flags)) + struct.pack(">I", stream) + body


def _text(value: str) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value.encode()


def headers(path: str) -> bytes:
    """Return the header block of a call."""
    block = b"\x83\x86" + b"\x04" + _text(path) + b"\x01" + _text("127.0.0.1")
    return block + b"".join(
        b"\x00" + _text(k) + _text(v) for k, v in (("content-type", "application/grpc"), ("te", "trailers"))
    )


class Slot:
    """One of the concurrent calls of a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, request: tuple[bytes, bytes, bytes], due: float) -> None:
        self.connection.call(self, request, due)


class Connection(asyncio.Protocol):
    """Calls `run.completed` for each response. `due`: when the request was due, by time.perf_counter."""

    def __init__(self, run: Any) -> None:
        self.run = run
        self.buffer = b""
        self.next_stream = 1
        self.send_window = 65_535
        self.received = 0
        self.calls: dict[int, tuple[Slot, float, bytes, list[bytes]]] = {}
        # Calls that wait for the send window.
        self.blocked: deque[tuple[Slot, tuple[bytes, bytes, bytes], float]] = deque()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        settings = struct.pack(">HIHI", 2, 0, 4, _RECEIVE_WINDOW)
        window = frame(_WINDOW, 0, 0, struct.pack(">I", _RECEIVE_WINDOW))
        transport.write(_PREFACE + frame(_SETTINGS, 0, 0, settings) + window)

    def call(self, slot: Slot, request: tuple[bytes, bytes, bytes], due: float) -> None:
        """Start a call. `request`: header block, message, and how the response message must begin."""
        block, message, expected = request
        size = len(message) + 5
        if size > self.send_window:
            self.blocked.append((slot, request, due))
            return
        self.send_window -= size
        stream, self.next_stream = self.next_stream, self.next_stream + 2
        self.calls[stream] = (slot, due, expected, [])
        body = b"\0" + struct.pack(">I", len(message)) + message
        self.transport.write(frame(_HEADERS, 4, stream, block) + frame(_DATA, 1, stream, body))

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        at, size = 0, len(data)
        while size - at >= 9:
            length = int.from_bytes(data[at : at + 3], "big")
            if size - at < 9 + length:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            self._frame_received(data[at + 3], data[at + 4], stream, data[at + 9 : at + 9 + length])
            at += 9 + length
        self.buffer = data[at:]

    def _frame_received(self, frame_type: int, flags: int, stream: int, body: bytes) -> None:
        if frame_type == _DATA:
            self.calls[stream][3].append(body)
            self.received += len(body)
            if self.received > _RECEIVE_WINDOW // 2:
                self.transport.write(frame(_WINDOW, 0, 0, struct.pack(">I", self.received)))
                self.received = 0
        elif frame_type == _WINDOW and stream == 0:
            self.send_window += int.from_bytes(body, "big")
            while self.blocked and len(self.blocked[0][1][1]) + 5 <= self.send_window:
                self.call(*self.blocked.popleft())
        elif frame_type == _SETTINGS and not flags & 1:
            self.transport.write(frame(_SETTINGS, 1, 0, b""))
        elif frame_type == _PING and not flags & 1:
            self.transport.write(frame(_PING, 1, 0, body))
        elif frame_type == _GOAWAY and not self.run.stopped:
            raise SystemExit(f"the server closes the connection: {body[8:]!r}")
        if (frame_type == _HEADERS and flags & 1) or frame_type == _RST:
            slot, due, expected, parts = self.calls.pop(stream)
            response = b"".join(parts)
            succeeded = frame_type == _HEADERS and response[5:].startswith(expected) and len(response) > 4
            self.run.completed(slot, due, "ok" if succeeded else "failed", succeeded, response)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.run.stopped:
            raise SystemExit("the connection was closed")


async def connect(run: Any, host: str, port: int, streams: int) -> list[Slot]:
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(run), host, port)
    return [Slot(connection) for _ in range(streams)]
