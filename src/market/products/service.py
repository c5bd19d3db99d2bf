"""The use cases that write. They keep two stores consistent: the table of products, and the stock in inventory.

A new product gets its stock first: after a crash in between there is the stock of a product that does not exist, which
nobody can buy. A product that is replaced gets its fields first, in a statement that decides between concurrent
requests. Its stock, or the delivery that is added to it, follows under the version that this statement has assigned,
and inventory does not replace the stock of a newer version: the request that was decided last has both its fields and
its stock in force.

The audit log has each change of a price or a stock, and each attempt whose outcome is unknown.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import UUID

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from market.kit.auth import audit
from market.kit.errors import IdempotencyKeyReused, NotFound, Unavailable
from market.kit.faults import Faults
from market.kit.ids import new_id
from market.products.availability.lookup import AvailabilityLookup
from market.products.clients import InventoryClient, StockInForce
from market.products.domain import (
    FIRST_VERSION,
    Delivery,
    DeliveryIdReused,
    DeliveryRefused,
    Draft,
    Product,
    ProductModified,
    StockTooLarge,
    Summary,
    not_replaced,
)
from market.products.search.pages import ProductSearch
from market.products.store import CallerKey, ProductRepository


@dataclass(frozen=True)
class Deps:
    """The dependencies of the use cases."""

    products: ProductRepository
    search: ProductSearch
    inventory: InventoryClient
    availability: AvailabilityLookup
    faults: Faults | None = None


class Creation(Struct, frozen=True):
    """The product; `replayed` if an earlier request with the same Idempotency-Key has created it."""

    product: Product
    replayed: bool


async def create(deps: Deps, draft: Draft, key: CallerKey | None) -> Creation:
    """Create the product, or return the one that this caller has created with the same Idempotency-Key.

    Each attempt has a new product id, which must not be derived from the key: a late repeat would then set the stock of
    a product that is being sold already. Key and product are one row, so of two attempts with one key one inserts it;
    the other leaves at most the stock of a product that does not exist.

    Raises IdempotencyKeyReused, DeadlineExceeded, Unavailable.
    """
    if key is not None and (product := await _find_replay(deps, draft, key)):
        return Creation(product, replayed=True)
    product_id = new_id()
    in_force = await _set_stock(deps, product_id, draft.stock or 0, FIRST_VERSION)
    requested = {"name": draft.name, "price": str(draft.price), "currency": draft.currency, "stock": in_force.quantity}
    with _audited_if_unknown("product created", product_id, requested):
        product = await deps.products.insert(product_id, draft, key)
    if product is None:
        assert key is not None
        if replay := await _find_replay(deps, draft, key):
            return Creation(replay, replayed=True)
        with _audited_if_unknown("product created", product_id, requested):
            product = await deps.products.insert_beside(product_id, draft, key)
        if product is None:
            if replay := await _find_replay(deps, draft, key):
                return Creation(replay, replayed=True)
            raise Unavailable("the product created with this Idempotency-Key has just been deleted")
    audit.record(
        "product created",
        target=f"product {product_id}",
        after=msgspec.to_builtins(Summary.of(product)) | {"stock": in_force.quantity},
    )
    return Creation(_with_available(product, in_force.quantity > 0), replayed=False)


async def _find_replay(deps: Deps, draft: Draft, key: CallerKey) -> Product | None:
    found = await deps.products.get_by_key(key)
    if found is None:
        return None
    if found.request_hash != draft.fingerprint():
        raise IdempotencyKeyReused
    return await look_up_availability(deps, found.product)


async def replace_product(
    deps: Deps, product_id: UUID, draft: Draft, versions: Sequence[int] | None, delivery: Delivery | None = None
) -> Product:
    """Replace the writable fields of the product, if it has one of the versions (None: any), and return it.

    delivery: is added to the stock; the draft has no stock then.

    Raises NotFound, ProductModified, DeliveryIdReused and StockTooLarge, which change nothing; DeliveryRefused,
    DeadlineExceeded and Unavailable, which say what has changed if there is a stock or a delivery
    (domain.not_replaced).
    """
    if draft.stock is None and delivery is None:
        return await look_up_availability(deps, await _replace_fields(deps, product_id, draft, versions))
    current = _require_version(product_id, await deps.products.get(product_id), versions)
    try:
        # While inventory is unavailable, nothing is replaced instead of one half.
        before = await _check_stock(deps, product_id, delivery)
    except Unavailable as e:
        raise not_replaced(e, fields="unchanged", stock="unchanged", version=current.version) from None
    try:
        product = await _replace_fields(deps, product_id, draft, versions)
    except Unavailable as e:
        raise not_replaced(e, fields="unknown", stock="unchanged") from None
    try:
        if delivery is not None:
            return await _add_delivery(deps, product, delivery, before=before)
        assert draft.stock is not None
        return await _replace_stock(deps, product, draft.stock, before=before)
    except (DeliveryIdReused, StockTooLarge) as e:
        raise DeliveryRefused(e, product.version) from None
    except Unavailable as e:
        raise not_replaced(e, fields="replaced", stock="unknown", version=product.version) from None


async def _check_stock(deps: Deps, product_id: UUID, delivery: Delivery | None) -> int:
    """Return the stock as it is now. Raises DeliveryIdReused or StockTooLarge for a delivery that cannot be added."""
    if delivery is not None:
        return await deps.inventory.check_delivery(product_id, delivery)
    quantities = await deps.inventory.get_stock([str(product_id)])
    return quantities[str(product_id)]


async def _replace_fields(deps: Deps, product_id: UUID, draft: Draft, versions: Sequence[int] | None) -> Product:
    requested = {"name": draft.name, "price": str(draft.price), "currency": draft.currency}
    with _audited_if_unknown("product replaced", product_id, requested):
        replacement = await deps.products.update(product_id, draft, versions)
    if replacement is None:
        current = _require_version(product_id, await deps.products.get(product_id), versions)
        raise ProductModified(product_id, current.version)
    audit.record(
        "product replaced",
        target=f"product {product_id}",
        before=msgspec.to_builtins(replacement.before),
        after=msgspec.to_builtins(Summary.of(replacement.product)),
    )
    return replacement.product


async def _replace_stock(deps: Deps, product: Product, quantity: int, *, before: int) -> Product:
    """Set the stock of the product's version, unless a newer version has set it; return the product as it is now.

    before: the stock before, for the audit log.
    """
    with _audited_if_unknown("stock set", product.id, {"stock": quantity}, before={"stock": before}):
        product, in_force = await _change_stock(
            deps, product, lambda version: _set_stock(deps, product.id, quantity, version)
        )
    if in_force.applied:
        audit.record(
            "stock set",
            target=f"product {product.id}",
            before={"stock": before},
            after={"stock": in_force.quantity, "version": in_force.version},
        )
    return _with_available(product, in_force.quantity > 0)


async def _add_delivery(deps: Deps, product: Product, delivery: Delivery, *, before: int) -> Product:
    """Add the delivery under the product's version, unless it was added before or a newer version has set the stock;
    return the product as it is now.

    before: the stock before, for the audit log.
    """
    requested = {"delivery": str(delivery.id), "units": delivery.quantity}
    with _audited_if_unknown("delivery added", product.id, requested, before={"stock": before}):
        product, in_force = await _change_stock(
            deps, product, lambda version: _send_delivery(deps, product.id, delivery, version)
        )
    if in_force.applied:
        audit.record(
            "delivery added",
            target=f"product {product.id}",
            before={"stock": in_force.quantity - delivery.quantity},
            after={"stock": in_force.quantity, "version": in_force.version, **requested},
        )
    return _with_available(product, in_force.quantity > 0)


async def _change_stock(
    deps: Deps, product: Product, change: Callable[[int], Awaitable[StockInForce]]
) -> tuple[Product, StockInForce]:
    """Call `change` with the product's version; return the product, and the stock that is in force afterwards."""
    in_force = await change(product.version)
    if in_force.version > product.version:
        # Usually there is a newer version of the product. If there is none, inventory is ahead of the table of
        # products, which was restored from a backup.
        ahead = await deps.products.raise_version(product.id, product.version, in_force.version + 1)
        if ahead is not None:
            applied = in_force.applied
            product, in_force = ahead, await change(ahead.version)
            in_force = replace(in_force, applied=applied or in_force.applied)
    return product, in_force


def _require_version(product_id: UUID, product: Product | None, versions: Sequence[int] | None) -> Product:
    if product is None:
        raise NotFound("product", product_id)
    if versions is not None and product.version not in versions:
        raise ProductModified(product_id, product.version)
    return product


async def delete(deps: Deps, product_id: UUID, versions: Sequence[int] | None) -> None:
    """Delete the product, if it has one of the versions (None: any).

    Its stock stays in inventory, so that reservations can still be released. Raises NotFound, ProductModified,
    DeadlineExceeded, Unavailable.
    """
    with _audited_if_unknown("product deleted", product_id):
        deleted = await deps.products.delete(product_id, versions)
    if deleted is None:
        current = _require_version(product_id, await deps.products.get(product_id), versions)
        raise ProductModified(product_id, current.version)
    audit.record("product deleted", target=f"product {product_id}", before=msgspec.to_builtins(deleted))


async def _set_stock(deps: Deps, product_id: UUID, quantity: int, version: int) -> StockInForce:
    """Set the stock in inventory, unless that of a newer version is in force; return and cache what is in force."""
    if deps.faults:
        await deps.faults.fire_if_armed("products.before-set-stock")
    in_force = await deps.inventory.set_stock(product_id, quantity, version)
    if deps.faults:
        await deps.faults.fire_if_armed("products.after-set-stock")
    await deps.availability.store(product_id, in_force.quantity)
    return in_force


async def _send_delivery(deps: Deps, product_id: UUID, delivery: Delivery, version: int) -> StockInForce:
    """Add the delivery in inventory, unless it was added or replaced already; return and cache what is in force."""
    if deps.faults:
        await deps.faults.fire_if_armed("products.before-add-delivery")
    in_force = await deps.inventory.add_delivery(product_id, delivery, version)
    if deps.faults:
        await deps.faults.fire_if_armed("products.after-add-delivery")
    await deps.availability.store(product_id, in_force.quantity)
    return in_force


async def look_up_availability(deps: Deps, product: Product) -> Product:
    """Return the product with its current `available`; None if that is unknown."""
    [shown] = await look_up(deps, [product])
    return shown


async def look_up(
    deps: Deps, products: list[Product], *, availability: bool = True, stock: bool = False
) -> list[Product]:
    """Return the products with `available` and `stock`, where requested. Unknown values are None.

    `stock` is never read from the cache, and if both are requested, `available` agrees with it.
    """
    ids = [str(product.id) for product in products]
    if not stock:
        if not availability:
            return products
        known = await deps.availability.get_many(ids)
        return [replace(p, available=known.get(product_id)) for p, product_id in zip(products, ids, strict=True)]
    quantities, known = await asyncio.gather(
        deps.availability.get_stock(ids), deps.availability.get_many(ids if availability else [])
    )
    if availability:
        known = known | {product_id: quantity > 0 for product_id, quantity in quantities.items()}
    return [
        replace(p, available=known.get(product_id), stock=quantities.get(product_id))
        for p, product_id in zip(products, ids, strict=True)
    ]


@contextmanager
def _audited_if_unknown(
    action: str,
    product_id: UUID,
    requested: Mapping[str, object] | None = None,
    *,
    before: Mapping[str, object] | None = None,
) -> Iterator[None]:
    """Record the action if it fails without a response, or is cancelled, because it may have taken effect."""
    try:
        yield
    except (Unavailable, asyncio.CancelledError):
        audit.record(
            action, target=f"product {product_id}", before=before, after={**(requested or {}), "outcome": "unknown"}
        )
        raise


def _with_available(product: Product, available: bool | None) -> Product:
    return replace(product, available=available)
