"""The gRPC edge: exact responses, errors that name the field, random bytes, and health and reflection for standard
clients."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.contracts import inventory_pb2 as pb
from market.inventory.domain import MAX_PAGE_LINES
from tests.support.waiting import PATIENCE, until

from .conftest import blocked_sessions, serving, until_blocking

A, B = str(UUID(int=1)), str(UUID(int=2))
SERVICE = "market.inventory.v1.Inventory"


def item(product: str, quantity: int) -> pb.Item:
    return pb.Item(product_id=product, quantity=quantity)


async def refused(call) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


async def test_a_sale_over_grpc(server, tables):
    stub = server.stub
    assert (await stub.SetStock(pb.SetStockRequest(product_id=A, quantity=10))).quantity == 10
    assert (await stub.AddStock(pb.AddStockRequest(movement_id=str(uuid4()), product_id=B, delta=5))).quantity == 5
    id = str(uuid4())
    response = await stub.Reserve(pb.ReserveRequest(reservation_id=id, items=[item(B, 1), item(A, 2), item(B, 1)]))
    assert response == pb.ReserveResponse(reserved=True)
    short = await stub.Reserve(pb.ReserveRequest(reservation_id=str(uuid4()), items=[item(A, 9), item(B, 3)]))
    assert short == pb.ReserveResponse(shortages=[pb.Shortage(product_id=A, wanted=9, left=8)])
    unknown = str(uuid4())
    available = await stub.CheckAvaliable(pb.CheckAvaliableRequest(product_ids=[B, unknown, A.upper()]))
    assert list(available.items) == [
        pb.Availability(product_id=B, available=True, quantity=3),
        pb.Availability(product_id=unknown, available=False, quantity=0),
        pb.Availability(product_id=A, available=True, quantity=8),
    ]
    stock = await stub.GetStock(pb.GetStockRequest(product_ids=[unknown, B, B, A]))
    assert list(stock.items) == [item(B, 3), item(A, 8)]
    listed = (await stub.ListReservations(pb.ListReservationsRequest())).reservations
    assert [(r.reservation_id, r.status, list(r.items)) for r in listed] == [
        (id, pb.RESERVATION_STATUS_RESERVED, [item(A, 2), item(B, 2)])
    ]
    stored_at = await tables.conn.fetchval("SELECT created_at FROM reservations")
    assert listed[0].created_at.ToDatetime(stored_at.tzinfo) == stored_at
    assert (await stub.CancelReserve(pb.CancelReserveRequest(reservation_id=id))).released is True
    assert (await stub.CancelReserve(pb.CancelReserveRequest(reservation_id=id))).released is False
    listed = (await stub.ListReservations(pb.ListReservationsRequest())).reservations
    assert [(r.status, len(r.items)) for r in listed] == [(pb.RESERVATION_STATUS_CANCELLED, 2)]


async def test_a_sold_out_product_is_not_available(server):
    await server.stub.SetStock(pb.SetStockRequest(product_id=A, quantity=0))
    response = await server.stub.CheckAvaliable(pb.CheckAvaliableRequest(product_ids=[A]))
    assert list(response.items) == [pb.Availability(product_id=A, available=False, quantity=0)]
    assert list((await server.stub.GetStock(pb.GetStockRequest(product_ids=[A]))).items) == [item(A, 0)]


async def test_each_conflict_has_its_status(server):
    stub = server.stub
    await stub.SetStock(pb.SetStockRequest(product_id=A, quantity=10))
    id, movement = str(uuid4()), str(uuid4())
    await stub.Reserve(pb.ReserveRequest(reservation_id=id, items=[item(A, 1)]))
    assert await refused(stub.Reserve(pb.ReserveRequest(reservation_id=id, items=[item(A, 2)]))) == (
        grpc.StatusCode.ALREADY_EXISTS,
        f"reservation {id} already exists with different items",
    )
    await stub.CancelReserve(pb.CancelReserveRequest(reservation_id=id))
    assert await refused(stub.Reserve(pb.ReserveRequest(reservation_id=id, items=[item(A, 1)]))) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        f"reservation {id} was cancelled",
    )
    await stub.AddStock(pb.AddStockRequest(movement_id=movement, product_id=A, delta=1))
    code, _ = await refused(stub.AddStock(pb.AddStockRequest(movement_id=movement, product_id=A, delta=2)))
    assert code is grpc.StatusCode.ALREADY_EXISTS
    code, _ = await refused(stub.AddStock(pb.AddStockRequest(movement_id=str(uuid4()), product_id=A, delta=-12)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION


async def test_reserve_many_returns_for_each_what_reserve_would(server, tables):
    stub = server.stub
    await stub.SetStock(pb.SetStockRequest(product_id=A, quantity=5))
    cancelled, first = str(uuid4()), str(uuid4())
    await stub.CancelReserve(pb.CancelReserveRequest(reservation_id=cancelled))
    requests = [
        pb.ReserveRequest(reservation_id=first, items=[item(A, 3)]),
        pb.ReserveRequest(reservation_id="no id", items=[item(A, 1)]),
        pb.ReserveRequest(reservation_id=str(uuid4()), items=[item(A, 3)]),
        pb.ReserveRequest(reservation_id=cancelled, items=[item(A, 1)]),
        pb.ReserveRequest(reservation_id=str(uuid4()), items=[item(A, 1), item("?", 1)]),
        pb.ReserveRequest(reservation_id=first, items=[item(A, 3)]),
        pb.ReserveRequest(reservation_id=str(uuid4()), items=[item(A, 2)]),
    ]
    results = (await stub.ReserveMany(pb.ReserveManyRequest(reservations=requests))).results
    reserved = pb.ReserveManyResult(answer=pb.ReserveResponse(reserved=True))
    assert list(results) == [
        reserved,
        pb.ReserveManyResult(code=3, message="reservation_id: must be a UUID"),
        pb.ReserveManyResult(answer=pb.ReserveResponse(shortages=[pb.Shortage(product_id=A, wanted=3, left=2)])),
        pb.ReserveManyResult(code=9, message=f"reservation {cancelled} was cancelled"),
        pb.ReserveManyResult(code=3, message="items[1].product_id: must be a UUID"),
        reserved,
        reserved,
    ]
    assert await tables.stock(UUID(A)) == [0]
    assert list((await stub.ReserveMany(pb.ReserveManyRequest())).results) == []


ID = str(uuid4())
MANY = [str(UUID(int=n)) for n in range(1001)]


@pytest.mark.parametrize(
    ("method", "request_", "details"),
    [
        ("Reserve", pb.ReserveRequest(), "reservation_id: must be a UUID"),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID),
            "items: number of different products must be between 1 and 1000, got 0",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID.replace("-", ""), items=[item(A, 1)]),
            "reservation_id: must be a UUID",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id="{" + ID + "}", items=[item(A, 1)]),
            "reservation_id: must be a UUID",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID[:-1] + "\0", items=[item(A, 1)]),
            "reservation_id: must be a UUID",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID[:-1] + "-", items=[item(A, 1)]),
            "reservation_id: must be a UUID",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID[:-1] + "٣", items=[item(A, 1)]),
            "reservation_id: must be a UUID",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID, items=[item(A, 1), item("x", 1)]),
            "items[1].product_id: must be a UUID",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID, items=[item(A, 0)]),
            "items[0].quantity: must be between 1 and 1000000, got 0",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID, items=[item(A, -1)]),
            "items[0].quantity: must be between 1 and 1000000, got -1",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID, items=[item(A, 1_000_001)]),
            "items[0].quantity: must be between 1 and 1000000, got 1000001",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID, items=[item(A, 600_000), item(A, 600_000)]),
            f"items: total quantity of product {A} must be at most 1000000, got 1200000",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID, items=[item(p, 1) for p in MANY]),
            "items: number of different products must be between 1 and 1000, got 1001",
        ),
        (
            "Reserve",
            pb.ReserveRequest(reservation_id=ID, items=[item(A, 1)] * 10_001),
            "items: must have at most 10000 items, got 10001",
        ),
        ("CancelReserve", pb.CancelReserveRequest(reservation_id="1"), "reservation_id: must be a UUID"),
        (
            "ReserveMany",
            pb.ReserveManyRequest(reservations=[pb.ReserveRequest()] * 513),
            "reservations: must have at most 512 items, got 513",
        ),
        ("SetStock", pb.SetStockRequest(product_id="", quantity=1), "product_id: must be a UUID"),
        (
            "SetStock",
            pb.SetStockRequest(product_id=A, quantity=1, product_version=0),
            "product_version: must be absent, or between 1 and 9223372036854775807, got 0",
        ),
        (
            "SetStock",
            pb.SetStockRequest(product_id=A, quantity=-1),
            "quantity: must be between 0 and 2147483647, got -1",
        ),
        ("AddStock", pb.AddStockRequest(movement_id="", product_id=A, delta=1), "movement_id: must be a UUID"),
        ("AddStock", pb.AddStockRequest(movement_id=ID, product_id="", delta=1), "product_id: must be a UUID"),
        (
            "AddStock",
            pb.AddStockRequest(movement_id=ID, product_id=A),
            "delta: must be between -2147483647 and 2147483647 and not 0, got 0",
        ),
        (
            "AddStock",
            pb.AddStockRequest(movement_id=ID, product_id=A, delta=-(2**31)),
            "delta: must be between -2147483647 and 2147483647 and not 0, got -2147483648",
        ),
        (
            "CheckAvaliable",
            pb.CheckAvaliableRequest(product_ids=MANY),
            "product_ids: must have at most 1000 items, got 1001",
        ),
        ("CheckAvaliable", pb.CheckAvaliableRequest(product_ids=[A, "b"]), "product_ids[1]: must be a UUID"),
        ("GetStock", pb.GetStockRequest(product_ids=["\n"]), "product_ids[0]: must be a UUID"),
        ("ListReservations", pb.ListReservationsRequest(after_id="x"), "after_id: must be a UUID"),
        (
            "ListReservations",
            pb.ListReservationsRequest(limit=1001),
            "limit: must be between 1 and 1000, or 0 for 100, got 1001",
        ),
        (
            "ListReservations",
            pb.ListReservationsRequest(limit=-1),
            "limit: must be between 1 and 1000, or 0 for 100, got -1",
        ),
    ],
)
async def test_bad_input_names_the_field_and_changes_nothing(server, tables, method, request_, details):
    assert await refused(getattr(server.stub, method)(request_)) == (grpc.StatusCode.INVALID_ARGUMENT, details)
    assert await tables.everything() == [[], [], []]


async def test_bad_input_has_error_details_that_programs_can_read(server):
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await server.stub.CheckAvaliable(pb.CheckAvaliableRequest(product_ids=[A, "b"]))
    status = status_pb2.Status.FromString(dict(raised.value.trailing_metadata())["grpc-status-details-bin"])
    assert (status.code, status.message) == (3, "product_ids[1]: must be a UUID")
    info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert [status.details[0].Unpack(info), status.details[1].Unpack(bad_request)] == [True, True]
    assert (info.reason, info.domain) == ("BAD_INPUT", "market")
    assert [(v.field, v.description) for v in bad_request.field_violations] == [("product_ids[1]", "must be a UUID")]


async def test_the_limits_themselves_are_accepted(server, tables):
    stub = server.stub
    await stub.SetStock(pb.SetStockRequest(product_id=A, quantity=2**31 - 1))
    await stub.SetStock(pb.SetStockRequest(product_id=B, quantity=0))
    assert (await stub.Reserve(pb.ReserveRequest(reservation_id=ID, items=[item(A, 1_000_000)]))).reserved
    response = await stub.CheckAvaliable(pb.CheckAvaliableRequest(product_ids=MANY[:1000]))
    assert [(i.available, i.quantity) for i in response.items[:4]] == [
        (False, 0),
        (True, 2**31 - 1 - 1_000_000),
        (False, 0),
        (False, 0),
    ]
    assert len(response.items) == 1000
    thousand = await stub.Reserve(
        pb.ReserveRequest(reservation_id=str(uuid4()), items=[item(p, 1) for p in MANY[:1000]])
    )
    assert [(s.product_id, s.left) for s in thousand.shortages] == [(p, 0) for p in MANY[:1000] if p != A]


async def test_reservations_are_listed_page_by_page(server):
    await server.stub.SetStock(pb.SetStockRequest(product_id=A, quantity=1000))
    ids = sorted(str(uuid4()) for _ in range(7))
    many = pb.ReserveManyRequest(reservations=[pb.ReserveRequest(reservation_id=id, items=[item(A, 1)]) for id in ids])
    await server.stub.ReserveMany(many)
    seen: list[str] = []
    pages = 0
    while page := (
        await server.stub.ListReservations(pb.ListReservationsRequest(after_id=seen[-1] if seen else "", limit=3))
    ).reservations:
        seen += [r.reservation_id for r in page]
        pages += 1
    assert (seen, pages) == (ids, 3)


async def test_a_page_of_very_long_reservations_ends_early(server, tables):
    await tables.conn.execute(
        """
        INSERT INTO reservations (id, product_ids, quantities)
        SELECT ('00000000-0000-0000-0000-' || lpad(n::text, 12, '0'))::uuid,
            array_fill($1::uuid, ARRAY[1000]), array_fill(1000000, ARRAY[1000])
        FROM generate_series(1, 120) n
        """,
        UUID(A),
    )
    seen = 0
    after = ""
    sizes = []
    while page := (
        await server.stub.ListReservations(pb.ListReservationsRequest(after_id=after, limit=1000))
    ).reservations:
        sizes.append(len(page))
        seen += len(page)
        after = page[-1].reservation_id
    assert seen == 120
    assert max(sizes) * 1000 <= MAX_PAGE_LINES + 1000


texts = st.one_of(st.text(max_size=40), st.sampled_from([A, B, ID]), st.uuids().map(str), st.just("x" * 5000))
numbers = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([0, 1, -1, 1_000_000, 1_000_001])
items = st.builds(pb.Item, product_id=texts, quantity=numbers)
reservations = st.builds(pb.ReserveRequest, reservation_id=texts, items=st.lists(items, max_size=5))
messages = st.one_of(
    st.tuples(st.just("CheckAvaliable"), st.builds(pb.CheckAvaliableRequest, product_ids=st.lists(texts, max_size=5))),
    st.tuples(st.just("Reserve"), reservations),
    st.tuples(st.just("CancelReserve"), st.builds(pb.CancelReserveRequest, reservation_id=texts)),
    st.tuples(
        st.just("ReserveMany"), st.builds(pb.ReserveManyRequest, reservations=st.lists(reservations, max_size=4))
    ),
    st.tuples(st.just("SetStock"), st.builds(pb.SetStockRequest, product_id=texts, quantity=numbers)),
    st.tuples(st.just("AddStock"), st.builds(pb.AddStockRequest, movement_id=texts, product_id=texts, delta=numbers)),
    st.tuples(st.just("GetStock"), st.builds(pb.GetStockRequest, product_ids=st.lists(texts, max_size=5))),
    st.tuples(st.just("ListReservations"), st.builds(pb.ListReservationsRequest, after_id=texts, limit=numbers)),
).map(lambda drawn: (drawn[0], drawn[1].SerializeToString()))
METHODS = list(pb.DESCRIPTOR.services_by_name["Inventory"].methods_by_name)
random_bytes = st.tuples(st.sampled_from(METHODS), st.binary(max_size=200))
EXPECTED_CODES = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.ALREADY_EXISTS,
    grpc.StatusCode.FAILED_PRECONDITION,
}


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.lists(messages | random_bytes, min_size=1, max_size=3))
async def test_no_message_causes_an_internal_error_and_a_rejected_one_changes_nothing(server, tables, drawn):
    for method, data in drawn:
        before = await tables.everything()
        call = server.channel.unary_unary(f"/{SERVICE}/{method}")
        try:
            await call(data)
            code = grpc.StatusCode.OK
        except grpc.aio.AioRpcError as e:
            code = e.code()
            assert await tables.everything() == before
        assert code in EXPECTED_CODES


async def test_bytes_that_are_not_a_message_are_invalid(server, tables):
    call = server.channel.unary_unary(f"/{SERVICE}/Reserve")
    for data in (b"\xff\xff\xff", b"\x0a\x02\xc3\x28"):
        assert await refused(call(data)) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "request: must be a market.inventory.v1.ReserveRequest",
        )
    code, _ = await refused(server.channel.unary_unary(f"/{SERVICE}/Steal")(b""))
    assert code is grpc.StatusCode.UNIMPLEMENTED
    assert await tables.everything() == [[], [], []]


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
    assert json_format.MessageToDict(response) == {"quantity": 7}


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
            request = pb.ReserveRequest(reservation_id=ID, items=[item(A, 1)])
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
