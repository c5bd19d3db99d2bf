"""A sequential model of inventory in plain Python, against which the service is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID

from market.inventory.domain import (
    MAX_STOCK,
    Delivery,
    DeliveryResult,
    Movement,
    MovementMismatch,
    Outcome,
    Reservation,
    ReservationCancelled,
    ReservationMismatch,
    Shortage,
    StockInForce,
    StockOutOfRange,
    StockWrite,
)


@dataclass(frozen=True)
class Reserve:
    reservation: Reservation


@dataclass(frozen=True)
class Cancel:
    reservation_id: UUID


@dataclass(frozen=True)
class SetStock:
    write: StockWrite


@dataclass(frozen=True)
class AddDelivery:
    delivery: Delivery


@dataclass(frozen=True)
class AddStock:
    movement: Movement


Step = Reserve | Cancel | SetStock | AddDelivery | AddStock


@dataclass
class Model:
    """The state. `apply` changes it and returns the result of a step, or the class of its error."""

    stock: dict[UUID, int] = field(default_factory=dict)
    reservations: dict[UUID, tuple[str, Reservation | None]] = field(default_factory=dict)
    movements: dict[UUID, Movement] = field(default_factory=dict)
    # By product, the highest version that has set the stock.
    versions: dict[UUID, int] = field(default_factory=dict)
    # Those that were added, by product and id.
    deliveries: dict[tuple[UUID, UUID], Delivery] = field(default_factory=dict)

    def copy(self) -> Model:
        return Model(
            dict(self.stock),
            dict(self.reservations),
            dict(self.movements),
            dict(self.versions),
            dict(self.deliveries),
        )

    def apply(self, step: Step) -> object:
        match step:
            case Reserve(reservation):
                return self._reserve(reservation)
            case Cancel(reservation_id):
                status, reservation = self.reservations.get(reservation_id, ("", None))
                self.reservations[reservation_id] = ("cancelled", reservation)
                if status != "reserved":
                    return False
                for product_id, quantity in lines(reservation):
                    self.stock[product_id] += quantity
                return True
            case SetStock(write):
                return self._set_stock(write)
            case AddDelivery(delivery):
                return self._add_delivery(delivery)
            case AddStock(movement):
                return self._add_stock(movement)

    def _reserve(self, reservation: Reservation) -> object:
        if reservation.id in self.reservations:
            status, stored = self.reservations[reservation.id]
            if status == "cancelled":
                return ReservationCancelled
            return [] if stored == reservation else ReservationMismatch
        shortages = [
            Shortage(product_id, quantity, self.stock.get(product_id, 0))
            for product_id, quantity in lines(reservation)
            if self.stock.get(product_id, 0) < quantity
        ]
        if not shortages:
            self.reservations[reservation.id] = ("reserved", reservation)
            for product_id, quantity in lines(reservation):
                self.stock[product_id] -= quantity
        return shortages

    def _set_stock(self, write: StockWrite) -> StockInForce:
        product_id, version = write.product_id, write.product_version
        if version is None:
            self.stock[product_id] = write.quantity
        elif version > self.versions.get(product_id, 0):
            later = [d.quantity for d in self._deliveries_of(product_id) if d.product_version > version]
            self.stock[product_id] = write.quantity + sum(later)
            self.versions[product_id] = version
        return self._in_force(product_id)

    def _add_delivery(self, delivery: Delivery) -> DeliveryResult:
        product_id = delivery.product_id
        known = self.deliveries.get((product_id, delivery.id))
        self.stock.setdefault(product_id, 0)
        if known is not None:
            outcome = Outcome.REPEATED if known.quantity == delivery.quantity else Outcome.MISMATCH
        elif delivery.product_version < self.versions.get(product_id, 0):
            outcome = Outcome.SUPERSEDED
        elif self.stock[product_id] + delivery.quantity > MAX_STOCK:
            outcome = Outcome.REJECTED
        else:
            outcome = Outcome.DONE
            self.deliveries[product_id, delivery.id] = delivery
            self.stock[product_id] += delivery.quantity
        return DeliveryResult(outcome, self._in_force(product_id))

    def _deliveries_of(self, product_id: UUID) -> list[Delivery]:
        return [d for d in self.deliveries.values() if d.product_id == product_id]

    def _in_force(self, product_id: UUID) -> StockInForce:
        versions = [d.product_version for d in self._deliveries_of(product_id)]
        highest = max(versions, default=0)
        return StockInForce(min(self.stock[product_id], MAX_STOCK), max(self.versions.get(product_id, 0), highest))

    def _add_stock(self, movement: Movement) -> object:
        before = self.stock.get(movement.product_id, 0)
        if movement.id in self.movements:
            return before if self.movements[movement.id] == movement else MovementMismatch
        after = before + movement.delta
        if after < 0 or (movement.delta > 0 and after > MAX_STOCK):
            return StockOutOfRange
        self.movements[movement.id] = movement
        self.stock[movement.product_id] = after
        return after


def lines(reservation: Reservation | None) -> list[tuple[UUID, int]]:
    return [] if reservation is None else list(zip(reservation.product_ids, reservation.quantities, strict=True))


def decision_order(batch: Sequence[Reservation]) -> list[int]:
    """Return the positions of a batch in the order of decision.

    An equal repeat follows the first of its id at once; one with other lines is decided in a later round.
    """
    order: list[int] = []
    undecided = list(range(len(batch)))
    while undecided:
        firsts: dict[UUID, int] = {}
        for n in undecided:
            firsts.setdefault(batch[n].id, n)
        decided = [m for n in firsts.values() for m in undecided if batch[m] == batch[n]]
        order += decided
        undecided = [n for n in undecided if n not in decided]
    return order
