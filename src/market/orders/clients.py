"""Calls out: prices from products (REST), goods from inventory (gRPC)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import grpc.aio
import msgspec
from msgspec import Struct

from market.contracts import inventory_pb2 as pb
from market.contracts import money
from market.contracts.inventory_pb2_grpc import InventoryStub
from market.kit.batching import Batcher
from market.kit.config import GrpcUpstream
from market.kit.errors import BadInput, Conflict, Unavailable
from market.kit.http.client import HttpClient, quote_ids
from market.kit.resilience import CircuitBreaker, RetryBudget, retry
from market.kit.rpc import client as rpc
from market.orders.domain import Product, Refused, Reservation, Reserved, Short, Shortage, Wanted

T = TypeVar("T")


class _ProductOut(Struct):
    id: str
    name: str
    price: str
    currency: str


class _Page(Struct):
    items: list[_ProductOut]


class Products:
    """Names and prices. Orders that ask at once share calls: 100 ids in each, four under way."""

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._decode = msgspec.json.Decoder(_Page).decode
        self._lookup: Batcher[str, Product | None] = Batcher(
            self._fetch, name="orders.prices", max_batch_size=100, max_concurrency=4, dedupe=True
        )

    async def priced(self, ids: Sequence[str]) -> dict[str, Product]:
        """The products that there are, by id. Raises Unavailable."""
        found = await self._lookup.map(ids)
        return {product.id: product for product in found if product is not None}

    async def _fetch(self, ids: list[str]) -> Sequence[Product | None]:
        # Prices must not depend on the cache of availability.
        answer = await self._http.request("GET", f"/api/product?availability=false&ids={quote_ids(ids)}")
        if answer.status != 200:
            raise Unavailable(f"products answered {answer.status}")
        try:
            page = self._decode(answer.body)
            products = {p.id: Product(p.id, p.name, money.parse_price(p.price), p.currency) for p in page.items}
        except (msgspec.DecodeError, ValueError) as e:
            raise Unavailable("products answered what is no list of products") from e
        return [products.get(id) for id in ids]

    @property
    def is_open(self) -> bool:
        return self._http.is_open


class Held(Struct, frozen=True):
    """A reservation as inventory lists it. `live`: it holds goods."""

    id: UUID
    live: bool
    items: tuple[tuple[str, int], ...]
    created_at: datetime


class Inventory:
    """Reservations under the order's id. Every call may be repeated."""

    def __init__(self, channel: grpc.aio.Channel, config: GrpcUpstream) -> None:
        self._stub: Any = InventoryStub(channel)
        self._seconds = config.timeout_seconds
        self._circuit = CircuitBreaker("inventory", slow_after_seconds=config.timeout_seconds / 2)
        self._budget = RetryBudget("inventory")
        self._reserve: Batcher[pb.ReserveRequest, Reservation] = Batcher(
            self._reserve_many, name="orders.reserve", max_batch_size=128, max_concurrency=2, cost=_lines, max_cost=4000
        )

    @property
    def is_open(self) -> bool:
        """Whether calls are refused here, because inventory did not answer lately."""
        return self._circuit.is_open

    async def _call(self, method: Callable[..., Awaitable[T]], request: Any) -> T:
        return await retry(lambda: self._circuit(lambda: rpc.call(method, request, self._seconds)), budget=self._budget)

    async def reserve(self, order_id: UUID, wanted: Sequence[Wanted]) -> Reservation:
        """What inventory says. Raises Unavailable when nobody knows whether it holds the goods."""
        items = [pb.Item(product_id=w.product_id, quantity=w.quantity) for w in wanted]
        return await self._reserve(pb.ReserveRequest(reservation_id=str(order_id), items=items))

    async def _reserve_many(self, requests: list[pb.ReserveRequest]) -> Sequence[Reservation | BaseException]:
        if len(requests) == 1:
            try:
                return [_reservation(await self._call(self._stub.Reserve, requests[0]))]
            except (Conflict, BadInput) as e:
                return [Refused(str(e))]
        answer = await self._call(self._stub.ReserveMany, pb.ReserveManyRequest(reservations=requests))
        if len(answer.results) != len(requests):
            raise Unavailable("inventory answered another number of results")
        return [_result(result) for result in answer.results]

    async def release(self, order_id: UUID) -> bool:
        """Inventory holds nothing for the order any more, and never will; whether it gave something back. Raises Unavailable."""
        answer = await self._call(self._stub.CancelReserve, pb.CancelReserveRequest(reservation_id=str(order_id)))
        return bool(answer.released)

    async def reservations(self, after: UUID | None, limit: int) -> list[Held]:
        """Reservations in order of id, from the first above `after`."""
        request = pb.ListReservationsRequest(after_id=str(after) if after else "", limit=limit)
        answer = await self._call(self._stub.ListReservations, request)
        return [_held(r) for r in answer.reservations]

    async def stock(self, product_ids: Sequence[str]) -> Mapping[str, int]:
        """What is free to sell of each product that has a stock row."""
        answer = await self._call(self._stub.GetStock, pb.GetStockRequest(product_ids=product_ids))
        return {item.product_id: item.quantity for item in answer.items}


def _lines(request: pb.ReserveRequest) -> int:
    return len(request.items)


def _reservation(answer: pb.ReserveResponse) -> Reservation:
    if answer.reserved:
        return Reserved()
    return Short(tuple(Shortage(s.product_id, s.wanted, s.left) for s in answer.shortages))


def _result(result: pb.ReserveManyResult) -> Reservation | BaseException:
    if result.code == 0:
        return _reservation(result.answer)
    problem = rpc.problem_from_status(result.code, result.message)
    return Refused(str(problem)) if isinstance(problem, Conflict | BadInput) else problem


def _held(r: pb.Reservation) -> Held:
    items = tuple(sorted((item.product_id, item.quantity) for item in r.items))
    return Held(UUID(r.reservation_id), r.status == pb.RESERVATION_STATUS_RESERVED, items, r.created_at.ToDatetime(UTC))
