"""The whole shop on the local stack, started once for the tests of the storefront."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from market_dev.stack.stack import Stack
from market_dev.stack.topology import Options

from tests.storefront.signed_in import Browser, SigningIn, signing_in
from tests.storefront.visitor import Shop, Visitor
from tests.support.ports import free_port_base


@pytest.fixture(scope="session")
async def shop(server_directory: Path) -> AsyncIterator[Shop]:
    options = Options(server_directory / "storefront", port_base=free_port_base(), kafka="embedded", mail_testing=True)
    async with Stack(options) as stack:
        await stack.start()
        async with httpx.AsyncClient(timeout=60) as http:
            yield Shop(stack, http)


@pytest.fixture
async def visitor(shop: Shop) -> AsyncIterator[Visitor]:
    """Somebody with a browser, who has never been here."""
    async with shop.new_visitor() as visitor:
        yield visitor


@pytest.fixture(scope="session")
def provider_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the provider's key is, which takes a while to make."""
    return tmp_path_factory.mktemp("provider")


@pytest.fixture
async def world(provider_directory: Path) -> AsyncIterator[SigningIn]:
    """A storefront where people sign in."""
    async with signing_in(provider_directory) as world:
        yield world


@pytest.fixture
async def browser(world: SigningIn) -> AsyncIterator[Browser]:
    async with world.new_browser() as browser:
        yield browser
