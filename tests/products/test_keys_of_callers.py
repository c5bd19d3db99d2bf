"""A product's Idempotency-Key belongs to the caller, also while an earlier version runs, for which it belongs to all.

The callers of these tests differ by their addresses in 127.0.0.0/8.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple
from uuid import uuid4

import httpx

from tests.support.repeats import assert_created_once, repeated_while_unknown
from tests.support.waiting import PATIENCE

from .conftest import RunningProducts

LAMP = {"name": "Lamp", "description": "", "price": "2.50", "currency": "GBP"}
CUP = {**LAMP, "name": "Cup"}


@asynccontextmanager
async def calling_from(address: str, port: int) -> AsyncIterator[httpx.AsyncClient]:
    """A client with this address."""
    transport = httpx.AsyncHTTPTransport(local_address=address)
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=2 * PATIENCE
    ) as client:
        yield client


async def post(client: httpx.AsyncClient, key: str, fields: dict[str, str] = LAMP) -> httpx.Response:
    return await client.post("/api/product", json=fields, headers={"Idempotency-Key": key})


class Callers(NamedTuple):
    """The clients of two callers, for one instance."""

    ada: httpx.AsyncClient
    bea: httpx.AsyncClient


@asynccontextmanager
async def callers(port: int) -> AsyncIterator[Callers]:
    async with calling_from("127.0.0.2", port) as ada, calling_from("127.0.0.3", port) as bea:
        yield Callers(ada, bea)


async def test_equal_keys_of_two_callers_create_a_product_each(products: RunningProducts) -> None:
    key = str(uuid4())
    async with callers(products.config.http.port) as (ada, bea):
        responses = await asyncio.gather(
            *(post(client, key, fields) for client, fields in [(ada, LAMP), (bea, CUP)] * 4)
        )
        assert sorted(r.status_code for r in responses) == [200] * 6 + [201] * 2
        ids = {r.json()["name"]: r.json()["id"] for r in responses}
        assert {(r.json()["name"], r.json()["id"]) for r in responses} == set(ids.items())
        assert set(ids) == {"Lamp", "Cup"}
        assert len(set(ids.values())) == 2
        different = await post(ada, key, CUP)
        assert (different.status_code, different.json()["type"]) == (422, "urn:market:problem:idempotency-key-reused")


async def test_a_product_that_an_earlier_version_created_belongs_to_every_caller(products: RunningProducts) -> None:
    key = str(uuid4())
    async with callers(products.config.http.port) as (ada, bea):
        created = await post(ada, key)
        await products.db.execute(
            "UPDATE products SET caller = NULL, caller_key = NULL WHERE idempotency_key = $1", key
        )
        for client in (ada, bea):
            repeated = await post(client, key)
            assert (repeated.status_code, repeated.json()["id"]) == (200, created.json()["id"])
        assert (await post(bea, key, CUP)).status_code == 422


async def test_a_deleted_product_passes_its_key_on_for_earlier_versions(products: RunningProducts) -> None:
    """Otherwise an earlier version would create the other caller's product again."""
    key = str(uuid4())

    async def keys() -> list[tuple[str, str | None]]:
        rows = await products.db.fetch(
            "SELECT name, idempotency_key FROM products WHERE caller_key = $1 ORDER BY name", key
        )
        return [(row["name"], row["idempotency_key"]) for row in rows]

    async with callers(products.config.http.port) as (ada, bea):
        lamp = (await post(ada, key)).json()
        assert (await post(bea, key, CUP)).status_code == 201
        [(_, cups_key), lamps] = await keys()
        assert lamps == ("Lamp", key)
        assert cups_key is not None
        assert cups_key.startswith(" ")
        assert (await ada.delete(f"/api/product/{lamp['id']}")).status_code == 204
        assert await keys() == [("Cup", key)]
        # The key of the deleted product is free again for its caller.
        assert (await post(ada, key)).status_code == 201
        assert (await post(bea, key, CUP)).status_code == 200


async def test_two_versions_at_once_create_one_product_per_caller_and_key(
    products: RunningProducts, earlier_port: int
) -> None:
    keys = [str(uuid4()) for _ in range(8)]
    async with AsyncExitStack() as stack:
        present = await stack.enter_async_context(callers(products.config.http.port))
        earlier = await stack.enter_async_context(callers(earlier_port))
        # Each caller has its own keys, and sends each request twice to each version, all at once.
        calls = [(key, version[n % 2]) for n, key in enumerate(keys) for version in (present, earlier) * 2]

        async def send(key: str, client: httpx.AsyncClient) -> list[httpx.Response]:
            return await repeated_while_unknown(lambda: post(client, key))

        responses = await asyncio.gather(*(send(key, client) for key, client in calls))
        for n, key in enumerate(keys):
            own = [r for r, call in zip(responses, calls, strict=True) if call[0] == key]
            own += [await send(key, version[n % 2]) for version in (present, earlier)]
            assert_created_once(own)
        # The callers have one key in common. As always, the earlier version lets only one of them have it.
        key = str(uuid4())
        first, other = await post(present.ada, key), await post(present.bea, key, CUP)
        assert (first.status_code, other.status_code) == (201, 201)
        assert (await post(earlier.ada, key)).json()["id"] == first.json()["id"]
        assert (await post(earlier.bea, key, CUP)).status_code == 422
        assert (await earlier.ada.delete(f"/api/product/{first.json()['id']}")).status_code == 204
        repeated = [await post(version.bea, key, CUP) for version in (earlier, present)]
        assert [(r.status_code, r.json()["id"]) for r in repeated] == [(200, other.json()["id"])] * 2
