"""Orders calls inventory with its own token, no matter who caused the call, and products without one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import grpc.aio
import msgspec
import pytest

from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2_grpc import InventoryServicer, add_InventoryServicer_to_server
from market.kit import context
from market.kit.auth.identity import ANONYMOUS, Identity, identity, token
from market.orders.config import Config
from market.orders.domain import Step
from market.orders.reconciliation import command as reconciliation
from tests.support.issuer import Client, Issuer
from tests.support.ports import free_port
from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .service import IDLE, MakeSettings, Settings, on_new_database, recover_all, serving
from .sign_in import Shop


class RecordingInventory(InventoryServicer):  # type: ignore[misc]
    """An inventory that always has stock.

    `calls`: the method and the header Authorization of each call; a missing header is "". `releases_fail`: respond to
    releases with UNAVAILABLE.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.releases_fail = False
        self.port = free_port()

    def _record(self, method: str, rpc_context: Any) -> None:
        metadata = dict(rpc_context.invocation_metadata())
        self.calls.append((method, str(metadata.get("authorization", ""))))

    async def Reserve(self, _: Any, rpc_context: Any) -> Any:
        self._record("Reserve", rpc_context)
        return pb.ReserveResponse(reserved=True)

    async def ReserveMany(self, request: Any, rpc_context: Any) -> Any:
        self._record("ReserveMany", rpc_context)
        result = pb.ReserveManyResult(answer=pb.ReserveResponse(reserved=True))
        return pb.ReserveManyResponse(results=[result] * len(request.reservations))

    async def CancelReserve(self, _: Any, rpc_context: Any) -> Any:
        self._record("CancelReserve", rpc_context)
        if self.releases_fail:
            await rpc_context.abort(grpc.StatusCode.UNAVAILABLE, "on purpose")
        return pb.CancelReserveResponse(released=True)

    async def ListReservations(self, _: Any, rpc_context: Any) -> Any:
        self._record("ListReservations", rpc_context)
        return pb.ListReservationsResponse()

    async def GetStock(self, _: Any, rpc_context: Any) -> Any:
        self._record("GetStock", rpc_context)
        return pb.GetStockResponse()


@pytest.fixture
async def inventory() -> AsyncIterator[RecordingInventory]:
    inventory = RecordingInventory()
    server = grpc.aio.server()
    add_InventoryServicer_to_server(inventory, server)
    server.add_insecure_port(f"127.0.0.1:{inventory.port}")
    await server.start()
    yield inventory
    await server.stop(0)


@pytest.fixture
async def settings(
    make_settings: MakeSettings, migrated: None, inventory: RecordingInventory, issuer: Issuer, tmp_path: Path
) -> Settings:
    """A configuration with sign-in and a token file, whose content is "service-1"."""
    (tmp_path / "token").write_text("service-1\n")
    make = await on_new_database(make_settings)
    return make(
        auth={"mode": "required", "issuer": issuer.url},
        inventory={"target": f"127.0.0.1:{inventory.port}", "timeout_seconds": 20},
        service_identity={"token_file": str(tmp_path / "token")},
        recovery=IDLE,
    )


@pytest.fixture
async def shop(settings: Settings, issuer: Issuer) -> AsyncIterator[Shop]:
    async with serving(settings, background=False) as service:
        yield Shop(service, issuer)


async def test_reservations_and_releases_carry_the_services_token(
    shop: Shop, inventory: RecordingInventory, catalogue: FakeCatalogue, tmp_path: Path
) -> None:
    ann = shop.sign_in("ann")
    lamp = catalogue.add()
    placed = await ann.place([(lamp, 1)])
    assert placed.status_code == 201
    assert inventory.calls == [("Reserve", "Bearer service-1")]
    # The file is replaced, as Kubernetes does, and is read again.
    (tmp_path / "next").write_text("service-2")
    (tmp_path / "next").rename(tmp_path / "token")
    await asyncio.sleep(1.1)
    assert (await ann.cancel(placed.json()["id"])).status_code == 204
    assert inventory.calls[1:] == [("CancelReserve", "Bearer service-2")]


async def test_a_batch_of_several_callers_carries_the_services_token(
    shop: Shop, inventory: RecordingInventory, catalogue: FakeCatalogue
) -> None:
    lamp = catalogue.add()
    callers = [shop.sign_in(f"buyer-{n}") for n in range(64)]
    responses = await asyncio.gather(*(caller.place([(lamp, 1)]) for caller in callers))
    assert [r.json()["user"] for r in responses] == [f"buyer-{n}" for n in range(64)]
    assert {authorization for _, authorization in inventory.calls} == {"Bearer service-1"}
    assert "ReserveMany" in {method for method, _ in inventory.calls}


async def test_recovery_releases_stock_with_the_services_token(
    shop: Shop, inventory: RecordingInventory, catalogue: FakeCatalogue
) -> None:
    ann = shop.sign_in("ann")
    order_id = (await ann.place([(catalogue.add(), 1)])).json()["id"]
    inventory.releases_fail = True
    assert (await ann.cancel(order_id)).status_code == 202
    inventory.releases_fail = False
    inventory.calls.clear()

    async def released() -> bool:
        # The circuit breaker may still be open.
        await recover_all(shop.service)
        return bool(inventory.calls)

    await until(released, what="release")
    assert set(inventory.calls) == {("CancelReserve", "Bearer service-1")}


@pytest.mark.parametrize("products", [1, 250])
async def test_products_gets_no_token(shop: Shop, catalogue: FakeCatalogue, products: int) -> None:
    """Prices are public. Orders with up to 100 products share requests, larger ones have their own."""
    catalogue.authorizations.clear()
    lines = [(catalogue.add(), 1) for _ in range(products)]
    assert (await shop.sign_in("ann").place(lines)).status_code == 201
    assert catalogue.authorizations
    assert set(catalogue.authorizations) == {None}


async def test_a_token_by_client_credentials_is_fetched_once(
    settings: Settings, issuer: Issuer, inventory: RecordingInventory, catalogue: FakeCatalogue
) -> None:
    secret = uuid4().hex
    issuer.clients["orders"] = Client(secret, {"subject": "service-orders", "audience": "inventory"})
    issued = len(issuer.issued)
    with_client = {**settings, "service_identity": {"client_id": "orders", "client_secret": secret}}
    async with serving(with_client, background=False) as service:
        ann = Shop(service, issuer).sign_in("ann")
        for _ in range(3):
            assert (await ann.place([(catalogue.add(), 1)])).status_code == 201
    own = [token for token in issuer.issued[issued:] if token != ann.token]
    assert len(own) == 1
    assert inventory.calls == [("Reserve", f"Bearer {own[0]}")] * 3


async def test_without_a_token_of_its_own_nothing_is_reserved(
    shop: Shop, inventory: RecordingInventory, catalogue: FakeCatalogue, tmp_path: Path
) -> None:
    (tmp_path / "token").unlink()
    response = await shop.sign_in("ann").place([(catalogue.add(), 1)])
    assert (response.status_code, response.json()["type"]) == (503, "urn:market:problem:unavailable")
    assert "this service has no token" in response.json()["detail"]
    assert inventory.calls == []


async def test_reconciliation_needs_no_caller_and_carries_the_services_token(
    settings: Settings, inventory: RecordingInventory
) -> None:
    assert await reconciliation.run(msgspec.convert(settings, Config), []) == 0
    assert inventory.calls == [("ListReservations", "Bearer service-1")]


async def test_work_that_outlives_a_request_acts_as_the_service(shop: Shop) -> None:
    seen: list[tuple[Identity, str, str]] = []

    async def work() -> None:
        seen.append((identity.get(), token.get(), context.request_id.get()))

    ann = Identity(subject="ann")
    identity.set(ann)
    token.set("ann's token")
    context.request_id.set("request-1")
    shop.service.deps.run_in_background(Step.PUBLISH, uuid4(), work())
    await until(lambda: bool(seen), what="background work")
    assert seen == [(ANONYMOUS, "", "request-1")]
    assert identity.get() is ann
