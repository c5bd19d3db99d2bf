"""A shop that is broken in eight ways, each for one client of the load, so that the checker can be seen to catch it.

Python imports this file at start when its folder is on PYTHONPATH; the product knows nothing of it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any


def client(number: int) -> str:
    return f"client-{number}@torture.test"


def break_inventory(service: Any) -> None:
    book = service.Inventory.add_stock

    async def add_too_much(self: Any, movement: Any) -> int:
        """1: a delivery is booked with a thousand too many."""
        return await book(self, type(movement)(movement.id, movement.product_id, movement.delta + 1000))

    service.Inventory.add_stock = add_too_much


def break_orders(service: Any) -> None:
    from market.kit.errors import Unavailable

    place, cancel, reserve, release = service.place, service.cancel, service._reserve, service.advance

    async def place_without_key(shop: Any, new: Any, key: str | None, **more: Any) -> Any:
        """3: the key of client 3 is forgotten."""
        return await place(shop, new, None if new.user == client(3) else key, **more)

    async def pretend_to_cancel(shop: Any, order_id: Any) -> bool:
        """2: client 2 is told that its order is cancelled."""
        order = await shop.store.read(order_id)
        if order is not None and order.user == client(2):
            return True
        return bool(await cancel(shop, order_id))

    async def reserve_badly(shop: Any, order: Any) -> Any:
        """4: client 4 gets goods that nobody took from the shelf. 7: client 7 is left waiting."""
        if order.user == client(4):
            return await service._move(shop, order, service.CONFIRM)
        if order.user == client(7):
            raise Unavailable("broken on purpose")
        return await reserve(shop, order)

    async def forget_to_release(shop: Any, order: Any, *, overdue: bool = False) -> Any:
        """8: what client 8 cancels is never given back."""
        if order.user == client(8) and order.release_due:
            await shop.store.released(order.id)
            return service.msgspec.structs.replace(order, release_due=False)
        return await release(shop, order, overdue=overdue)

    async def recover_nothing(*_: Any) -> bool:
        return False

    service.place, service.cancel, service._reserve = place_without_key, pretend_to_cancel, reserve_badly
    service.advance, service.recover = forget_to_release, recover_nothing


def break_relay(relay: Any) -> None:
    send = relay.Relay._send

    def lose(self: Any, order: Any) -> None:
        """5: the events of client 5 are said to be sent."""
        if order.user == client(5):
            self._spawn(self._cleared([(order.id, order.outbox[0].id)]))
        else:
            send(self, order)

    relay.Relay._send = lose


def break_mailing(service: Any) -> None:
    mail = service.Mailing.mail

    async def throw_away(self: Any, message: Any) -> None:
        """6: the mails of client 6 are said to be sent."""
        if client(6).encode() not in (message.value or b""):
            await mail(self, message)

    service.Mailing.mail = throw_away


BREAKS: dict[str, Callable[[Any], None]] = {
    "market.inventory.service": break_inventory,
    "market.orders.service": break_orders,
    "market.orders.relay": break_relay,
    "market.notifications.service": break_mailing,
}


class Breaker(importlib.abc.MetaPathFinder):
    """Lets the module load as it is, and breaks it then."""

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in BREAKS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def execute_and_break(module: ModuleType) -> None:
            execute(module)
            BREAKS[name](module)

        spec.loader.exec_module = execute_and_break  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, Breaker())
