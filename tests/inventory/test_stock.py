"""SetStock, AddStock, GetStock, and the deletion of expired cancellations."""

from __future__ import annotations

import asyncio
import random
from uuid import UUID, uuid4

import asyncpg
import pytest

from market.inventory.config import Retention
from market.inventory.domain import (
    MAX_STOCK,
    Movement,
    MovementMismatch,
    StockInForce,
    StockOutOfRange,
    StockWrite,
)

from .conftest import reservation

A, B = UUID(int=1), UUID(int=2)


async def test_setting_stock_replaces_it_and_leaves_reservations_unchanged(inventory, tables):
    await inventory.set_stock(A, 10)
    reserved = reservation((A, 4))
    await inventory.reserve(reserved)
    assert await inventory.set_stock(A, 3) == 3
    assert await tables.stock(A) == [3]
    assert await tables.status(reserved.id) == "reserved"
    await inventory.cancel(reserved.id)
    assert await tables.stock(A) == [7]


async def test_the_last_of_many_concurrent_writes_to_a_product_wins(inventory, tables):
    await asyncio.gather(*(inventory.set_stock(A, n) for n in range(200)))
    assert await tables.stock(A) == [199]


async def test_the_stock_of_a_newer_version_is_not_replaced(inventory, tables):
    assert await inventory.write_stock(StockWrite(A, 30, 3)) == StockInForce(30, 3)
    await inventory.reserve(reservation((A, 4)))
    # Late, and repeated: both would take back the sale of four units.
    assert await inventory.write_stock(StockWrite(A, 20, 2)) == StockInForce(26, 3)
    assert await inventory.write_stock(StockWrite(A, 30, 3)) == StockInForce(26, 3)
    assert await inventory.write_stock(StockWrite(A, 40, 5)) == StockInForce(40, 5)
    assert await tables.stock(A) == [40]


async def test_a_stock_without_a_version_replaces_any_and_keeps_the_version(inventory, tables):
    await inventory.write_stock(StockWrite(A, 30, 3))
    assert await inventory.write_stock(StockWrite(A, 7)) == StockInForce(7, 3)
    assert await inventory.write_stock(StockWrite(A, 20, 2)) == StockInForce(7, 3)
    assert await inventory.write_stock(StockWrite(B, 1)) == StockInForce(1, 0)
    assert await inventory.write_stock(StockWrite(B, 5, 1)) == StockInForce(5, 1)


async def test_of_concurrent_versions_the_newest_is_in_force_in_two_processes(inventory, second_inventory, tables):
    writes = [StockWrite(product_id, 100 * n, n) for n in range(1, 101) for product_id in (A, B)]
    random.Random(1).shuffle(writes)
    results = await asyncio.gather(
        *((inventory, second_inventory)[n % 2].write_stock(write) for n, write in enumerate(writes))
    )
    assert await tables.stock(A, B) == [10_000, 10_000]
    # Each response shows what was in force: its own stock, or a newer one.
    assert all(
        r.product_version >= w.product_version and r.quantity == 100 * r.product_version
        for r, w in zip(results, writes, strict=True)
    )


async def test_the_service_before_product_versions_can_write_beside_this_one(inventory, tables):
    await inventory.write_stock(StockWrite(A, 30, 3))
    await tables.conn.execute(
        """
        INSERT INTO inventory (product_id, quantity)
        SELECT * FROM unnest($1::uuid[], $2::bigint[]) AS u (id, quantity) ORDER BY id
        ON CONFLICT (product_id) DO UPDATE SET quantity = excluded.quantity
        """,
        [A, B],
        [8, 9],
    )
    assert await inventory.get_stock([A, B]) == [8, 9]
    assert await inventory.write_stock(StockWrite(A, 20, 2)) == StockInForce(8, 3)
    assert await inventory.write_stock(StockWrite(B, 20, 2)) == StockInForce(20, 2)


async def test_a_movement_is_booked_once(inventory, tables):
    movement = Movement(uuid4(), A, 7)
    assert await inventory.add_stock(movement) == 7
    assert await inventory.add_stock(movement) == 7
    assert await tables.stock(A) == [7]
    assert await inventory.add_stock(Movement(uuid4(), A, -7)) == 0


@pytest.mark.parametrize("other", [Movement(UUID(int=9), A, 8), Movement(UUID(int=9), B, 7)])
async def test_a_movement_id_with_a_different_product_or_delta_is_rejected(inventory, tables, other):
    await inventory.add_stock(Movement(UUID(int=9), A, 7))
    before = await tables.everything()
    with pytest.raises(MovementMismatch):
        await inventory.add_stock(other)
    assert await tables.everything() == before


@pytest.mark.parametrize(("start", "delta"), [(None, -1), (3, -4), (MAX_STOCK, 1), (1, MAX_STOCK)])
async def test_a_movement_out_of_range_changes_nothing_and_can_be_retried(inventory, tables, start, delta):
    if start is not None:
        await inventory.set_stock(A, start)
    before = await tables.everything()
    movement = Movement(uuid4(), A, delta)
    with pytest.raises(StockOutOfRange) as caught:
        await inventory.add_stock(movement)
    assert str(caught.value) == (
        f"product {A}: stock must stay between 0 and 2147483647, got {start or 0} with a change of {delta:+d}"
    )
    assert await tables.everything() == before
    await inventory.set_stock(A, 4 if delta < 0 else 0)
    assert await inventory.add_stock(movement) == (4 + delta if delta < 0 else delta)


async def test_concurrent_repeats_of_a_movement_are_booked_once(inventory, tables):
    movement = Movement(uuid4(), A, 5)
    assert set(await asyncio.gather(*(inventory.add_stock(movement) for _ in range(20)))) == {5}
    assert await tables.stock(A) == [5]


async def test_stock_is_returned_in_the_order_of_the_ids_with_repeats(inventory):
    await inventory.set_stock(A, 1)
    await inventory.set_stock(B, 2)
    unknown = uuid4()
    quantities = await asyncio.gather(
        inventory.get_stock([B, unknown, A, B]), inventory.get_stock([]), inventory.get_stock([A])
    )
    assert quantities == [[2, None, 1, 2], [], [1]]


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO inventory VALUES (gen_random_uuid(), -1)",
        "INSERT INTO reservations (id, product_ids, quantities, status) VALUES (gen_random_uuid(), '{}', '{}', 'sold')",
        "INSERT INTO reservations (id, product_ids, quantities, status) VALUES (gen_random_uuid(), '{}', '{}', "
        "'cancelled')",
        "INSERT INTO reservations (id, product_ids, quantities) VALUES (gen_random_uuid(), '{}', '{1}')",
    ],
)
async def test_the_tables_reject_invalid_rows(tables, statement):
    with pytest.raises(asyncpg.CheckViolationError):
        await tables.conn.execute(statement)


async def test_retention_deletes_expired_cancellations_in_batches_and_nothing_else(inventory, tables):
    await inventory.set_stock(A, 10)
    reserved = reservation((A, 1))
    await inventory.reserve(reserved)
    await tables.conn.execute("UPDATE reservations SET created_at = now() - interval '1 year'")
    recent = uuid4()
    await inventory.cancel(recent)
    for _ in range(5):
        await inventory.cancel(uuid4())
    await tables.conn.execute(
        "UPDATE reservations SET cancelled_at = now() - interval '31 days' WHERE status = 'cancelled' AND id <> $1",
        recent,
    )
    retention = Retention(batch_size=2, interval_seconds=100)
    pauses = [await inventory.delete_expired(retention) for _ in range(4)]
    assert [pause == 100 for pause in pauses] == [False, False, True, True]
    assert {row["id"] for row in await tables.conn.fetch("SELECT id FROM reservations")} == {reserved.id, recent}
    assert await tables.stock(A) == [9]
