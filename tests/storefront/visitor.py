"""The shop of these tests, and its visitors, who follow links and send forms as a browser without JavaScript does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any
from uuid import uuid4

import httpx
from market_dev.stack.stack import Stack

from tests.system.whole_shop import retried


@dataclass
class Form:
    """A form of a page: its address, and its fields as a browser would send them."""

    action: str
    method: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    # The names and values of its buttons.
    buttons: list[tuple[str, str]] = field(default_factory=list)

    def filled(self, **values: str) -> list[tuple[str, str]]:
        """Return the fields, those named with other values."""
        kept = [(name, value) for name, value in self.fields if name not in values]
        return [*kept, *values.items()]


class Document(HTMLParser):
    """The text, the forms and the links of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.forms: list[Form] = []
        self.links: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self._texts: list[str] = []
        self._open_form: Form | None = None
        self._select = ""
        # The name of the open textarea, and its text.
        self._textarea: tuple[str, list[str]] | None = None
        self._hidden_depth = 0
        self.feed(html)

    @property
    def text(self) -> str:
        """The text of the page, with single spaces."""
        return " ".join("".join(self._texts).split())

    def form(self, action: str, **values: str) -> Form:
        """Return the form with that address, whose fields have these values."""
        for form in self.forms:
            if form.action == action and all((name, value) in form.fields for name, value in values.items()):
                return form
        raise AssertionError(f"no form {action} with {values}, only {self.forms}")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.elements.append((tag, named))
        if tag in ("script", "style"):
            self._hidden_depth += 1
        if tag == "a":
            self.links.append(named.get("href", ""))
        if tag == "form":
            self._open_form = Form(named.get("action", ""), named.get("method", "get"))
            self.forms.append(self._open_form)
        form = self._open_form
        if form is None:
            return
        name = named.get("name", "")
        if tag == "input" and name:
            form.fields.append((name, named.get("value", "")))
        elif tag == "button" and name:
            form.buttons.append((name, named.get("value", "")))
        elif tag == "textarea":
            self._textarea = (name, [])
        elif tag == "select":
            self._select = name
        elif tag == "option" and "selected" in named:
            form.fields.append((self._select, named.get("value", "")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self._open_form is not None and self._textarea is not None:
            name, texts = self._textarea
            # A line end at the beginning belongs to the markup.
            self._open_form.fields.append((name, "".join(texts).removeprefix("\n")))
            self._textarea = None
        if tag == "form":
            self._open_form = None
        if tag in ("script", "style"):
            self._hidden_depth -= 1

    def handle_data(self, data: str) -> None:
        if self._textarea is not None:
            self._textarea[1].append(data)
            return
        if not self._hidden_depth:
            self._texts.append(data)


@dataclass
class Shop:
    """A running shop with its storefront."""

    stack: Stack
    http: httpx.AsyncClient

    @property
    def url(self) -> str:
        return str(self.stack.urls["storefront"])

    @asynccontextmanager
    async def new_visitor(self, **headers: str) -> AsyncIterator[Visitor]:
        async with httpx.AsyncClient(base_url=self.url, timeout=60, headers=headers) as http:
            yield Visitor(http, self.url)

    async def create_product(self, **fields: Any) -> dict[str, Any]:
        """Create a product by REST, and return it."""
        body = {"name": "Teapot", "description": "", "price": "19.90", "currency": "GBP", "stock": 10, **fields}
        headers = {"Idempotency-Key": uuid4().hex}
        url = f"{self.stack.urls['products']}/api/product"
        response = await retried(lambda: self.http.post(url, json=body, headers=headers), 503)
        return dict(response.raise_for_status().json())

    async def change_product(self, product: dict[str, Any], **fields: Any) -> None:
        """Change fields of a product by REST."""
        names = ("id", "name", "description", "price", "currency", "image_url")
        body = {**{name: product[name] for name in names}, **fields}
        url = f"{self.stack.urls['products']}/api/product"
        (await retried(lambda: self.http.put(url, json=body), 503)).raise_for_status()

    async def orders_of(self, user: str) -> list[dict[str, Any]]:
        """Return the user's orders, as REST has them."""
        url = f"{self.stack.urls['orders']}/api/order"
        response = await retried(lambda: self.http.get(url, params={"user": user}), 503)
        return list(response.raise_for_status().json()["items"])


@dataclass
class Visitor:
    """Somebody with a browser: it keeps cookies, and sends the origin with forms.

    Pages that a busy machine could not make in time (503) are loaded again.
    """

    http: httpx.AsyncClient
    url: str

    async def get(self, path: str, **headers: str) -> httpx.Response:
        return await retried(lambda: self.http.get(path, headers=headers), 503)

    async def get_once(self, path: str) -> httpx.Response:
        """Return the response, also if the page cannot be shown."""
        return await self.http.get(path)

    async def open(self, path: str) -> Document:
        """Return the page at the path, which must be one."""
        response = await retried(lambda: self.http.get(path, follow_redirects=True), 503)
        assert response.status_code == 200, f"{response.status_code} {response.text}"
        return Document(response.text)

    async def send(self, form: Form, *button: tuple[str, str], **values: str) -> httpx.Response:
        """Send a form, some of its fields with other values, and return the response."""
        fields = _as_dict([*form.filled(**values), *button])
        if form.method == "get":
            return await retried(lambda: self.http.get(form.action, params=fields), 503)
        return await retried(lambda: self.http.post(form.action, data=fields, headers={"origin": self.url}), 503)


def _as_dict(fields: list[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name, value in fields:
        found.setdefault(name, []).append(value)
    return found
