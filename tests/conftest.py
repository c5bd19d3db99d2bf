"""Fixtures for real servers, each started once per run and only when a test requests it.

Every run has its own ports and its own data directory, so that concurrent runs do not interfere. Nothing outlives
the run: the servers are stopped at its end, and when the run is killed the kernel kills them.
"""

from __future__ import annotations

import fcntl
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from market_dev.stack.servers.mongodb import Mongodb
from market_dev.stack.servers.redis import Redis

from tests.support import servers
from tests.support.clocks import FakeClock
from tests.support.ports import free_port
from tests.support.servers import KafkaHandle, MailHandle, PostgresHandle, UriHandle, running

# The duration of an example depends on the machine, which may stand still for a second at any moment. The examples are
# the same in each run, so that a change is not refused for what it did not change.
settings.register_profile(
    "market",
    parent=settings.default,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
# To search for more: `pytest --hypothesis-profile=search` has other examples in each run.
settings.register_profile("search", parent=settings.get_profile("market"), derandomize=False, print_blob=True)
settings.load_profile("market")


def pytest_collection_finish() -> None:
    """Exempt what exists now from garbage collections: with thousands of tests, each full one takes half a second.

    The services' own limits on time hold in this process too.
    """
    gc.collect()
    gc.freeze()


_PREFIX = "market-test-"


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves only when the test moves it, to be passed in as `clock` (and its `sleep` as `sleep`)."""
    return FakeClock()


@pytest.fixture(scope="session")
def server_directory() -> Iterator[Path]:
    """A data directory that the user PostgreSQL runs as can read; pytest's own are closed to that user."""
    base = Path(tempfile.gettempdir())
    for old in base.glob(f"{_PREFIX}*"):
        with suppress(OSError), (old / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Nobody holds the lock: its run was killed.
            shutil.rmtree(old, ignore_errors=True)
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    directory.chmod(0o755)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield directory
        if "MARKET_TEST_KEEP" not in os.environ:
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres(server_directory: Path) -> Iterator[PostgresHandle]:
    """Databases `products` and `inventory`, each with a user of the same name; all users have one password."""
    handle = PostgresHandle(servers.postgres_server(server_directory / "postgres", server_directory / "logs"))
    with running(handle):
        yield handle


@pytest.fixture(scope="session")
def redis_server(server_directory: Path) -> Iterator[UriHandle]:
    handle = UriHandle(Redis(free_port(), server_directory / "redis", server_directory / "logs"))
    with running(handle):
        yield handle


@pytest.fixture(scope="session")
def mongodb(server_directory: Path) -> Iterator[UriHandle]:
    """A replica set with one member; `uri` requests a direct connection."""
    handle = UriHandle(Mongodb(free_port(), server_directory / "mongodb", server_directory / "logs"))
    with running(handle):
        yield handle


@pytest.fixture(scope="session")
def kafka(server_directory: Path) -> Iterator[KafkaHandle]:
    """Apache Kafka, or the embedded broker, which creates topics on first use, with four partitions."""
    handle = KafkaHandle(servers.kafka_server(server_directory / "kafka", server_directory / "logs"))
    with running(handle):
        yield handle


@pytest.fixture(scope="session")
def mail(server_directory: Path) -> Iterator[MailHandle]:
    """The mail catcher accepts every mail; `POST {url}/api/faults` injects faults, `[]` removes them."""
    handle = MailHandle(servers.mail_server(server_directory / "mail", server_directory / "logs", testing=True))
    with running(handle):
        yield handle
