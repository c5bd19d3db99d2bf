"""The gateway and its peers over REST answers from memory: each has a core, those answers and the generator the other."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import uuid
from typing import Any

from market_dev.stack.topology import config_directory

from benchmarks import needs
from benchmarks.figures import Figure, Row
from benchmarks.lab import Lab, same
from benchmarks.scenario import Contestants, Figures, Scenario, compared

LIST = """{ products(limit: 20) { items { id name description price currency imageUrl available createdAt updatedAt }
  total limit offset } }"""
ORDERS = """query Mine($user: String!) { orders(user: $user, limit: 20) { items { id user total currency status createdAt
  items { productId name quantity unitPrice product { id name description price currency imageUrl available } } } total limit offset } }"""
QUERIES: dict[str, tuple[str, dict[str, Any]]] = {"list": (LIST, {}), "orders": (ORDERS, {"user": "ann"})}
PEERS = {"strawberry": 4.0, "ariadne": 2.0, "mercurius": 1.0}


def answers() -> dict[str, Any]:
    """What products and orders answer: 20 products; 20 orders of three lines over 60 products."""

    def id(n: int) -> str:
        return str(uuid.UUID(int=0x0190_0000_0000_7000_8000_0000_0000_0000 + n))

    goods = [
        {
            "id": id(n),
            "name": f"WHITE HANGING HEART T-LIGHT HOLDER {n}",
            "description": f"A holder of glass and wire for one t-light, number {n} of its kind. Hangs in a window or a tree.",
            "price": f"{n % 40}.95",
            "currency": "GBP",
            "image_url": f"/images/{n}.svg",
            "available": n % 7 != 0,
            "created_at": "2026-03-01T10:00:00.123456Z",
            "updated_at": "2026-03-02T10:00:00.123456Z",
        }
        for n in range(60)
    ]
    made = []
    for n in range(20):
        lines = goods[3 * n : 3 * n + 3]
        items = [
            {"product_id": p["id"], "name": p["name"], "quantity": i + 1, "unit_price": p["price"]}
            for i, p in enumerate(lines)
        ]
        made.append(
            {
                "id": id(1000 + n),
                "user": "ann",
                "email": None,
                "items": items,
                "total": "81.70",
                "currency": "GBP",
                "status": "confirmed",
                "created_at": "2026-03-03T10:00:00.123Z",
            }
        )
    return {
        "list": {"items": goods[:20], "total": 5000, "limit": 20, "offset": 0},
        "ids": {"items": goods, "total": 60, "limit": 60, "offset": 0},
        "orders": {"items": made, "total": 20, "limit": 20, "offset": 0},
    }


async def _prepare(lab: Lab, name: str) -> Contestants:
    port = {
        n: lab.peer_port(i)
        for i, n in enumerate(("rest", "ours", "admin", "strawberry", "ariadne", "mercurius", "limit"))
    }
    given = answers()
    file = lab.directory / "answers.json"
    file.write_text(json.dumps(given))
    url = f"http://127.0.0.1:{port['rest']}"
    env = {"PRODUCTS": url, "ORDERS": url}
    await lab.start("rest", [sys.executable, "-m", "benchmarks.limits.rest", str(port["rest"]), file], port["rest"])
    own = {
        "MARKET_PRODUCTS_PORT": str(port["rest"]),
        "MARKET_ORDERS_PORT": str(port["rest"]),
        "MARKET_PORT": str(port["ours"]),
        "MARKET_ADMIN_PORT": str(port["admin"]),
        "MARKET_LOG_FORMAT": "json",
        "CONFIG_PATH": str(config_directory() / "graphql.yaml"),
    }
    ids = ",".join(p["id"] for p in given["ids"]["items"])
    starting = [
        lab.start("ours", [sys.executable, "-m", "market.graphql"], port["ours"], own),
        lab.uvicorn("limit", "benchmarks.limits.gateway:app", port["limit"], {**env, "IDS": ids}),
    ]
    peers = []
    if needs.there(needs.PYTHON):
        starting.append(lab.uvicorn("strawberry", "graphql_strawberry:app", port["strawberry"], env))
        starting.append(lab.uvicorn("ariadne", "graphql_ariadne:app", port["ariadne"], env))
        peers += ["strawberry", "ariadne"]
    if needs.there(needs.NODE) and await _node_packages(lab):
        node = [shutil.which("node") or "node", "mercurius/server.js", str(port["mercurius"])]
        starting.append(lab.start("mercurius", node, port["mercurius"], env))
        peers.append("mercurius")
    await asyncio.gather(*starting)
    query, variables = QUERIES[name]
    call = {"query": query, "variables": variables}
    expected = await lab.post(f"http://127.0.0.1:{port['ours']}/graphql", call)
    if "errors" in expected:
        raise RuntimeError(f"the gateway answers {expected}")
    for peer in peers:
        path = "/" if peer == "ariadne" else "/graphql"
        same(peer, expected, await lab.post(f"http://127.0.0.1:{port[peer]}{path}", call))
    lab.pin("ours", "limit", *peers)

    def contestant(who: str) -> Any:
        async def one() -> Figure:
            params = {"query": query, "variables": variables, "path": "/" if who == "ariadne" else "/graphql"}
            spec = {"port": port[who], "workload": "graphql", "connections": 64, "params": params}
            return await (lab.closed(**spec) if who == "limit" else lab.both(**spec))

        return one

    return {who: contestant(who) for who in ("ours", *peers, "limit")}


async def _node_packages(lab: Lab) -> bool:
    """Whether mercurius' packages are here; but for a smoke run they are fetched. Raises RuntimeError where that fails."""
    if (needs.MERCURIUS / "node_modules").is_dir():
        return True
    if lab.smoke:
        return False
    try:
        await lab.run(["npm", "ci", "--omit=dev", "--no-audit", "--no-fund", "--prefix", needs.MERCURIUS])
    except RuntimeError as e:
        if not lab.incomplete:
            raise
        print(f"  mercurius is left out: {e}")
        return False
    return True


async def page(lab: Lab) -> Contestants:
    return await _prepare(lab, "list")


async def orders(lab: Lab) -> Contestants:
    return await _prepare(lab, "orders")


def _judge(title: str) -> Any:
    def judge(figures: Figures) -> list[Row]:
        return [
            compared(
                figures,
                f"GraphQL: {title}, beside {peer}",
                "queries/s",
                f">= {least:.1f}x {peer}",
                peer=peer,
                least_to_peer=least,
            )
            for peer, least in PEERS.items()
        ]

    return judge


SCENARIOS = [
    Scenario(
        name="graphql-list",
        title="GraphQL: list of 20 products",
        unit="queries/s",
        prepare=page,
        judge=_judge("list of 20 products"),
        goal=">= 4x Strawberry, >= 2x Ariadne, >= 1.0x mercurius-JIT",
        group="gateway",
        stack=False,
        peers=(needs.PYTHON, needs.NODE),
    ),
    Scenario(
        name="graphql-orders",
        title="GraphQL: a user's 20 orders with joined products",
        unit="queries/s",
        prepare=orders,
        judge=_judge("a user's 20 orders with joined products"),
        goal=">= 4x Strawberry, >= 2x Ariadne, >= 1.0x mercurius-JIT",
        group="gateway",
        stack=False,
        peers=(needs.PYTHON, needs.NODE),
    ),
]
