"""Races, forced or at full concurrency: competing buyers, a cancellation during an open reservation, locks in any
order."""

from __future__ import annotations

import asyncio
import random
from uuid import uuid4

import asyncpg
import pytest

from market.inventory.config import Batching
from market.inventory.domain import Movement, Shortage, StockWrite
from market.inventory.metrics import TRANSACTION_RETRIES
from market.kit.errors import Overloaded
from tests.support.waiting import PATIENCE

from .conftest import Repositories, connected, opened, reservation, until_blocking


async def test_two_hundred_buyers_get_exactly_the_fifty_units_in_stock(migrated_database, tables):
    product_id = uuid4()
    async with opened(migrated_database) as first_process, opened(migrated_database) as second_process:
        await first_process.set_stock(product_id, 50)
        requested = [reservation((product_id, 1)) for _ in range(200)]
        results = await asyncio.gather(
            *((first_process, second_process)[n % 2].reserve(r) for n, r in enumerate(requested))
        )
    assert sum(result == [] for result in results) == 50
    assert await tables.stock(product_id) == [0]
    assert await tables.reserved(product_id) == 50
    assert await tables.conn.fetchval("SELECT count(*) FROM reservations") == 50


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("many", [False, True])
async def test_a_cancellation_during_its_open_reservation_leaks_nothing(
    migrated_database, inventory, tables, commits, many
):
    product_id = uuid4()
    await inventory.set_stock(product_id, 10)
    requested = reservation((product_id, 4))
    async with connected(migrated_database) as conn:
        open_reserve = conn.transaction()
        await open_reserve.start()
        reservations = Repositories(conn).reservations
        await (
            reservations.reserve_many([requested, reservation((product_id, 1))])
            if many
            else reservations.reserve(requested)
        )
        cancelling = asyncio.create_task(inventory.cancel(requested.id))
        # It waits for the reservation's own row.
        await until_blocking(conn, cancelling)
        await (open_reserve.commit() if commits else open_reserve.rollback())
        assert await cancelling is commits
    assert await tables.stock(product_id) == [9 if many and commits else 10]
    assert await tables.reserved(product_id) == (1 if many and commits else 0)
    assert await tables.status(requested.id) == "cancelled"


async def test_a_reservation_during_its_open_cancellation_is_rejected(migrated_database, inventory, tables):
    product_id = uuid4()
    await inventory.set_stock(product_id, 10)
    requested = reservation((product_id, 4))
    async with connected(migrated_database) as conn:
        async with conn.transaction():
            await Repositories(conn).reservations.cancel_many([requested.id])
            reserving = asyncio.create_task(inventory.reserve(requested))
            await until_blocking(conn, reserving)
    with pytest.raises(Exception, match="was cancelled"):
        await reserving
    assert await tables.stock(product_id) == [10]


async def test_a_delivery_of_an_unknown_product_during_a_batch_that_requests_it_is_not_lost(
    migrated_database, inventory, tables
):
    """The batch reads the stock rows before the new one exists, and writes them after."""
    unknown, known = sorted((uuid4(), uuid4()))
    await inventory.set_stock(known, 10)
    async with connected(migrated_database) as conn:
        async with conn.transaction():
            await conn.execute("SELECT 1 FROM inventory WHERE product_id = $1 FOR UPDATE", known)
            batch = [reservation((unknown, 1), (known, 1)), reservation((known, 2))]
            reserving = asyncio.create_task(inventory.reserve_many(batch))
            await until_blocking(conn, reserving)
            await inventory.add_stock(Movement(uuid4(), unknown, 5))
        assert await reserving == [[Shortage(unknown, 1, 0)], []]
    assert await tables.stock(unknown, known) == [5, 8]


async def test_a_reservation_sent_to_two_processes_at_once_is_reserved_once(migrated_database, tables):
    product_id = uuid4()
    async with opened(migrated_database) as first_process, opened(migrated_database) as second_process:
        await first_process.set_stock(product_id, 1000)
        requested = [reservation((product_id, 2)) for _ in range(100)]
        results = await asyncio.gather(
            *(inventory.reserve(r) for r in requested for inventory in (first_process, second_process))
        )
    assert results == [[]] * 200
    assert await tables.stock(product_id) == [800]


async def test_orders_of_the_same_products_in_opposite_order_do_not_deadlock(migrated_database, inventory, tables):
    product_ids = [uuid4() for _ in range(6)]
    for product_id in product_ids:
        await inventory.set_stock(product_id, 100_000)
    deadlocks = await tables.conn.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    generator = random.Random(7)

    async def trade(conn) -> None:
        repositories = Repositories(conn)
        for _ in range(40):
            lines = [(p, 1) for p in generator.sample(product_ids, 4)]
            requested = [reservation(*reversed(lines)) for _ in range(generator.choice([1, 1, 3]))]
            if len(requested) == 1:
                await repositories.reservations.reserve(requested[0])
            else:
                await repositories.reservations.reserve_many(requested)
            await repositories.stock.set_many([StockWrite(product_id, 100_000) for product_id, _ in lines[:2]])
            await repositories.reservations.cancel_many(sorted(r.id for r in requested))

    connections = [connected(migrated_database) for _ in range(8)]
    opened_connections = [await c.__aenter__() for c in connections]
    try:
        await asyncio.gather(*(trade(conn) for conn in opened_connections))
    finally:
        for c in connections:
            await c.__aexit__(None, None, None)
    await tables.conn.execute("SELECT pg_stat_force_next_flush()")
    await tables.conn.execute("SELECT pg_stat_clear_snapshot()")
    assert (
        await tables.conn.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        == deadlocks
    )
    assert await tables.conn.fetchval("SELECT count(*) FROM reservations WHERE status <> 'cancelled'") == 0


async def test_a_transaction_aborted_by_a_deadlock_is_retried(postgres, migrated_database, tables):
    """Somebody at a psql prompt locks rows in the wrong order; the shop does not notice."""
    first, second = sorted((uuid4(), uuid4()))
    await tables.conn.executemany("INSERT INTO inventory VALUES ($1, 10)", [(first,), (second,)])
    before = TRANSACTION_RETRIES.labels("40P01")._value.get()
    other_session = await asyncpg.connect(
        host=postgres.host,
        port=postgres.port,
        database=migrated_database.database,
        user="postgres",
        password=postgres.password,
    )
    try:
        # The session that detects the deadlock is the one aborted. The other session never checks; the shop checks
        # once, late enough that the other session is waiting by then, even on a busy machine. Only a superuser may set
        # it.
        await other_session.execute(
            f"SET deadlock_timeout = '1h'; ALTER ROLE {migrated_database.user} SET deadlock_timeout = '4s'"
        )
        async with opened(migrated_database) as inventory:
            async with other_session.transaction():
                await other_session.execute("UPDATE inventory SET quantity = quantity WHERE product_id = $1", second)
                reserving = asyncio.create_task(inventory.reserve(reservation((first, 1), (second, 1))))
                await until_blocking(other_session, reserving)
                await other_session.execute("UPDATE inventory SET quantity = quantity WHERE product_id = $1", first)
            assert await reserving == []
    finally:
        await other_session.execute(f"ALTER ROLE {migrated_database.user} RESET deadlock_timeout")
        await other_session.close()
    assert TRANSACTION_RETRIES.labels("40P01")._value.get() == before + 1
    assert await tables.stock(first, second) == [9, 9]


@pytest.mark.parametrize("many", [1, 3])
async def test_a_row_deleted_between_two_statements_is_decided_again(inventory, tables, many):
    """Retention deletes the row just after the insert found it; here a trigger does so at that very moment."""
    product_id = uuid4()
    await inventory.set_stock(product_id, 10)
    requested = reservation((product_id, 4))
    await inventory.cancel(requested.id)
    await tables.conn.execute(
        f"""
        CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN DELETE FROM reservations WHERE id = '{requested.id}' AND status = 'cancelled'; RETURN NULL; END $$;
        CREATE TRIGGER forget AFTER INSERT ON reservations FOR EACH STATEMENT EXECUTE FUNCTION forget();
        """
    )
    try:
        batch = [requested, *(reservation((product_id, 1)) for _ in range(many - 1))]
        assert await inventory.reserve_many(batch) == [[]] * many
    finally:
        await tables.conn.execute("DROP TRIGGER forget ON reservations; DROP FUNCTION forget()")
    assert await tables.stock(product_id) == [10 - 4 - (many - 1)]
    assert await tables.status(requested.id) == "reserved"


async def test_a_late_duplicate_is_reserved_only_after_retention_deleted_its_cancellation(
    migrated_database, inventory, tables
):
    product_id = uuid4()
    await inventory.set_stock(product_id, 10)
    requested = reservation((product_id, 4))
    await inventory.cancel(requested.id)
    reservations = Repositories(tables.conn).reservations
    async with connected(migrated_database) as conn:
        async with conn.transaction():
            await conn.execute("UPDATE reservations SET cancelled_at = now() - interval '31 days'")
            await conn.execute("SELECT 1 FROM reservations FOR UPDATE")
            # Locked by another transaction: skipped, not waited for.
            assert await asyncio.wait_for(reservations.delete_cancelled(30, 10), PATIENCE) == 0
    assert await reservations.delete_cancelled(30, 10) == 1
    assert await inventory.reserve(requested) == []
    assert await tables.stock(product_id) == [6]


async def test_reservations_beyond_the_pending_limit_are_refused_and_reserve_nothing(migrated_database, tables):
    product_id = uuid4()
    async with opened(
        migrated_database, batching=Batching(max_batch_size=1, max_concurrency=1), max_pending=3
    ) as inventory:
        await inventory.set_stock(product_id, 100)
        async with connected(migrated_database) as conn, conn.transaction():
            await conn.execute("SELECT 1 FROM inventory FOR UPDATE")
            calls = [asyncio.create_task(inventory.reserve(reservation((product_id, 1)))) for _ in range(10)]
            done, _ = await asyncio.wait(calls, timeout=0.2)
            assert {type(call.exception()) for call in done} == {Overloaded}
            refused = len(done)
        results = await asyncio.gather(*calls, return_exceptions=True)
    assert results.count([]) == 10 - refused
    assert 4 <= 10 - refused <= 6
    assert await tables.stock(product_id) == [100 - (10 - refused)]
