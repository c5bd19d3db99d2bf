"""Orders calls inventory with a token of its own. If inventory refuses it, buyers are told to try again later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from market.inventory.app import build as build_inventory
from market.inventory.config import Config as InventoryConfig
from market.inventory.config import Grpc, InventoryAuth
from market.kit.config import Listen, Postgres
from market.kit.process.lifecycle import Process
from tests.support.issuer import Issuer
from tests.support.ports import free_port

from .catalogue import FakeCatalogue
from .service import IDLE, MakeSettings, on_new_database, serving
from .sign_in import Caller
from .stock import Stock

SERVICE = "system:serviceaccount:market:order-service"
AUDIENCE = "market-inventory"


@pytest.fixture
async def inventory_with_callers(issuer: Issuer, stock: Stock, postgres: Any) -> AsyncIterator[str]:
    """The address of an inventory that only orders may call, on the tables of `stock`."""
    config = InventoryConfig(
        admin=Listen(port=free_port()),
        grpc=Grpc(port=free_port()),
        postgres=Postgres(
            host=postgres.host,
            port=postgres.port,
            database="inventory",
            user="inventory",
            password=postgres.password,
            pool_size=2,
        ),
        auth=InventoryAuth(mode="required", issuer=issuer.url, audience=AUDIENCE, callers={SERVICE: "orders"}),
    )
    async with build_inventory(config, Process()) as server:
        await server.start()
        yield f"127.0.0.1:{config.grpc.port}"
        await server.stop(1)


async def test_a_buyer_gets_503_while_inventory_refuses_orders(
    make_settings: MakeSettings,
    inventory_with_callers: str,
    issuer: Issuer,
    stock: Stock,
    catalogue: FakeCatalogue,
    tmp_path: Path,
) -> None:
    product = catalogue.add()
    await stock.set(product, 5)
    token_file = tmp_path / "token"
    token_file.write_text(issuer.token(SERVICE, audience=AUDIENCE, expires_in=-100))
    settings = (await on_new_database(make_settings))(
        auth={"mode": "required", "issuer": issuer.url},
        service_identity={"token_file": str(token_file)},
        inventory={"target": inventory_with_callers, "timeout_seconds": 20},
        recovery=IDLE,
    )
    async with serving(settings, background=False) as service:
        ann = Caller(service.http, issuer.token("ann"))
        key = str(uuid4())
        with capture_logs() as lines:
            refused = await ann.place([(product, 1)], key=key)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert "www-authenticate" not in refused.headers
        [line] = [line for line in lines if line["event"] == "service identity refused"]
        assert (line["upstream"], line["reason"]) == ("inventory", "the token has expired")
        assert await service.process.health.unavailable_dependencies() == {
            "inventory-identity": "the token has expired"
        }
        token_file.write_text(issuer.token(SERVICE, audience=AUDIENCE))
        async with asyncio.timeout(60):
            while (placed := await ann.place([(product, 1)], key=key)).status_code == 503:
                await asyncio.sleep(0.1)
        # The refused request has left a pending order, which the repeated one confirms.
        assert (placed.status_code, placed.json()["status"]) == (200, "confirmed")
        assert await service.process.health.unavailable_dependencies() == {}
    assert await stock.available(product) == 4
