"""The whole shop, started once per run by `market up` as a user starts it: empty, with its own ports and data."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.ports import free_port_base
from tests.support.processes import MarketUp
from tests.system.whole_shop import Mails, System


@pytest.fixture(scope="session")
def shop() -> Iterator[System]:
    # Not below pytest's own directory, which the user that PostgreSQL runs as may not enter.
    directory = Path(tempfile.mkdtemp(prefix="market-system-"))
    directory.chmod(0o755)
    kind = os.environ.get("MARKET_TEST_KAFKA")
    up = MarketUp(directory / "data", free_port_base(), "--empty", *(["--kafka", kind] if kind else []))
    try:
        up.start()
        yield System(up.urls, up.pids, up.port_base)
    finally:
        status = up.stop()
    assert status == 0, f"market up exited with {status}:\n{up.output}"
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=64)) as client:
        yield client


@pytest.fixture
async def mails(shop: System, http: httpx.AsyncClient) -> Mails:
    return Mails(http, shop.urls["mail"])
