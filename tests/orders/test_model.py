"""A model checker explores the lifecycle of an order exhaustively.

It visits every interleaving of two clients with one key, a cancellation, recovery, a delivery to the stock, and faults
at each step: a crash before or after the step took effect, a lost response, a request that arrives late. The
transitions are the service's own (`market.orders.domain`); inventory is modelled after its contract.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import msgspec
import pytest

from market.contracts import events
from market.orders import domain
from market.orders.domain import Order, Reserved, Status, Step

from . import model_checker
from .model_checker import INTENT, RULES, UNKNOWN, Rules, make_entry


class Actor(NamedTuple):
    """A client or recovery.

    `at`: its next operation, or "decide" (it holds an order and follows the rules), "idle", "done", "crashed". "read"
        returns the latest state; "read any" may return an earlier one, as a server that is no longer the primary does.
    `held`: the order that it has read; at "transition" the order and the transition.
    `response`: what its client has got.
    """

    kind: str
    at: str
    held: Any = None
    response: str = ""


class State(NamedTuple):
    """The stores, the actors, the delayed requests, and how many faults and deliveries may still occur.

    `earlier`: the states of the order before, while an actor may read them.
    """

    order: Order | None
    reservation: str  # none, reserved, cancelled
    stock: int
    total_stock: int  # at the start, plus deliveries
    ever_confirmed: bool
    actors: tuple[Actor, ...]
    late: tuple[Any, ...]
    faults: int
    deliveries: int
    earlier: tuple[Order | None, ...] = ()


def apply(rules: Rules, state: State, operation: Any) -> tuple[State, Any]:
    """Return the state after the stores have executed the operation, and their response."""
    name = operation[0]
    if name == "insert":
        return (state._replace(order=INTENT) if state.order is None else state), True
    if name == "read":
        return state, state.order
    if name == "transition":
        transition = operation[1]
        if state.order is None or state.order.status is not transition.source:
            assert transition in rules.transitions
            return state, False
        order = rules.transition(state.order, transition)
        ever_confirmed = state.ever_confirmed or order.status is Status.CONFIRMED
        return state._replace(order=order, ever_confirmed=ever_confirmed), True
    if name == "reserve":
        reservation, stock, response = model_checker.reserve(state.reservation, state.stock)
        return state._replace(reservation=reservation, stock=stock), response
    if name == "release":
        # Only after an acknowledged write has ended the order.
        assert state.order is not None
        assert state.order.status in (Status.REJECTED, Status.CANCELLED)
        return state._replace(reservation="cancelled", stock=state.stock + (state.reservation == "reserved")), True
    assert name == "clear"
    assert state.order is not None
    return state._replace(order=msgspec.structs.replace(state.order, release_due=False)), True


def next_operation(rules: Rules, actor: Actor) -> Any:
    """Return the operation that the actor requests next."""
    if actor.at in ("insert", "read"):
        return (actor.at,)
    if actor.at == "transition":
        return ("transition", actor.held[1])
    if actor.at == "clear":
        return ("clear",)
    order: Order = actor.held
    step = domain.next_step(order, overdue=actor.kind == "recovery")
    if actor.kind == "delete" and (transition := domain.CANCELLATION_BY_STATUS.get(order.status)):
        return ("transition", transition)
    return {Step.RESERVE: ("reserve",), Step.REJECT: ("transition", rules.reject), Step.RELEASE: ("release",)}[step]


def after_response(rules: Rules, actor: Actor, operation: Any, response: Any) -> Actor:
    """Return the actor after the response, or after UNKNOWN if there is none. It continues as service.py does."""
    name = operation[0]
    if name == "insert":
        return Actor(actor.kind, "done", response="503") if response is UNKNOWN else decide(actor, INTENT)
    if name == "read":
        if response is UNKNOWN:
            return Actor(actor.kind, "done", response="503")
        if response is None or (actor.kind == "repeat" and actor.held is None and response.idempotency_key is None):
            return Actor(actor.kind, "done", response="none")
        return decide(actor, response)
    if name == "transition":
        order = actor.held[0] if actor.at == "transition" else actor.held
        if response is True:
            return decide(actor, rules.transition(order, operation[1]))
        return Actor(actor.kind, "read", "again")
    if name == "reserve":
        if response is UNKNOWN:
            return Actor(actor.kind, "done", response="503")
        return Actor(actor.kind, "transition", (actor.held, rules.transition_after_reservation(response)))
    if name == "release" and response is not UNKNOWN:
        return Actor(actor.kind, "clear", actor.held)
    return Actor(actor.kind, "done", response=response_for(actor.held))


def decide(actor: Actor, order: Order) -> Actor:
    """Return the actor with the order: done, or about to take the order's next step."""
    if actor.kind == "delete" and order.status in domain.CANCELLATION_BY_STATUS:
        return Actor(actor.kind, "decide", order)
    if domain.next_step(order, overdue=actor.kind == "recovery") in (Step.PUBLISH, Step.NOTHING):
        return Actor(actor.kind, "done", response=response_for(order))
    return Actor(actor.kind, "decide", order)


def response_for(order: Order) -> str:
    return {
        Status.CONFIRMED: "201",
        Status.REJECTED: "rejected",
        Status.CANCELLED: "cancelled",
        Status.PENDING: "503",
    }[order.status]


def next_states(rules: Rules, state: State) -> Iterator[State]:
    """Yield every state that one step leads to."""
    for new in _next_states(rules, state):
        if not any(actor.at == "read any" for actor in new.actors):
            yield new._replace(earlier=())
        elif new.order != state.order:
            yield new._replace(earlier=(*state.earlier, state.order))
        else:
            yield new


def _next_states(rules: Rules, state: State) -> Iterator[State]:
    for i, actor in enumerate(state.actors):

        def with_actor(new: State, actor: Actor, i: int = i) -> State:
            if actor.kind == "recovery" and actor.at == "done":
                actor = Actor("recovery", "idle")
            return new._replace(actors=(*new.actors[:i], actor, *new.actors[i + 1 :]))

        if actor.at in ("done", "crashed"):
            continue
        if actor.at == "idle":
            # Time is not modelled: recovery may find the order at any moment.
            order = state.order
            if order is not None and domain.next_step(order, overdue=True) in (Step.REJECT, Step.RELEASE):
                yield with_actor(state, Actor("recovery", "decide", order))
            continue
        if actor.at == "read any":
            for order in (*state.earlier, state.order):
                yield with_actor(state, Actor(actor.kind, "read") if order is None else decide(actor, order))
            continue
        operation = next_operation(rules, actor)
        after, response = apply(rules, state, operation)
        yield with_actor(after, after_response(rules, actor, operation, response))
        if state.faults:
            faults = state.faults - 1
            crashed = Actor("recovery", "idle") if actor.kind == "recovery" else Actor(actor.kind, "crashed")
            without_response = after_response(rules, actor, operation, UNKNOWN)
            yield with_actor(state._replace(faults=faults), crashed)
            yield with_actor(after._replace(faults=faults), crashed)
            yield with_actor(after._replace(faults=faults), without_response)
            if operation[0] != "read":
                delayed = state._replace(late=(*state.late, operation), faults=faults)
                yield with_actor(delayed, crashed)
                yield with_actor(delayed, without_response)
    for i, operation in enumerate(state.late):
        lost = state._replace(late=state.late[:i] + state.late[i + 1 :])
        yield lost
        yield apply(rules, lost, operation)[0]
    if state.deliveries:
        yield state._replace(stock=state.stock + 1, total_stock=state.total_stock + 1, deliveries=state.deliveries - 1)


def check_invariants(state: State) -> None:
    """Check what must hold in every state."""
    reserved = state.reservation == "reserved"
    assert state.stock >= 0
    assert state.stock + reserved == state.total_stock
    if state.order is None:
        return
    if state.order.status is Status.CONFIRMED:
        assert reserved, "a confirmed order without a reservation"
    if state.order.status in (Status.REJECTED, Status.CANCELLED) and reserved:
        late_reservation = any(operation == ("reserve",) for operation in state.late)
        assert state.order.release_due or late_reservation, "a reservation that is never released"
    assert (state.order.idempotency_key is None) == (state.order.status is Status.REJECTED)
    types = [e.event_type for e in state.order.outbox]
    assert types == ([events.CREATED] if state.ever_confirmed else []) + (
        [events.CANCELLED] if state.ever_confirmed and state.order.status is Status.CANCELLED else []
    )


def check_final(state: State) -> None:
    """Check what must hold once nothing is left to do."""
    status = state.order.status if state.order else None
    assert status is not Status.PENDING
    assert state.order is None or not state.order.release_due
    assert (state.reservation == "reserved") == (status is Status.CONFIRMED)
    for actor in state.actors:
        if actor.kind in ("create", "repeat"):
            if actor.response == "201":
                assert state.ever_confirmed
            if actor.response == "rejected":
                assert status is Status.REJECTED
            if actor.response == "cancelled":
                assert status is Status.CANCELLED
        if actor.kind == "delete" and actor.response in ("rejected", "cancelled"):
            assert status in (Status.REJECTED, Status.CANCELLED)


def explore(
    *actors: Actor, stock: int, faults: int, deliveries: int = 0, max_states: int = 400_000, rules: Rules = RULES
) -> int:
    start = State(None, "none", stock, stock, False, actors, (), faults, deliveries)
    return model_checker.explore(start, partial(next_states, rules), check_invariants, check_final, max_states)


CREATE = Actor("create", "insert")
REPEAT = Actor("repeat", "read")
DELETE = Actor("delete", "read any")
RECOVERY = Actor("recovery", "idle")


@pytest.mark.parametrize(("stock", "deliveries"), [(1, 0), (0, 1), (0, 0)])
def test_two_clients_a_cancellation_recovery_and_one_fault_violate_no_invariant(stock: int, deliveries: int) -> None:
    assert explore(CREATE, REPEAT, DELETE, RECOVERY, stock=stock, faults=1, deliveries=deliveries) > 1000


@pytest.mark.parametrize("stock", [0, 1])
def test_a_create_and_a_cancellation_with_two_faults_violate_no_invariant(stock: int) -> None:
    assert explore(CREATE, DELETE, RECOVERY, stock=stock, faults=2) > 1000


def test_two_recoveries_and_a_fault_violate_no_invariant() -> None:
    assert explore(CREATE, DELETE, RECOVERY, RECOVERY, stock=1, faults=1) > 1000


def test_two_cancellations_and_two_recoveries_violate_no_invariant() -> None:
    assert explore(CREATE, DELETE, DELETE, RECOVERY, RECOVERY, stock=1, faults=0) > 1000


def test_the_checker_detects_a_confirmation_without_a_reservation() -> None:
    rules = Rules(transition_after_reservation=lambda _: domain.CONFIRM)
    with pytest.raises(AssertionError, match="without a reservation"):
        explore(CREATE, RECOVERY, stock=0, faults=0, max_states=10_000, rules=rules)


def test_the_checker_detects_a_rejection_without_a_release() -> None:
    careless = msgspec.structs.replace(domain.REJECT, releases=False)
    rules = Rules(
        transitions=(*domain.TRANSITIONS, careless),
        reject=careless,
        transition_after_reservation=lambda result: domain.CONFIRM if isinstance(result, Reserved) else careless,
    )
    with pytest.raises(AssertionError, match="never released"):
        explore(CREATE, RECOVERY, stock=1, faults=1, max_states=10_000, rules=rules)


# The relay.


class RelayState(NamedTuple):
    """Two relays, each of which may be slower than its lease, a cancellation, and the topic without its duplicates.

    `relays`: of each, its position (idle, publish, remove) and the order that it has leased.
    """

    order: Order
    topic: tuple[str, ...]
    duplicates: int
    relays: tuple[tuple[str, Order | None], ...]
    cancelled: bool
    crashes: int


def next_relay_states(state: RelayState) -> Iterator[RelayState]:
    """Yield every state that one step leads to."""
    if not state.cancelled:
        yield state._replace(order=RULES.transition(state.order, domain.CANCEL_CONFIRMED), cancelled=True)
    for i, (at, leased) in enumerate(state.relays):

        def with_relay(new: RelayState, at: str, leased: Order | None, i: int = i) -> RelayState:
            return new._replace(relays=(*new.relays[:i], (at, leased), *new.relays[i + 1 :]))

        if at == "idle":
            if domain.next_step(state.order) is Step.PUBLISH or state.order.outbox:
                yield with_relay(state, "publish", state.order)
            continue
        assert leased is not None
        first = leased.outbox[0]
        if at == "publish":
            duplicate = first.event_type in state.topic
            topic = state.topic if duplicate else (*state.topic, first.event_type)
            duplicates = min(3, state.duplicates + duplicate)
            yield with_relay(state._replace(topic=topic, duplicates=duplicates), "remove", leased)
        else:
            # Remove exactly that entry, whatever else is in the outbox by now.
            outbox = tuple(e for e in state.order.outbox if e.id != first.id)
            yield with_relay(state._replace(order=msgspec.structs.replace(state.order, outbox=outbox)), "idle", None)
        if state.crashes:
            yield with_relay(state._replace(crashes=state.crashes - 1), "idle", None)


def check_relay_invariants(state: RelayState) -> None:
    assert state.topic in ((), (events.CREATED,), (events.CREATED, events.CANCELLED))
    published_or_waiting = set(state.topic) | {e.event_type for e in state.order.outbox}
    expected = {events.CREATED, events.CANCELLED} if state.cancelled else {events.CREATED}
    assert published_or_waiting == expected, "an event is neither published nor in the outbox"


def check_final_relay_state(state: RelayState) -> None:
    assert state.topic == (events.CREATED, events.CANCELLED)
    assert state.order.outbox == ()


def test_two_relays_lose_no_event_and_never_publish_the_cancellation_first() -> None:
    confirmed = domain.apply_transition(INTENT, domain.CONFIRM, make_entry(INTENT, events.CREATED))
    start = RelayState(confirmed, (), 0, (("idle", None), ("idle", None)), False, 2)
    check_relay_invariants(start)
    states = model_checker.explore(
        start, next_relay_states, check_relay_invariants, check_final_relay_state, max_states=100_000
    )
    assert states > 100
