"""The gateway and its peers, in front of a stub of the REST services: each has one core, stub and generator the
other."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import uuid
from typing import Any

from market_dev.stack.topology import config_directory

from benchmarks import requirements
from benchmarks.measurements import Measurement, Row
from benchmarks.scenario import FEWER_ROUNDS, Contestants, Measurements, Scenario, compare
from benchmarks.testbed import Testbed, assert_same

LIST = """{ products(limit: 20) { items { id name description price currency imageUrl available createdAt updatedAt }
  total limit offset } }"""
ORDERS = """query Mine($user: String!) { orders(user: $user, limit: 20) {
  items { id user total currency status createdAt
  items { productId name quantity unitPrice product { id name description price currency imageUrl available } } }
  total limit offset } }"""
QUERIES: dict[str, tuple[str, dict[str, Any]]] = {"list": (LIST, {}), "orders": (ORDERS, {"user": "ann"})}
# The minimum ratios to the peers.
PEERS = {"strawberry": 4.0, "ariadne": 2.0, "mercurius": 1.0}


def rest_responses() -> dict[str, Any]:
    """Return the bodies of products and orders: 20 products; 20 orders of three lines over 60 products."""

    def make_id(n: int) -> str:
        return str(uuid.UUID(int=0x0190_0000_0000_7000_8000_0000_0000_0000 + n))

    products = [
        {
            "id": make_id(n),
            "name": f"WHITE HANGING HEART T-LIGHT HOLDER {n}",
            "description": f"A holder of glass and wire for one t-light, number {n} of its kind. Hangs in a window or "
            "a tree.",
            "price": f"{n % 40}.95",
            "currency": "GBP",
            "image_url": f"/images/{n}.svg",
            "available": n % 7 != 0,
            "created_at": "2026-03-01T10:00:00.123456Z",
            "updated_at": "2026-03-02T10:00:00.123456Z",
        }
        for n in range(60)
    ]
    orders = []
    for n in range(20):
        lines = [
            {"product_id": p["id"], "name": p["name"], "quantity": quantity, "unit_price": p["price"]}
            for quantity, p in enumerate(products[3 * n : 3 * n + 3], 1)
        ]
        orders.append(
            {
                "id": make_id(1000 + n),
                "user": "ann",
                "email": None,
                "items": lines,
                "total": "81.70",
                "currency": "GBP",
                "status": "confirmed",
                "created_at": "2026-03-03T10:00:00.123Z",
            }
        )
    return {
        "list": {"items": products[:20], "total": 5000, "limit": 20, "offset": 0},
        "ids": {"items": products, "total": 60, "limit": 60, "offset": 0},
        "orders": {"items": orders, "total": 20, "limit": 20, "offset": 0},
    }


async def _prepare(testbed: Testbed, name: str) -> Contestants:
    names = ("rest", "ours", "admin", "strawberry", "ariadne", "mercurius", "limit")
    port = {name: testbed.peer_port(number) for number, name in enumerate(names)}
    responses = rest_responses()
    file = testbed.directory / "responses.json"
    file.write_text(json.dumps(responses))
    url = f"http://127.0.0.1:{port['rest']}"
    env = {"PRODUCTS": url, "ORDERS": url}
    stub = [sys.executable, "-m", "benchmarks.limits.rest_stub", str(port["rest"]), file]
    await testbed.start("rest", stub, port["rest"])
    our_env = {
        "MARKET_PRODUCTS_PORT": str(port["rest"]),
        "MARKET_ORDERS_PORT": str(port["rest"]),
        "MARKET_PORT": str(port["ours"]),
        "MARKET_ADMIN_PORT": str(port["admin"]),
        "MARKET_LOG_FORMAT": "json",
        "CONFIG_PATH": str(config_directory() / "graphql.yaml"),
    }
    ids = ",".join(p["id"] for p in responses["ids"]["items"])
    passthrough = "benchmarks.limits.rest_passthrough:app"
    starting = [
        testbed.start("ours", [sys.executable, "-m", "market.graphql"], port["ours"], our_env),
        testbed.start_asgi("limit", passthrough, port["limit"], {**env, "IDS": ids}),
    ]
    peers = []
    if requirements.is_installed(requirements.PYTHON):
        starting.append(testbed.start_asgi("strawberry", "graphql_strawberry:app", port["strawberry"], env))
        starting.append(testbed.start_asgi("ariadne", "graphql_ariadne:app", port["ariadne"], env))
        peers += ["strawberry", "ariadne"]
    if requirements.is_installed(requirements.NODE) and await _fetch_node_packages(testbed):
        node = [shutil.which("node") or "node", "mercurius/server.js", str(port["mercurius"])]
        starting.append(testbed.start("mercurius", node, port["mercurius"], env))
        peers.append("mercurius")
    await asyncio.gather(*starting)
    query, variables = QUERIES[name]
    call = {"query": query, "variables": variables}
    expected = await testbed.post(f"http://127.0.0.1:{port['ours']}/graphql", call)
    if "errors" in expected:
        raise RuntimeError(f"the gateway responds with {expected}")
    for peer in peers:
        assert_same(peer, expected, await testbed.post(f"http://127.0.0.1:{port[peer]}{_path(peer)}", call))
    testbed.pin("ours", "limit", *peers)

    def contestant(name: str) -> Any:
        async def measure() -> Measurement:
            params = {"query": query, "variables": variables, "path": _path(name)}
            spec = {"port": port[name], "workload": "graphql", "connections": 64, "params": params}
            return await (testbed.closed_loop(**spec) if name == "limit" else testbed.both_loops(**spec))

        return measure

    return {name: contestant(name) for name in ("ours", *peers, "limit")}


def _path(contestant: str) -> str:
    return "/" if contestant == "ariadne" else "/graphql"


async def _fetch_node_packages(testbed: Testbed) -> bool:
    """Fetch the packages of mercurius, except in a smoke run. Return whether they are there.

    Raises RuntimeError if they cannot be fetched and the run is to be complete.
    """
    if (requirements.MERCURIUS / "node_modules").is_dir():
        return True
    if testbed.smoke:
        return False
    try:
        await testbed.run(["npm", "ci", "--omit=dev", "--no-audit", "--no-fund", "--prefix", requirements.MERCURIUS])
    except RuntimeError as e:
        if not testbed.incomplete:
            raise
        print(f"  leaving out mercurius: {e}")
        return False
    return True


async def prepare_list(testbed: Testbed) -> Contestants:
    return await _prepare(testbed, "list")


async def prepare_orders(testbed: Testbed) -> Contestants:
    return await _prepare(testbed, "orders")


def _judge(title: str) -> Any:
    def judge(measurements: Measurements) -> list[Row]:
        return [
            compare(
                measurements,
                f"GraphQL: {title}, compared with {peer}",
                "queries/s",
                f">= {min_ratio:.1f}x {peer}",
                peer=peer,
                min_ratio_to_peer=min_ratio,
            )
            for peer, min_ratio in PEERS.items()
        ]

    return judge


SCENARIOS = [
    Scenario(
        name="graphql-list",
        title="GraphQL: list of 20 products",
        unit="queries/s",
        prepare=prepare_list,
        judge=_judge("list of 20 products"),
        goal=">= 4x Strawberry, >= 2x Ariadne, >= 1.0x mercurius-JIT",
        group="gateway",
        needs_stack=False,
        requires=(requirements.PYTHON, requirements.NODE),
        rounds=FEWER_ROUNDS,
    ),
    Scenario(
        name="graphql-orders",
        title="GraphQL: a user's 20 orders with their products",
        unit="queries/s",
        prepare=prepare_orders,
        judge=_judge("a user's 20 orders with their products"),
        goal=">= 4x Strawberry, >= 2x Ariadne, >= 1.0x mercurius-JIT",
        group="gateway",
        needs_stack=False,
        requires=(requirements.PYTHON, requirements.NODE),
        rounds=FEWER_ROUNDS,
    ),
]
