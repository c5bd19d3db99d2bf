"""The demo catalogue: 40 products for a first start, with images that the gateway serves.

    python -m market_dev.commands.demo

creates it in a process of its own, whose memory `market up` does not keep. It reads a Shop as JSON from standard input,
and writes the number of products that it has created to standard output.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import yaml
from msgspec import Meta, Struct

from market.contracts.money import PriceText
from market_dev.shop_client import Created, ShopClient
from market_dev.tokens import Credentials

CATALOGUE = Path(__file__).with_name("demo_catalogue") / "catalogue.yaml"


class DemoProduct(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One product; `image` is a path at the gateway."""

    slug: Annotated[str, Meta(pattern=r"^[a-z0-9-]{1,60}$")]
    name: str
    description: str
    price: PriceText
    currency: str
    stock: Annotated[int, Meta(ge=0)]
    image: Annotated[str, Meta(pattern=r"^/images/[a-z0-9-]+\.svg$")]


class Shop(Struct, frozen=True, forbid_unknown_fields=True):
    """Where to create it: the base URL of products, and the credentials for a shop that requires sign-in."""

    products: str
    credentials: Credentials | None = None


def catalogue() -> list[DemoProduct]:
    """Return the products in the order of the file."""
    return msgspec.convert(yaml.safe_load(CATALOGUE.read_text("utf-8")), list[DemoProduct])


async def create_catalogue(products_url: str, credentials: Credentials | None = None) -> int:
    """Create all products in a shop that has none, and return their number. Return 0 if the shop has products.

    Each product has its own idempotency key, so that two concurrent calls create nothing twice.
    `credentials`: for a shop that requires sign-in. Raises ShopUnavailable, RequestRejected.
    """
    async with ShopClient(products_url, products_url, max_connections=8, credentials=credentials) as shop:
        if await shop.count_products():
            return 0
        # A product may have been created by a request whose response was late, before its repetition: count it, too.
        return len(await asyncio.gather(*(create(shop, product) for product in catalogue())))


async def create(shop: ShopClient, product: DemoProduct) -> Created:
    """Create the product, unless an earlier call did. Raises ShopUnavailable, RequestRejected."""
    body = {
        "name": product.name,
        "description": product.description,
        "price": product.price,
        "currency": product.currency,
        "image_url": product.image,
        "stock": product.stock,
    }
    return await shop.create_product(body, f"demo:{product.slug}")


def main() -> None:
    shop = msgspec.json.decode(sys.stdin.buffer.read(), type=Shop)
    print(asyncio.run(create_catalogue(shop.products, shop.credentials)))


if __name__ == "__main__":
    main()
