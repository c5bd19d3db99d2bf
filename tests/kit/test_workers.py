"""Two workers of one small service, started as the real ones are."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from market_dev.stack import processes as spawn

SERVICE = """
import os
from contextlib import asynccontextmanager
from market.kit.http import edge
from market.kit.http.responses import json_response
from market.kit.config import Base, Http
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import run

class Config(Base, kw_only=True):
    http: Http

@asynccontextmanager
async def build(config, process):
    async def pid(request):
        return json_response({"pid": os.getpid()})
    async def hello(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"hello"})
    process.admin_routes["GET /hello"] = hello
    yield HttpServer(edge.application({"GET /pid": pid}, config.http), config.http.host, config.http.port, shared=config.workers > 1)

run("twins", Config, build)
"""


_ports = spawn.free_ports()


def free_port() -> int:
    """Out of the range from which the kernel takes ports for outgoing connections: one of those could be first."""
    return next(_ports)


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:
        return bytes(response.read())


def until_ready(admin: str, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while True:
        try:
            get(f"{admin}/readyz")
        except OSError:
            assert time.monotonic() < end, "it did not become ready"
            time.sleep(0.05)
        else:
            return


@pytest.fixture
def twins(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], str, str]]:
    # A service of the name `market.twins`, beside the real ones: a second folder of the package's path.
    package = tmp_path / "site" / "market_twins"
    package.mkdir(parents=True)
    (package / "twins").mkdir()
    (package / "twins" / "__main__.py").write_text(SERVICE)
    (tmp_path / "site" / "sitecustomize.py").write_text(f"import market; market.__path__.append({str(package)!r})\n")
    port, admin = free_port(), free_port()
    config = tmp_path / "twins.yaml"
    config.write_text(
        f"admin: {{port: {admin}}}\nhttp: {{port: {port}}}\nworkers: 2\nshutdown: {{drain_seconds: 0, grace_seconds: 2}}\n"
    )
    environ = {**os.environ, "CONFIG_PATH": str(config), "PYTHONPATH": str(tmp_path / "site")}
    process = subprocess.Popen([sys.executable, "-m", "market.twins"], env=environ)
    try:
        until_ready(f"http://127.0.0.1:{admin}")
        yield process, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{admin}"
    finally:
        process.kill()
        process.wait()


def test_both_workers_serve_and_one_that_dies_is_started_again(twins: tuple[subprocess.Popen[bytes], str, str]) -> None:
    _, url, admin = twins
    pids = {json.loads(get(f"{url}/pid"))["pid"] for _ in range(40)}
    assert len(pids) == 2
    victim = pids.pop()
    os.kill(victim, signal.SIGKILL)
    until_ready(admin)
    seen: set[int] = set()
    end = time.monotonic() + 60
    while len(seen - {victim}) < 2 and time.monotonic() < end:
        try:
            seen.add(json.loads(get(f"{url}/pid"))["pid"])
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    assert len(seen - {victim}) == 2


def test_the_figures_of_all_workers_are_added_up(twins: tuple[subprocess.Popen[bytes], str, str]) -> None:
    _, url, admin = twins
    for _ in range(20):
        get(f"{url}/pid")
    end = time.monotonic() + 60
    # A worker counts an answer once it has sent it.
    while (found := counted(admin)) < 20 and time.monotonic() < end:
        time.sleep(0.05)
    assert found == 20


def counted(admin: str) -> float:
    line = 'market_http_requests_total{method="GET",route="/pid",status="200"} '
    return sum(
        float(said.removeprefix(line))
        for said in get(f"{admin}/metrics").decode().splitlines()
        if said.startswith(line)
    )


def test_what_a_service_added_to_its_admin_port_is_answered(twins: tuple[subprocess.Popen[bytes], str, str]) -> None:
    assert get(f"{twins[2]}/hello") == b"hello"


def test_sigterm_ends_parent_and_workers_with_status_0(twins: tuple[subprocess.Popen[bytes], str, str]) -> None:
    process, url, _ = twins
    pids = {json.loads(get(f"{url}/pid"))["pid"] for _ in range(40)}
    process.terminate()
    assert process.wait(60) == 0
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_port_that_is_taken_is_not_shared_in_silence(
    twins: tuple[subprocess.Popen[bytes], str, str], tmp_path: Path
) -> None:
    _, url, _ = twins
    lone = tmp_path / "lone.yaml"
    lone.write_text(f"admin: {{port: {free_port()}}}\nhttp: {{port: {url.rpartition(':')[2]}}}\n")
    environ = {**os.environ, "CONFIG_PATH": str(lone), "PYTHONPATH": str(tmp_path / "site")}
    second = subprocess.run(
        [sys.executable, "-m", "market.twins"], env=environ, capture_output=True, text=True, timeout=60, check=False
    )
    assert second.returncode == 1
    assert "cannot listen on 127.0.0.1" in second.stderr
    assert "Traceback" not in second.stderr
