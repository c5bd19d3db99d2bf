"""The demo catalogue and its images."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from market_dev.commands import demo, up

import market.graphql
from market.contracts.money import parse_price
from tests.commands.in_memory_shop import InMemoryShop

PRODUCTS = demo.catalogue()
[STATIC] = Path(market.graphql.__file__).parent.glob("**/static")


def test_the_demo_catalogue_has_forty_distinct_products() -> None:
    assert len(PRODUCTS) == 40
    assert len({p.slug for p in PRODUCTS}) == len({p.name for p in PRODUCTS}) == len({p.image for p in PRODUCTS}) == 40
    assert all(parse_price(p.price) > 0 and p.stock > 0 and p.description for p in PRODUCTS)


@pytest.mark.parametrize("product", PRODUCTS, ids=lambda p: p.slug)
def test_each_product_has_its_own_image(product: demo.DemoProduct) -> None:
    image = STATIC / product.image.removeprefix("/")
    root = ElementTree.fromstring(image.read_text("utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert image.stat().st_size < 5_000
    # No scripts, and nothing loaded from elsewhere.
    assert all(
        not e.tag.endswith(("script", "image", "use")) and not any("href" in a for a in e.attrib) for e in root.iter()
    )


def test_each_image_belongs_to_a_product() -> None:
    assert {f"/images/{p.name}" for p in (STATIC / "images").glob("*.svg")} == {p.image for p in PRODUCTS}


async def test_the_demo_catalogue_is_created_once(shop: InMemoryShop) -> None:
    assert await demo.create_catalogue(shop.url) == 40
    assert await demo.create_catalogue(shop.url) == 0
    assert {(p["name"], p["image_url"]) for p in shop.products.values()} == {(p.name, p.image) for p in PRODUCTS}
    assert sum(shop.stock.values()) == sum(p.stock for p in PRODUCTS)


async def test_products_whose_first_response_was_lost_are_counted(shop: InMemoryShop) -> None:
    shop.failures = ["lose"] * 4
    assert await demo.create_catalogue(shop.url) == len(shop.products) == 40
    # Each lost response was repeated.
    assert shop.requests == 44


async def test_a_shop_with_products_gets_no_demo_catalogue(shop: InMemoryShop) -> None:
    shop.products["1"] = {"id": "1", "name": "MUG", "description": ""}
    assert await demo.create_catalogue(shop.url) == 0
    assert len(shop.products) == 1


def test_market_up_imports_nothing_from_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "yaml.py").write_text("raise SystemExit(7)\n")
    monkeypatch.chdir(tmp_path)
    with up._demo_process(empty=False) as process:
        assert process is not None
        process.communicate(b"{}")
    # The input is invalid.
    assert process.returncode == 1
