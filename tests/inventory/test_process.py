"""`python -m market.inventory` as the shop runs it: start in any order, migrate, drain, die, two at once."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from uuid import UUID, uuid4

import asyncpg
import grpc
import msgspec
import pytest

from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2_grpc import InventoryStub
from market.inventory.app import MIGRATIONS, build
from market.inventory.config import Config
from market.inventory.domain import POINTS
from market.kit import postgres as kit_postgres
from market.kit.process.lifecycle import run

A = str(UUID(int=1))


def wanted(quantity: int = 1, id: str | None = None) -> pb.ReserveRequest:
    return pb.ReserveRequest(reservation_id=id or str(uuid4()), items=[pb.Item(product_id=A, quantity=quantity)])


async def test_sigterm_finishes_what_is_under_way_and_ends_with_zero(service_process, tables, tmp_path):
    points = tmp_path / "points"
    points.mkdir()
    service = service_process(testing=True, faults={"directory": str(points)})
    service.start()
    await service.ready()
    async with service.channel() as channel:
        stub = InventoryStub(channel)
        await stub.SetStock(pb.SetStockRequest(product_id=A, quantity=10))
        (points / "inventory.inside-reserve").write_text("pause 0.5")
        call = asyncio.ensure_future(stub.Reserve(wanted()))
        while (points / "inventory.inside-reserve").exists():
            await asyncio.sleep(0.01)
        service.process.send_signal(signal.SIGTERM)
        assert (await call).reserved
    assert await service.exited() == 0
    assert await tables.stock(UUID(A)) == [9]


async def test_a_death_at_any_failure_point_is_mended_by_asking_again(service_process, tables, tmp_path):
    points = tmp_path / "points"
    points.mkdir()
    service = service_process(testing=True, faults={"directory": str(points)})
    expected = {
        "inventory.inside-reserve": 10,
        "inventory.after-commit": 7,
        "inventory.inside-cancel": 7,
        "inventory.after-cancel": 10,
    }
    assert tuple(expected) == POINTS
    async with service.channel() as channel:
        stub = InventoryStub(channel)
        service.start()
        await service.ready()
        for point, left in expected.items():
            await stub.SetStock(pb.SetStockRequest(product_id=A, quantity=10), wait_for_ready=True)
            request = wanted(3)
            call, repeated = stub.Reserve, request
            if "cancel" in point:
                await stub.Reserve(request)
                call, repeated = stub.CancelReserve, pb.CancelReserveRequest(reservation_id=request.reservation_id)
            (points / point).write_text("crash")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call(repeated)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert await service.exited() == -signal.SIGKILL
            async with asyncio.timeout(60):
                # The server notices that the connection is gone, and rolls back what was open.
                while await tables.stock(UUID(A)) != [left]:
                    await asyncio.sleep(0.02)
            service.start()
            await service.ready()
            answer = await call(repeated, wait_for_ready=True)
            if "cancel" in point:
                assert answer.released is (point == "inventory.inside-cancel")
            else:
                assert answer.reserved
            assert await tables.stock(UUID(A)) == [10 if "cancel" in point else 7]


async def test_two_processes_sell_no_unit_twice(service_process, tables):
    services = [service_process(), service_process()]
    for service in services:
        service.start()
    async with AsyncExitStack() as stack:
        stubs = []
        for service in services:
            await service.ready()
            stubs.append(InventoryStub(await stack.enter_async_context(service.channel())))
        await stubs[0].SetStock(pb.SetStockRequest(product_id=A, quantity=50))
        answers = await asyncio.gather(*(stubs[n % 2].Reserve(wanted()) for n in range(200)))
    assert sum(answer.reserved for answer in answers) == 50
    assert await tables.stock(UUID(A)) == [0]
    for service in services:
        service.process.send_signal(signal.SIGTERM)
        assert await service.exited() == 0


async def test_it_starts_before_its_database_and_before_its_tables_and_says_so(service_process, postgres, migrated):
    admin = await asyncpg.connect(
        host=postgres.host, port=postgres.port, database="inventory", user="inventory", password=postgres.password
    )
    schema = f"s{uuid4().hex}"
    try:
        await admin.execute(f"CREATE SCHEMA {schema}; ALTER ROLE inventory SET search_path = {schema}")
        await asyncio.to_thread(postgres.kill)
        service = service_process()
        service.start()
        while "postgres" not in (await service.readiness()).get("missing", {}):
            await asyncio.sleep(0.05)
        await asyncio.to_thread(postgres.restart)
        while "schema" not in (missing := (await service.readiness()).get("missing", {})):
            await asyncio.sleep(0.05)
        assert "0001_stock_and_reservations.sql" in missing["schema"]
        migration = service_process()
        migration.start("migrate")
        assert await migration.exited() == 0
        await service.ready()
        lines = [msgspec.json.decode(line) for line in service.log.splitlines()]
        waits = [(line["dependency"], line["reason"]) for line in lines if line["event"] == "waiting for dependency"]
        assert {dependency for dependency, _ in waits} == {"postgres", "schema"}
        assert len(set(waits)) == len(waits), "each reason is logged once"
        service.process.send_signal(signal.SIGTERM)
        assert await service.exited() == 0
    finally:
        admin.terminate()
        admin = await asyncpg.connect(
            host=postgres.host, port=postgres.port, database="inventory", user="inventory", password=postgres.password
        )
        await admin.execute(f"ALTER ROLE inventory RESET search_path; DROP SCHEMA {schema} CASCADE")
        await admin.close()


async def test_sigterm_while_it_waits_for_the_database_ends_with_zero(service_process):
    service = service_process(postgres={"host": "127.0.0.1", "port": 1, "database": "x", "user": "x", "password": "x"})
    service.start()
    while "postgres" not in (await service.readiness()).get("missing", {}):
        await asyncio.sleep(0.02)
    service.process.send_signal(signal.SIGTERM)
    assert await service.exited() == 0


async def test_migrating_twice_or_at_once_changes_nothing(migrated):
    assert await kit_postgres.migrate(migrated, MIGRATIONS) == []
    assert await asyncio.gather(*(kit_postgres.migrate(migrated, MIGRATIONS) for _ in range(3))) == [[], [], []]


GOOD = """
admin: {port: 9090}
grpc: {port: 9091}
postgres: {host: localhost, database: d, user: u, password: p}
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file or directory"),
        ("a: [", "is not YAML at line"),
        ("- 1", "must be a mapping of keys"),
        (GOOD + "colour: red", "colour"),
        (GOOD.replace("port: 9091", "port: 0"), "grpc.port: "),
        (GOOD.replace("grpc: {port: 9091}", ""), "grpc"),
        (GOOD.replace("user: u", "user: '${NO_SUCH_NAME}'"), "postgres.user: the environment has no NO_SUCH_NAME"),
        (GOOD + "gathering: {most: 0}", "gathering.most: "),
        (GOOD + "retention: {cancelled_days: soon}", "retention.cancelled_days: "),
        (GOOD + "faults: {directory: /tmp}", "faults: rejected unless testing is true"),
    ],
)
def test_a_wrong_configuration_ends_the_start_with_one_line(tmp_path, monkeypatch, capsys, text, said):
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
    assert said in lines[0]
