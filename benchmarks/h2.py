"""gRPC for the generator: HTTP/2 frames by hand. grpc's own client costs more than the server that it calls.

Headers are sent without a compression table, and those that come back are not read: an answer counts as good when its
message came and begins as the workload expects.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from typing import Any

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST, _SETTINGS, _PING, _GOAWAY, _WINDOW = 0, 1, 3, 4, 6, 7, 8
_GRANTED = 2**30


def frame(type: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">I", len(body))[1:] + bytes((type, flags)) + struct.pack(">I", stream) + body


def _text(value: str) -> bytes:
    assert len(value) < 127
    return bytes([len(value)]) + value.encode()


def headers(path: str) -> bytes:
    """The header block of a call."""
    block = b"\x83\x86" + b"\x04" + _text(path) + b"\x01" + _text("127.0.0.1")
    return block + b"".join(
        b"\x00" + _text(k) + _text(v) for k, v in (("content-type", "application/grpc"), ("te", "trailers"))
    )


class Slot:
    """One of the calls that may be under way on a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, request: tuple[bytes, bytes, bytes], due: float) -> None:
        self.connection.call(self, request, due)


class Connection(asyncio.Protocol):
    def __init__(self, load: Any) -> None:
        self.load = load
        self.buffer = b""
        self.next = 1
        self.room = 65_535
        self.taken = 0
        self.calls: dict[int, tuple[Slot, float, bytes, list[bytes]]] = {}
        self.held: deque[tuple[Slot, tuple[bytes, bytes, bytes], float]] = deque()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        settings = struct.pack(">HIHI", 2, 0, 4, _GRANTED)
        transport.write(_PREFACE + frame(_SETTINGS, 0, 0, settings) + frame(_WINDOW, 0, 0, struct.pack(">I", _GRANTED)))

    def call(self, slot: Slot, request: tuple[bytes, bytes, bytes], due: float) -> None:
        """`request`: header block, message, and how the answer's message begins."""
        block, message, expected = request
        size = len(message) + 5
        if size > self.room:
            self.held.append((slot, request, due))
            return
        self.room -= size
        stream, self.next = self.next, self.next + 2
        self.calls[stream] = (slot, due, expected, [])
        body = b"\0" + struct.pack(">I", len(message)) + message
        self.transport.write(frame(_HEADERS, 4, stream, block) + frame(_DATA, 1, stream, body))

    def data_received(self, data: bytes) -> None:
        if self.buffer:
            data = self.buffer + data
        at, most = 0, len(data)
        while most - at >= 9:
            length = int.from_bytes(data[at : at + 3], "big")
            if most - at < 9 + length:
                break
            stream = int.from_bytes(data[at + 5 : at + 9], "big")
            self._frame(data[at + 3], data[at + 4], stream, data[at + 9 : at + 9 + length])
            at += 9 + length
        self.buffer = data[at:]

    def _frame(self, type: int, flags: int, stream: int, body: bytes) -> None:
        if type == _DATA:
            self.calls[stream][3].append(body)
            self.taken += len(body)
            if self.taken > _GRANTED // 2:
                self.transport.write(frame(_WINDOW, 0, 0, struct.pack(">I", self.taken)))
                self.taken = 0
        elif type == _WINDOW and stream == 0:
            self.room += int.from_bytes(body, "big")
            while self.held and len(self.held[0][1][1]) + 5 <= self.room:
                self.call(*self.held.popleft())
        elif type == _SETTINGS and not flags & 1:
            self.transport.write(frame(_SETTINGS, 1, 0, b""))
        elif type == _PING and not flags & 1:
            self.transport.write(frame(_PING, 1, 0, body))
        elif type == _GOAWAY and not self.load.stopped:
            raise SystemExit(f"the server closes the connection: {body[8:]!r}")
        if (type == _HEADERS and flags & 1) or type == _RST:
            slot, due, expected, parts = self.calls.pop(stream)
            answer = b"".join(parts)
            good = type == _HEADERS and answer[5:].startswith(expected) and len(answer) > 4
            self.load.answered(slot, due, "ok" if good else "refused", good, answer)

    def connection_lost(self, _: Exception | None) -> None:
        if not self.load.stopped:
            raise SystemExit("the connection was closed")


async def connect(load: Any, host: str, port: int, streams: int) -> list[Slot]:
    _, connection = await asyncio.get_running_loop().create_connection(lambda: Connection(load), host, port)
    return [Slot(connection) for _ in range(streams)]
