"""Walks through the list by cursor, while others change it."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from uuid import UUID, uuid4

import pytest

from .conftest import RunningProducts

DAY = datetime(2026, 1, 1, tzinfo=UTC)
SORTS = ["created_at", "-created_at", "price", "-price", "name", "-name"]


async def insert(products: RunningProducts, rows: list[tuple[UUID, str, str, datetime]]) -> None:
    await products.db.executemany(
        "INSERT INTO products (id, name, description, price, currency, created_at) "
        "VALUES ($1, $2, 'for a walk', $3, 'GBP', $4)",
        [(product_id, name, Decimal(price), created_at) for product_id, name, price, created_at in rows],
    )


def random_row(chance: random.Random) -> tuple[UUID, str, str, datetime]:
    """Return a product whose name, price and time many others have too."""
    name = chance.choice(["apple", "Apple", "Äpfel", "banana", "Zebra", "Zebra 2"])
    return uuid4(), name, chance.choice(["1", "2.50", "99999999.99"]), DAY + timedelta(microseconds=chance.randrange(4))


async def get(products: RunningProducts, **parameters: object) -> dict:
    response = await products.http.get("/api/product", params={"availability": "false", **parameters})
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("q", [None, "walk"])
@pytest.mark.parametrize("sort", SORTS)
async def test_a_walk_returns_each_product_once_while_others_come_and_go(products: RunningProducts, sort, q):
    chance = random.Random(sort)
    await products.db.execute("TRUNCATE products")
    rows = [random_row(chance) for _ in range(60)]
    await insert(products, rows)
    doomed = [product_id for product_id, *_ in rows[::4]]
    staying = {str(product_id) for product_id, *_ in rows} - {str(product_id) for product_id in doomed}
    parameters = {"sort": sort, **({"q": q} if q else {})}
    found, after = [], {}
    while after is not None:
        page = await get(products, limit=chance.randrange(1, 8), **parameters, **after)
        found += [item["id"] for item in page["items"]]
        # A page ends at a product that is deleted, others are deleted anywhere, and new ones come anywhere.
        if found[-1] not in staying:
            await products.db.execute("DELETE FROM products WHERE id = $1", UUID(found[-1]))
        if doomed:
            await products.db.execute("DELETE FROM products WHERE id = $1", doomed.pop())
        await insert(products, [random_row(chance) for _ in range(2 if len(found) < 40 else 0)])
        after = None if page["next"] is None else {"after": page["next"]}
    assert len(found) == len(set(found))
    assert staying <= set(found)


ALPHABETICAL = [
    "“quoted”",
    '"quoted" twice',
    "10 candles",
    "Apple",
    "apple",
    "apple tart",
    "Äpfel",
    "banana",
    "emu",
    "Émile",
    "ﬁlm",
    "lotus",
    "Łódź",
    "ozone",
    "Ørsted",
    "Straße",
    "strasse",
    "strata",
    "Zebra",
    "ель",
    "Ёлка",
    "игла",
    "индиго",
    "йод",
    "кит",
    "якорь",
]


async def test_names_are_sorted_as_people_sort_them(products: RunningProducts):
    await products.db.execute("TRUNCATE products")
    names = ALPHABETICAL[:]
    random.Random(1).shuffle(names)
    await insert(products, [(uuid4(), name, "1", DAY) for name in names])
    assert [item["name"] for item in (await get(products, sort="name", limit=100))["items"]] == ALPHABETICAL
    assert [item["name"] for item in (await get(products, sort="-name", limit=100))["items"]] == ALPHABETICAL[::-1]


async def test_a_name_of_any_characters_has_its_place(products: RunningProducts):
    # The last character alone becomes 18 letters.
    for character in ("ä", "й", "😀", "ﷺ"):
        created = await products.create(name=200 * character)
        after = (await get(products, sort="name", limit=1))["next"]
        assert created["id"] in [item["id"] for item in (await get(products, sort="-name", limit=100))["items"]]
        assert after is None or len(after) < 2000


async def test_new_products_do_not_shift_the_pages_of_a_walk(products: RunningProducts):
    await products.db.execute("TRUNCATE products")
    created = [(await products.create())["id"] for _ in range(6)]
    first = await get(products, limit=3)
    for _ in range(3):
        await products.create()
    second = await get(products, limit=3, after=first["next"])
    assert [item["id"] for item in first["items"] + second["items"]] == created[::-1]
    assert (second["next"], second["total"], second["total_exact"]) == (None, 9, True)


async def test_a_cursor_with_another_sort_or_search_is_rejected(products: RunningProducts):
    await products.db.execute("TRUNCATE products")
    await insert(products, [random_row(random.Random(n)) for n in range(4)])
    after = (await get(products, limit=2, sort="price"))["next"]
    assert len((await get(products, limit=100, sort="price", after=after))["items"]) == 2
    for other in ({}, {"sort": "-price"}, {"sort": "name"}, {"sort": "price", "q": "walk"}):
        refused = await products.http.get("/api/product", params={"after": after, **other})
        assert refused.status_code == 422
        [error] = refused.json()["errors"]
        assert error == {
            "field": "after",
            "reason": "belongs to a list with another filter or sort order; only `limit` may change between pages",
        }


@pytest.mark.parametrize(
    ("parameters", "field", "reason"),
    [
        (
            {"offset": 10_001},
            "offset",
            "must be a whole number from 0 to 10000; to skip more, use the parameter `after`",
        ),
        ({"after": "next"}, "after", "is not a cursor: it must be the `next` of a page, unchanged"),
        ({"after": ""}, "after", "must have 1 to 2000 characters, got 0"),
        ({"after": "x" * 2001}, "after", "must have 1 to 2000 characters, got 2001"),
        ({"after": "x", "offset": 1}, "offset", "cannot be combined with `after`"),
    ],
)
async def test_a_page_that_cannot_be_found_is_rejected_in_words(products: RunningProducts, parameters, field, reason):
    refused = await products.http.get("/api/product", params=parameters)
    assert refused.status_code == 422
    assert refused.json()["errors"] == [{"field": field, "reason": reason}]


async def test_offsets_up_to_ten_thousand_still_work(products: RunningProducts):
    await products.db.execute("TRUNCATE products")
    await insert(products, [random_row(random.Random(n)) for n in range(3)])
    assert (await get(products, offset=10_000))["items"] == []
    assert len((await get(products, offset=1))["items"]) == 2


async def test_a_search_counts_ten_thousand_products_and_the_list_counts_all(products: RunningProducts):
    await products.db.execute("TRUNCATE products")
    await products.db.execute(
        "INSERT INTO products (id, name, description, price, currency) "
        "SELECT gen_random_uuid(), 'step ' || n, '', 1, 'GBP' FROM generate_series(1, 10001) n"
    )
    page = await get(products, q="step", limit=1)
    assert (page["total"], page["total_exact"], page["next"] is None) == (10_000, False, False)
    page = await get(products, limit=1)
    assert (page["total"], page["total_exact"]) == (10_001, True)
    await products.db.execute("DELETE FROM products WHERE name = 'step 1'")
    page = await get(products, q="step", limit=1)
    assert (page["total"], page["total_exact"]) == (10_000, True)
    await products.db.execute("TRUNCATE products")
