"""The gateway over stand-ins of products and orders."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from graphql_shop import Gateway, gateway


@pytest.fixture(scope="session")
async def shared() -> AsyncIterator[Gateway]:
    async with gateway() as it:
        yield it


@pytest.fixture
def shop(shared: Gateway) -> Gateway:
    """The shared gateway, with backends that answer well again."""
    shared.products.reset()
    shared.orders.reset()
    return shared
