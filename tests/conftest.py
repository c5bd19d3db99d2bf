"""Real servers for the tests, each started once per run and only when a test asks for it.

Ports are free ones and the data lies in a folder of its own, so that runs side by side do not meet. Nothing
outlives the run: at its end the servers are stopped, and when it is killed the kernel kills them.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

import asyncpg
import pytest
from hypothesis import HealthCheck, settings
from market_dev.stack import processes as spawn
from market_dev.stack.kafka import apache
from market_dev.stack.kafka.broker import EmbeddedKafka, Kafka
from market_dev.stack.servers.base import Handle, Server
from market_dev.stack.servers.mail import Mail
from market_dev.stack.servers.mongodb import Mongodb
from market_dev.stack.servers.postgres import Postgres
from market_dev.stack.servers.redis import Redis

# How long an example takes is the machine's business, which may stand still for a second at any moment.
settings.register_profile(
    "market", parent=settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("market")

_PREFIX = "market-test-"
_free_ports = spawn.free_ports()


class StoppedClock:
    """Stands in for the module `time`: moves only when a test says so."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.now = time.monotonic()

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def stop_clock(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StoppedClock]:
    """Gives modules of ours a clock that stands still: `clock = stop_clock(resilience)`, `clock.now += 1`."""

    def stop(*modules: ModuleType) -> StoppedClock:
        clock = StoppedClock()
        for module in modules:
            monkeypatch.setattr(module, "time", clock)
        return clock

    return stop


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """A folder that the user PostgreSQL runs as can reach; pytest's own are closed to it."""
    base = Path(tempfile.gettempdir())
    for old in base.glob(f"{_PREFIX}*"):
        with suppress(OSError), (old / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its run was killed.
            shutil.rmtree(old, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    directory.chmod(0o755)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
        if "MARKET_TEST_KEEP" not in os.environ:
            shutil.rmtree(directory, ignore_errors=True)


@contextmanager
def _running(handle: Handle) -> Iterator[None]:
    try:
        handle.start()
        yield
    finally:
        handle.stop()


@pytest.fixture(scope="session")
def patient_pools() -> Iterator[None]:
    """The services' pools in this process wait a minute for a connection, and not two seconds."""
    create_pool = asyncpg.create_pool
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(asyncpg, "create_pool", lambda *args, **more: create_pool(*args, **{**more, "timeout": 60}))
        yield


class PostgresHandle(Handle):
    def __init__(self, server: Postgres) -> None:
        super().__init__(server)
        self.password = server.password

    def uri(self, database: str) -> str:
        return f"postgresql://{database}:{self.password}@{self.host}:{self.port}/{database}"


class UriHandle(Handle):
    def __init__(self, server: Redis | Mongodb) -> None:
        super().__init__(server)
        self.uri = server.uri


class KafkaHandle(Handle):
    def __init__(self, server: Kafka) -> None:
        super().__init__(server)
        self.kind = server.kind
        self.bootstrap_servers = f"{server.host}:{server.port}"


class MailHandle(Handle):
    def __init__(self, server: Mail) -> None:
        super().__init__(server)
        self.smtp_port = server.smtp_port
        self.url = server.url


@pytest.fixture(scope="session")
def postgres(server_directory: Path) -> Iterator[PostgresHandle]:
    """Databases `products` and `inventory`, users of the same names, one password."""
    handle = PostgresHandle(
        Postgres(next(_free_ports), server_directory / "postgres", server_directory / "logs", secrets.token_hex(16))
    )
    with _running(handle):
        yield handle


@pytest.fixture(scope="session")
def redis_server(server_directory: Path) -> Iterator[UriHandle]:
    handle = UriHandle(Redis(next(_free_ports), server_directory / "redis", server_directory / "logs"))
    with _running(handle):
        yield handle


@pytest.fixture(scope="session")
def mongodb(server_directory: Path) -> Iterator[UriHandle]:
    """A replica set of one; `uri` asks for a direct connection."""
    handle = UriHandle(Mongodb(next(_free_ports), server_directory / "mongodb", server_directory / "logs"))
    with _running(handle):
        yield handle


def make_kafka(directory: Path, logs: Path, kind: str | None = None) -> Kafka:
    """Apache Kafka where Java and Maven are there, or as MARKET_TEST_KAFKA says."""
    kind = kind or os.environ.get("MARKET_TEST_KAFKA") or ("embedded" if apache.missing() else "apache")
    if kind == "apache":
        return apache.ApacheKafka(next(_free_ports), next(_free_ports), directory, logs)
    return EmbeddedKafka(next(_free_ports), directory, logs)


@pytest.fixture(scope="session")
def kafka(server_directory: Path) -> Iterator[KafkaHandle]:
    """`kind` is "apache" or "embedded"; on the embedded one topics have four partitions and are made by being used."""
    handle = KafkaHandle(make_kafka(server_directory / "kafka", server_directory / "logs"))
    with _running(handle):
        yield handle


@pytest.fixture(scope="session")
def mail(server_directory: Path) -> Iterator[MailHandle]:
    """Takes every mail; `POST {url}/api/faults` makes it misbehave (`[]`: behave again)."""
    server: Server = Mail(
        next(_free_ports), next(_free_ports), server_directory / "mail", server_directory / "logs", testing=True
    )
    assert isinstance(server, Mail)
    handle = MailHandle(server)
    with _running(handle):
        yield handle
