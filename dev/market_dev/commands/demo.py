"""The demo catalogue: some 40 goods for a start without a file, with pictures that the gateway serves.

made = await fill("http://127.0.0.1:8081")
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta, Struct

from market.contracts.money import PriceText
from market_dev.shop_client import Made, Shop

CATALOGUE = Path(__file__).with_name("demo_catalogue") / "catalogue.yaml"


class Good(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One of the goods; `image` is a path of the gateway."""

    slug: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,60}$")]
    name: str
    description: str
    price: PriceText
    currency: str
    stock: Annotated[int, Meta(ge=0)]
    image: Annotated[str, Meta(pattern=r"^/images/[a-z0-9-]+\.svg$")]


def catalogue() -> list[Good]:
    """The goods, in the order of the file."""
    return msgspec.convert(yaml.safe_load(CATALOGUE.read_text("utf-8")), list[Good])


async def fill(products_url: str) -> int:
    """Makes the goods in a shop that has no product yet; answers how many were made. Raises Unreachable, Refused.

    Each good has its own idempotency key, so that two fillings at once make nothing twice.
    """
    async with Shop(products_url, products_url, connections=8) as shop:
        if await shop.count():
            return 0
        made = await asyncio.gather(*(make(shop, good) for good in catalogue()))
    return sum(not product.before for product in made)


async def make(shop: Shop, good: Good) -> Made:
    """The good, made now or before. Raises Unreachable, Refused."""
    body = {
        "name": good.name,
        "description": good.description,
        "price": good.price,
        "currency": good.currency,
        "image_url": good.image,
        "stock": good.stock,
    }
    return await shop.make_product(body, f"demo:{good.slug}")
