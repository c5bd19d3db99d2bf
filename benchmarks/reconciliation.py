"""The memory and the time of `python -m market.orders reconcile --topic`, with a limit that the kernel enforces.

    python -m benchmarks.reconciliation --orders 20000 300000 --limit-mib 160

For each number of orders: a new stack, orders with their reservations and events written straight into the stores, and
one reconciliation under the limit. One order in 200 has lost its reservation, and one event in 200 its order.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pymongo
from confluent_kafka import Producer
from market_dev.stack.stack import Stack
from market_dev.stack.topology import Options, config_directory

from benchmarks.memory_limits import BECOME_LIMITED, MIB, MemoryGroup
from market.contracts import events
from market.orders.domain import Order, OrderLine, OutboxEntry, Status, to_event
from market.orders.mongodb.documents import order_to_document

_PRODUCTS = [UUID(int=(7 << 76) + (2 << 62) + n) for n in range(2_000)]
_PART = 5_000
_LOST_EVERY = 200


def orders(count: int) -> Iterator[Order]:
    """Yield confirmed orders of the last ten days, with ascending ids."""
    start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10)
    for n in range(count):
        at = start + n * timedelta(days=9) / count
        at = at.replace(microsecond=at.microsecond // 1000 * 1000)
        order_id = UUID(int=(int(at.timestamp() * 1000) << 80) + (7 << 76) + (2 << 62) + n)
        lines = tuple(
            OrderLine(str(_PRODUCTS[(n * 7 + k) % len(_PRODUCTS)]), f"Product {k}", 1 + k, Decimal("2.50"))
            for k in range(1 + n % 3)
        )
        total = sum((line.unit_price * line.quantity for line in lines), Decimal(0))
        yield Order(order_id, f"user-{n % 997}", None, lines, total, "GBP", at, Status.CONFIRMED, confirmed_at=at)


def _reservation(order: Order) -> tuple[UUID, list[UUID], list[int]]:
    items = sorted((UUID(line.product_id), line.quantity) for line in order.lines)
    return order.id, [product_id for product_id, _ in items], [quantity for _, quantity in items]


async def fill(stack: Stack, count: int) -> None:
    """Write the orders, reservations and events."""
    client: Any = pymongo.MongoClient(
        f"mongodb://127.0.0.1:{stack.ports['mongodb']}/?directConnection=true", uuidRepresentation="standard"
    )
    collection = client["orders"]["orders"]
    environment = stack.environment("inventory")
    postgres = await asyncpg.connect(
        host="127.0.0.1",
        port=stack.ports["postgres"],
        user="inventory",
        database="inventory",
        password=environment["MARKET_POSTGRES_PASSWORD"],
    )
    await postgres.copy_records_to_table(
        "inventory", columns=["product_id", "quantity"], records=[(p, 10) for p in _PRODUCTS]
    )
    producer = Producer(
        {
            "bootstrap.servers": f"127.0.0.1:{stack.ports['kafka']}",
            "linger.ms": 50,
            "queue.buffering.max.messages": 1_000_000,
            "partitioner": "murmur2_random",
        }
    )
    encode = msgspec.json.Encoder().encode
    part: list[Order] = []
    for n, order in enumerate(orders(count)):
        part.append(order)
        if len(part) < _PART and n + 1 < count:
            continue
        collection.insert_many(
            [
                {**order_to_document(o), "status": "confirmed", "confirmed_at": o.confirmed_at}
                for o in part
                if o.id.int % _LOST_EVERY != 1
            ],
            ordered=False,
        )
        await postgres.copy_records_to_table(
            "reservations",
            columns=["id", "product_ids", "quantities"],
            records=[_reservation(o) for o in part if o.id.int % _LOST_EVERY not in (1, 2)],
        )
        for o in part:
            entry = OutboxEntry(events.event_id(o.id, events.CREATED), events.CREATED, o.created_at)
            producer.produce(events.TOPIC, encode(to_event(o, entry)), str(o.id).encode())
        producer.poll(0)
        part.clear()
    if producer.flush(120):
        raise RuntimeError("Kafka did not accept all events")
    await postgres.close()
    client.close()


def _use_small_stacks() -> None:
    # RLIMIT_DATA counts the address space of threads' stacks, of 8 MiB each by default, although it is not used.
    resource.setrlimit(resource.RLIMIT_STACK, (512 * 1024, resource.getrlimit(resource.RLIMIT_STACK)[1]))


def reconcile(stack: Stack, limit: int) -> dict[str, Any]:
    """Run the command under the limit. Return its summary, exit status, differences, peak memory and seconds."""
    environment = {
        **os.environ,
        **stack.environment("orders"),
        "CONFIG_PATH": str(config_directory() / "orders.yaml"),
        "MEMORY_MODULE": "market.orders",
        "MEMORY_LIMIT": str(limit),
    }
    group = None
    with suppress(OSError):
        group = MemoryGroup("reconcile", limit)
        environment["MEMORY_GROUP"] = str(group.path)
    started = time.monotonic()
    differences: dict[str, int] = {}
    summary: dict[str, Any] = {}
    process = subprocess.Popen(
        [sys.executable, "-c", BECOME_LIMITED, "reconcile", "--json", "--topic"],
        env=environment,
        stdout=subprocess.PIPE,
        preexec_fn=_use_small_stacks,
    )
    assert process.stdout is not None
    for line in process.stdout:
        found = json.loads(line)
        if found["kind"] == "difference":
            differences[found["difference"]] = differences.get(found["difference"], 0) + 1
        elif found["kind"] == "summary":
            summary = found
    _, wait_status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(wait_status)
    if group is not None:
        group.remove()
    return {
        "limit": f"{limit // MIB} MiB, {'control group' if group is not None else 'RLIMIT_DATA'}",
        "exit_status": process.returncode,
        "peak_resident_mib": usage.ru_maxrss // 1024,
        "seconds": round(time.monotonic() - started, 1),
        "differences": differences,
        "summary": summary,
    }


async def measure(count: int, limit: int, port_base: int) -> dict[str, Any]:
    directory = Path(tempfile.mkdtemp(prefix="market-reconcile-"))
    directory.chmod(0o755)
    stack = Stack(Options(directory / "data", port_base=port_base, log_format="json"), notify=lambda _: None)
    try:
        await stack.start()
        await fill(stack, count)
        return {"orders": count, **await asyncio.to_thread(reconcile, stack, limit)}
    finally:
        try:
            await stack.stop()
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reconciliation")
    parser.add_argument("--orders", type=int, nargs="+", default=[20_000, 300_000])
    parser.add_argument("--limit-mib", type=int, default=160)
    parser.add_argument("--port-base", type=int, default=24_000)
    options = parser.parse_args()
    for count in options.orders:
        print(json.dumps(asyncio.run(measure(count, options.limit_mib * MIB, options.port_base))), flush=True)


if __name__ == "__main__":
    main()
