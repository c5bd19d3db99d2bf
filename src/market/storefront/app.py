"""The storefront's wiring."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from market.kit.auth.config import Auth
from market.kit.config import HttpUpstream
from market.kit.http.client import HttpClient
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import Process
from market.storefront import api, service
from market.storefront.basket.basket import Baskets
from market.storefront.clients import GatewayClient, NotificationsClient, OrdersClient, RestClient
from market.storefront.config import Config
from market.storefront.importing.importer import Importer
from market.storefront.pages.listing import Listing
from market.storefront.pages.visit import Site
from market.storefront.rendering.assets import Assets
from market.storefront.rendering.html import Renderer
from market.storefront.service import Deps
from market.storefront.session.cookies import CookieJar
from market.storefront.session.secrets import read_secrets
from market.storefront.session.session import Sessions
from market.storefront.texts import languages

if TYPE_CHECKING:
    from market.storefront.sign_in.sign_in import SignIn


@dataclass(frozen=True)
class Clients:
    """The storefront's upstreams. Tests pass their own to `build`."""

    gateway: GatewayClient
    notifications: NotificationsClient
    orders: OrdersClient | None = None


@asynccontextmanager
async def build(config: Config, process: Process, clients: Clients | None = None) -> AsyncIterator[HttpServer]:
    """Wire the storefront and yield its server. It owns no store, so it is ready as soon as it serves."""
    secure = config.public_url is not None and config.public_url.startswith("https:")
    cookies = CookieJar(read_secrets(config.cookies.secrets_file), secure=secure)
    async with AsyncExitStack() as stack:
        clients = clients or await _clients(config, stack)
        deps = Deps(gateway=clients.gateway, notifications=clients.notifications, orders=clients.orders)
        site = Site(
            deps=deps,
            listing=Listing(partial(service.list_all_products, deps)),
            renderer=Renderer(languages.load(), Assets(), secure=secure, sign_out_origin=_origin(config.auth)),
            cookies=cookies,
            sessions=Sessions(cookies),
            baskets=Baskets(cookies),
            importer=Importer(clients.gateway, cookies, config.imports, max_body_bytes=config.http.max_body_bytes),
            public_url=config.public_url,
            sign_in=await _sign_in(config, cookies, process, stack),
        )
        app = api.application(site, config.http, process.tracer, process.health)
        yield HttpServer(app, config.http.host, config.http.port, limits=config.http)


async def _clients(config: Config, stack: AsyncExitStack) -> Clients:
    async def http(upstream: str, upstream_config: HttpUpstream) -> HttpClient:
        # For the upstreams, the caller is the visitor, not the storefront: by address and, if signed in, by token.
        header = config.http.forwarded_header
        client = HttpClient(upstream, upstream_config, forwarded_header=header, forward_token=True)
        return await stack.enter_async_context(client)

    return Clients(
        GatewayClient(await http("graphql", config.gateway)),
        NotificationsClient(RestClient(await http("notifications", config.notifications))),
        None if config.orders is None else OrdersClient(RestClient(await http("orders", config.orders))),
    )


async def _sign_in(config: Config, cookies: CookieJar, process: Process, stack: AsyncExitStack) -> SignIn | None:
    """Return the sign-in at the issuer; None in mode `open`."""
    if config.sign_in is None or not config.auth.is_required:
        return None
    # Imported here, because loading the cryptography library takes a tenth of a second and 12 MB.
    from market.storefront.sign_in.sign_in import sign_in

    def clock() -> float:
        return process.clock().timestamp()

    return await stack.enter_async_context(sign_in(config.auth, config.sign_in, cookies, clock=clock))


def _origin(auth: Auth) -> str | None:
    """Return scheme and host of the issuer; None in mode `open`."""
    if not auth.is_required:
        return None
    parts = urlsplit(auth.issuer or "")
    return f"{parts.scheme}://{parts.netloc}"
