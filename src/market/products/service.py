"""The use cases that write. Products has two stores to keep in step: its own table, and inventory's stock.

Stock is set first. A crash in between leaves a stock row without a product, which nobody can buy from, or new
stock beside an old product row; the caller sends it again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol
from uuid import UUID

from msgspec import Struct
from msgspec.structs import replace

from market.kit.errors import IdempotencyKeyReused, NotFound, Unavailable
from market.kit.faults import Faults
from market.kit.ids import new_id
from market.kit.postgres import Pool
from market.products import store
from market.products.availability import Availability
from market.products.domain import Changed, Draft, Stored


class Stock(Protocol):
    async def set_stock(self, id: UUID, quantity: int, /) -> int: ...


class Shop(Struct, frozen=True):
    """What the use cases work with."""

    db: Pool
    stock: Stock
    availability: Availability
    faults: Faults | None = None


async def create(shop: Shop, draft: Draft, key: str | None) -> tuple[Stored, bool]:
    """The new product, and False; or the one that this key has made before, and True.

    Each attempt mints an id of its own. It must not be derived from the key: a late repeat would then set the stock
    of a product that is already being sold. Key and product are one row, so of two attempts with one key one inserts,
    and the other leaves at most a stock row that no product refers to.

    Raises IdempotencyKeyReused, Unavailable.
    """
    if key is not None and (made := await _replayed(shop, draft, key)):
        return made, True
    id = new_id()
    available = await _set_stock(shop, id, draft.stock or 0)
    if stored := await store.insert(shop.db, id, draft, key):
        return known(stored, available), False
    assert key is not None
    if made := await _replayed(shop, draft, key):
        return made, True
    raise Unavailable("the product made under this key has just been deleted")


async def _replayed(shop: Shop, draft: Draft, key: str) -> Stored | None:
    found = await store.find_by_key(shop.db, key)
    if found is None:
        return None
    stored, request_hash = found
    if request_hash != draft.fingerprint():
        raise IdempotencyKeyReused
    return await looked_up(shop, stored)


async def change(shop: Shop, id: UUID, draft: Draft, versions: Sequence[int] | None) -> Stored:
    """The product after the change. `versions`: those that the caller knows; None: any.

    Raises NotFound, Changed, Unavailable.
    """
    # Before the stock is touched, and again in the UPDATE: someone may come in between.
    _check(id, (await store.find(shop.db, [id]))[0], versions)
    available = None if draft.stock is None else await _set_stock(shop, id, draft.stock)
    stored = await store.update(shop.db, id, draft, versions)
    if stored is None:
        _check(id, (await store.find(shop.db, [id]))[0], versions)
        raise Changed(id)
    return await looked_up(shop, stored) if available is None else known(stored, available)


def _check(id: UUID, stored: Stored | None, versions: Sequence[int] | None) -> None:
    if stored is None:
        raise NotFound("product", id)
    if versions is not None and stored.version not in versions:
        raise Changed(id)


async def remove(shop: Shop, id: UUID) -> None:
    """Raises NotFound, Unavailable. Inventory keeps its row, so that reservations can still be given back."""
    if not await store.delete(shop.db, id):
        raise NotFound("product", id)


async def _set_stock(shop: Shop, id: UUID, quantity: int) -> bool:
    """Whether the product can be sold now."""
    if shop.faults:
        await shop.faults.reach("products.before-set-stock")
    quantity = await shop.stock.set_stock(id, quantity)
    if shop.faults:
        await shop.faults.reach("products.after-set-stock")
    return await shop.availability.changed(id, quantity)


async def looked_up(shop: Shop, stored: Stored) -> Stored:
    """With `available` as it is now, as far as anybody can say."""
    id = str(stored.product.id)
    return known(stored, (await shop.availability.of([id])).get(id))


def known(stored: Stored, available: bool | None) -> Stored:
    return Stored(replace(stored.product, available=available), stored.version)
