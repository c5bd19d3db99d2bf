"""Child processes that never outlive their parent, and the ports they listen on."""

from __future__ import annotations

import ctypes
import os
import random
import signal
import socket
import subprocess
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_prctl = ctypes.CDLL(None).prctl
_PR_SET_PDEATHSIG = 1
_LOG_LIMIT = 16 * 1024 * 1024


@dataclass(frozen=True)
class Command:
    """What to run: arguments, additions to the environment, and user and group (None: the current ones)."""

    args: Sequence[str | Path]
    env: Mapping[str, str] | None = None
    user: int | None = None
    group: int | None = None


def bound_to_parent() -> Callable[[], None]:
    """Return a preexec_fn for Popen that lets the kernel kill the child when the thread that starts it exits."""
    parent = os.getpid()

    def bind() -> None:
        # Popen has changed the uid already; changing it later would clear the signal.
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return bind


def spawn(command: Command, *, log: Path, cwd: Path | None = None) -> subprocess.Popen[bytes]:
    """Start `command` in its own session, appending its output to the file `log`.

    The kernel kills the child when this process exits for any reason. It watches the thread that starts the child,
    so call this from the main thread. Raises OSError.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        if log.stat().st_size > _LOG_LIMIT:
            log.rename(log.with_suffix(".1.log"))
    with log.open("ab") as out, warnings.catch_warnings():
        # Newer Pythons warn about fork in a process with threads; the function above takes no lock.
        warnings.simplefilter("ignore", DeprecationWarning)
        return subprocess.Popen(
            [str(a) for a in command.args],
            env={**os.environ, **(command.env or {})},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=cwd,
            start_new_session=True,
            user=command.user,
            group=command.group,
            extra_groups=None if command.user is None else [],
            preexec_fn=bound_to_parent(),
        )


def tree(pid: int) -> list[psutil.Process]:
    """Return the process and all its living descendants."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def signal_tree(pid: int, signum: int) -> None:
    """Send the signal to the process and all its living descendants."""
    for process in tree(pid):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signum)


def working_in(directory: Path) -> list[psutil.Process]:
    """Return the processes whose working directory is `directory`: how to find PostgreSQL's orphaned children."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            if process.cwd() == str(directory):
                found.append(process)
    return found


def started_at(pid: int) -> float | None:
    """Return the process's start time in seconds since the epoch, or None if it has exited.

    The start time tells a process from a later one with the same id.
    """
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a server could listen on the port."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((host, port))
            sock.listen(1)
        except OSError:
            return False
    return True


def free_ports() -> Iterator[int]:
    """Yield random ports that nobody listens on now, each once.

    They are below the range from which the kernel takes ports for outgoing connections: one of those could occupy
    the port of a server that is down for a moment.
    """
    source = random.SystemRandom()
    seen: set[int] = set()
    while True:
        port = source.randrange(10_000, 20_000)
        if port not in seen and is_free(port):
            seen.add(port)
            yield port


def free_port_base(count: int) -> int:
    """Return the first of `count` consecutive ports that nobody listens on now."""
    return next(base for base in free_ports() if all(map(is_free, range(base, base + count))))


def is_listening(port: int, timeout: float = 0.5) -> bool:
    """Return whether something accepts connections on the port; `timeout` in seconds."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout):
            return True
    except OSError:
        return False


def wait_gone(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Wait until the processes have exited; return those that still run after `seconds`."""
    deadline = time.monotonic() + seconds
    left = list(processes)
    while True:
        # Read before the check, so that there is one after the deadline: this process may have been paused.
        late = time.monotonic() >= deadline
        left = [p for p in left if _alive(p)]
        if late or not left:
            return left
        time.sleep(0.01)


def _alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        # It exited between the two calls.
        return False
