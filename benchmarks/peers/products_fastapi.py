"""The peer of products: FastAPI, SQLAlchemy (async, asyncpg) and redis-py, in the style of their documentation.

Reads the same table and the same cache as ours. Settings in the environment: DATABASE_URL, REDIS_URL, INVENTORY.
    uvicorn products_fastapi:app --port 9001
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import Annotated
from uuid import UUID

import grpc.aio
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from pydantic import BaseModel, ConfigDict, field_serializer
from redis.asyncio import Redis
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from market.contracts import inventory_pb2, inventory_pb2_grpc


class Base(DeclarativeBase):
    pass


class ProductRow(Base):
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


class Product(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: UUID
    name: str
    description: str
    price: Decimal
    currency: str
    image_url: str | None
    available: bool | None = None
    version: int
    created_at: datetime
    updated_at: datetime

    @field_serializer("price")
    def two_places(self, price: Decimal) -> str:
        return f"{price:.2f}"


class Page(BaseModel):
    items: list[Product]
    total: int
    limit: int
    offset: int


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    engine = create_async_engine(os.environ["DATABASE_URL"], pool_size=16, max_overflow=0)
    app.state.sessions = async_sessionmaker(engine, expire_on_commit=False)
    app.state.redis = Redis.from_url(os.environ["REDIS_URL"])
    app.state.channel = grpc.aio.insecure_channel(os.environ["INVENTORY"])
    app.state.inventory = inventory_pb2_grpc.InventoryStub(app.state.channel)
    yield
    await app.state.channel.close()
    await app.state.redis.aclose()
    await engine.dispose()


app = FastAPI(lifespan=lifespan)


async def session(request: Request) -> AsyncIterator[AsyncSession]:
    async with request.app.state.sessions() as s:
        yield s


Session = Annotated[AsyncSession, Depends(session)]


async def availability(state, ids: list[UUID]) -> dict[UUID, bool]:
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


@app.get("/api/product/{product_id}")
async def get_product(product_id: UUID, request: Request, session: Session) -> Product:
    row = await session.get(ProductRow, product_id)
    if row is None:
        raise HTTPException(404, "no such product")
    product = Product.model_validate(row)
    product.available = (await availability(request.app.state, [product_id])).get(product_id)
    return product


@app.get("/api/product")
async def list_products(
    request: Request,
    session: Session,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    offset: Annotated[int, Query(ge=0)] = 0,
    ids: str | None = None,
) -> Page:
    query = select(ProductRow)
    if ids is not None:
        wanted = [UUID(product_id) for product_id in ids.split(",")]
        by_id = {row.id: row for row in (await session.scalars(query.where(ProductRow.id.in_(wanted)))).all()}
        items = [Product.model_validate(by_id[i]) for i in wanted if i in by_id]
        return Page(items=items, total=len(items), limit=len(wanted), offset=0)
    total = await session.scalar(select(func.count()).select_from(ProductRow)) or 0
    rows = (
        await session.scalars(
            query.order_by(ProductRow.created_at.desc(), ProductRow.id.desc()).limit(limit).offset(offset)
        )
    ).all()
    items = [Product.model_validate(row) for row in rows]
    known = await availability(request.app.state, [p.id for p in items])
    for product in items:
        product.available = known.get(product.id)
    return Page(items=items, total=total, limit=limit, offset=offset)
