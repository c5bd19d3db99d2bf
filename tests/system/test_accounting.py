"""Real invoices go through all services but the storefront, and the stores agree.

Initial stock = sold + left, and there is one mail per order.
"""

from __future__ import annotations

import asyncio
import csv
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from market_dev.commands import retail
from pymongo import AsyncMongoClient

from market.contracts import events
from market.storefront.importing import online_retail
from tests.support.waiting import until
from tests.system.whole_shop import ROOT, Mails, System

EXCERPT = ROOT.parent / "shared" / "data" / "online-retail-10k.csv"


def part_of_the_excerpt(prefix: str, invoices: int) -> list[dict[str, str]]:
    """Return the lines of the first invoices and of a very long one, with the prefix in stock codes and numbers."""
    with EXCERPT.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chosen = {*list(dict.fromkeys(row["InvoiceNo"] for row in rows))[:invoices], "536544"}
    return [
        row
        | {
            "InvoiceNo": row["InvoiceNo"][:1] + prefix + row["InvoiceNo"][1:],
            "StockCode": _code(prefix, row["StockCode"]),
        }
        for row in rows
        if row["InvoiceNo"] in chosen
    ]


def _code(prefix: str, code: str) -> str:
    return code if code in online_retail.CHARGES else prefix + code


def generated(prefix: str, invoices: int) -> list[dict[str, str]]:
    """Return lines with the oddities of the real file, for machines that do not have it."""
    dice = random.Random(prefix)
    codes = [f"{prefix}{n}{dice.choice(['', 'A', 'b'])}" for n in range(20_000, 20_600)]
    prices = {code: f"{dice.randint(19, 1995) / 100:.2f}" for code in codes}
    rows = []
    for n in range(invoices + 1):
        number, customer = f"5{prefix}{36365 + n}", dice.choice(["", str(dice.randint(12_346, 18_287))])
        for code in dice.sample(codes, 520 if n == 0 else dice.randint(1, 40)):
            odd = dice.random()
            row = {
                "InvoiceNo": number,
                "StockCode": dice.choice([code, code.lower()]),
                "Description": f"GOOD NO {code}",
                "Quantity": str(dice.choice([1, 2, 6, 12])),
                "InvoiceDate": "2010-12-01T08:26:00",
                "UnitPrice": prices[code],
                "CustomerID": customer,
                "Country": "United Kingdom",
            }
            rows.append(row)
            if odd < 0.02:
                rows.append(row | {"StockCode": "POST", "Description": "POSTAGE"})
            elif odd < 0.04:
                rows.append(row | {"InvoiceNo": f"C{number}", "Quantity": "-1"})
            elif odd < 0.06:
                rows.append(row | {"Description": "", "UnitPrice": "0"})
    return rows


def write(path: Path, rows: list[dict[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, online_retail.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def number_in(table: str, name: str) -> int:
    found = re.search(rf"│ +{re.escape(name)} +│ +([0-9,]+)", table)
    return int(found[1].replace(",", "")) if found else 0


async def stored(
    shop: System,
) -> tuple[dict[str, int], dict[str, dict[str, int]], list[dict[str, Any]], dict[str, str]]:
    """Return what the stores contain.

    (units left by product id, lines by reservation id, all orders, product ids by idempotency key)
    """
    inventory = await asyncpg.connect(shop.urls["postgres_inventory"])
    products = await asyncpg.connect(shop.urls["postgres_products"])
    mongodb: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(shop.urls["mongodb"], uuidRepresentation="standard")
    try:
        left = dict(await inventory.fetch("SELECT product_id::text, quantity FROM inventory"))
        held = {
            r["id"]: dict(zip(r["product_ids"], r["quantities"], strict=True))
            for r in await inventory.fetch(
                "SELECT id::text, product_ids::text[], quantities FROM reservations WHERE status = 'reserved'"
            )
        }
        keys = dict(
            await products.fetch("SELECT idempotency_key, id::text FROM products WHERE idempotency_key LIKE 'import:%'")
        )
        orders = await mongodb["orders"]["orders"].find().to_list()
    finally:
        await inventory.close()
        await products.close()
        await mongodb.close()
    return left, held, orders, keys


@pytest.mark.parametrize(
    ("prefix", "stock"),
    [pytest.param("1", None, id="stock-is-what-the-file-sells"), pytest.param("2", 30, id="stock-runs-out")],
)
async def test_the_initial_stock_is_sold_or_left_and_each_order_has_one_mail(
    shop: System, http: httpx.AsyncClient, mails: Mails, tmp_path: Path, prefix: str, stock: int | None
) -> None:
    path = write(tmp_path / "part.csv", (part_of_the_excerpt if EXCERPT.exists() else generated)(prefix, 40))
    survey = online_retail.survey(path)
    invoices = {i.number: i for i in retail.invoices(path, survey)}
    assert max(len(i.units) for i in invoices.values()) > 450

    before = await mails.count()
    options = [] if stock is None else ["--stock", stock]
    # A retried request finds the product that its first attempt has created; nobody else uses its key.
    imported = await asyncio.to_thread(shop.market, "import", path, *options)
    assert number_in(imported.stdout, "products created") + number_in(imported.stdout, "existing products") == len(
        survey.articles
    )
    replayed = (await asyncio.to_thread(shop.market, "replay", path)).stdout
    placed = number_in(replayed, "placed") + number_in(replayed, "placed by an earlier run")
    rejected = number_in(replayed, "rejected")
    assert placed + rejected == len(invoices)
    assert number_in(replayed, "lines skipped") == survey.skipped.total()
    # A second run places nothing twice, and what was out of stock still is.
    again = (await asyncio.to_thread(shop.market, "replay", path)).stdout
    assert (number_in(again, "placed"), number_in(again, "placed by an earlier run"), number_in(again, "rejected")) == (
        0,
        placed,
        rejected,
    )
    if stock is None:
        assert rejected == 0
    else:
        assert rejected == number_in(replayed, "out of stock") > 0

    left, held, orders, keys = await stored(shop)
    ids = {article.code: keys[f"import:{article.code}"] for article in survey.articles}
    mine = [o for o in orders if {i["product_id"] for i in o["items"]} & set(ids.values())]
    confirmed = {o["key"]: o for o in mine if o["status"] == "confirmed"}
    assert len(confirmed) == placed
    assert {o["status"] for o in mine} <= {"confirmed", "rejected"}
    sold: Counter[str] = Counter()
    for number, order in confirmed.items():
        lines = {i["product_id"]: i["quantity"] for i in order["items"]}
        # The order has the lines of the invoice, and so has its reservation.
        assert lines == {ids[code]: units for code, units in invoices[number].units.items()}
        assert held[str(order["_id"])] == lines
        assert order["user"] == invoices[number].user
        sold.update(lines)
    assert not [o for o in mine if o["status"] == "rejected" and str(o["_id"]) in held]
    for article in survey.articles:
        at_start = article.sold if stock is None else stock
        assert at_start == sold[ids[article.code]] + left[ids[article.code]], article

    wanted = {str(events.event_id(order["_id"], events.CREATED)) for order in confirmed.values()}

    async def all_mails_have_arrived() -> bool:
        return await mails.count() >= before + placed

    async def outboxes_are_empty() -> bool:
        return not any(order.get("outbox") for order in (await stored(shop))[2])

    await until(all_mails_have_arrived, 120, "all mails have arrived", interval=0.2)
    await until(outboxes_are_empty, 120, "all outboxes are empty", interval=0.2)
    ids_of_mails = [re.match(r"<([0-9a-f-]{36})@", mail["message_id"]) for mail in await mails.to()]
    assert Counter(id[1] for id in ids_of_mails if id and id[1] in wanted) == Counter(wanted)
