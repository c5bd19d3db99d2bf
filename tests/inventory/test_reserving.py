"""Reserve and CancelReserve, one call after another: exact results, and the rows afterwards."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import pytest

from market.inventory.domain import MAX_STOCK, ReservationCancelled, ReservationMismatch, Shortage
from market.kit.errors import BadInput

from .conftest import reservation

A, B, C = (UUID(int=n) for n in (1, 2, 3))


@pytest.fixture
async def stocked_inventory(inventory):
    for product, quantity in ((A, 10), (B, 5)):
        await inventory.set_stock(product, quantity)
    return inventory


async def test_a_reservation_reserves_every_line(stocked_inventory, tables):
    reserved = reservation((B, 2), (A, 3))
    assert await stocked_inventory.reserve(reserved) == []
    assert await tables.stock(A, B) == [7, 3]
    assert await tables.status(reserved.id) == "reserved"
    row = await tables.conn.fetchrow("SELECT * FROM reservations WHERE id = $1", reserved.id)
    assert (row["product_ids"], row["quantities"], row["cancelled_at"]) == ([A, B], [3, 2], None)


async def test_the_last_unit_can_be_reserved(stocked_inventory, tables):
    assert await stocked_inventory.reserve(reservation((A, 10))) == []
    assert await tables.stock(A) == [0]


async def test_reserving_more_than_available_changes_nothing_and_returns_every_shortage(stocked_inventory, tables):
    before = await tables.everything()
    assert await stocked_inventory.reserve(reservation((A, 11), (B, 2), (C, 1))) == [
        Shortage(A, 11, 10),
        Shortage(C, 1, 0),
    ]
    assert await tables.everything() == before


async def test_a_rejected_reservation_can_be_retried_after_a_delivery(stocked_inventory, tables):
    reserved = reservation((A, 11))
    assert await stocked_inventory.reserve(reserved) == [Shortage(A, 11, 10)]
    await stocked_inventory.set_stock(A, 11)
    assert await stocked_inventory.reserve(reserved) == []
    assert await tables.stock(A) == [0]


async def test_repeating_a_reservation_reserves_nothing_more(stocked_inventory, tables):
    reserved = reservation((A, 3))
    assert await stocked_inventory.reserve(reserved) == []
    after = await tables.everything()
    assert await stocked_inventory.reserve(reservation((A, 1), (A, 2), reservation_id=reserved.id)) == []
    assert await tables.everything() == after


async def test_a_reservation_id_with_different_lines_is_rejected(stocked_inventory, tables):
    reserved = reservation((A, 3))
    await stocked_inventory.reserve(reserved)
    after = await tables.everything()
    for other in (
        reservation((A, 4), reservation_id=reserved.id),
        reservation((B, 3), reservation_id=reserved.id),
        reservation((A, 3), (B, 1), reservation_id=reserved.id),
    ):
        with pytest.raises(ReservationMismatch):
            await stocked_inventory.reserve(other)
    assert await tables.everything() == after


async def test_cancelling_releases_the_reserved_units_once(stocked_inventory, tables):
    reserved = reservation((A, 3), (B, 5))
    await stocked_inventory.reserve(reserved)
    assert await stocked_inventory.cancel(reserved.id) is True
    assert await tables.stock(A, B) == [10, 5]
    assert await tables.status(reserved.id) == "cancelled"
    after = await tables.everything()
    assert await stocked_inventory.cancel(reserved.id) is False
    assert await tables.everything() == after


async def test_a_cancelled_reservation_stays_rejected(stocked_inventory, tables):
    reserved = reservation((A, 3))
    await stocked_inventory.reserve(reserved)
    await stocked_inventory.cancel(reserved.id)
    with pytest.raises(ReservationCancelled):
        await stocked_inventory.reserve(reserved)
    assert await tables.stock(A) == [10]


async def test_an_id_cancelled_before_it_was_reserved_cannot_be_reserved(stocked_inventory, tables):
    reserved = reservation((A, 3))
    assert await stocked_inventory.cancel(reserved.id) is False
    with pytest.raises(ReservationCancelled):
        await stocked_inventory.reserve(reserved)
    await stocked_inventory.set_stock(A, 100)
    with pytest.raises(ReservationCancelled):
        await stocked_inventory.reserve(reserved)
    assert await tables.stock(A) == [100]


async def test_units_released_while_the_stock_is_at_its_maximum_are_not_lost(stocked_inventory, tables):
    reserved = reservation((A, 3))
    await stocked_inventory.reserve(reserved)
    await stocked_inventory.set_stock(A, MAX_STOCK)
    assert await stocked_inventory.cancel(reserved.id) is True
    assert await tables.stock(A) == [MAX_STOCK + 3]
    assert await stocked_inventory.get_stock([A]) == [MAX_STOCK], "the response cannot hold more"


@pytest.mark.parametrize("count", [8, 9, 1000])
async def test_many_lines_are_reserved_and_released(inventory, tables, count):
    products = [uuid4() for _ in range(count)]
    for product in products:
        await tables.conn.execute("INSERT INTO inventory VALUES ($1, 5)", product)
    reserved = reservation(*((p, 5) for p in products))
    assert await inventory.reserve(reserved) == []
    assert await tables.stock(*products) == [0] * count
    one_more = reservation(*((p, 1) for p in products))
    assert await inventory.reserve(one_more) == [Shortage(p, 1, 0) for p in sorted(products)]
    assert await inventory.cancel(reserved.id) is True
    assert await tables.stock(*products) == [5] * count
    assert await tables.status(one_more.id) is None


async def test_the_reservations_of_a_batch_are_decided_in_order_and_independently(stocked_inventory, tables):
    first, too_much, rest, other = (
        reservation((A, 6)),
        reservation((A, 5), (B, 1)),
        reservation((A, 4)),
        reservation((C, 1)),
    )
    cancelled = reservation((B, 1))
    await stocked_inventory.cancel(cancelled.id)
    results = await stocked_inventory.reserve_many(
        [first, too_much, rest, other, cancelled, first, reservation((B, 1), reservation_id=first.id)]
    )
    assert results[:4] == [[], [Shortage(A, 5, 4)], [], [Shortage(C, 1, 0)]]
    assert isinstance(results[4], ReservationCancelled)
    assert results[5] == []
    assert isinstance(results[6], ReservationMismatch)
    assert await tables.stock(A, B) == [0, 5]


async def test_an_id_with_different_lines_in_a_batch_is_decided_in_a_later_round(stocked_inventory, tables):
    id = uuid4()
    results = await stocked_inventory.reserve_many(
        [
            reservation((A, 11), reservation_id=id),
            reservation((A, 4), reservation_id=id),
            reservation((A, 11), reservation_id=id),
        ]
    )
    assert results[:2] == [[Shortage(A, 11, 10)], []]
    assert results[2] == [Shortage(A, 11, 10)], "shares the result of the first"
    assert await tables.stock(A) == [6]


async def test_concurrent_cancellations_of_an_id_release_its_units_once(stocked_inventory, tables):
    reserved = reservation((A, 3))
    await stocked_inventory.reserve(reserved)
    results = await asyncio.gather(*(stocked_inventory.cancel(reserved.id) for _ in range(10)))
    assert sorted(results) == [False] * 9 + [True]
    assert await tables.stock(A) == [10]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "items: number of different products must be between 1 and 1000, got 0"),
        (
            [(UUID(int=n), 1) for n in range(1001)],
            "items: number of different products must be between 1 and 1000, got 1001",
        ),
        (
            [(A, 600_000), (A, 400_001)],
            f"items: total quantity of product {A} must be at most 1000000, got 1000001",
        ),
    ],
)
def test_lines_out_of_range_are_bad_input(lines, message):
    with pytest.raises(BadInput) as caught:
        reservation(*lines)
    assert str(caught.value) == message


def test_the_limits_themselves_are_allowed():
    assert reservation((A, 600_000), (A, 400_000)).quantities == [1_000_000]
    assert len(reservation(*((UUID(int=n), 1) for n in range(1000))).product_ids) == 1000
