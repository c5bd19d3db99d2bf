"""An address whose server can be replaced, as DNS, a Service or a load balancer does it, or cut off."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Forwarder:
    """Forwards each new connection to `target`, a port of this machine. Open connections keep their server.

    tls: if given, clients must speak TLS; the server gets plain text.
    """

    def __init__(self, target: int, *, tls: ssl.SSLContext | None = None) -> None:
        self.target = target
        self.port = 0
        # The connections that are open, by the port of their server.
        self.open: dict[int, int] = {}
        self.accepted = 0
        self._tls = tls
        self._admitted = asyncio.Event()
        self._admitted.set()
        self._writers: set[asyncio.StreamWriter] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Forwarder]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0, ssl=self._tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.drop()
            self.admit()

    def drop(self) -> None:
        """Close the connections that are open or held."""
        for writer in tuple(self._writers):
            writer.transport.abort()

    def hold(self) -> None:
        """Accept new connections, but forward nothing of them until `admit`."""
        self._admitted.clear()

    def admit(self) -> None:
        """Forward new connections again, and those that were held."""
        self._admitted.set()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.add(writer)
        await self._admitted.wait()
        target = self.target
        with suppress(OSError):
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", target)
            ends = {writer, server_writer}
            self._writers |= ends
            self.open[target] = self.open.get(target, 0) + 1
            await asyncio.gather(_copy(reader, server_writer), _copy(server_reader, writer))
            self.open[target] -= 1
            self._writers.discard(server_writer)
        self._writers.discard(writer)
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
