"""AddDelivery beside SetStock: units are added once, and late or repeated calls end as if they had come in order."""

from __future__ import annotations

import asyncio
from itertools import permutations
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from market.inventory.config import Retention
from market.inventory.domain import MAX_STOCK, Delivery, Outcome, StockInForce, StockWrite

from .conftest import Inventory, Repositories, connected, reservation, until_blocking

A, B = UUID(int=1), UUID(int=2)


def delivery(quantity: int, version: int, *, product_id: UUID = A, delivery_id: UUID | None = None) -> Delivery:
    return Delivery(delivery_id or uuid4(), product_id, quantity, version)


async def outcome(inventory: Inventory, delivery: Delivery) -> tuple[Outcome, int, int]:
    """Add the delivery; return how it was decided, the stock and its version."""
    result = await inventory.add_delivery(delivery)
    return result.outcome, result.in_force.quantity, result.in_force.product_version


async def test_a_delivery_is_added_to_what_was_not_sold(inventory, tables):
    await inventory.write_stock(StockWrite(A, 10, 1))
    await inventory.reserve(reservation((A, 4)))
    assert await outcome(inventory, delivery(5, 2)) == (Outcome.DONE, 11, 2)
    assert await outcome(inventory, delivery(5, 3)) == (Outcome.DONE, 16, 3)
    assert await tables.stock(A) == [16]


async def test_a_delivery_of_a_product_without_stock_is_its_stock(inventory, tables):
    assert await outcome(inventory, delivery(5, 2)) == (Outcome.DONE, 5, 2)
    assert await tables.stock(A) == [5]


async def test_a_repeated_delivery_is_not_added_again_whatever_version_it_has(inventory, tables):
    await inventory.write_stock(StockWrite(A, 10, 1))
    id = uuid4()
    assert await outcome(inventory, delivery(5, 3, delivery_id=id)) == (Outcome.DONE, 15, 3)
    for version in (3, 4, 2, 9):
        assert await outcome(inventory, delivery(5, version, delivery_id=id)) == (Outcome.REPEATED, 15, 3)
    # Another product may have the same id.
    assert await outcome(inventory, delivery(5, 3, delivery_id=id, product_id=B)) == (Outcome.DONE, 5, 3)
    assert await tables.stock(A, B) == [15, 5]


async def test_concurrent_repeats_in_two_processes_are_added_once(inventory, second_inventory, tables):
    await inventory.write_stock(StockWrite(A, 10, 1))
    id = uuid4()
    results = await asyncio.gather(
        *((inventory, second_inventory)[n % 2].add_delivery(delivery(5, 2 + n, delivery_id=id)) for n in range(20))
    )
    assert sorted(result.outcome for result in results) == [Outcome.DONE] + [Outcome.REPEATED] * 19
    assert await tables.stock(A) == [15]


async def test_the_same_id_with_another_quantity_changes_nothing(inventory, tables):
    id = uuid4()
    await inventory.add_delivery(delivery(5, 2, delivery_id=id))
    before = await tables.everything()
    assert await outcome(inventory, delivery(6, 3, delivery_id=id)) == (Outcome.MISMATCH, 5, 2)
    assert await tables.everything() == before


async def test_a_delivery_that_makes_the_stock_too_large_changes_nothing_and_can_be_repeated(inventory, tables):
    await inventory.write_stock(StockWrite(A, MAX_STOCK - 4, 1))
    late = delivery(5, 2)
    before = await tables.everything()
    assert await outcome(inventory, late) == (Outcome.REJECTED, MAX_STOCK - 4, 1)
    assert await tables.everything() == before
    await inventory.reserve(reservation((A, 1)))
    assert await outcome(inventory, late) == (Outcome.DONE, MAX_STOCK, 2)
    # A repeat is not too large: it is there already.
    assert await outcome(inventory, late) == (Outcome.REPEATED, MAX_STOCK, 2)


async def test_a_late_delivery_is_not_added_to_the_stock_of_a_newer_version(inventory, tables):
    await inventory.write_stock(StockWrite(A, 30, 6))
    assert await outcome(inventory, delivery(5, 5)) == (Outcome.SUPERSEDED, 30, 6)
    assert await tables.stock(A) == [30]
    assert await tables.conn.fetchval("SELECT count(*) FROM deliveries") == 0


async def test_calls_in_any_order_end_with_the_newest_stock_and_all_later_deliveries(inventory, tables):
    calls = [
        lambda p: inventory.write_stock(StockWrite(p, 100, 2)),
        lambda p: inventory.add_delivery(delivery(1, 3, product_id=p)),
        lambda p: inventory.write_stock(StockWrite(p, 200, 4)),
        lambda p: inventory.add_delivery(delivery(10, 5, product_id=p)),
        lambda p: inventory.add_delivery(delivery(20, 6, product_id=p)),
    ]
    orders = {uuid4(): order for order in permutations(range(len(calls)))}

    async def make(product_id: UUID, order: tuple[int, ...]) -> None:
        for n in order:
            await calls[n](product_id)

    await asyncio.gather(*(make(product_id, order) for product_id, order in orders.items()))
    stock = dict(zip(orders.values(), await tables.stock(*orders), strict=True))
    assert {order: quantity for order, quantity in stock.items() if quantity != 230} == {}


async def test_a_late_stock_keeps_a_delivery_of_a_later_version_and_says_that_it_belongs_to_it(inventory, tables):
    await inventory.write_stock(StockWrite(A, 10, 1))
    await inventory.add_delivery(delivery(5, 3))
    with capture_logs() as lines:
        assert await inventory.write_stock(StockWrite(A, 40, 2)) == StockInForce(45, 3)
        # Repeated, it changes nothing.
        await inventory.reserve(reservation((A, 1)))
        assert await inventory.write_stock(StockWrite(A, 40, 2)) == StockInForce(44, 3)
    assert [(line["before"], line["after"]) for line in lines if line["event"] == "stock set"] == [
        ({"stock": 15}, {"stock": 45, "product_version": 3})
    ]


async def test_a_stock_take_without_a_version_replaces_every_delivery(inventory, tables):
    await inventory.write_stock(StockWrite(A, 10, 1))
    added = delivery(5, 3)
    await inventory.add_delivery(added)
    assert await inventory.write_stock(StockWrite(A, 7)) == StockInForce(7, 3)
    # It was counted: a repeat does not add it again. One that arrives afterwards is added.
    assert await outcome(inventory, added) == (Outcome.REPEATED, 7, 3)
    assert await outcome(inventory, delivery(2, 2)) == (Outcome.DONE, 9, 3)


async def test_a_delivery_that_a_stock_take_has_counted_is_not_added_again_by_its_repeat(inventory, tables):
    id = uuid4()
    await inventory.write_stock(StockWrite(A, 10, 1))
    # Its response was lost.
    await inventory.add_delivery(delivery(5, 5, delivery_id=id))
    await inventory.write_stock(StockWrite(A, 15, 6))
    assert await outcome(inventory, delivery(5, 7, delivery_id=id)) == (Outcome.REPEATED, 15, 6)


@pytest.mark.parametrize("late_first", [True, False])
@pytest.mark.parametrize("stock_between", [True, False])
async def test_a_delivery_whose_first_call_is_lost_or_late_is_added_once_by_its_repeat(
    inventory, tables, late_first, stock_between
):
    id = uuid4()
    await inventory.write_stock(StockWrite(A, 10, 1))
    if stock_between:
        await inventory.write_stock(StockWrite(A, 10, 6))
    late, repeated = delivery(5, 5, delivery_id=id), delivery(5, 7, delivery_id=id)
    for call in (late, repeated) if late_first else (repeated, late):
        await inventory.add_delivery(call)
    assert await tables.stock(A) == [15]
    assert await outcome(inventory, repeated) == (Outcome.REPEATED, 15, 5 if late_first and not stock_between else 7)


@pytest.mark.parametrize("commits", [True, False])
async def test_a_stock_waits_for_an_open_delivery_and_keeps_or_replaces_it_by_its_version(
    migrated_database, inventory, second_inventory, tables, commits
):
    for product_id in (A, B):
        await inventory.write_stock(StockWrite(product_id, 10, 1))
    async with connected(migrated_database) as conn:
        transaction = conn.transaction()
        await transaction.start()
        await Repositories(conn).stock.add_delivery(delivery(5, 3, product_id=A))
        await Repositories(conn).stock.add_delivery(delivery(5, 3, product_id=B))
        # Each of them waits for the row of its product: A for an older stock, B for a newer one.
        writes = [
            asyncio.create_task(inventory.write_stock(StockWrite(A, 100, 2))),
            asyncio.create_task(second_inventory.write_stock(StockWrite(B, 100, 4))),
        ]
        await until_blocking(conn, *writes)
        await (transaction.commit() if commits else transaction.rollback())
        older, newer = await asyncio.gather(*writes)
    assert (older, newer) == (StockInForce(105, 3) if commits else StockInForce(100, 2), StockInForce(100, 4))
    assert await tables.stock(A, B) == [105 if commits else 100, 100]


@pytest.mark.parametrize(("version", "stock"), [(2, 105), (4, 100)])
async def test_a_delivery_waits_for_an_open_stock_and_is_added_if_its_version_is_newer(
    migrated_database, inventory, tables, version, stock
):
    await inventory.write_stock(StockWrite(A, 10, 1))
    async with connected(migrated_database) as conn:
        async with conn.transaction():
            await Repositories(conn).stock.set_many([StockWrite(A, 100, version)])
            adding = asyncio.create_task(inventory.add_delivery(delivery(5, 3)))
            await until_blocking(conn, adding)
        assert (await adding).outcome is (Outcome.DONE if stock == 105 else Outcome.SUPERSEDED)
    assert await tables.stock(A) == [stock]


async def test_a_stock_set_by_a_pod_of_the_previous_version_keeps_later_deliveries(inventory, tables):
    await inventory.write_stock(StockWrite(A, 10, 1))
    await inventory.add_delivery(delivery(5, 3))
    row = await tables.conn.fetchrow(
        "SELECT * FROM set_stock_many($1::uuid[], $2::bigint[], $3::bigint[])", [A, B], [100, 7], [2, None]
    )
    assert dict(row) == {"quantities": [105, 7], "in_force": [3, 0]}
    row = await tables.conn.fetchrow(
        "SELECT * FROM set_stock_many($1::uuid[], $2::bigint[], $3::bigint[])", [A], [50], [2]
    )
    assert dict(row) == {"quantities": [105], "in_force": [3]}


async def test_a_check_changes_nothing(inventory, tables):
    before = await tables.everything()
    unknown = delivery(5, 1)
    assert (await inventory.check_delivery(unknown)).outcome is Outcome.DONE
    assert await tables.everything() == before
    await inventory.write_stock(StockWrite(A, MAX_STOCK - 5, 9))
    added = delivery(5, 9)
    await inventory.add_delivery(added)
    before = await tables.everything()
    for checked, expected in (
        (added, Outcome.REPEATED),
        (delivery(6, 9, delivery_id=added.id), Outcome.MISMATCH),
        (delivery(1, 9), Outcome.REJECTED),
        (delivery(1, 1, product_id=B), Outcome.DONE),
    ):
        result = await inventory.check_delivery(checked)
        assert result.outcome is expected
    assert await tables.everything() == before


async def test_the_audit_log_has_a_delivery_once_with_the_stock_before_and_after(inventory, tables):
    await inventory.write_stock(StockWrite(A, 10, 1))
    added = delivery(5, 2)
    with capture_logs() as lines:
        for _ in range(3):
            await inventory.add_delivery(added)
        await inventory.check_delivery(delivery(5, 3))
    assert [(line["target"], line["before"], line["after"]) for line in lines if line["event"] == "delivery added"] == [
        (f"product {A}", {"stock": 10}, {"stock": 15, "product_version": 2, "delivery": str(added.id)}),
    ]


async def test_retention_deletes_old_deliveries_in_batches_and_leaves_the_stock(inventory, tables):
    for _ in range(5):
        await inventory.add_delivery(delivery(1, 2))
    recent = delivery(1, 2)
    await inventory.add_delivery(recent)
    await tables.conn.execute("UPDATE deliveries SET created_at = now() - interval '31 days' WHERE id <> $1", recent.id)
    retention = Retention(batch_size=2, interval_seconds=100)
    pauses = [await inventory.delete_expired(retention) for _ in range(4)]
    assert [pause == 100 for pause in pauses] == [False, False, True, True]
    assert [row["id"] for row in await tables.conn.fetch("SELECT id FROM deliveries")] == [recent.id]
    assert await tables.stock(A) == [6]
