"""Clients in other languages against the whole shop: `make test-clients`, where Go, Java with Maven, and Node.js are.

They download their dependencies, in the versions of their lock files.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.system.conftest import http, shop

__all__ = ["http", "shop"]

if os.environ.get("MARKET_CLIENTS") != "1":
    collect_ignore_glob = ["test_*.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Allow half an hour: the first test of a client includes its downloads and its build."""
    for item in items:
        if "clients" in item.path.parts:
            item.add_marker(pytest.mark.timeout(1800))


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory in which the clients are built."""
    return tmp_path_factory.mktemp("clients")
