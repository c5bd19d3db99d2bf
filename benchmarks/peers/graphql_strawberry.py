"""A peer of the gateway in Strawberry: the benchmark's queries, over the same REST services.

Settings: PRODUCTS, ORDERS.    uvicorn graphql_strawberry:app --port 9003
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
import strawberry
from fastapi import FastAPI
from strawberry.dataloader import DataLoader
from strawberry.fastapi import GraphQLRouter
from strawberry.schema.config import StrawberryConfig


@strawberry.type
class Product:
    id: strawberry.ID
    name: str
    description: str
    price: str
    currency: str
    image_url: str | None
    available: bool | None
    created_at: str
    updated_at: str


@strawberry.type
class ProductPage:
    items: list[Product]
    total: int
    limit: int
    offset: int


@strawberry.type
class OrderItem:
    product_id: strawberry.ID
    name: str
    quantity: int
    unit_price: str

    @strawberry.field
    async def product(self, info: strawberry.Info) -> Product | None:
        return await info.context["products"].load(self.product_id)


@strawberry.type
class Order:
    id: strawberry.ID
    user: str
    email: str | None
    items: list[OrderItem]
    total: str
    currency: str
    status: str
    created_at: str


@strawberry.type
class OrderPage:
    items: list[Order]
    total: int
    limit: int
    offset: int


async def get(url: str) -> dict:
    async with http.get(url) as response:
        return await response.json()


async def load_products(ids: list[str]) -> list[Product | None]:
    page = await get(f"{os.environ['PRODUCTS']}/api/product?ids={','.join(ids)}")
    found = {p["id"]: Product(**p) for p in page["items"]}
    return [found.get(product_id) for product_id in ids]


@strawberry.type
class Query:
    @strawberry.field
    async def products(self, limit: int = 20, offset: int = 0) -> ProductPage:
        page = await get(f"{os.environ['PRODUCTS']}/api/product?limit={limit}&offset={offset}")
        return ProductPage(**{**page, "items": [Product(**p) for p in page["items"]]})

    @strawberry.field
    async def orders(self, user: str, limit: int = 100, offset: int = 0) -> OrderPage:
        page = await get(f"{os.environ['ORDERS']}/api/order?user={user}&limit={limit}&offset={offset}")
        items = [Order(**{**o, "items": [OrderItem(**i) for i in o["items"]]}) for o in page["items"]]
        return OrderPage(**{**page, "items": items})


async def context() -> dict:
    return {"products": DataLoader(load_fn=load_products, max_batch_size=100)}


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    global http
    async with aiohttp.ClientSession() as http:
        yield


schema = strawberry.Schema(Query, config=StrawberryConfig(auto_camel_case=True))
app = FastAPI(lifespan=lifespan)
app.include_router(GraphQLRouter(schema, context_getter=context), prefix="/graphql")
