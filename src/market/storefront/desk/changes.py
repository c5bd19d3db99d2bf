"""The use cases of merchants who change products: one function each.

All of them are safe to repeat: creating has an idempotency key, a delivery has an id, and every other change has the
version that it expects.
"""

from __future__ import annotations

from typing import Any

from market.kit.errors import Conflict, Unavailable
from market.storefront.clients import FieldRefused
from market.storefront.desk.product_form import Values
from market.storefront.documents import desk_products as documents
from market.storefront.domain import DeskProduct, OutcomeUnknown
from market.storefront.service import Deps

# How often a delivery is attempted, because others may change the product between read and write.
_DELIVERY_ATTEMPTS = 5


class ProductChanged(Conflict):
    """The product was not changed, because somebody else has changed it since it was read.

    current: the product as it is now
    """

    type = "product-changed"
    title = "Product changed"

    def __init__(self, current: DeskProduct) -> None:
        super().__init__("the product was changed since it was read")
        self.current = current


class KeyReused(Conflict):
    """The idempotency key was used before, to create a product with other values."""

    type = "key-reused"
    title = "Key reused"


async def get_product(deps: Deps, *, product_id: str) -> DeskProduct:
    """Return the product. Raises NotFound."""
    return await deps.gateway.execute(documents.GET_PRODUCT, {"id": product_id}, DeskProduct)


async def create_product(deps: Deps, values: Values, *, stock: int, key: str) -> DeskProduct:
    """Create the product, or return the one that was created with the key.

    Raises KeyReused, RequestRefused for invalid values, and OutcomeUnknown.
    """
    variables = {"input": {**values.as_input(), "stock": stock}, "key": key}
    try:
        return await deps.gateway.execute(documents.CREATE_PRODUCT, variables, DeskProduct)
    except FieldRefused as e:
        if any(field == "idempotencyKey" for field, _ in e.fields):
            raise KeyReused(str(e)) from None
        raise
    except Unavailable as e:
        raise OutcomeUnknown(str(e)) from None


async def change_product(deps: Deps, values: Values, *, product_id: str, version: int) -> DeskProduct:
    """Replace the values of the product if it has the version, and return it. No error if it has these values already.

    Raises NotFound, ProductChanged, RequestRefused and OutcomeUnknown.
    """
    try:
        return await _update(deps, product_id, version, values)
    except ProductChanged as e:
        if not values.differing(Values.of(e.current)):
            return e.current
        raise


async def delete_product(deps: Deps, *, product_id: str, version: int) -> None:
    """Delete the product if it has the version. Raises NotFound, ProductChanged and OutcomeUnknown."""
    variables = {"id": product_id, "expectedVersion": version}
    try:
        await deps.gateway.execute(documents.DELETE_PRODUCT, variables, str, idempotent=False)
    except FieldRefused as e:
        raise await _refusal(deps, product_id, e) from None
    except Unavailable as e:
        raise OutcomeUnknown(str(e)) from None


async def take_stock(deps: Deps, *, product_id: str, counted: int, version: int, seen: int | None) -> DeskProduct:
    """Set the stock to the number that was counted, and return the product as it was before.

    version, seen: the version and the stock that the merchant saw before counting

    If the stock is that number already, nothing is written. Raises NotFound, ProductChanged, RequestRefused, and
    OutcomeUnknown, also if the current stock is unknown; then nothing is written.
    """
    current = await _read(deps, product_id)
    if current.stock is None:
        raise OutcomeUnknown("the current stock is unknown")
    if current.stock == counted:
        return current
    if (current.version, current.stock) != (version, seen):
        raise ProductChanged(current)
    await _update(deps, product_id, current.version, Values.of(current), stock=counted)
    return current


async def book_delivery(deps: Deps, *, product_id: str, delivery_id: str, quantity: int) -> DeskProduct:
    """Add the units of a delivery to the stock, once per delivery id, and return the product.

    Raises NotFound, ProductChanged if others have changed it during all attempts, RequestRefused and OutcomeUnknown.
    """
    delivery = {"id": delivery_id, "quantity": quantity}
    for attempt in range(1, _DELIVERY_ATTEMPTS + 1):
        current = await _read(deps, product_id)
        try:
            return await _update(deps, product_id, current.version, Values.of(current), delivery=delivery)
        except ProductChanged:
            if attempt == _DELIVERY_ATTEMPTS:
                raise
    raise AssertionError("unreachable")


async def _read(deps: Deps, product_id: str) -> DeskProduct:
    try:
        return await get_product(deps, product_id=product_id)
    except Unavailable as e:
        raise OutcomeUnknown(str(e)) from None


async def _update(deps: Deps, product_id: str, version: int, values: Values, **stock: Any) -> DeskProduct:
    product = {"id": product_id, "expectedVersion": version, **values.as_input(), **stock}
    try:
        # Not repeated: an attempt without a response may have been applied, which increases the version.
        return await deps.gateway.execute(documents.UPDATE_PRODUCT, {"input": product}, DeskProduct, idempotent=False)
    except FieldRefused as e:
        raise await _refusal(deps, product_id, e) from None
    except Unavailable as e:
        raise OutcomeUnknown(str(e)) from None


async def _refusal(deps: Deps, product_id: str, error: FieldRefused) -> Exception:
    if error.refusal == "PRECONDITION_FAILED":
        return ProductChanged(await _read(deps, product_id))
    return error
