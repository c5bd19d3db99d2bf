"""Keeps one process running: starts it, starts it again when it dies, stops it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import Literal, TypeVar

from market_dev.stack import processes as spawn
from market_dev.stack.servers.base import Server, StartError, tail

T = TypeVar("T")
State = Literal["waiting", "preparing", "starting", "ready", "stopped"]

# A process that has lived this long is not one that dies at every start.
_SETTLED_SECONDS = 10.0
_TRIES = 4
_PROBE_SECONDS = 0.05


class Supervised:
    """Owns one process of the stack. Lives in the event loop of the main thread, which starts the process."""

    def __init__(
        self, server: Server, pool: Executor, *, changed: Callable[[], None], died: Callable[[str, int, float], None]
    ) -> None:
        self.server = server
        self.name = server.name
        self.state: State = "waiting"
        self.ready = asyncio.Event()
        self.restarts = 0
        self._pool = pool
        self._changed = changed
        self._died = died
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> asyncio.Task[None]:
        """Begins; the task ends when the process was stopped, or with StartError when it never came up."""
        self._task = asyncio.create_task(self._run())
        return self._task

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def _run(self) -> None:
        self.state = "preparing"
        await self._in_thread(self.server.prepare)
        was_ready = False
        deaths = 0
        while True:
            started = time.monotonic()
            self.state = "starting"
            try:
                await self._in_thread(self.server.before_start)
                self._process = spawn.spawn(self.server.command(), log=self.server.log, cwd=self.server.cwd)
            except OSError as e:
                # A full disk, say: no reason to give up what has run.
                status, last_words = 127, f"cannot be started: {e}"
            else:
                self._changed()
                was_ready = await self._live(self._process) or was_ready
                status = self._process.returncode
                last_words = f"its log, {self.server.log}, ends with:\n{tail(self.server.log)}"
            self.ready.clear()
            self.state = "stopped"
            await self._in_thread(self.server.after_stop)
            if self._stopping:
                return
            deaths = deaths + 1 if time.monotonic() - started < _SETTLED_SECONDS else 1
            if not was_ready and deaths >= _TRIES:
                raise StartError(f"{self.name} does not start (exit status {status}); {last_words}")
            # At once after the first death, for a client is waiting; then ever later.
            pause = 0.0 if deaths == 1 else min(5.0, 0.1 * 2 ** min(deaths, 10))
            if was_ready:
                self._died(self.name, status, pause)
            self.restarts += 1
            await asyncio.sleep(pause)

    async def _live(self, process: subprocess.Popen[bytes]) -> bool:
        """Waits for the end of the process; answers whether it was ready in between."""
        ended = asyncio.create_task(exit_of(process))
        probing = asyncio.create_task(self._until_ready())
        try:
            await asyncio.wait({ended, probing}, return_when=asyncio.FIRST_COMPLETED)
            if probing.done() and not ended.done():
                self.state = "ready"
                self.ready.set()
                self._changed()
            was_ready = self.ready.is_set()
            await ended
            return was_ready
        finally:
            probing.cancel()
            ended.cancel()

    async def _until_ready(self) -> None:
        while not await self._in_thread(self.server.probe):
            await asyncio.sleep(_PROBE_SECONDS)

    def send(self, signum: int) -> None:
        """A signal to the process alone. Nothing happens when it is not running."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def send_tree(self, signum: int) -> None:
        """A signal to the process and its children."""
        if self.pid is not None:
            spawn.signal_tree(self.pid, signum)

    async def stop(self) -> None:
        """Ends it in an orderly way, and by force when that takes too long."""
        self._stopping = True
        if self._task is None:
            return
        if self.pid is None:
            self._task.cancel()
        else:
            self.send_tree(signal.SIGCONT)
            self.send(self.server.stop_signal)
        done, _ = await asyncio.wait({self._task}, timeout=self.server.stop_seconds)
        if not done:
            self.kill_now()
            self._task.cancel()
        with suppress(asyncio.CancelledError, StartError):
            await self._task
        self.kill_now()

    def kill_now(self) -> None:
        """Ends it by force, for good."""
        self._stopping = True
        if self.pid is not None and self._process is not None:
            self.send_tree(signal.SIGKILL)
            self._process.wait()


async def exit_of(process: subprocess.Popen[bytes]) -> None:
    """Returns when the process has ended and was collected."""
    loop = asyncio.get_running_loop()
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:  # An old kernel, or it is gone already.
        while process.poll() is None:
            await asyncio.sleep(0.02)
        return
    ended = asyncio.Event()
    loop.add_reader(fd, ended.set)
    try:
        await ended.wait()
        process.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
