"""The catalogue and the product page."""

from __future__ import annotations

import json
import re

from tests.storefront.test_outages import shows
from tests.storefront.visitor import Document, Shop, Visitor
from tests.support.waiting import until


async def test_a_product_is_found_by_search_and_shown_with_price_and_availability(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(
        name="Zebra teapot", description="Holds a litre.\nStriped.", price="19.90", image_url="/images/teapot.svg"
    )
    results = await visitor.open("/?q=zebra")
    assert f"/products/{product['id']}" in results.links
    assert "1 product" in results.text
    page = await shows(visitor, f"/products/{product['id']}", "Zebra teapot £19.90 In stock")
    assert "Holds a litre." in page.text
    [picture] = [attributes for tag, attributes in page.elements if tag == "img"]
    assert picture == {"class": "picture", "src": "/images/teapot.svg", "alt": "", "width": "400", "height": "400"}
    response = await visitor.get("/images/teapot.svg")
    assert (response.status_code, response.headers["content-type"]) == (200, "image/svg+xml")


async def test_stored_html_is_shown_as_text(shop: Shop, visitor: Visitor) -> None:
    name, description = "<script>alert(1)</script>", "</script><script>alert(2)</script><b>bold</b>"
    product = await shop.create_product(name=name, description=description)
    html = (await visitor.get(f"/products/{product['id']}")).text
    assert html.count("<script") == 2  # The shop's own, and the structured data.
    assert "<b>" not in html
    assert name in Document(html).text
    [data] = re.findall(r'<script type="application/ld\+json">(.*?)</script>', html)
    assert json.loads(data)["description"] == description
    assert "<script>alert" not in (await visitor.get("/", **{"accept-language": "ru"})).text


async def test_search_engines_read_price_and_availability_of_a_product(shop: Shop, visitor: Visitor) -> None:
    product = await shop.create_product(name="Lamp", price="5.50", currency="EUR", stock=0)
    url = f"{shop.url}/products/{product['id']}"

    async def offers() -> dict[str, str] | None:
        html = (await visitor.get(f"/products/{product['id']}")).text
        [data] = re.findall(r'<script type="application/ld\+json">(.*?)</script>', html)
        found: dict[str, str] = json.loads(data)["offers"]
        # On a busy machine the availability may be unknown.
        return found if "availability" in found else None

    assert await until(offers, what="a known availability") == {
        "@type": "Offer",
        "url": url,
        "price": "5.50",
        "priceCurrency": "EUR",
        "availability": "https://schema.org/OutOfStock",
    }
    assert f"<loc>{url}</loc>" in (await visitor.get("/sitemap.xml")).text
    assert f"Sitemap: {shop.url}/sitemap.xml" in (await visitor.get("/robots.txt")).text


async def test_the_catalogue_is_sorted_and_read_page_by_page(shop: Shop, visitor: Visitor) -> None:
    names = [f"Paperclip {i:02}" for i in range(23)]
    for i, name in enumerate(names):
        await shop.create_product(name=name, price=f"{i + 1}.00")
    seen: list[str] = []
    path: str | None = "/?q=paperclip&sort=price"
    pages = 0
    while path:
        page = await visitor.open(path)
        pages += 1
        seen += re.findall(r"Paperclip \d\d", page.text)
        path = next((link for link in page.links if "after=" in link), None)
    assert (pages, seen) == (2, names)


async def test_the_search_field_gets_suggestions(shop: Shop, visitor: Visitor) -> None:
    await shop.create_product(name="Quilted oven glove")
    assert (await visitor.get("/suggestions?q=quil")).json() == {"names": ["Quilted oven glove"]}
    assert (await visitor.get("/suggestions?q=")).json() == {"names": []}


async def test_a_wrong_address_has_a_page(visitor: Visitor) -> None:
    for path, status in {
        "/products/1": 404,
        "/products/00000000-0000-0000-0000-000000000000": 404,
        "/nothing": 404,
        "/?after=wrong": 400,
        "/?q=%zz": 400,
        "/static/none.css": 404,
        "/images/none.svg": 404,
    }.items():
        response = await visitor.get(path)
        assert (response.status_code, response.headers["content-type"]) == (status, "text/html; charset=utf-8"), path
        assert "To the catalogue" in Document(response.text).text


async def test_the_first_page_is_light_and_stays_on_this_host(shop: Shop, visitor: Visitor) -> None:
    await shop.create_product(name="Weighed", image_url="/images/teapot.svg")
    response = await visitor.get("/")
    page = Document(response.text)
    files = [a["href"] for t, a in page.elements if t == "link" and a["rel"] in ("icon", "stylesheet")]
    files += [a["src"] for t, a in page.elements if t in ("script", "img") and "src" in a]
    assert [file for file in files if not file.startswith("/")] == []
    weight = len(response.content)
    for file in files:
        loaded = await visitor.get(file)
        assert loaded.status_code == 200
        weight += 0 if file.startswith("/images/") else len(loaded.content)
    assert weight < 100_000
    policy = response.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r'\sstyle="|\son[a-z]+="|<style', response.text)
