"""A TCP proxy that simulates a bad network: it delays, disconnects or swallows what passes through it.

async with Proxy(listen=21500, upstream=21006) as network:
    network.delay(0.2)      # each chunk is delayed, in seconds
    network.disconnect()    # open connections are aborted, new ones refused
    network.blackhole()     # connections stay open, nothing passes
    network.heal()
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Literal

Mode = Literal["pass", "delay", "disconnect", "blackhole"]


class Proxy:
    """Owns one listening port and all connections through it, forwarded to port `upstream`.

    `listen`: 0 picks a free port, which is then in `port`. `affected` counts the chunks and connections that a fault
    hit.
    """

    def __init__(self, *, upstream: int, listen: int = 0, host: str = "127.0.0.1") -> None:
        self._host = host
        self._upstream = upstream
        self.port = listen
        self.mode: Mode = "pass"
        self.affected = 0
        self._delay_seconds = 0.0
        self._passing = asyncio.Event()
        self._passing.set()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self._server = await asyncio.start_server(self._connected, self._host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        assert self._server is not None
        self._server.close()
        self._abort_connections()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def delay(self, seconds: float) -> None:
        """Forward each chunk after this many seconds, in both directions."""
        self._set("delay")
        self._delay_seconds = seconds

    def disconnect(self) -> None:
        """Abort all connections, and new ones as soon as they are accepted."""
        self._set("disconnect")
        self._abort_connections()

    def blackhole(self) -> None:
        """Keep connections open and forward nothing."""
        self._set("blackhole")
        self._passing.clear()

    def heal(self) -> None:
        """Forward normally again. What a blackhole held back is forwarded now, as TCP would have retransmitted it."""
        self._set("pass")

    def _set(self, mode: Mode) -> None:
        self.mode = mode
        self._passing.set()

    def _abort_connections(self) -> None:
        for writer in tuple(self._writers):
            self.affected += 1
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "disconnect":
            self.affected += 1
            writer.transport.abort()
            return
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection(self._host, self._upstream)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, upstream_writer}
        pumps = [
            asyncio.create_task(self._pump(reader, upstream_writer)),
            asyncio.create_task(self._pump(upstream_reader, writer)),
        ]
        self._tasks.update(pumps)
        await asyncio.wait(pumps)
        self._tasks.difference_update(pumps)
        for end in (writer, upstream_writer):
            self._writers.discard(end)
            end.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await source.read(65536):
                if self.mode == "delay":
                    self.affected += 1
                    await asyncio.sleep(self._delay_seconds)
                if not self._passing.is_set():
                    self.affected += 1
                    await self._passing.wait()
                sink.write(data)
                await sink.drain()
            if sink.can_write_eof():
                sink.write_eof()
