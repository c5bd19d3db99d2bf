"""The gateway's wiring."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from market.graphql import api
from market.graphql.clients import Rest
from market.graphql.config import Config
from market.graphql.engine import resolvers as schema
from market.graphql.engine.documents import Documents
from market.graphql.engine.executor import Executor
from market.graphql.graphiql.files import Files
from market.graphql.service import Shop
from market.kit.http.client import HttpClient
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import Process


@asynccontextmanager
async def build(config: Config, process: Process, shop: Shop | None = None) -> AsyncIterator[HttpServer]:
    """The gateway. It owns no store, so it is ready once it serves."""
    async with HttpClient("products", config.products) as products, HttpClient("orders", config.orders) as orders:
        shop = shop or Shop(Rest(products, "products", "/api/product"), Rest(orders, "orders", "/api/order"))
        published = schema.load()
        documents = Documents(published, config.limits, config.documents)
        executor = Executor(published, shop, list_items=config.limits.list_items, compiled=config.compile)
        app = api.application(documents, executor, Files.load(), config.http, process.tracer, process.health)
        yield HttpServer(app, config.http.host, config.http.port)
