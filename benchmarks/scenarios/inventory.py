"""Inventory alone, by gRPC: it has a core, PostgreSQL and the generator the other. pgbench has inventory's core."""

from __future__ import annotations

import random
import sys
from typing import Any

import grpc
import msgspec

from benchmarks import needs
from benchmarks.figures import Figure, Row
from benchmarks.lab import OPEN_SHARE, Lab
from benchmarks.limits.order_writes import Result
from benchmarks.pgbench import both, pgbench
from benchmarks.scenario import Contestants, Figures, Scenario, compared, p99, rounded, shown, third

CALLERS = (16, 64, 256)
LEAST = {16: 4.0, 64: 15.0, 256: 60.0}


async def hot(lab: Lab) -> Contestants:
    ids = await lab.fill()
    product = ids[0]
    lab.pin("inventory")
    # One order as it is usually written: lock the row, look, take, remember.
    script = f"""
        BEGIN;
        SELECT quantity FROM inventory WHERE product_id = '{product}' FOR UPDATE;
        UPDATE inventory SET quantity = quantity - 1 WHERE product_id = '{product}' AND quantity >= 1;
        INSERT INTO reservations (id, product_ids, quantities) VALUES (gen_random_uuid(), ARRAY['{product}'::uuid], ARRAY[1]);
        COMMIT;
    """
    contestants: dict[str, Any] = {}

    def ours(callers: int, beside: float) -> Any:
        async def one() -> Figure:
            return await lab.both(
                kind="reserve",
                port=lab.port("inventory"),
                workload="reservations",
                params={"ids": [product]},
                connections=callers,
                beside=beside,
            )

        return one

    def peer(callers: int, at: float) -> Any:
        async def one() -> Figure:
            return await both(lab, "inventory", [script], clients=callers, at=at)

        return one

    def limit(callers: int) -> Any:
        given = {
            "postgres": lab.urls["postgres_inventory"],
            "ids": [product],
            "lines": 1,
            "callers": callers,
            "seconds": lab.seconds,
            "warmup": lab.warmup,
        }

        async def one() -> Figure:
            result, cpu = await lab.watched("benchmarks.limits.reserve_batches", msgspec.json.encode(given), Result)
            cpu["program"] = rounded(1000 * result.cpu_share / max(result.rate, 1))
            return Figure(value=result.rate, done=result.good, latency=result.latency, cpu=cpu)

        return one

    for callers in CALLERS[: 1 if lab.smoke else None]:
        beside = max(1.0, OPEN_SHARE * (await pgbench(lab, "inventory", [script], clients=callers)).value)
        contestants[f"ours {callers}"] = ours(callers, beside)
        contestants[f"peer {callers}"] = peer(callers, beside)
        contestants[f"limit {callers}"] = limit(callers)
    return contestants


def judge_hot(figures: Figures) -> list[Row]:
    rows = []
    for callers in CALLERS:
        if f"ours {callers}" not in figures:
            continue
        own, theirs = p99(figures, f"ours {callers}"), p99(figures, f"peer {callers}")
        at_one_rate = [shown(p99(figures, f"ours {callers}", "beside")), shown(p99(figures, f"peer {callers}", "open"))]
        rows.append(
            compared(
                figures,
                f"reservations, one hot product, {callers} callers",
                "reservations/s",
                f">= {LEAST[callers]:.0f}x the peer, p99 <= 1/3 of it",
                ours=f"ours {callers}",
                peer=f"peer {callers}",
                limit=f"limit {callers}",
                least_to_peer=LEAST[callers],
                also=third(own, theirs),
                remark=f"p99 {shown(own)}, the peer's {shown(theirs)}; with both at one fixed rate {at_one_rate[0]} and {at_one_rate[1]}",
            )
        )
    return rows


async def lone(lab: Lab) -> Contestants:
    ids = await lab.fill()
    port = await lab.service("inventory", "unbatched", 5, {}, module="benchmarks.limits.unbatched")
    lab.pin("inventory", "unbatched")

    def contestant(port: int, *, direct: bool) -> Any:
        async def one() -> Figure:
            figure = await lab.closed(
                kind="direct" if direct else "reserve",
                port=port,
                workload="reservations",
                params={"ids": ids},
                connections=1,
            )
            assert figure.latency is not None
            figure.notes["per_second"] = round(figure.value)
            figure.value = figure.latency.p50
            return figure

        return one

    return {"ours": contestant(lab.port("inventory"), direct=False), "peer": contestant(port, direct=True)}


def judge_lone(figures: Figures) -> list[Row]:
    row = compared(
        figures,
        "reservations, a lone caller (median latency)",
        "ms",
        "no slower than unbatched (within 5 %)",
        limit=None,
    )
    # Latencies: the ratio is turned over, so that more is better here, too.
    row.met = False
    if row.ratio_to_peer and row.spread_to_peer and all(row.spread_to_peer):
        row.ratio_to_peer = rounded(1 / row.ratio_to_peer)
        row.spread_to_peer = [rounded(1 / x) for x in reversed(row.spread_to_peer)]
        row.met = row.ratio_to_peer >= 0.95
    said = "the peer is the same client and service without gathering; the ratio is its latency by ours"
    row.remark = f"{row.remark}; {said}" if row.remark else said
    return [row]


async def one_by_one(lab: Lab) -> Contestants:
    ids = await lab.fill()
    port = await _peer(lab, ids)
    lab.pin("inventory", "peer inventory")
    rng = random.Random(7)
    scripts = []
    for _ in range(50):
        chosen = sorted(rng.sample(ids, 3))
        products = ",".join(f"'{id}'::uuid" for id in chosen)
        scripts.append(f"SELECT outcome FROM reserve(gen_random_uuid(), ARRAY[{products}], ARRAY[1,1,1]);")
    return _three(lab, port, "reserve", ids, scripts, 64)


async def check(lab: Lab) -> Contestants:
    ids = await lab.fill()
    port = await _peer(lab, ids)
    lab.pin("inventory", "peer inventory")
    rng = random.Random(7)
    scripts = [
        f"SELECT product_id, quantity FROM inventory WHERE product_id = ANY ('{{{','.join(rng.sample(ids, 100))}}}'::uuid[]);"
        for _ in range(20)
    ]
    return _three(lab, port, "check", ids, scripts, 64)


async def _peer(lab: Lab, ids: list[str]) -> int | None:
    """Where the peer of inventory listens, if it can run."""
    if not needs.there(needs.PYTHON):
        return None
    from market.contracts import inventory_pb2 as pb
    from market.contracts.inventory_pb2_grpc import InventoryStub

    port = lab.peer_port(3)
    database = lab.urls["postgres_inventory"].replace("postgresql://", "postgresql+psycopg://")
    await lab.start(
        "peer inventory", [sys.executable, "inventory_sync.py", str(port)], port, {"DATABASE_URL": database}
    )
    answers = []
    for at in (lab.port("inventory"), port):
        with grpc.insecure_channel(f"127.0.0.1:{at}") as channel:
            answers.append(
                InventoryStub(channel).CheckAvaliable(
                    pb.CheckAvaliableRequest(product_ids=ids[:100]), wait_for_ready=True, timeout=10
                )
            )
    if answers[0] != answers[1]:
        raise RuntimeError("the peer of inventory answers otherwise")
    return port


def _three(lab: Lab, peer: int | None, workload: str, ids: list[str], scripts: list[str], callers: int) -> Contestants:
    spec = {"kind": "grpc", "workload": workload, "params": {"ids": ids}, "connections": 8, "streams": callers // 8}

    def contestant(port: int) -> Any:
        async def one() -> Figure:
            return await lab.both(port=port, **spec)

        return one

    async def limit() -> Figure:
        return await pgbench(lab, "inventory", scripts, clients=16)

    return {"ours": contestant(lab.port("inventory")), **({"peer": contestant(peer)} if peer else {}), "limit": limit}


def _twice(title: str) -> Any:
    return lambda figures: [compared(figures, title, "calls/s", ">= 2x the peer", least_to_peer=2)]


SCENARIOS = [
    Scenario(
        name="reserve-hot",
        title="Reservations of one hot product, as orders asks for them",
        unit="reservations/s",
        prepare=hot,
        judge=judge_hot,
        goal=">= 4x, 15x, 60x SELECT FOR UPDATE with 16, 64, 256 callers, p99 <= 1/3",
    ),
    Scenario(
        name="reserve-lone",
        title="A lone caller's reservation",
        unit="ms",
        prepare=lone,
        judge=judge_lone,
        goal="no slower than unbatched",
    ),
    Scenario(
        name="reserve-one",
        title="Reserve one by one, 3 lines",
        unit="calls/s",
        prepare=one_by_one,
        judge=_twice("Reserve one by one, 3 lines, 64 callers"),
        goal=">= 2x the peer",
        peers=(needs.PYTHON,),
    ),
    Scenario(
        name="check-100",
        title="CheckAvaliable of 100 products",
        unit="calls/s",
        prepare=check,
        judge=_twice("CheckAvaliable of 100, 64 callers"),
        goal=">= 2x the peer",
        peers=(needs.PYTHON,),
    ),
]
