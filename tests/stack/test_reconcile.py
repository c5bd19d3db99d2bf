"""What `market reconcile` makes of the lines that orders sends."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from market_dev.commands.cli import app
from typer.testing import CliRunner

PROGRESS = {"kind": "progress", "step": "orders", "done": 3, "total": 3}
DIFFERENCE = {
    "kind": "difference",
    "difference": "reservation-without-order",
    "id": "0190",
    "cause": "MongoDB was restored",
    "detail": "2 of p1",
    "repaired": None,
}
SUMMARY = {
    "kind": "summary",
    "orders": 3,
    "reservations": 4,
    "messages": None,
    "differences": 0,
    "repaired": 0,
    "seconds": 0.1,
    "complete": True,
    "error": None,
}


class _Orders:
    """An admin port that answers with given lines and remembers what it was asked."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []
        self.status = 200
        self.asked: list[str] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                outer.asked.append(self.path)
                self.send_response(outer.status)
                self.end_headers()
                for line in outer.lines:
                    self.wfile.write(json.dumps(line).encode() + b"\n")

            def log_message(self, *_: object) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def orders() -> Iterator[_Orders]:
    made = _Orders()
    thread = threading.Thread(target=made.server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


@pytest.fixture
def reconcile(orders: _Orders) -> Callable[..., Any]:
    return lambda *options: CliRunner().invoke(app, ["reconcile", "--url", orders.url, *options])


def test_books_that_agree_are_said_so_and_end_with_0(orders: _Orders, reconcile: Callable[..., Any]) -> None:
    orders.lines = [PROGRESS, SUMMARY]
    done = reconcile()
    assert (done.exit_code, orders.asked) == (0, ["/reconcile?repair=0&topic=0"])
    assert "Compared 3 orders, 4 reservations in 0.1 s." in done.output
    assert "Everything agrees." in done.output


def test_a_difference_is_shown_with_its_cause_and_ends_with_1(orders: _Orders, reconcile: Callable[..., Any]) -> None:
    orders.lines = [DIFFERENCE, PROGRESS, SUMMARY | {"differences": 1}]
    done = reconcile("--topic")
    assert (done.exit_code, orders.asked) == (1, ["/reconcile?repair=0&topic=1"])
    for part in ("MongoDB was restored", "2 of p1", "1 difference."):
        assert part in done.output


def test_what_was_mended_ends_with_0(orders: _Orders, reconcile: Callable[..., Any]) -> None:
    orders.lines = [DIFFERENCE | {"repaired": True}, SUMMARY | {"differences": 1, "repaired": 1}]
    done = reconcile("--repair")
    assert (done.exit_code, orders.asked) == (0, ["/reconcile?repair=1&topic=0"])
    assert "1 difference, 1 of them mended." in done.output


def test_json_passes_every_line_on(orders: _Orders, reconcile: Callable[..., Any]) -> None:
    orders.lines = [PROGRESS, DIFFERENCE, SUMMARY | {"differences": 1}]
    done = reconcile("--json")
    assert done.exit_code == 1
    assert [json.loads(line) for line in done.stdout.splitlines()] == orders.lines


@pytest.mark.parametrize(
    ("lines", "status", "said"),
    [
        ([PROGRESS], 200, "broke off before the end"),
        ([SUMMARY | {"complete": False, "error": "inventory: away"}], 200, "not finished: inventory: away"),
        ([], 404, "is not the admin port of orders"),
    ],
)
def test_what_could_not_be_finished_ends_with_2(
    orders: _Orders, reconcile: Callable[..., Any], lines: list[dict[str, Any]], status: int, said: str
) -> None:
    orders.lines, orders.status = lines, status
    done = reconcile()
    assert done.exit_code == 2
    assert said in done.output
    assert "Everything agrees" not in done.output


def test_nobody_there_is_one_line() -> None:
    done = CliRunner().invoke(app, ["reconcile", "--url", "http://127.0.0.1:1"])
    assert done.exit_code == 2
    assert "orders does not answer at http://127.0.0.1:1" in done.output
