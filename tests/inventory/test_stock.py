"""SetStock, AddStock, the reads, and the retention of what was cancelled."""

from __future__ import annotations

import asyncio
from uuid import UUID, uuid4

import asyncpg
import pytest

from market.inventory.config import Retention
from market.inventory.domain import MAX_STOCK, Movement, OtherMovement, StockOutOfRange

from .conftest import reservation

A, B = UUID(int=1), UUID(int=2)


async def test_a_stock_take_replaces_and_leaves_reservations_alone(inventory, tables):
    await inventory.set_stock(A, 10)
    wanted = reservation((A, 4))
    await inventory.reserve(wanted)
    assert await inventory.set_stock(A, 3) == 3
    assert await tables.stock(A) == [3]
    assert await tables.status(wanted.id) == "reserved"
    await inventory.cancel(wanted.id)
    assert await tables.stock(A) == [7]


async def test_of_many_stock_takes_at_once_the_last_one_counts(inventory, tables):
    await asyncio.gather(*(inventory.set_stock(A, n) for n in range(200)))
    assert await tables.stock(A) == [199]


async def test_a_delivery_is_booked_once(inventory, tables):
    movement = Movement(uuid4(), A, 7)
    assert await inventory.add_stock(movement) == 7
    assert await inventory.add_stock(movement) == 7
    assert await tables.stock(A) == [7]
    assert await inventory.add_stock(Movement(uuid4(), A, -7)) == 0


@pytest.mark.parametrize("other", [Movement(UUID(int=9), A, 8), Movement(UUID(int=9), B, 7)])
async def test_the_same_movement_with_another_content_is_refused(inventory, tables, other):
    await inventory.add_stock(Movement(UUID(int=9), A, 7))
    before = await tables.everything()
    with pytest.raises(OtherMovement):
        await inventory.add_stock(other)
    assert await tables.everything() == before


@pytest.mark.parametrize(("start", "delta"), [(None, -1), (3, -4), (MAX_STOCK, 1), (1, MAX_STOCK)])
async def test_a_movement_out_of_range_changes_nothing_and_may_be_tried_again(inventory, tables, start, delta):
    if start is not None:
        await inventory.set_stock(A, start)
    before = await tables.everything()
    movement = Movement(uuid4(), A, delta)
    with pytest.raises(StockOutOfRange):
        await inventory.add_stock(movement)
    assert await tables.everything() == before
    await inventory.set_stock(A, 4 if delta < 0 else 0)
    assert await inventory.add_stock(movement) == (4 + delta if delta < 0 else delta)


async def test_one_movement_many_times_at_once_is_booked_once(inventory, tables):
    movement = Movement(uuid4(), A, 5)
    assert set(await asyncio.gather(*(inventory.add_stock(movement) for _ in range(20)))) == {5}
    assert await tables.stock(A) == [5]


async def test_stock_is_answered_in_the_order_asked_with_repeats(inventory):
    await inventory.set_stock(A, 1)
    await inventory.set_stock(B, 2)
    unknown = uuid4()
    answers = await asyncio.gather(inventory.stock([B, unknown, A, B]), inventory.stock([]), inventory.stock([A]))
    assert answers == [[2, None, 1, 2], [], [1]]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO inventory VALUES (gen_random_uuid(), -1)",
        "INSERT INTO reservations (id, product_ids, quantities, status) VALUES (gen_random_uuid(), '{}', '{}', 'sold')",
        "INSERT INTO reservations (id, product_ids, quantities, status) VALUES (gen_random_uuid(), '{}', '{}', 'cancelled')",
        "INSERT INTO reservations (id, product_ids, quantities) VALUES (gen_random_uuid(), '{}', '{1}')",
    ],
)
async def test_the_tables_themselves_refuse_what_cannot_be(tables, statement):
    with pytest.raises(asyncpg.CheckViolationError):
        await tables.conn.execute(statement)


async def test_retention_deletes_old_cancellations_in_small_batches_and_nothing_else(inventory, tables):
    await inventory.set_stock(A, 10)
    kept = reservation((A, 1))
    await inventory.reserve(kept)
    await tables.conn.execute("UPDATE reservations SET created_at = now() - interval '1 year'")
    young = uuid4()
    await inventory.cancel(young)
    for _ in range(5):
        await inventory.cancel(uuid4())
    await tables.conn.execute(
        "UPDATE reservations SET cancelled_at = now() - interval '31 days' WHERE status = 'cancelled' AND id <> $1",
        young,
    )
    retention = Retention(batch=2, every_seconds=100)
    pauses = [await inventory.forget_cancelled(retention) for _ in range(4)]
    assert [p == 100 for p in pauses] == [False, False, True, True]
    assert {r["id"] for r in await tables.conn.fetch("SELECT id FROM reservations")} == {kept.id, young}
    assert await tables.stock(A) == [9]
