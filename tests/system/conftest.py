"""The whole shop, started by `market up` as a user starts it, once per run; empty, on ports and in a folder of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from whole_shop import MARKET, ROOT, Mails, System, free_base


@pytest.fixture(scope="session")
def shop() -> Iterator[System]:
    # Not below pytest's own folder, which the user that PostgreSQL runs as may not enter.
    directory = Path(tempfile.mkdtemp(prefix="market-system-"))
    directory.chmod(0o755)
    base = free_base()
    report, log = directory / "up.json", directory / "up.log"
    command = [
        str(MARKET),
        "up",
        "--data",
        str(directory / "data"),
        "--port-base",
        str(base),
        "--empty",
        "--json",
        str(report),
    ]
    if kind := os.environ.get("MARKET_TEST_KAFKA"):
        command += ["--kafka", kind]
    with log.open("w") as out:
        up = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT)
    try:
        until = time.monotonic() + 240
        while not report.exists():
            assert up.poll() is None, f"market up ended with {up.returncode}:\n{log.read_text()}"
            assert time.monotonic() < until, f"market up is not ready after 240 s:\n{log.read_text()}"
            time.sleep(0.05)
        said = json.loads(report.read_text())
        yield System(said["urls"], said["pids"], base)
    finally:
        up.terminate()
        status = up.wait(120)
    assert status == 0, f"market up ended with {status}:\n{log.read_text()}"
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=64)) as client:
        yield client


@pytest.fixture
async def mails(shop: System, http: httpx.AsyncClient) -> Mails:
    return Mails(http, shop.urls["mail"])
