"""The nemesis: injects the planned faults into a running stack and measures what clients saw of each."""

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

from market_dev.chaos.plan import LINKS, Fault
from market_dev.chaos.proxy import Proxy
from market_dev.chaos.shoppers import StorefrontWorkload
from market_dev.chaos.workload import OrderWorkload
from market_dev.stack import processes
from market_dev.stack.stack import Stack

# How long to wait until a kill counts (the process ready, orders in flight), and until a process is ready again.
_READY_TIMEOUT_SECONDS = 240.0
# How long to wait for the first order after a fault.
_FIRST_ORDER_TIMEOUT_SECONDS = 15.0


class FaultOutcome(Struct, kw_only=True):
    """An injected fault and its effect on clients. Times are seconds since the run started."""

    number: int
    # The fault as text, see `Fault.__str__`.
    fault: str
    is_kill: bool
    target: str
    started_at: float
    # The process was ready again, or the fault was removed.
    recovered_at: float
    # Whether it had an effect: a process was replaced or paused, or traffic hit the faulty connection.
    took_effect: bool
    orders_in_flight: int
    failed_calls: int = 0
    # From the start of the fault to the first order placed after the last call that failed because of it.
    outage_seconds: float = 0.0
    # From `recovered_at` to the first order placed; None: there was none.
    first_order_seconds: float | None = None


class Network:
    """The proxies between services and what they call.

    Its `routes` and `kafka_advertised` go into the stack's Options.
    """

    def __init__(self, ports: dict[str, int], first_port: int) -> None:
        self._kafka = first_port + len(LINKS)
        self.proxies: dict[str, Proxy] = {}
        self.routes: dict[tuple[str, str], int] = {}
        for offset, (service, port) in enumerate(LINKS):
            listen = self._kafka if port == "kafka" else first_port + offset
            self.proxies[f"{service} -> {port}"] = Proxy(upstream=ports[port], listen=listen)
            self.routes[service, port] = listen
        self.routes["notifications", "kafka"] = self._kafka
        self._exit_stack = AsyncExitStack()

    @property
    def kafka_advertised(self) -> int:
        return self._kafka

    async def __aenter__(self) -> Network:
        for proxy in self.proxies.values():
            await self._exit_stack.enter_async_context(proxy)
        return self

    async def __aexit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        await self._exit_stack.aclose()

    def heal(self) -> None:
        """Remove the faults of all proxies."""
        for proxy in self.proxies.values():
            proxy.heal()


class Nemesis:
    """Owns the faults that are active; `heal` removes all of them. `outcomes` has one entry per injected fault.

    shoppers: the clients of the storefront, or None if nobody buys there
    """

    def __init__(
        self, stack: Stack, network: Network, workload: OrderWorkload, shoppers: StorefrontWorkload | None = None
    ) -> None:
        self._stack = stack
        self._network = network
        self._workload = workload
        self._shoppers = shoppers
        self.outcomes: list[FaultOutcome] = []

    async def inject(self, fault: Fault, number: int) -> FaultOutcome:
        """Inject one fault; return when it is over, every process is ready and an order was placed."""
        history = self._workload.history
        workload = self._affected(fault.target)
        await self._stack.wait_ready(seconds=_READY_TIMEOUT_SECONDS)
        async with asyncio.timeout(_READY_TIMEOUT_SECONDS):
            while not workload.orders_in_flight:
                await asyncio.sleep(0.001)
        orders_in_flight = workload.orders_in_flight
        started_at = history.now()
        took_effect = await self._apply(fault)
        await self._stack.wait_ready(seconds=_READY_TIMEOUT_SECONDS)
        recovered_at = history.now()
        # Otherwise the next fault would hide how long this outage was for clients.
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_ORDER_TIMEOUT_SECONDS):
                while workload.last_order_at < recovered_at:
                    await asyncio.sleep(0.01)
        outcome = FaultOutcome(
            number=number,
            fault=str(fault),
            is_kill=fault.is_kill,
            target=fault.target,
            started_at=started_at,
            recovered_at=recovered_at,
            took_effect=took_effect,
            orders_in_flight=orders_in_flight,
        )
        self.outcomes.append(outcome)
        return outcome

    def _affected(self, target: str) -> OrderWorkload | StorefrontWorkload:
        """Return the clients that need the target. Only shoppers need the storefront."""
        return self._shoppers if _is_storefront(target) and self._shoppers is not None else self._workload

    async def _apply(self, fault: Fault) -> bool:
        """Apply and remove the fault. Return whether it took effect."""
        if fault.is_kill:
            return await self._end_process(fault)
        if fault.kind == "pause":
            return await self._pause(fault)
        if fault.kind == "smtp fault":
            return await self._smtp_fault(fault)
        if fault.kind == "full disk":
            return await self._full_disk(fault)
        if fault.kind == "clock skew":
            return await self._skew_clock(fault)
        proxy = self._network.proxies[fault.target]
        affected_before = proxy.affected
        if fault.kind == "delay":
            proxy.delay(0.3)
        elif fault.kind == "disconnect":
            proxy.disconnect()
        else:
            proxy.blackhole()
        await asyncio.sleep(fault.seconds)
        proxy.heal()
        return proxy.affected > affected_before

    async def _end_process(self, fault: Fault) -> bool:
        """Kill or terminate the process and wait until its replacement is ready."""
        old_pid = self._stack.pids.get(fault.target)
        if fault.kind == "kill":
            self._stack.kill(fault.target)
        else:
            self._stack.terminate(fault.target)
        async with asyncio.timeout(_READY_TIMEOUT_SECONDS):
            while self._stack.pids.get(fault.target) in (None, old_pid):
                await asyncio.sleep(0.01)
        await self._stack.wait_ready([fault.target], seconds=_READY_TIMEOUT_SECONDS)
        return old_pid is not None

    async def _pause(self, fault: Fault) -> bool:
        self._stack.pause(fault.target)
        try:
            await asyncio.sleep(fault.seconds)
            tree = processes.tree(self._stack.pids[fault.target])
            return all(p.status() == psutil.STATUS_STOPPED for p in tree)
        finally:
            self._stack.resume(fault.target)

    async def _smtp_fault(self, fault: Fault) -> bool:
        await self._set_mail_mode(fault.detail)
        await asyncio.sleep(fault.seconds)
        await self._set_mail_mode("ok")
        return True

    async def _set_mail_mode(self, mode: str) -> None:
        async with aiohttp.ClientSession() as http:
            async with http.post(f"{self._stack.urls['mail']}/api/faults", json={"mode": mode}) as response:
                response.raise_for_status()

    async def _full_disk(self, fault: Fault) -> bool:
        """Forbid the process to extend any file, as if its disk were full. Other processes are not affected."""
        process = psutil.Process(self._stack.pids[fault.target])
        _, hard = process.rlimit(resource.RLIMIT_FSIZE)
        process.rlimit(resource.RLIMIT_FSIZE, (0, hard))
        try:
            await asyncio.sleep(fault.seconds)
        finally:
            with suppress(psutil.NoSuchProcess):
                process.rlimit(resource.RLIMIT_FSIZE, (hard, hard))
        return process.is_running()

    async def _skew_clock(self, fault: Fault) -> bool:
        """Restart the service with another clock offset."""
        path = self._stack.directory.path / "config" / f"{fault.target}.yaml"
        config = yaml.safe_load(path.read_text("utf-8"))
        config["faults"] = {**config.get("faults", {}), "clock_offset_seconds": float(fault.detail.partition(" ")[0])}
        path.write_text(yaml.safe_dump(config), "utf-8")
        return await self._end_process(Fault("terminate", fault.target))

    async def heal(self) -> None:
        """Remove all faults that are still active."""
        self._network.heal()
        await self._set_mail_mode("ok")

    def measure(self) -> None:
        """Fill in, from the history, what clients saw of each fault."""
        calls = sorted(self._workload.history.calls, key=lambda c: c.ended_at)
        for outcome, following in zip_longest(self.outcomes, self.outcomes[1:]):
            only_shoppers = self._affected(outcome.target) is self._shoppers
            orders_placed = [
                c.ended_at
                for c in calls
                if c.operation == "place" and c.status in (200, 201) and (c.via == "storefront" or not only_shoppers)
            ]
            until = following.started_at if following else outcome.recovered_at + 10
            failures = [c.ended_at for c in calls if outcome.started_at <= c.ended_at < until and c.failed]
            outcome.failed_calls = len(failures)
            if failures:
                after = next((t for t in orders_placed if t > failures[-1]), None)
                outcome.outage_seconds = (after or failures[-1]) - outcome.started_at
            first_order = next((t for t in orders_placed if t >= outcome.recovered_at), None)
            outcome.first_order_seconds = None if first_order is None else first_order - outcome.recovered_at


def _is_storefront(target: str) -> bool:
    """Return whether a fault's target is the storefront, or its connection to another service."""
    return target.partition(" ")[0] == "storefront"
