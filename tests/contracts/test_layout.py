"""scripts/check_layout.py, which compares the tables of files in docs/architecture.md with the services."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(root: Path) -> list[str]:
    """Return the lines that the check prints; none if it passes."""
    command = [sys.executable, ROOT / "scripts" / "check_layout.py", root]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1 if done.stdout else 0, "")
    return done.stdout.splitlines()


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "docs" / "architecture.md", tmp_path / "docs")
    shutil.copytree(
        ROOT / "src" / "market", tmp_path / "src" / "market", ignore=shutil.ignore_patterns("__pycache__", "static")
    )
    return tmp_path


def test_the_tables_describe_every_service(copy: Path) -> None:
    assert run(ROOT) == []
    assert run(copy) == []


def test_a_file_that_is_not_in_the_tables_is_an_error(copy: Path) -> None:
    (copy / "src/market/orders/helpers.py").write_text("")
    (copy / "src/market/products/shelf").mkdir()
    assert run(copy) == [
        "src/market/products/shelf: not in the tables of docs/architecture.md",
        "src/market/orders/helpers.py: not in the tables of docs/architecture.md",
    ]


def test_a_sub_package_of_another_service_is_an_error(copy: Path) -> None:
    (copy / "src/market/products/outbox").mkdir()
    assert run(copy) == ["src/market/products/outbox: not in the tables of docs/architecture.md"]


def test_a_row_that_no_service_has_is_an_error(copy: Path) -> None:
    for path in copy.glob("src/market/*/metrics.py"):
        path.unlink()
    (copy / "src/market/orders/outbox/relay.py").unlink()
    assert run(copy) == [
        "docs/architecture.md: no service has metrics.py",
        "docs/architecture.md: orders has no outbox/relay.py",
    ]


def test_an_init_file_with_content_is_an_error(copy: Path) -> None:
    (copy / "src/market/orders/outbox/__init__.py").write_text("from market.orders.outbox.relay import Relay\n")
    assert run(copy) == ["src/market/orders/outbox/__init__.py: must be empty"]


def test_only_the_wiring_may_bypass_the_entry_module_of_a_sub_package(copy: Path) -> None:
    line = "from market.graphql.engine import compiler\n"
    for name in ("app.py", "service.py"):
        path = copy / "src/market/graphql" / name
        path.write_text(path.read_text() + line)
    number = len((copy / "src/market/graphql/service.py").read_text().splitlines())
    assert run(copy) == [
        f"graphql/service.py:{number}: imports market.graphql.engine.compiler, but engine/ is entered through executor"
    ]
