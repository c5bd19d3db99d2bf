"""The life of a process: it waits for its dependencies, logs why once, drains, and exits with 0."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from market_dev.stack.kafka.broker import EmbeddedKafka

from tests.kit.test_config import ENVIRONMENT, ROOT
from tests.support.ports import free_port
from tests.support.servers import ServerHandle
from tests.support.waiting import wait_until

SERVICE = """
import asyncio, os
from contextlib import asynccontextmanager
from pathlib import Path
from market.kit.http import edge
from market.kit.http.responses import json_response
from market.kit.config import ServiceConfig, Http
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import run

class Config(ServiceConfig, kw_only=True):
    http: Http
    store: str

@asynccontextmanager
async def build(config, process):
    async def store():
        if not Path(config.store).exists():
            raise OSError("the store is unavailable")
        if Path(config.store).read_text() != "open":
            raise OSError("the store is closed")
    await process.health.wait_for("store", store)
    process.health.add_check("store", store)
    async def slow(request):
        (Path(config.store).parent / f"entered-{request.path_params['n']}").touch()
        while not (Path(config.store).parent / "respond").exists():
            await asyncio.sleep(0.01)
        return json_response({"done": True})
    yield HttpServer(edge.application({"GET /slow/{n}": slow}, config.http), config.http.host, config.http.port)

async def copy(config, arguments):
    raise OSError("the disk is full")

run("example", Config, build, commands={"copy": copy})
"""


@dataclass
class Running:
    process: subprocess.Popen[bytes]
    admin: int
    port: int
    log_file: Path

    def metric(self, sample: str) -> float | None:
        """Return the value of a sample of /metrics, such as `name{label="x"}`; None if there is none."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{sample} ")), None)

    def get(self, path: str, port: int | None = None) -> tuple[int, Any]:
        """Return status and JSON body; status 0 if nothing responds."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port or self.admin}{path}", timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as e:
            with e:
                return e.code, json.load(e)
        except OSError:
            return 0, None

    def until(self, path: str, status: int, seconds: float = 60) -> Any:
        end = time.monotonic() + seconds
        while True:
            found, body = self.get(path)
            if found == status:
                return body
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, (found, body, self.log)
            time.sleep(0.02)

    def until_logged(self, event: str, seconds: float = 60, **fields: str) -> None:
        end = time.monotonic() + seconds
        while not self.logged(event, **fields):
            assert self.process.poll() is None, self.log
            assert time.monotonic() < end, self.log
            time.sleep(0.02)

    def terminate(self, seconds: float = 60) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def reasons(self) -> list[str]:
        """Return why it waits, each reason as often as it was logged."""
        lines = map(json.loads, self.log.splitlines())
        return [line["reason"] for line in lines if line["event"] == "waiting for dependency"]

    def logged(self, event: str, **fields: str) -> int:
        """Return how often the event was logged with these fields."""
        lines = map(json.loads, self.log.splitlines())
        return sum({"event": event, **fields}.items() <= line.items() for line in lines)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Any]:
    started: list[Running] = []

    def begin(command: list[str], config: Path, **environ: str) -> Running:
        number = len(started)
        admin, port, log = free_port(), free_port(), tmp_path / f"{number}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *command],
                stderr=file,
                stdout=file,
                env={
                    **os.environ,
                    **ENVIRONMENT,
                    "MARKET_ADMIN_PORT": str(admin),
                    "MARKET_PORT": str(port),
                    "CONFIG_PATH": str(config),
                    **environ,
                },
            )
        started.append(Running(process, admin, port, log))
        return started[-1]

    yield begin
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
        running.process.wait()


@pytest.fixture
def example(start: Any, tmp_path: Path) -> Any:
    """Starts the small service above, whose store is the file `store`."""
    (tmp_path / "example.py").write_text(SERVICE)

    def begin(*arguments: str, drain: float = 0, **environ: str) -> Running:
        file = tmp_path / "example.yaml"
        file.write_text(
            'admin: {port: "${MARKET_ADMIN_PORT}"}\nhttp: {port: "${MARKET_PORT}"}\n'
            f"store: {tmp_path / 'store'}\nshutdown: {{drain_seconds: {drain}, grace_seconds: 60}}\n"
        )
        running: Running = start([str(tmp_path / "example.py"), *arguments], file, **environ)
        return running

    return begin


def test_a_process_waits_for_its_store_and_logs_each_reason_once(example: Any, tmp_path: Path) -> None:
    service = example()
    service.until("/healthz", 200)
    service.until_logged("waiting for dependency", dependency="store")
    assert service.until("/readyz", 503) == {"status": "unready", "reasons": {"store": "the store is unavailable"}}
    time.sleep(1.5)
    (tmp_path / "store").write_text("closed")
    wait_until(lambda: len(service.reasons()) > 1, what=lambda: service.log)
    time.sleep(1.5)
    (tmp_path / "store").write_text("open")
    service.until("/readyz", 200)
    assert service.reasons() == ["the store is unavailable", "the store is closed"]
    assert service.logged("dependency available", dependency="store") == 1
    assert service.logged("ready") == 1
    # Unavailable again: it is reported, but the process stays ready, because another copy would have no other store.
    (tmp_path / "store").write_text("closed")
    unavailable = {"status": "ready", "unavailable": {"store": "the store is closed"}}
    wait_until(lambda: service.get("/readyz") == (200, unavailable), what=lambda: service.log)
    assert service.metric('market_dependency_available{dependency="store"}') == 0
    (tmp_path / "store").write_text("open")
    wait_until(lambda: service.get("/readyz") == (200, {"status": "ready"}), what=lambda: service.log)
    assert service.metric('market_dependency_available{dependency="store"}') == 1
    assert service.terminate() == 0


def test_sigterm_while_waiting_for_a_store_exits_at_once_with_0(example: Any) -> None:
    service = example(drain=200)
    service.until("/readyz", 503)
    # Nothing is in flight.
    assert service.terminate(60) == 0
    assert service.logged("stopped") == 1


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_requests_in_flight_at_shutdown_are_finished_after_readiness_is_off(
    example: Any, tmp_path: Path, signum: signal.Signals
) -> None:
    (tmp_path / "store").write_text("open")
    service = example(drain=7)
    service.until("/readyz", 200)
    responses: list[tuple[int, Any]] = []

    def call(n: int) -> threading.Thread:
        caller = threading.Thread(target=lambda: responses.append(service.get(f"/slow/{n}", service.port)))
        caller.start()
        wait_until((tmp_path / f"entered-{n}").exists, what=lambda: service.log)
        return caller

    callers = [call(1)]
    service.process.send_signal(signum)
    assert service.until("/readyz", 503)["reasons"] == {"process": "draining"}
    # It still serves, because the ingress and the endpoints take a while to notice.
    time.sleep(1)
    callers.append(call(2))
    # A second signal cuts nothing short.
    service.process.send_signal(signum)
    wait_until(lambda: service.get("/nothing", service.port) == (0, None), what=lambda: service.log)
    assert service.process.poll() is None
    (tmp_path / "respond").touch()
    for caller in callers:
        caller.join()
    assert responses == [(200, {"done": True})] * 2
    assert service.process.wait(60) == 0
    assert service.get("/healthz") == (0, None)


def test_a_port_in_use_is_named(example: Any, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("open")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        service = example(MARKET_PORT=str(port))
        assert service.process.wait(60) == 1
        [error] = [json.loads(line) for line in service.log.splitlines() if '"error"' in line]
        assert error["reason"] == f"cannot listen on 127.0.0.1:{port}: Address already in use"


def test_a_command_that_fails_is_not_reported_as_a_service_that_cannot_serve(example: Any) -> None:
    command = example("copy")
    assert command.process.wait(60) == 1
    assert command.logged("command failed", command="copy", reason="the disk is full") == 1
    assert command.logged("cannot serve") == 0


def test_a_log_that_cannot_be_written_fails_no_request(example: Any, tmp_path: Path) -> None:
    (tmp_path / "store").write_text("open")
    file = tmp_path / "example.yaml"
    first = example()
    first.until("/readyz", 200)
    first.terminate()
    admin = free_port()
    with open("/dev/full", "wb") as full:
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / "example.py")],
            stderr=full,
            env={
                **os.environ,
                "MARKET_ADMIN_PORT": str(admin),
                "MARKET_PORT": str(free_port()),
                "CONFIG_PATH": str(file),
            },
        )
    service = Running(process, admin, 0, first.log_file)
    try:
        service.until("/readyz", 200)
        assert service.terminate() == 0
    finally:
        process.kill()
        process.wait()


def test_help_and_an_unknown_command_need_no_configuration() -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "market.inventory", *args], capture_output=True, text=True, timeout=60, check=False
        )

    helped, rejected = run("--help"), run("migrat")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith("usage: CONFIG_PATH=FILE python -m market.inventory [migrate")
    assert (rejected.returncode, rejected.stdout) == (2, "")
    assert rejected.stderr.endswith("unknown command: migrat\n")


@pytest.mark.parametrize("service", ["products", "orders", "inventory", "notifications"])
def test_a_service_without_its_stores_is_alive_and_exits_with_0(start: Any, service: str) -> None:
    closed = {
        f"MARKET_{n}_PORT": str(free_port())
        for n in ("POSTGRES", "REDIS", "MONGODB", "KAFKA", "SMTP", "PRODUCTS", "INVENTORY")
    }
    running = start(["-m", f"market.{service}"], ROOT / "config" / f"{service}.yaml", **closed)
    running.until("/healthz", 200)
    running.until_logged("waiting for dependency")
    reasons = running.until("/readyz", 503)["reasons"]
    assert reasons
    assert reasons != {"process": "starting"}
    time.sleep(2)
    assert running.terminate() == 0
    # Once for each reason; on a busy machine also for a timeout.
    waits = running.reasons()
    assert len(set(waits)) == len(waits), running.log
    assert 1 <= len(waits) <= 3, running.log
    assert len(running.log.splitlines()) < 9, running.log
    # Each line is JSON, with the name of the service.
    assert {json.loads(line)["service"] for line in running.log.splitlines()} == {service}


def test_notifications_can_be_started_before_kafka(start: Any, tmp_path: Path) -> None:
    kafka = ServerHandle(EmbeddedKafka(free_port(), tmp_path / "kafka", tmp_path))
    running = start(
        ["-m", "market.notifications"],
        ROOT / "config" / "notifications.yaml",
        MARKET_KAFKA_PORT=str(kafka.port),
        # The embedded broker creates topics automatically.
        MARKET_KAFKA_PARTITIONS="0",
    )
    running.until("/readyz", 503)
    running.until_logged("waiting for dependency", dependency="kafka")
    try:
        kafka.start()
        running.until("/readyz", 200)
        # Once for each reason: unavailable, not ready yet, and on a busy machine a timeout.
        waits = running.reasons()
        assert len(set(waits)) == len(waits), running.log
        assert 1 <= running.logged("waiting for dependency", dependency="kafka") <= 3
        assert running.logged("dependency available", dependency="kafka") == 1
        assert running.terminate() == 0
    finally:
        kafka.stop()
