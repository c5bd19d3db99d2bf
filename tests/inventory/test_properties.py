"""Properties on real PostgreSQL: every way through the service returns and stores what the sequential model does."""

from __future__ import annotations

import asyncio
from itertools import permutations
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from market.inventory.config import Batching
from market.inventory.domain import MAX_STOCK, Delivery, Movement, StockWrite

from .conftest import Inventory, Tables, opened, reservation
from .model import AddDelivery, AddStock, Cancel, Model, Reserve, SetStock, Step, decision_order

PRODUCTS, IDS = 3, 4
QUANTITY = st.integers(1, 4)
ON_POSTGRES = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

# Small numbers stand for ids; each example maps them to new ones, so that examples do not share rows.
reserves = st.tuples(
    st.just("reserve"), st.integers(0, IDS - 1), st.dictionaries(st.integers(0, PRODUCTS - 1), QUANTITY, min_size=1)
)
cancels = st.tuples(st.just("cancel"), st.integers(0, IDS - 1))
VERSIONS = range(1, 7)
VERSION = st.sampled_from(VERSIONS)
sets = st.tuples(
    st.just("set"), st.integers(0, PRODUCTS - 1), st.integers(0, 6) | st.just(MAX_STOCK - 1), st.none() | VERSION
)
# Few ids, so that most are repeated, with another version or another quantity.
deliveries = st.tuples(st.just("deliver"), st.integers(0, 1), st.integers(0, PRODUCTS - 1), st.integers(1, 2), VERSION)
adds = st.tuples(st.just("add"), st.integers(0, 1), st.integers(0, PRODUCTS - 1), st.integers(-3, 3).filter(bool))
steps = reserves | cancels | sets | deliveries | adds
# Changes of the stock of one product alone, whose calls arrive in another order than that of their versions.
of_one_product = st.tuples(st.just("set"), st.just(0), st.integers(0, 6), VERSION) | st.tuples(
    st.just("deliver"), st.integers(0, 2), st.just(0), st.integers(1, 3), VERSION
)
initial_stock = st.lists(st.none() | st.integers(0, 8), min_size=PRODUCTS, max_size=PRODUCTS)


class Example:
    """The ids of one example, and the model's state."""

    def __init__(self) -> None:
        self.product_ids = sorted(uuid4() for _ in range(PRODUCTS))
        self.ids = [uuid4() for _ in range(IDS)]
        self.model = Model()

    def step(self, drawn: tuple) -> Step:
        match drawn:
            case ("reserve", n, quantities):
                lines = ((self.product_ids[p], quantity) for p, quantity in quantities.items())
                return Reserve(reservation(*lines, reservation_id=self.ids[n]))
            case ("cancel", n):
                return Cancel(self.ids[n])
            case ("set", p, quantity, version):
                return SetStock(StockWrite(self.product_ids[p], quantity, version))
            case ("deliver", n, p, quantity, version):
                return AddDelivery(Delivery(self.ids[n], self.product_ids[p], quantity, version))
            case ("add", n, p, delta):
                return AddStock(Movement(self.ids[n], self.product_ids[p], delta))
        raise AssertionError(drawn)

    async def fill(self, inventory: Inventory, quantities: list[int | None]) -> None:
        for product_id, quantity in zip(self.product_ids, quantities, strict=True):
            if quantity is not None:
                self.model.apply(SetStock(StockWrite(product_id, quantity)))
                await inventory.set_stock(product_id, quantity)

    async def stored_state(self, tables: Tables) -> tuple:
        rows = await tables.conn.fetch("SELECT * FROM reservations WHERE id = ANY ($1)", self.ids)
        reservations = {row["id"]: (row["status"], row["product_ids"], row["quantities"]) for row in rows}
        rows = await tables.conn.fetch("SELECT id FROM movements WHERE id = ANY ($1)", self.ids)
        movements = {row["id"] for row in rows}
        rows = await tables.conn.fetch("SELECT * FROM deliveries WHERE product_id = ANY ($1)", self.product_ids)
        added = {(row["product_id"], row["id"]): (row["quantity"], row["product_version"]) for row in rows}
        return await tables.stock(*self.product_ids), reservations, movements, added

    def expected_state(self, model: Model) -> tuple:
        reservations = {
            reservation_id: (
                status,
                reservation.product_ids if reservation else [],
                reservation.quantities if reservation else [],
            )
            for reservation_id, (status, reservation) in model.reservations.items()
        }
        added = {key: (d.quantity, d.product_version) for key, d in model.deliveries.items()}
        stock = [model.stock.get(product_id) for product_id in self.product_ids]
        return stock, reservations, set(model.movements), added


async def perform(inventory: Inventory, step: Step) -> object:
    """Return the result of the step, or the class of its error."""
    try:
        match step:
            case Reserve(reservation):
                return await inventory.reserve(reservation)
            case Cancel(reservation_id):
                return await inventory.cancel(reservation_id)
            case SetStock(write):
                return await inventory.write_stock(write)
            case AddDelivery(delivery):
                return await inventory.add_delivery(delivery)
            case AddStock(movement):
                return await inventory.add_stock(movement)
    except Exception as e:
        return type(e)


def result_or_class(result: object) -> object:
    return type(result) if isinstance(result, BaseException) else result


@settings(ON_POSTGRES, max_examples=80)
@given(initial_stock, st.lists(steps, min_size=1, max_size=8))
async def test_sequential_calls_behave_as_the_model(shared_inventory, shared_tables, quantities, drawn):
    example = Example()
    await example.fill(shared_inventory, quantities)
    for step in map(example.step, drawn):
        assert await perform(shared_inventory, step) == example.model.apply(step)
    assert await example.stored_state(shared_tables) == example.expected_state(example.model)


@settings(ON_POSTGRES, max_examples=80)
@given(st.lists(of_one_product, min_size=2, max_size=8))
async def test_late_and_repeated_changes_of_a_stock_behave_as_the_model(shared_inventory, shared_tables, drawn):
    example = Example()
    for step in map(example.step, drawn):
        if isinstance(step, AddDelivery):
            checked = await shared_inventory.check_delivery(step.delivery)
            # A check knows no version: what it would add is not superseded.
            newest = AddDelivery(replace(step.delivery, product_version=max(VERSIONS)))
            assert checked.outcome == example.model.copy().apply(newest).outcome
        assert await perform(shared_inventory, step) == example.model.apply(step)
    assert await example.stored_state(shared_tables) == example.expected_state(example.model)


@settings(ON_POSTGRES, max_examples=100)
@given(initial_stock, st.lists(st.lists(reserves, min_size=2, max_size=7) | cancels, min_size=1, max_size=4))
async def test_a_batch_behaves_as_the_model_deciding_in_rounds(shared_inventory, shared_tables, quantities, drawn):
    example = Example()
    await example.fill(shared_inventory, quantities)
    for batch in drawn:
        if isinstance(batch, tuple):
            step = example.step(batch)
            assert await perform(shared_inventory, step) == example.model.apply(step)
            continue
        reservations = [step.reservation for step in map(example.step, batch)]
        expected: dict[int, object] = {
            n: example.model.apply(Reserve(reservations[n])) for n in decision_order(reservations)
        }
        results = await shared_inventory.reserve_many(reservations)
        assert dict(enumerate(map(result_or_class, results))) == expected
    assert await example.stored_state(shared_tables) == example.expected_state(example.model)


@settings(ON_POSTGRES, max_examples=100)
@given(
    initial_stock,
    st.lists(
        st.lists(st.tuples(st.booleans(), steps), min_size=2, max_size=5),
        min_size=1,
        max_size=3,
    ),
)
async def test_concurrent_calls_behave_as_the_model_in_some_order(
    shared_inventory, second_inventory, shared_tables, quantities, waves
):
    """Linearizability: for each wave of concurrent calls in two processes, one order explains all results and all
    rows."""
    example = Example()
    await example.fill(shared_inventory, quantities)
    for wave in waves:
        steps = [example.step(drawn) for _, drawn in wave]
        results = await asyncio.gather(
            *(
                perform(second_inventory if use_second else shared_inventory, step)
                for (use_second, _), step in zip(wave, steps, strict=True)
            )
        )
        state = await example.stored_state(shared_tables)
        assert all(quantity is None or quantity >= 0 for quantity in state[0])
        for order in permutations(range(len(steps))):
            model = example.model.copy()
            if all(model.apply(steps[n]) == results[n] for n in order) and example.expected_state(model) == state:
                example.model = model
                break
        else:
            raise AssertionError(f"no order explains {list(zip(steps, results, strict=True))} and {state}")


@settings(ON_POSTGRES, max_examples=40)
@given(
    st.lists(st.integers(0, 30), min_size=PRODUCTS, max_size=PRODUCTS),
    st.lists(
        st.tuples(
            st.integers(0, 30), st.dictionaries(st.integers(0, PRODUCTS - 1), QUANTITY, min_size=1), st.booleans()
        ),
        max_size=60,
    ),
)
async def test_available_plus_reserved_units_stay_constant_in_any_interleaving(
    shared_inventory, second_inventory, shared_tables, quantities, drawn
):
    example = Example()
    await example.fill(shared_inventory, quantities)
    ids: dict[int, UUID] = {}

    async def buy(n: int, number: int, requested: dict[int, int], cancel: bool) -> None:
        first, second = (shared_inventory, second_inventory) if n % 2 else (second_inventory, shared_inventory)
        reservation_id = ids.setdefault(number, uuid4())
        lines = ((example.product_ids[p], quantity) for p, quantity in requested.items())
        reserving = perform(first, Reserve(reservation(*lines, reservation_id=reservation_id)))
        await (asyncio.gather(reserving, perform(second, Cancel(reservation_id))) if cancel else reserving)

    await asyncio.gather(*(buy(n, *one) for n, one in enumerate(drawn)))
    available = await shared_tables.stock(*example.product_ids)
    reserved = [await shared_tables.reserved(product_id) for product_id in example.product_ids]
    assert [a + r for a, r in zip(available, reserved, strict=True)] == quantities
    for reservation_id in {number: ids[number] for number, _, cancel in drawn if cancel}.values():
        assert await shared_tables.status(reservation_id) == "cancelled"


async def test_small_batches_return_the_same_as_large_ones(migrated_database, tables):
    product_id = uuid4()
    async with opened(migrated_database, batching=Batching(max_batch_size=3, max_concurrency=1)) as inventory:
        await inventory.set_stock(product_id, 10)
        results = await inventory.reserve_many([reservation((product_id, 1)) for _ in range(14)])
    assert [result == [] for result in results] == [True] * 10 + [False] * 4
    assert await tables.stock(product_id) == [0]
