"""The use cases that write. They keep two stores in step: the table of products, and the stock in inventory.

The stock is set first. After a crash in between there is the stock of a product that does not exist, which nobody can
buy, or the new stock of a product with its old fields; the caller repeats the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from market.kit.errors import IdempotencyKeyReused, NotFound, Unavailable
from market.kit.faults import Faults
from market.kit.ids import new_id
from market.products.availability.lookup import AvailabilityLookup
from market.products.clients import InventoryClient
from market.products.domain import Draft, ProductModified, StoredProduct
from market.products.store import ProductRepository


@dataclass(frozen=True)
class Deps:
    """What the use cases work with."""

    products: ProductRepository
    inventory: InventoryClient
    availability: AvailabilityLookup
    faults: Faults | None = None


class Creation(Struct, frozen=True):
    """The product; `replayed` if an earlier request with the same Idempotency-Key has created it."""

    stored: StoredProduct
    replayed: bool


async def create(deps: Deps, draft: Draft, key: str | None) -> Creation:
    """Create the product, or return the one that was created with the same Idempotency-Key.

    Each attempt has a new product id, which must not be derived from the key: a late repeat would then set the stock of
    a product that is being sold already. Key and product are one row, so of two attempts with one key one inserts it;
    the other leaves at most the stock of a product that does not exist.

    Raises IdempotencyKeyReused, DeadlineExceeded, Unavailable.
    """
    if key is not None and (stored := await _find_replay(deps, draft, key)):
        return Creation(stored, replayed=True)
    product_id = new_id()
    available = await _set_stock(deps, product_id, draft.stock or 0)
    if stored := await deps.products.insert(product_id, draft, key):
        return Creation(_with_available(stored, available), replayed=False)
    assert key is not None
    if stored := await _find_replay(deps, draft, key):
        return Creation(stored, replayed=True)
    raise Unavailable("the product created with this Idempotency-Key has just been deleted")


async def _find_replay(deps: Deps, draft: Draft, key: str) -> StoredProduct | None:
    found = await deps.products.get_by_key(key)
    if found is None:
        return None
    if found.request_hash != draft.fingerprint():
        raise IdempotencyKeyReused
    return await look_up_availability(deps, found.stored)


async def replace_product(deps: Deps, product_id: UUID, draft: Draft, versions: Sequence[int] | None) -> StoredProduct:
    """Replace the writable fields of the product, if it has one of the versions (None: any), and return it.

    Raises NotFound, ProductModified, DeadlineExceeded, Unavailable.
    """
    # Before the stock is set, and again in the UPDATE: another request may come in between.
    _check_version(product_id, await deps.products.get(product_id), versions)
    available = None if draft.stock is None else await _set_stock(deps, product_id, draft.stock)
    stored = await deps.products.update(product_id, draft, versions)
    if stored is None:
        _check_version(product_id, await deps.products.get(product_id), versions)
        raise ProductModified(product_id)
    return await look_up_availability(deps, stored) if available is None else _with_available(stored, available)


def _check_version(product_id: UUID, stored: StoredProduct | None, versions: Sequence[int] | None) -> None:
    if stored is None:
        raise NotFound("product", product_id)
    if versions is not None and stored.version not in versions:
        raise ProductModified(product_id)


async def delete(deps: Deps, product_id: UUID) -> None:
    """Delete the product. Its stock stays in inventory, so that reservations can still be released.

    Raises NotFound, DeadlineExceeded, Unavailable.
    """
    if not await deps.products.delete(product_id):
        raise NotFound("product", product_id)


async def _set_stock(deps: Deps, product_id: UUID, quantity: int) -> bool:
    """Set the stock in inventory and in the cache; return whether the product can be sold."""
    if deps.faults:
        await deps.faults.reach("products.before-set-stock")
    quantity = await deps.inventory.set_stock(product_id, quantity)
    if deps.faults:
        await deps.faults.reach("products.after-set-stock")
    return await deps.availability.store(product_id, quantity)


async def look_up_availability(deps: Deps, stored: StoredProduct) -> StoredProduct:
    """Return the product with `available` as it is now; None if that is unknown."""
    product_id = str(stored.product.id)
    return _with_available(stored, (await deps.availability.get_many([product_id])).get(product_id))


def _with_available(stored: StoredProduct, available: bool | None) -> StoredProduct:
    return StoredProduct(replace(stored.product, available=available), stored.version)
