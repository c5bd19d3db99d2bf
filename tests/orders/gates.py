"""Instances whose failure points a test can arm, or block until it opens them, to force one interleaving."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

from market.kit.faults import Faults
from market.kit.process.lifecycle import Process
from tests.support.waiting import PATIENCE

from .service import Service, Settings, serving


class Gate:
    """Blocks the first operation that reaches it, until the test opens it."""

    def __init__(self) -> None:
        self._reached = asyncio.Event()
        self._opened = asyncio.Event()

    async def wait_until_reached(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._reached.wait()

    def open(self) -> None:
        self._opened.set()

    async def block(self) -> None:
        """Wait for the test; the failure point calls this."""
        self._reached.set()
        await self._opened.wait()


class GatedFaults(Faults):
    """Failure points that can also be gates: unlike a pause, a gate does not depend on how fast others are."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        super().__init__(directory)
        self.directory = directory
        self._gates: dict[str, Gate] = {}

    def add_gate(self, point: str) -> Gate:
        self._gates[point] = gate = Gate()
        return gate

    async def fire_if_armed(self, name: str) -> None:
        if gate := self._gates.pop(name, None):
            await gate.block()
        else:
            await super().fire_if_armed(name)


def gated_service(
    settings: Settings, directory: Path, *, background: bool = False
) -> AbstractAsyncContextManager[Service]:
    """Run orders in this process with failure points that a test can arm (by files in `directory`) or make gates."""
    return serving(settings, process=Process(faults=GatedFaults(directory)), background=background)


def gate_at(service: Service, point: str) -> Gate:
    """Block the next operation of this instance that reaches the failure point."""
    return _faults(service).add_gate(point)


def arm(service: Service, point: str, action: str) -> None:
    """Let this instance fail or pause when it next reaches the failure point."""
    (_faults(service).directory / point).write_text(action)


def reached(service: Service, point: str) -> bool:
    """Return whether this instance has reached the armed failure point."""
    return (_faults(service).directory / f"{point}.done").exists()


def _faults(service: Service) -> GatedFaults:
    assert isinstance(service.process.faults, GatedFaults)
    return service.process.faults


async def open_together(gates: Sequence[Gate]) -> None:
    """Open the gates once all of them are reached."""
    for gate in gates:
        await gate.wait_until_reached()
    for gate in gates:
        gate.open()
