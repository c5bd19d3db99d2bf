"""Properties on the real PostgreSQL: every way through the service answers and leaves what the one-at-a-time model does."""

from __future__ import annotations

import asyncio
from itertools import permutations
from uuid import UUID, uuid4

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from market.inventory.config import Gathering
from market.inventory.domain import Movement
from market.inventory.service import Inventory

from .conftest import Tables, opened, reservation
from .model import Add, Cancel, Model, Reserve, Set, Step, in_turns

PRODUCTS, IDS = 3, 4
QUANTITY = st.integers(1, 4)
REAL = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)

# Small numbers stand for ids; each example maps them to new ones, so that none meets another's rows.
reserves = st.tuples(
    st.just("reserve"), st.integers(0, IDS - 1), st.dictionaries(st.integers(0, PRODUCTS - 1), QUANTITY, min_size=1)
)
cancels = st.tuples(st.just("cancel"), st.integers(0, IDS - 1))
sets = st.tuples(st.just("set"), st.integers(0, PRODUCTS - 1), st.integers(0, 6))
adds = st.tuples(st.just("add"), st.integers(0, 1), st.integers(0, PRODUCTS - 1), st.integers(-3, 3).filter(bool))
starts = st.lists(st.none() | st.integers(0, 8), min_size=PRODUCTS, max_size=PRODUCTS)


class Example:
    """Ids for one example."""

    def __init__(self) -> None:
        self.products = sorted(uuid4() for _ in range(PRODUCTS))
        self.ids = [uuid4() for _ in range(IDS)]
        self.model = Model()

    def step(self, drawn: tuple) -> Step:
        match drawn:
            case ("reserve", id, wanted):
                return Reserve(reservation(*((self.products[p], q) for p, q in wanted.items()), id=self.ids[id]))
            case ("cancel", id):
                return Cancel(self.ids[id])
            case ("set", product, quantity):
                return Set(self.products[product], quantity)
            case ("add", id, product, delta):
                return Add(Movement(self.ids[id], self.products[product], delta))
        raise AssertionError(drawn)

    async def start(self, inventory: Inventory, quantities: list[int | None]) -> None:
        for product, quantity in zip(self.products, quantities, strict=True):
            if quantity is not None:
                self.model.take(Set(product, quantity))
                await inventory.set_stock(product, quantity)

    async def state(self, tables: Tables) -> tuple:
        rows = await tables.conn.fetch("SELECT * FROM reservations WHERE id = ANY ($1)", self.ids)
        kept = {r["id"]: (r["status"], r["product_ids"], r["quantities"]) for r in rows}
        moved = {r["id"] for r in await tables.conn.fetch("SELECT id FROM movements WHERE id = ANY ($1)", self.ids)}
        return await tables.stock(*self.products), kept, moved

    def expected(self, model: Model) -> tuple:
        kept = {
            id: (status, held.product_ids if held else [], held.quantities if held else [])
            for id, (status, held) in model.reservations.items()
        }
        return [model.stock.get(p) for p in self.products], kept, set(model.movements)


async def perform(inventory: Inventory, step: Step) -> object:
    try:
        match step:
            case Reserve(wanted):
                return await inventory.reserve(wanted)
            case Cancel(id):
                return await inventory.cancel(id)
            case Set(product, quantity):
                return await inventory.set_stock(product, quantity)
            case Add(movement):
                return await inventory.add_stock(movement)
    except Exception as e:
        return type(e)


def plain(answer: object) -> object:
    return type(answer) if isinstance(answer, BaseException) else answer


@settings(REAL, max_examples=80)
@given(starts, st.lists(reserves | cancels | sets | adds, min_size=1, max_size=8))
async def test_one_call_after_another_is_what_the_model_does(shared, looking, quantities, drawn):
    example = Example()
    await example.start(shared, quantities)
    for step in map(example.step, drawn):
        assert await perform(shared, step) == example.model.take(step)
    assert await example.state(looking) == example.expected(example.model)


@settings(REAL, max_examples=100)
@given(starts, st.lists(st.lists(reserves, min_size=2, max_size=7) | cancels, min_size=1, max_size=4))
async def test_a_batch_is_what_the_model_does_in_turn(shared, looking, quantities, drawn):
    example = Example()
    await example.start(shared, quantities)
    for batch in drawn:
        if isinstance(batch, tuple):
            step = example.step(batch)
            assert await perform(shared, step) == example.model.take(step)
            continue
        wanted = [step.wanted for step in map(example.step, batch)]
        expected: dict[int, object] = {n: example.model.take(Reserve(wanted[n])) for n in in_turns(wanted)}
        assert dict(enumerate(map(plain, await shared.reserve_many(wanted)))) == expected
    assert await example.state(looking) == example.expected(example.model)


@settings(REAL, max_examples=100)
@given(
    starts,
    st.lists(
        st.lists(st.tuples(st.booleans(), reserves | cancels | sets | adds), min_size=2, max_size=5),
        min_size=1,
        max_size=3,
    ),
)
async def test_calls_at_once_are_what_the_model_does_in_some_order(shared, other, looking, quantities, waves):
    """Linearizable: for each wave of concurrent calls, in two processes, one order explains all answers and all rows."""
    example = Example()
    await example.start(shared, quantities)
    for wave in waves:
        steps = [example.step(drawn) for _, drawn in wave]
        answers = await asyncio.gather(
            *(perform(other if elsewhere else shared, step) for (elsewhere, _), step in zip(wave, steps, strict=True))
        )
        state = await example.state(looking)
        assert all(left is None or left >= 0 for left in state[0])
        for order in permutations(range(len(steps))):
            model = example.model.copy()
            if all(model.take(steps[n]) == answers[n] for n in order) and example.expected(model) == state:
                example.model = model
                break
        else:
            raise AssertionError(f"no order explains {list(zip(steps, answers, strict=True))} and {state}")


@settings(REAL, max_examples=40)
@given(
    st.lists(st.integers(0, 30), min_size=PRODUCTS, max_size=PRODUCTS),
    st.lists(
        st.tuples(
            st.integers(0, 30), st.dictionaries(st.integers(0, PRODUCTS - 1), QUANTITY, min_size=1), st.booleans()
        ),
        max_size=60,
    ),
)
async def test_start_is_left_and_held_whatever_the_interleaving(shared, other, looking, quantities, drawn):
    example = Example()
    await example.start(shared, quantities)
    ids: dict[int, UUID] = {}

    async def buy(n: int, number: int, wanted: dict[int, int], cancel: bool) -> None:
        here, there = (shared, other) if n % 2 else (other, shared)
        id = ids.setdefault(number, uuid4())
        answer = perform(here, Reserve(reservation(*((example.products[p], q) for p, q in wanted.items()), id=id)))
        await (asyncio.gather(answer, perform(there, Cancel(id))) if cancel else answer)

    await asyncio.gather(*(buy(n, *one) for n, one in enumerate(drawn)))
    left = await looking.stock(*example.products)
    assert [free + await looking.held(p) for free, p in zip(left, example.products, strict=True)] == quantities
    for id in {number: ids[number] for number, _, cancel in drawn if cancel}.values():
        assert await looking.status(id) == "cancelled"


async def test_small_batches_answer_as_large_ones(migrated, tables):
    product = uuid4()
    async with opened(migrated, gathering=Gathering(most=3, under_way=1)) as inventory:
        await inventory.set_stock(product, 10)
        answers = await inventory.reserve_many([reservation((product, 1)) for _ in range(14)])
    assert [answer == [] for answer in answers] == [True] * 10 + [False] * 4
    assert await tables.stock(product) == [0]
