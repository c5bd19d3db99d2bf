"""The testbed: the local stack, peers beside it, the load generator, and the assignment of cores."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import httpx
import msgspec
from market_dev.stack import processes
from market_dev.stack.stack import Stack
from market_dev.stack.topology import Options, config_directory

from benchmarks import generator
from benchmarks.cpu import cpu_ms_per_operation, cpu_seconds, pin
from benchmarks.measurements import Latency, Measurement

ROOT = Path(__file__).parents[1]
R = TypeVar("R")
# The rate of an open loop, as a share of what the contestant reached in the closed loop: busy, but without growing queues.
OPEN_LOOP_SHARE = 0.6


class Testbed:
    """Owns the stack, the peers and their processes.

    seconds, warmup: of each load
    smoke, quick: see `benchmarks.run`; incomplete: leave out peers that are not installed
    """

    # Not a test, although pytest would take it for one.
    __test__ = False

    def __init__(self, directory: Path, port_base: int, *, seconds: float, warmup: float, kafka: str = "auto") -> None:
        options = Options(
            directory,
            port_base=port_base,
            kafka=kafka,
            log_format="json",
            # For 256 connections of pgbench.
            postgres_settings={"max_connections": "400"},
        )
        self.stack = Stack(options, notify=lambda line: print(f"  {line}"))
        self.directory = directory
        self.port_base = port_base
        self.seconds = seconds
        self.warmup = warmup
        self.open_loop_seconds = min(2.0, seconds)
        self.quick = self.smoke = self.incomplete = False
        # A file in the Online Retail format, for the replay.
        self.data: Path | None = None
        # Of the load in the memory scenario.
        self.memory_minutes: float | None = None
        self.memory_rate = 50.0
        # How many seconds so many clients of pgbench took to connect.
        self.pgbench_connect_seconds: dict[int, float] = {}
        self.peers: dict[str, subprocess.Popen[bytes]] = {}
        self.product_ids: list[str] = []
        self._generator_cores: set[int] | None = None

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

    async def start_service(self, service: str, name: str, offset: int, *, module: str = "") -> int:
        """Start another copy of a service, or `module` with its configuration, and return its port."""
        port = self.peer_port(offset)
        env = {
            **self.stack.environment(service),
            "MARKET_PORT": str(port),
            "MARKET_ADMIN_PORT": str(port + 1),
            "CONFIG_PATH": str(config_directory() / f"{service}.yaml"),
        }
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

    # Cores and CPU time.

    def pin(self, *names: str) -> None:
        """Give these processes the first core and all others the remaining ones; without names, unpin everything."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            return
        for name, pid in self.pids.items():
            pin(pid, cores if not names else cores[:1] if name in names else cores[1:])
        self._generator_cores = set(cores[1:]) if names else set(cores)

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds used so far, by process."""
        return cpu_seconds(self.pids)

    # Load.

    async def load(self, **spec: Any) -> generator.Result:
        """Run the load generator. For the arguments see `generator.Spec`. Raises RuntimeError if a request failed."""
        return (await self.load_and_cpu(**spec))[0]

    async def load_and_cpu(self, **spec: Any) -> tuple[generator.Result, dict[str, float]]:
        """`load`, and the CPU milliseconds that each process used per successful response."""
        load = generator.Spec(**{"seconds": self.seconds, "warmup": self.warmup, **spec})
        # The duration of a count is not known.
        timeout = 600 if load.count else load.seconds + 60
        result, cpu_ms = await self.run_program(
            "benchmarks.generator", msgspec.json.encode(load), generator.Result, timeout=timeout
        )
        if result.failed:
            raise RuntimeError(
                f"{result.failed} of {result.failed + result.succeeded} requests failed: "
                f"{result.statuses} {result.example_of_failure}"
            )
        return result, cpu_ms

    async def run_program(
        self, module: str, stdin: bytes, result_type: type[R], *, timeout: float | None = None
    ) -> tuple[R, dict[str, float]]:
        """Run a program that prints `begin`, `end` and its result as JSON.

        Return the result, and the CPU milliseconds per successful operation of each process of the testbed. The
        program is killed after `timeout` seconds. Raises RuntimeError if there is no result.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            limit=2**24,
            preexec_fn=self._pin_generator,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stdin)
        process.stdin.close()
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        result: Any = None
        timer = asyncio.get_running_loop().call_later(timeout or self.seconds + 60, _kill, process)
        try:
            async for line in process.stdout:
                if line == b"begin\n":
                    before = self.cpu_seconds()
                elif line == b"end\n":
                    after = self.cpu_seconds()
                elif line.startswith(b"{"):
                    result = msgspec.json.decode(line, type=result_type)
                else:
                    print(line.decode().rstrip(), flush=True)
            await process.wait()
        finally:
            timer.cancel()
            _kill(process)
        if result is None:
            raise RuntimeError(f"{module} failed with the input {stdin[:200]!r}")
        return result, cpu_ms_per_operation(before, after, result.succeeded)

    def _pin_generator(self) -> None:
        if self._generator_cores:
            os.sched_setaffinity(0, self._generator_cores)

    async def closed_loop(self, **spec: Any) -> Measurement:
        """Measure a closed loop."""
        result, cpu_ms = await self.load_and_cpu(**spec)
        # Without a response in all that time, the rate is less than this.
        rate = result.rate or 1 / result.seconds
        return Measurement(
            value=rate, operations=result.succeeded, latency=result.latency, cpu_ms=cpu_ms, notes=_notes(result)
        )

    async def both_loops(
        self, *, open_loop_rate: float | None = None, peer_rate: float | None = None, **spec: Any
    ) -> Measurement:
        """Measure a closed loop, then the latency of an open loop.

        open_loop_rate: default is a share of what the closed loop reached
        peer_rate: measure a second open loop, at that rate
        """
        measured = await self.closed_loop(**spec)
        measured.open_loop_rate = open_loop_rate or max(1.0, OPEN_LOOP_SHARE * measured.value)
        measured.open_loop = await self._open_loop(measured, "open_loop", measured.open_loop_rate, spec)
        if peer_rate is not None:
            measured.peer_rate = peer_rate
            measured.at_peer_rate = await self._open_loop(measured, "peer_rate", peer_rate, spec)
        return measured

    async def _open_loop(self, measured: Measurement, name: str, rate: float, spec: dict[str, Any]) -> Latency | None:
        seconds = {"seconds": self.open_loop_seconds, "warmup": min(0.3, self.warmup)}
        result = await self.load(**{**spec, "rate": rate, **seconds})
        measured.notes[f"{name}_unanswered"] = result.unanswered
        return result.latency if result.succeeded else None

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
            _kill(process)
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


def _notes(result: generator.Result) -> dict[str, Any]:
    notes: dict[str, Any] = {"generator_cpu_share": round(result.cpu_share, 3)}
    if not result.succeeded:
        notes["no_response_in_time"] = True
    if result.unanswered:
        notes["unanswered"] = result.unanswered
    return notes


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
