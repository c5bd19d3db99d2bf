"""The local provider alone, and a whole shop that requires its tokens, or those of Keycloak."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from market_dev.issuer import keys
from market_dev.issuer.web import app
from market_dev.stack.sign_in import SignIn
from market_dev.stack.topology import ports

from market.kit.http.server import HttpServer
from tests.issuer.signed_in_shop import SignedInShop, running_shop
from tests.support.issuer import ON_KEYCLOAK
from tests.support.ports import free_port, free_port_base

ISSUERS = ["keycloak"] if ON_KEYCLOAK else ["local"]


@pytest.fixture(scope="package", params=ISSUERS)
async def shop(request: pytest.FixtureRequest, server_directory: Path) -> AsyncIterator[SignedInShop]:
    """A whole shop with the demo catalogue."""
    directory = Path(tempfile.mkdtemp(prefix="signed-in-", dir=server_directory))
    directory.chmod(0o755)
    async with running_shop(request.param, directory, "--kafka", "embedded") as shop:
        yield shop


@pytest.fixture
async def sign_in(tmp_path: Path) -> AsyncIterator[SignIn]:
    """How to sign in to a stack whose local provider runs, and nothing else of it."""
    port_base = free_port_base()
    port_of = ports(port_base)
    sign_in = SignIn.of_stack("local", tmp_path, port_of, port_base)
    settings = sign_in.provider_settings(port_of)
    server = HttpServer(app(settings, keys.load_or_create(tmp_path), sign_in.issuer), "127.0.0.1", port_of["issuer"])
    await server.start()
    yield sign_in
    await server.stop(0.1)


@pytest.fixture
def stopped_issuer() -> str:
    """The URL of an issuer that does not run."""
    return f"http://127.0.0.1:{free_port()}"
