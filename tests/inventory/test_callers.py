"""Inventory knows its callers: which service may call which method, and whose call each entry of a batch is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from market.contracts import access
from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2_grpc import InventoryStub
from market.inventory import app
from market.inventory.config import Config, Grpc, InventoryAuth
from market.inventory.service import Deps
from market.kit.auth.authenticator import authenticator
from market.kit.auth.permissions import Permission
from market.kit.batching import BATCH_ITEMS
from market.kit.config import ConfigError, Listen, Postgres, load
from market.kit.process import logs
from market.kit.process.lifecycle import Process
from tests.support.issuer import Issuer
from tests.support.ports import free_port

from .calls import A, item
from .conftest import Tables, until_blocking

PRODUCTS, ORDERS = (f"system:serviceaccount:market:{name}-service" for name in ("product", "order"))
AUDIENCE = "market-inventory"


@pytest.fixture(scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as issuer:
        yield issuer


@dataclass
class RunningServer:
    """A gRPC server in this process, a channel to it, and what its use cases work with."""

    channel: grpc.aio.Channel
    deps: Deps

    @property
    def stub(self) -> InventoryStub:
        return InventoryStub(self.channel)


@pytest.fixture
async def server(migrated_database: Postgres, tables: Tables, issuer: Issuer) -> AsyncIterator[RunningServer]:
    callers: dict[str, Any] = {PRODUCTS: "products", ORDERS: "orders"} | {f"pod-{n}": "products" for n in range(64)}
    config = Config(
        admin=Listen(port=free_port()),
        grpc=Grpc(port=free_port()),
        postgres=migrated_database,
        auth=InventoryAuth(mode="required", issuer=issuer.url, audience=AUDIENCE, callers=callers),
    )
    process = Process()
    async with (
        app.open_deps(config, process) as deps,
        authenticator(config.auth, callers=config.auth.callers) as verifier,
        grpc.aio.insecure_channel(f"127.0.0.1:{config.grpc.port}") as channel,
    ):
        server = app.server(config, process, deps, verifier)
        await server.start()
        process.health.started = True
        yield RunningServer(channel, deps)
        await server.stop(0)


def requests() -> dict[str, Any]:
    """Return a valid request for each method; those that write change product A or its reservations."""
    reservation = pb.ReserveRequest(reservation_id=str(uuid4()), items=[item(A, 1)])
    return {
        "CheckAvaliable": pb.CheckAvaliableRequest(product_ids=[A]),
        "GetStock": pb.GetStockRequest(product_ids=[A]),
        "SetStock": pb.SetStockRequest(product_id=A, quantity=7),
        "AddDelivery": pb.AddDeliveryRequest(product_id=A, delivery_id=str(uuid4()), quantity=1, product_version=1),
        "AddStock": pb.AddStockRequest(movement_id=str(uuid4()), product_id=A, delta=1),
        "Reserve": reservation,
        "ReserveMany": pb.ReserveManyRequest(reservations=[reservation]),
        "CancelReserve": pb.CancelReserveRequest(reservation_id=str(uuid4())),
        "ListReservations": pb.ListReservationsRequest(),
    }


async def call(server: RunningServer, method: str, token: str | None, request: Any = None, **metadata: str) -> Any:
    headers = [*metadata.items()] if token is None else [("authorization", f"Bearer {token}"), *metadata.items()]
    return await getattr(server.stub, method)(request or requests()[method], metadata=headers)


@pytest.mark.parametrize("method", access.INVENTORY)
async def test_only_the_services_of_the_table_may_call_a_method(
    server: RunningServer, issuer: Issuer, tables: Tables, method: str
) -> None:
    await call(
        server, "SetStock", issuer.token(PRODUCTS, audience=AUDIENCE), pb.SetStockRequest(product_id=A, quantity=3)
    )
    before = await tables.everything()
    unauthenticated = {
        None: "this requires a bearer token",
        "garbage": "the token",
        issuer.token(PRODUCTS): "audience",
        issuer.token(PRODUCTS, audience=AUDIENCE, expires_in=-100): "the token has expired",
    }
    for token, reason in unauthenticated.items():
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(server, method, token)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert reason in (refused.value.details() or "")
        assert error_info(refused.value).reason == "UNAUTHENTICATED"
    allowed = access.INVENTORY[method].callers
    callers = {PRODUCTS: "products", ORDERS: "orders", "ann": None, "system:serviceaccount:other:product-service": None}
    forbidden = [subject for subject, service in callers.items() if service not in allowed]
    for subject in forbidden:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(
                server, method, issuer.token(subject, audience=AUDIENCE, roles=["merchant", "operator", "service"])
            )
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert error_info(refused.value).reason == "FORBIDDEN"
    assert await tables.everything() == before
    for subject in callers.keys() - forbidden:
        await call(server, method, issuer.token(subject, audience=AUDIENCE))
    assert (access.INVENTORY[method].service is Permission.YES) == bool(allowed)


def error_info(error: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "market"
    return info


async def test_probes_need_no_token(server: RunningServer) -> None:
    response = await health_pb2_grpc.HealthStub(server.channel).Check(health_pb2.HealthCheckRequest())
    assert response.status == health_pb2.HealthCheckResponse.SERVING


async def test_each_write_of_a_batch_is_audited_as_that_of_its_own_caller(
    server: RunningServer, issuer: Issuer, tables: Tables
) -> None:
    """While a transaction waits for a lock, the writes of 64 callers collect into the next one."""
    first = str(uuid4())
    token = issuer.token(PRODUCTS, audience=AUDIENCE)
    await call(server, "SetStock", token, pb.SetStockRequest(product_id=first, quantity=1))
    batches = BATCH_ITEMS.labels("inventory.set-stock")
    ids = [str(uuid4()) for _ in range(64)]
    with capture_logs(processors=[logs._add_request]) as lines:
        async with tables.conn.transaction():
            await tables.conn.execute("SELECT 1 FROM inventory WHERE product_id = $1 FOR UPDATE", UUID(first))
            blocked = asyncio.create_task(
                call(server, "SetStock", token, pb.SetStockRequest(product_id=first, quantity=2))
            )
            await until_blocking(tables.conn, blocked)
            count = sum(bucket.get() for bucket in batches._buckets)
            writes = [
                asyncio.create_task(
                    call(
                        server,
                        "SetStock",
                        issuer.token(f"pod-{n}", audience=AUDIENCE),
                        pb.SetStockRequest(product_id=product_id, quantity=n),
                        **{"x-request-id": f"request-{n}"},
                    )
                )
                for n, product_id in enumerate(ids)
            ]
            with pytest.raises(grpc.aio.AioRpcError, match="PERMISSION_DENIED"):
                await call(
                    server,
                    "SetStock",
                    issuer.token(ORDERS, audience=AUDIENCE),
                    pb.SetStockRequest(product_id=ids[0], quantity=99),
                )
            async with asyncio.timeout(60):
                while server.deps.batcher.stock_writes.pending < 64:
                    await asyncio.sleep(0.02)
        responses = await asyncio.gather(*writes)
        await blocked
    # One call for all 64.
    assert sum(bucket.get() for bucket in batches._buckets) == count + 1
    assert [response.quantity for response in responses] == list(range(64))
    audited = {line["target"]: line for line in lines if line["event"] == "stock set"}
    assert {
        target: (line["subject"], line.get("request_id", ""), line["after"]["stock"])
        for target, line in audited.items()
    } == {
        f"product {first}": (PRODUCTS, "", 2),
        **{f"product {product_id}": (f"pod-{n}", f"request-{n}", n) for n, product_id in enumerate(ids)},
    }


async def test_the_audit_log_has_the_stock_before_each_write_of_a_product_in_one_batch(
    server: RunningServer, issuer: Issuer
) -> None:
    token = issuer.token(PRODUCTS, audience=AUDIENCE)
    product_id = str(uuid4())
    with capture_logs() as lines:
        for quantity, version in ((5, 2), (9, 1), (6, 3)):
            request = pb.SetStockRequest(product_id=product_id, quantity=quantity, product_version=version)
            await call(server, "SetStock", token, request)
    # The second one was superseded, and has changed nothing.
    assert [(line["before"], line["after"]) for line in lines if line["event"] == "stock set"] == [
        (None, {"stock": 5, "product_version": 2}),
        ({"stock": 5}, {"stock": 6, "product_version": 3}),
    ]


@pytest.mark.parametrize(
    ("auth", "reason"),
    [
        ("{mode: required, issuer: https://kubernetes.default.svc}", "auth: callers must be set"),
        ("{callers: {someone: graphql}}", "auth.callers"),
        ("{callers: {'': orders}}", "auth: callers must not have an empty subject"),
    ],
)
def test_callers_that_mean_nothing_are_mistakes_in_the_configuration(tmp_path: Path, auth: str, reason: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "admin: {port: 1}\ngrpc: {port: 2}\npostgres: {host: a, database: b, user: c, password: d}\n"
        f"auth: {auth}\n"
    )
    with pytest.raises(ConfigError, match=reason):
        load(path, Config, {})
