"""The whole write path: nothing is pinned, no mails are due, and CPU per order counts as much as orders/s."""

from __future__ import annotations

import sys
from typing import Any

import msgspec

from benchmarks import needs
from benchmarks.figures import Figure, Row
from benchmarks.lab import OPEN_SHARE, Lab, settle
from benchmarks.limits.order_writes import Result
from benchmarks.scenario import Contestants, Figures, Scenario, compared, p99, rounded, shown, third
from benchmarks.scenarios import products

BUYERS = 64
BUYERS_OF_ONE = (64, 256)


async def start_peers(lab: Lab) -> int | None:
    """The same path written plainly: FastAPI, SQLAlchemy, one call after the other. Where it listens, if it can run."""
    from confluent_kafka.admin import AdminClient, NewTopic

    if lab.stack.kafka_kind == "apache":
        admin = AdminClient({"bootstrap.servers": lab.urls["kafka"]})
        for made in admin.create_topics(
            [NewTopic(t, num_partitions=12, replication_factor=1) for t in ("peer-orders", "bare-orders")]
        ).values():
            if (error := made.exception()) and "EXISTS" not in str(error):
                raise error
    if not needs.there(needs.PYTHON):
        return None
    catalogue = await products.start_peer(lab)
    inventory, orders = lab.peer_port(3), lab.peer_port(4)
    database = lab.urls["postgres_inventory"].replace("postgresql://", "postgresql+psycopg://")
    await lab.start(
        "peer inventory", [sys.executable, "inventory_sync.py", str(inventory)], inventory, {"DATABASE_URL": database}
    )
    env = {
        "MONGODB_URL": lab.urls["mongodb"],
        "INVENTORY": f"127.0.0.1:{inventory}",
        "PRODUCTS": f"http://127.0.0.1:{catalogue}",
        "KAFKA": lab.urls["kafka"],
    }
    await lab.uvicorn("peer orders", "orders_fastapi:app", orders, env)
    return orders


async def _check(lab: Lab, ports: list[int], ids: list[str]) -> None:
    """The contestants make the same order of the same request."""
    body = {"user": "ann", "items": [{"product_id": id, "quantity": n} for n, id in enumerate(ids[:3], 1)]}
    answers = [await lab.post(f"http://127.0.0.1:{port}/api/order", body) for port in ports]
    for answer in answers:
        del answer["id"], answer["created_at"]
    if any(a != answers[0] for a in answers):
        raise RuntimeError(f"the orders differ: {answers}")


def _ours(lab: Lab, *, latency: bool = True, **spec: Any) -> Any:
    async def one() -> Figure:
        figure = await (lab.both(**spec) if latency else lab.closed(**spec))
        # What was promised is published, too, before the next one has the machine.
        figure.notes["outbox_drained_after_seconds"] = round(await settle(lab), 3)
        return figure

    return one


def _peer(lab: Lab, **spec: Any) -> Any:
    async def one() -> Figure:
        return await lab.both(**spec)

    return one


async def place(lab: Lab) -> Contestants:
    ids = await lab.fill()
    peer = await start_peers(lab)
    ours = lab.port("orders")
    await _check(lab, [ours, *([peer] if peer else [])], ids)
    # No mail is due for these orders; that nobody even looks at them is the peer's case, too.
    lab.stack.pause("notifications")
    lab.pin()
    given = {
        "mongodb": lab.urls["mongodb"],
        "postgres": lab.urls["postgres_inventory"],
        "kafka": lab.urls["kafka"],
        "topic": "bare-orders",
        "ids": ids,
        "lines": 3,
        "in_flight": BUYERS,
        "seconds": lab.seconds,
        "warmup": lab.warmup,
    }

    async def bare() -> Figure:
        result, cpu = await lab.watched("benchmarks.limits.order_writes", msgspec.json.encode(given), Result)
        cpu["program"] = rounded(1000 * result.cpu_share / max(result.rate, 1))
        return Figure(value=result.rate, done=result.good, latency=result.latency, cpu=cpu)

    orders = {"workload": "orders", "params": {"ids": ids}, "connections": BUYERS}
    return {
        "ours": _ours(lab, port=ours, **orders),
        **({"peer": _peer(lab, port=peer, **orders)} if peer else {}),
        "limit": bare,
        "graphql": _ours(
            lab, port=lab.port("graphql"), workload="graphql_orders", params={"ids": ids}, connections=BUYERS
        ),
    }


def judge_place(figures: Figures) -> list[Row]:
    rest = compared(
        figures,
        "POST order, 3 lines, uniform goods, 64 buyers",
        "orders/s",
        ">= 3x the peer, >= 1.2x the bare program",
        least_to_peer=3,
        least_to_limit=1.2,
    )
    graphql = compared(
        figures,
        "the same through GraphQL",
        "orders/s",
        ">= 75 % of REST",
        ours="graphql",
        peer=None,
        limit="ours",
        least_to_limit=0.75,
    )
    return [rest, graphql]


async def hot(lab: Lab) -> Contestants:
    ids = await lab.fill()
    peer = await start_peers(lab)
    ours = lab.port("orders")
    await _check(lab, [ours, *([peer] if peer else [])], ids)
    lab.stack.pause("notifications")
    lab.pin()
    contestants = {}
    for buyers in BUYERS_OF_ONE[: 1 if lab.smoke else None]:
        one = {"workload": "orders", "params": {"ids": ids[:1], "lines": 1}, "connections": buyers}
        many = {"workload": "orders", "params": {"ids": ids, "lines": 1}, "connections": buyers}
        # A round of the peer has to be longer than its answers take: 256 buyers wait seconds for them.
        patient = {**one, "warmup": lab.warmup * buyers / 64, "seconds": lab.seconds * max(1.0, buyers / 128)}
        beside = max(1.0, OPEN_SHARE * (await lab.closed(port=peer, **patient)).value) if peer else None
        contestants[f"ours {buyers}"] = _ours(lab, port=ours, beside=beside, **one)
        contestants[f"uniform {buyers}"] = _ours(lab, port=ours, latency=False, **many)
        if peer:
            contestants[f"peer {buyers}"] = _peer(lab, port=peer, at=beside, **patient)
    return contestants


def judge_hot(figures: Figures) -> list[Row]:
    rows = []
    for buyers in BUYERS_OF_ONE:
        if f"ours {buyers}" not in figures:
            continue
        names = {"ours": f"ours {buyers}", "peer": f"peer {buyers}", "limit": f"uniform {buyers}"}
        ours, peer = p99(figures, names["ours"]), p99(figures, names["peer"])
        at_one_rate = [shown(p99(figures, names["ours"], "beside")), shown(p99(figures, names["peer"], "open"))]
        rows.append(
            compared(
                figures,
                f"POST order, one hot product, {buyers} buyers",
                "orders/s",
                ">= 80 % of uniform goods, p99 <= the peer's / 3",
                **names,
                least_to_limit=0.8,
                also=third(ours, peer),
                remark=f"p99 {shown(ours)}, the peer's {shown(peer)}; with both at one fixed rate {at_one_rate[0]} and {at_one_rate[1]}; "
                "the limit is uniform goods in the same run",
            )
        )
    return rows


SCENARIOS = [
    Scenario(
        name="order",
        title="POST order by REST and through GraphQL",
        unit="orders/s",
        prepare=place,
        judge=judge_place,
        group="orders",
        goal=">= 3x the peer, >= 1.2x the bare program; GraphQL >= 75 % of REST",
        peers=(needs.PYTHON,),
    ),
    Scenario(
        name="hot-order",
        title="POST order, one hot product",
        unit="orders/s",
        prepare=hot,
        judge=judge_hot,
        group="orders",
        goal=">= 80 % of uniform goods, p99 <= the peer's / 3",
        peers=(needs.PYTHON,),
    ),
]
