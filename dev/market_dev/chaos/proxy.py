"""A TCP proxy that can be told to be a bad network: it delays, cuts or swallows what passes.

async with Proxy(listen=21500, to=21006) as network:
    network.delay(0.2)      # each chunk comes so many seconds late
    network.cut()           # connections break, new ones are refused
    network.blackhole()     # connections stay, nothing passes
    network.heal()
"""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType
from typing import Literal

Mode = Literal["pass", "delay", "cut", "blackhole"]


class Proxy:
    """Owns one listening port and every connection through it. `touched` counts what a fault has hit."""

    def __init__(self, *, to: int, listen: int = 0, host: str = "127.0.0.1") -> None:
        self._host = host
        self._to = to
        self.port = listen
        self.mode: Mode = "pass"
        self.touched = 0
        self._seconds = 0.0
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
        self._break()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def delay(self, seconds: float) -> None:
        self._set("delay")
        self._seconds = seconds

    def cut(self) -> None:
        self._set("cut")
        self._break()

    def blackhole(self) -> None:
        self._set("blackhole")
        self._passing.clear()

    def heal(self) -> None:
        # Connections that waited in a blackhole have lost nothing: TCP would have sent it again.
        self._set("pass")

    def _set(self, mode: Mode) -> None:
        self.mode = mode
        self._passing.set()

    def _break(self) -> None:
        for writer in tuple(self._writers):
            self.touched += 1
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.mode == "cut":
            self.touched += 1
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection(self._host, self._to)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, back}
        ways = [asyncio.create_task(self._pump(reader, back)), asyncio.create_task(self._pump(there, writer))]
        self._tasks.update(ways)
        await asyncio.wait(ways)
        self._tasks.difference_update(ways)
        for end in (writer, back):
            self._writers.discard(end)
            end.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await source.read(65536):
                if self.mode == "delay":
                    self.touched += 1
                    await asyncio.sleep(self._seconds)
                if not self._passing.is_set():
                    self.touched += 1
                    await self._passing.wait()
                sink.write(data)
                await sink.drain()
            if sink.can_write_eof():
                sink.write_eof()
