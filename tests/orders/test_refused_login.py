"""MongoDB refuses the login, as during a password rotation: the store is unavailable, not broken."""

from __future__ import annotations

from typing import Any

import pytest

from market.kit.errors import Unavailable
from market.orders.config import MongoDB
from market.orders.mongodb.collection import OrdersCollection, create_client
from tests.support.waiting import PATIENCE


async def test_a_login_that_mongodb_refuses_makes_the_store_unavailable(mongodb: Any) -> None:
    uri = mongodb.uri.replace("mongodb://", "mongodb://nobody:wrong@")
    config = MongoDB(uri=uri, database="refused", timeout_seconds=PATIENCE)
    async with create_client(config) as client:
        orders = OrdersCollection(client[config.database], timeout_seconds=PATIENCE)
        for call in (
            lambda: orders.find({}),
            lambda: orders.update_one({}, {"$set": {"status": "confirmed"}}),
            orders.server_time,
        ):
            with pytest.raises(Unavailable, match="unavailable") as raised:
                await call()
            assert (raised.value.status, raised.value.retry_after) == (503, 1)
        with pytest.raises(Unavailable, match="Authentication failed"):
            await orders.ping()
