"""Reads of one service alone: it has a core, stores and generator the other."""

from __future__ import annotations

from typing import Any

from benchmarks import needs
from benchmarks.figures import Figure, Row
from benchmarks.lab import Lab, same
from benchmarks.pgbench import pgbench
from benchmarks.scenario import Contestants, Figures, Scenario, compared

COLUMNS = "id, name, description, price, currency, image_url, created_at, updated_at"


async def start_peer(lab: Lab) -> int:
    """The peer of products, over the same table and the same cache."""
    port = lab.peer_port(1)
    env = {
        "DATABASE_URL": lab.urls["postgres_products"].replace("postgresql://", "postgresql+asyncpg://"),
        "REDIS_URL": lab.urls["redis"],
        "INVENTORY": lab.urls["inventory"],
    }
    await lab.uvicorn("peer products", "products_fastapi:app", port, env)
    return port


async def _contestants(lab: Lab, path: str, workload: dict[str, Any], scripts: list[str]) -> Contestants:
    ours = lab.port("products")
    peer = None
    if needs.there(needs.PYTHON):
        peer = await start_peer(lab)
        answer = await lab.get(f"http://127.0.0.1:{ours}{path}")
        same("the peer of products", answer, await lab.get(f"http://127.0.0.1:{peer}{path}"))
    body = lab.directory / "bare.json"
    import httpx

    body.write_bytes(httpx.get(f"http://127.0.0.1:{ours}{path}").content)
    lab.stop("bare")
    bare = lab.peer_port(2)
    await lab.uvicorn("bare", "benchmarks.limits.bare:app", bare, {"BODY_FILE": str(body)})
    lab.pin("products", "peer products", "bare")

    def contestant(port: int) -> Any:
        async def one() -> Figure:
            return await lab.both(port=port, **workload)

        return one

    async def limit() -> Figure:
        return await lab.closed(port=bare, **workload)

    async def keys() -> Figure:
        return await pgbench(lab, "products", scripts, clients=16)

    return {"ours": contestant(ours), **({"peer": contestant(peer)} if peer else {}), "limit": limit, "pgbench": keys}


async def one(lab: Lab) -> Contestants:
    ids = await lab.fill()
    scripts = [f"SELECT {COLUMNS} FROM products WHERE id = '{id}';" for id in ids[:50]]
    return await _contestants(lab, f"/api/product/{ids[0]}", {"workload": "products", "params": {"ids": ids}}, scripts)


async def page(lab: Lab) -> Contestants:
    await lab.fill()
    path = "/api/product?limit=20"
    script = f"SELECT {COLUMNS} FROM products ORDER BY created_at DESC, id DESC LIMIT 20;"
    return await _contestants(lab, path, {"workload": "get", "params": {"path": path}}, [script])


def _judge(title: str) -> Any:
    def judge(figures: Figures) -> list[Row]:
        keys = sorted(f.value for f in figures["pgbench"])
        remark = f"the select alone in pgbench: {keys[len(keys) // 2]:,.0f}/s"
        return [compared(figures, title, "requests/s", ">= 2x the peer", least_to_peer=2, remark=remark)]

    return judge


SCENARIOS = [
    Scenario(
        name="product-one",
        title="GET one product",
        goal=">= 2x the peer",
        prepare=one,
        judge=_judge("GET one product"),
        peers=(needs.PYTHON,),
    ),
    Scenario(
        name="product-list",
        title="GET a list of 20 products with availability",
        goal=">= 2x the peer",
        prepare=page,
        judge=_judge("GET a list of 20 products with availability"),
        peers=(needs.PYTHON,),
    ),
]
