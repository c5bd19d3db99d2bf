"""Inventory alone, by gRPC: it has one core, PostgreSQL and the generator have the other. pgbench has inventory's
core."""

from __future__ import annotations

import random
import sys
from typing import Any

import grpc
import msgspec

from benchmarks import requirements
from benchmarks.limits.program import Result
from benchmarks.load import OPEN_LOOP_SHARE
from benchmarks.measurements import Measurement, Row
from benchmarks.pgbench import both_loops, pgbench
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
from benchmarks.testbed import Testbed

# By number of callers, the minimum ratio to the peer.
HOT_PRODUCT_GOALS = {16: 4.0, 64: 15.0, 256: 60.0}


async def prepare_hot_product(testbed: Testbed) -> Contestants:
    ids = await testbed.fill()
    product = ids[0]
    testbed.pin("inventory")
    # An order as it is usually written: lock the row, check, update, record.
    script = f"""
        BEGIN;
        SELECT quantity FROM inventory WHERE product_id = '{product}' FOR UPDATE;
        UPDATE inventory SET quantity = quantity - 1 WHERE product_id = '{product}' AND quantity >= 1;
        INSERT INTO reservations (id, product_ids, quantities)
            VALUES (gen_random_uuid(), ARRAY['{product}'::uuid], ARRAY[1]);
        COMMIT;
    """

    def ours(callers: int, peer_rate: float) -> Any:
        async def measure() -> Measurement:
            return await testbed.both_loops(
                kind="reserve",
                port=testbed.port("inventory"),
                workload="reservations",
                params={"ids": [product]},
                connections=callers,
                peer_rate=peer_rate,
            )

        return measure

    def peer(callers: int, rate: float) -> Any:
        async def measure() -> Measurement:
            return await both_loops(testbed, "inventory", [script], clients=callers, open_loop_rate=rate)

        return measure

    def limit(callers: int) -> Any:
        spec = {
            "postgres": testbed.urls["postgres_inventory"],
            "ids": [product],
            "lines": 1,
            "callers": callers,
            "seconds": testbed.seconds,
            "warmup": testbed.warmup,
        }

        async def measure() -> Measurement:
            program = "benchmarks.limits.reserve_batches"
            result, cpu_ms = await testbed.run_program(program, msgspec.json.encode(spec), Result)
            cpu_ms["program"] = rounded(1000 * result.cpu_share / max(result.rate, 1))
            return Measurement(value=result.rate, operations=result.succeeded, latency=result.latency, cpu_ms=cpu_ms)

        return measure

    contestants: dict[str, Any] = {}
    for callers in list(HOT_PRODUCT_GOALS)[: 1 if testbed.smoke else None]:
        rate = max(1.0, OPEN_LOOP_SHARE * (await pgbench(testbed, "inventory", [script], clients=callers)).value)
        contestants[f"ours {callers}"] = ours(callers, rate)
        contestants[f"peer {callers}"] = peer(callers, rate)
        contestants[f"limit {callers}"] = limit(callers)
    return contestants


def judge_hot_product(measurements: Measurements) -> list[Row]:
    rows = []
    for callers, min_ratio in HOT_PRODUCT_GOALS.items():
        if f"ours {callers}" not in measurements:
            continue
        ours, peer = median_p99(measurements, f"ours {callers}"), median_p99(measurements, f"peer {callers}")
        ours_at_rate = format_ms(median_p99(measurements, f"ours {callers}", "at_peer_rate"))
        peer_at_rate = format_ms(median_p99(measurements, f"peer {callers}", "open_loop"))
        rows.append(
            compare(
                measurements,
                f"reservations, one hot product, {callers} callers",
                "reservations/s",
                f">= {min_ratio:.0f}x the peer, p99 <= the peer's / 3",
                ours=f"ours {callers}",
                peer=f"peer {callers}",
                limit=f"limit {callers}",
                min_ratio_to_peer=min_ratio,
                other_goals_met=at_most_a_third(ours, peer),
                remark=f"p99 {format_ms(ours)}, the peer's {format_ms(peer)}; both at the same fixed rate: "
                f"{ours_at_rate} and "
                f"{peer_at_rate}",
            )
        )
    return rows


async def prepare_lone_caller(testbed: Testbed) -> Contestants:
    ids = await testbed.fill()
    module = "benchmarks.limits.unbatched_inventory"
    unbatched = await testbed.start_service("inventory", "unbatched", 5, module=module)
    testbed.pin("inventory", "unbatched")

    def contestant(port: int, kind: str) -> Any:
        async def measure() -> Measurement:
            measured = await testbed.closed_loop(
                kind=kind, port=port, workload="reservations", params={"ids": ids}, connections=1
            )
            assert measured.latency is not None
            measured.notes["per_second"] = round(measured.value)
            measured.value = measured.latency.p50
            return measured

        return measure

    return {
        "ours": contestant(testbed.port("inventory"), "reserve"),
        "peer": contestant(unbatched, "reserve-unbatched"),
    }


def judge_lone_caller(measurements: Measurements) -> list[Row]:
    row = compare(
        measurements,
        "reservations, a lone caller (median latency)",
        "ms",
        "no slower than unbatched (within 5 %)",
        limit=None,
    )
    # For latencies the ratio is inverted, so that higher is better here too.
    row.met = False
    if row.ratio_to_peer and row.spread_to_peer and all(row.spread_to_peer):
        row.ratio_to_peer = rounded(1 / row.ratio_to_peer)
        row.spread_to_peer = [rounded(1 / x) for x in reversed(row.spread_to_peer)]
        row.met = row.ratio_to_peer >= 0.95
    remark = "the peer is the same client and service without batching; the ratio is its latency divided by ours"
    row.remark = f"{row.remark}; {remark}" if row.remark else remark
    return [row]


async def prepare_reserve(testbed: Testbed) -> Contestants:
    ids = await testbed.fill()
    port = await _start_peer(testbed, ids)
    testbed.pin("inventory", "peer inventory")
    rng = random.Random(7)
    scripts = []
    for _ in range(50):
        products = ",".join(f"'{product_id}'::uuid" for product_id in sorted(rng.sample(ids, 3)))
        scripts.append(f"SELECT outcome FROM reserve(gen_random_uuid(), ARRAY[{products}], ARRAY[1,1,1]);")
    return _contestants(testbed, port, "reserve", ids, scripts, 64)


async def prepare_check(testbed: Testbed) -> Contestants:
    ids = await testbed.fill()
    port = await _start_peer(testbed, ids)
    testbed.pin("inventory", "peer inventory")
    rng = random.Random(7)
    scripts = [
        "SELECT product_id, quantity FROM inventory WHERE product_id = ANY "
        f"('{{{','.join(rng.sample(ids, 100))}}}'::uuid[]);"
        for _ in range(20)
    ]
    return _contestants(testbed, port, "check", ids, scripts, 64)


async def _start_peer(testbed: Testbed, ids: list[str]) -> int | None:
    """Start the peer of inventory and verify its responses. Return its port, or None if it is not installed."""
    if not requirements.is_installed(requirements.PYTHON):
        return None
    from market.contracts import inventory_pb2 as pb
    from market.contracts.inventory_pb2_grpc import InventoryStub

    peer = testbed.peer_port(3)
    database = testbed.urls["postgres_inventory"].replace("postgresql://", "postgresql+psycopg://")
    await testbed.start(
        "peer inventory", [sys.executable, "inventory_sync.py", str(peer)], peer, {"DATABASE_URL": database}
    )
    request = pb.CheckAvaliableRequest(product_ids=ids[:100])
    responses = []
    for port in (testbed.port("inventory"), peer):
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            responses.append(InventoryStub(channel).CheckAvaliable(request, wait_for_ready=True, timeout=10))
    if responses[0] != responses[1]:
        raise RuntimeError("the peer of inventory responds differently")
    return peer


def _contestants(
    testbed: Testbed, peer: int | None, workload: str, ids: list[str], scripts: list[str], callers: int
) -> Contestants:
    spec = {"kind": "grpc", "workload": workload, "params": {"ids": ids}, "connections": 8, "streams": callers // 8}

    def contestant(port: int) -> Any:
        async def measure() -> Measurement:
            return await testbed.both_loops(port=port, **spec)

        return measure

    async def limit() -> Measurement:
        return await pgbench(testbed, "inventory", scripts, clients=16)

    return {
        "ours": contestant(testbed.port("inventory")),
        **({"peer": contestant(peer)} if peer else {}),
        "limit": limit,
    }


def _judge(title: str) -> Any:
    return lambda measurements: [compare(measurements, title, "calls/s", ">= 2x the peer", min_ratio_to_peer=2)]


SCENARIOS = [
    Scenario(
        name="reserve-hot",
        title="Reservations of one hot product, as orders requests them",
        unit="reservations/s",
        prepare=prepare_hot_product,
        judge=judge_hot_product,
        goal=">= 4x, 15x, 60x SELECT FOR UPDATE with 16, 64, 256 callers, p99 <= the peer's / 3",
        rounds=FEWER_ROUNDS,
    ),
    Scenario(
        name="reserve-lone",
        title="A lone caller's reservation",
        unit="ms",
        prepare=prepare_lone_caller,
        judge=judge_lone_caller,
        goal="no slower than unbatched",
        rounds=FEWER_ROUNDS,
    ),
    Scenario(
        name="reserve-one",
        title="Reserve one by one, 3 lines",
        unit="calls/s",
        prepare=prepare_reserve,
        judge=_judge("Reserve one by one, 3 lines, 64 callers"),
        goal=">= 2x the peer",
        requires=(requirements.PYTHON,),
        rounds=FEWER_ROUNDS,
    ),
    Scenario(
        name="check-100",
        title="CheckAvaliable of 100 products",
        unit="calls/s",
        prepare=prepare_check,
        judge=_judge("CheckAvaliable of 100, 64 callers"),
        goal=">= 2x the peer",
        requires=(requirements.PYTHON,),
    ),
]
