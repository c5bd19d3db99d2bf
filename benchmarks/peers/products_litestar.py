"""The second peer of products: Litestar, Advanced Alchemy (asyncpg), msgspec and redis-py, as documented.

Reads the same table and the same cache as ours. Settings in the environment: DATABASE_URL, REDIS_URL, INVENTORY.
    uvicorn products_litestar:app --port 9005
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

import grpc.aio
import msgspec
from advanced_alchemy.extensions.litestar import (
    AsyncSessionConfig,
    EngineConfig,
    SQLAlchemyAsyncConfig,
    SQLAlchemyPlugin,
    base,
    filters,
    providers,
    repository,
    service,
)
from litestar import Litestar, get
from litestar.datastructures import State
from litestar.logging import LoggingConfig
from litestar.params import Parameter
from redis.asyncio import Redis
from sqlalchemy.orm import Mapped, mapped_column

from market.contracts import inventory_pb2, inventory_pb2_grpc


class ProductRow(base.DefaultBase):
    __tablename__ = "products"
    id: Mapped[UUID] = mapped_column(primary_key=True)
    name: Mapped[str]
    description: Mapped[str]
    price: Mapped[Decimal]
    currency: Mapped[str]
    image_url: Mapped[str | None]
    version: Mapped[int] = mapped_column(default=1)
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]


class ProductService(service.SQLAlchemyAsyncRepositoryService[ProductRow]):
    class Repository(repository.SQLAlchemyAsyncRepository[ProductRow]):
        model_type = ProductRow

    repository_type = Repository


class Product(msgspec.Struct):
    id: UUID
    name: str
    description: str
    price: Decimal
    currency: str
    image_url: str | None
    version: int
    created_at: datetime
    updated_at: datetime
    available: bool | None = None


class Page(msgspec.Struct):
    items: list[Product]
    total: int
    limit: int
    offset: int


async def availability(state: State, ids: list[UUID]) -> dict[UUID, bool]:
    """Availability from the cache; what is missing comes from inventory in one call and is cached for five seconds."""
    cached = await state.redis.mget([f"avail:{product_id}" for product_id in ids])
    known = {product_id: value == b"1" for product_id, value in zip(ids, cached, strict=True) if value is not None}
    missing = [product_id for product_id in ids if product_id not in known]
    if missing:
        response = await state.inventory.CheckAvaliable(
            inventory_pb2.CheckAvaliableRequest(product_ids=map(str, missing)), timeout=1
        )
        async with state.redis.pipeline(transaction=False) as pipe:
            for item in response.items:
                known[UUID(item.product_id)] = item.available
                pipe.set(f"avail:{item.product_id}", "1" if item.available else "0", ex=5, nx=True)
            await pipe.execute()
    return known


@get("/api/product/{product_id:uuid}")
async def get_product(product_id: UUID, state: State, products: ProductService) -> Product:
    # A product that does not exist raises NotFoundError, which the plugin turns into 404.
    product = products.to_schema(await products.get(product_id), schema_type=Product)
    product.available = (await availability(state, [product_id])).get(product_id)
    return product


@get("/api/product")
async def list_products(
    state: State,
    products: ProductService,
    limit: Annotated[int, Parameter(ge=1, le=100)] = 20,
    offset: Annotated[int, Parameter(ge=0)] = 0,
    ids: str | None = None,
) -> Page:
    if ids is not None:
        wanted = [UUID(product_id) for product_id in ids.split(",")]
        found = products.to_schema(await products.list(ProductRow.id.in_(wanted)), schema_type=Product).items
        by_id = {product.id: product for product in found}
        items = [by_id[product_id] for product_id in wanted if product_id in by_id]
        return Page(items=items, total=len(items), limit=len(wanted), offset=0)
    rows, total = await products.list_and_count(
        filters.OrderBy("created_at", "desc"), filters.OrderBy("id", "desc"), filters.LimitOffset(limit, offset)
    )
    items = list(products.to_schema(rows, schema_type=Product).items)
    known = await availability(state, [product.id for product in items])
    for product in items:
        product.available = known.get(product.id)
    return Page(items=items, total=total, limit=limit, offset=offset)


@asynccontextmanager
async def clients(app: Litestar) -> AsyncIterator[None]:
    app.state.redis = Redis.from_url(os.environ["REDIS_URL"])
    channel = grpc.aio.insecure_channel(os.environ["INVENTORY"])
    app.state.inventory = inventory_pb2_grpc.InventoryStub(channel)
    yield
    await channel.close()
    await app.state.redis.aclose()


database = SQLAlchemyAsyncConfig(
    connection_string=os.environ["DATABASE_URL"],
    engine_config=EngineConfig(pool_size=16, max_overflow=0),
    session_config=AsyncSessionConfig(expire_on_commit=False),
)
app = Litestar(
    route_handlers=[get_product, list_products],
    dependencies=providers.create_service_dependencies(ProductService, "products", config=database),
    lifespan=[clients],
    plugins=[SQLAlchemyPlugin(config=database)],
    logging_config=LoggingConfig(root={"level": "WARNING", "handlers": ["queue_listener"]}),
    openapi_config=None,
)
