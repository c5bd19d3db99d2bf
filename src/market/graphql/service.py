"""The nine use cases and the join. Each takes its GraphQL arguments and answers the neighbour's JSON."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from market.graphql.clients import Rest
from market.graphql.domain import snake_keys
from market.kit.errors import BadInput
from market.kit.text import parse_path_id, parse_uuid

# Ids in one call to products, and calls of one answer's join under way at once.
BATCH = 100
JOINS_UNDER_WAY = 4
ORDER_SECONDS = 10.0
OTHER_SECONDS = 3.0
# The pages' limits of the REST contract: what they are where absent, and at most.
PAGES = {"products": (20, 100), "orders": (100, 1000)}


class Ask:
    """One request's allowance of things on pages; the whole request shares it."""

    def __init__(self, list_items: int) -> None:
        self._most = list_items
        self._left = list_items

    def take(self, root: str, args: dict[str, Any]) -> None:
        """Takes what the root field's page may hold, if it has one. Raises BadInput."""
        if root not in PAGES:
            return
        default, most = PAGES[root]
        ids, limit = args.get("ids"), args.get("limit")
        wanted = len(ids) if ids is not None else default if limit is None else limit
        # A limit out of range is the neighbour's to refuse, in better words.
        self._left -= min(max(wanted, 1), most)
        if self._left < 0:
            raise BadInput("limit", f"the pages of one request may have {self._most} items together")


class Shop:
    """The shop behind the gateway. What it answers is REST's JSON, unread."""

    def __init__(self, products: Rest, orders: Rest) -> None:
        self._products = products
        self._orders = orders

    async def product(self, *, id: str, availability: bool = True) -> bytes:
        """Without `availability` products need not look it up."""
        return await self._products.get(parse_path_id("product", id), "" if availability else "?availability=false")

    async def products(
        self,
        *,
        limit: int | None = None,
        offset: int | None = None,
        q: str | None = None,
        ids: list[str] | None = None,
        sort: str | None = None,
        availability: bool = True,
    ) -> bytes:
        """Without `availability` products need not look it up."""
        wanted = None
        if ids is not None:
            if len(ids) > BATCH:
                raise BadInput("ids", f"must have at most {BATCH} ids")
            wanted = ",".join(str(parse_uuid(f"ids[{i}]", id)) for i, id in enumerate(ids))
        query = {
            "limit": limit,
            "offset": offset,
            "q": q,
            "ids": wanted,
            "sort": sort,
            "availability": None if availability else "false",
        }
        return await self._products.list(query)

    async def order(self, *, id: str) -> bytes:
        return await self._orders.get(parse_path_id("order", id))

    async def orders(
        self, *, user: str, limit: int | None = None, offset: int | None = None, status: str | None = None
    ) -> bytes:
        return await self._orders.list({"user": user, "limit": limit, "offset": offset, "status": status})

    async def create_product(self, *, input: dict[str, Any], idempotency_key: str | None = None) -> bytes:
        return await self._products.create(_body(input, {"imageUrl"}), idempotency_key, seconds=OTHER_SECONDS)

    async def update_product(self, *, input: dict[str, Any]) -> bytes:
        parse_path_id("product", input["id"])
        body = _body(input, {"imageUrl"})
        # A stock-take is not repeated: what was sold between the two would come back.
        return await self._products.update(body, idempotent="stock" not in body)

    async def delete_product(self, *, id: str) -> str:
        product = parse_path_id("product", id)
        # Not repeated: the second would say 404 of what the first has deleted.
        await self._products.delete(product, idempotent=False)
        return str(product)

    async def create_order(self, *, input: dict[str, Any], idempotency_key: str | None = None) -> bytes:
        return await self._orders.create(_body(input, set()), idempotency_key, seconds=ORDER_SECONDS)

    async def delete_order(self, *, id: str) -> bytes:
        order = parse_path_id("order", id)
        await self._orders.delete(order, idempotent=True)
        return await self._orders.get(order)

    async def joined(
        self, ids: Iterable[str], *, availability: bool = True
    ) -> list[tuple[list[str], bytes | Exception]]:
        """The products of an answer, by batches of 100 distinct ids: each with the page's JSON, or why there is none."""
        distinct = list(dict.fromkeys(ids))
        batches = [distinct[i : i + BATCH] for i in range(0, len(distinct), BATCH)]
        turn = asyncio.Semaphore(JOINS_UNDER_WAY)

        async def one(batch: list[str]) -> tuple[list[str], bytes | Exception]:
            query = {"ids": ",".join(batch), "availability": None if availability else "false"}
            try:
                async with turn:
                    return batch, await self._products.list(query)
            except Exception as e:
                return batch, e

        if len(batches) == 1:
            return [await one(batches[0])]
        return list(await asyncio.gather(*map(one, batches)))


def _body(input: dict[str, Any], nullable: set[str]) -> dict[str, Any]:
    """The input as REST takes it: a null stands for absent, but in the fields where null is a value."""
    body: dict[str, Any] = snake_keys({k: v for k, v in input.items() if v is not None or k in nullable})
    return body
