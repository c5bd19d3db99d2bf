"""MongoDB with three members, whose primary was paused and replaced, and does not know it.

Such a server responds to reads with its old data. But no majority acknowledges its writes, so nothing is decided by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from pymongo import ReturnDocument
from pymongo.read_concern import ReadConcern
from pymongo.write_concern import WriteConcern

from market.kit.errors import Unavailable
from market.orders.config import MongoDB
from market.orders.domain import Status
from market.orders.mongodb.collection import OrdersCollection, create_client
from tests.support.waiting import PATIENCE, until

from .catalogue import FakeCatalogue
from .replica_set import Member, ReplicaSet, replica_set
from .service import IDLE, MakeSettings, Service, get_document, migrate, serving
from .stock import Stock


@dataclass
class Shop:
    """Two instances of orders: one is connected to the old primary, which is cut off, and the other to the new one.

    cancelled_before, confirmed: orders that both primaries know, with these statuses
    cancelled_since: an order that the old primary knows as confirmed
    placed_since: an order that the old primary does not know
    read_by_majority, read_by_empty_update: what the old primary returned for `cancelled_since`
    """

    replicas: ReplicaSet
    old: Service
    new: Service
    lamp: str
    cancelled_before: str
    confirmed: str
    cancelled_since: str
    placed_since: str
    read_by_majority: dict[str, Any]
    read_by_empty_update: dict[str, Any]

    async def repeat(self, service: Service, user: str) -> httpx.Response:
        """Send the request of the user's order again."""
        return await service.place([(self.lamp, 1)], user=user, key=user)


@pytest.fixture(scope="module")
async def shop(
    make_settings: MakeSettings, migrated: None, catalogue: FakeCatalogue, stock: Stock, server_directory: Path
) -> AsyncIterator[Shop]:
    lamp = catalogue.add()
    await stock.set(lamp, 10)

    def settings(member: Member, timeout_seconds: float = PATIENCE, **deadlines: float) -> Any:
        mongodb = {"uri": member.uri, "database": "orders", "timeout_seconds": timeout_seconds}
        return make_settings(mongodb=mongodb, recovery=IDLE, **deadlines)

    async def place(service: Service, user: str) -> str:
        response = await service.place([(lamp, 1)], user=user, key=user)
        assert response.status_code == 201
        return str(response.json()["id"])

    async with replica_set(server_directory / "stale-primary") as replicas:
        await migrate(settings(replicas.old))
        async with serving(settings(replicas.old), background=False) as service:
            ids = {user: await place(service, user) for user in ("cancelled_before", "confirmed", "cancelled_since")}
            assert (await service.http.delete(f"/api/order/{ids['cancelled_before']}")).status_code == 204
            for order_id in ids.values():
                await until(lambda order_id=order_id: _is_settled(service, order_id), what="events published")
        # What the old primary is asked, once it is cut off, ends with these deadlines.
        short = settings(replicas.old, 4, create_order_timeout_seconds=4, default_timeout_seconds=4)
        async with serving(short, background=False) as old:
            await replicas.replace_primary()
            async with serving(settings(replicas.new), background=False) as new:
                assert (await new.http.delete(f"/api/order/{ids['cancelled_since']}")).status_code == 204
                ids["placed_since"] = await place(new, "placed_since")
                replicas.resume_cut_off()
                await until(lambda: _responds(old), what="the old primary responds")
                where = {"_id": UUID(ids["cancelled_since"])}
                documents: Any = replicas.old.client.orders.get_collection(
                    "orders", write_concern=WriteConcern("majority", j=True), read_concern=ReadConcern("majority")
                )
                yield Shop(
                    replicas,
                    old,
                    new,
                    lamp,
                    **ids,
                    read_by_majority=await documents.find_one(where),
                    read_by_empty_update=await documents.find_one_and_update(
                        where, {"$set": {"user": "cancelled_since"}}, return_document=ReturnDocument.AFTER
                    ),
                )


async def _is_settled(service: Service, order_id: str) -> bool:
    document = await get_document(service, order_id)
    return not document.keys() & {"outbox", "release_due"}


async def _responds(service: Service) -> bool:
    try:
        await service.deps.orders.collection.ping()
    except Unavailable:
        return False
    return True


async def test_the_old_primary_returns_old_data_for_a_majority_read_and_for_an_update_that_changes_nothing(
    shop: Shop,
) -> None:
    assert shop.read_by_majority["status"] == "confirmed"
    assert shop.read_by_empty_update["status"] == "confirmed"
    assert await shop.replicas.old.is_primary()
    assert await shop.replicas.new.is_primary()
    assert (await get_document(shop.new, shop.cancelled_since))["status"] == "cancelled"


async def test_the_old_primary_returns_neither_an_order_nor_that_there_is_none_as_the_latest(shop: Shop) -> None:
    orders = shop.old.deps.orders

    results = await asyncio.gather(
        *(orders.get_latest(UUID(order_id)) for order_id in (shop.cancelled_since, shop.placed_since, str(uuid4()))),
        return_exceptions=True,
    )

    assert [isinstance(result, Unavailable) for result in results] == [True, True, True], results
    assert await shop.replicas.old.is_primary()
    latest = await shop.new.deps.orders.get_latest(UUID(shop.cancelled_since))
    assert latest is not None
    assert latest.status is Status.CANCELLED
    assert await shop.new.deps.orders.get_latest(uuid4()) is None


async def test_requests_to_the_old_primary_are_not_decided_by_old_data(shop: Shop, stock: Stock) -> None:
    available = await stock.available(shop.lamp)

    responses = await asyncio.gather(
        shop.repeat(shop.old, "cancelled_since"),
        shop.repeat(shop.old, "placed_since"),
        shop.old.http.delete(f"/api/order/{shop.placed_since}"),
        shop.old.http.delete(f"/api/order/{shop.confirmed}"),
    )

    assert [response.status_code for response in responses] == [503] * 4
    assert await shop.replicas.old.is_primary()
    repeats = [await shop.repeat(shop.new, user) for user in ("cancelled_since", "placed_since", "confirmed")]
    assert [(r.json()["id"], r.json()["status"]) for r in repeats] == [
        (shop.cancelled_since, "cancelled"),
        (shop.placed_since, "confirmed"),
        (shop.confirmed, "confirmed"),
    ]
    assert await stock.available(shop.lamp) == available


async def test_the_old_primary_suffices_to_cancel_an_order_again_that_it_knows_as_cancelled(shop: Shop) -> None:
    async def is_cancelled() -> bool:
        # The deadline is short, so a slow machine may exceed it.
        return (await shop.old.http.delete(f"/api/order/{shop.cancelled_before}")).status_code == 204

    await until(is_cancelled, what="204")


async def test_a_read_that_the_paused_primary_receives_does_not_return_what_it_knew_before(
    server_directory: Path,
) -> None:
    order_id = uuid4()
    where = {"_id": order_id}
    async with (
        replica_set(server_directory / "paused-primary") as replicas,
        _collection(replicas.old.uri) as old,
        _collection(replicas.new.uri) as new,
        _collection(replicas.uri) as whole_set,
    ):
        await old.pymongo_collection.insert_one({**where, "status": "confirmed"})
        assert [d["status"] for d in await old.find_latest([where])] == ["confirmed"]
        await replicas.replace_primary()
        assert await new.update_one(where, {"$set": {"status": "cancelled"}})
        reads = [asyncio.create_task(old.find_latest([where])) for _ in range(4)]
        replicas.old.address.admit()
        replicas.old.server.resume()
        await replicas.reconnect()
        results = await asyncio.gather(*reads, return_exceptions=True)
        statuses = [r[0]["status"] if isinstance(r, list) else r for r in results]
        assert all(status == "cancelled" or isinstance(status, Unavailable) for status in statuses), statuses
        # The increment that no majority had acknowledged was rolled back, if there was one.
        counts = [(await member.client.orders.barriers.find_one())["count"] for member in (replicas.old, replicas.new)]
        assert counts[0] == counts[1]
        assert [d["status"] for d in await whole_set.find_latest([where])] == ["cancelled"]


@asynccontextmanager
async def _collection(uri: str) -> AsyncIterator[OrdersCollection]:
    client = create_client(MongoDB(uri=uri, timeout_seconds=PATIENCE))
    try:
        yield OrdersCollection(client["orders"], timeout_seconds=PATIENCE)
    finally:
        await client.close()
