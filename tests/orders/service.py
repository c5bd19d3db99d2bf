"""Orders as tests run it: in this process or in one of its own, each instance with its own configuration."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import msgspec
from bson import Timestamp

from market.kit.auth.authenticator import authenticator
from market.kit.process.lifecycle import Process
from market.kit.process.tasks import periodic_tasks
from market.orders import app as orders_app
from market.orders.app import Clients
from market.orders.config import Config
from market.orders.recovery.recover import recover_orders
from market.orders.service import Deps
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess
from tests.support.waiting import until

Settings = dict[str, Any]
MakeSettings = Callable[..., Settings]

# Values of the section `recovery`. With IDLE the background tasks do nothing during a test. With NOTHING_OVERDUE they
# run, but find nothing to do until `make_overdue`, even if the machine stands still for a moment.
IDLE = {"reject_after_seconds": 600, "interval_seconds": 600, "lease_seconds": 600, "relay_interval_seconds": 600}
NOTHING_OVERDUE = {"reject_after_seconds": 600, "lease_seconds": 600}


def service_settings(
    mongodb_uri: str,
    bootstrap_servers: str,
    inventory_target: str,
    products_port: int,
    *,
    database: str,
    **sections: Any,
) -> Settings:
    """Return a configuration as its YAML file has it; `sections` replace whole sections, except for `recovery`.

    Background tasks wait for seconds, where production has minutes. Deadlines are long, so that a machine that stands
    still for a moment does not turn a result into a 503.
    """
    recovery = {
        "reject_after_seconds": 1.5,
        "interval_seconds": 0.3,
        "lease_seconds": 1.5,
        "relay_interval_seconds": 0.2,
    }
    return {
        "testing": True,
        "admin": {"port": free_port()},
        "http": {"port": free_port()},
        "log": {"format": "console"},
        "shutdown": {"drain_seconds": 0, "grace_seconds": 30},
        "create_order_timeout_seconds": 50,
        "default_timeout_seconds": 40,
        "mongodb": {"uri": mongodb_uri, "database": database, "timeout_seconds": 20},
        "inventory": {"target": inventory_target, "timeout_seconds": 20},
        "products": {"url": f"http://127.0.0.1:{products_port}", "timeout_seconds": 20},
        "kafka": {"bootstrap_servers": bootstrap_servers, "partitions": 0, "delivery_seconds": 10},
        **sections,
        "recovery": {**recovery, **sections.get("recovery", {})},
    }


async def migrate(settings: Settings) -> None:
    """Run the command `migrate`."""
    assert await orders_app.migrate(msgspec.convert(settings, Config), []) == 0


async def on_new_database(make_settings: MakeSettings, **defaults: Any) -> MakeSettings:
    """Return `make_settings` for a new database, migrated, on which no other test's background tasks work."""
    database = f"orders_{uuid4().hex[:8]}"
    await migrate(make_settings(database=database))
    return lambda **sections: make_settings(**{"database": database, **defaults, **sections})


class OrderPlacer:
    """Places orders with the HTTP client `http`."""

    http: httpx.AsyncClient

    async def place(
        self, lines: Iterable[tuple[str, int]], *, user: str = "ada", key: str | None = None, **fields: Any
    ) -> httpx.Response:
        """Send POST /api/order. `lines`: (product id, quantity); `key`: the Idempotency-Key."""
        headers = {"Idempotency-Key": key} if key else {}
        items = [{"product_id": product_id, "quantity": quantity} for product_id, quantity in lines]
        return await self.http.post("/api/order", json={"user": user, "items": items, **fields}, headers=headers)


@dataclass
class Service(OrderPlacer):
    """A running instance of orders in this process, and an HTTP client for it."""

    http: httpx.AsyncClient
    config: Config
    process: Process
    deps: Deps

    @property
    def documents(self) -> Any:
        """PyMongo's asynchronous collection, without deadline, circuit breaker and error mapping."""
        return self.deps.orders.collection.pymongo_collection


@asynccontextmanager
async def serving(
    settings: Settings, *, process: Process | None = None, clients: Clients | None = None, background: bool = True
) -> AsyncIterator[Service]:
    """Run orders in this process. Without `background` nothing recovers orders or publishes leftover events."""
    config = msgspec.convert(settings, Config)
    process = process or Process()
    async with AsyncExitStack() as stack:
        deps = await stack.enter_async_context(orders_app.connect(config, process, clients))
        await orders_app.wait_for_store(process.health, deps)
        if background:
            await stack.enter_async_context(periodic_tasks(orders_app.tasks_by_name(config, deps)))
        authentication = await stack.enter_async_context(authenticator(config.auth))
        server = orders_app.http_server(config, process, deps, authentication)
        await server.start()
        process.health.started = True
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{config.http.port}", timeout=120) as http:
                yield Service(http, config, process, deps)
        finally:
            await server.stop(2)


class OrdersProcess(OrderPlacer, ServiceProcess):
    """`python -m market.orders` with its own configuration, and an HTTP client for it."""

    def __init__(self, settings: Settings, directory: Path, *, env: Mapping[str, str] | None = None) -> None:
        super().__init__("orders", settings, directory, env=env)
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings['http']['port']}", timeout=120)

    async def close(self) -> None:
        """Close the client and kill the process."""
        await self.http.aclose()
        self.kill()


async def make_overdue(documents: Any, where: dict[str, Any]) -> None:
    """Let time pass for the matching orders: pending ones become overdue, and the leases of their outboxes expire.

    `documents` is PyMongo's collection, synchronous or not.
    """
    for state, past in (
        ({"status": "pending"}, {"since": Timestamp(1, 1)}),
        ({"claimed_at": {"$exists": True}}, {"claimed_at": datetime(2000, 1, 1, tzinfo=UTC)}),
    ):
        result = documents.update_many({**where, **state}, {"$set": past})
        if inspect.isawaitable(result):
            await result


async def get_document(service: Service, order_id: Any) -> dict[str, Any]:
    """Return the order's document. Fails if there is none."""
    found = await service.documents.find_one({"_id": UUID(str(order_id))})
    assert found is not None
    return dict(found)


async def is_release_recorded(service: Service, order_id: str | UUID) -> bool:
    """Return whether no stock release is due for the order. DELETE records the release after its response."""
    return "release_due" not in await get_document(service, order_id)


async def wait_for_intent(service: Service, user: str) -> dict[str, Any]:
    """Wait until the user's order is stored, and return its document."""
    return dict(await until(lambda: service.documents.find_one({"user": user}), what="intent"))


async def recover_all(service: Service) -> bool:
    """Run one pass of recovery in which everything pending or due is overdue. Return whether there may be more.

    The negative ages outweigh that the server's clock counts whole seconds.
    """
    return await recover_orders(service.deps, reject_after_seconds=-2, retry_seconds=-2)
