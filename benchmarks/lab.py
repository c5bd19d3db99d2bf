"""Where the contestants run: the local stack, peers beside it, the generator, cores and CPU time."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from market_dev.stack import processes
from market_dev.stack.stack import Stack
from market_dev.stack.topology import Options, config_directory

from benchmarks import generator
from benchmarks.figures import Figure, Latency

ROOT = Path(__file__).parents[1]
R = TypeVar("R")
_TICK = os.sysconf("SC_CLK_TCK")
# Of what a contestant did in the closed loop: enough to be busy, and no queue that grows without end.
OPEN_SHARE = 0.6


class Lab:
    """Owns the stack, the peers and their processes. `busy`: the longest load of one round, in seconds."""

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
        self.base = port_base
        self.seconds = seconds
        self.warmup = warmup
        self.open_seconds = min(2.0, seconds)
        # `incomplete`: what is missing of the peers is left out.
        self.quick = self.smoke = self.incomplete = False
        self.data: Path | None = None
        # Of the memory under load.
        self.minutes: float | None = None
        self.minutes_rate = 50.0
        # Seconds that so many clients of pgbench took to connect.
        self.connecting: dict[int, float] = {}
        self.peers: dict[str, subprocess.Popen[bytes]] = {}
        self.ids: list[str] = []

    async def __aenter__(self) -> Lab:
        try:
            await self.stack.start()
        except BaseException:
            await self.stack.stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop_peers()
        await self.stack.stop()

    def stop_peers(self) -> None:
        for name in list(self.peers):
            self.stop(name)

    @property
    def urls(self) -> dict[str, Any]:
        return self.stack.urls

    def port(self, name: str) -> int:
        return self.stack.ports[name]

    def peer_port(self, number: int) -> int:
        """A port for something beside the stack."""
        return self.base + 20 + number

    async def fill(self, products: int = 1000) -> list[str]:
        """The ids of the catalogue, made where it is not there. There is stock for all benchmarks together."""
        if not self.ids:
            products = min(products, 200) if self.smoke else products
            await self.load(
                port=self.port("products"), workload="catalogue", params={"prefix": "c"}, connections=32, count=products
            )
            for offset in range(0, products, 100):
                page = await self.get(
                    f"{self.urls['products']}/api/product?limit=100&offset={offset}&availability=false"
                )
                self.ids += [item["id"] for item in page["items"]]
        return self.ids

    # Processes beside the stack.

    async def start(
        self, name: str, args: Sequence[str | Path], port: int | None, env: Mapping[str, str] | None = None
    ) -> None:
        """Starts a peer and waits until it listens."""
        if name in self.peers:
            return
        environment = {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore", **(env or {})}
        log = self.directory / "logs" / f"peer-{name}.log"
        self.peers[name] = processes.spawn(
            processes.Command(args, environment), log=log, cwd=ROOT / "benchmarks" / "peers"
        )
        for _ in range(300):
            if port is None or _listens(port):
                return
            if self.peers[name].poll() is not None:
                break
            await asyncio.sleep(0.1)
        raise RuntimeError(f"{name} does not start; {log} ends with: {log.read_text()[-2000:]}")

    async def uvicorn(self, name: str, app: str, port: int, env: Mapping[str, str]) -> None:
        """An ASGI app as its documentation runs it: uvicorn, with uvloop and httptools, without the access log."""
        args = [
            sys.executable,
            "-m",
            "uvicorn",
            app,
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--no-access-log",
            "--log-level",
            "warning",
        ]
        await self.start(name, args, port, env)

    async def service(
        self, name: str, as_name: str, offset: int, overrides: dict[str, Any], *, module: str = ""
    ) -> int:
        """Another copy of one of the five services, on a port of its own, configured otherwise."""
        import yaml

        tree = yaml.safe_load((config_directory() / f"{name}.yaml").read_text("utf-8"))
        path = self.directory / "config" / f"{as_name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump({**tree, **overrides}), "utf-8")
        port = self.peer_port(offset)
        env = {
            **self.stack.environment(name),
            "MARKET_PORT": str(port),
            "MARKET_ADMIN_PORT": str(port + 1),
            "CONFIG_PATH": str(path),
        }
        await self.start(as_name, [sys.executable, "-m", module or f"market.{name}"], port, env)
        return port

    def stop(self, name: str) -> None:
        process = self.peers.pop(name, None)
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    @property
    def pids(self) -> dict[str, int]:
        return {**self.stack.pids, **{name: p.pid for name, p in self.peers.items()}}

    # Cores.

    def pin(self, *alone: str) -> None:
        """These processes get the first core, all others the rest. Nothing named: nobody is pinned."""
        cores = sorted(os.sched_getaffinity(0))
        if len(cores) < 2:
            return
        for name, pid in self.pids.items():
            where = set(cores) if not alone else {cores[0]} if name in alone else set(cores[1:])
            for one in _tree(pid):
                with suppress(OSError):
                    for thread in os.listdir(f"/proc/{one}/task"):
                        with suppress(OSError):
                            os.sched_setaffinity(int(thread), where)
        self._generator_cores = set(cores[1:]) if alone else set(cores)

    _generator_cores: set[int] | None = None

    # Load.

    async def load(self, **spec: Any) -> generator.Result:
        return (await self.measure(**spec))[0]

    async def measure(self, *, rest: bool = False, **given: Any) -> tuple[generator.Result, dict[str, float]]:
        """The generator's result, and the CPU milliseconds that each process used per good answer."""
        spec = generator.Spec(**{"seconds": self.seconds, "warmup": self.warmup, **given})
        # A count takes as long as it takes.
        patience = 600 if spec.count else spec.seconds + 60
        result, cpu = await self.watched(
            "benchmarks.generator", msgspec.json.encode(spec), generator.Result, patience=patience
        )
        if result.bad:
            raise RuntimeError(
                f"{result.bad} of {result.good + result.bad} answers were wrong: {result.statuses} {result.example}"
            )
        return result, cpu

    async def watched(
        self, module: str, given: bytes, type: type[R], *, patience: float | None = None
    ) -> tuple[R, dict[str, float]]:
        """Runs a program that says `begin`, `end` and its result; and the CPU milliseconds per good answer of each process.

        It is killed after `patience` seconds.
        """
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            limit=2**24,
            preexec_fn=self._settle,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(given)
        process.stdin.close()
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        result: Any = None
        giving_up = asyncio.get_running_loop().call_later(patience or self.seconds + 60, _kill, process)
        try:
            async for line in process.stdout:
                if line == b"begin\n":
                    before = self.cpu()
                elif line == b"end\n":
                    after = self.cpu()
                elif line.startswith(b"{"):
                    result = msgspec.json.decode(line, type=type)
                else:
                    print(line.decode().rstrip(), flush=True)
            await process.wait()
        finally:
            giving_up.cancel()
            _kill(process)
        if result is None:
            raise RuntimeError(f"{module} failed on {given[:200]!r}")
        good = max(1, result.good)
        return result, {
            n: round(1000 * (t - before[n]) / good, 4) for n, t in after.items() if n in before and t > before[n]
        }

    def _settle(self) -> None:
        if self._generator_cores:
            os.sched_setaffinity(0, self._generator_cores)

    async def closed(self, **spec: Any) -> Figure:
        """A closed loop as a figure."""
        result, cpu = await self.measure(**spec)
        # Not one answer in all that time: fewer than this.
        rate = result.rate or 1 / result.seconds
        return Figure(value=rate, done=result.good, latency=result.latency, cpu=cpu, notes=_notes(result))

    async def both(self, *, at: float | None = None, beside: float | None = None, **spec: Any) -> Figure:
        """A closed loop, then the latency at a fixed rate of arrivals: a share of what the closed loop did, or `at` a second.

        `beside`: a second rate, that of the peer.
        """
        figure = await self.closed(**spec)
        figure.open_rate = at or max(1.0, OPEN_SHARE * figure.value)
        figure.open = await self._opened(figure, "open", figure.open_rate, spec)
        if beside is not None:
            figure.beside_rate = beside
            figure.beside = await self._opened(figure, "beside", beside, spec)
        return figure

    async def _opened(self, figure: Figure, name: str, rate: float, spec: dict[str, Any]) -> Latency | None:
        result, _ = await self.measure(
            **{**spec, "rate": rate, "seconds": self.open_seconds, "warmup": min(0.3, self.warmup)}
        )
        figure.notes[f"{name}_loop_unanswered"] = result.late
        return result.latency if result.good else None

    def cpu(self) -> dict[str, float]:
        """CPU seconds used so far by each process with its children, living and dead."""
        parents: dict[int, list[int]] = {}
        used: dict[int, tuple[float, float]] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                with suppress(OSError):
                    fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
                    parents.setdefault(int(fields[1]), []).append(int(entry))
                    user, system, dead_user, dead_system = (int(f) / _TICK for f in fields[11:15])
                    used[int(entry)] = (user + system, dead_user + dead_system)

        def total(pid: int) -> float:
            return sum(used.get(pid, (0.0, 0.0))) + sum(total(child) for child in parents.get(pid, ()))

        return {name: total(pid) for name, pid in self.pids.items()}

    # One request, for checks.

    async def get(self, url: str) -> Any:
        return await asyncio.to_thread(self.fetch, "GET", url)

    async def post(self, url: str, body: Any) -> Any:
        return await asyncio.to_thread(self.fetch, "POST", url, body)

    @staticmethod
    def fetch(method: str, url: str, body: Any = None) -> Any:
        import httpx

        answer = httpx.request(method, url, json=body, timeout=20)
        answer.raise_for_status()
        return answer.json()

    async def run(
        self, args: Sequence[str | Path], env: Mapping[str, str] | None = None, *, core: int | None = None
    ) -> str:
        """The output of a program that runs to its end. Raises RuntimeError."""

        def settle() -> None:
            cores = sorted(os.sched_getaffinity(0))
            if core is not None and len(cores) > 1:
                os.sched_setaffinity(0, {cores[core]})

        process = await asyncio.create_subprocess_exec(
            *map(str, args),
            env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
            cwd=ROOT,
            preexec_fn=settle,
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


def _notes(result: generator.Result) -> dict[str, Any]:
    notes: dict[str, Any] = {"generator_cpu_share": round(result.cpu_share, 3)}
    if not result.good:
        notes["no_answer_in_time"] = True
    if result.late:
        notes["unanswered_15_seconds_after_the_end"] = result.late
    return notes


def _kill(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()


def same(name: str, ours: Any, theirs: Any) -> None:
    """Raises unless both answers are the same."""
    if ours != theirs:
        raise RuntimeError(f"{name} answers otherwise:\n{json.dumps(ours)[:1500]}\n{json.dumps(theirs)[:1500]}")


def _listens(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.2):
        return True
    return False


def _tree(pid: int) -> list[int]:
    return [p.pid for p in processes.tree(pid)]


async def settle(lab: Lab, seconds: float = 30) -> float:
    """Waits until the outbox is empty; answers how long that took."""
    import pymongo

    started = time.perf_counter()
    client = pymongo.AsyncMongoClient(lab.urls["mongodb"])
    try:
        while time.perf_counter() - started < seconds:
            if await client["orders"]["orders"].count_documents({"unsent_since": {"$exists": True}}, limit=1) == 0:
                break
            await asyncio.sleep(0.05)
        else:
            raise RuntimeError("the outbox does not become empty")
    finally:
        await client.close()
    return time.perf_counter() - started
