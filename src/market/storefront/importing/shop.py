"""Reading and writing the products of the shop for an import."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

from market.storefront.clients import FieldRefused, GatewayClient
from market.storefront.documents import desk_importing as documents
from market.storefront.importing import rows
from market.storefront.importing.rows import Row

# A search for a code matches its words, so it may find others, too: 10 also finds "10 B". The oldest are compared.
_MAX_FOUND = 20
# The number of rows that one request looks up.
LOOKUP_SIZE = documents.FIND_PRODUCTS.count("products(")


class Found(Struct, frozen=True, rename="camel"):
    """A product of the shop."""

    id: str
    name: str
    description: str
    price: str
    currency: str
    version: int
    image_url: str | None = None


class _Page(Struct, frozen=True):
    items: tuple[Found, ...]


async def find(gateway: GatewayClient, wanted: Sequence[Row]) -> list[Found | None]:
    """Return the product of each row, or None. `wanted`: at most LOOKUP_SIZE rows. Raises Unavailable."""
    phrases = [rows.search_phrase(row.code) for row in wanted]
    # The document has a fixed number of searches.
    padded = phrases + phrases[-1:] * (LOOKUP_SIZE - len(phrases))
    variables = {f"q{i}": phrase for i, phrase in enumerate(padded)}
    pages = await gateway.execute_all(documents.FIND_PRODUCTS, {**variables, "limit": _MAX_FOUND}, _Page)
    return [_first(pages[f"p{i}"].items, row.code) for i, row in enumerate(wanted)]


def _first(products: Sequence[Found], code: str) -> Found | None:
    ending = rows.ending(code)
    return next((product for product in products if product.description.endswith(ending)), None)


def differences(row: Row, product: Found) -> dict[str, str | None]:
    """Return the fields that differ between row and product, with the product's values.

    The stock is not compared, because sales have changed it since the file was written.
    """
    fields = ("name", "description", "price", "currency", *(("image_url",) if row.image_url is not None else ()))
    return {field: getattr(product, field) for field in fields if getattr(product, field) != getattr(row, field)}


async def create(gateway: GatewayClient, row: Row) -> Found:
    """Create the product, or return the one that was created with the row's key. Raises FieldRefused, Unavailable."""
    variables = {"input": {**_fields(row), "stock": row.stock}, "key": rows.creation_key(row.code)}
    return await gateway.execute(documents.CREATE_PRODUCT, variables, Found)


async def update(gateway: GatewayClient, row: Row, product_id: str, version: int) -> Found:
    """Change the product if it has that version. Raises NotFound, FieldRefused, Unavailable."""
    variables = {"input": {"id": product_id, "expectedVersion": version, **_fields(row)}}
    # Safe to repeat, because of the version.
    return await gateway.execute(documents.UPDATE_PRODUCT, variables, Found)


async def get(gateway: GatewayClient, product_id: str) -> Found:
    """Return the product. Raises NotFound, Unavailable."""
    return await gateway.execute(documents.GET_PRODUCT, {"id": product_id}, Found)


def key_is_used(error: FieldRefused) -> bool:
    """Return whether the row's key was used before, for a product with other values."""
    return any(field == "idempotencyKey" for field, _ in error.fields)


def is_modified(error: FieldRefused) -> bool:
    """Return whether the product does not have the expected version."""
    return error.refusal == "PRECONDITION_FAILED"


def _fields(row: Row) -> dict[str, str]:
    fields = {"name": row.name, "description": row.description, "price": row.price, "currency": row.currency}
    return fields if row.image_url is None else {**fields, "imageUrl": row.image_url}
