from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from market_dev.commands import demo

import market.graphql
from market.contracts.money import parse_price
from tests.commands.in_memory_shop import InMemoryShop

STATIC = Path(market.graphql.__file__).parent / "graphiql" / "static"
GOODS = demo.catalogue()


def test_the_demo_catalogue_has_forty_goods_that_differ() -> None:
    assert len(GOODS) == 40
    assert len({g.slug for g in GOODS}) == len({g.name for g in GOODS}) == len({g.image for g in GOODS}) == 40
    assert all(parse_price(g.price) > 0 and g.stock > 0 and g.description for g in GOODS)


@pytest.mark.parametrize("good", GOODS, ids=lambda g: g.slug)
def test_each_good_has_a_picture_of_its_own(good: demo.Good) -> None:
    picture = STATIC / good.image.removeprefix("/")
    root = ElementTree.fromstring(picture.read_text("utf-8"))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert picture.stat().st_size < 5_000
    # Nothing is run and nothing is fetched from elsewhere.
    assert all(
        not e.tag.endswith(("script", "image", "use")) and not any("href" in a for a in e.attrib) for e in root.iter()
    )


def test_no_picture_is_without_its_good() -> None:
    assert {f"/images/{p.name}" for p in (STATIC / "images").glob("*.svg")} == {g.image for g in GOODS}


async def test_filling_makes_each_good_once(shop: InMemoryShop) -> None:
    assert await demo.fill(shop.url) == 40
    assert await demo.fill(shop.url) == 0
    assert {(p["name"], p["image_url"]) for p in shop.products.values()} == {(g.name, g.image) for g in GOODS}
    assert sum(shop.stock.values()) == sum(g.stock for g in GOODS)


async def test_a_shop_with_products_is_not_filled(shop: InMemoryShop) -> None:
    shop.products["1"] = {"id": "1", "name": "MUG", "description": ""}
    assert await demo.fill(shop.url) == 0
    assert len(shop.products) == 1
