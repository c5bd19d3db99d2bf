"""The gRPC edge: exact responses, and errors that have the right status."""

from __future__ import annotations

from uuid import UUID, uuid4

import grpc

from market.contracts import inventory_pb2 as pb
from market.inventory.domain import MAX_PAGE_LINES

from .calls import A, B, item, refused


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


async def test_a_delivery_over_grpc(server, tables):
    stub = server.stub
    stock = pb.SetStockRequest(product_id=A, quantity=10, product_version=4)
    assert await stub.SetStock(stock) == pb.SetStockResponse(quantity=10, product_version=4, applied=True)
    assert await stub.SetStock(stock) == pb.SetStockResponse(quantity=10, product_version=4, applied=False)
    id = str(uuid4())

    async def deliver(quantity: int, version: int, delivery_id: str = id, **fields) -> tuple:
        request = pb.AddDeliveryRequest(
            product_id=A, delivery_id=delivery_id, quantity=quantity, product_version=version, **fields
        )
        response = await stub.AddDelivery(request)
        return response.outcome, response.quantity, response.product_version

    assert await deliver(5, 3) == (pb.DELIVERY_OUTCOME_SUPERSEDED, 10, 4)
    assert await deliver(5, 0, validate_only=True) == (pb.DELIVERY_OUTCOME_ADDED, 10, 4)
    assert await deliver(5, 5) == (pb.DELIVERY_OUTCOME_ADDED, 15, 5)
    assert await deliver(5, 6) == (pb.DELIVERY_OUTCOME_REPEATED, 15, 5)
    assert await deliver(6, 6) == (pb.DELIVERY_OUTCOME_MISMATCH, 15, 5)
    assert await deliver(2_147_483_647, 6, str(uuid4())) == (pb.DELIVERY_OUTCOME_TOO_LARGE, 15, 5)
    late = pb.SetStockRequest(product_id=A, quantity=10, product_version=3)
    assert await stub.SetStock(late) == pb.SetStockResponse(quantity=15, product_version=5, applied=False)


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
