"""What a first visit costs: bytes and requests."""

from __future__ import annotations

import asyncio

from tests.storefront.visitor import Document, Shop, Visitor

# Without pictures, and without compression, which proxies may add.
MAX_BYTES = 100_000


async def test_the_first_page_is_light_and_asks_no_other_host(shop: Shop, visitor: Visitor) -> None:
    names = [f"A product with a name of a usual length {number}" for number in range(20)]
    await asyncio.gather(*(shop.create_product(name=name, image_url="/images/teapot.svg") for name in names))
    response = await visitor.get("/")
    page = Document(response.text)
    pictures = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(pictures) == 20
    assert all(int(picture["width"]) > 0 and int(picture["height"]) > 0 for picture in pictures)
    files = [
        attributes["src" if tag == "script" else "href"]
        for tag, attributes in page.elements
        if tag == "script" or (tag == "link" and attributes["rel"] in ("stylesheet", "icon"))
    ]
    assert [path.rpartition(".")[2] for path in files] == ["svg", "css", "js"]
    assert all(path.startswith("/static/") for path in files)
    bodies = [(await visitor.get(path)).content for path in files]
    assert len(response.content) + sum(map(len, bodies)) < MAX_BYTES
    policy = dict(part.strip().partition(" ")[::2] for part in response.headers["content-security-policy"].split(";"))
    assert (policy["script-src"], policy["style-src"]) == ("'self'", "'self'")
    assert "unsafe" not in response.headers["content-security-policy"]
