"""A model checker explores clients with one idempotency key, of which each would store an order of its own.

The clients belong to one user or to two. Some of them meet an instance of the earlier version, whose keys belong to all
users together, and some meet one that requires sign-in, whose keys belong to the subject. The checker visits every
interleaving with recovery, a cancellation and a fault at each step: a crash before or after the step took effect, a
lost response, a request that arrives late. The transitions are the service's own (`market.orders.domain`); the unique
indexes and inventory are modelled after their contracts (model_of_keys.py).

The clients of the model look the key up before they insert their order. The service inserts most orders first, which is
the same as a lookup before all other steps: it finds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import msgspec
import pytest

from market.orders import domain
from market.orders.domain import Order, OutboxEntry, Status, Step, Transition

from . import model_checker
from .model_checker import RULES, UNKNOWN, Rules
from .model_of_keys import INTENTS, KEY_TAKEN, SCOPED, SHARED, SUBJECTS, USERS, Actor, State, apply, owner, put


def next_operation(rules: Rules, actor: Actor) -> Any:
    """Return the operation that the actor requests next."""
    if actor.at in ("lookup", "insert") and actor.earlier:
        return (f"{actor.at}-earlier", actor.own)
    if actor.at == "lookup":
        return ("lookup", actor.own, actor.signed_in)
    if actor.at == "insert":
        return ("insert", actor.own, actor.left_out, actor.signed_in)
    if actor.at == "inspect":
        return ("inspect", actor.own, actor.field, actor.signed_in)
    if actor.at in ("read", "found", "clear"):
        return ({"found": "read"}.get(actor.at, actor.at), actor.about)
    if actor.at == "transition":
        return ("transition", actor.about, actor.held[1])
    step = domain.next_step(actor.held, overdue=actor.kind == "recovery")
    if actor.kind == "delete" and (transition := domain.CANCELLATION_BY_STATUS.get(actor.held.status)):
        return ("transition", actor.about, transition)
    if step is Step.REJECT:
        return ("transition", actor.about, rules.reject)
    return ({Step.RESERVE: "reserve", Step.RELEASE: "release"}[step], actor.about)


def done(actor: Actor, response: str) -> Actor:
    return actor._replace(at="done", held=None, response=response)


def after_response(rules: Rules, actor: Actor, operation: Any, response: Any) -> Actor:
    """Return the actor after the response, or after UNKNOWN if there is none. It continues as service.py does."""
    name = operation[0].removesuffix("-earlier")
    if response is UNKNOWN and name in ("lookup", "inspect", "read", "insert", "reserve"):
        return done(actor, "503")
    if name == "lookup":
        if response is not None and USERS[response] != USERS[actor.own]:
            return done(actor, "422")
        # Each attempt begins with all fields.
        retrying = actor._replace(left_out=(), field="")
        return retrying._replace(at="insert") if response is None else retrying._replace(at="found", about=response)
    if name == "inspect":
        if response:
            return actor._replace(at="insert", left_out=(*actor.left_out, actor.field), field="")
        return actor._replace(at="lookup", field="")
    if name == "insert":
        # Without sign-in, another order of the user with the key is always the one that the lookup finds.
        if (response == SHARED and not actor.earlier) or (response == SCOPED and actor.signed_in):
            return actor._replace(at="inspect", field=response)
        if response in (KEY_TAKEN, SHARED, SCOPED):
            return actor._replace(at="lookup")
        return decide(actor._replace(about=actor.own), INTENTS[actor.own])
    if name == "read":
        if actor.at == "found" and (response is None or response.idempotency_key is None):
            # It was rejected meanwhile, and the key is free again.
            return actor._replace(at="insert", held=None)
        return done(actor, "503" if actor.kind == "client" else "404") if response is None else decide(actor, response)
    if name == "transition":
        order = actor.held[0] if actor.at == "transition" else actor.held
        if response is True:
            return decide(actor, rules.transition(order, operation[2]))
        return actor._replace(at="read", held=None)
    if name == "reserve":
        return actor._replace(at="transition", held=(actor.held, rules.transition_after_reservation(response)))
    if name == "release":
        return done(actor, actor.held.status.value) if response is UNKNOWN else actor._replace(at="clear")
    return done(actor, actor.held.status.value)


def decide(actor: Actor, order: Order) -> Actor:
    """Return the actor with the order: done, or about to take the order's next step."""
    deciding = actor._replace(at="decide", held=order)
    if actor.kind == "delete" and order.status in domain.CANCELLATION_BY_STATUS:
        return deciding
    if domain.next_step(order, overdue=actor.kind == "recovery") in (Step.PUBLISH, Step.NOTHING):
        return done(actor, order.status.value)
    return deciding


def next_states(rules: Rules, state: State) -> Iterator[State]:
    """Yield every state that one step leads to."""
    for n, actor in enumerate(state.actors):

        def with_actor(new: State, actor: Actor, n: int = n) -> State:
            if actor.kind == "recovery" and actor.at == "done":
                actor = Actor("recovery", "idle")
            return new._replace(actors=put(new.actors, n, actor))

        if actor.at in ("done", "crashed"):
            continue
        if actor.at == "idle":
            # Time is not modelled: recovery may find the order at any moment.
            for i, order in enumerate(state.orders):
                if order is not None and domain.next_step(order, overdue=True) in (Step.REJECT, Step.RELEASE):
                    yield with_actor(state, Actor("recovery", "decide", i, 0, order))
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
            if operation[0] not in ("read", "lookup", "lookup-earlier", "inspect"):
                delayed = state._replace(late=(*state.late, operation), faults=faults)
                yield with_actor(delayed, crashed)
                yield with_actor(delayed, without_response)
    for n, operation in enumerate(state.late):
        yield apply(rules, state._replace(late=state.late[:n] + state.late[n + 1 :]), operation)[0]


def check_invariants(state: State) -> None:
    """Check what must hold in every state."""
    assert state.stock >= 0
    assert state.stock + state.reservations.count("reserved") == state.total_stock
    unrejected = [i for i, o in enumerate(state.orders) if o is not None and o.status is not Status.REJECTED]
    owners = [owner(state, i) for i in unrejected]
    assert len(owners) == len(set(owners)), "two orders of one user with one key"
    for i in unrejected:
        if not state.owned[i]:
            assert [USERS[j] for j in unrejected].count(USERS[i]) == 1, (
                "two orders for one request of an unknown caller"
            )
    for i, order in enumerate(state.orders):
        if order is None:
            continue
        reserved = state.reservations[i] == "reserved"
        assert (order.idempotency_key is None) == (order.status is Status.REJECTED)
        if order.status is Status.CONFIRMED:
            assert reserved, "a confirmed order without a reservation"
        if order.status in (Status.REJECTED, Status.CANCELLED) and reserved:
            assert order.release_due or ("reserve", i) in state.late, "a reservation that is never released"


def check_final(state: State) -> None:
    """Check what must hold once nothing is left to do."""
    for order, reservation in zip(state.orders, state.reservations, strict=True):
        status = order.status if order else None
        assert status is not Status.PENDING
        assert order is None or not order.release_due
        assert (reservation == "reserved") == (status is Status.CONFIRMED)
    clients = [a for a in state.actors if a.kind == "client"]
    confirmed = {a.about for a in clients if a.response == "confirmed"}
    owners = {owner(state, i) for i in confirmed}
    assert len(confirmed) == len(owners), "clients of one user with one key got two orders"
    assert all(state.ever_confirmed[i] for i in confirmed)
    answered = [a for a in clients if a.response != "503"]
    assert all(USERS[a.about] == USERS[a.own] for a in answered), "the order of another user"
    foreign = [a for a in answered if a.signed_in and state.owned[a.about] and SUBJECTS[a.about] != SUBJECTS[a.own]]
    assert not foreign, "the order of another subject"
    assert all(a.earlier for a in clients if a.response == "422"), "one user's key blocks another's"


def explore(*actors: Actor, stock: int, faults: int, rules: Rules = RULES) -> int:
    nothing, none = (False,) * len(USERS), (None,) * len(USERS)
    start = State(none, nothing, nothing, nothing, ("none",) * len(USERS), stock, stock, nothing, actors, (), faults)
    return model_checker.explore(start, partial(next_states, rules), check_invariants, check_final, 1_500_000)


FIRST, SECOND = Actor("client", "lookup", own=0), Actor("client", "lookup", about=1, own=1)
# Clients of another user, and the same three served by the earlier version.
OTHER, OTHERS_SECOND = Actor("client", "lookup", about=2, own=2), Actor("client", "lookup", about=3, own=3)
EARLIER_FIRST, EARLIER_SECOND, OTHERS_EARLIER = (c._replace(earlier=True) for c in (FIRST, SECOND, OTHERS_SECOND))
# Signed-in clients: ada again, and a merchant who orders for her.
ADA, ADAS_SECOND = FIRST._replace(signed_in=True), SECOND._replace(signed_in=True)
MERCHANT = Actor("client", "lookup", about=4, own=4, signed_in=True)
CANCELLATION, RECOVERY = Actor("delete", "read", about=0), Actor("recovery", "idle")


@pytest.mark.parametrize("stock", [0, 1, 2])
def test_two_clients_with_one_key_recovery_and_one_fault_place_one_order(stock: int) -> None:
    assert explore(FIRST, SECOND, RECOVERY, stock=stock, faults=1) > 1000


def test_two_clients_with_one_key_and_a_cancellation_place_one_order() -> None:
    assert explore(FIRST, SECOND, CANCELLATION, RECOVERY, stock=2, faults=0) > 1000


@pytest.mark.parametrize("stock", [0, 1, 2])
@pytest.mark.parametrize("second", [SECOND, EARLIER_SECOND])
def test_two_versions_place_one_order_of_one_user_with_one_key(stock: int, second: Actor) -> None:
    assert explore(EARLIER_FIRST, second, RECOVERY, stock=stock, faults=1) > 1000
    assert explore(FIRST, EARLIER_SECOND, RECOVERY, stock=stock, faults=1) > 1000


@pytest.mark.parametrize("first", [FIRST, EARLIER_FIRST])
@pytest.mark.parametrize("other", [OTHERS_SECOND, OTHERS_EARLIER])
def test_equal_keys_of_two_users_place_an_order_each(first: Actor, other: Actor) -> None:
    assert explore(first, OTHER, other, RECOVERY, stock=2, faults=0) > 1000
    assert explore(first, OTHER, RECOVERY, stock=2, faults=1) > 1000


@pytest.mark.parametrize("stock", [0, 1, 2])
@pytest.mark.parametrize("second", [SECOND, EARLIER_SECOND, ADAS_SECOND])
def test_a_user_who_signs_in_gets_one_order_from_instances_with_and_without_sign_in(stock: int, second: Actor) -> None:
    assert explore(ADA, second, RECOVERY, stock=stock, faults=1) > 1000


@pytest.mark.parametrize("stock", [0, 1, 2])
@pytest.mark.parametrize("other", [FIRST, EARLIER_FIRST])
def test_a_merchants_request_is_one_order_on_instances_with_and_without_sign_in(stock: int, other: Actor) -> None:
    assert explore(MERCHANT, other, RECOVERY, stock=stock, faults=1) > 1000


@pytest.mark.parametrize("third", [SECOND, EARLIER_SECOND, OTHERS_SECOND])
def test_a_merchant_and_the_user_have_keys_of_their_own(third: Actor) -> None:
    assert explore(ADA, MERCHANT, RECOVERY, stock=2, faults=1) > 1000
    assert explore(ADA, MERCHANT, third, RECOVERY, stock=2, faults=0) > 1000


def test_the_checker_detects_that_another_subjects_key_may_still_become_free() -> None:
    """An instance without sign-in then places an order that the signed-in user has placed already."""
    rules = Rules(key_holding_statuses=(Status.PENDING, Status.CONFIRMED, Status.CANCELLED))
    with pytest.raises(AssertionError, match="two orders"):
        explore(ADA, MERCHANT, SECOND, RECOVERY, stock=2, faults=0, rules=rules)


def test_the_checker_detects_that_another_users_key_may_still_become_free() -> None:
    """The earlier version then places an order that this version has placed already."""
    rules = Rules(key_holding_statuses=(Status.PENDING, Status.CONFIRMED, Status.CANCELLED))
    with pytest.raises(AssertionError, match="two orders of one user"):
        explore(FIRST, OTHER, OTHERS_EARLIER, RECOVERY, stock=2, faults=0, rules=rules)


def apply_transition_freeing_the_key(order: Order, transition: Transition, entry: OutboxEntry | None) -> Order:
    """Free the key of a cancelled order too, which is wrong."""
    after = domain.apply_transition(order, transition, entry)
    return msgspec.structs.replace(after, idempotency_key=None) if after.status is Status.CANCELLED else after


def test_the_checker_detects_a_key_that_is_freed_too_early() -> None:
    rules = Rules(apply_transition=apply_transition_freeing_the_key)
    with pytest.raises(AssertionError):
        explore(FIRST, SECOND, CANCELLATION, RECOVERY, stock=2, faults=0, rules=rules)
