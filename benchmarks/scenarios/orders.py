"""The whole write path: nothing is pinned, the orders have no mails, and CPU per order counts as much as orders/s."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from benchmarks import requirements
from benchmarks.limits.program import Result
from benchmarks.load import OPEN_LOOP_SHARE
from benchmarks.measurements import Measurement, Row
from benchmarks.scenario import (
    FEWER_ROUNDS,
    Contestants,
    Measurements,
    Scenario,
    at_most_a_third,
    compare,
    format_ms,
    median_p99,
    rounded,
)
from benchmarks.scenarios import products
from benchmarks.testbed import Testbed, outbox_drained

CLIENTS = 64
CLIENTS_OF_HOT_PRODUCT = (64, 256)


async def start_peers(testbed: Testbed) -> int | None:
    """Start the same path written in the usual way: FastAPI, SQLAlchemy, one call after the other.

    Return the port of the orders peer, or None if its packages are not installed.
    """
    from confluent_kafka.admin import AdminClient, NewTopic

    if testbed.stack.kafka_kind == "apache":
        admin = AdminClient({"bootstrap.servers": testbed.urls["kafka"]})
        topics = [NewTopic(t, num_partitions=12, replication_factor=1) for t in ("peer-orders", "bare-orders")]
        for created in admin.create_topics(topics).values():
            if (error := created.exception()) and "EXISTS" not in str(error):
                raise error
    if not requirements.is_installed(requirements.PYTHON):
        return None
    products_port = await products.start_peer(testbed)
    inventory, orders = testbed.peer_port(3), testbed.peer_port(4)
    database = testbed.urls["postgres_inventory"].replace("postgresql://", "postgresql+psycopg://")
    await testbed.start(
        "peer inventory", [sys.executable, "inventory_sync.py", str(inventory)], inventory, {"DATABASE_URL": database}
    )
    env = {
        "MONGODB_URL": testbed.urls["mongodb"],
        "INVENTORY": f"127.0.0.1:{inventory}",
        "PRODUCTS": f"http://127.0.0.1:{products_port}",
        "KAFKA": testbed.urls["kafka"],
    }
    await testbed.start_asgi("peer orders", "orders_fastapi:app", orders, env)
    return orders


async def start_litestar(testbed: Testbed) -> int | None:
    """Start the second peer of the write path, after `start_peers`. Return its port, or None as `start_peers` does."""
    if not requirements.is_installed(requirements.PYTHON):
        return None
    port = testbed.peer_port(22)
    env = {
        "MONGODB_URL": testbed.urls["mongodb"],
        "INVENTORY": f"127.0.0.1:{testbed.peer_port(3)}",
        "PRODUCTS": f"http://127.0.0.1:{await products.start_litestar(testbed)}",
        "KAFKA": testbed.urls["kafka"],
    }
    await testbed.start_asgi("litestar orders", "orders_litestar:app", port, env)
    return port


async def _verify(testbed: Testbed, ports: list[int], ids: list[str]) -> None:
    """Raise RuntimeError unless all contestants make the same order of the same request."""
    lines = [{"product_id": product_id, "quantity": n} for n, product_id in enumerate(ids[:3], 1)]
    body = {"user": "ann", "items": lines}
    responses = [await testbed.post(f"http://127.0.0.1:{port}/api/order", body) for port in ports]
    for response in responses:
        del response["id"], response["created_at"], response["confirmed_at"]
    if any(response != responses[0] for response in responses):
        raise RuntimeError(f"the orders differ: {responses}")


def _ours(testbed: Testbed, *, open_loop: bool = True, **spec: Any) -> Any:
    async def measure() -> Measurement:
        measured = await (testbed.both_loops(**spec) if open_loop else testbed.closed_loop(**spec))
        # The events must be published too, before the next contestant gets the machine.
        measured.notes["outbox_drained_after_seconds"] = round(await outbox_drained(testbed.urls["mongodb"]), 3)
        return measured

    return measure


def _peer(testbed: Testbed, **spec: Any) -> Any:
    async def measure() -> Measurement:
        return await testbed.both_loops(**spec)

    return measure


async def prepare_orders(testbed: Testbed) -> Contestants:
    ids = await testbed.fill()
    peers = {"peer": await start_peers(testbed), "litestar": await start_litestar(testbed)}
    ours = testbed.port("orders")
    await _verify(testbed, [ours, *filter(None, peers.values())], ids)
    # These orders have no mails, and the peers have no consumer.
    testbed.stack.pause("notifications")
    testbed.pin()
    program_spec = {
        "mongodb": testbed.urls["mongodb"],
        "postgres": testbed.urls["postgres_inventory"],
        "kafka": testbed.urls["kafka"],
        "topic": "bare-orders",
        "ids": ids,
        "lines": 3,
        "in_flight": CLIENTS,
        "seconds": testbed.seconds,
        "warmup": testbed.warmup,
    }

    async def measure_program(module: str) -> Measurement:
        result, cpu_ms = await testbed.run_program(module, msgspec.json.encode(program_spec), Result)
        cpu_ms["program"] = rounded(1000 * result.cpu_share / max(result.rate, 1))
        return Measurement(value=result.rate, operations=result.succeeded, latency=result.latency, cpu_ms=cpu_ms)

    load = {"params": {"ids": ids}, "connections": CLIENTS}
    return {
        "ours": _ours(testbed, port=ours, workload="orders", **load),
        **{name: _peer(testbed, port=port, workload="orders", **load) for name, port in peers.items() if port},
        "limit": lambda: measure_program("benchmarks.limits.order_writes"),
        "batched": lambda: measure_program("benchmarks.limits.batched_order_writes"),
        "graphql": _ours(testbed, port=testbed.port("graphql"), workload="graphql_orders", **load),
    }


def judge_orders(measurements: Measurements) -> list[Row]:
    rest = compare(
        measurements,
        "POST order, 3 lines, uniformly distributed products, 64 clients",
        "orders/s",
        ">= 3x the peer, >= 1.2x the bare program",
        min_ratio_to_peer=3,
        min_ratio_to_limit=1.2,
    )
    graphql = compare(
        measurements,
        "the same by GraphQL",
        "orders/s",
        ">= 85 % of REST",
        ours="graphql",
        peer=None,
        limit="ours",
        min_ratio_to_limit=0.85,
    )
    batched = compare(
        measurements,
        "the same by REST, compared with a bare program that batches",
        "orders/s",
        ">= 70 % of the bare program",
        peer=None,
        limit="batched",
        min_ratio_to_limit=0.7,
    )
    litestar = compare(
        measurements,
        "the same by REST, compared with Litestar",
        "orders/s",
        ">= 3x the peer",
        peer="litestar",
        limit=None,
        min_ratio_to_peer=3,
    )
    return [rest, litestar, batched, graphql]


async def prepare_hot_product(testbed: Testbed) -> Contestants:
    ids = await testbed.fill()
    peer = await start_peers(testbed)
    ours = testbed.port("orders")
    await _verify(testbed, [ours, *([peer] if peer else [])], ids)
    testbed.stack.pause("notifications")
    testbed.pin()
    contestants = {}
    for clients in CLIENTS_OF_HOT_PRODUCT[: 1 if testbed.smoke else None]:
        hot = {"workload": "orders", "params": {"ids": ids[:1], "lines": 1}, "connections": clients}
        uniform = {"workload": "orders", "params": {"ids": ids, "lines": 1}, "connections": clients}
        # A round of the peer must be longer than its latency, which is seconds with 256 clients.
        peer_spec = {
            **hot,
            "warmup": testbed.warmup * clients / 64,
            "seconds": testbed.seconds * max(1.0, clients / 128),
        }
        rate = max(1.0, OPEN_LOOP_SHARE * (await testbed.closed_loop(port=peer, **peer_spec)).value) if peer else None
        contestants[f"ours {clients}"] = _ours(testbed, port=ours, peer_rate=rate, **hot)
        contestants[f"uniform {clients}"] = _ours(testbed, port=ours, open_loop=False, **uniform)
        if peer:
            contestants[f"peer {clients}"] = _peer(testbed, port=peer, open_loop_rate=rate, **peer_spec)
    return contestants


def judge_hot_product(measurements: Measurements) -> list[Row]:
    rows = []
    for clients in CLIENTS_OF_HOT_PRODUCT:
        if f"ours {clients}" not in measurements:
            continue
        names = {"ours": f"ours {clients}", "peer": f"peer {clients}", "limit": f"uniform {clients}"}
        ours, peer = median_p99(measurements, names["ours"]), median_p99(measurements, names["peer"])
        ours_at_rate = format_ms(median_p99(measurements, names["ours"], "at_peer_rate"))
        peer_at_rate = format_ms(median_p99(measurements, names["peer"], "open_loop"))
        rows.append(
            compare(
                measurements,
                f"POST order, one hot product, {clients} clients",
                "orders/s",
                ">= 80 % of uniformly distributed products, p99 <= the peer's / 3",
                **names,
                min_ratio_to_limit=0.8,
                other_goals_met=at_most_a_third(ours, peer),
                remark=f"p99 {format_ms(ours)}, the peer's {format_ms(peer)}; both at the same fixed rate: "
                f"{ours_at_rate} and "
                f"{peer_at_rate}; the limit is uniformly distributed products in the same run",
            )
        )
    return rows


SCENARIOS = [
    Scenario(
        name="order",
        title="POST order by REST and by GraphQL",
        unit="orders/s",
        prepare=prepare_orders,
        judge=judge_orders,
        group="orders",
        goal=">= 3x the peer, >= 1.2x the bare program, >= 70 % of the one that batches; GraphQL >= 85 % of REST",
        requires=(requirements.PYTHON,),
    ),
    Scenario(
        name="hot-order",
        title="POST order, one hot product",
        unit="orders/s",
        prepare=prepare_hot_product,
        judge=judge_hot_product,
        group="orders",
        goal=">= 80 % of uniformly distributed products, p99 <= the peer's / 3",
        requires=(requirements.PYTHON,),
        rounds=FEWER_ROUNDS,
    ),
]
