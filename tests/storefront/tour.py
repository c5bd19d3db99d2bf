"""The tour: every page of the shop in a browser, in every state that looks different.

`STOPS` is the one list of pages. The tests of accessibility and the screenshots of the documentation both follow it, so
a new page needs a stop here, and nothing else.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
from confluent_kafka import Producer
from market_dev.stack.stack import Stack
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from market.contracts import events
from market.kit.config import Http, HttpUpstream, Listen
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import Process
from market.notifications.dead_letters import writer
from market.storefront.app import build
from market.storefront.config import Config, Cookies
from tests.storefront.faulty_gateway import FaultyGateway
from tests.storefront.importing import retail
from tests.storefront.visitor import Shop
from tests.support.browser import Tab
from tests.support.ports import free_port
from tests.system.whole_shop import retried

_ATTEMPTS = 5


@dataclass
class Tour:
    """A visitor with a browser, and the storefront that they visit.

    products: the ids of the products that the stops show, by a name. `gateway` lets parts of the shop fail.
    """

    shop: Shop
    url: str
    tab: Tab
    gateway: FaultyGateway
    products: Mapping[str, str]
    # The order that one stop places, for later ones.
    order_path: str = ""

    @property
    def buyer(self) -> dict[str, str]:
        return {"name": self.gateway.user, "email": "ann@example.com"}

    async def go(self, path: str) -> None:
        """Open a page of the shop, and wait until it is there."""
        await self._leave(f"location.assign({json.dumps(self.url + path)})")

    async def send(self, action: str, button: str = "", **values: str) -> None:
        """Send the form with that address, whatever the browser thinks of its values.

        button: the value of the button named `action`.
        """
        fields = {**values, **({"action": button} if button else {})}
        await self._leave(f"""(() => {{
            const form = document.querySelector('main form[action={json.dumps(action)}]');
            for (const [name, value] of Object.entries({json.dumps(fields)})) {{
                const field = form.querySelector(`input[name="${{name}}"]`) || document.createElement("input");
                Object.assign(field, {{name, value}});
                if (!field.form) form.append(Object.assign(field, {{type: "hidden"}}));
            }}
            HTMLFormElement.prototype.submit.call(form);
        }})()""")

    async def put_into_basket(self, product_id: str, quantity: int = 1) -> None:
        """Put units of a product into the basket, as the form of its page does, without opening that page."""
        fields = {"product": product_id, "quantity": str(quantity), "action": "add"}
        status = await self.tab.evaluate(f"""(async () => {{
            const form_token = document.querySelector('[name=form_token]').value;
            const body = new URLSearchParams({{...{json.dumps(fields)}, form_token}});
            return (await fetch("/basket", {{method: "POST", body}})).status;
        }})()""")
        assert status == 200, status

    async def forget(self, *cookies: str) -> None:
        """Remove cookies from the browser, such as the basket's."""
        for name in cookies:
            await self.tab.call("Network.deleteCookies", name=f"market_{name}", url=self.url)

    async def choose_language(self, code: str) -> None:
        await self.tab.call("Network.setCookie", name="market_language", value=code, url=self.url)

    async def visit(self, stop: Stop) -> None:
        """Go to a stop. A page that a busy machine could not show in time is opened again."""
        if self.gateway.off:
            # A page that waits for the shop goes on as soon as the shop responds, which would be during this visit.
            await self.go("/basket")
        self.gateway.off = set(stop.off)
        for _ in range(_ATTEMPTS):
            await stop.go(self)
            if await self.tab.evaluate(f"document.querySelector({json.dumps(stop.shows)}) !== null"):
                return
        raise AssertionError(
            f"{stop.name} does not show {stop.shows}: {await self.tab.evaluate('document.body.innerText')}"
        )

    async def _leave(self, script: str) -> None:
        """Run a script that leads to another page, and wait for that page."""
        await self.tab.evaluate("window.isLeft = true")
        await self.tab.evaluate(script)
        await self.tab.until(
            "!window.isLeft && document.readyState === 'complete' && document.querySelector('h1') !== null"
        )


@dataclass(frozen=True)
class Stop:
    """A page in one state.

    go: leads there. shows: a selector of what only this state shows. off: the parts of the shop that are switched off.
    """

    name: str
    go: Callable[[Tour], Awaitable[None]]
    shows: str = "h1"
    off: frozenset[str] = frozenset()


def _at(path: str) -> Callable[[Tour], Awaitable[None]]:
    """Return a way to the path, in which {NAME} is a product's id."""
    return lambda tour: tour.go(path.format_map(tour.products))


async def _second_page(tour: Tour) -> None:
    await tour.go("/?q=tour")
    await tour._leave("document.querySelector('a[rel=next]').click()")


async def _fill_basket(tour: Tour) -> None:
    await tour.forget("basket")
    for product in ("teapot", "long", "plain"):
        await tour.put_into_basket(tour.products[product], 2)
    # A product that does not exist any more.
    await tour.put_into_basket(str(uuid4()))
    await tour.go("/basket")


async def _two_currencies(tour: Tour) -> None:
    await tour.forget("basket")
    await tour.put_into_basket(tour.products["teapot"])
    await tour.put_into_basket(tour.products["euro"])
    await tour.go("/basket")


async def _wrong_quantity(tour: Tour) -> None:
    await tour.put_into_basket(tour.products["teapot"])
    await tour.go("/basket")
    await tour.send("/basket", "set", quantity="1.5")


async def _checkout(tour: Tour, *products: str) -> None:
    await tour.forget("basket")
    for product in products or ("teapot", "long"):
        await tour.put_into_basket(tour.products[product], 2)
    await tour.go("/checkout")


async def _mistakes(tour: Tour) -> None:
    await _checkout(tour)
    await tour.send("/checkout", name="", email="ann")


async def _changed(tour: Tour) -> None:
    await _checkout(tour, "teapot", "scarce")
    await tour.send("/checkout", **tour.buyer, line=f"{tour.products['teapot']}:2:1.00")


async def _nothing_left(tour: Tour) -> None:
    await _checkout(tour, "teapot")
    await tour.send("/checkout", **tour.buyer, line=f"{tour.products['sold_out']}:1:5.00")


async def _pending(tour: Tour) -> None:
    await _checkout(tour, "teapot")
    await tour.send("/checkout", **tour.buyer)


async def _placed(tour: Tour) -> None:
    await tour.forget("unknown_order")
    await _checkout(tour)
    await tour.send("/checkout", **tour.buyer)
    tour.order_path = await tour.tab.evaluate("location.pathname")


async def _key_used(tour: Tour) -> None:
    await _checkout(tour, "teapot")
    key = uuid4().hex
    await tour.send("/checkout", **tour.buyer, key=key)
    await _checkout(tour, "teapot")
    await tour.send("/checkout", **{**tour.buyer, "email": "other@example.com"}, key=key)


async def _cancelled(tour: Tour) -> None:
    await tour.go(tour.order_path)
    if await tour.tab.evaluate("document.querySelector('main form') !== null"):
        await tour.send(f"{tour.order_path}/cancellation")


async def _old_form(tour: Tour) -> None:
    await tour.go(f"/products/{tour.products['teapot']}")
    await tour.send("/basket", "add", form_token="old")


async def _empty_basket(tour: Tour) -> None:
    await tour.forget("basket")
    await tour.go("/basket")


async def _wrong_product(tour: Tour) -> None:
    await tour.go("/desk/products/new")
    await tour.send("/desk/products", name="", price="a lot")


async def _two_editors(tour: Tour) -> None:
    path = f"/desk/products/{tour.products['edited']}"
    await tour.go(path)
    price = float(await tour.tab.evaluate("document.querySelector('main input[name=price]').value"))
    # Another editor saves, while the page is open.
    await tour.tab.evaluate(f"""(async () => {{
        const body = new URLSearchParams(new FormData(document.querySelector('main form[action="{path}"]')));
        body.set("price", "{price + 1:.2f}");
        await fetch("{path}", {{method: "POST", body}});
    }})()""")
    await tour.send(path, price=f"{price + 2:.2f}")


async def _deletion_of_a_changed_product(tour: Tour) -> None:
    path = f"/desk/products/{tour.products['edited']}/deletion"
    await tour.go(path)
    await tour.send(path, version="99", seen_name="Cup", seen_image_url="/images/teapot.svg")


async def _wrong_count(tour: Tour) -> None:
    path = f"/desk/products/{tour.products['edited']}"
    await tour.go(f"{path}/stock")
    await tour.send(f"{path}/stock-take", counted="ten")


async def _stock_take_of_a_changed_product(tour: Tour) -> None:
    path = f"/desk/products/{tour.products['edited']}"
    await tour.go(f"{path}/stock")
    await tour.send(f"{path}/stock-take", version="99", seen_stock="12", counted="9")


async def _unknown_outcome(tour: Tour) -> None:
    path = f"/desk/products/{tour.products['edited']}"
    tour.gateway.off = set()
    await tour.go(path)
    tour.gateway.off = {"products"}
    await tour.send(path, name="Tour cup")


_IMPORTED = retail("22423;Cake stand;3;12.75", "84879;Bird ornament;40;1.69", "22720;Cake tins;5;4.95")


async def _dry_run(tour: Tour) -> None:
    await tour.go("/desk/import")
    await tour._leave(f"""(() => {{
        const files = new DataTransfer();
        files.items.add(new File([{json.dumps(_IMPORTED.decode())}], "products.csv", {{type: "text/csv"}}));
        document.getElementById("file").files = files.files;
        document.querySelector("main form[action='/desk/import'] button").click();
    }})()""")
    await tour.tab.until("document.querySelector('main button[value=report]') !== null")


async def _unsent_mails(tour: Tour) -> None:
    await asyncio.to_thread(_write_dead_letter, str(tour.shop.stack.urls["kafka"]))
    await tour.go("/desk/dead-letters")


async def _unsent_mail_tried_again(tour: Tour) -> None:
    await _unsent_mails(tour)
    await tour.send("/desk/dead-letters", "replay")


def _write_dead_letter(bootstrap_servers: str) -> None:
    """Write a dead letter whose event is too short to be mailed, so that it stays open."""
    event = {"type": events.CREATED, "data": {"id": str(uuid4()), "email": "ann@example.com"}}
    headers = {
        writer.REASON: "rejected: 550 5.1.1 <ann@example.com>: no such user",
        writer.TIME: datetime.now(UTC).isoformat(),
        writer.ATTEMPTS: "1",
    }
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    encoded = [(name, text.encode()) for name, text in headers.items()]
    producer.produce(events.DEAD_LETTER_TOPIC, msgspec.json.encode(event), headers=encoded)
    assert producer.flush(60) == 0


async def _place_order(tour: Tour, quantity: int) -> None:
    """Order units of a product by REST. 100,000 are too many, and the order is rejected."""
    url = f"{tour.shop.stack.urls['orders']}/api/order"
    items = [{"product_id": tour.products["teapot"], "quantity": quantity}]
    body = {"user": tour.gateway.user, "items": items}
    headers = {"Idempotency-Key": uuid4().hex}
    response = await retried(lambda: tour.shop.http.post(url, json=body, headers=headers), 503)
    assert response.status_code == (409 if quantity == 100_000 else 201), response.text


async def _desk_orders(tour: Tour) -> None:
    await _place_order(tour, 1)
    await tour.go("/desk/orders")


async def _desk_order(tour: Tour) -> None:
    await _place_order(tour, 1)
    await tour.go("/desk/orders?status=confirmed")
    await tour._leave("document.querySelector('main tbody a').click()")


async def _desk_cancellation(tour: Tour) -> None:
    await _desk_order(tour)
    await tour._leave("document.querySelector('main a[href$=cancellation]').click()")


async def _shortages(tour: Tour) -> None:
    await _place_order(tour, 100_000)
    await tour.go("/desk/shortages")


STOPS = (
    Stop("catalogue", _at("/"), ".grid"),
    Stop("search", _at("/?q={word}"), ".grid"),
    Stop("search-next-page", _second_page, "a.secondary"),
    Stop("search-similar", _at("/?q=tuor+teapott"), "p.hint[role=status]"),
    Stop("search-nothing", _at("/?q=zzqxwvk"), "main p a"),
    Stop("product", _at("/products/{teapot}"), ".product-picture img"),
    Stop("product-long-words", _at("/products/{long}")),
    Stop("product-without-picture", _at("/products/{plain}"), ".product-picture .no-picture"),
    Stop("product-sold-out", _at("/products/{sold_out}"), ".sold-out"),
    Stop("product-unknown", _at("/products/{teapot}"), ".unknown", off=frozenset({"inventory"})),
    Stop("catalogue-unknown", _at("/?q=tour"), ".unknown", off=frozenset({"inventory"})),
    Stop("basket-empty", _empty_basket),
    Stop("basket", _fill_basket, ".line .changed"),
    Stop("basket-during-an-outage", _at("/basket"), ".box.warn", off=frozenset({"products"})),
    Stop("basket-mistake", _wrong_quantity, "[role=alert]"),
    Stop("basket-two-currencies", _two_currencies, ".box.warn"),
    Stop("checkout", _checkout, "#email"),
    Stop("checkout-mistakes", _mistakes, ".box.bad"),
    Stop("checkout-changed", _changed, ".box.warn"),
    Stop("checkout-nothing-left", _nothing_left, ".box.warn"),
    Stop("pending", _pending, "[data-pending]", off=frozenset({"orders"})),
    Stop("order-placed", _placed, ".box.good"),
    Stop("key-used", _key_used, "main a[href='/orders']"),
    Stop("orders", _at("/orders"), ".orders"),
    Stop("orders-none", _at("/orders?name=nobody"), "main p"),
    Stop("order-cancelled", _cancelled, ".status.cancelled"),
    Stop("not-found", _at("/products/nothing"), ".message"),
    Stop("wrong-address", _at("/?after=x"), ".message"),
    Stop("old-form", _old_form, ".message"),
    Stop("outage", _at("/"), ".message", off=frozenset({"products"})),
    Stop("desk", _at("/desk")),
    Stop("desk-products", _at("/desk/products"), "main table"),
    Stop("desk-product-new", _at("/desk/products/new"), "#name"),
    Stop("desk-product-mistakes", _wrong_product, "[role=alert]"),
    Stop("desk-product", _at("/desk/products/{teapot}"), "#name"),
    Stop("desk-product-conflict", _two_editors, "[role=alert]"),
    Stop("desk-product-deletion", _at("/desk/products/{teapot}/deletion"), "main form"),
    Stop("desk-product-deletion-conflict", _deletion_of_a_changed_product, "del"),
    Stop("desk-outcome-unknown", _unknown_outcome, "main input[name=seen_name]", off=frozenset({"products"})),
    Stop("desk-stock-mistake", _wrong_count, ".box.bad"),
    Stop("desk-stock-conflict", _stock_take_of_a_changed_product, ".box.warn"),
    Stop("desk-stock", _at("/desk/products/{teapot}/stock"), "main form"),
    Stop("desk-import", _at("/desk/import"), "#file"),
    Stop("desk-import-dry-run", _dry_run, "main table"),
    Stop("desk-dead-letters", _unsent_mails, "main table form"),
    Stop("desk-dead-letters-settled", _unsent_mail_tried_again, ".outcomes"),
    Stop("desk-orders", _desk_orders, "main table"),
    Stop("desk-order", _desk_order, "main dl"),
    Stop("desk-order-cancellation", _desk_cancellation, "button.danger"),
    Stop("desk-shortages", _shortages, "main table"),
    Stop("desk-unfinished", _at("/desk/unfinished"), "main table form"),
    Stop("desk-outage", _at("/desk/products"), off=frozenset({"products"})),
)


async def _sign_in(tour: Tour) -> None:
    await tour.go("/sign-in?next=/")
    if await tour.tab.evaluate("document.querySelector('button[value=mia]') !== null"):
        await tour._leave("document.querySelector('button[value=mia]').click()")


async def _sent_without_sign_in(tour: Tour) -> None:
    await _sign_in(tour)
    await _checkout(tour)
    await tour.forget("access", "renewal")
    await tour.send("/checkout")


# Where `auth.mode` is `required`. Those after the second stop are for the person who has signed in there.
SIGN_IN_STOPS = (
    Stop("sign-in-failed", _at("/sign-in/callback?error=access_denied"), "main a[href^='/sign-in']"),
    Stop("signed-in", _sign_in, ".role"),
    Stop("signed-in-checkout", _checkout, "form[action='/checkout']:not(:has(#email))"),
    Stop("signed-in-orders", _at("/orders")),
    Stop("sign-in-needed", _sent_without_sign_in, "main a[href='/sign-in?next=/checkout']"),
)


async def create_products(shop: Shop, *, prefix: str = "Tour ", more: int = 0) -> dict[str, str]:
    """Create the products that the stops show, and so many more, and return their ids by name."""
    fields: dict[str, dict[str, Any]] = {
        "teapot": {
            "name": "Teapot",
            "description": "For four cups.\n\nDishwasher-safe.",
            "image_url": _picture("teapot"),
        },
        "long": {
            "name": "Donaudampfschifffahrtsgesellschaftskapitän" * 4,
            "description": "Rindfleischetikettierungsüberwachungsaufgaben" * 20,
            "price": "9999999.99",
        },
        "plain": {"name": "Bowl without a picture"},
        "sold_out": {"name": "Carafe", "price": "5.00", "stock": 0, "image_url": _picture("glass-carafe")},
        "scarce": {"name": "Vase", "stock": 1, "image_url": _picture("tulips-in-a-vase")},
        "euro": {"name": "Plate", "currency": "EUR", "image_url": _picture("dinner-plate")},
        "edited": {"name": "Mug", "image_url": _picture("enamel-mug")},
    }
    for number in range(more):
        fields[f"more_{number}"] = {"name": f"Spoon {number}", "image_url": _picture("teapot")}
    ids = {}
    for name, values in fields.items():
        ids[name] = (await shop.create_product(**{**values, "name": prefix + values["name"]}))["id"]
    return ids


def _picture(name: str) -> str:
    return f"/images/{name}.svg"


# What a shop has only while a part of it fails, or after that.
_KINDS = ("pending", "release-due", "unsent", "stuck")
_UNFINISHED = {
    "kinds": [{"kind": kind, "total": 1, "total_exact": True, "since": "2026-11-28T09:30:00Z"} for kind in _KINDS],
    "items": [
        {
            "order_id": str(UUID(int=number)),
            "kind": kind,
            "since": "2026-11-28T09:30:00Z",
            "status": "pending" if kind == "pending" else "cancelled",
            "user": "Ann Example",
            "reason": "the message is too large" if kind == "stuck" else None,
        }
        for number, kind in enumerate(_KINDS)
    ],
    "next": None,
}


@asynccontextmanager
async def _orders_with_unfinished_ones(upstream: str) -> AsyncIterator[str]:
    """Serve the orders' interface for the desk in front of the shop's own, and yield its address."""
    async with httpx.AsyncClient(base_url=upstream, timeout=60) as http:

        async def list_unfinished(request: Request) -> Response:
            return JSONResponse(_UNFINISHED)

        async def pass_on(request: Request) -> Response:
            response = await http.request(request.method, request.url.path, params=request.query_params)
            return Response(
                response.content, response.status_code, {"content-type": response.headers.get("content-type", "")}
            )

        routes = [
            Route("/api/unfinished-orders", list_unfinished),
            Route("/api/{path:path}", pass_on, methods=["GET", "POST"]),
        ]
        server = HttpServer(Starlette(routes=routes), "127.0.0.1", port := free_port())
        await server.start()
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            await server.stop(0)


@asynccontextmanager
async def storefront(stack: Stack, gateway: FaultyGateway) -> AsyncIterator[str]:
    """Serve a storefront in this process, and yield its address."""
    port = free_port()
    async with _orders_with_unfinished_ones(str(stack.urls["orders"])) as orders_url:
        config = Config(
            admin=Listen(port=free_port()),
            http=Http(port=port),
            gateway=HttpUpstream(url=gateway.url, timeout_seconds=5),
            notifications=HttpUpstream(url=str(stack.urls["notifications"]), timeout_seconds=5),
            orders=HttpUpstream(url=orders_url, timeout_seconds=5),
            cookies=Cookies(secrets_file=stack.environment("storefront")["MARKET_COOKIE_SECRETS_FILE"]),
        )
        async with build(config, Process()) as server:
            assert isinstance(server, HttpServer)
            await server.start()
            try:
                yield f"http://127.0.0.1:{port}"
            finally:
                await server.stop(0)
