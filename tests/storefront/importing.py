"""Files with products, and a merchant who imports them, as a browser without JavaScript does."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx

from tests.storefront.visitor import Document, Form, Shop, Visitor
from tests.support.waiting import until
from tests.system.whole_shop import retried

PATH = "/desk/import"
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"


def new_word() -> str:
    """Return a word that no other product has."""
    return "w" + uuid4().hex[:12]


def retail(*lines: str) -> bytes:
    """Return a file. A line is CODE;NAME;QUANTITY;PRICE."""
    rows = [
        f'{500 + i},{code},"{name}",{quantity},2010-12-01T08:26:00,{price},17850,France'
        for i, (code, name, quantity, price) in enumerate(line.split(";") for line in lines)
    ]
    return "\n".join([HEADER, *rows, ""]).encode()


def codes(word: str, count: int) -> list[str]:
    """Return the lines of so many products, whose names and codes have the word."""
    return [f"{word}{i:03};{word} {i:03};{i + 1};{i + 1}.50" for i in range(count)]


async def upload(visitor: Visitor, data: bytes, *, name: str = "products.csv", **values: str) -> httpx.Response:
    """Send a file with the form for it, and return the response."""
    form = (await visitor.open(PATH)).form(PATH)
    fields = dict([*form.filled(**values), ("step", "read")])
    fields.pop("file", None)
    return await visitor.http.post(PATH, data=fields, files={"file": (name, data)}, headers={"origin": visitor.url})


async def dry_run(visitor: Visitor, data: bytes, **values: str) -> Document:
    """Upload a file, go on until all rows are compared, and return the page with the result."""
    response = await upload(visitor, data, **values)
    assert response.status_code == 200, Document(response.text).text
    return await finish(visitor, Document(response.text), "compare")


async def finish(visitor: Visitor, page: Document, step: str) -> Document:
    """Press the button for the next step as long as there is one."""
    while ("step", step) in job_form(page).buttons:
        page = await press(visitor, page, step)
    return page


async def press(visitor: Visitor, page: Document, step: str) -> Document:
    """Press a button of the page, and return the next page."""
    form = job_form(page)

    async def send() -> httpx.Response:
        fields = dict([*form.fields, ("step", step)])
        return await visitor.http.post(PATH, data=fields, headers={"origin": visitor.url})

    response = await retried(send, 503)
    assert response.status_code == 200, response.text
    return Document(response.text)


async def run_all(visitor: Visitor, page: Document) -> Document:
    """Start the import that the page shows, and go on until it is done."""
    return await finish(visitor, await press(visitor, page, "start"), "run")


def job_form(page: Document) -> Form:
    """Return the form that has the import."""
    return next(form for form in page.forms if any(name == "job" for name, _ in form.fields))


async def products_with(shop: Shop, word: str) -> list[dict[str, Any]]:
    """Return all products whose text has the word, sorted by name, as they are in the stores. At most 100."""
    url = f"{shop.stack.urls['products']}/api/product"
    params = {"q": f'"{word}"', "limit": 100, "sort": "name", "stock": "true", "availability": "false"}
    found: list[dict[str, Any]] = []

    async def are_known() -> bool:
        response = await retried(lambda: shop.http.get(url, params=params), 503)
        page = response.raise_for_status().json()
        found[:] = [] if page.get("suggested") else page["items"]
        # On a busy machine, the stock may be unknown for a moment.
        return all(product["stock"] is not None for product in found)

    await until(are_known, what="the stock of each product")
    return found
