"""The gateway over fakes of products and orders."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.graphql.graphql_gateway import Gateway, running_gateway


@pytest.fixture(scope="session")
async def shared_gateway() -> AsyncIterator[Gateway]:
    async with running_gateway() as it:
        yield it


@pytest.fixture
def gateway(shared_gateway: Gateway) -> Gateway:
    """The shared gateway, with upstreams that respond normally again."""
    shared_gateway.products.reset()
    shared_gateway.orders.reset()
    return shared_gateway
