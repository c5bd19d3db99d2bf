"""A shop with one or several copies of each service that an order needs, on stores that are running already."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import msgspec
from market_dev.stack import processes, topology
from market_dev.stack.configurations import Configurations
from market_dev.stack.servers.service import Service
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.cpu import cpu_ms_per_operation
from benchmarks.load import ROOT, LoadDriver
from benchmarks.measurements import Measurement
from benchmarks.scenarios.mails import MailLog
from benchmarks.testbed import outbox_drained, product_ids
from benchmarks.two_copies.servers import Servers
from benchmarks.two_copies.stores import Stores

# All copies of one of these have the same port. Those of the others have ports of their own.
_SHARING_PORT = ("products", "orders", "graphql")
_SERVICES = ("inventory", *_SHARING_PORT)
# Started only for the orders with mails.
_MAILING = "notifications"
# The batches whose size is reported, by the service that makes them.
_BATCHES = {"orders": ("orders.products", "orders.insert", "orders.update"), "inventory": ("inventory.reserve",)}
_REST_SECONDS = 2
_numbers = itertools.count()


class Load(msgspec.Struct, frozen=True):
    """How orders are placed: at which service, by which workload of the generator, with or without mails."""

    service: str
    workload: str
    clients: int = 64
    mails: bool = False


class Shop(LoadDriver):
    """The running copies of the services. `copies`: all of them, running or not, by the names of their processes."""

    def __init__(self, stores: Stores, services: Servers, copies: Mapping[str, _Copy]) -> None:
        super().__init__(seconds=0, warmup=0)
        self.stores = stores
        self._services = services
        self._copies = copies

    @property
    def pids(self) -> dict[str, int]:
        return {**self.stores.servers.pids, **self._services.pids}

    def _port(self, service: str) -> int:
        return self._copies[f"{service} 1"].port

    async def start(self, *services: str) -> None:
        """Start all copies of these services. Raises StartError."""
        await self._services.start({name: copy for name, copy in self._copies.items() if copy.name in services})

    async def fill(self, count: int) -> None:
        """Create the catalogue, once for these stores."""
        if not self.stores.product_ids:
            load = {"workload": "catalogue", "params": {"prefix": "c"}, "connections": 32, "count": count}
            await self.load(port=self._port("products"), **load)
            self.stores.product_ids.extend(await product_ids(f"http://127.0.0.1:{self._port('products')}", count))

    async def start_mailing(self, count: int) -> None:
        """Start notifications, and wait until it has read all events, by placing `count` orders with mails."""
        await self.start(_MAILING)
        await self.place_orders(Load("orders", "orders", mails=True), count)

    async def place_orders(self, load: Load, count: int) -> Measurement:
        """Place `count` orders of three lines, and wait until their events are published and their mails have arrived.

        The value is orders/s, without that wait, and the CPU time contains all that is done until its end.
        `notes["batches"]`: the average size by batcher.
        """
        params: dict[str, Any] = {"ids": self.stores.product_ids}
        mails, prefix = MailLog(self.stores.directory), f"m{next(_numbers)}"
        if load.mails:
            params["email"] = prefix
        batches, cpu = await asyncio.to_thread(self._batches), self.cpu_seconds()
        result = await self.load(
            port=self._port(load.service),
            workload=load.workload,
            params=params,
            connections=load.clients,
            count=count,
        )
        waited = await outbox_drained(self.stores.mongodb, 60)
        if load.mails:
            await mails.wait_for(prefix, count, 120)
        cpu_ms = cpu_ms_per_operation(cpu, self.cpu_seconds(), count)
        sizes = {
            name: round((items - batches[name][0]) / max(1, calls - batches[name][1]), 2)
            for name, (items, calls) in (await asyncio.to_thread(self._batches)).items()
        }
        notes = {"batches": sizes, "outbox_drained_after_seconds": round(waited, 3), "cpu_share": result.cpu_share}
        return Measurement(value=result.rate, operations=count, latency=result.latency, cpu_ms=cpu_ms, notes=notes)

    async def rest(self) -> Measurement:
        """Measure the CPU time of the shop without requests, in ms per second."""
        cpu = self.cpu_seconds()
        await asyncio.sleep(_REST_SECONDS)
        cpu_ms = cpu_ms_per_operation(cpu, self.cpu_seconds(), _REST_SECONDS)
        return Measurement(value=sum(cpu_ms.values()), cpu_ms=cpu_ms)

    def _batches(self) -> dict[str, tuple[float, float]]:
        """Return the items and the calls so far, by batcher, of all copies together."""
        totals = {name: (0.0, 0.0) for names in _BATCHES.values() for name in names}
        for copy in self._copies.values():
            if copy.name in _BATCHES:
                for name, (items, calls) in _read_batches(copy.admin_port).items():
                    if name in totals:
                        totals[name] = totals[name][0] + items, totals[name][1] + calls
        return totals


class _Copy(Service):
    """A copy of a service."""

    def command(self) -> processes.Command:
        if self.name not in _SHARING_PORT:
            return super().command()
        module = "benchmarks.two_copies.shared_port"
        return processes.Command([sys.executable, "-m", module, self.name], {**self.env, "PYTHONPATH": str(ROOT)})


def _read_batches(admin_port: int) -> dict[str, tuple[float, float]]:
    """Return the items and the calls so far, by batcher, of one process."""
    with urlopen(f"http://127.0.0.1:{admin_port}/metrics", timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
    found: dict[str, dict[str, float]] = {}
    for family in families:
        if family.name == "market_batch_items":
            for sample in family.samples:
                found.setdefault(sample.labels["batcher"], {})[sample.name.rpartition("_")[2]] = sample.value
    return {name: (values["sum"], values["count"]) for name, values in found.items()}


@asynccontextmanager
async def open_shop(stores: Stores, ports: Iterator[int], *, copies: int) -> AsyncIterator[Shop]:
    """Start the services but notifications, and stop them afterwards.

    Before the first shop on the stores, the migrations are applied.
    """
    services = Servers()
    shop = Shop(stores, services, _copies(stores, ports, copies))
    try:
        if not stores.product_ids:
            await _migrate(stores, shop)
        await shop.start(*_SERVICES)
        yield shop
    finally:
        await services.stop()


def _copies(stores: Stores, ports: Iterator[int], copies: int) -> dict[str, _Copy]:
    """Return the copies by the names of their processes, such as `orders 2`, in the order in which they are started."""
    own = {service: [next(ports) for _ in range(copies)] for service in (*_SERVICES, _MAILING)}
    called = {service: numbers[0] for service, numbers in own.items()}
    # The callers of inventory use its copies in turn, as they do behind its headless Service.
    target = "ipv4:" + ",".join(f"127.0.0.1:{port}" for port in own["inventory"])
    configurations = Configurations(stores.directory, _overrides(stores, target), None)
    configurations.write()
    logs = stores.directory / "logs"
    found = {}
    for service, numbers in own.items():
        for n, number in enumerate(numbers, 1):
            port = called[service] if service in _SHARING_PORT else number
            listening = {service: port, f"{service} admin": next(ports)}
            env = _environment(service, stores, {**called, **listening})
            config = configurations.path(service)
            copy = _Copy(service, listening, stores.directory / "run", logs, config=config, env=env)
            copy.log = logs / f"{service}-{n}.log"
            found[f"{service} {n}"] = copy
    return found


def _overrides(stores: Stores, inventory: str) -> dict[str, dict[str, object]]:
    kafka = {
        "bootstrap_servers": stores.kafka,
        "replication": stores.replication,
        "min_insync": stores.min_insync,
    }
    return {
        "products": {"inventory": {"target": inventory}},
        "orders": {"inventory": {"target": inventory}, "mongodb": {"uri": stores.mongodb}, "kafka": kafka},
        _MAILING: {"kafka": kafka},
    }


def _environment(service: str, stores: Stores, ports: Mapping[str, int]) -> dict[str, str]:
    # The addresses of MongoDB and Kafka are in the configuration, and nobody signs in.
    unused = dict.fromkeys(("mongodb", "kafka", "issuer"), 1)
    return topology.environment(
        service,
        {**unused, **stores.ports, **ports},
        password=stores.password,
        kafka="apache" if stores.partitions else "embedded",
        log_format="json",
    )


async def _migrate(stores: Stores, shop: Shop) -> None:
    copies = [copy for name, copy in shop._copies.items() if name in ("inventory 1", "products 1", "orders 1")]
    jobs = {copy.name: {"config": copy.env["CONFIG_PATH"], "env": copy.env} for copy in copies}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "market_dev.stack.migrate"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate(json.dumps(jobs).encode())
    log: Path = stores.directory / "logs" / "migrate.log"
    log.write_bytes(output)
    if process.returncode:
        raise RuntimeError(f"the migrations failed: {output.decode()[-1000:]}")
