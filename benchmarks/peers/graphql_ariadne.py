"""A peer of the gateway in Ariadne: the published schema, with resolvers for the benchmark's queries, over the same
REST services.

Settings: PRODUCTS, ORDERS.    uvicorn graphql_ariadne:app --port 9004
"""

import os
from pathlib import Path

import aiohttp
from aiodataloader import DataLoader
from ariadne import ObjectType, QueryType, load_schema_from_path, make_executable_schema
from ariadne.asgi import GraphQL

query = QueryType()
order_item = ObjectType("OrderItem")
session: list[aiohttp.ClientSession] = []


async def get(url: str) -> dict:
    if not session:
        session.append(aiohttp.ClientSession())
    async with session[0].get(url) as response:
        return await response.json()


async def load_products(ids: list[str]) -> list[dict | None]:
    page = await get(f"{os.environ['PRODUCTS']}/api/product?ids={','.join(ids)}")
    found = {p["id"]: p for p in page["items"]}
    return [found.get(product_id) for product_id in ids]


@query.field("products")
async def products(*_, limit: int = 20, offset: int = 0, **__):
    return await get(f"{os.environ['PRODUCTS']}/api/product?limit={limit}&offset={offset}")


@query.field("orders")
async def orders(*_, user: str, limit: int = 100, offset: int = 0, **__):
    return await get(f"{os.environ['ORDERS']}/api/order?user={user}&limit={limit}&offset={offset}")


@order_item.field("product")
async def product(item, info):
    return await info.context["products"].load(item["product_id"])


def context(request, _data):
    return {"request": request, "products": DataLoader(load_products, max_batch_size=100)}


type_defs = load_schema_from_path(str(Path(__file__).parents[2] / "graphql" / "schema.graphql"))
app = GraphQL(make_executable_schema(type_defs, query, order_item, convert_names_case=True), context_value=context)
