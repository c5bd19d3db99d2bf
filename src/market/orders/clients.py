"""Outbound calls: prices from products (REST), reservations and stock from inventory (gRPC)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import grpc.aio
import msgspec
from msgspec import Struct

from market.contracts import inventory_pb2 as pb
from market.contracts import money
from market.contracts.inventory_pb2_grpc import InventoryStub
from market.kit.batching import Batcher, BatcherBySize
from market.kit.config import GrpcUpstream
from market.kit.errors import BadInput, Conflict, Unavailable
from market.kit.http.client import HttpClient, join_ids
from market.kit.process import logs
from market.kit.resilience import CircuitBreaker, RetryBudget, retry
from market.kit.rpc import client as rpc
from market.orders.domain import (
    MAX_LARGE_ORDERS_BATCH_LINES,
    MAX_SMALL_ORDERS_BATCH_LINES,
    SMALL_ORDER_LINES,
    InsufficientStock,
    OrderLine,
    Product,
    RequestedLine,
    ReservationRejected,
    ReservationResult,
    Reserved,
    Shortage,
)
from market.orders.metrics import UNREADABLE_PRODUCTS

log = logs.get_logger("orders")

T = TypeVar("T")

# The maximum number of ids in one request, by the REST contract of products.
_MAX_IDS = 100


class _ProductItem(Struct):
    id: str
    name: str
    price: str
    currency: str


class _ProductId(Struct):
    id: str


class _Page(Struct):
    items: list[msgspec.Raw]


class ProductsClient:
    """Fetches the names and prices of products, at most 100 products per request.

    Orders with up to 100 products share requests. A larger order has requests of its own, so that smaller orders do not
    wait for it. At most four shared requests are in flight, and at most four of larger orders.
    """

    def __init__(self, http: HttpClient) -> None:
        self._http = http
        self._decode = msgspec.json.Decoder(_Page).decode
        self._lookup: Batcher[str, Product | None] = Batcher(
            self._fetch, name="orders.products", max_batch_size=_MAX_IDS, max_concurrency=4, dedupe=True
        )
        self._large_lookups = asyncio.Semaphore(4)

    async def get_products(self, product_ids: Sequence[str]) -> dict[str, Product]:
        """Return the products by id; ids that do not exist are left out. Raises Unavailable."""
        if len(product_ids) <= _MAX_IDS:
            found = await self._lookup.map(product_ids)
        else:
            found = await self._fetch_pages(product_ids)
        return {product.id: product for product in found if product is not None}

    async def _fetch_pages(self, product_ids: Sequence[str]) -> list[Product | None]:
        async def fetch(start: int) -> Sequence[Product | BaseException | None]:
            async with self._large_lookups:
                return await self._fetch(product_ids[start : start + _MAX_IDS])

        found: list[Product | None] = []
        for page in await asyncio.gather(*map(fetch, range(0, len(product_ids), _MAX_IDS))):
            for product in page:
                if isinstance(product, BaseException):
                    raise product
                found.append(product)
        return found

    async def _fetch(self, product_ids: Sequence[str]) -> Sequence[Product | BaseException | None]:
        # Pricing does not need the availability, and products would have to look it up.
        response = await self._http.request("GET", f"/api/product?availability=false&ids={join_ids(product_ids)}")
        if response.status != 200:
            raise Unavailable(f"products responded with status {response.status}")
        try:
            page = self._decode(response.body)
            products = dict(map(_parse_product, page.items))
        except msgspec.DecodeError as e:
            raise Unavailable("products returned an invalid response") from e
        return [products.get(product_id) for product_id in product_ids]


def _parse_product(item: msgspec.Raw) -> tuple[str, Product | Unavailable]:
    """Return (product id, product).

    If the product is invalid, return (product id, error). An order for the product fails with this error.

    Raises msgspec.DecodeError if the item has no id.
    """
    try:
        p = msgspec.json.decode(item, type=_ProductItem)
        return p.id, Product(p.id, p.name, money.parse_price(p.price), p.currency)
    except (msgspec.DecodeError, ValueError):
        product_id = msgspec.json.decode(item, type=_ProductId).id
        UNREADABLE_PRODUCTS.inc()
        log.error("product unreadable", product_id=product_id)
        return product_id, Unavailable(f"products returned an invalid product {product_id}")


class Reservation(Struct, frozen=True):
    """A reservation as inventory lists it.

    active: True if it holds stock, False if it was cancelled
    items: (product id, quantity), sorted by product id
    """

    id: UUID
    active: bool
    items: tuple[tuple[str, int], ...]
    created_at: datetime


class InventoryClient:
    """Reserves and releases stock. A reservation has the same id as its order. Every call is idempotent."""

    def __init__(self, channel: grpc.aio.Channel, config: GrpcUpstream) -> None:
        self._stub: Any = InventoryStub(channel)
        self._timeout_seconds = config.timeout_seconds
        self._circuit = CircuitBreaker("inventory", ignore_deadlines_below_seconds=config.timeout_seconds / 2)
        self._budget = RetryBudget("inventory")
        self._reserve: BatcherBySize[pb.ReserveRequest, ReservationResult] = BatcherBySize(
            self._reserve_many,
            name="orders.reserve",
            max_batch_size=128,
            max_concurrency=2,
            cost=_cost,
            small_cost=SMALL_ORDER_LINES,
            max_cost=MAX_SMALL_ORDERS_BATCH_LINES,
            max_large_cost=MAX_LARGE_ORDERS_BATCH_LINES,
        )

    @property
    def circuit_is_open(self) -> bool:
        """Whether the circuit breaker would refuse a call made now, because the last calls failed."""
        return self._circuit.is_open

    async def check_identity(self) -> None:
        """Raise IdentityRefused if inventory refuses this service's token. If inventory is unavailable, just return."""
        await rpc.check_identity(self._stub.GetStock, pb.GetStockRequest(), self._timeout_seconds)

    async def _call(self, method: Callable[..., Awaitable[T]], request: Any) -> T:
        return await retry(
            lambda: self._circuit(lambda: rpc.call(method, request, self._timeout_seconds)), budget=self._budget
        )

    async def reserve(self, order_id: UUID, lines: Iterable[OrderLine | RequestedLine]) -> ReservationResult:
        """Reserve all lines or none. Raises Unavailable if it is unknown whether inventory holds the stock."""
        items = [pb.Item(product_id=line.product_id, quantity=line.quantity) for line in lines]
        return await self._reserve(pb.ReserveRequest(reservation_id=str(order_id), items=items))

    async def _reserve_many(self, requests: list[pb.ReserveRequest]) -> Sequence[ReservationResult | BaseException]:
        if len(requests) == 1:
            try:
                return [_reservation_result(await self._call(self._stub.Reserve, requests[0]))]
            except (Conflict, BadInput) as e:
                return [ReservationRejected(str(e))]
        response = await self._call(self._stub.ReserveMany, pb.ReserveManyRequest(reservations=requests))
        if len(response.results) != len(requests):
            raise Unavailable(f"inventory returned {len(response.results)} results for {len(requests)} reservations")
        return [_batch_result(result) for result in response.results]

    async def release(self, order_id: UUID) -> bool:
        """Release the order's stock, and return whether any stock was held. Raises Unavailable.

        From then on, inventory rejects reservations with this id.
        """
        response = await self._call(self._stub.CancelReserve, pb.CancelReserveRequest(reservation_id=str(order_id)))
        return bool(response.released)

    async def list_reservations(self, after: UUID | None, limit: int) -> list[Reservation]:
        """Return up to `limit` reservations by ascending id. Raises Unavailable.

        after: only reservations with a greater id. None: from the beginning
        """
        request = pb.ListReservationsRequest(after_id=str(after) if after else "", limit=limit)
        response = await self._call(self._stub.ListReservations, request)
        return [_reservation(r) for r in response.reservations]

    async def get_stock(self, product_ids: Sequence[str]) -> Mapping[str, int]:
        """Return the available units by product id; products without a stock row are left out. Raises Unavailable."""
        response = await self._call(self._stub.GetStock, pb.GetStockRequest(product_ids=product_ids))
        return {item.product_id: item.quantity for item in response.items}


def _cost(request: pb.ReserveRequest) -> int:
    return len(request.items)


def _reservation_result(response: pb.ReserveResponse) -> ReservationResult:
    if response.reserved:
        return Reserved()
    return InsufficientStock(tuple(Shortage(s.product_id, s.wanted, s.left) for s in response.shortages))


def _batch_result(result: pb.ReserveManyResult) -> ReservationResult | BaseException:
    if result.code == 0:
        # `answer` is the contract's name for the response.
        return _reservation_result(result.answer)
    problem = rpc.problem_from_status(result.code, result.message)
    return ReservationRejected(str(problem)) if isinstance(problem, Conflict | BadInput) else problem


def _reservation(r: pb.Reservation) -> Reservation:
    items = tuple(sorted((item.product_id, item.quantity) for item in r.items))
    return Reservation(
        UUID(r.reservation_id), r.status == pb.RESERVATION_STATUS_RESERVED, items, r.created_at.ToDatetime(UTC)
    )
