"""Driving load: the generator in a process of its own, and the CPU time of what it loads."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from abc import ABC, abstractmethod
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from benchmarks import generator
from benchmarks.cpu import cpu_ms_per_operation, cpu_seconds
from benchmarks.measurements import Latency, Measurement

ROOT = Path(__file__).parents[1]
R = TypeVar("R")
# The rate of an open loop, as a share of what the contestant reached in the closed loop: busy, but without growing
# queues.
OPEN_LOOP_SHARE = 0.6


class LoadDriver(ABC):
    """Loads what listens on this machine. `seconds`, `warmup`: of each load."""

    def __init__(self, *, seconds: float, warmup: float) -> None:
        self.seconds = seconds
        self.warmup = warmup
        self.open_loop_seconds = min(2.0, seconds)
        # Where the generator runs; None: on all cores.
        self.generator_cores: set[int] | None = None

    @property
    @abstractmethod
    def pids(self) -> dict[str, int]:
        """The processes whose CPU time is measured, by name."""

    def cpu_seconds(self) -> dict[str, float]:
        """Return the CPU seconds used so far, by process."""
        return cpu_seconds(self.pids)

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
        with tempfile.TemporaryFile() as stderr:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                module,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                cwd=ROOT,
                limit=2**24,
                preexec_fn=self._pin_generator,
            )
            result, before, after = await self._communicate(process, stdin, result_type, timeout)
            stderr.seek(0)
            errors = stderr.read().decode(errors="replace").strip()
        if result is None:
            raise RuntimeError(f"{module} failed with {errors[-1000:]!r} and the input {stdin[:200]!r}")
        if errors:
            print(errors, file=sys.stderr, flush=True)
        return result, cpu_ms_per_operation(before, after, result.succeeded)

    async def _communicate(
        self, process: asyncio.subprocess.Process, stdin: bytes, result_type: type[R], timeout: float | None
    ) -> tuple[R | None, dict[str, float], dict[str, float]]:
        """Return the program's result, and the CPU seconds used when it printed `begin` and `end`, by process."""
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stdin)
        process.stdin.close()
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        result: Any = None
        timer = asyncio.get_running_loop().call_later(timeout or self.seconds + 60, kill, process)
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
            kill(process)
        return result, before, after

    def _pin_generator(self) -> None:
        if self.generator_cores:
            os.sched_setaffinity(0, self.generator_cores)

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


def _notes(result: generator.Result) -> dict[str, Any]:
    notes: dict[str, Any] = {"generator_cpu_share": round(result.cpu_share, 3)}
    if not result.succeeded:
        notes["no_response_in_time"] = True
    if result.unanswered:
        notes["unanswered"] = result.unanswered
    return notes


def kill(process: asyncio.subprocess.Process) -> None:
    """Kill the process, if it runs."""
    if process.returncode is None:
        with suppress(ProcessLookupError):
            process.kill()
