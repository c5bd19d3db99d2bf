"""The database dies, hangs or is refused in the middle; the caller asks again with the same id, and nothing is doubled."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from msgspec.structs import replace

from market.inventory.domain import Movement
from market.kit import context
from market.kit.errors import DeadlineExceeded, Unavailable
from market.kit.faults import Faults, InjectedFault

from .conftest import PATIENCE, connected, opened, reservation


async def until_decided(call, argument, failures=None):
    """The call's answer, asked again as orders does."""
    async with asyncio.timeout(2 * PATIENCE):
        while True:
            try:
                return await call(argument)
            except Unavailable as e:
                if failures is not None:
                    failures.append(e)
                await asyncio.sleep(0.05)


async def test_postgresql_killed_in_the_middle_doubles_and_loses_nothing(postgres, migrated):
    products = [uuid4() for _ in range(3)]
    wanted, cancelled, answers = [], set(), []
    unknown: list[Unavailable] = []
    killed = asyncio.Event()

    async def buy(inventory, n):
        r = reservation((products[n % 3], 1), (products[(n + 1) % 3], 2))
        wanted.append(r)
        answer = await until_decided(inventory.reserve, r, unknown)
        if n % 5 == 0:
            await until_decided(inventory.cancel, r.id, unknown)
            cancelled.add(r.id)
        answers.append((r, answer))

    async def shop(inventory):
        # Goes on until the kills are over, so that they hit a shop that sells; some goods run out on the way.
        while not killed.is_set() or len(wanted) < 600:
            await asyncio.gather(*(buy(inventory, n) for n in range(50)))

    async with opened(migrated, timeout=10) as inventory:
        for product in products:
            await until_decided(lambda product: inventory.set_stock(product, 500), product)
        shopping = asyncio.create_task(shop(inventory))
        for _ in range(2):
            await asyncio.sleep(0.05)
            missed = len(unknown)
            await asyncio.to_thread(postgres.kill)
            async with asyncio.timeout(PATIENCE):
                while len(unknown) == missed and not shopping.done():
                    await asyncio.sleep(0.01)
            await asyncio.to_thread(postgres.restart)
        killed.set()
        await shopping
        assert unknown, "the kill hit nobody"
        # Asking once more takes nothing.
        bought = [r for r, answer in answers if answer == [] and r.id not in cancelled]
        assert await asyncio.gather(*(until_decided(inventory.reserve, r) for r in bought)) == [[]] * len(bought)
    async with connected(migrated) as conn:
        held = await conn.fetch(
            """
            SELECT i.product_id, i.quantity + coalesce((
                SELECT sum(l.quantity) FROM reservations r, unnest(r.product_ids, r.quantities) AS l (product_id, quantity)
                WHERE r.status = 'reserved' AND l.product_id = i.product_id), 0) AS total
            FROM inventory i WHERE product_id = ANY ($1)
            """,
            products,
        )
        statuses = dict(
            await conn.fetch("SELECT id, status FROM reservations WHERE id = ANY ($1)", [r.id for r in wanted])
        )
    assert [row["total"] for row in held] == [500] * 3
    assert {id for id, status in statuses.items() if status == "reserved"} == {r.id for r in bought}
    assert {id for id, status in statuses.items() if status == "cancelled"} == cancelled


async def test_a_database_that_hangs_is_unavailable_in_time_and_decided_later(postgres, migrated, tables):
    product = uuid4()
    await tables.conn.execute("INSERT INTO inventory VALUES ($1, 10)", product)
    # What it costs to give the connection up, too, is limited by a statement's limit.
    async with opened(replace(migrated, timeout_seconds=5), timeout=0.3) as inventory:
        wanted = reservation((product, 3))
        postgres.pause()
        try:
            started = asyncio.get_running_loop().time()
            with pytest.raises(Unavailable):
                await inventory.reserve(wanted)
            with context.deadline_in(0.1), pytest.raises(DeadlineExceeded):
                await inventory.cancel(uuid4())
            with pytest.raises(Unavailable):
                await inventory.stock([product])
            assert asyncio.get_running_loop().time() - started < PATIENCE / 2
        finally:
            postgres.resume()
        assert await until_decided(inventory.reserve, wanted) == []
    assert await tables.stock(product) == [7]


async def test_any_other_database_error_is_unavailable(migrated, inventory, tables):
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


async def test_a_failure_before_the_commit_leaves_nothing_and_one_after_it_leaves_all(migrated, tables, tmp_path):
    product = uuid4()
    async with opened(migrated, faults=Faults(tmp_path)) as inventory:
        await inventory.set_stock(product, 10)
        wanted = [reservation((product, 2)), reservation((product, 3))]
        (tmp_path / "inventory.inside-reserve").write_text("fail")
        assert [type(e) for e in await inventory.reserve_many(wanted)] == [InjectedFault] * 2
        assert (await tables.stock(product), await tables.status(wanted[0].id)) == ([10], None)
        (tmp_path / "inventory.after-commit").write_text("fail")
        assert [type(e) for e in await inventory.reserve_many(wanted)] == [InjectedFault] * 2
        assert (await tables.stock(product), await tables.status(wanted[0].id)) == ([5], "reserved")
        assert await inventory.reserve_many(wanted) == [[], []]
        assert await tables.stock(product) == [5]
        (tmp_path / "inventory.inside-cancel").write_text("fail")
        with pytest.raises(InjectedFault):
            await inventory.cancel(wanted[0].id)
        assert await tables.stock(product) == [5]
        (tmp_path / "inventory.after-cancel").write_text("fail")
        with pytest.raises(InjectedFault):
            await inventory.cancel(wanted[0].id)
        assert await tables.stock(product) == [7]
        assert await inventory.cancel(wanted[0].id) is False
    assert await tables.stock(product) == [7]


async def test_a_caller_that_goes_away_does_not_hold_up_the_others(inventory, tables):
    product = uuid4()
    await inventory.set_stock(product, 100)
    calls = [asyncio.create_task(inventory.reserve(reservation((product, 1)))) for _ in range(50)]
    await asyncio.sleep(0)
    for call in calls[::2]:
        call.cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert answers[1::2] == [[]] * 25
    left = (await tables.stock(product))[0]
    assert left + await tables.held(product) == 100
