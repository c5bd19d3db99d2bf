"""MongoDB fails batches of writes: during an election, without a majority, and in ways that only old servers do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pymongo
import pytest
from market_dev.stack import processes
from market_dev.stack.servers.mongodb import Mongodb

from market.kit import context
from market.kit.errors import Unavailable
from market.orders.config import MongoDB
from market.orders.idempotency.keys import IdempotencyKeyRepository
from market.orders.mongodb.collection import OrdersCollection, create_client
from market.orders.mongodb.documents import ConditionalUpdate
from market.orders.store import OrderRepository
from tests.support.ports import free_port
from tests.support.servers import UriHandle, running

from .model_checker import INTENT

PRIMARY_STEPPED_DOWN, INTERRUPTED_BY_STEP_DOWN, NO_MAJORITY = 189, 11602, 64
TIMEOUT_SECONDS = 10.0
ELECTION = {"errorCode": INTERRUPTED_BY_STEP_DOWN}
BROKEN_CONNECTION = {"closeConnection": True}
# The write is applied, but it is not known whether a majority will have it.
ELECTION_AFTERWARDS = {"writeConcernError": {"code": PRIMARY_STEPPED_DOWN, "errmsg": "stepped down"}}


class _Mongod(Mongodb):
    """A server whose commands a test can let fail."""

    def command(self) -> processes.Command:
        command = super().command()
        return replace(command, args=[*command.args, "--setParameter", "enableTestCommands=1"])


class Writes:
    """The collection, and how often commands fail."""

    def __init__(self, client: pymongo.AsyncMongoClient[dict[str, Any]]) -> None:
        self._admin = client.admin
        self.orders = OrdersCollection(client.get_database("orders"), timeout_seconds=TIMEOUT_SECONDS)

    async def fail(self, failure: Mapping[str, Any], times: int) -> None:
        """Let the next commands that insert or update fail."""
        data = {"failCommands": ["insert", "update"], **failure}
        await self._admin.command({"configureFailPoint": "failCommand", "mode": {"times": times}, "data": data})

    async def count_failures(self) -> int:
        """Stop failures, and return how many commands have failed since the server's start."""
        response = await self._admin.command({"configureFailPoint": "failCommand", "mode": "off"})
        return int(response["count"])

    async def find(self, order_id: UUID) -> Mapping[str, Any] | None:
        found = await self.orders.find({"_id": order_id})
        return found[0] if found else None


@pytest.fixture
async def writes(server_directory: Path) -> AsyncIterator[Writes]:
    directory = server_directory / f"failing-{uuid4()}"
    with running(UriHandle(server := _Mongod(free_port(), directory, directory / "logs"))):
        client = create_client(MongoDB(uri=server.uri, database="orders", timeout_seconds=TIMEOUT_SECONDS))
        try:
            yield Writes(client)
        finally:
            await client.close()


async def test_a_batch_is_written_again_until_there_is_a_primary(writes: Writes) -> None:
    for n, failure in enumerate([ELECTION, BROKEN_CONNECTION]):
        order_id = UUID(int=n)
        await writes.fail(failure, times=3)
        assert await writes.orders.insert([{"_id": order_id, "status": "pending"}]) == {}
        await writes.fail(failure, times=3)
        update = ConditionalUpdate({"_id": order_id, "status": "pending"}, {"$set": {"status": "confirmed"}})
        assert await writes.orders.update_each([update]) == 1
        await writes.fail(failure, times=3)
        assert await writes.orders.update_all({"_id": {"$in": [order_id]}}, {"$unset": {"status": 1}}) == 1
        assert await writes.find(order_id) == {"_id": order_id}
    assert await writes.count_failures() == 18


async def test_a_batch_that_an_election_interrupts_is_written_again_and_finds_its_own_writes(writes: Writes) -> None:
    await writes.fail(ELECTION_AFTERWARDS, times=2)
    errors = await writes.orders.insert([{"_id": UUID(int=1), "status": "pending"}])
    assert [(n, error["code"], error["keyPattern"]) for n, error in errors.items()] == [(0, 11000, {"_id": 1})]
    await writes.fail(ELECTION_AFTERWARDS, times=2)
    update = ConditionalUpdate({"_id": UUID(int=1), "status": "pending"}, {"$set": {"status": "confirmed"}})
    assert await writes.orders.update_each([update]) == 0
    assert await writes.find(UUID(int=1)) == {"_id": UUID(int=1), "status": "confirmed"}
    assert await writes.count_failures() == 4


async def test_a_server_that_does_not_become_the_primary_is_not_flooded(writes: Writes) -> None:
    for failure in (ELECTION, ELECTION_AFTERWARDS):
        await writes.fail(failure, times=1_000_000)
        with context.deadline_in(2), pytest.raises(Unavailable):
            await writes.orders.insert([{"_id": uuid4()}])
    assert 4 <= await writes.count_failures() < 200


async def test_a_batch_without_a_majority_is_not_written_again(writes: Writes) -> None:
    await writes.fail({"writeConcernError": {"code": NO_MAJORITY, "errmsg": "timed out"}}, times=1)
    with pytest.raises(Unavailable, match="could not make the write durable"):
        await writes.orders.insert([{"_id": UUID(int=1)}])
    # The write errors of a batch say nothing if the others may be lost.
    await writes.fail({"writeConcernError": {"code": NO_MAJORITY, "errmsg": "timed out"}}, times=1)
    with pytest.raises(Unavailable, match="could not make the write durable"):
        await writes.orders.insert([{"_id": UUID(int=1)}, {"_id": UUID(int=2)}])
    assert await writes.count_failures() == 2


async def test_an_order_is_not_taken_for_stored_if_the_error_does_not_name_the_index() -> None:
    class OldServer:
        async def insert(self, new: Sequence[Mapping[str, Any]]) -> Mapping[int, Mapping[str, Any]]:
            return {0: {"index": 0, "code": 11000, "errmsg": "E11000 duplicate key error index: user_key"}}

    collection: Any = OldServer()
    orders = OrderRepository(collection, IdempotencyKeyRepository(collection), instance_id="here")
    with pytest.raises(Unavailable, match="rejected the order"):
        await orders.add(INTENT)
