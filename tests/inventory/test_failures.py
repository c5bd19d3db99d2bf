"""The database crashes, hangs or fails during calls; the caller retries with the same id, and nothing is duplicated."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from msgspec.structs import replace

from market.inventory.domain import Movement
from market.kit import context
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.faults import Faults, InjectedFault
from tests.support.waiting import PATIENCE, until

from .conftest import connected, opened, reservation


async def until_decided(call, argument, failures=None):
    """Return the call's result, retrying it as orders does."""
    async with asyncio.timeout(2 * PATIENCE):
        while True:
            try:
                return await call(argument)
            except Unavailable as e:
                if failures is not None:
                    failures.append(e)
                await asyncio.sleep(0.05)


async def test_killing_postgresql_duplicates_and_loses_nothing(postgres, migrated_database):
    products = [uuid4() for _ in range(3)]
    requested, cancelled, results = [], set(), []
    unknown: list[Unavailable] = []
    killed = asyncio.Event()

    async def buy(inventory, n):
        r = reservation((products[n % 3], 1), (products[(n + 1) % 3], 2))
        requested.append(r)
        result = await until_decided(inventory.reserve, r, unknown)
        if n % 5 == 0:
            await until_decided(inventory.cancel, r.id, unknown)
            cancelled.add(r.id)
        results.append((r, result))

    async def buy_until_killed(inventory):
        # Buy until the kills are over, so that they interrupt reservations; some products sell out meanwhile.
        while not killed.is_set() or len(requested) < 600:
            await asyncio.gather(*(buy(inventory, n) for n in range(50)))

    async with opened(migrated_database, timeout_seconds=10) as inventory:
        for product in products:
            await until_decided(lambda product: inventory.set_stock(product, 500), product)
        buying = asyncio.create_task(buy_until_killed(inventory))
        for _ in range(2):
            await asyncio.sleep(0.05)
            missed = len(unknown)
            await asyncio.to_thread(postgres.kill)
            await until(lambda missed=missed: len(unknown) > missed or buying.done(), interval=0.01)
            await asyncio.to_thread(postgres.restart)
        killed.set()
        await buying
        assert unknown, "the kill interrupted no call"
        # Repeating the reservations reserves nothing more.
        bought = [r for r, result in results if result == [] and r.id not in cancelled]
        assert await asyncio.gather(*(until_decided(inventory.reserve, r) for r in bought)) == [[]] * len(bought)
    async with connected(migrated_database) as conn:
        held = await conn.fetch(
            """
            SELECT i.product_id, i.quantity + coalesce((
                SELECT sum(l.quantity)
                FROM reservations r, unnest(r.product_ids, r.quantities) AS l (product_id, quantity)
                WHERE r.status = 'reserved' AND l.product_id = i.product_id), 0) AS total
            FROM inventory i WHERE product_id = ANY ($1)
            """,
            products,
        )
        statuses = dict(
            await conn.fetch("SELECT id, status FROM reservations WHERE id = ANY ($1)", [r.id for r in requested])
        )
    assert [row["total"] for row in held] == [500] * 3
    assert {id for id, status in statuses.items() if status == "reserved"} == {r.id for r in bought}
    assert {id for id, status in statuses.items() if status == "cancelled"} == cancelled


async def test_calls_to_a_hanging_database_fail_in_time_and_succeed_later(postgres, migrated_database, tables):
    product = uuid4()
    await tables.conn.execute("INSERT INTO inventory VALUES ($1, 10)", product)
    # Giving up the connection takes time too, limited by the statement timeout.
    async with opened(replace(migrated_database, timeout_seconds=5), timeout_seconds=0.3) as inventory:
        requested = reservation((product, 3))
        postgres.pause()
        try:
            started = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable):
                await inventory.reserve(requested)
            with context.deadline_in(0.1), pytest.raises(DeadlineExceeded):
                await inventory.cancel(uuid4())
            with pytest.raises(Unavailable):
                await inventory.get_stock([product])
            assert asyncio.get_running_loop().time() - started < PATIENCE / 2
        finally:
            postgres.resume()
        assert await until_decided(inventory.reserve, requested) == []
    assert await tables.stock(product) == [7]


async def test_any_other_database_error_is_reported_as_unavailable(migrated_database, inventory, tables):
    product = uuid4()
    await inventory.set_stock(product, 10)
    await tables.conn.execute("ALTER TABLE movements RENAME TO moved; ALTER TABLE reservations RENAME TO kept")
    try:
        for call in (
            inventory.reserve(reservation((product, 1))),
            inventory.cancel(uuid4()),
            inventory.add_stock(Movement(uuid4(), product, 1)),
        ):
            with pytest.raises(Unavailable):
                await call
    finally:
        await tables.conn.execute("ALTER TABLE moved RENAME TO movements; ALTER TABLE kept RENAME TO reservations")
    assert await inventory.reserve(reservation((product, 1))) == []
    assert await tables.stock(product) == [9]


async def test_a_failure_before_the_commit_changes_nothing_and_one_after_it_keeps_everything(
    migrated_database, tables, tmp_path
):
    product = uuid4()
    async with opened(migrated_database, faults=Faults(tmp_path)) as inventory:
        await inventory.set_stock(product, 10)
        requested = [reservation((product, 2)), reservation((product, 3))]
        (tmp_path / "inventory.inside-reserve").write_text("fail")
        assert [type(e) for e in await inventory.reserve_many(requested)] == [InjectedFault] * 2
        assert (await tables.stock(product), await tables.status(requested[0].id)) == ([10], None)
        (tmp_path / "inventory.after-commit").write_text("fail")
        assert [type(e) for e in await inventory.reserve_many(requested)] == [InjectedFault] * 2
        assert (await tables.stock(product), await tables.status(requested[0].id)) == ([5], "reserved")
        assert await inventory.reserve_many(requested) == [[], []]
        assert await tables.stock(product) == [5]
        (tmp_path / "inventory.inside-cancel").write_text("fail")
        with pytest.raises(InjectedFault):
            await inventory.cancel(requested[0].id)
        assert await tables.stock(product) == [5]
        (tmp_path / "inventory.after-cancel").write_text("fail")
        with pytest.raises(InjectedFault):
            await inventory.cancel(requested[0].id)
        assert await tables.stock(product) == [7]
        assert await inventory.cancel(requested[0].id) is False
    assert await tables.stock(product) == [7]


async def test_a_cancelled_caller_does_not_block_the_others(inventory, tables):
    product = uuid4()
    await inventory.set_stock(product, 100)
    calls = [asyncio.create_task(inventory.reserve(reservation((product, 1)))) for _ in range(50)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert results[1::2] == [[]] * 25
    left = (await tables.stock(product))[0]
    assert left + await tables.reserved(product) == 100
