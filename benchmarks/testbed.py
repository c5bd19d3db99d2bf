"""The testbed: the local stack, and peers beside it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from market_dev.stack import processes
from market_dev.stack.stack import Stack
from market_dev.stack.topology import Options, config_directory

from benchmarks.cpu import assign_cores
from benchmarks.load import ROOT, LoadDriver, kill


class Testbed(LoadDriver):
    """Owns the stack, the peers and their processes.

    seconds, warmup: of each load
    smoke, quick: see `benchmarks.run`; incomplete: leave out peers that are not installed
    """

    # Not a test, although pytest would take it for one.
    __test__ = False

    def __init__(
        self,
        directory: Path,
        port_base: int,
        *,
        seconds: float,
        warmup: float,
        kafka: str = "auto",
        postgres_settings: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(seconds=seconds, warmup=warmup)
        options = Options(
            directory,
            port_base=port_base,
            kafka=kafka,
            log_format="json",
            # For injected faults.
            mail_testing=True,
            # For 256 connections of pgbench.
            postgres_settings={"max_connections": "400", **(postgres_settings or {})},
        )
        self.kafka = kafka
        self.stack = Stack(options, notify=lambda line: print(f"  {line}"))
        self.directory = directory
        self.port_base = port_base
        self.quick = self.smoke = self.incomplete = False
        # A file in the Online Retail format, for the replay.
        self.data: Path | None = None
        # How many orders MongoDB has in the scenarios of very many orders.
        self.orders = 10_000_000
        # Of the load in the memory scenario.
        self.memory_minutes: float | None = None
        self.memory_rate = 50.0
        # How many seconds so many clients of pgbench took to connect.
        self.pgbench_connect_seconds: dict[int, float] = {}
        # The commit to compare with, and its abbreviated id once it is installed; the shops of both builds.
        self.ref = self.before = ""
        self.builds: list[Any] = []
        # Closed after the scenarios of the group.
        self.resources = AsyncExitStack()
        self.peers: dict[str, subprocess.Popen[bytes]] = {}
        self.product_ids: list[str] = []

    async def __aenter__(self) -> Testbed:
        try:
            await self.stack.start()
        except BaseException:
            await self.stack.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop_peers()
        await self.stack.stop()

    @property
    def urls(self) -> dict[str, Any]:
        return self.stack.urls

    def port(self, name: str) -> int:
        return self.stack.ports[name]

    def peer_port(self, number: int) -> int:
        """Return a port for a process beside the stack."""
        return self.port_base + 20 + number

    async def fill(self, count: int = 1000) -> list[str]:
        """Return the ids of the catalogue, creating it once. Its stock suffices for all benchmarks together."""
        if not self.product_ids:
            count = min(count, 200) if self.smoke else count
            await self.load(
                port=self.port("products"), workload="catalogue", params={"prefix": "c"}, connections=32, count=count
            )
            self.product_ids = await product_ids(self.urls["products"], count)
        return self.product_ids

    # Processes beside the stack.

    async def start(
        self, name: str, args: Sequence[str | Path], port: int | None, env: Mapping[str, str] | None = None
    ) -> None:
        """Start a process, unless it runs, and wait until it listens on `port`. Raises RuntimeError."""
        if name in self.peers:
            return
        environment = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **(env or {})}
        log = self.directory / "logs" / f"peer-{name}.log"
        command = processes.Command(args, environment)
        self.peers[name] = processes.spawn(command, log=log, cwd=ROOT / "benchmarks" / "peers")
        for _ in range(300):
            if port is None or processes.is_listening(port):
                return
            if self.peers[name].poll() is not None:
                break
            await asyncio.sleep(0.1)
        raise RuntimeError(f"{name} did not start; {log} ends with: {log.read_text()[-2000:]}")

    async def start_asgi(self, name: str, app: str, port: int, env: Mapping[str, str]) -> None:
        """Start an ASGI app as its documentation recommends: uvicorn with uvloop and httptools, without access log."""
        uvicorn = [sys.executable, "-m", "uvicorn", app, "--host", "127.0.0.1", "--port", str(port)]
        await self.start(name, [*uvicorn, "--no-access-log", "--log-level", "warning"], port, env)

    async def start_service(self, service: str, name: str, offset: int, *, module: str = "", database: str = "") -> int:
        """Start another copy of a service, or `module` with its configuration, and return its port.

        database: instead of that of the stack; it is migrated first.
        """
        port = self.peer_port(offset)
        config = config_directory() / f"{service}.yaml"
        if database:
            text = config.read_text("utf-8").replace(f"database: {service}", f"database: {database}")
            config = self.directory / f"{database}.yaml"
            config.write_text(text, "utf-8")
        env = {
            **self.stack.environment(service),
            "MARKET_PORT": str(port),
            "MARKET_ADMIN_PORT": str(port + 1),
            "CONFIG_PATH": str(config),
        }
        if database:
            await self.run([sys.executable, "-m", f"market.{service}", "migrate"], env)
        await self.start(name, [sys.executable, "-m", module or f"market.{service}"], port, env)
        return port

    def stop(self, name: str) -> None:
        """Stop a process beside the stack, if it runs."""
        process = self.peers.pop(name, None)
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def stop_peers(self) -> None:
        for name in list(self.peers):
            self.stop(name)

    @property
    def pids(self) -> dict[str, int]:
        return {**self.stack.pids, **{name: p.pid for name, p in self.peers.items()}}

    def pin(self, *names: str) -> None:
        """Give these processes the first core and all others the remaining ones; without names, unpin everything."""
        self.generator_cores = assign_cores(self.pids, names)

    # Single requests and programs.

    async def get(self, url: str) -> Any:
        """Return the JSON of the response. Raises httpx.HTTPStatusError."""
        return await fetch("GET", url)

    async def post(self, url: str, body: Any) -> Any:
        """Return the JSON of the response. Raises httpx.HTTPStatusError."""
        return await fetch("POST", url, body)

    async def run(
        self, args: Sequence[str | Path], env: Mapping[str, str] | None = None, *, core: int | None = None
    ) -> str:
        """Return the output of a program that runs to its end. Raises RuntimeError if it fails."""

        def pin_to_core() -> None:
            cores = sorted(os.sched_getaffinity(0))
            if core is not None and len(cores) > 1:
                os.sched_setaffinity(0, {cores[core]})

        process = await asyncio.create_subprocess_exec(
            *map(str, args),
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            cwd=ROOT,
            preexec_fn=pin_to_core,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, errors = await process.communicate()
        finally:
            kill(process)
        if process.returncode:
            raise RuntimeError(f"{args[0]} failed: {errors.decode()[-2000:]}")
        return out.decode()


async def fetch(method: str, url: str, body: Any = None) -> Any:
    """Return the JSON of the response. Raises httpx.HTTPStatusError."""

    def send() -> Any:
        response = httpx.request(method, url, json=body, timeout=20)
        response.raise_for_status()
        return response.json()

    return await asyncio.to_thread(send)


async def product_ids(products_url: str, count: int) -> list[str]:
    """Return the ids of the newest `count` products."""
    ids: list[str] = []
    for offset in range(0, count, 100):
        page = await fetch("GET", f"{products_url}/api/product?limit=100&offset={offset}&availability=false")
        ids += [item["id"] for item in page["items"]]
    return ids[:count]


async def read_pages(products_url: str, count: int, size: int = 20) -> dict[str, Any]:
    """Return the first `count` pages of the list with availability, by their paths: each begins where one ends."""
    path: str | None = f"/api/product?limit={size}"
    pages: dict[str, Any] = {}
    while path is not None and len(pages) < count:
        pages[path] = await fetch("GET", f"{products_url}{path}")
        following = pages[path].get("next")
        path = following and f"/api/product?limit={size}&after={quote(following)}"
    return pages


async def outbox_drained(mongodb_url: str, timeout_seconds: float = 30) -> float:
    """Wait until all events are published. Return the seconds waited; raises RuntimeError after the timeout."""
    import pymongo

    started = time.perf_counter()
    client: Any = pymongo.AsyncMongoClient(mongodb_url)
    try:
        while time.perf_counter() - started < timeout_seconds:
            if await client["orders"]["orders"].count_documents({"unsent_since": {"$exists": True}}, limit=1) == 0:
                break
            await asyncio.sleep(0.05)
        else:
            raise RuntimeError(f"the outbox was not drained within {timeout_seconds:g} s")
    finally:
        await client.close()
    return time.perf_counter() - started


def assert_same(name: str, ours: Any, theirs: Any) -> None:
    """Raise RuntimeError unless both responses are the same."""
    if ours != theirs:
        raise RuntimeError(f"{name} responds differently:\n{json.dumps(ours)[:1500]}\n{json.dumps(theirs)[:1500]}")
