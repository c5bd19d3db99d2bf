"""`market import` and `market replay` against a shop in memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer
from market_dev.commands import import_ as importer
from market_dev.commands import replay
from market_dev.shop_client import ShopClient
from typer.testing import CliRunner, Result

from tests.commands.in_memory_shop import InMemoryShop
from tests.support.clocks import FakeClock

Write = Callable[..., Path]
SALES = (
    "1;10;MUG;6;2.55;17850",
    "1;20;BOWL;2;3.05;17850",
    "2;10;MUG;1;2.55;",
    "C3;10;MUG;-1;2.55;17850",
    "4;POST;POSTAGE;1;18;5",
)

app = typer.Typer()
app.command("import")(importer.run)
app.command("replay")(replay.run)


async def market(*args: Any) -> Result:
    """Run the command as a user does, in a thread because it has its own event loop."""
    return await asyncio.to_thread(CliRunner().invoke, app, [str(a) for a in args], env={"COLUMNS": "120"})


def row(result: Result, name: str) -> str:
    found = re.search(rf"^│\s+{re.escape(name)}\s+│\s+(.*?)\s+│$", result.stdout, re.MULTILINE)
    return found[1] if found else f"no row {name!r} in\n{result.output}"


async def test_an_import_creates_each_product_once_with_the_units_that_the_file_sells_in_stock(
    shop: InMemoryShop, write: Write
) -> None:
    result = await market("import", write(*SALES), "--url", shop.url)
    assert result.exit_code == 0, result.output
    assert row(result, "products created") == "2"
    made = sorted(shop.products.values(), key=lambda p: p["name"])
    assert [(p["name"], p["description"], p["price"], p["currency"], shop.stock[p["id"]]) for p in made] == [
        ("BOWL", "BOWL. Stock code 20.", "3.05", "GBP", 2),
        ("MUG", "MUG. Stock code 10.", "2.55", "GBP", 7),
    ]
    assert set(shop.keys) == {"import:10", "import:20"}


async def test_a_second_import_creates_nothing(shop: InMemoryShop, write: Write) -> None:
    await market("import", write(*SALES), "--url", shop.url)
    result = await market("import", write(*SALES), "--url", shop.url)
    assert (row(result, "products created"), row(result, "existing products")) == ("0", "2")
    assert len(shop.products) == 2


async def test_an_option_sets_the_stock_of_each_product(shop: InMemoryShop, write: Write) -> None:
    await market("import", write(*SALES), "--url", shop.url, "--stock", 50)
    assert sorted(shop.stock.values()) == [50, 50]


async def test_an_import_with_another_stock_finds_the_products_and_does_not_change_them(
    shop: InMemoryShop, write: Write
) -> None:
    await market("import", write(*SALES), "--url", shop.url)
    result = await market("import", write(*SALES), "--url", shop.url, "--stock", 50)
    assert result.exit_code == 0, result.output
    assert row(result, "existing products with another name, price or stock") == "2"
    assert sorted(shop.stock.values()) == [2, 7]


async def test_each_invoice_is_placed_as_one_order_of_its_customer(shop: InMemoryShop, write: Write) -> None:
    await market("import", write(*SALES), "--url", shop.url)
    result = await market("replay", write(*SALES), "--url", shop.url)
    assert result.exit_code == 0, result.output
    names = {id: p["name"] for id, p in shop.products.items()}
    orders = sorted(shop.orders.values(), key=lambda o: o["user"])
    assert [(o["user"], o["email"], {names[i["product_id"]]: i["quantity"] for i in o["items"]}) for o in orders] == [
        ("17850", "17850@example.test", {"MUG": 6, "BOWL": 2}),
        ("guest-2", "guest-2@example.test", {"MUG": 1}),
    ]
    assert set(shop.stock.values()) == {0}
    assert (row(result, "placed"), row(result, "rejected"), row(result, "returns"), row(result, "charges")) == (
        "2",
        "0",
        "1",
        "1",
    )
    assert row(result, "invoices without a sale") == "2"
    assert {"1", "2"} < set(shop.keys)


async def test_a_second_replay_places_nothing(shop: InMemoryShop, write: Write) -> None:
    path = write(*SALES)
    await market("replay", path, "--url", shop.url)
    result = await market("replay", path, "--url", shop.url)
    assert (row(result, "placed"), row(result, "placed by an earlier run")) == ("0", "2")
    assert len(shop.orders) == 2


async def test_a_replay_finds_products_that_were_imported_with_another_stock_or_from_another_file(
    shop: InMemoryShop, write: Write
) -> None:
    await market("import", write(*SALES, "9;10;MUG;900;9.99;1", name="larger.csv"), "--url", shop.url, "--stock", 1000)
    result = await market("replay", write(*SALES), "--url", shop.url)
    assert row(result, "placed") == "2"
    assert len(shop.products) == 2


async def test_rejected_orders_are_counted_by_reason(shop: InMemoryShop, write: Write) -> None:
    path = write(*SALES)
    await market("import", path, "--url", shop.url, "--stock", 1)
    result = await market("replay", path, "--url", shop.url)
    assert result.exit_code == 0, result.output
    assert (row(result, "placed"), row(result, "rejected"), row(result, "out of stock")) == ("1", "1", "1")


async def test_lost_responses_and_temporary_errors_are_retried_with_the_same_key(
    shop: InMemoryShop, write: Write
) -> None:
    path = write(*SALES)
    await market("import", path, "--url", shop.url)
    shop.failures = [503, "drop", "lose", 502, "lose"]
    # One after another, so that each failure meets the request that it is for.
    result = await market("replay", path, "--url", shop.url, "--concurrency", 1)
    assert result.exit_code == 0, result.output
    assert shop.failures == []
    assert (len(shop.orders), len(shop.products)) == (2, 2)
    assert set(shop.stock.values()) == {0}


async def test_the_pause_before_a_retry_is_that_of_retry_after_plus_jitter(
    shop: InMemoryShop, clock: FakeClock
) -> None:
    shop.failures, shop.retry_after = [503], "30"
    body = {"name": "MUG", "description": "", "price": "1", "currency": "GBP", "stock": 1}
    async with ShopClient.at(port_base=1, url=shop.url, sleep=clock.sleep) as client:
        created = await client.create_product(body, "k")
    assert not created.replayed
    [pause] = clock.sleeps
    assert 30 <= pause <= 37.5


async def test_the_concurrency_option_limits_the_orders_in_flight(shop: InMemoryShop, write: Write) -> None:
    path = write(*(f"{n};10;MUG;1;1;" for n in range(1, 41)))
    await market("import", path, "--url", shop.url)
    shop.max_in_flight, shop.together = 0, 7
    await market("replay", path, "--url", shop.url, "--concurrency", 7)
    assert shop.max_in_flight == 7
    assert len(shop.orders) == 40


async def test_the_speed_option_keeps_the_intervals_between_invoices(shop: InMemoryShop, tmp_path: Path) -> None:
    path = tmp_path / "retail.csv"
    header = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country\n"
    path.write_text(header + "".join(f"{n},10,MUG,1,2010-12-01T08:00:0{n},1,,UK\n" for n in range(3)))
    loop = asyncio.get_running_loop()
    started = loop.time()
    result = await market("replay", path, "--url", shop.url, "--speed", 4)
    assert row(result, "placed") == "3"
    assert loop.time() - started >= 0.5


async def test_an_invalid_file_is_reported_with_the_place_and_sends_nothing(shop: InMemoryShop, write: Write) -> None:
    for command in ("import", "replay"):
        result = await market(command, write(*SALES, "5;10;MUG;many;2.55;"), "--url", shop.url)
        assert result.exit_code == 1
        assert "retail.csv, line 7, column Quantity: must be a whole number, got 'many'" in result.stderr
    assert shop.requests == 0


async def test_an_unavailable_shop_is_reported_with_the_command_that_starts_one(
    write: Write, unused_port_base: int
) -> None:
    result = await market("import", write(*SALES), "--port-base", unused_port_base)
    assert result.exit_code == 1
    assert f"no response from 127.0.0.1:{unused_port_base + 1}" in result.stderr
    assert "`market up`" in result.stderr
    assert "Traceback" not in result.output


async def test_an_invalid_address_exits_with_status_2(write: Write) -> None:
    result = await market("replay", write(*SALES), "--url", "shop.example")
    assert result.exit_code == 2
    assert "https://shop.example" in result.stderr
