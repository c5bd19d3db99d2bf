"""The gateway's wiring."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from market.graphql import api
from market.graphql.clients import OrdersClient, ProductsClient
from market.graphql.config import Config
from market.graphql.engine.executor import Executor
from market.graphql.graphiql.files import StaticFiles
from market.graphql.memory.budget import MemoryBudget
from market.graphql.service import Deps
from market.kit.auth.authenticator import authenticator
from market.kit.http.admission import Admission
from market.kit.http.client import HttpClient
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import Process


@dataclass(frozen=True)
class Clients:
    """The gateway's upstreams. Tests pass their own to `build`."""

    products: ProductsClient
    orders: OrdersClient


@asynccontextmanager
async def build(config: Config, process: Process, clients: Clients | None = None) -> AsyncIterator[HttpServer]:
    """Wire the gateway and yield its server. It owns no store, so it is ready as soon as it serves."""
    # For products and orders, the caller is the client, not the gateway: by address and, if signed in, by token.
    header = config.http.forwarded_header
    async with (
        HttpClient("products", config.products, forwarded_header=header, forward_token=True) as products,
        HttpClient("orders", config.orders, forwarded_header=header, forward_token=True) as orders,
        authenticator(config.auth) as authentication,
    ):
        clients = clients or Clients(ProductsClient(products), OrdersClient(orders))
        deps = Deps(products=clients.products, orders=clients.orders)
        executor = Executor(deps, config.limits, config.documents, config.trusted_documents)
        memory = MemoryBudget(config.memory)
        admission = Admission(config.admission, unit="items")
        files = StaticFiles.load(config)
        app = api.application(
            executor, memory, admission, files, config.http, process.tracer, process.health, authentication
        )
        yield HttpServer(app, config.http.host, config.http.port, limits=config.http)
