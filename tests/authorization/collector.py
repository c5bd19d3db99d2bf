"""An OTLP collector that keeps the spans that the services export, as the bytes of the requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests.support.ports import free_port

_RESPONSE = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: 0\r\n\r\n"


class Collector:
    """Accepts spans at `{url}/v1/traces`. `exports` are the bodies of the requests."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.exports: list[bytes] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Collector]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", self.port, limit=1 << 20)
        try:
            yield self
        finally:
            server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                assert b"content-encoding: gzip" not in head
                length = head.split(b"content-length:")[1].split(b"\r\n")[0]
                self.exports.append(await reader.readexactly(int(length)))
                writer.write(_RESPONSE)
                await writer.drain()
        writer.close()
