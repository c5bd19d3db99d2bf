"""The model in test_model_of_keys.py: its clients and recovery, and what the stores do with the keys of orders."""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from market.orders.domain import Order, Status

from . import model_checker
from .model_checker import INTENT, Rules

# Of the orders that clients would store, and the subjects of these clients if they sign in: mia is a merchant. The
# requests for one user are equal, and those for different users are not.
USERS = ("ada", "ada", "bea", "bea", "ada")
SUBJECTS = ("ada", "ada", "bea", "bea", "mia")
INTENTS = tuple(msgspec.structs.replace(INTENT, id=UUID(int=n + 1), user=user) for n, user in enumerate(USERS))
KEY_TAKEN = object()
# The fields that several owners share (docs/decisions/0025).
SHARED, SCOPED = "shared", "scoped"


class Actor(NamedTuple):
    """A client or recovery.

    `at`: its next operation, or "decide" (it holds an order and follows the rules), "idle", "done", "crashed".
    `about`: the order that it works on. `own`: the order that it would store. `held`: the order that it has read; at
    "transition" the order and the transition. `response`: what its client has got. `earlier`: whether it is served by
    the earlier version. `signed_in`: whether it is served by an instance that requires sign-in. `left_out`: the fields
    without which it stores its order. `field`: at "inspect", the field that another order has.
    """

    kind: str
    at: str
    about: int = 0
    own: int = 0
    held: Any = None
    response: str = ""
    earlier: bool = False
    signed_in: bool = False
    left_out: tuple[str, ...] = ()
    field: str = ""


class State(NamedTuple):
    """The stores, the actors, the delayed requests, and how many faults may still occur.

    `shared`, `scoped`, `owned`: whether the order was stored with the key in the field of earlier versions, in that of
    the user, and in that of the subject.
    """

    orders: tuple[Order | None, ...]
    shared: tuple[bool, ...]
    scoped: tuple[bool, ...]
    owned: tuple[bool, ...]
    reservations: tuple[str, ...]
    stock: int
    total_stock: int
    ever_confirmed: tuple[bool, ...]
    actors: tuple[Actor, ...]
    late: tuple[Any, ...]
    faults: int


def put(items: tuple[Any, ...], at: int, item: Any) -> tuple[Any, ...]:
    """Return the tuple with the item replaced."""
    return (*items[:at], item, *items[at + 1 :])


def key_holder(state: State, fields: tuple[bool, ...], user: str | None) -> int | None:
    """Return which order, of any user if `user` is None, has the key in a field, or None."""
    for i, order in enumerate(state.orders):
        if order is not None and order.idempotency_key is not None and fields[i] and user in (None, USERS[i]):
            return i
    return None


def subject_holder(state: State, subject: str) -> int | None:
    """Return which order has the key in the field of the subject, or None."""
    for i, order in enumerate(state.orders):
        if order is not None and order.idempotency_key is not None and state.owned[i] and SUBJECTS[i] == subject:
            return i
    return None


def user_holder(state: State, user: str) -> int | None:
    """Return which order of the user has the key in one of the two shared fields, or None."""
    found = key_holder(state, state.scoped, user)
    return key_holder(state, state.shared, user) if found is None else found


def find_own(state: State, i: int) -> int | None:
    """Return the order that a signed-in client finds by its key, or None."""
    if (found := subject_holder(state, SUBJECTS[i])) is not None:
        return found
    for user in (SUBJECTS[i], USERS[i]):
        if (found := user_holder(state, user)) is not None and not state.owned[found]:
            return found
    return None


def is_another_owners(state: State, i: int, holder: int, *, signed_in: bool) -> bool:
    """Return whether the key of the holder has another owner than that of order `i`."""
    if not signed_in:
        return USERS[holder] != USERS[i]
    if state.owned[holder]:
        return SUBJECTS[holder] != SUBJECTS[i]
    return USERS[holder] not in (SUBJECTS[i], USERS[i])


def insert(state: State, i: int, *, shared: bool, scoped: bool, owned: bool = False) -> tuple[State, Any]:
    """Store an order's intent, unless one of the unique indexes forbids it. Return the field or KEY_TAKEN if so."""
    if state.orders[i] is not None:
        return state, True
    if owned and subject_holder(state, SUBJECTS[i]) is not None:
        return state, KEY_TAKEN
    if shared and key_holder(state, state.shared, None) is not None:
        return state, SHARED
    if scoped and key_holder(state, state.scoped, USERS[i]) is not None:
        return state, SCOPED
    return state._replace(
        orders=put(state.orders, i, INTENTS[i]),
        shared=put(state.shared, i, shared),
        scoped=put(state.scoped, i, scoped),
        owned=put(state.owned, i, owned),
    ), True


def apply(rules: Rules, state: State, operation: Any) -> tuple[State, Any]:
    """Return the state after the stores have executed the operation, and their response."""
    name, i = operation[0], operation[1]
    order = state.orders[i]
    if name == "lookup-earlier":
        return state, key_holder(state, state.shared, None)
    if name == "lookup":
        return state, find_own(state, i) if operation[2] else user_holder(state, USERS[i])
    if name == "inspect":
        field, signed_in = operation[2:]
        holder = key_holder(state, state.shared, None) if field == SHARED else key_holder(state, state.scoped, USERS[i])
        if holder is None or not is_another_owners(state, i, holder, signed_in=signed_in):
            return state, False
        found = state.orders[holder]
        return state, found is not None and found.status in rules.key_holding_statuses
    if name == "read":
        return state, order
    if name == "insert-earlier":
        return insert(state, i, shared=True, scoped=False)
    if name == "insert":
        left_out, signed_in = operation[2:]
        return insert(state, i, shared=SHARED not in left_out, scoped=SCOPED not in left_out, owned=signed_in)
    if name == "transition":
        transition = operation[2]
        if order is None or order.status is not transition.source:
            return state, False
        after = rules.transition(order, transition)
        ever_confirmed = put(state.ever_confirmed, i, state.ever_confirmed[i] or after.status is Status.CONFIRMED)
        return state._replace(orders=put(state.orders, i, after), ever_confirmed=ever_confirmed), True
    reservation = state.reservations[i]
    if name == "reserve":
        reservation, stock, response = model_checker.reserve(reservation, state.stock)
        return state._replace(reservations=put(state.reservations, i, reservation), stock=stock), response
    assert order is not None
    if name == "release":
        assert order.status in (Status.REJECTED, Status.CANCELLED), (
            "released before an acknowledged write has ended the order"
        )
        stock = state.stock + (reservation == "reserved")
        return state._replace(reservations=put(state.reservations, i, "cancelled"), stock=stock), True
    assert name == "clear"
    return state._replace(orders=put(state.orders, i, msgspec.structs.replace(order, release_due=False))), True


def owner(state: State, i: int) -> str:
    """Return whom the order's key belongs to."""
    return SUBJECTS[i] if state.owned[i] else USERS[i]
