"""What the tests of orders are made of: a catalogue that stands in for products, the real inventory, the service
in this process or as one of its own, and a reader of the topic."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc.aio
import httpx
import msgspec
from confluent_kafka import Consumer
from starlette.requests import Request
from starlette.responses import Response

from market.contracts import events
from market.contracts import inventory_pb2 as pb
from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.responses import json_response
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import Process
from market.kit.process.tasks import periodic_tasks
from market.orders import app as orders_app
from market.orders.app import Clients
from market.orders.config import Config
from market.orders.service import Deps
from tests.support.ports import free_port
from tests.support.processes import ServiceProcess
from tests.support.waiting import PATIENCE, until


class Catalogue:
    """Stands in for products: answers `ids=`, remembers what it was asked, and is dead when it is told to be.

    It answers once `at_once` calls were under way together, and `seconds` later.
    """

    def __init__(self) -> None:
        self.port = free_port()
        self.goods: dict[str, dict[str, Any]] = {}
        self.asked: list[list[str]] = []
        self.under_way = 0
        self.behave()
        self._server = HttpServer(
            edge.application({"GET /api/product": self.list}, Http(port=self.port)), "127.0.0.1", self.port
        )

    def behave(self) -> None:
        """Whoever waits for an answer has it now."""
        self.down, self.seconds, self.at_once, self.most_under_way = False, 0.0, 0, 0

    def add(self, price: str = "2.50", *, name: str = "Lamp", currency: str = "GBP") -> str:
        id = str(uuid4())
        self.goods[id] = {
            "id": id,
            "name": name,
            "price": price,
            "currency": currency,
            "description": "",
            "available": None,
        }
        return id

    async def list(self, request: Request) -> Response:
        assert request.query_params["availability"] == "false"
        if self.down:
            return Response("down", 503)
        ids = request.query_params["ids"].split(",")
        self.asked.append(ids)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await until(lambda: self.most_under_way >= self.at_once, 60, "calls under way together")
            came = asyncio.get_running_loop().time()
            while asyncio.get_running_loop().time() < came + self.seconds:
                await asyncio.sleep(0.01)
        finally:
            self.under_way -= 1
        found = [self.goods[id] for id in ids if id in self.goods]
        return json_response({"items": found, "total": len(found), "limit": 100, "offset": 0})

    async def __aenter__(self) -> Catalogue:
        await self._server.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.stop(1)


@dataclass
class Stock:
    """The real inventory's stub, in the words of the tests."""

    stub: Any
    target: str

    async def _ask(self, method: Any, request: Any) -> Any:
        # All of it may be asked again; the machine may stand still for longer than a statement may take.
        end = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                return await method(request)
            except grpc.aio.AioRpcError as e:
                transient = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
                if e.code() not in transient or asyncio.get_running_loop().time() > end:
                    raise
                await asyncio.sleep(0.1)

    async def set(self, product: str, quantity: int) -> None:
        await self._ask(self.stub.SetStock, pb.SetStockRequest(product_id=product, quantity=quantity))

    async def left(self, product: str) -> int:
        answer = await self._ask(self.stub.GetStock, pb.GetStockRequest(product_ids=[product]))
        return int(answer.items[0].quantity)

    async def reserve(self, order_id: str, product: str, quantity: int) -> None:
        """Past orders, as another program would."""
        items = [pb.Item(product_id=product, quantity=quantity)]
        await self._ask(self.stub.Reserve, pb.ReserveRequest(reservation_id=order_id, items=items))

    async def give_back(self, order_id: str) -> None:
        """Past orders, as another program would."""
        await self._ask(self.stub.CancelReserve, pb.CancelReserveRequest(reservation_id=order_id))

    async def reservation(self, order_id: str | UUID) -> tuple[str, dict[str, int]] | None:
        """Status and items of the reservation, or None."""
        after = str(UUID(int=UUID(str(order_id)).int - 1))
        answer = await self._ask(self.stub.ListReservations, pb.ListReservationsRequest(after_id=after, limit=1))
        for r in answer.reservations:
            if r.reservation_id == str(order_id):
                return {1: "reserved", 2: "cancelled"}[r.status], {i.product_id: i.quantity for i in r.items}
        return None


class Topic:
    """All events of the topic since this began to read, by order."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": f"tests-{uuid4()}",
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "topic.metadata.refresh.interval.ms": 500,
                "allow.auto.create.topics": True,
                "session.timeout.ms": 45_000,
                "log_level": 0,
            }
        )
        self.messages: list[Any] = []
        self._seen: set[Any] = set()
        self._consumer.subscribe([events.TOPIC])
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while not self._stopping.is_set():
            for message in self._consumer.consume(500, 0.05):
                if message.error() is not None:
                    continue
                # Who is thrown out of the group begins anew. By the offset alone it cannot be told: a broker in memory
                # forgets.
                place = message.partition(), message.offset(), message.timestamp(), message.key()
                if place not in self._seen:
                    self._seen.add(place)
                    self.messages.append(message)
        self._consumer.close()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(10)

    def of(self, order_id: str) -> list[Any]:
        """The order's messages, in order."""
        return [m for m in list(self.messages) if m.key() == order_id.encode()]

    def events(self, order_id: str) -> list[events.OrderEvent]:
        return [msgspec.json.decode(m.value(), type=events.OrderEvent) for m in self.of(order_id)]

    async def wait(self, order_id: str, *types: str, seconds: float = PATIENCE) -> list[events.OrderEvent]:
        """The order's events once these types, each at least once, are among them."""
        await until(
            lambda: set(types) <= {e.type for e in self.events(order_id)}, seconds, f"events {types} of {order_id}"
        )
        return self.events(order_id)


@dataclass
class Service:
    """A running service and a client for it."""

    http: httpx.AsyncClient
    config: Config
    process: Process = field(default_factory=Process)
    deps: Deps | None = None

    async def order(
        self, items: Iterable[tuple[str, int]], *, user: str = "ada", key: str | None = None, **more: Any
    ) -> httpx.Response:
        headers = {"Idempotency-Key": key} if key else {}
        body = {"user": user, "items": [{"product_id": p, "quantity": q} for p, q in items], **more}
        return await self.http.post("/api/order", json=body, headers=headers)


def settings(mongo: Any, brokers: str, target: str, catalogue: int, database: str, **more: Any) -> dict[str, Any]:
    """The configuration as YAML has it. The loops' waiting times are seconds where production has minutes; deadlines
    are long, so that a machine that stands still for a moment turns no right answer into a 503."""
    recovery = {"after_seconds": 1.5, "interval_seconds": 0.3, "lease_seconds": 1.5, "relay_interval_seconds": 0.2}
    return {
        "testing": True,
        "admin": {"port": free_port()},
        "http": {"port": free_port()},
        "log": {"format": "console"},
        "shutdown": {"drain_seconds": 0, "grace_seconds": 30},
        "order_seconds": 50,
        "other_seconds": 40,
        "mongodb": {"uri": mongo.uri, "database": database, "timeout_seconds": 20},
        "inventory": {"target": target, "timeout_seconds": 20},
        "products": {"url": f"http://127.0.0.1:{catalogue}", "timeout_seconds": 20},
        "kafka": {"bootstrap_servers": brokers, "partitions": 0, "delivery_seconds": 10},
        **more,
        "recovery": {**recovery, **more.get("recovery", {})},
    }


@asynccontextmanager
async def serving(
    given: dict[str, Any],
    *,
    process: Process | None = None,
    clients: Clients | None = None,
    loops: bool = True,
) -> AsyncIterator[Service]:
    """The service in this process; without `loops` nothing recovers or relays what is left behind."""
    config = msgspec.convert(given, Config)
    process = process or Process()
    async with AsyncExitStack() as stack:
        deps = await stack.enter_async_context(orders_app.connect(config, process, clients))
        await orders_app.wait_for_store(process.health, deps)
        if loops:
            await stack.enter_async_context(periodic_tasks(orders_app.background_steps(config, deps)))
        server = orders_app.http_server(config, process, deps)
        await server.start()
        process.health.started = True
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{config.http.port}", timeout=120) as http:
                yield Service(http, config, process, deps)
        finally:
            await server.stop(2)


class OrdersProcess(ServiceProcess):
    """`python -m market.orders` with its own configuration, and a client for it."""

    def __init__(self, config: dict[str, Any], directory: Path) -> None:
        super().__init__("orders", config, directory)
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{config['http']['port']}", timeout=120)

    async def close(self) -> None:
        """Close the client and kill the process."""
        await self.http.aclose()
        self.kill()
