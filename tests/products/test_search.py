"""The search beyond what it finds (test_golden_list.py): order, pages, totals, suggestions, odd texts."""

from __future__ import annotations

from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from market_dev.commands.import_ import create_or_find
from market_dev.shop_client import ShopClient
from rich.progress import Progress

from market.kit import migrations
from market.products import app
from market.products.search.language import parse
from market.products.search.matching import compile_search
from market.products.search.pages import SearchQuery, read_page_by_sort
from market.products.search.ranking import read_first_positions, read_positions
from market.products.search.ranks import ranks_of
from market.products.search.sampling import Sample, is_common, take_sample
from market.storefront.importing.online_retail import Article
from tests.support.databases import own_database, superuser
from tests.support.servers import PostgresHandle

from .conftest import RunningProducts
from .golden.golden_list import read_catalogue

# More than are counted, and more than are sorted.
MANY = 15_100


async def get(products: RunningProducts, **parameters: object) -> dict[str, Any]:
    response = await products.http.get("/api/product", params={"availability": "false", **parameters})
    assert response.status_code == 200, response.text
    return dict(response.json())


async def fill(products: RunningProducts, names: list[tuple[str, str]]) -> list[str]:
    """Replace all products by these, each with name and description, and return their ids in this order."""
    await products.db.execute("TRUNCATE products")
    ids = [uuid4() for _ in names]
    await products.db.execute(
        "INSERT INTO products (id, name, description, price, currency) "
        "SELECT u.id, name, description, n, 'GBP' FROM unnest($1::uuid[], $2::text[], $3::text[]) "
        "WITH ORDINALITY AS u (id, name, description, n)",
        ids,
        [name for name, _ in names],
        [description for _, description in names],
    )
    return [str(product_id) for product_id in ids]


async def walk(products: RunningProducts, **parameters: object) -> list[str]:
    """Return the ids on all pages, by cursor."""
    found: list[str] = []
    after: dict[str, str] | None = {}
    while after is not None:
        page = await get(products, **parameters, **after)
        found += [item["id"] for item in page["items"]]
        after = None if page["next"] is None else {"after": page["next"]}
    return found


async def test_relevance_is_the_order_by_cursor_and_by_offset(products: RunningProducts):
    names = [
        ("Teapots", "A lamp."),
        ("Red teapot with a lid", ""),
        ("Lid", "For a teapot."),
        ("Teapot", ""),
        ("Teapotter", ""),
        ("Red teapotter", ""),
        ("Cup", "For a teapotter."),
        ("Kettle", ""),
    ]
    ids = await fill(products, names)
    # In the name, as the beginning of a word of it, in the description, as the beginning of a word there; of these the
    # name with fewer words, and then the higher id.
    whole_names = sorted([ids[0], ids[3]], key=lambda i: UUID(i).bytes, reverse=True)
    expected = [*whole_names, ids[1], ids[4], ids[5], ids[2], ids[6]]
    by_offset = [(await get(products, q="teapot", limit=1, offset=n))["items"][0]["id"] for n in range(len(expected))]
    assert by_offset == expected
    assert await walk(products, q="teapot", limit=2) == expected
    assert (await get(products, q="teapot", limit=100))["next"] is None
    assert await walk(products, q="teapot", limit=2, sort="price") == [
        product_id for product_id in ids if product_id in expected
    ]


async def test_a_common_search_has_a_bound_for_its_total_and_the_same_order(products: RunningProducts):
    # The words are in 30 names, and in so many descriptions that they are neither counted nor sorted.
    names = [(f"Red lamp{' large' * (n % 3)}" if n % 400 == 0 else f"Thing {n}", "a red lamp") for n in range(MANY)]
    ids = await fill(products, names)
    size = {product_id: len(name.split()) for product_id, (name, _) in zip(ids, names, strict=True)}
    in_name = {product_id for product_id, (name, _) in zip(ids, names, strict=True) if name.startswith("Red")}
    expected = sorted(ids, key=lambda i: (i not in in_name, size[i], -UUID(i).int))
    page = await get(products, q="red lamp", limit=20)
    assert (page["total"], page["total_exact"], page["suggested"]) == (10_000, False, False)
    found, after = [], {}
    for _ in range(4):
        page = await get(products, q="red lamp", limit=20, **after)
        found += [item["id"] for item in page["items"]]
        after = {"after": page["next"]}
    assert found == expected[:80]
    for offset in (60, 9_990):
        page = await get(products, q="red lamp", limit=20, offset=offset)
        assert [item["id"] for item in page["items"]] == expected[offset : offset + 20]
        assert (page["total"], page["total_exact"]) == (10_000, False)
    for sort, ordered in (("price", ids), ("-price", ids[::-1])):
        page = await get(products, q="red lamp -large", limit=50, sort=sort)
        in_order = [i for i in ordered if "large" not in names[ids.index(i)][0]][:50]
        assert [item["id"] for item in page["items"]] == in_order
    # By chance none of them may be in the sample.
    async with products.db.acquire() as conn:
        matches = await compile_search(conn, parse("red lamp"))
        ranked = await read_positions(conn, matches, Sample(MANY, 0), None, 20)
    assert ([str(position.id) for position in ranked.positions], ranked.total) == (expected[:20], 10_001)
    # Exactly as many as are counted.
    await products.db.execute(
        "DELETE FROM products WHERE id IN (SELECT id FROM products ORDER BY price LIMIT $1)", MANY - 10_000
    )
    page = await get(products, q="red lamp")
    assert (page["total"], page["total_exact"]) == (10_000, True)
    # Nothing but an exclusion.
    page = await get(products, q="-large")
    assert page["total_exact"] is True
    assert page["total"] == sum("large" not in name for name, _ in names[MANY - 10_000 :])
    await products.db.execute("TRUNCATE products")


async def test_the_order_is_the_same_if_a_sample_shows_that_a_search_is_common(products: RunningProducts):
    names = [("Red lamp" + " large" * (n % 3), "") if n % 4 else ("Lamp", "red") for n in range(200)]
    await fill(products, [*names, *(("Chair", "") for _ in range(1800))])
    async with products.db.acquire() as conn:
        matches = await compile_search(conn, parse("red lam"))
        sample = await take_sample(conn, matches, min_products=2000, few=50)
        # Of 2,000 products a quarter is sampled.
        assert sample.products == 2000
        assert sample.found is not None
        assert 100 <= sample.found <= 300
        assert sample.ranks[0] == 0 < sample.ranks[1]
        assert (await take_sample(conn, matches, min_products=2001)).found is None
        rare = await take_sample(conn, matches, min_products=2000, few=1000)
        assert rare.found is not None
        assert 0 < rare.found < 1000
        assert rare.ranks == {}
        unknown = await compile_search(conn, parse("table"))
        assert await take_sample(conn, unknown, min_products=2000) == Sample(2000, 0)
        assert not await is_common(conn, sample, matches, 40)
        # An estimate that may be wrong is checked.
        for doubtful in (15_000, 25_000):
            assert not await is_common(conn, Sample(2000, doubtful, sample.ranks), matches, 40)
        few, after = await read_positions(conn, matches, sample, None, 200), None
        assert (len(few.positions), few.total) == (200, 200)
        # By the order of the list, and by the index of words.
        for in_rank in (40_000, 0):
            common = Sample(2000, 40_000, dict.fromkeys(sample.ranks, in_rank))
            assert await is_common(conn, common, matches, 40)
            for first in range(0, 200, 40):
                page = await read_positions(conn, matches, common, after, 40)
                assert page == (few.positions[first : first + 40], 10_001)
                after = page.positions[-1]
            assert await read_positions(conn, matches, common, after, 40) == ([], 10_001)
            after = None


async def test_few_similar_products_are_sorted_and_not_looked_for_in_the_list(products: RunningProducts):
    names = [("Thing", "") if n < 1800 else ("A red lamp", "") for n in range(2000)]
    lamps = (await fill(products, names))[1800:]
    statements: list[str] = []
    async with products.db.acquire() as conn:
        matches = await compile_search(conn, parse("red lamp"))
        sample = await take_sample(conn, matches, min_products=2000, few=1000)
        assert sample.found is not None
        assert sample.found > sample.max_sorted(3)
        with conn.query_logger(lambda record: statements.append(record.query)):
            positions = await read_first_positions(conn, matches, sample, 3)
    assert [str(position.id) for position in positions] == sorted(lamps, reverse=True)[:3]
    assert len(statements) == 1


async def test_what_is_only_at_the_end_of_the_list_is_found_by_the_index(products: RunningProducts):
    # The last 60 have the longest names and the highest prices.
    names = [("Thing", "") if n < MANY - 60 else ("A lamp for the whole house", "") for n in range(MANY)]
    lamps = (await fill(products, names))[-60:]
    async with products.db.acquire() as conn:
        matches = await compile_search(conn, parse("lamp"))
        # An estimate that is too high, so that the list is read in its order, up to 10,000 products and some more.
        sample = Sample(MANY, 40_000, {0: 40_000, 2: 40_000})
        assert sample.max_read(21, 40_000) < MANY - 60
        found = await read_positions(conn, matches, sample, None, 20)
        assert [str(p.id) for p in found.positions] == sorted(lamps, key=lambda i: -UUID(i).int)[:20]
        after = None
        for first in (0, 20, 40):
            query = SearchQuery("lamp", 20, 0, "price", after)
            page = await read_page_by_sort(conn, query, "price", matches, sample)
            assert [str(product.id) for product in page.products] == lamps[first : first + 20]
            after = page.end
        assert after is None
    await products.db.execute("TRUNCATE products")


async def test_a_rank_has_the_products_that_no_better_rank_has(products: RunningProducts):
    names = [
        ("Red lamp", "red lamps"),
        ("Red lampshade", ""),
        ("Red lampshade", "a lamp"),
        ("Lamp", "red"),
        ("Red", "lampshade"),
        ("Red lamp", "old"),
        ("Lamp", ""),
    ]
    ids = await fill(products, names)
    async with products.db.acquire() as conn:
        matches = await compile_search(conn, parse("-old red lamp"))
        found = {}
        for rank in ranks_of(matches):
            for by_index in (True, False):
                arguments: list[object] = []
                sql = f"SELECT id FROM product_search WHERE {rank.condition(arguments, by_index=by_index)}"
                found[rank.number, by_index] = {ids.index(str(row[0])) for row in await conn.fetch(sql, *arguments)}
    expected = {0: {0}, 1: {1, 2}, 2: {3}, 3: {4}}
    assert found == {(number, by_index): rows for number, rows in expected.items() for by_index in (True, False)}


async def test_a_cursor_belongs_to_its_search(products: RunningProducts):
    await fill(products, [("Red lamp", ""), ("Blue lamp", "")])
    after = (await get(products, q="lamp", limit=1))["next"]
    for other in ({"q": "red lamp"}, {"q": "lamp", "sort": "price"}, {}):
        response = await products.http.get("/api/product", params={**other, "after": after})
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == "after"


async def test_suggestions_have_pages_but_no_cursor_and_keep_what_is_excluded(products: RunningProducts):
    await fill(products, [(f"Teapot {colour}", "") for colour in ("red", "blue", "green")])
    page = await get(products, q="teapto", limit=2)
    assert (page["suggested"], page["total"], page["total_exact"], page["next"]) == (True, 3, True, None)
    assert len(page["items"]) == 2
    assert len((await get(products, q="teapto", limit=2, offset=2))["items"]) == 1
    page = await get(products, q="teapto -red", sort="price")
    assert sorted(item["name"] for item in page["items"]) == ["Teapot blue", "Teapot green"]
    page = await get(products, q="teapot")
    assert (page["suggested"], page["total"]) == (False, 3)


async def test_products_whose_name_has_no_word_are_found_by_it_in_pages(products: RunningProducts):
    ids = await fill(products, [("?!", ""), ("?", "what"), ("?!", "")])
    page = await get(products, q=" ?! ", limit=1)
    assert (page["total"], page["total_exact"], page["suggested"], page["next"]) == (2, True, False, None)
    second = await get(products, q="?!", limit=1, offset=1)
    assert {item["id"] for item in [*page["items"], *second["items"]]} == {ids[0], ids[2]}


async def test_a_changed_or_deleted_product_is_found_as_it_is(products: RunningProducts):
    await products.db.execute("TRUNCATE products")
    created = await products.create(name="Brass lantern")
    body = {**created, "name": "Copper lantern"}
    assert (await products.http.put("/api/product", json=body)).status_code == 200
    assert [(await get(products, q=q))["total"] for q in ("copper", "light")] == [1, 1]
    page = await get(products, q="brass")
    assert (page["items"], page["total"], page["suggested"]) == ([], 0, False)
    await products.http.delete(f"/api/product/{created['id']}")
    assert (await get(products, q="copper"))["total"] == 0


async def test_more_words_than_a_hundred_are_refused(products: RunningProducts):
    # One character, four words.
    response = await products.http.get("/api/product", params={"q": "\ufdfa " * 26})
    assert response.status_code == 422
    assert response.json()["errors"] == [{"field": "q", "reason": "must have at most 100 words, got 104"}]
    assert (await get(products, q=" ".join(["a"] * 100)))["suggested"] is False


pieces = st.one_of(
    st.sampled_from(
        ['"', "-", " ", "OR", "or ", "(", ")", "&", "|", "!", ":*", "<->", "'", "\\", "%", "«", "”", "\ufdfa"]
    ),
    st.sampled_from(["teapot", "the", "2024", "kl-2024", "ё", "é", "e\u0301", "ﬁ", "\u0300", "\u200d", "漢字", "😀"]),
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\u2028\u2029"),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(q=st.lists(pieces, min_size=1, max_size=40).map("".join).filter(lambda q: 1 <= len(q) <= 200))
@example(q='"' * 200)
@example(q="-" * 200)
@example(q="OR " * 66)
@example(q="a-" * 100)
@example(q="\ufdfa" * 200)
@example(q="é" * 200)
@example(q="\U0001d15e" * 200)
@example(q="a" * 200)
@example(q="\\'" * 100)
async def test_no_text_is_an_internal_error(products: RunningProducts, q: str):
    response = await products.http.get("/api/product", params={"q": q, "availability": "false"})
    assert response.status_code in (200, 422), (q, response.text)


@given(name=st.lists(pieces, min_size=1, max_size=20).map("".join).filter(lambda n: 1 <= len(n) <= 200))
@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
async def test_any_name_finds_its_product(products: RunningProducts, name: str):
    body = {"name": name, "description": "", "price": "1", "currency": "GBP"}
    created = await products.http.post("/api/product", json=body)
    if created.status_code == 422:
        return
    try:
        response = await products.http.get("/api/product", params={"q": name, "limit": 100, "availability": "false"})
        if response.status_code == 422:
            assert "at most 100 words" in response.text
            return
        assert response.json()["suggested"] is False
        assert created.json()["id"] in [item["id"] for item in response.json()["items"]], ascii(name)
    finally:
        await products.http.delete(f"/api/product/{created.json()['id']}")


async def test_the_words_of_products_from_before_the_migration_are_filled_in(products: RunningProducts):
    ids = await fill(products, [(f"Lamp {n}", "of brass") for n in range(600)])
    # As the migration finds them; meanwhile the version before changes one and deletes another.
    await products.db.execute("TRUNCATE product_search")
    await products.db.execute("UPDATE search_filling SET filled_to = '00000000-0000-0000-0000-000000000000'")
    await products.db.execute("DELETE FROM schema_migrations WHERE name LIKE '0004%'")
    await products.db.execute("UPDATE products SET name = 'Lantern' WHERE id = $1", UUID(ids[0]))
    await products.db.execute("DELETE FROM products WHERE id = $1", UUID(ids[1]))
    assert await migrations.migrate(products.config.postgres, app.MIGRATIONS) == ["0004_search_words.sql"]
    assert [(await get(products, q=q))["total"] for q in ("brass", "lamp", "lantern")] == [599, 598, 1]
    assert await products.db.fetchval("SELECT count(*) FROM product_search") == 599


@pytest.mark.parametrize("locale", ["LC_CTYPE 'C.UTF-8'", "LC_CTYPE 'C' LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C'"])
async def test_words_are_the_same_in_every_locale(products: RunningProducts, postgres: PostgresHandle, locale: str):
    texts = [text for product in read_catalogue().values() for text in product]
    sql = """
        SELECT words, vector::text, whole, part, search_trigrams(left(source, 30))
        FROM unnest($1::text[]) AS source, search_parse(source, 0), search_term(source, false)
    """
    async with own_database(postgres, options=f"TEMPLATE template0 LC_COLLATE 'C' {locale}") as config:
        await migrations.migrate(config, app.MIGRATIONS)
        async with superuser(postgres, config.database) as conn:
            other = await conn.fetch(sql, texts)
    assert [tuple(row) for row in other] == [tuple(row) for row in await products.db.fetch(sql, texts)]


async def test_a_price_is_not_part_of_what_is_searched(products: RunningProducts):
    await fill(products, [("Lamp", "")])
    assert await products.db.fetchval("SELECT price FROM products") == Decimal(1)
    assert (await get(products, q="1"))["total"] == 0


@pytest.mark.parametrize("code", ["Daisy - teapot", "-A", "A -B", 'A "B" C', "KL-2024", "Чайник №5", "it's OR not"])
async def test_a_second_import_finds_the_products_of_the_first(products: RunningProducts, code: str):
    await products.db.execute("TRUNCATE products")
    article = Article(code=code, name="Teapot", price=Decimal("2.50"), sold=3)
    with Progress(disable=True) as bars:
        async with ShopClient(str(products.http.base_url), "http://none") as shop:
            first = await create_or_find(shop, [article], bars, "first")
            # With another stock it is another request for the same key, so the product is searched for.
            second = await create_or_find(shop, [article], bars, "second", stock=4)
    assert (first.created, second.differing, second.failed) == (1, 1, {})
    assert second.ids == first.ids


@pytest.mark.parametrize("q", ["lamp\x00", "lamp\n", "", "a" * 201])
async def test_controls_and_texts_that_are_empty_or_too_long_are_refused(products: RunningProducts, q: str):
    response = await products.http.get("/api/product", params={"q": q})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "q"
