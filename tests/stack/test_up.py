"""`market up` as a user runs it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from market_dev.stack import processes, topology

from tests.support.processes import MarketUp
from tests.support.waiting import wait_until

# A start may take minutes on a busy machine.
pytestmark = pytest.mark.timeout(900)
Make = Callable[..., MarketUp]
SERVICES = {"products", "orders", "inventory", "notifications", "graphql", "storefront"}
PIDS = {*SERVICES, "postgres", "redis", "mongodb", "kafka", "mail"}
URLS = {
    "storefront",
    "graphql",
    "products",
    "orders",
    "inventory",
    "notifications",
    "mail",
    "smtp",
    "kafka",
    "postgres_products",
    "postgres_inventory",
    "mongodb",
    "redis",
    "admin",
}


@pytest.fixture(scope="module")
def up(make_up: Make) -> Iterator[MarketUp]:
    """One shop for the tests of this file, on the embedded broker; one of the tests stops it."""
    up = make_up("--kafka", "embedded")
    up.start()
    yield up
    up.stop()


def test_the_json_file_names_every_address_and_every_process(up: MarketUp) -> None:
    report = up.report
    assert set(report) == {"urls", "pids"}
    assert set(report["urls"]) == URLS
    assert set(report["urls"]["admin"]) == SERVICES
    assert set(report["pids"]) == PIDS
    assert len(set(report["pids"].values())) == len(PIDS)
    assert all(processes.started_at(pid) for pid in report["pids"].values())
    for url in report["urls"]["admin"].values():
        # A service is not ready while its store has not responded for a second.
        wait_until(lambda url=url: httpx.get(f"{url}/readyz", timeout=60).status_code == 200)


def test_the_printed_command_places_an_order_and_its_mail_arrives(up: MarketUp) -> None:
    wait_until(lambda: "Ctrl-C" in up.output)
    assert "events not yet mailed are lost" in up.output
    (line,) = re.findall(r"^ *(curl .*)$", up.output, re.MULTILINE)

    def placed() -> bool:
        done = subprocess.run(
            ["bash", "-c", f"{line} -w '%{{http_code}}'"], capture_output=True, text=True, check=False
        )
        # 503: a busy machine did not decide the order in time.
        assert done.stdout.endswith(("201", "503")), done.stdout + done.stderr
        return done.stdout.endswith("201")

    wait_until(placed)
    (url,) = re.findall(r"Read the mails: (\S+)/", up.output)
    mails = wait_until(
        lambda: httpx.get(f"{url}/api/messages", params={"to": "ann@example.test"}, timeout=60).json()["items"]
    )
    assert all("confirmed" in mail["subject"] for mail in mails)


def test_the_same_data_directory_cannot_be_used_twice(up: MarketUp, make_up: Make) -> None:
    second = make_up(data=up.data)
    second.spawn()
    assert second.exit_status() == 1
    assert f"is in use by another `market up` (pid {up.process.pid})" in second.output
    assert not second.json_file.exists()


def test_a_port_in_use_is_reported_before_anything_is_started(up: MarketUp, make_up: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        second = make_up(port_base=occupied.getsockname()[1] - topology.ROWS["orders"].ports["orders"])
        second.spawn()
        assert second.exit_status() == 1
        assert f"{occupied.getsockname()[1]} (orders)" in second.output
    assert not (second.data / "pids.json").exists()
    same = make_up(port_base=up.port_base)
    same.spawn()
    assert same.exit_status() == 1
    assert f"{up.port_base} (graphql)" in same.output


@pytest.mark.parametrize("name", ["products", "redis"])
def test_a_killed_process_is_restarted_at_once_on_its_port_and_recorded_in_the_json_file(
    up: MarketUp, name: str
) -> None:
    old = up.report["pids"][name]
    os.kill(old, signal.SIGKILL)
    new = wait_until(lambda: (pid := up.report["pids"].get(name)) not in (None, old) and pid)
    assert processes.started_at(new)
    port = up.port_base + topology.ROWS[name].ports[name]
    wait_until(lambda: processes.is_listening(port))
    # The first restart is immediate.
    wait_until(lambda: f"{name} was killed by signal 9, restarting now" in up.output)
    assert set(up.report["pids"]) == PIDS


def test_a_stop_leaves_no_process_no_port_and_no_file(up: MarketUp) -> None:
    trees = up.process_trees()
    assert len(trees) >= len(PIDS)
    up.process.send_signal(signal.SIGINT)
    assert up.exit_status() == 0
    assert not up.json_file.exists()
    assert processes.wait_gone(trees, 60) == []
    logs = up.data / "logs"
    for name in topology.SERVICES:
        assert " stopped " in (logs / f"{name}.log").read_text().splitlines()[-1], f"{name} did not stop gracefully"
    assert "database system is shut down" in (logs / "postgres.log").read_text()
    assert all(processes.is_free(port) for port in topology.ports(up.port_base).values())


def test_two_shops_run_side_by_side_and_a_killed_one_keeps_its_data(make_up: Make) -> None:
    first, second = make_up("--empty"), make_up("--empty", "--kafka", "embedded")
    first.spawn()
    second.start()
    wait_until(first.json_file.exists, 180)
    body = {"name": "Teapot", "description": "", "price": "19.90", "currency": "EUR", "stock": 3}

    def product(method: str, shop: MarketUp, path: str = "", **more: Any) -> dict[str, Any]:
        """Return the body of the response, repeating the request after a 503."""

        def response() -> httpx.Response | None:
            response = httpx.request(method, f"{shop.report['urls']['products']}/api/product{path}", timeout=60, **more)
            return None if response.status_code == 503 else response

        response = wait_until(response)
        assert response.is_success, response.text
        return dict(response.json())

    created = product("POST", first, json=body, headers={"Idempotency-Key": "teapot"})
    assert product("GET", second)["total"] == 0

    trees = first.process_trees()
    first.process.kill()
    first.process.wait()
    assert processes.wait_gone(trees, 60) == [], "the kernel kills the children of a killed parent"
    assert second.process.poll() is None

    again = make_up("--empty", data=first.data, port_base=first.port_base)
    again.start()
    assert product("GET", again, f"/{created['id']}")["name"] == "Teapot"
    # Unknown while inventory does not respond in time.
    wait_until(lambda: product("GET", again, f"/{created['id']}")["available"])
    trees = again.process_trees()
    again.process.terminate()
    assert again.exit_status() == 0
    assert processes.wait_gone(trees, 60) == []
