"""Prices with as many decimals as their currency has: in responses, in lists by price, beside an earlier version."""

from __future__ import annotations

import asyncio
from decimal import Decimal
from importlib.resources import files
from uuid import uuid4

import httpx
import pytest

from tests.support.waiting import PATIENCE

from .conftest import LAMP, RunningProducts

DINAR = {**LAMP, "price": "1.250", "currency": "KWD"}


@pytest.mark.parametrize(
    ("currency", "sent", "returned"),
    [
        ("KWD", "1.25", "1.250"),
        ("KWD", "1.255", "1.255"),
        ("BHD", "7", "7.000"),
        ("TND", "99999999.999", "99999999.999"),
        ("GBP", "2.500", "2.50"),
        ("GBP", "0", "0.00"),
        ("JPY", "100", "100.00"),
        ("JPY", "100.000", "100.00"),
    ],
)
async def test_a_price_is_returned_with_the_decimals_of_its_currency_but_at_least_two(
    products: RunningProducts, currency: str, sent: str, returned: str
) -> None:
    created = await products.create(price=sent, currency=currency)
    assert created["price"] == returned
    assert (await products.get(created["id"]))["price"] == returned
    # What is returned can be sent back.
    response = await products.http.put("/api/product", json=created)
    assert (response.status_code, response.json()["price"]) == (200, returned)


async def test_a_list_by_price_goes_on_between_two_thousandths(products: RunningProducts) -> None:
    await products.db.execute("TRUNCATE products")
    prices = ["1.252", "1.250", "1.251", "1.26", "1.249", "1.251"]
    for price in prices:
        await products.create(price=price, currency="KWD")
    for sort, expected in (("price", sorted(prices)), ("-price", sorted(prices, reverse=True))):
        for search in ({}, {"q": "lamp"}):
            found, after = [], {}
            for _ in prices:
                page = (
                    await products.http.get("/api/product", params={"sort": sort, "limit": 1, **search, **after})
                ).json()
                found += [item["price"] for item in page["items"]]
                after = {"after": page["next"]}
            assert found == [f"{Decimal(price):.3f}" for price in expected]
            assert page["next"] is None


async def test_a_request_with_a_key_matches_what_an_earlier_version_has_stored(
    products: RunningProducts, earlier_port: int
) -> None:
    """Earlier versions have two decimals in each currency."""
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{earlier_port}", timeout=2 * PATIENCE) as earlier:
        headers = {"Idempotency-Key": str(uuid4())}
        created = await earlier.post("/api/product", json={**DINAR, "price": "1.25"}, headers=headers)
        assert (created.status_code, created.json()["price"]) == (201, "1.25")
        for price in ("1.25", "1.250"):
            repeated = await products.http.post("/api/product", json={**DINAR, "price": price}, headers=headers)
            assert (repeated.status_code, repeated.json()["id"]) == (200, created.json()["id"])
            assert repeated.json()["price"] == "1.250"
        changed = await products.http.post("/api/product", json={**DINAR, "price": "1.255"}, headers=headers)
        assert changed.status_code == 422

        # And the other way round.
        headers = {"Idempotency-Key": str(uuid4())}
        created = await products.http.post("/api/product", json=DINAR, headers=headers)
        repeated = await earlier.post("/api/product", json={**DINAR, "price": "1.25"}, headers=headers)
        assert (repeated.status_code, repeated.json()["id"]) == (200, created.json()["id"])


async def test_an_earlier_version_shows_prices_with_three_decimals(
    products: RunningProducts, earlier_port: int
) -> None:
    created = await products.create(price="1.255", currency="KWD")
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{earlier_port}", timeout=2 * PATIENCE) as earlier:
        response = await earlier.get(f"/api/product/{created['id']}")
        assert (response.status_code, response.json()["price"]) == (200, "1.255")


async def test_the_migration_neither_rewrites_the_table_nor_fails_a_request(products: RunningProducts) -> None:
    async def file() -> tuple[int, int]:
        return await products.db.fetchrow(
            "SELECT pg_relation_filenode('products'), pg_relation_filenode('products_price')"
        )

    await products.db.execute("""
        TRUNCATE products;
        ALTER TABLE products DROP CONSTRAINT products_price_check, ALTER COLUMN price TYPE numeric(10, 2),
            ADD CONSTRAINT products_price_check CHECK (price >= 0);
    """)
    created = await products.create()
    before = await file()
    migrated = asyncio.Event()

    async def use() -> int:
        """Read and write, with prepared statements, before and after the migration; return the number of requests."""
        n = left = 0
        while left < 3:
            left += migrated.is_set()
            n += 1
            assert (await products.get(created["id"]))["price"] == "12.50"
            assert (await products.http.get("/api/product?sort=price")).json()["items"][0]["price"] == "12.50"
            response = await products.http.put("/api/product", json=created)
            assert (response.status_code, response.json()["price"]) == (200, "12.50")
        return n

    users = [asyncio.create_task(use()) for _ in range(8)]
    await asyncio.sleep(0.2)
    for name in ("0008_price_decimals.sql", "0009_price_check.sql"):
        await products.db.execute((files("market.products.migrations") / name).read_text())
    migrated.set()
    assert min(await asyncio.gather(*users)) > 3
    assert await file() == before
    assert (await products.create(price="1.255", currency="KWD"))["price"] == "1.255"
    with pytest.raises(Exception, match="products_price_check"):
        await products.db.execute("UPDATE products SET price = 1.2555")
