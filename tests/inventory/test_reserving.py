"""Reserve and CancelReserve, one call after another: exact answers, and what is in the tables afterwards."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from market.inventory.domain import MAX_STOCK, OtherLines, ReservationCancelled, Shortage
from market.kit.errors import BadInput

from .conftest import reservation

A, B, C = (UUID(int=n) for n in (1, 2, 3))


@pytest.fixture
async def stocked(inventory):
    for product, quantity in ((A, 10), (B, 5)):
        await inventory.set_stock(product, quantity)
    return inventory


async def test_a_reservation_takes_every_line(stocked, tables):
    wanted = reservation((B, 2), (A, 3))
    assert await stocked.reserve(wanted) == []
    assert await tables.stock(A, B) == [7, 3]
    assert await tables.status(wanted.id) == "reserved"
    row = await tables.conn.fetchrow("SELECT * FROM reservations WHERE id = $1", wanted.id)
    assert (row["product_ids"], row["quantities"], row["cancelled_at"]) == ([A, B], [3, 2], None)


async def test_the_last_unit_can_be_taken(stocked, tables):
    assert await stocked.reserve(reservation((A, 10))) == []
    assert await tables.stock(A) == [0]


async def test_reserving_more_than_is_left_changes_nothing_and_names_every_short_line(stocked, tables):
    before = await tables.everything()
    assert await stocked.reserve(reservation((A, 11), (B, 2), (C, 1))) == [Shortage(A, 11, 10), Shortage(C, 1, 0)]
    assert await tables.everything() == before


async def test_a_short_reservation_may_be_tried_again_after_a_delivery(stocked, tables):
    wanted = reservation((A, 11))
    assert await stocked.reserve(wanted) == [Shortage(A, 11, 10)]
    await stocked.set_stock(A, 11)
    assert await stocked.reserve(wanted) == []
    assert await tables.stock(A) == [0]


async def test_the_same_reservation_again_takes_nothing(stocked, tables):
    wanted = reservation((A, 3))
    assert await stocked.reserve(wanted) == []
    after = await tables.everything()
    assert await stocked.reserve(reservation((A, 1), (A, 2), id=wanted.id)) == []
    assert await tables.everything() == after


async def test_the_same_id_with_other_lines_is_refused(stocked, tables):
    wanted = reservation((A, 3))
    await stocked.reserve(wanted)
    after = await tables.everything()
    for other in (
        reservation((A, 4), id=wanted.id),
        reservation((B, 3), id=wanted.id),
        reservation((A, 3), (B, 1), id=wanted.id),
    ):
        with pytest.raises(OtherLines):
            await stocked.reserve(other)
    assert await tables.everything() == after


async def test_cancelling_gives_back_what_is_held_once(stocked, tables):
    wanted = reservation((A, 3), (B, 5))
    await stocked.reserve(wanted)
    assert await stocked.cancel(wanted.id) is True
    assert await tables.stock(A, B) == [10, 5]
    assert await tables.status(wanted.id) == "cancelled"
    after = await tables.everything()
    assert await stocked.cancel(wanted.id) is False
    assert await tables.everything() == after


async def test_a_cancelled_reservation_stays_refused(stocked, tables):
    wanted = reservation((A, 3))
    await stocked.reserve(wanted)
    await stocked.cancel(wanted.id)
    with pytest.raises(ReservationCancelled):
        await stocked.reserve(wanted)
    assert await tables.stock(A) == [10]


async def test_an_id_cancelled_before_it_was_seen_cannot_take_stock(stocked, tables):
    wanted = reservation((A, 3))
    assert await stocked.cancel(wanted.id) is False
    with pytest.raises(ReservationCancelled):
        await stocked.reserve(wanted)
    await stocked.set_stock(A, 100)
    with pytest.raises(ReservationCancelled):
        await stocked.reserve(wanted)
    assert await tables.stock(A) == [100]


async def test_what_comes_back_after_a_stock_take_at_the_maximum_is_not_lost(stocked, tables):
    wanted = reservation((A, 3))
    await stocked.reserve(wanted)
    await stocked.set_stock(A, MAX_STOCK)
    assert await stocked.cancel(wanted.id) is True
    assert await tables.stock(A) == [MAX_STOCK + 3]
    assert await stocked.stock([A]) == [MAX_STOCK], "the answer cannot say more"


@pytest.mark.parametrize("count", [8, 9, 1000])
async def test_many_lines_are_taken_and_given_back(inventory, tables, count):
    products = [uuid4() for _ in range(count)]
    for product in products:
        await tables.conn.execute("INSERT INTO inventory VALUES ($1, 5)", product)
    wanted = reservation(*((p, 5) for p in products))
    assert await inventory.reserve(wanted) == []
    assert await tables.stock(*products) == [0] * count
    one_more = reservation(*((p, 1) for p in products))
    assert await inventory.reserve(one_more) == [Shortage(p, 1, 0) for p in sorted(products)]
    assert await inventory.cancel(wanted.id) is True
    assert await tables.stock(*products) == [5] * count
    assert await tables.status(one_more.id) is None


async def test_a_batch_is_decided_in_turn_and_each_on_its_own(stocked, tables):
    first, too_much, rest, other = (
        reservation((A, 6)),
        reservation((A, 5), (B, 1)),
        reservation((A, 4)),
        reservation((C, 1)),
    )
    cancelled = reservation((B, 1))
    await stocked.cancel(cancelled.id)
    answers = await stocked.reserve_many(
        [first, too_much, rest, other, cancelled, first, reservation((B, 1), id=first.id)]
    )
    assert answers[:4] == [[], [Shortage(A, 5, 4)], [], [Shortage(C, 1, 0)]]
    assert isinstance(answers[4], ReservationCancelled)
    assert answers[5] == []
    assert isinstance(answers[6], OtherLines)
    assert await tables.stock(A, B) == [0, 5]


async def test_one_id_with_other_lines_in_a_batch_gets_its_own_turn_after_a_shortage(stocked, tables):
    id = uuid4()
    answers = await stocked.reserve_many(
        [reservation((A, 11), id=id), reservation((A, 4), id=id), reservation((A, 11), id=id)]
    )
    assert answers[:2] == [[Shortage(A, 11, 10)], []]
    assert answers[2] == [Shortage(A, 11, 10)], "rides along with the first"
    assert await tables.stock(A) == [6]


async def test_cancelling_one_id_twice_at_once_gives_back_once(stocked, tables):
    import asyncio

    wanted = reservation((A, 3))
    await stocked.reserve(wanted)
    answers = await asyncio.gather(*(stocked.cancel(wanted.id) for _ in range(10)))
    assert sorted(answers) == [False] * 9 + [True]
    assert await tables.stock(A) == [10]


@pytest.mark.parametrize("lines", [[], [(A, 600_000), (A, 400_001)], [(UUID(int=n), 1) for n in range(1001)]])
def test_lines_out_of_bounds_are_bad_input(lines):
    with pytest.raises(BadInput, match=r"^items: "):
        reservation(*lines)


def test_the_bounds_themselves_are_allowed():
    assert reservation((A, 600_000), (A, 400_000)).quantities == [1_000_000]
    assert len(reservation(*((UUID(int=n), 1) for n in range(1000))).product_ids) == 1000
