"""Take the pictures of docs/screenshots: every stop of the tour, on a desktop and a phone, dark, and in Russian.

    make screenshots                         # python -m tests.storefront.screenshots docs/screenshots
    make screenshots ARGS="basket checkout"  # only these stops

Starts a shop of its own with the demo catalogue, and needs Chromium. The window, the data and the names are always the
same, and nothing moves; the numbers of orders and the time differ from run to run.
"""

from __future__ import annotations

import asyncio
import base64
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import httpx
from market_dev.commands.demo import catalogue, create
from market_dev.shop_client import ShopClient
from market_dev.stack.stack import Stack
from market_dev.stack.topology import Options

from tests.storefront.accessibility import set_screen
from tests.storefront.faulty_gateway import FaultyGateway
from tests.storefront.signed_in import signing_in
from tests.storefront.stops import SIGN_IN_STOPS, STOPS
from tests.storefront.tour import Stop, Tour, create_products, storefront
from tests.storefront.visitor import Shop
from tests.support.browser import Tab, tab
from tests.support.ports import free_port_base

# The products of the demo catalogue in the place of those that the tests use.
_PRODUCTS = {"teapot": "teapot", "long": "storm-lantern", "plain": "beeswax-candles"}
_WORD = "lamp"
# Stops that are only for tests.
_LEFT_OUT = {
    "search-next-page",
    "product-long-words",
    "product-without-picture",
    "catalogue-unknown",
    "orders-none",
    "key-used",
    "wrong-address",
    "desk-outage",
    "basket-two-currencies",
    "checkout-nothing-left",
    "signed-in-orders",
    "desk-product-deletion-conflict",
    "desk-stock-mistake",
    "desk-stock-conflict",
}
_DESKTOP, _PHONE = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
# The longest part of a page that a picture shows, in pixels of the page.
_MAX_HEIGHT = {1280: 1000, 390: 1200}
# Pictures are smaller than the window, because the documentation shows four beside each other.
_SCALE = {1280: 0.5, 390: 0.6}
_QUALITY = 55

_READY = """(async () => {
  for (const picture of document.images) picture.loading = "eager";
  await Promise.all([...document.images].map((picture) => picture.decode().catch(() => null)));
  await document.fonts.ready;
  document.activeElement?.blur();
  scrollTo(0, 0);
  return document.documentElement.scrollHeight;
})()"""


async def take(
    page: Tab, file: Path, *, width: int, height: int, scheme: str = "light", full_size: bool = False
) -> None:
    """Write a picture of the page that is open."""
    await set_screen(page, width=width, height=height, scheme=scheme)
    page_height = await page.evaluate(_READY)
    shown = height if full_size else min(max(page_height, 300), _MAX_HEIGHT[width])
    clip = {"x": 0, "y": 0, "width": width, "height": shown, "scale": 1 if full_size else _SCALE[width]}
    picture = await page.call(
        "Page.captureScreenshot", format="webp", quality=_QUALITY, clip=clip, captureBeyondViewport=True
    )
    file.write_bytes(base64.b64decode(picture["data"]))


async def follow(tour: Tour, stops: Iterable[Stop], directory: Path) -> None:
    """Take four pictures at each stop."""
    for language in ("en", "ru"):
        await tour.forget("session", "basket", "unknown_order")
        await tour.choose_language(language)
        # Some stops send a form from the page that is open.
        await tour.go("/")
        for stop in stops:
            await set_screen(tour.tab)
            await tour.visit(stop)
            path = directory / stop.name
            if language == "ru":
                await take(tour.tab, path.with_name(f"{stop.name}-russian.webp"), **_DESKTOP)
                continue
            await take(tour.tab, path.with_name(f"{stop.name}-desktop.webp"), **_DESKTOP)
            await take(tour.tab, path.with_name(f"{stop.name}-dark.webp"), **_DESKTOP, scheme="dark")
            await take(tour.tab, path.with_name(f"{stop.name}-phone.webp"), **_PHONE)
            if stop.name == "catalogue":
                await take(tour.tab, path.with_name("shop.webp"), **_DESKTOP, full_size=True)


async def fill(shop: Shop) -> dict[str, str]:
    """Create the demo catalogue, one product after another, and return the ids that the stops need."""
    ids = await create_products(shop, prefix="")
    url = str(shop.stack.urls["products"])
    async with ShopClient(url, url, max_connections=1) as client:
        created = {product.slug: await create(client, product) for product in reversed(catalogue())}
    return ids | {name: created[slug].id for name, slug in _PRODUCTS.items()} | {"word": _WORD}


async def main(directory: Path, names: set[str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)

    def chosen(stops: Iterable[Stop]) -> list[Stop]:
        return [stop for stop in stops if stop.name in names or not (names or stop.name in _LEFT_OUT)]

    with tempfile.TemporaryDirectory(prefix="market-screenshots-") as temporary:
        folder = Path(temporary)
        folder.chmod(0o755)
        options = Options(folder / "stack", port_base=free_port_base(), kafka="embedded")
        async with Stack(options) as stack, httpx.AsyncClient(timeout=60) as http:
            await stack.start()
            shop = Shop(stack, http)
            gateway = FaultyGateway(str(stack.urls["graphql"]), http, user="Ann Example")
            async with gateway.serving(), storefront(stack, gateway) as url, tab(folder / "profile") as page:
                tour = Tour(shop, url, page, gateway, await fill(shop))
                await follow(tour, chosen(STOPS), directory)
                (folder / "issuer").mkdir()
                async with signing_in(folder / "issuer", gateway_url=gateway.url) as world:
                    await follow(replace(tour, url=world.url), chosen(SIGN_IN_STOPS), directory)
    total = sum(file.stat().st_size for file in directory.glob("*.webp"))
    print(f"{directory}: {len(list(directory.glob('*.webp')))} pictures, {total / 1_000_000:.2f} MB")


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), set(sys.argv[2:])))
