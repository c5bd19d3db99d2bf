"""Inventory one call at a time, in plain Python: what the service is held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from market.inventory.domain import (
    MAX_STOCK,
    Movement,
    OtherLines,
    OtherMovement,
    Reservation,
    ReservationCancelled,
    Shortage,
    StockOutOfRange,
)


@dataclass(frozen=True)
class Reserve:
    wanted: Reservation


@dataclass(frozen=True)
class Cancel:
    id: UUID


@dataclass(frozen=True)
class Set:
    product: UUID
    quantity: int


@dataclass(frozen=True)
class Add:
    movement: Movement


Step = Reserve | Cancel | Set | Add


@dataclass
class Model:
    """The state, and what each step answers (an error by its type)."""

    stock: dict[UUID, int] = field(default_factory=dict)
    reservations: dict[UUID, tuple[str, Reservation | None]] = field(default_factory=dict)
    movements: dict[UUID, Movement] = field(default_factory=dict)

    def copy(self) -> Model:
        return Model(dict(self.stock), dict(self.reservations), dict(self.movements))

    def take(self, step: Step) -> object:
        match step:
            case Reserve(wanted):
                return self._reserve(wanted)
            case Cancel(id):
                status, held = self.reservations.get(id, ("", None))
                self.reservations[id] = ("cancelled", held)
                if status != "reserved":
                    return False
                for product, quantity in lines(held):
                    self.stock[product] += quantity
                return True
            case Set(product, quantity):
                self.stock[product] = quantity
                return quantity
            case Add(movement):
                return self._add(movement)

    def _reserve(self, wanted: Reservation) -> object:
        if wanted.id in self.reservations:
            status, held = self.reservations[wanted.id]
            if status == "cancelled":
                return ReservationCancelled
            return [] if held == wanted else OtherLines
        short = [Shortage(p, q, self.stock.get(p, 0)) for p, q in lines(wanted) if self.stock.get(p, 0) < q]
        if not short:
            self.reservations[wanted.id] = ("reserved", wanted)
            for product, quantity in lines(wanted):
                self.stock[product] -= quantity
        return short

    def _add(self, movement: Movement) -> object:
        now = self.stock.get(movement.product_id, 0)
        if movement.id in self.movements:
            return now if self.movements[movement.id] == movement else OtherMovement
        after = now + movement.delta
        if after < 0 or (movement.delta > 0 and after > MAX_STOCK):
            return StockOutOfRange
        self.movements[movement.id] = movement
        self.stock[movement.product_id] = after
        return after


def lines(reservation: Reservation | None) -> list[tuple[UUID, int]]:
    return [] if reservation is None else list(zip(reservation.product_ids, reservation.quantities, strict=True))


def in_turns(wanted: Sequence[Reservation]) -> list[int]:
    """The order in which a batch is decided: an equal repeat right after the first of its id, one with other lines in a later turn."""
    order: list[int] = []
    waiting = list(range(len(wanted)))
    while waiting:
        firsts: dict[UUID, int] = {}
        for n in waiting:
            firsts.setdefault(wanted[n].id, n)
        turn = [m for n in firsts.values() for m in waiting if wanted[m] == wanted[n]]
        order += turn
        waiting = [n for n in waiting if n not in turn]
    return order
