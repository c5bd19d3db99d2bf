"""Real servers of the local stack, started and killed by a test."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from market_dev.stack import processes
from market_dev.stack.kafka import apache
from market_dev.stack.kafka.broker import EmbeddedKafka, Kafka
from market_dev.stack.servers.base import Server, StartError, tail
from market_dev.stack.servers.mail import Mail
from market_dev.stack.servers.mongodb import Mongodb
from market_dev.stack.servers.postgres import Postgres
from market_dev.stack.servers.redis import Redis

from tests.support.ports import free_port


class ServerHandle:
    """One server process: `start`, `kill`, `restart`, `pause`, `resume`, `stop`. It keeps its port and its data."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.host = server.host
        self.port = server.port
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.server.name} is not running"
        return self.process.pid

    def start(self, seconds: float = 120) -> None:
        """Start the server and wait until it is ready. Raises StartError."""
        self.server.prepare()
        self.restart(seconds)

    def restart(self, seconds: float = 120) -> None:
        """Start the server on its port and data, after stopping it if it runs. Raises StartError."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        deadline = time.monotonic() + seconds
        while True:
            self.launch()
            if self._until(self.server.probe, deadline):
                return
            self.kill()
            if time.monotonic() > deadline:
                raise StartError(f"{self.server.name} did not start; its log ends with:\n{tail(self.server.log)}")
            # It exited at once, perhaps because its predecessor is not quite gone.
            time.sleep(0.2)

    def launch(self) -> None:
        """Start the process of a server that does not run, without waiting until the server is ready."""
        self.server.before_start()
        self.process = processes.spawn(self.server.command(), log=self.server.log, cwd=self.server.cwd)

    def _until(self, probe: Callable[[], bool], deadline: float) -> bool:
        assert self.process is not None
        while time.monotonic() < deadline and self.process.poll() is None:
            if probe():
                return True
            time.sleep(0.02)
        return False

    def kill(self) -> None:
        """Send SIGKILL and return when the process and its children are gone."""
        if self.process is not None:
            children = processes.tree(self.process.pid)[1:]
            self.process.kill()
            self.process.wait()
            self.server.after_stop()
            # Children exit when they notice; they must not meet the next start.
            for child in processes.wait_gone(children, 5):
                child.kill()

    def pause(self) -> None:
        """Send SIGSTOP to the process and its children: connections stay open, and nothing responds."""
        processes.signal_tree(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        processes.signal_tree(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """Stop the process gracefully; kill it when that takes too long."""
        if self.process is None or self.process.poll() is not None:
            return
        self.resume()
        self.process.send_signal(self.server.stop_signal)
        try:
            self.process.wait(self.server.stop_seconds)
            self.server.after_stop()
        except subprocess.TimeoutExpired:
            self.kill()


class PostgresHandle(ServerHandle):
    """Databases `products` and `inventory`, each with a user of the same name; all users have one password."""

    def __init__(self, server: Postgres) -> None:
        super().__init__(server)
        self.password = server.password

    def uri(self, database: str) -> str:
        return f"postgresql://{database}:{self.password}@{self.host}:{self.port}/{database}"


class UriHandle(ServerHandle):
    """A server that clients find by `uri`: Redis or MongoDB."""

    def __init__(self, server: Redis | Mongodb) -> None:
        super().__init__(server)
        self.uri = server.uri


class KafkaHandle(ServerHandle):
    """`kind` is "apache" or "embedded"."""

    def __init__(self, server: Kafka) -> None:
        super().__init__(server)
        self.kind = server.kind
        self.bootstrap_servers = f"{server.host}:{server.port}"


class MailHandle(ServerHandle):
    """The mail catcher: SMTP at `smtp_port`, page and JSON API at `url`."""

    def __init__(self, server: Mail) -> None:
        super().__init__(server)
        self.smtp_port = server.smtp_port
        self.url = server.url


@contextmanager
def running(handle: ServerHandle) -> Iterator[None]:
    """Run the server within the block."""
    try:
        handle.start()
        yield
    finally:
        handle.stop()


def postgres_server(directory: Path, logs: Path) -> Postgres:
    return Postgres(free_port(), directory, logs, secrets.token_hex(16))


def kafka_server(directory: Path, logs: Path, kind: str | None = None) -> Kafka:
    """Return Apache Kafka if Java and Maven are available, else the embedded broker; MARKET_TEST_KAFKA overrides."""
    kind = kind or os.environ.get("MARKET_TEST_KAFKA") or ("embedded" if apache.why_unavailable() else "apache")
    if kind == "apache":
        return apache.ApacheKafka(free_port(), free_port(), directory, logs)
    return EmbeddedKafka(free_port(), directory, logs)


def mail_server(directory: Path, logs: Path, *options: str, testing: bool = False) -> Mail:
    return Mail(free_port(), free_port(), directory, logs, testing=testing, options=options)
