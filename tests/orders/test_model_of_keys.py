"""Two clients with one key and an order each of their own, explored exhaustively: every interleaving with recovery, a
cancellation and a fault at each step (a crash before or after the step took effect, a lost response, a step that arrives late).
The moves are the service's own (`market.orders.domain`); the unique index and inventory are modelled after their contracts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest

from market.contracts import events
from market.orders import domain
from market.orders.domain import Move, Order, OutboxEntry, Status, Step

from . import explorer
from .test_model import AT, FRESH, UNKNOWN

ORDERS = tuple(msgspec.structs.replace(FRESH, id=UUID(int=n + 1)) for n in range(2))
TAKEN = object()


class Actor(NamedTuple):
    """A program: where it stands, the order that it is about, the order that it would make, and what it holds."""

    kind: str
    at: str
    about: int = 0
    own: int = 0
    held: Any = None
    response: str = ""


class World(NamedTuple):
    orders: tuple[Order | None, ...]
    reservations: tuple[str, ...]
    stock: int
    owned: int
    ever_confirmed: tuple[bool, ...]
    actors: tuple[Actor, ...]
    late: tuple[Any, ...]
    faults: int


def put(items: tuple[Any, ...], at: int, item: Any) -> tuple[Any, ...]:
    return (*items[:at], item, *items[at + 1 :])


def holder(world: World) -> int | None:
    """Which order has the key."""
    return next((i for i, o in enumerate(world.orders) if o is not None and o.key is not None), None)


def entry(order: Order, type: str) -> OutboxEntry:
    return OutboxEntry(events.event_id(order.id, type), type, AT)


def apply(world: World, op: Any) -> tuple[World, Any]:
    """The store's part of an operation: the world after it, and what it responses."""
    name, i = op[0], op[1]
    order = None if i is None else world.orders[i]
    if name == "lookup":
        return world, holder(world)
    if name == "read":
        return world, order
    if name == "insert":
        if order is not None:
            return world, True
        if holder(world) is not None:
            return world, TAKEN
        return world._replace(orders=put(world.orders, i, ORDERS[i])), True
    if name == "move":
        move: Move = op[2]
        if order is None or order.status is not move.source:
            return world, False
        after = domain.apply_move(order, move, entry(order, move.event) if move.event else None)
        ever = put(world.ever_confirmed, i, world.ever_confirmed[i] or after.status is Status.CONFIRMED)
        return world._replace(orders=put(world.orders, i, after), ever_confirmed=ever), True
    reservation = world.reservations[i]
    if name == "reserve":
        after, stock, response = explorer.reserve(reservation, world.stock)
        return world._replace(reservations=put(world.reservations, i, after), stock=stock), response
    assert order is not None
    if name == "release":
        assert order.status in (Status.REJECTED, Status.CANCELLED), (
            "released before an acknowledged write has ended the order"
        )
        stock = world.stock + (reservation == "reserved")
        return world._replace(reservations=put(world.reservations, i, "cancelled"), stock=stock), True
    assert name == "unset"
    return world._replace(orders=put(world.orders, i, msgspec.structs.replace(order, release_due=False))), True


def next_op(actor: Actor) -> Any:
    """What the actor asks of a store next."""
    if actor.at == "lookup":
        return ("lookup", None)
    if actor.at == "insert":
        return ("insert", actor.own)
    if actor.at in ("read", "found", "unset"):
        return ({"found": "read"}.get(actor.at, actor.at), actor.about)
    if actor.at == "move":
        return ("move", actor.about, actor.held[1])
    step = domain.next_step(actor.held, overdue=actor.kind == "recovery")
    if actor.kind == "delete" and (move := domain.CANCELLING.get(actor.held.status)):
        return ("move", actor.about, move)
    if step is Step.REJECT:
        return ("move", actor.about, domain.REJECT)
    return ({Step.RESERVE: "reserve", Step.RELEASE: "release"}[step], actor.about)


def done(actor: Actor, response: str) -> Actor:
    return Actor(actor.kind, "done", actor.about, actor.own, None, response)


def received(actor: Actor, op: Any, result: Any) -> Actor:
    """The actor once it has the response, or knows that it will not have one. As service.py goes on."""
    name = op[0]
    if result is UNKNOWN and name in ("lookup", "read", "insert", "reserve"):
        return done(actor, "503")
    if name == "lookup":
        return actor._replace(at="insert") if result is None else actor._replace(at="found", about=result)
    if name == "insert":
        return (
            actor._replace(at="lookup") if result is TAKEN else held(actor._replace(about=actor.own), ORDERS[actor.own])
        )
    if name == "read":
        if actor.at == "found" and (result is None or result.key is None):
            # Rejected meanwhile: the key is free again.
            return actor._replace(at="insert", held=None)
        return done(actor, "503" if actor.kind == "client" else "404") if result is None else held(actor, result)
    if name == "move":
        order = actor.held[0] if actor.at == "move" else actor.held
        if result is True:
            move = op[2]
            return held(actor, domain.apply_move(order, move, entry(order, move.event) if move.event else None))
        return actor._replace(at="read", held=None)
    if name == "reserve":
        return actor._replace(at="move", held=(actor.held, domain.move_after_reservation(result)))
    if name == "release":
        return done(actor, actor.held.status.value) if result is UNKNOWN else actor._replace(at="unset")
    return done(actor, actor.held.status.value)


def held(actor: Actor, order: Order) -> Actor:
    now = actor._replace(at="have", held=order)
    if actor.kind == "delete" and order.status in domain.CANCELLING:
        return now
    if domain.next_step(order, overdue=actor.kind == "recovery") in (Step.PUBLISH, Step.NOTHING):
        return done(actor, order.status.value)
    return now


def steps(world: World) -> Iterator[World]:
    """Every world that one step leads to."""
    for n, actor in enumerate(world.actors):

        def then(new: World, next_actor: Actor, n: int = n) -> World:
            if next_actor.kind == "recovery" and next_actor.at == "done":
                next_actor = Actor("recovery", "idle")
            return new._replace(actors=put(new.actors, n, next_actor))

        if actor.at in ("done", "dead"):
            continue
        if actor.at == "idle":
            # Time is not modelled: the loop may come at any moment.
            for i, order in enumerate(world.orders):
                if order is not None and domain.next_step(order, overdue=True) in (Step.REJECT, Step.RELEASE):
                    yield then(world, Actor("recovery", "have", i, 0, order))
            continue
        op = next_op(actor)
        after, result = apply(world, op)
        yield then(after, received(actor, op, result))
        if world.faults:
            fewer = {"faults": world.faults - 1}
            dead = Actor("recovery", "idle") if actor.kind == "recovery" else Actor(actor.kind, "dead")
            yield then(world._replace(**fewer), dead)
            yield then(after._replace(**fewer), dead)
            yield then(after._replace(**fewer), received(actor, op, UNKNOWN))
            if op[0] not in ("read", "lookup"):
                waiting = world._replace(late=(*world.late, op), **fewer)
                yield then(waiting, dead)
                yield then(waiting, received(actor, op, UNKNOWN))
    for n, op in enumerate(world.late):
        yield apply(world._replace(late=world.late[:n] + world.late[n + 1 :]), op)[0]


def always(world: World) -> None:
    """What must hold at every moment."""
    assert world.stock >= 0
    assert world.stock + world.reservations.count("reserved") == world.owned
    live = [o for o in world.orders if o is not None and o.status is not Status.REJECTED]
    assert len(live) <= 1, "one key has made two orders"
    for i, order in enumerate(world.orders):
        if order is None:
            continue
        goods = world.reservations[i] == "reserved"
        assert (order.key is None) == (order.status is Status.REJECTED)
        if order.status is Status.CONFIRMED:
            assert goods, "a confirmed order without goods"
        if order.status in (Status.REJECTED, Status.CANCELLED) and goods:
            assert order.release_due or ("reserve", i) in world.late, "goods that nobody gives back"


def at_the_end(world: World) -> None:
    """What must hold once nothing is left to do."""
    for order, reservation in zip(world.orders, world.reservations, strict=True):
        status = order.status if order else None
        assert status is not Status.PENDING
        assert order is None or not order.release_due
        assert (reservation == "reserved") == (status is Status.CONFIRMED)
    happy = {a.about for a in world.actors if a.kind == "client" and a.response == "confirmed"}
    assert len(happy) <= 1, "two clients with one key were told of two orders"
    assert all(world.ever_confirmed[i] for i in happy)


def explore(*actors: Actor, stock: int, faults: int, most: int = 1_500_000) -> int:
    start = World((None, None), ("none", "none"), stock, stock, (False, False), actors, (), faults)
    return explorer.explore(start, steps, always, at_the_end, most)


FIRST, SECOND = Actor("client", "lookup", own=0), Actor("client", "lookup", own=1)
CANCELLATION, RECOVERY = Actor("delete", "read", about=0), Actor("recovery", "idle")


@pytest.mark.parametrize("stock", [0, 1, 2])
def test_two_clients_with_one_key_recovery_and_one_fault_place_one_order(stock: int) -> None:
    assert explore(FIRST, SECOND, RECOVERY, stock=stock, faults=1) > 1000


def test_two_clients_with_one_key_and_a_cancellation_place_one_order() -> None:
    assert explore(FIRST, SECOND, CANCELLATION, RECOVERY, stock=2, faults=0) > 1000


def forgetful(order: Order, move: Move, made: OutboxEntry | None) -> Order:
    """A machine that frees the key of a cancelled order too."""
    after = _moved(order, move, made)
    return msgspec.structs.replace(after, key=None) if after.status is Status.CANCELLED else after


_moved: Callable[..., Order] = domain.apply_move


def test_the_checker_detects_a_key_that_is_freed_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(domain, "apply_move", forgetful)
    with pytest.raises(AssertionError):
        explore(FIRST, SECOND, CANCELLATION, RECOVERY, stock=2, faults=0)
