"""The order's life, explored exhaustively: every interleaving of two clients with one key, a cancellation, the recovery
loop, a restock, and faults at each step (a crash before or after the step took effect, a lost response, a step that
arrives late). The moves are the service's own (`market.orders.domain`); inventory is modelled after its contract.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest

from market.contracts import events
from market.orders import domain
from market.orders.domain import Move, Order, OrderLine, OutboxEntry, Status, Step

from . import explorer

ID = UUID(int=1)
AT = datetime(2026, 1, 1, tzinfo=UTC)
FRESH = Order(ID, "ada", None, (OrderLine("p", "Lamp", 1, Decimal(1)),), Decimal(1), "GBP", AT, key="k", digest=b"d")
UNKNOWN = object()


class Actor(NamedTuple):
    """A program, where it stands, and what it holds."""

    kind: str
    at: str
    held: Any = None
    response: str = ""


class World(NamedTuple):
    """The stores, the actors, what is still on its way, and how many faults may come yet."""

    order: Order | None
    reservation: str  # none, reserved, cancelled
    stock: int
    owned: int  # stock at start + restocked
    ever_confirmed: bool
    actors: tuple[Actor, ...]
    late: tuple[Any, ...]
    faults: int
    restocks: int


def entry(type: str) -> OutboxEntry:
    return OutboxEntry(events.event_id(ID, type), type, AT)


def apply(world: World, op: Any) -> tuple[World, Any]:
    """The store's part of an operation: the world after it, and what it responses."""
    name = op[0]
    if name == "insert":
        if world.order is None:
            return world._replace(order=FRESH), True
        return world, True
    if name == "read":
        return world, world.order
    if name == "move":
        move: Move = op[1]
        assert move in domain.MOVES
        if world.order is None or world.order.status is not move.source:
            return world, False
        after = domain.apply_move(world.order, move, entry(move.event) if move.event else None)
        return world._replace(
            order=after, ever_confirmed=world.ever_confirmed or after.status is Status.CONFIRMED
        ), True
    if name == "reserve":
        reservation, stock, response = explorer.reserve(world.reservation, world.stock)
        return world._replace(reservation=reservation, stock=stock), response
    if name == "release":
        # Called only for what an acknowledged write has ended.
        assert world.order is not None
        assert world.order.status in (Status.REJECTED, Status.CANCELLED)
        return world._replace(reservation="cancelled", stock=world.stock + (world.reservation == "reserved")), True
    assert name == "unset"
    assert world.order is not None
    return world._replace(order=msgspec.structs.replace(world.order, release_due=False)), True


def next_op(actor: Actor) -> Any:
    """What the actor asks of a store next."""
    if actor.at in ("insert", "read"):
        return (actor.at,)
    if actor.at == "move":
        return ("move", actor.held[1])
    if actor.at == "unset":
        return ("unset",)
    order: Order = actor.held
    step = domain.next_step(order, overdue=actor.kind == "recovery")
    if actor.kind == "delete" and (move := domain.CANCELLING.get(order.status)):
        return ("move", move)
    return {Step.RESERVE: ("reserve",), Step.REJECT: ("move", domain.REJECT), Step.RELEASE: ("release",)}[step]


def received(actor: Actor, op: Any, result: Any) -> Actor:
    """The actor once it has the response, or knows that it will not have one. As service.py goes on."""
    name = op[0]
    if name == "insert":
        return Actor(actor.kind, "done", response="503") if result is UNKNOWN else held(actor, FRESH)
    if name == "read":
        if result is UNKNOWN:
            return Actor(actor.kind, "done", response="503")
        if result is None or (actor.kind == "repeat" and actor.held is None and result.key is None):
            return Actor(actor.kind, "done", response="none")
        return held(actor, result)
    if name == "move":
        order = actor.held[0] if actor.at == "move" else actor.held
        if result is True:
            return held(actor, domain.apply_move(order, op[1], entry(op[1].event) if op[1].event else None))
        return Actor(actor.kind, "read", "again")
    if name == "reserve":
        if result is UNKNOWN:
            return Actor(actor.kind, "done", response="503")
        return Actor(actor.kind, "move", (actor.held, domain.move_after_reservation(result)))
    if name == "release":
        return (
            Actor(actor.kind, "done", response=verdict(actor))
            if result is UNKNOWN
            else Actor(actor.kind, "unset", actor.held)
        )
    return Actor(actor.kind, "done", response=verdict(actor))


def held(actor: Actor, order: Order) -> Actor:
    now = Actor(actor.kind, "have", order)
    if actor.kind == "delete" and order.status in domain.CANCELLING:
        return now
    if domain.next_step(order, overdue=actor.kind == "recovery") in (Step.PUBLISH, Step.NOTHING):
        return Actor(actor.kind, "done", response=verdict(now))
    return now


def verdict(actor: Actor) -> str:
    return {Status.CONFIRMED: "201", Status.REJECTED: "refused", Status.CANCELLED: "cancelled", Status.PENDING: "503"}[
        actor.held.status
    ]


def steps(world: World) -> Iterator[World]:
    """Every world that one step leads to."""
    for i, actor in enumerate(world.actors):

        def with_actor(new: World, then: Actor, i: int = i) -> World:
            if then.kind == "recovery" and then.at == "done":
                then = Actor("recovery", "idle")
            return new._replace(actors=(*new.actors[:i], then, *new.actors[i + 1 :]))

        if actor.at in ("done", "dead"):
            continue
        if actor.at == "idle":
            # The loop takes up work wherever there is some; time is not modelled, so it may come at any moment.
            order = world.order
            if order is not None and domain.next_step(order, overdue=True) in (Step.REJECT, Step.RELEASE):
                yield with_actor(world, Actor("recovery", "have", order))
            continue
        op = next_op(actor)
        after, result = apply(world, op)
        yield with_actor(after, received(actor, op, result))
        if world.faults:
            dead = Actor("recovery", "idle") if actor.kind == "recovery" else Actor(actor.kind, "dead")
            fewer = {"faults": world.faults - 1}
            yield with_actor(world._replace(**fewer), dead)
            yield with_actor(after._replace(**fewer), dead)
            yield with_actor(after._replace(**fewer), received(actor, op, UNKNOWN))
            if op[0] != "read":
                waiting = world._replace(late=(*world.late, op), **fewer)
                yield with_actor(waiting, dead)
                yield with_actor(waiting, received(actor, op, UNKNOWN))
    for i, op in enumerate(world.late):
        rest = world._replace(late=world.late[:i] + world.late[i + 1 :])
        yield rest
        yield apply(rest, op)[0]
    if world.restocks:
        yield world._replace(stock=world.stock + 1, owned=world.owned + 1, restocks=world.restocks - 1)


def always(world: World) -> None:
    """What must hold at every moment."""
    held_goods = world.reservation == "reserved"
    assert world.stock >= 0
    assert world.stock + held_goods == world.owned
    if world.order is None:
        return
    if world.order.status is Status.CONFIRMED:
        assert held_goods, "a confirmed order without goods"
    if world.order.status in (Status.REJECTED, Status.CANCELLED) and held_goods:
        assert world.order.release_due or any(op == ("reserve",) for op in world.late), "goods that nobody gives back"
    assert (world.order.key is None) == (world.order.status is Status.REJECTED)
    types = [e.event_type for e in world.order.outbox]
    assert types == ([events.CREATED] if world.ever_confirmed else []) + (
        [events.CANCELLED] if world.ever_confirmed and world.order.status is Status.CANCELLED else []
    )


def at_the_end(world: World) -> None:
    """What must hold once nothing is left to do."""
    status = world.order.status if world.order else None
    assert status is not Status.PENDING
    assert world.order is None or not world.order.release_due
    assert (world.reservation == "reserved") == (status is Status.CONFIRMED)
    for actor in world.actors:
        if actor.kind in ("create", "repeat"):
            if actor.response == "201":
                assert world.ever_confirmed
            if actor.response == "refused":
                assert status is Status.REJECTED
            if actor.response == "cancelled":
                assert status is Status.CANCELLED
        if actor.kind == "delete" and actor.response in ("refused", "cancelled"):
            assert status in (Status.REJECTED, Status.CANCELLED)


def explore(start: World, most: int) -> int:
    return explorer.explore(start, steps, always, at_the_end, most)


def world(*actors: Actor, stock: int, faults: int, restocks: int = 0, order: Order | None = None) -> World:
    return World(order, "none", stock, stock, False, actors, (), faults, restocks)


CREATE, REPEAT, DELETE, RECOVERY = (
    Actor("create", "insert"),
    Actor("repeat", "read"),
    Actor("delete", "read"),
    Actor("recovery", "idle"),
)


@pytest.mark.parametrize(("stock", "restocks"), [(1, 0), (0, 1), (0, 0)])
def test_two_clients_a_cancellation_recovery_and_one_fault_violate_no_invariant(stock: int, restocks: int) -> None:
    assert explore(world(CREATE, REPEAT, DELETE, RECOVERY, stock=stock, faults=1, restocks=restocks), 400_000) > 1000


@pytest.mark.parametrize("stock", [0, 1])
def test_a_create_and_a_cancellation_with_two_faults_violate_no_invariant(stock: int) -> None:
    assert explore(world(CREATE, DELETE, RECOVERY, stock=stock, faults=2), 400_000) > 1000


def test_two_recoveries_and_a_fault_violate_no_invariant() -> None:
    assert explore(world(CREATE, DELETE, RECOVERY, RECOVERY, stock=1, faults=1), 400_000) > 1000


def test_two_cancellations_and_two_recoveries_violate_no_invariant() -> None:
    assert explore(world(CREATE, DELETE, DELETE, RECOVERY, RECOVERY, stock=1, faults=0), 400_000) > 1000


def test_the_checker_detects_a_confirmation_without_a_reservation(monkeypatch: pytest.MonkeyPatch) -> None:
    """The explorer is no yes-man: a machine that confirms what inventory refused is caught."""
    monkeypatch.setattr(domain, "move_after_reservation", lambda response: domain.CONFIRM)
    with pytest.raises(AssertionError, match="without goods"):
        explore(world(CREATE, RECOVERY, stock=0, faults=0), 10_000)


def test_the_checker_detects_a_rejection_without_a_release(monkeypatch: pytest.MonkeyPatch) -> None:
    careless = msgspec.structs.replace(domain.REJECT, releases=False)
    monkeypatch.setattr(domain, "REJECT", careless)
    monkeypatch.setattr(domain, "MOVES", (*domain.MOVES, careless))
    with pytest.raises(AssertionError, match="nobody gives back"):
        explore(world(CREATE, RECOVERY, stock=1, faults=1), 10_000)


# -- the relay


class Relaying(NamedTuple):
    """Two relays of which each may be slow beyond its claim, a cancellation, and the topic's first occurrences."""

    order: Order
    topic: tuple[str, ...]
    repeats: int
    relays: tuple[tuple[str, Order | None], ...]
    cancelled: bool
    crashes: int


def relaying(world: Relaying) -> Iterator[Relaying]:
    if not world.cancelled:
        yield world._replace(
            order=domain.apply_move(world.order, domain.CANCEL, entry(events.CANCELLED)), cancelled=True
        )
    for i, (at, claimed) in enumerate(world.relays):

        def then(new: Relaying, at: str, claimed: Order | None, i: int = i) -> Relaying:
            return new._replace(relays=(*new.relays[:i], (at, claimed), *new.relays[i + 1 :]))

        if at == "idle":
            if domain.next_step(world.order) is Step.PUBLISH or world.order.outbox:
                yield then(world, "publish", world.order)
            continue
        assert claimed is not None
        first = claimed.outbox[0]
        if at == "publish":
            known = first.event_type in world.topic
            topic = world.topic if known else (*world.topic, first.event_type)
            yield then(world._replace(topic=topic, repeats=min(3, world.repeats + known)), "clear", claimed)
        else:
            # Exactly that entry, wherever it stands now.
            left = tuple(e for e in world.order.outbox if e.id != first.id)
            yield then(world._replace(order=msgspec.structs.replace(world.order, outbox=left)), "idle", None)
        if world.crashes:
            yield then(world._replace(crashes=world.crashes - 1), "idle", None)


def test_two_relays_lose_no_event_and_never_publish_the_cancellation_first() -> None:
    confirmed = domain.apply_move(FRESH, domain.CONFIRM, entry(events.CREATED))
    start = Relaying(confirmed, (), 0, (("idle", None), ("idle", None)), False, 2)
    seen, waiting = {start}, [start]
    while waiting:
        world = waiting.pop()
        assert world.topic in ((), (events.CREATED,), (events.CREATED, events.CANCELLED))
        assert set(world.topic) | {e.event_type for e in world.order.outbox} == {events.CREATED} | (
            {events.CANCELLED} if world.cancelled else set()
        ), "an event is neither sent nor waiting"
        following = list(relaying(world))
        if not following:
            assert world.topic == (events.CREATED, events.CANCELLED)
            assert world.order.outbox == ()
        for after in following:
            if after not in seen:
                seen.add(after)
                waiting.append(after)
    assert len(seen) > 100
