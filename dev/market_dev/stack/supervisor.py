"""Keeps one process running: starts it, restarts it when it exits, stops it."""

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

from market_dev.stack import processes
from market_dev.stack.servers.base import Server, StartError, tail

T = TypeVar("T")
State = Literal["waiting", "preparing", "starting", "ready", "stopped"]

# A process that has lived this long is not in a crash loop.
_STABLE_SECONDS = 10.0
_MAX_ATTEMPTS = 4
_PROBE_INTERVAL_SECONDS = 0.05


class Supervisor:
    """Owns one process of the stack. Lives in the event loop of the main thread, which starts the process."""

    def __init__(
        self,
        server: Server,
        pool: Executor,
        *,
        on_change: Callable[[], None],
        on_exit: Callable[[str, int, float], None],
    ) -> None:
        """`on_change()`: the process was started or is ready. `on_exit(name, status, pause)`: it exited and is
        restarted in `pause` seconds; `status` is negative for a signal."""
        self.server = server
        self.name = server.name
        self.state: State = "waiting"
        self.ready = asyncio.Event()
        self.restarts = 0
        self._pool = pool
        self._on_change = on_change
        self._on_exit = on_exit
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._start_allowed = asyncio.Event()
        self._start_allowed.set()
        self._task: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The id of the running process, or None if it is not running."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    def start(self) -> asyncio.Task[None]:
        """Start the process and return the task that supervises it.

        The task ends when the process was stopped, and fails with StartError if the process never became ready.
        """
        self._task = asyncio.create_task(self._run())
        return self._task

    async def _in_thread(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._pool, function)

    async def _run(self) -> None:
        self.state = "preparing"
        await self._in_thread(self.server.prepare)
        was_ready = False
        failures = 0
        while True:
            await self._start_allowed.wait()
            started = time.monotonic()
            self.state = "starting"
            try:
                await self._in_thread(self.server.before_start)
                self._process = processes.spawn(self.server.command(), log=self.server.log, cwd=self.server.cwd)
            except OSError as e:
                # A full disk, for example: not a reason to give up what has been running.
                status, reason = 127, f"cannot be started: {e}"
            else:
                self._on_change()
                was_ready = await self._until_exit(self._process) or was_ready
                status = self._process.returncode
                reason = f"its log, {self.server.log}, ends with:\n{tail(self.server.log)}"
            self.ready.clear()
            self.state = "stopped"
            await self._in_thread(self.server.after_stop)
            if self._stopping:
                return
            failures = failures + 1 if time.monotonic() - started < _STABLE_SECONDS else 1
            if not was_ready and failures >= _MAX_ATTEMPTS:
                raise StartError(f"{self.name} does not start (exit status {status}); {reason}")
            # Immediately after the first failure, because a client is waiting; then with exponential backoff.
            pause = 0.0 if failures == 1 else min(5.0, 0.1 * 2 ** min(failures, 10))
            if was_ready:
                self._on_exit(self.name, status, pause)
            self.restarts += 1
            await asyncio.sleep(pause)

    async def _until_exit(self, process: subprocess.Popen[bytes]) -> bool:
        """Wait until the process exits; return whether it was ready in between."""
        exited = asyncio.create_task(wait_for_exit(process))
        probing = asyncio.create_task(self._until_ready())
        try:
            await asyncio.wait({exited, probing}, return_when=asyncio.FIRST_COMPLETED)
            if probing.done() and not exited.done():
                self.state = "ready"
                self.ready.set()
                self._on_change()
            was_ready = self.ready.is_set()
            await exited
            return was_ready
        finally:
            probing.cancel()
            exited.cancel()

    async def _until_ready(self) -> None:
        while not await self._in_thread(self.server.probe):
            await asyncio.sleep(_PROBE_INTERVAL_SECONDS)

    def hold(self) -> None:
        """Do not start the process again until `release`."""
        self._start_allowed.clear()

    def release(self) -> None:
        """Start the process again, if it has exited since `hold`."""
        self._start_allowed.set()

    def send_signal(self, signum: int) -> None:
        """Send a signal to the process alone. Does nothing if it is not running."""
        if self.pid is not None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signum)

    def send_signal_to_tree(self, signum: int) -> None:
        """Send a signal to the process and its descendants. Does nothing if it is not running."""
        if self.pid is not None:
            processes.signal_tree(self.pid, signum)

    async def stop(self) -> None:
        """Stop the process gracefully; kill it if that takes too long."""
        self._stopping = True
        if self._task is None:
            return
        if self.pid is None:
            self._task.cancel()
        else:
            self.send_signal_to_tree(signal.SIGCONT)
            self.send_signal(self.server.stop_signal)
        done, _ = await asyncio.wait({self._task}, timeout=self.server.stop_seconds)
        if not done:
            self.kill()
            self._task.cancel()
        with suppress(asyncio.CancelledError, StartError):
            await self._task
        self.kill()

    def kill(self) -> None:
        """Kill the process for good: it is not restarted."""
        self._stopping = True
        if self.pid is not None and self._process is not None:
            self.send_signal_to_tree(signal.SIGKILL)
            self._process.wait()


async def wait_for_exit(process: subprocess.Popen[bytes]) -> None:
    """Wait until the process has exited, and reap it."""
    loop = asyncio.get_running_loop()
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:  # An old kernel, or the process has exited already.
        while process.poll() is None:
            await asyncio.sleep(0.02)
        return
    exited = asyncio.Event()
    loop.add_reader(fd, exited.set)
    try:
        await exited.wait()
        process.wait()
    finally:
        loop.remove_reader(fd)
        os.close(fd)
