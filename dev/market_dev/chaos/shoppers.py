"""Shoppers: clients that buy at the storefront as a browser without JavaScript does, and carry on through errors.

A checkout page has the idempotency key of its order. A shopper sends the page's form, and then opens the page that
waits for the outcome, until the outcome is known. Now and then they send the same form again.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.parse import urlsplit

import aiohttp

from market_dev.chaos.history import Call, History, Operation

_PENDING = "/checkout/pending"
# Longer than the storefront waits for an order.
_TIMEOUT_SECONDS = 20.0
_THINK_SECONDS = 0.2


def name_of(number: int) -> str:
    """Return the name of a shopper, which is also their e-mail address."""
    return f"shopper-{number}@chaos.test"


@dataclass(frozen=True)
class Form:
    """The form of a checkout page, with what the shopper typed."""

    fields: tuple[tuple[str, str], ...]

    @property
    def key(self) -> str:
        """The idempotency key of the order."""
        return dict(self.fields).get("key", "")

    @property
    def items(self) -> dict[str, int]:
        """The quantities by product id."""
        lines = (value.split(":") for name, value in self.fields if name == "line")
        return {product: int(quantity) for product, quantity, _ in lines}


@dataclass(frozen=True)
class PageResponse:
    """A response of the storefront. status: 0 if there was no response. location: the path of a redirect."""

    status: int
    location: str = ""
    body: str = ""
    detail: str = ""


@dataclass
class StorefrontWorkload:
    """`shoppers` concurrent shoppers, driven by a seed. The storefront is in mode `open`.

    url: of the storefront
    retry_seconds: how long a shopper tries to find out whether an order was placed
    """

    url: str
    products: list[str]
    history: History
    seed: int
    shoppers: int = 3
    retry_seconds: float = 90.0
    orders_in_flight: int = 0
    # When the storefront last confirmed an order, in seconds since the run started.
    last_order_at: float = 0.0
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Run until `stop()`; purchases that have begun are completed."""
        await asyncio.gather(*(self._shopper(number) for number in range(self.shoppers)))

    def stop(self) -> None:
        """Let `run` return once the operations in progress are completed."""
        self._stopping.set()

    async def _shopper(self, number: int) -> None:
        rng = random.Random(f"{self.seed}/shopper/{number}")
        # Unlike aiohttp by default, browsers keep the cookies of IP addresses.
        jar = aiohttp.CookieJar(unsafe=True)
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT_SECONDS)
        bought = 0
        async with aiohttp.ClientSession(cookie_jar=jar, timeout=timeout) as http:
            while not self._stopping.is_set():
                # Forget what an earlier purchase has left.
                jar.clear(lambda cookie: cookie.key in ("market_basket", "market_unknown_order"))
                form = await self._fill_basket(http, rng, name_of(number))
                if form is not None and await self._buy(http, rng, name_of(number), form):
                    bought += 1
                    if bought % 3 == 1:
                        # The back button and a double click.
                        repeated = (self._place(http, name_of(number), form) for _ in range(rng.choice([1, 2])))
                        await asyncio.gather(*repeated)
                await asyncio.sleep(rng.uniform(0, 2 * _THINK_SECONDS))

    async def _fill_basket(self, http: aiohttp.ClientSession, rng: random.Random, user: str) -> Form | None:
        """Put products into the basket. Return the form of the checkout page, or None if a page could not be shown."""
        for product in rng.sample(self.products, k=rng.choice([1, 1, 2])):
            page = await self._send(http, "browse", user, f"/products/{product}")
            token = dict(form_fields(page.body, "/basket")).get("form_token")
            if token is None:
                return None
            fields = [("form_token", token), ("product", product), ("quantity", rng.choice("112")), ("action", "add")]
            if (await self._send(http, "browse", user, "/basket", fields)).status != 303:
                return None
        page = await self._send(http, "browse", user, "/checkout")
        form = Form((*form_fields(page.body, "/checkout"), ("name", user), ("email", user)))
        return form if form.key else None

    async def _buy(self, http: aiohttp.ClientSession, rng: random.Random, user: str, form: Form) -> bool:
        """Send the form until the outcome is known. Return whether the order was placed."""
        deadline = self.history.now() + self.retry_seconds
        backoff = 0.1
        response = await self._place(http, user, form)
        while is_unknown(response) and self.history.now() < deadline:
            await asyncio.sleep(rng.uniform(0.5, 1) * backoff)
            backoff = min(1.0, backoff * 2)
            # The pending page has the order in a cookie. If there was no response, the browser still shows the form.
            by_pending_page = any(cookie.key == "market_unknown_order" for cookie in http.cookie_jar)
            response = await self._place(http, user, form, by_pending_page=by_pending_page)
        return bool(order_of(response))

    async def _place(
        self, http: aiohttp.ClientSession, user: str, form: Form, *, by_pending_page: bool = False
    ) -> PageResponse:
        """Send the form, or open the page that waits for the outcome of its order."""
        self.orders_in_flight += 1
        try:
            if by_pending_page:
                return await self._send(http, "place", user, _PENDING, form=form)
            return await self._send(http, "place", user, "/checkout", form.fields, form=form)
        finally:
            self.orders_in_flight -= 1

    async def _send(
        self,
        http: aiohttp.ClientSession,
        operation: Operation,
        user: str,
        path: str,
        fields: list[tuple[str, str]] | tuple[tuple[str, str], ...] | None = None,
        *,
        form: Form | None = None,
    ) -> PageResponse:
        """Open a page, or send a form if there are fields, and record it in the history."""
        started_at = self.history.now()
        method = "GET" if fields is None else "POST"
        data = None if fields is None else aiohttp.FormData(fields, default_to_multipart=False)
        headers = {"Origin": self.url}
        try:
            async with http.request(
                method, self.url + path, data=data, headers=headers, allow_redirects=False
            ) as received:
                location = received.headers.get("Location", "")
                response = PageResponse(received.status, urlsplit(location).path, await received.text())
        except (aiohttp.ClientError, OSError, TimeoutError) as e:
            response = PageResponse(0, detail=type(e).__name__)
        ended_at = self.history.now()
        order_id = order_of(response) if form is not None else ""
        if order_id:
            self.last_order_at = ended_at
        self.history.add(
            Call(
                operation=operation,
                via="storefront",
                started_at=started_at,
                ended_at=ended_at,
                status=_status(response, order_id) if form is not None else response.status,
                key="" if form is None else form.key,
                user=user,
                order_id=order_id,
                items={} if form is None else form.items,
                detail=response.detail,
            )
        )
        return response


def order_of(response: PageResponse) -> str:
    """Return the id of the order to which the storefront has redirected; "" if it has not."""
    path, _, order_id = response.location.rpartition("/")
    return order_id if response.status == 303 and path == "/orders" else ""


def is_unknown(response: PageResponse) -> bool:
    """Return whether the outcome of the order is unknown."""
    return response.status in (0, 202) or response.status >= 500 or response.location == _PENDING


def _status(response: PageResponse, order_id: str) -> int:
    """Return the corresponding status of the REST API of orders: 201 for an order, 503 if the outcome is unknown."""
    if order_id:
        return 201
    return 503 if response.status and is_unknown(response) else response.status


class _Fields(HTMLParser):
    """The fields of one form of a page."""

    def __init__(self, action: str) -> None:
        super().__init__()
        self._action = action
        self._is_inside = False
        self.fields: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        if tag == "form":
            self._is_inside = named.get("action") == self._action
        elif tag == "input" and self._is_inside and named.get("type") == "hidden":
            self.fields.append((named.get("name", ""), named.get("value", "")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._is_inside = False


def form_fields(page: str, action: str) -> list[tuple[str, str]]:
    """Return the hidden fields of the page's form with that action."""
    parser = _Fields(action)
    parser.feed(page)
    return parser.fields
