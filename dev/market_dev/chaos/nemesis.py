"""Does to a running stack what the plan says, and measures what its clients saw."""

from __future__ import annotations

import asyncio
import resource
from contextlib import AsyncExitStack, suppress
from itertools import zip_longest
from types import TracebackType

import aiohttp
import psutil
import yaml
from msgspec import Struct

from market_dev.chaos.plan import ARROWS, Disturbance
from market_dev.chaos.proxy import Proxy
from market_dev.chaos.workload import Load
from market_dev.stack import processes as spawn
from market_dev.stack.stack import Stack

# How long the injector waits for a moment at which a kill counts: the process ready, orders in flight.
_PATIENCE = 240.0
# How long it waits for an order to be placed again.
_FIRST_SUCCESS = 15.0


class Outcome(Struct, kw_only=True):
    """What was done, and what the clients saw. Seconds since the run began; `None`: does not apply."""

    number: int
    what: str
    is_kill: bool
    target: str
    began: float
    # The process was ready again, or the fault was taken away.
    over: float
    # A process was replaced, a connection was touched, a process stood still.
    hit: bool
    in_flight: int
    failed_calls: int = 0
    # From the disturbance to the first order placed after the last failure that it caused.
    outage: float = 0.0
    # From `over` to the first order placed.
    first_success: float | None = None


class Network:
    """The proxies between the services and what they call. Give `routes` and `kafka_advertised` to the stack's Options."""

    def __init__(self, ports: dict[str, int], first_port: int) -> None:
        self._kafka = first_port + len(ARROWS)
        self.proxies: dict[str, Proxy] = {}
        self.routes: dict[tuple[str, str], int] = {}
        for offset, (service, port) in enumerate(ARROWS):
            listen = self._kafka if port == "kafka" else first_port + offset
            self.proxies[f"{service} -> {port}"] = Proxy(to=ports[port], listen=listen)
            self.routes[service, port] = listen
        self.routes["notifications", "kafka"] = self._kafka
        self._stack = AsyncExitStack()

    @property
    def kafka_advertised(self) -> int:
        return self._kafka

    async def __aenter__(self) -> Network:
        for proxy in self.proxies.values():
            await self._stack.enter_async_context(proxy)
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._stack.aclose()

    def heal(self) -> None:
        for proxy in self.proxies.values():
            proxy.heal()


class Injector:
    """Owns what is broken just now; `heal` mends all of it."""

    def __init__(self, stack: Stack, network: Network, load: Load) -> None:
        self._stack = stack
        self._network = network
        self._load = load
        self.outcomes: list[Outcome] = []

    async def do(self, disturbance: Disturbance, number: int) -> Outcome:
        """One disturbance, until it is over and everything is ready again."""
        history = self._load.history
        await self._stack.ready(seconds=_PATIENCE)
        async with asyncio.timeout(_PATIENCE):
            while not self._load.in_flight:
                await asyncio.sleep(0.001)
        in_flight = self._load.in_flight
        began = history.now()
        hit = await self._act(disturbance)
        await self._stack.ready(seconds=_PATIENCE)
        over = history.now()
        # Else the next disturbance would hide how long this one lasted for the clients.
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_SUCCESS):
                while self._load.last_success < over:
                    await asyncio.sleep(0.01)
        outcome = Outcome(
            number=number,
            what=str(disturbance),
            is_kill=disturbance.is_kill,
            target=disturbance.target,
            began=began,
            over=over,
            hit=hit,
            in_flight=in_flight,
        )
        self.outcomes.append(outcome)
        return outcome

    async def _act(self, d: Disturbance) -> bool:
        if d.is_kill:
            return await self._end(d)
        if d.act == "pause":
            return await self._pause(d)
        if d.act == "mail":
            return await self._mail(d)
        if d.act == "full disk":
            return await self._full_disk(d)
        if d.act == "clock":
            return await self._step_clock(d)
        proxy = self._network.proxies[d.target]
        before = proxy.touched
        if d.act == "delay":
            proxy.delay(0.3)
        elif d.act == "cut":
            proxy.cut()
        else:
            proxy.blackhole()
        await asyncio.sleep(d.seconds)
        proxy.heal()
        return proxy.touched > before

    async def _end(self, d: Disturbance) -> bool:
        """Kills or terminates the process, and waits until its successor is ready."""
        old = self._stack.pids.get(d.target)
        if d.act == "kill":
            self._stack.kill(d.target)
        else:
            self._stack.terminate(d.target)
        async with asyncio.timeout(_PATIENCE):
            while self._stack.pids.get(d.target) in (None, old):
                await asyncio.sleep(0.01)
        await self._stack.ready([d.target], seconds=_PATIENCE)
        return old is not None

    async def _pause(self, d: Disturbance) -> bool:
        self._stack.pause(d.target)
        try:
            await asyncio.sleep(d.seconds)
            tree = spawn.tree(self._stack.pids[d.target])
            return all(p.status() == psutil.STATUS_STOPPED for p in tree)
        finally:
            self._stack.resume(d.target)

    async def _mail(self, d: Disturbance) -> bool:
        await self._tell_mail(d.detail)
        await asyncio.sleep(d.seconds)
        await self._tell_mail("ok")
        return True

    async def _tell_mail(self, mode: str) -> None:
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{self._stack.urls['mail']}/api/faults", json={"mode": mode}) as response:
                response.raise_for_status()

    async def _full_disk(self, d: Disturbance) -> bool:
        """No file of the process may grow: what a full disk is to it, and safe for everybody else."""
        process = psutil.Process(self._stack.pids[d.target])
        _, hard = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            await asyncio.sleep(d.seconds)
        finally:
            with suppress(psutil.NoSuchProcess):
                process.rlimit(resource.RLIMIT_FSIZE, (hard, hard))
        return process.is_running()

    async def _step_clock(self, d: Disturbance) -> bool:
        """The service comes back with another time of day."""
        path = self._stack.directory.path / "config" / f"{d.target}.yaml"
        tree = yaml.safe_load(path.read_text("utf-8"))
        tree["faults"] = {**tree.get("faults", {}), "clock_offset_seconds": float(d.detail.partition(" ")[0])}
        path.write_text(yaml.safe_dump(tree), "utf-8")
        return await self._end(Disturbance("terminate", d.target))

    async def heal(self) -> None:
        """Takes away whatever is still broken."""
        self._network.heal()
        await self._tell_mail("ok")

    def measure(self) -> None:
        """Fills in, from the history, what the clients saw of each disturbance."""
        calls = sorted(self._load.history.calls, key=lambda c: c.ended)
        placed = [c.ended for c in calls if c.operation == "place" and c.status in (200, 201)]
        for outcome, following in zip_longest(self.outcomes, self.outcomes[1:]):
            until = following.began if following else outcome.over + 10
            failures = [c.ended for c in calls if outcome.began <= c.ended < until and c.failed]
            outcome.failed_calls = len(failures)
            if failures:
                after = next((t for t in placed if t > failures[-1]), None)
                outcome.outage = (after or failures[-1]) - outcome.began
            success = next((t for t in placed if t >= outcome.over), None)
            outcome.first_success = None if success is None else success - outcome.over
