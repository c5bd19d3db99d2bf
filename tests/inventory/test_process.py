"""`python -m market.inventory` as the shop runs it: start in any order, migrate, drain, crash, two processes at
once."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import grpc
import msgspec
import pytest

from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2_grpc import InventoryStub
from market.inventory.app import MIGRATIONS, build
from market.inventory.config import Config
from market.inventory.domain import FAILURE_POINTS
from market.kit import migrations as kit_migrations
from market.kit.process.lifecycle import run
from tests.support.processes import ServiceProcess
from tests.support.waiting import until

from .conftest import MakeProcess, grpc_channel

A = str(UUID(int=1))


def reserve_request(quantity: int = 1) -> pb.ReserveRequest:
    return pb.ReserveRequest(reservation_id=str(uuid4()), items=[pb.Item(product_id=A, quantity=quantity)])


async def until_missing(process: ServiceProcess, name: str) -> str:
    """Wait until /readyz reports `name` as missing, and return the reason."""

    async def reason() -> str | None:
        _, body = await asyncio.to_thread(process.get, "/readyz")
        return (body or {}).get("reasons", {}).get(name)

    return await until(reason)


async def test_sigterm_finishes_calls_in_flight_and_exits_with_zero(make_process: MakeProcess, tables):
    process = make_process(testing=True)
    process.start()
    await process.ready()
    async with grpc_channel(process) as channel:
        stub = InventoryStub(channel)
        await stub.SetStock(pb.SetStockRequest(product_id=A, quantity=10))
        process.arm("inventory.inside-reserve", "pause 0.5")
        call = asyncio.ensure_future(stub.Reserve(reserve_request()))
        await until(lambda: process.reached("inventory.inside-reserve"))
        process.terminate()
        assert (await call).reserved
    assert await process.exited() == 0
    assert await tables.stock(UUID(A)) == [9]


async def test_a_call_interrupted_by_a_crash_at_any_failure_point_can_be_retried(make_process: MakeProcess, tables):
    process = make_process(testing=True)
    stock_after_crash = {
        "inventory.inside-reserve": 10,
        "inventory.after-commit": 7,
        "inventory.inside-cancel": 7,
        "inventory.after-cancel": 10,
    }
    assert tuple(stock_after_crash) == FAILURE_POINTS
    async with grpc_channel(process) as channel:
        stub = InventoryStub(channel)
        process.start()
        await process.ready()
        for point, quantity in stock_after_crash.items():
            await stub.SetStock(pb.SetStockRequest(product_id=A, quantity=10), wait_for_ready=True)
            request: Any = reserve_request(3)
            call = stub.Reserve
            if "cancel" in point:
                await stub.Reserve(request)
                call, request = stub.CancelReserve, pb.CancelReserveRequest(reservation_id=request.reservation_id)
            process.arm(point)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(request)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await process.exited() == -signal.SIGKILL

            async def rolled_back(quantity: int = quantity) -> bool:
                # PostgreSQL notices that the connection is closed, and rolls back the open transaction.
                return await tables.stock(UUID(A)) == [quantity]

            await until(rolled_back)
            process.start()
            await process.ready()
            response = await call(request, wait_for_ready=True)
            if "cancel" in point:
                assert response.released is (point == "inventory.inside-cancel")
            else:
                assert response.reserved
            assert await tables.stock(UUID(A)) == [10 if "cancel" in point else 7]


async def test_two_processes_sell_no_unit_twice(make_process: MakeProcess, tables):
    processes = [make_process(), make_process()]
    for process in processes:
        process.start()
    async with AsyncExitStack() as stack:
        stubs = []
        for process in processes:
            await process.ready()
            stubs.append(InventoryStub(await stack.enter_async_context(grpc_channel(process))))
        await stubs[0].SetStock(pb.SetStockRequest(product_id=A, quantity=50))
        responses = await asyncio.gather(*(stubs[n % 2].Reserve(reserve_request()) for n in range(200)))
    assert sum(response.reserved for response in responses) == 50
    assert await tables.stock(UUID(A)) == [0]
    for process in processes:
        assert await process.stop() == 0


async def test_it_starts_before_the_database_and_its_schema_and_logs_what_it_waits_for(
    make_process: MakeProcess, postgres, migrated_database
):
    admin = await asyncpg.connect(
        host=postgres.host, port=postgres.port, database="inventory", user="inventory", password=postgres.password
    )
    schema = f"s{uuid4().hex}"
    try:
        await admin.execute(f"CREATE SCHEMA {schema}; ALTER ROLE inventory SET search_path = {schema}")
        await asyncio.to_thread(postgres.kill)
        process = make_process()
        process.start()
        await until_missing(process, "postgres")
        await asyncio.to_thread(postgres.restart)
        assert "0001_stock_and_reservations.sql" in await until_missing(process, "schema")
        migration = make_process()
        migration.start("migrate")
        assert await migration.exited() == 0
        await process.ready()
        lines = [msgspec.json.decode(line) for line in process.log.splitlines()]
        waits = [(line["dependency"], line["reason"]) for line in lines if line["event"] == "waiting for dependency"]
        assert {dependency for dependency, _ in waits} == {"postgres", "schema"}
        assert len(set(waits)) == len(waits), "each reason is logged once"
        assert await process.stop() == 0
    finally:
        admin.terminate()
        admin = await asyncpg.connect(
            host=postgres.host, port=postgres.port, database="inventory", user="inventory", password=postgres.password
        )
        await admin.execute(f"ALTER ROLE inventory RESET search_path; DROP SCHEMA {schema} CASCADE")
        await admin.close()


async def test_sigterm_while_it_waits_for_the_database_exits_with_zero(make_process: MakeProcess):
    process = make_process(postgres={"host": "127.0.0.1", "port": 1, "database": "x", "user": "x", "password": "x"})
    process.start()
    await until_missing(process, "postgres")
    assert await process.stop() == 0


async def test_repeated_and_concurrent_migrations_change_nothing(migrated_database):
    assert await kit_migrations.migrate(migrated_database, MIGRATIONS) == []
    assert await asyncio.gather(*(kit_migrations.migrate(migrated_database, MIGRATIONS) for _ in range(3))) == [
        [],
        [],
        [],
    ]


GOOD = """
admin: {port: 9090}
grpc: {port: 9091}
postgres: {host: localhost, database: d, user: u, password: p}
"""


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "cannot be read: No such file or directory"),
        ("a: [", "is not valid YAML: line"),
        ("- 1", "must be a mapping of keys"),
        (GOOD + "colour: red", "colour"),
        (GOOD.replace("port: 9091", "port: 0"), "grpc.port: "),
        (GOOD.replace("grpc: {port: 9091}", ""), "grpc"),
        (
            GOOD.replace("user: u", "user: '${NO_SUCH_NAME}'"),
            "postgres.user: environment variable NO_SUCH_NAME is not set",
        ),
        (GOOD + "batching: {max_batch_size: 0}", "batching.max_batch_size: "),
        (GOOD + "retention: {cancelled_days: soon}", "retention.cancelled_days: "),
        (GOOD + "faults: {directory: /tmp}", "faults: only allowed if testing is true"),
    ],
)
def test_an_invalid_configuration_is_reported_in_one_line(tmp_path, monkeypatch, capsys, text, reason):
    file = tmp_path / "inventory.yaml"
    if text is not None:
        file.write_text(text, "utf-8")
    monkeypatch.setenv("CONFIG_PATH", str(file))
    with pytest.raises(SystemExit) as ended:
        run("inventory", Config, build, argv=[])
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"market.inventory: {file}: ")
    assert reason in lines[0]
