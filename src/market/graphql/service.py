"""The use cases behind the nine root fields, and the products of a response's order lines.

Use cases return the upstream's JSON as bytes, not decoded. They raise NotFound or BadInput for arguments that no
upstream needs to see, and otherwise what the clients raise: FieldError and Unavailable.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct

from market.graphql.clients import OrdersClient, ProductsClient
from market.graphql.domain import FieldError, snake_case_keys
from market.kit.errors import BadInput, InputErrors, Problem
from market.kit.text import parse_path_id, parse_uuid

# Ids in one request to products, by the REST contract.
MAX_IDS = 100
# The REST response if none of the ids exists.
_EMPTY_PAGE = b'{"items":[],"total":0,"limit":0,"offset":0,"total_exact":true,"next":null,"suggested":false}'
# How often an update reads the product again because it was modified since.
_UPDATE_ATTEMPTS = 5
# Requests to products that one response makes concurrently for its order lines.
MAX_CONCURRENT_BATCHES = 4


@dataclass(frozen=True)
class Deps:
    """The clients of the use cases."""

    products: ProductsClient
    orders: OrdersClient


class _Image(Struct, frozen=True):
    image_url: str | None


class _Id(Struct, frozen=True):
    id: str


_decode_id = msgspec.json.Decoder(_Id).decode
_decode_image = msgspec.json.Decoder(_Image).decode


class ProductBatch(NamedTuple):
    """The result of one request for products: their ids, and the page's JSON or why there is none."""

    ids: list[str]
    page: bytes | Exception


async def get_product(deps: Deps, *, product_id: str, availability: bool = True, stock: bool = False) -> bytes:
    """Return the product, with `stock` if requested. Without `availability`, products does not look it up."""
    return await deps.products.get(parse_path_id("product", product_id), availability=availability, stock=stock)


async def list_products(
    deps: Deps,
    *,
    limit: int | None = None,
    offset: int | None = None,
    after: str | None = None,
    q: str | None = None,
    ids: list[str] | None = None,
    sort: str | None = None,
    availability: bool = True,
    stock: bool = False,
) -> bytes:
    """Return a page of products: those with the given ids, in that order, or those that match `q`, a full-text
    query."""
    if ids is not None and len(ids) > MAX_IDS:
        raise BadInput("ids", f"must have at most {MAX_IDS} ids, got {len(ids)}")
    if ids == []:
        for name, value in (("q", q), ("sort", sort), ("offset", offset or None), ("after", after)):
            if value is not None:
                raise BadInput(name, "must be absent if ids are given")
        return _EMPTY_PAGE
    errors = InputErrors()
    for i, product_id in enumerate(ids or ()):
        with errors:
            parse_uuid(f"ids[{i}]", product_id)
    errors.raise_collected()
    query = {
        "limit": limit,
        "offset": offset,
        "after": after,
        "q": q,
        "ids": None if ids is None else ",".join([str(UUID(product_id)) for product_id in ids]),
        "sort": sort,
        "availability": None if availability else "false",
        "stock": "true" if stock else None,
    }
    return await deps.products.list(query)


async def get_order(deps: Deps, *, order_id: str) -> bytes:
    """Return the order."""
    return await deps.orders.get(parse_path_id("order", order_id))


async def list_orders(
    deps: Deps,
    *,
    user: str | None = None,
    limit: int | None = None,
    offset: int | None = None,
    after: str | None = None,
    status: str | None = None,
    created_from: str | None = None,
    created_to: str | None = None,
) -> bytes:
    """Return a page of the user's orders, the newest first. `user`: None for the default of orders."""
    query = {
        "user": user,
        "limit": limit,
        "offset": offset,
        "after": after,
        "status": status,
        "created_from": created_from,
        "created_to": created_to,
    }
    return await deps.orders.list(query)


async def create_product(
    deps: Deps, *, product: dict[str, Any], idempotency_key: str | None = None, stock: bool = False
) -> bytes:
    """Create a product from a CreateProductInput and return it, with `stock` if requested."""
    created = await deps.products.create(_rest_body(product, nullable={"imageUrl"}), idempotency_key)
    return await _with_stock(deps, created) if stock else created


async def update_product(deps: Deps, *, product: dict[str, Any], stock: bool = False) -> bytes:
    """Replace a product's writable fields as `_update_product` does, and return it, with `stock` if requested."""
    updated = await _update_product(deps, product)
    return await _with_stock(deps, updated) if stock else updated


async def _with_stock(deps: Deps, written: bytes) -> bytes:
    """Read the product that was written again, with its stock. If that fails, return what was written."""
    try:
        return await deps.products.get(UUID(_decode_id(written).id), stock=True)
    except (FieldError, Problem):
        return written


async def _update_product(deps: Deps, product: dict[str, Any]) -> bytes:
    """Replace a product's writable fields by an UpdateProductInput and return it.

    An absent imageUrl or stock is left as it is, and a delivery is added to the stock; a null imageUrl removes the
    image. Raises FieldError with the code PRECONDITION_FAILED if the product does not have the expected version, or if
    it was modified by others at each of five attempts to keep its image.
    """
    product_id = parse_path_id("product", product["id"])
    body = _rest_body(product, nullable={"imageUrl"})
    expected = _entity_tag(body.pop("expected_version", None))
    # A stock take is not retried: units sold between two attempts would be back in stock. Neither is an update that
    # expects a version: the first attempt may have replaced it. A delivery is added once, by its id.
    idempotent = "stock" not in body and expected is None
    if "image_url" in body:
        return await deps.products.update(body, idempotent=idempotent, etag=expected)
    if expected is not None:
        # If the product does not have the expected version, the update fails, no matter which image was read.
        current, _ = await deps.products.get_version(product_id)
        body["image_url"] = _decode_image(current).image_url
        return await deps.products.update(body, idempotent=False, etag=expected)
    # PUT replaces the image, too. So it is read first, and written back only if nobody has changed the product since.
    for attempt in range(1, _UPDATE_ATTEMPTS + 1):
        current, etag = await deps.products.get_version(product_id)
        body["image_url"] = _decode_image(current).image_url
        try:
            return await deps.products.update(body, idempotent=idempotent, etag=etag)
        except FieldError as e:
            if e.extensions["code"] != "PRECONDITION_FAILED" or attempt == _UPDATE_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


async def delete_product(deps: Deps, *, product_id: str, expected_version: int | None = None) -> str:
    """Delete the product, if it has the expected version (None: any), and return its id."""
    parsed = parse_path_id("product", product_id)
    await deps.products.delete(parsed, etag=_entity_tag(expected_version))
    return str(parsed)


async def create_order(deps: Deps, *, order: dict[str, Any], idempotency_key: str | None = None) -> bytes:
    """Place an order from a CreateOrderInput and return it."""
    return await deps.orders.create(_rest_body(order), idempotency_key)


async def cancel_order(deps: Deps, *, order_id: str) -> bytes:
    """Cancel the order and return it as it is afterwards."""
    return await deps.orders.cancel(parse_path_id("order", order_id))


async def products_by_id(
    deps: Deps, ids: Iterable[str], max_products: int, *, availability: bool = True, stock: bool = False
) -> list[ProductBatch]:
    """Return the products with these ids, in batches of 100 distinct ids. Never raises: a batch holds its error.

    The ids beyond `max_products` are one batch, whose error is a BadInput.
    """
    distinct = list(dict.fromkeys(ids))
    excess = distinct[max_products:]
    del distinct[max_products:]
    batches = [distinct[i : i + MAX_IDS] for i in range(0, len(distinct), MAX_IDS)]
    semaphore = asyncio.Semaphore(MAX_CONCURRENT_BATCHES)

    async def fetch(batch: list[str]) -> ProductBatch:
        query = {"ids": ",".join(batch), "availability": None if availability else "false"}
        if stock:
            query["stock"] = "true"
        try:
            async with semaphore:
                return ProductBatch(batch, await deps.products.list(query))
        except Exception as e:
            return ProductBatch(batch, e)

    if len(batches) == 1 and not excess:
        return [await fetch(batches[0])]
    fetched = list(await asyncio.gather(*map(fetch, batches)))
    if excess:
        reason = (
            f"the order lines of one response may have at most {max_products} different products with their fields, "
            f"got {max_products + len(excess)}: select fewer orders"
        )
        fetched.append(ProductBatch(excess, BadInput("query", reason)))
    return fetched


def _entity_tag(version: int | None) -> str | None:
    """Return the entity tag of a version of a product, for `If-Match`."""
    return None if version is None else f'"{version}"'


def _rest_body(fields: dict[str, Any], nullable: frozenset[str] | set[str] = frozenset()) -> dict[str, Any]:
    """Return an input object as the body of a REST request. Null means absent, except in the `nullable` fields."""
    body: dict[str, Any] = snake_case_keys({k: v for k, v in fields.items() if v is not None or k in nullable})
    return body
