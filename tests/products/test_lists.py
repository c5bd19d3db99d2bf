"""Pages, sorting, search, ids."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.products import store

from .conftest import Running

DAY = datetime(2026, 1, 1, tzinfo=UTC)

# Few different values, so that most products tie with another.
rows = st.lists(
    st.tuples(
        st.uuids(),
        st.sampled_from(["Apple", "apple", "Ärmel", "Лампа", "Zoo"]),
        st.sampled_from(["0", "1.5", "2"]),
        st.integers(0, 2),
    ),
    max_size=12,
    unique_by=lambda row: row[0],
)
KEYS = {
    "created_at": lambda r: (r[3], r[0].bytes),
    "price": lambda r: (Decimal(r[2]), r[0].bytes),
    "name": lambda r: (r[1], r[0].bytes),
}


async def fill(shop: Running, products: list[tuple[UUID, str, str, int]]) -> None:
    await shop.db.execute("TRUNCATE products")
    await shop.db.executemany(
        "INSERT INTO products (id, name, description, price, currency, created_at) VALUES ($1, $2, '', $3, 'GBP', $4)",
        [(id, name, Decimal(price), DAY + timedelta(days=day)) for id, name, price, day in products],
    )


async def page(shop: Running, **parameters: object) -> dict:
    answer = await shop.http.get("/api/product", params={"availability": "false", **parameters})
    assert answer.status_code == 200, answer.text
    return answer.json()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    products=rows,
    limit=st.integers(1, 5),
    sort=st.sampled_from(["", *KEYS, *(f"-{k}" for k in KEYS)]),
    q=st.sampled_from([None, "apple"]),
)
async def test_the_pages_together_are_the_whole_list_in_order(shop: Running, products, limit, sort, q):
    await fill(shop, products)
    expected = [r for r in products if q is None or r[1].lower() == q]
    name = sort or "-created_at"
    expected.sort(key=KEYS[name.removeprefix("-")], reverse=name.startswith("-"))
    given = {"limit": limit, **({"sort": sort} if sort else {}), **({"q": q} if q else {})}
    found = []
    for offset in range(0, len(expected) + limit, limit):
        part = await page(shop, offset=offset, **given)
        assert (part["total"], part["limit"], part["offset"]) == (len(expected), limit, offset)
        found += [item["id"] for item in part["items"]]
        assert len(part["items"]) == max(0, min(limit, len(expected) - offset))
    assert found == [str(r[0]) for r in expected]


async def test_the_total_is_exact_after_every_kind_of_change(shop: Running):
    await fill(shop, [(uuid4(), "A", "1", 0) for _ in range(30)])
    assert (await page(shop))["total"] == 30
    made = await shop.create()
    assert (await page(shop))["total"] == 31
    await shop.http.delete(f"/api/product/{made['id']}")
    await shop.db.execute("DELETE FROM products WHERE id IN (SELECT id FROM products LIMIT 10)")
    assert (await page(shop))["total"] == 20
    async with shop.db.acquire() as conn:
        change = conn.transaction()
        await change.start()
        await conn.execute("DELETE FROM products")
        await change.rollback()
    assert (await page(shop))["total"] == 20
    await shop.db.execute("TRUNCATE products")
    assert await page(shop) == {"items": [], "total": 0, "limit": 20, "offset": 0}


async def test_ids_are_answered_in_the_order_asked_for_without_the_unknown(shop: Running):
    made = [await shop.create(name=f"N{n}", stock=n % 2) for n in range(5)]
    order = [made[3]["id"], str(uuid4()), made[0]["id"], made[4]["id"], made[3]["id"], made[1]["id"].upper()]
    answer = await shop.http.get("/api/product", params={"ids": ",".join(order), "limit": 1})
    assert answer.json() == {"items": [made[3], made[0], made[4], made[1]], "total": 4, "limit": 5, "offset": 0}


async def test_a_hundred_ids_are_taken_and_not_one_more(shop: Running):
    made = await shop.create()
    many = [made["id"], *(str(uuid4()) for _ in range(99))]
    assert [p["id"] for p in (await page(shop, ids=",".join(many)))["items"]] == [made["id"]]
    refused = await shop.http.get("/api/product", params={"ids": ",".join([*many, str(uuid4())])})
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
        ("white or clock", ["Лампа", "Lantern/white"]),
        ("лампа", ["Лампа"]),
        ("the", ["Лампа"]),
        ("nothing-like-it", []),
        ("!!!", []),
        ("'", []),
        ("& | ! ( )", []),
        ("Lantern/white", ["Lantern/white"]),
        ("\\", []),
        ("%", []),
    ],
)
async def test_words_are_found_in_name_and_description(shop: Running, q, found):
    await shop.db.execute("TRUNCATE products")
    for name, description in (
        ("Lantern/white", "for the night"),
        ("Metal Lanterns", "two pieces"),
        ("Лампа", "the clock"),
    ):
        await shop.create(name=name, description=description)
    answer = await page(shop, q=q)
    # Words such as "the" are found where they are meant alone.
    names = [item["name"] for item in answer["items"]]
    if q == "the":
        assert names == ["Лампа", "Lantern/white"]
    else:
        assert names == found
    assert answer["total"] == len(names)


async def test_the_indexes_serve_search_and_every_sort(shop: Running):
    await shop.db.execute("TRUNCATE products")
    await shop.db.execute(
        """
        INSERT INTO products (id, name, description, price, currency, created_at)
        SELECT gen_random_uuid(), 'thing ' || md5(n::text), 'words ' || n, n % 977, 'GBP', now() - n * interval '1 hour'
        FROM generate_series(1, 5000) n
        """
    )
    await shop.db.execute("ANALYZE products")

    async def plans(part: store.Page) -> str:
        """As the server plans it when it does not look at the arguments, and when it does."""
        statement, arguments = store.page_statement(part)
        given = ", ".join(f"'{a}'" for a in arguments)
        found = []
        async with shop.db.acquire() as conn:
            await conn.execute(f"PREPARE tried AS {statement}")
            for mode in ("force_generic_plan", "force_custom_plan"):
                await conn.execute(f"SET plan_cache_mode = {mode}")
                found += [row[0] for row in await conn.fetch(f"EXPLAIN EXECUTE tried{f' ({given})' if given else ''}")]
            await conn.execute("DEALLOCATE tried")
            await conn.execute("RESET plan_cache_mode")
        return "\n".join(found)

    search = await plans(store.Page(20, 0, "-created_at", "words 4711"))
    assert search.count("Bitmap Index Scan on products_search") == 2
    assert "Seq Scan on products" not in search
    for sort, index in (("created_at", "products_created_at"), ("-price", "products_price"), ("name", "products_name")):
        found = await plans(store.Page(20, 0, sort, None))
        assert found.count(f"using {index} on products") == 2, found
        assert "Seq Scan on products" not in found
    await shop.db.execute("TRUNCATE products")
