"""The gRPC server: reflection and health for standard clients, its end, its limits and deadlines."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from market.contracts import inventory_pb2 as pb
from tests.support.waiting import PATIENCE, until

from .calls import SERVICE, A, item, refused
from .conftest import blocked_sessions, serving, until_blocking


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_a_standard_client_finds_and_calls_the_service_by_reflection(server, version):
    """What grpcurl does: list, describe and call with JSON, without generated code."""
    reflect = server.channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )

    async def ask(**request: str) -> reflection_pb2.ServerReflectionResponse:
        async for response in reflect(iter([reflection_pb2.ServerReflectionRequest(**request)])):
            return response
        raise AssertionError("no response")

    names = {s.name for s in (await ask(list_services="")).list_services_response.service}
    reflection_services = {f"grpc.reflection.{v}.ServerReflection" for v in ("v1", "v1alpha")}
    assert names == {SERVICE, "grpc.health.v1.Health"} | reflection_services
    for service in reflection_services:
        [data] = (await ask(file_containing_symbol=service)).file_descriptor_response.file_descriptor_proto
        assert descriptor_pb2.FileDescriptorProto.FromString(data).package == service.removesuffix(".ServerReflection")
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()

    async def add(data: bytes) -> None:
        file = descriptor_pb2.FileDescriptorProto.FromString(data)
        for dependency in file.dependency:
            if dependency not in added:
                for more in (await ask(file_by_filename=dependency)).file_descriptor_response.file_descriptor_proto:
                    await add(more)
        if file.name not in added:
            added.add(file.name)
            pool.Add(file)

    for data in (await ask(file_containing_symbol=SERVICE)).file_descriptor_response.file_descriptor_proto:
        await add(data)
    method = pool.FindServiceByName(SERVICE).methods_by_name["SetStock"]
    request = json_format.ParseDict(
        {"productId": A, "quantity": 7}, message_factory.GetMessageClass(method.input_type)()
    )
    response = await server.channel.unary_unary(f"/{SERVICE}/SetStock")(request.SerializeToString())
    response = message_factory.GetMessageClass(method.output_type).FromString(response)
    assert json_format.MessageToDict(response) == {"quantity": 7, "applied": True}


async def until_reported(watch, status) -> None:
    """Read until the status is reported.

    On a busy machine the database may take over a second, which is reported too.
    """
    async with asyncio.timeout(PATIENCE):
        while (await watch.read()).status != status:
            pass


async def test_the_health_service_reports_readiness(server):
    stub = health_pb2_grpc.HealthStub(server.channel)
    serving_, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    check = health_pb2.HealthCheckRequest

    async def is_serving(name: str) -> bool:
        return (await stub.Check(check(service=name))).status == serving_

    for name in ("", SERVICE):
        await until(lambda name=name: is_serving(name))
    assert (await refused(stub.Check(check(service="other"))))[0] is grpc.StatusCode.NOT_FOUND
    listed = await stub.List(health_pb2.HealthListRequest())
    assert {name: response.status for name, response in listed.statuses.items()} == {"": serving_, SERVICE: serving_}
    server.process.health.started = False
    assert (await stub.Check(check())).status == not_serving
    server.process.health.started = True

    watch = stub.Watch(check(service=SERVICE))
    await until_reported(watch, serving_)
    server.process.health.draining = True
    assert (await stub.Check(check())).status == not_serving
    await until_reported(watch, not_serving)
    watch.cancel()


async def test_a_stopping_server_reports_it_first_and_finishes_calls_in_flight(migrated_database, tables):
    async with serving(migrated_database) as server:
        await server.stub.SetStock(pb.SetStockRequest(product_id=A, quantity=10))
        watch = health_pb2_grpc.HealthStub(server.channel).Watch(health_pb2.HealthCheckRequest())
        await until_reported(watch, health_pb2.HealthCheckResponse.SERVING)
        async with tables.conn.transaction():
            await tables.conn.execute("SELECT 1 FROM inventory FOR UPDATE")
            request = pb.ReserveRequest(reservation_id=str(uuid4()), items=[item(A, 1)])
            call = asyncio.ensure_future(server.stub.Reserve(request))
            await until_blocking(tables.conn, call)
            stopping = asyncio.create_task(server.server.stop(PATIENCE))
            await until_reported(watch, health_pb2.HealthCheckResponse.NOT_SERVING)
            assert not call.done()
        assert (await call).reserved
        await stopping
        assert (await refused(server.stub.Reserve(request)))[0] is grpc.StatusCode.UNAVAILABLE
    assert await tables.stock(UUID(A)) == [9]


async def test_calls_beyond_max_in_flight_are_refused_at_once(migrated_database, tables):
    async with serving(migrated_database, max_in_flight=2) as server:
        # Inserted by SQL: a call could still count as in flight when its response has arrived.
        await tables.conn.execute("INSERT INTO inventory VALUES ($1, 10)", UUID(A))
        async with tables.conn.transaction():
            await tables.conn.execute("SELECT 1 FROM inventory FOR UPDATE")
            calls = [
                asyncio.ensure_future(
                    server.stub.Reserve(pb.ReserveRequest(reservation_id=str(uuid4()), items=[item(A, 1)]))
                )
                for _ in range(5)
            ]
            await until(lambda: sum(call.done() for call in calls) >= 3)
            await until_blocking(tables.conn)
            done = [call for call in calls if call.done()]
            codes = {call.exception().code() for call in done}
        assert (len(done), codes) == (3, {grpc.StatusCode.RESOURCE_EXHAUSTED})
        await asyncio.wait(calls)
    assert await tables.stock(UUID(A)) == [8]


async def test_a_call_takes_its_deadline_to_the_database(server, tables):
    await server.stub.SetStock(pb.SetStockRequest(product_id=A, quantity=10))
    async with tables.conn.transaction():
        await tables.conn.execute("SELECT 1 FROM inventory FOR UPDATE")
        request = pb.ReserveRequest(reservation_id=str(uuid4()), items=[item(A, 1)])
        call = asyncio.ensure_future(server.stub.Reserve(request, timeout=1))
        while not call.done() and not await blocked_sessions(tables.conn):
            await asyncio.sleep(0.01)
        code, _ = await refused(call)
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED

        # Well before the statement timeout.
        async def rolled_back() -> bool:
            return not await blocked_sessions(tables.conn)

        await until(rolled_back, PATIENCE / 3)
    assert await tables.stock(UUID(A)) == [10]
