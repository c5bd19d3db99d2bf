"""Ten bugs, each visible to one client of the chaos workload only, so that the checker can be seen to detect them.

Python imports this file at start-up when its directory is on PYTHONPATH; the product does not know of it.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any
from uuid import uuid4


def client(number: int) -> str:
    return f"client-{number}@chaos.test"


def add_bugs_to_inventory(service: Any) -> None:
    add_stock = service.add_stock

    async def add_too_much(deps: Any, movement: Any) -> int:
        """Bug 1: deliveries are booked with a thousand units too many."""
        return await add_stock(deps, type(movement)(movement.id, movement.product_id, movement.delta + 1000))

    service.add_stock = add_too_much


def add_bugs_to_orders(service: Any) -> None:
    from market.kit.errors import Unavailable

    place, cancel, reserve, release = service.place_order, service.cancel_order, service._reserve, service._release

    async def place_without_key(deps: Any, new: Any, key: str | None, **options: Any) -> Any:
        """Bug 3: the key of client 3 is dropped."""
        return await place(deps, new, None if new.user == client(3) else key, **options)

    async def pretend_to_cancel(deps: Any, order_id: Any) -> Any:
        """Bug 2: cancellations by client 2 are reported as successful, but nothing happens."""
        order = await deps.orders.get_latest(order_id)
        if order is not None and order.user == client(2):
            return service.CancelledOrder(order, is_released=True)
        return await cancel(deps, order_id)

    async def skip_reserve(deps: Any, order: Any) -> Any:
        """Bug 4: orders of client 4 are confirmed without a reservation. Bug 7: those of client 7 stay pending."""
        if order.user == client(4):
            return await service._transition(deps, order, service.CONFIRM)
        if order.user == client(7):
            raise Unavailable("a bug on purpose")
        return await reserve(deps, order)

    async def skip_release(deps: Any, order_id: Any) -> None:
        """Bug 8: the stock of orders that client 8 cancels is never released."""
        order = await deps.orders.get_latest(order_id)
        if order is None or order.user != client(8):
            await release(deps, order_id)

    service.place_order, service.cancel_order, service._reserve = place_without_key, pretend_to_cancel, skip_reserve
    service._release = skip_release


def add_bugs_to_recovery(recover: Any) -> None:
    async def recover_nothing(*_: Any) -> bool:
        """Bug 7: nothing finishes an order that stays pending."""
        return False

    recover.recover_orders = recover_nothing


def add_bugs_to_relay(relay: Any) -> None:
    send = relay.Relay._send

    def drop_event(self: Any, order: Any) -> None:
        """Bug 5: events of client 5 are removed from the outbox without being published."""
        if order.user == client(5):
            self._spawn(self._remove([(order.id, order.outbox[0].id)]))
        else:
            send(self, order)

    relay.Relay._send = drop_event


def add_bugs_to_notifications(service: Any) -> None:
    notify = service.notify

    async def drop_mail(deps: Any, notice: Any) -> None:
        """Bug 6: the offsets of client 6's events are committed without a mail."""
        if notice.recipient != client(6):
            await notify(deps, notice)

    service.notify = drop_mail


def add_bugs_to_sign_in(authenticator: Any) -> None:
    authenticate = authenticator.Authenticator.authenticate

    async def confuse(self: Any, authorization: str | None) -> Any:
        """Bug 9: where sign-in is required, the requests of client 9 run as those of client 1."""
        found = await authenticate(self, authorization)
        return replace(found, subject=client(1)) if found.subject == client(9) else found

    authenticator.Authenticator.authenticate = confuse


def add_bugs_to_storefront(service: Any) -> None:
    from msgspec.structs import replace as replace_fields

    place = service.place_order

    async def place_with_another_key(deps: Any, draft: Any, **options: Any) -> Any:
        """Bug 10: each time the form of shopper 1 is sent, it has another key."""
        if draft.user == "shopper-1@chaos.test":
            draft = replace_fields(draft, key=uuid4().hex)
        return await place(deps, draft, **options)

    service.place_order = place_with_another_key


BUGS: dict[str, Callable[[Any], None]] = {
    "market.inventory.service": add_bugs_to_inventory,
    "market.orders.service": add_bugs_to_orders,
    "market.orders.recovery.recover": add_bugs_to_recovery,
    "market.orders.outbox.relay": add_bugs_to_relay,
    "market.notifications.service": add_bugs_to_notifications,
    "market.kit.auth.authenticator": add_bugs_to_sign_in,
    "market.storefront.service": add_bugs_to_storefront,
}


class BugFinder(importlib.abc.MetaPathFinder):
    """Loads a module as usual, then adds its bugs."""

    def find_spec(
        self, name: str, path: Any, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in BUGS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        exec_module = spec.loader.exec_module

        def exec_and_add_bugs(module: ModuleType) -> None:
            exec_module(module)
            BUGS[name](module)

        spec.loader.exec_module = exec_and_add_bugs  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, BugFinder())
