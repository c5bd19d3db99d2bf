"""The list: pages, sorting, search, ids."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.products.domain import Product, position_type
from market.products.store import PageQuery, page_statement

from .conftest import RunningProducts

DAY = datetime(2026, 1, 1, tzinfo=UTC)

# In the order of `sort=name`.
NAMES = ["Apple", "apple", "Ärmel", "Zoo", "Лампа"]

# Few different values, so that most products are equal to another one in the sort key.
generated_rows = st.lists(
    st.tuples(
        st.uuids(),
        st.sampled_from(NAMES),
        st.sampled_from(["0", "1.5", "2"]),
        st.integers(0, 2),
    ),
    max_size=12,
    unique_by=lambda row: row[0],
)
KEYS = {
    "created_at": lambda r: (r[3], r[0].bytes),
    "price": lambda r: (Decimal(r[2]), r[0].bytes),
    "name": lambda r: (NAMES.index(r[1]), r[0].bytes),
}


async def fill(products: RunningProducts, rows: list[tuple[UUID, str, str, int]]) -> None:
    await products.db.execute("TRUNCATE products")
    await products.db.executemany(
        "INSERT INTO products (id, name, description, price, currency, created_at) VALUES ($1, $2, '', $3, 'GBP', $4)",
        [(product_id, name, Decimal(price), DAY + timedelta(days=day)) for product_id, name, price, day in rows],
    )


async def page(products: RunningProducts, **parameters: object) -> dict:
    response = await products.http.get("/api/product", params={"availability": "false", **parameters})
    assert response.status_code == 200, response.text
    return response.json()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    rows=generated_rows,
    limit=st.integers(1, 5),
    sort=st.sampled_from(["", *KEYS, *(f"-{k}" for k in KEYS)]),
    q=st.sampled_from([None, "apple"]),
)
async def test_the_pages_together_are_the_whole_list_in_order(products: RunningProducts, rows, limit, sort, q):
    await fill(products, rows)
    expected = [r for r in rows if q is None or r[1].lower() == q]
    name = sort or "-created_at"
    # By relevance these products are equal, so the newest id is first.
    key = (lambda r: r[0].bytes) if q and not sort else KEYS[name.removeprefix("-")]
    expected.sort(key=key, reverse=name.startswith("-"))
    parameters = {"limit": limit, **({"sort": sort} if sort else {}), **({"q": q} if q else {})}
    found = []
    walked, after = [], {}
    for offset in range(0, len(expected) + limit, limit):
        part = await page(products, offset=offset, **parameters)
        assert (part["total"], part["limit"], part["offset"]) == (len(expected), limit, offset)
        found += [item["id"] for item in part["items"]]
        assert len(part["items"]) == max(0, min(limit, len(expected) - offset))
        assert (part["next"] is None) == (offset + limit >= len(expected))
        if after is not None:
            part = await page(products, **after, **parameters)
            assert (part["total"], part["total_exact"], part["offset"]) == (len(expected), True, 0)
            walked += [item["id"] for item in part["items"]]
            after = None if part["next"] is None else {"after": part["next"]}
    assert found == walked == [str(r[0]) for r in expected]


async def test_the_total_is_exact_after_every_kind_of_change(products: RunningProducts):
    await fill(products, [(uuid4(), "A", "1", 0) for _ in range(30)])
    assert (await page(products))["total"] == 30
    created = await products.create()
    assert (await page(products))["total"] == 31
    await products.http.delete(f"/api/product/{created['id']}")
    await products.db.execute("DELETE FROM products WHERE id IN (SELECT id FROM products LIMIT 10)")
    assert (await page(products))["total"] == 20
    async with products.db.acquire() as conn:
        change = conn.transaction()
        await change.start()
        await conn.execute("DELETE FROM products")
        await change.rollback()
    assert (await page(products))["total"] == 20
    await products.db.execute("TRUNCATE products")
    assert await page(products) == {
        "items": [],
        "total": 0,
        "limit": 20,
        "offset": 0,
        "total_exact": True,
        "next": None,
        "suggested": False,
    }


async def test_products_are_returned_in_the_order_of_the_ids_without_unknown_ones(products: RunningProducts):
    created = [await products.create(name=f"N{n}", stock=n % 2) for n in range(5)]
    order = [
        created[3]["id"],
        str(uuid4()),
        created[0]["id"],
        created[4]["id"],
        created[3]["id"],
        created[1]["id"].upper(),
    ]
    response = await products.http.get("/api/product", params={"ids": ",".join(order), "limit": 1})
    assert response.json() == {
        "items": [created[3], created[0], created[4], created[1]],
        "total": 4,
        "limit": 5,
        "offset": 0,
        "total_exact": True,
        "next": None,
        "suggested": False,
    }


async def test_at_most_a_hundred_ids_are_accepted(products: RunningProducts):
    created = await products.create()
    many = [created["id"], *(str(uuid4()) for _ in range(99))]
    assert [p["id"] for p in (await page(products, ids=",".join(many)))["items"]] == [created["id"]]
    refused = await products.http.get("/api/product", params={"ids": ",".join([*many, str(uuid4())])})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "ids")


@pytest.mark.parametrize(
    ("q", "found"),
    [
        ("lantern", ["Metal Lanterns", "Lantern/white"]),
        ("LANTERNS", ["Metal Lanterns", "Lantern/white"]),
        ("white", ["Lantern/white"]),
        ("metal lantern", ["Metal Lanterns"]),
        ('"lantern metal"', []),
        ("lantern -white", ["Metal Lanterns"]),
        ("white or clock", ["Lantern/white", "Лампа"]),
        ("лампа", ["Лампа"]),
        ("the", ["Лампа", "Lantern/white"]),
        ("nothing-like-it", []),
        ("!!!", []),
        ("'", []),
        ("& | ! ( )", []),
        ("Lantern/white", ["Lantern/white"]),
        ("\\", []),
        ("%", []),
    ],
)
async def test_search_finds_words_in_name_and_description(products: RunningProducts, q, found):
    await products.db.execute("TRUNCATE products")
    for name, description in (
        ("Lantern/white", "for the night"),
        ("Metal Lanterns", "two pieces"),
        ("Лампа", "the clock"),
    ):
        await products.create(name=name, description=description)
    response = await page(products, q=q)
    names = [item["name"] for item in response["items"]]
    if response["suggested"]:
        assert found == []
    else:
        assert names == found
    assert response["total"] == len(names)


async def test_the_indexes_serve_every_sort(products: RunningProducts):
    await products.db.execute("TRUNCATE products")
    await products.db.execute(
        """
        INSERT INTO products (id, name, description, price, currency, created_at)
        SELECT gen_random_uuid(), 'thing ' || md5(n::text), 'words ' || n, n % 977, 'GBP', now() - n * interval '1 hour'
        FROM generate_series(1, 5000) n
        """
    )
    await products.db.execute("ANALYZE products")

    async def plans(query: PageQuery) -> str:
        """Return the generic and the custom plan: without and with regard to the arguments."""
        statement, arguments = page_statement(query)
        values = ", ".join(f"'{a}'" for a in arguments)
        found = []
        async with products.db.acquire() as conn:
            await conn.execute(f"PREPARE tried AS {statement}")
            for mode in ("force_generic_plan", "force_custom_plan"):
                await conn.execute(f"SET plan_cache_mode = {mode}")
                found += [
                    row[0] for row in await conn.fetch(f"EXPLAIN EXECUTE tried{f' ({values})' if values else ''}")
                ]
            await conn.execute("DEALLOCATE tried")
            await conn.execute("RESET plan_cache_mode")
        return "\n".join(found)

    for sort, index in (
        ("created_at", "products_created_at"),
        ("-price", "products_price"),
        ("name", "products_name_sort"),
    ):
        found = await plans(PageQuery(20, 0, sort))
        assert found.count(f"using {index} on products") == 2, found
        position = position_type(sort).of(Product(uuid4(), "Lamp", "", Decimal(1), "GBP", None, None, 1, DAY, DAY))
        found = await plans(PageQuery(20, 0, sort, position))
        # As a condition of the index: without one, it would be read from its beginning.
        assert re.findall(rf"using {index} on products .*\n +Index Cond: \(ROW\(", found)[1:], found
        assert "Seq Scan on products" not in found
    await products.db.execute("TRUNCATE products")


async def test_ids_may_be_separated_by_commas_or_repeated(products: RunningProducts):
    first, second, third = [(await products.create())["id"] for _ in range(3)]
    for query in (
        [("ids", f"{third},{first},{second}")],
        [("ids", third), ("ids", first), ("ids", second)],
        [("ids", f"{third},{first}"), ("ids", second), ("sort", "-created_at"), ("limit", "20"), ("offset", "0")],
    ):
        response = await products.http.get("/api/product", params=query)
        assert [item["id"] for item in response.json()["items"]] == [third, first, second], query


async def test_a_hundred_repeated_ids_are_accepted_and_no_more(products: RunningProducts):
    many = [("ids", str(uuid4())) for _ in range(100)]
    assert (await products.http.get("/api/product", params=many)).status_code == 200
    refused = await products.http.get("/api/product", params=[*many, ("ids", str(uuid4()))])
    assert refused.status_code == 422
    [error] = refused.json()["errors"]
    assert error["field"] == "ids"
    assert error["reason"].startswith("must be 1 to 100 UUIDs")
