"""The storefront's wiring."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from market.kit.http.client import HttpClient
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import Process
from market.storefront import api
from market.storefront.basket.basket import Baskets
from market.storefront.clients import GatewayClient
from market.storefront.config import Config
from market.storefront.pages.visit import Site
from market.storefront.rendering.assets import Assets
from market.storefront.rendering.html import Renderer
from market.storefront.service import Deps
from market.storefront.session.cookies import CookieJar
from market.storefront.session.session import Sessions
from market.storefront.texts import languages


@dataclass(frozen=True)
class Clients:
    """The storefront's upstream. Tests pass their own to `build`."""

    gateway: GatewayClient


@asynccontextmanager
async def build(config: Config, process: Process, clients: Clients | None = None) -> AsyncIterator[HttpServer]:
    """Wire the storefront and yield its server. It owns no store, so it is ready as soon as it serves."""
    secure = config.public_url is not None and config.public_url.startswith("https:")
    # The gateway must see the visitor, not the storefront, as the caller: the address, and the token of who signs in.
    header = config.http.forwarded_header
    async with HttpClient("graphql", config.gateway, forwarded_header=header, forward_token=True) as gateway:
        clients = clients or Clients(GatewayClient(gateway))
        cookies = CookieJar(config.cookies.secrets, secure=secure)
        site = Site(
            deps=Deps(gateway=clients.gateway),
            renderer=Renderer(languages.load(), Assets(), secure=secure),
            cookies=cookies,
            sessions=Sessions(cookies),
            baskets=Baskets(cookies),
            public_url=config.public_url,
            is_open=not config.auth.is_required,
        )
        app = api.application(site, config.http, process.tracer, process.health)
        yield HttpServer(app, config.http.host, config.http.port, limits=config.http)
