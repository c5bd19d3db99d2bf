"""Bad input over gRPC: errors that name the field, the limits, and random messages."""

from __future__ import annotations

from uuid import UUID, uuid4

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.contracts import inventory_pb2 as pb

from .calls import SERVICE, A, B, item, refused

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
        (
            "AddDelivery",
            pb.AddDeliveryRequest(product_id="", delivery_id=ID, quantity=1, product_version=1),
            "product_id: must be a UUID",
        ),
        (
            "AddDelivery",
            pb.AddDeliveryRequest(product_id=A, delivery_id="x", quantity=1, product_version=1),
            "delivery_id: must be a UUID",
        ),
        (
            "AddDelivery",
            pb.AddDeliveryRequest(product_id=A, delivery_id=ID, product_version=1),
            "quantity: must be between 1 and 2147483647, got 0",
        ),
        (
            "AddDelivery",
            pb.AddDeliveryRequest(product_id=A, delivery_id=ID, quantity=1),
            "product_version: must be between 1 and 9223372036854775807, got 0",
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
    assert not any(await tables.everything())


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
    assert not any(await tables.everything())
