"""Races that are forced or run at full width: buyers against each other, a cancel beside an open reserve, locks in any order."""

from __future__ import annotations

import asyncio
import random
from uuid import uuid4

import asyncpg
import pytest

from market.inventory import store
from market.inventory.config import Gathering
from market.inventory.domain import Movement, Shortage
from market.inventory.service import RETRIED
from market.kit.errors import Overloaded

from .conftest import PATIENCE, connected, opened, reservation, until_blocking


async def test_two_hundred_buyers_get_exactly_the_fifty_units_there_are(migrated, tables):
    product = uuid4()
    async with opened(migrated) as here, opened(migrated) as there:
        await here.set_stock(product, 50)
        wanted = [reservation((product, 1)) for _ in range(200)]
        answers = await asyncio.gather(*((here, there)[n % 2].reserve(r) for n, r in enumerate(wanted)))
    assert sum(answer == [] for answer in answers) == 50
    assert await tables.stock(product) == [0]
    assert await tables.held(product) == 50
    assert await tables.conn.fetchval("SELECT count(*) FROM reservations") == 50


@pytest.mark.parametrize("commits", [True, False])
@pytest.mark.parametrize("many", [False, True])
async def test_a_cancel_beside_its_open_reserve_leaks_nothing(migrated, inventory, tables, commits, many):
    product = uuid4()
    await inventory.set_stock(product, 10)
    wanted = reservation((product, 4))
    async with connected(migrated) as conn:
        open_reserve = conn.transaction()
        await open_reserve.start()
        await (store.reserve_many(conn, [wanted, reservation((product, 1))]) if many else store.reserve(conn, wanted))
        cancelling = asyncio.create_task(inventory.cancel(wanted.id))
        # For the reservation's own row.
        await until_blocking(conn, cancelling)
        await (open_reserve.commit() if commits else open_reserve.rollback())
        assert await cancelling is commits
    assert await tables.stock(product) == [9 if many and commits else 10]
    assert await tables.held(product) == (1 if many and commits else 0)
    assert await tables.status(wanted.id) == "cancelled"


async def test_a_reserve_beside_its_open_cancel_is_refused(migrated, inventory, tables):
    product = uuid4()
    await inventory.set_stock(product, 10)
    wanted = reservation((product, 4))
    async with connected(migrated) as conn:
        async with conn.transaction():
            await store.cancel_many(conn, [wanted.id])
            reserving = asyncio.create_task(inventory.reserve(wanted))
            await until_blocking(conn, reserving)
    with pytest.raises(Exception, match="was cancelled"):
        await reserving
    assert await tables.stock(product) == [10]


async def test_a_delivery_of_an_unknown_product_beside_a_batch_that_wants_it_is_not_lost(migrated, inventory, tables):
    """The batch looked for the row before it was there, and writes its stock rows after."""
    unknown, known = sorted((uuid4(), uuid4()))
    await inventory.set_stock(known, 10)
    async with connected(migrated) as conn:
        async with conn.transaction():
            await conn.execute("SELECT 1 FROM inventory WHERE product_id = $1 FOR UPDATE", known)
            batch = [reservation((unknown, 1), (known, 1)), reservation((known, 2))]
            reserving = asyncio.create_task(inventory.reserve_many(batch))
            await until_blocking(conn, reserving)
            await inventory.add_stock(Movement(uuid4(), unknown, 5))
        assert await reserving == [[Shortage(unknown, 1, 0)], []]
    assert await tables.stock(unknown, known) == [5, 8]


async def test_one_reservation_from_two_processes_at_once_is_taken_once(migrated, tables):
    product = uuid4()
    async with opened(migrated) as here, opened(migrated) as there:
        await here.set_stock(product, 1000)
        wanted = [reservation((product, 2)) for _ in range(100)]
        answers = await asyncio.gather(*(inventory.reserve(r) for r in wanted for inventory in (here, there)))
    assert answers == [[]] * 200
    assert await tables.stock(product) == [800]


async def test_orders_over_the_same_goods_in_opposite_order_do_not_deadlock(migrated, inventory, tables):
    products = [uuid4() for _ in range(6)]
    for product in products:
        await inventory.set_stock(product, 100_000)
    deadlocks = await tables.conn.fetchval("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
    generator = random.Random(7)

    async def trade(conn) -> None:
        for _ in range(40):
            lines = [(p, 1) for p in generator.sample(products, 4)]
            wanted = [reservation(*reversed(lines)) for _ in range(generator.choice([1, 1, 3]))]
            if len(wanted) == 1:
                await store.reserve(conn, wanted[0])
            else:
                await store.reserve_many(conn, wanted)
            await store.set_stock(conn, {lines[0][0]: 100_000, lines[1][0]: 100_000})
            await store.cancel_many(conn, sorted(r.id for r in wanted))

    connections = [connected(migrated) for _ in range(8)]
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


async def test_a_deadlock_with_a_stranger_is_repeated_inside(postgres, migrated, tables):
    """Somebody by hand in psql locks in the wrong order: the shop does not notice."""
    first, second = sorted((uuid4(), uuid4()))
    await tables.conn.executemany("INSERT INTO inventory VALUES ($1, 10)", [(first,), (second,)])
    before = RETRIED.labels("40P01")._value.get()
    stranger = await asyncpg.connect(
        host=postgres.host, port=postgres.port, database=migrated.database, user="postgres", password=postgres.password
    )
    try:
        # Who looks for the deadlock is the one to give way. The stranger never does; the shop looks once, so late
        # that the stranger has come to wait by then on a busy machine, too. Only a superuser may set it.
        await stranger.execute(f"SET deadlock_timeout = '1h'; ALTER ROLE {migrated.user} SET deadlock_timeout = '4s'")
        async with opened(migrated) as inventory:
            async with stranger.transaction():
                await stranger.execute("UPDATE inventory SET quantity = quantity WHERE product_id = $1", second)
                reserving = asyncio.create_task(inventory.reserve(reservation((first, 1), (second, 1))))
                await until_blocking(stranger, reserving)
                await stranger.execute("UPDATE inventory SET quantity = quantity WHERE product_id = $1", first)
            assert await reserving == []
    finally:
        await stranger.execute(f"ALTER ROLE {migrated.user} RESET deadlock_timeout")
        await stranger.close()
    assert RETRIED.labels("40P01")._value.get() == before + 1
    assert await tables.stock(first, second) == [9, 9]


@pytest.mark.parametrize("many", [1, 3])
async def test_a_row_that_goes_away_between_two_looks_is_asked_for_again(inventory, tables, many):
    """Retention deletes the row just after the insert found it: a trigger of the test does so at that very place."""
    product = uuid4()
    await inventory.set_stock(product, 10)
    wanted = reservation((product, 4))
    await inventory.cancel(wanted.id)
    await tables.conn.execute(
        f"""
        CREATE FUNCTION forget() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN DELETE FROM reservations WHERE id = '{wanted.id}' AND status = 'cancelled'; RETURN NULL; END $$;
        CREATE TRIGGER forget AFTER INSERT ON reservations FOR EACH STATEMENT EXECUTE FUNCTION forget();
        """
    )
    try:
        batch = [wanted, *(reservation((product, 1)) for _ in range(many - 1))]
        assert await inventory.reserve_many(batch) == [[]] * many
    finally:
        await tables.conn.execute("DROP TRIGGER forget ON reservations; DROP FUNCTION forget()")
    assert await tables.stock(product) == [10 - 4 - (many - 1)]
    assert await tables.status(wanted.id) == "reserved"


async def test_retention_beside_a_late_duplicate_never_answers_both_ways(migrated, inventory, tables):
    product = uuid4()
    await inventory.set_stock(product, 10)
    wanted = reservation((product, 4))
    await inventory.cancel(wanted.id)
    async with connected(migrated) as conn:
        async with conn.transaction():
            await conn.execute("UPDATE reservations SET cancelled_at = now() - interval '31 days'")
            await conn.execute("SELECT 1 FROM reservations FOR UPDATE")
            # Held by somebody else: skipped, not waited for.
            assert await asyncio.wait_for(store.forget_cancelled(tables.conn, 30, 10), PATIENCE) == 0
    assert await store.forget_cancelled(tables.conn, 30, 10) == 1
    assert await inventory.reserve(wanted) == []
    assert await tables.stock(product) == [6]


async def test_more_reservations_than_may_wait_are_refused_and_take_nothing(migrated, tables):
    product = uuid4()
    async with opened(migrated, gathering=Gathering(most=1, under_way=1), max_waiting=3) as inventory:
        await inventory.set_stock(product, 100)
        async with connected(migrated) as conn, conn.transaction():
            await conn.execute("SELECT 1 FROM inventory FOR UPDATE")
            calls = [asyncio.create_task(inventory.reserve(reservation((product, 1)))) for _ in range(10)]
            done, _ = await asyncio.wait(calls, timeout=0.2)
            assert {type(call.exception()) for call in done} == {Overloaded}
            refused = len(done)
        answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers.count([]) == 10 - refused
    assert 4 <= 10 - refused <= 6
    assert await tables.stock(product) == [100 - (10 - refused)]
