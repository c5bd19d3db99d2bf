"""`python -m benchmarks.score_search URI FILE.csv ...`: how much of what they should find searches find.

URI: of an empty database of products, such as that of `market up --empty`, which is filled and emptied again. With
`--before` the search of the previous version is scored, whose column `search` is still there.

Scored are the golden list (tests/products/golden), and for the products of the files: each name, as it is and as a
telephone or a word processor would write it, has to find its product; and so has each article number.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg

from market.kit.ids import new_id
from market.products.search.pages import SETTINGS, SearchQuery, read_page
from tests.products.golden.golden_list import read_catalogue, read_expectations

# Columns with the name and the article number in the formats that are known.
_NAMES = ("Title", "Name", "title", "Product Title", "Description")
_NUMBERS = ("StockCode", "Variant SKU", "SKU", "Variant Sku")
_BEFORE = """
    SELECT id, count(*) OVER () AS total FROM products
    WHERE search @@ (websearch_to_tsquery('english', translate($1, '/', ' '))
        || websearch_to_tsquery('simple', translate($1, '/', ' ')))
    ORDER BY created_at DESC, id DESC LIMIT 100
"""
_VARIANTS: dict[str, Callable[[str], str]] = {
    "name": lambda name: name,
    "name in lower case": str.lower,
    "name with typographic quotes and dashes": lambda name: (
        name.replace("'", "\u2019").replace('"', "\u201d").replace(" - ", " \u2013 ").replace("-", "\u2010")
    ),
    "name with no-break spaces": lambda name: name.replace(" ", "\u00a0"),
    "name without punctuation": lambda name: "".join(c if c.isalnum() or c == "'" else " " for c in name),
}
# Returns the ids of the first 100 products, and whether they are suggestions.
Search = Callable[[str], Awaitable[tuple[list[Any], bool]]]


def read_products(file: Path) -> list[tuple[str, str]]:
    """Return the distinct names of the file, each with an article number or an empty text."""
    text = file.read_text("utf-8-sig")
    products: dict[str, str] = {}
    for row in csv.DictReader(text.splitlines(keepends=True), delimiter=";" if "semicolon" in file.name else ","):
        name = next((row[c].strip() for c in _NAMES if row.get(c)), "")
        if name:
            products.setdefault(name, next((row[c].strip() for c in _NUMBERS if row.get(c)), ""))
    return list(products.items())


async def _insert(conn: asyncpg.Connection[Any], products: list[tuple[str, str]]) -> list[Any]:
    ids = [new_id() for _ in products]
    await conn.executemany(
        "INSERT INTO products (id, name, description, price, currency) VALUES ($1, $2, $3, 1, 'GBP')",
        [(i, name, description) for i, (name, description) in zip(ids, products, strict=True)],
    )
    return ids


async def _score_golden_list(conn: asyncpg.Connection[Any], search: Search) -> None:
    catalogue = read_catalogue()
    keys = dict(zip(await _insert(conn, list(catalogue.values())), catalogue, strict=True))
    failed = []
    for expected in read_expectations():
        ids, suggested = await search(expected.search)
        if differences := expected.differences([keys[i] for i in ids], suggested=suggested):
            failed.append(f"{expected.search}: {'; '.join(differences)}")
    print(f"golden list: {len(read_expectations()) - len(failed)} of {len(read_expectations())}")
    print(*(f"    {line}" for line in failed), sep="\n")


async def _score_file(conn: asyncpg.Connection[Any], search: Search, file: Path) -> None:
    products = read_products(file)
    descriptions = [(name, f"Stock code {number}." if number else "") for name, number in products]
    ids = await _insert(conn, descriptions)
    print(f"{file.name}: {len(products)} products")
    for title, variant in _VARIANTS.items():
        await _score(search, title, [(i, variant(name)) for i, (name, _) in zip(ids, products, strict=True)])
    await _score(search, "article number", [(i, n) for i, (_, n) in zip(ids, products, strict=True) if n])


async def _score(search: Search, title: str, searches: list[tuple[Any, str]]) -> None:
    missing = []
    for product_id, text in searches:
        results, suggested = await search(text)
        if suggested or product_id not in results:
            missing.append(text)
    examples = f", not {', '.join(map(repr, missing[:5]))}" if missing else ""
    print(f"    {title}: {len(searches) - len(missing)} of {len(searches)}{examples}")


async def run(uri: str, files: list[Path], *, before: bool) -> None:
    conn = await asyncpg.connect(uri, server_settings={} if before else SETTINGS)
    if await conn.fetchval("SELECT EXISTS (SELECT FROM products)"):
        raise SystemExit("the database has products")

    async def search(text: str) -> tuple[list[Any], bool]:
        if before:
            return [row["id"] for row in await conn.fetch(_BEFORE, text)], False
        page = await read_page(conn, SearchQuery(text, 100, 0, None))
        return [product.id for product in page.products], page.suggested

    await _score_golden_list(conn, search)
    for file in files:
        await conn.execute("TRUNCATE products")
        await _score_file(conn, search, file)
    await conn.execute("TRUNCATE products")
    await conn.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("uri")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--before", action="store_true")
    arguments = parser.parse_args()
    asyncio.run(run(arguments.uri, arguments.files, before=arguments.before))
