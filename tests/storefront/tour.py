"""The tour: a browser that goes through every page of the shop, and the shop that it goes through."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from market_dev.stack.stack import Stack
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from market.kit.config import HttpUpstream, Listen
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import Process
from market.storefront.app import build
from market.storefront.config import Config, Cookies, Pages
from tests.storefront.faulty_gateway import FaultyGateway
from tests.storefront.visitor import Shop
from tests.support.browser import Tab
from tests.support.ports import free_port

_ATTEMPTS = 5


class PageNotShown(Exception):
    """The page that is open is not the one that the stop goes on from, such as an error of the shop."""


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
        await self.leave(f"location.assign({json.dumps(self.url + path)})")

    async def send(self, action: str, button: str = "", **values: str) -> None:
        """Send the form with that address, whatever the browser thinks of its values.

        button: the value of the button named `action`.
        """
        fields = {**values, **({"action": button} if button else {})}
        await self.leave(f"""(() => {{
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
        response_type = await self.tab.evaluate(f"""(async () => {{
            const form_token = document.querySelector('[name=form_token]').value;
            const body = new URLSearchParams({{...{json.dumps(fields)}, form_token}});
            return (await fetch("/basket", {{method: "POST", body, redirect: "manual"}})).type;
        }})()""")
        assert response_type == "opaqueredirect", response_type

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
            try:
                await stop.go(self)
            except PageNotShown:
                continue
            if await self.tab.evaluate(f"document.querySelector({json.dumps(stop.shows)}) !== null"):
                return
        raise AssertionError(
            f"{stop.name} does not show {stop.shows}: {await self.tab.evaluate('document.body.innerText')}"
        )

    async def leave(self, script: str) -> None:
        """Run a script that leads to another page, and wait for that page.

        Raises PageNotShown if the script fails, because the page lacks what the script uses.
        """
        await self.tab.evaluate("window.isLeft = true; window.isStuck = false")
        await self.tab.evaluate(f"(async () => {{ try {{ await {script} }} catch {{ window.isStuck = true }} }})()")
        await self.tab.until(
            "window.isStuck"
            " || !window.isLeft && document.readyState === 'complete' && document.querySelector('h1') !== null"
        )
        if await self.tab.evaluate("window.isStuck === true"):
            raise PageNotShown(await self.tab.evaluate("document.body.innerText"))


@dataclass(frozen=True)
class Stop:
    """A page in one state.

    go: leads there. shows: a selector of what only this state shows. off: the parts of the shop that are switched off.
    """

    name: str
    go: Callable[[Tour], Awaitable[None]]
    shows: str = "h1"
    off: frozenset[str] = frozenset()


def at(path: str) -> Callable[[Tour], Awaitable[None]]:
    """Return a way to the path, in which {NAME} is a product's id."""
    return lambda tour: tour.go(path.format_map(tour.products))


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
            http=Pages(port=port),
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
