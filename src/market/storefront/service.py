"""The use cases of the pages: one function each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from market.contracts import money
from market.kit import context
from market.kit.errors import Unavailable
from market.storefront.clients import FieldRefused, GatewayClient, NotificationsClient, OrdersClient
from market.storefront.documents import operations
from market.storefront.domain import (
    ORDERS_PAGE_SIZE,
    PAGE_SIZE,
    Draft,
    KeyUsed,
    Line,
    ListedProduct,
    ListedProductPage,
    Order,
    OrderChanged,
    OrderPage,
    OutcomeUnknown,
    PlacedAndCancelled,
    PricedLine,
    Product,
    ProductPage,
)

# The maximum number of suggestions below the search field.
_MAX_SUGGESTIONS = 6
# The maximum number of products in the sitemap, and of products per call.
_MAX_LISTED, _LISTED_PER_CALL = 1000, 100
# The deadline of placing an order. After it, the buyer sees that the outcome is not known yet.
PLACING_SECONDS = 8.0
# The deadline of repeating an order whose outcome is not known.
REPEATING_SECONDS = 4.0


@dataclass(frozen=True)
class Deps:
    """The clients of the use cases."""

    gateway: GatewayClient
    notifications: NotificationsClient
    # None if no address is configured.
    orders: OrdersClient | None = None


async def list_products(
    deps: Deps, *, q: str | None = None, sort: str | None = None, after: str | None = None
) -> ProductPage:
    """Return a page of the products that match the search `q`, by default of all.

    after: the `next` of the previous page
    """
    variables = {"limit": PAGE_SIZE, "q": q, "sort": sort, "after": after}
    return await deps.gateway.execute(operations.LIST_PRODUCTS, variables, ProductPage)


async def suggest_products(deps: Deps, *, q: str) -> tuple[Product, ...]:
    """Return at most 6 products for a search that is not typed completely."""
    variables = {"q": q, "limit": _MAX_SUGGESTIONS}
    return (await deps.gateway.execute(operations.SUGGEST_PRODUCTS, variables, ProductPage)).items


async def get_product(deps: Deps, *, product_id: str) -> Product:
    """Return the product with its description. Raises NotFound."""
    return await deps.gateway.execute(operations.GET_PRODUCT, {"id": product_id}, Product)


async def list_all_products(deps: Deps) -> list[ListedProduct]:
    """Return the newest products of the catalogue, at most 1,000."""
    listed: list[ListedProduct] = []
    after: str | None = None
    while len(listed) < _MAX_LISTED:
        variables = {"limit": _LISTED_PER_CALL, "after": after}
        page = await deps.gateway.execute(operations.LIST_ALL_PRODUCTS, variables, ListedProductPage)
        listed += page.items
        after = page.next
        if after is None:
            break
    return listed


async def price_lines(deps: Deps, lines: Iterable[Line]) -> tuple[PricedLine, ...]:
    """Return the lines with the current names and prices of their products."""
    requested = tuple(lines)
    if not requested:
        return ()
    variables = {"ids": [line.product_id for line in requested]}
    page = await deps.gateway.execute(operations.GET_PRODUCTS, variables, ProductPage)
    by_id = {product.id: product for product in page.items}
    return tuple(PricedLine(line.product_id, line.quantity, by_id.get(line.product_id)) for line in requested)


async def place_order(deps: Deps, draft: Draft, *, seconds: float = PLACING_SECONDS) -> Order:
    """Place the order, or return the one that was placed with its key. `seconds`: the deadline.

    Raises OrderChanged, KeyUsed, PlacedAndCancelled, RequestRefused for invalid input, and OutcomeUnknown.
    """
    order = {
        "user": draft.user,
        "email": draft.email,
        "items": [{"productId": line.product_id, "quantity": line.quantity} for line in draft.lines],
        "expectedTotal": money.write(draft.total, draft.currency),
        "expectedCurrency": draft.currency,
    }
    try:
        with context.deadline_in(seconds):
            return await deps.gateway.execute(
                operations.CREATE_ORDER, {"input": order, "key": draft.key}, Order, timeout_seconds=seconds
            )
    except FieldRefused as e:
        raise _refusal(e) from None
    except Unavailable as e:
        raise OutcomeUnknown(str(e)) from None


def _refusal(error: FieldRefused) -> Exception:
    if error.refusal == "PRICE_CHANGED":
        return OrderChanged()
    if error.refusal == "OUT_OF_STOCK":
        shortages = error.extensions.get("shortages") or ()
        return OrderChanged({str(s.get("productId")): int(s.get("left", 0)) for s in shortages})
    if error.refusal == "ORDER_CANCELLED":
        return PlacedAndCancelled(str(error.extensions.get("orderId", "")))
    for field, reason in error.fields:
        if field == "idempotencyKey":
            return KeyUsed(str(error))
        if reason.startswith("unknown product"):
            return OrderChanged()
    return error


async def get_order(deps: Deps, *, order_id: str) -> Order:
    """Return the order. Raises NotFound."""
    return await deps.gateway.execute(operations.GET_ORDER, {"id": order_id}, Order)


async def list_orders(deps: Deps, *, user: str | None, after: str | None = None) -> OrderPage:
    """Return a page of the user's orders, the newest first. `user`: None for the person who has signed in."""
    variables = {"user": user, "limit": ORDERS_PAGE_SIZE, "after": after}
    return await deps.gateway.execute(operations.LIST_ORDERS, variables, OrderPage)


async def cancel_order(deps: Deps, *, order_id: str) -> Order:
    """Cancel the order and return it as it is afterwards. Raises NotFound."""
    return await deps.gateway.execute(operations.CANCEL_ORDER, {"id": order_id}, Order)
