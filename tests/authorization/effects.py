"""The effects of permitted operations: what they show, and what they change in the stores."""

from __future__ import annotations

from typing import Any

from tests.authorization.callers import OWNER
from tests.authorization.calls import Target
from tests.authorization.shop import Shop

# What the operations write.
NEW_STOCK, CHANGED_PRICE, CHANGED_STOCK, COUNTED_STOCK = 7, "77.00", 77, 5


async def shows_product(shop: Shop, target: Target, value: Any) -> None:
    assert (value["id"], value["name"]) == (target.product_id, target.product["name"])
    assert "stock" not in value


async def shows_products(shop: Shop, target: Target, value: Any) -> None:
    [item] = value["items"]
    await shows_product(shop, target, item)


async def shows_stock(shop: Shop, target: Target, value: Any) -> None:
    assert value["stock"] == await shop.stores.stock(target.product_id)


async def shows_stocks(shop: Shop, target: Target, value: Any) -> None:
    [item] = value["items"]
    await shows_stock(shop, target, item)


async def product_is_created(shop: Shop, target: Target, value: Any) -> None:
    row = await shop.stores.product(value["id"])
    assert row is not None
    assert (row["name"], row["description"]) == ("Made", target.product["name"])
    assert await shop.stores.stock(value["id"]) == NEW_STOCK


async def product_is_changed(shop: Shop, target: Target, value: Any) -> None:
    row = await shop.stores.product(target.product_id)
    assert row is not None
    stock = await shop.stores.stock(target.product_id)
    assert (f"{row['price']:.2f}", stock) == (CHANGED_PRICE, CHANGED_STOCK)


async def product_is_deleted(shop: Shop, target: Target, value: Any) -> None:
    assert await shop.stores.product(target.product_id) is None


async def order_is_placed(shop: Shop, target: Target, value: Any) -> None:
    stored = await shop.stores.order(value["id"])
    assert stored is not None
    assert (stored["user"], stored["status"], value["user"]) == (OWNER, "confirmed", OWNER)
    assert await shop.stores.reservation(value["id"]) == "reserved"


async def shows_order(shop: Shop, target: Target, value: Any) -> None:
    assert (value["id"], value["user"]) == (target.order_id, OWNER)


async def shows_orders(shop: Shop, target: Target, value: Any) -> None:
    assert target.order_id in [order["id"] for order in value["items"]]
    assert {order["user"] for order in value["items"]} == {OWNER}


async def order_is_cancelled(shop: Shop, target: Target, value: Any) -> None:
    stored = await shop.stores.order(target.order_id)
    assert stored is not None
    assert stored["status"] == "cancelled"


async def is_not_empty(shop: Shop, target: Target, value: Any) -> None:
    assert value


async def shows_dead_letters(shop: Shop, target: Target, value: Any) -> None:
    [letter] = [item for item in value["items"] if item["id"] == target.dead_letter_id]
    assert (letter["order_id"], letter["status"]) == (target.order_id, "open")
    # Whose it is can be seen in the order.
    assert OWNER not in str(letter).replace(target.order_id, "")


async def dead_letter_is_mailed(shop: Shop, target: Target, value: Any) -> None:
    assert (value["id"], value["result"]) == (target.dead_letter_id, "mailed")


async def dead_letter_is_dropped(shop: Shop, target: Target, value: Any) -> None:
    assert (value["id"], value["result"]) == (target.dead_letter_id, "dropped")


async def is_page(shop: Shop, target: Target, value: Any) -> None:
    assert isinstance(value["items"], list)
    assert value["next"] is None


async def shows_all_kinds_of_unfinished_orders(shop: Shop, target: Target, value: Any) -> None:
    assert [kind["kind"] for kind in value["kinds"]] == ["pending", "release-due", "unsent", "stuck"]


async def order_stays_confirmed(shop: Shop, target: Target, value: Any) -> None:
    """Nothing was due for the order, so retrying it has changed nothing."""
    stored = await shop.stores.order(target.order_id)
    assert stored is not None
    assert stored["status"] == "confirmed"
