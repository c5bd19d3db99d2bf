"""MongoDB applies a write, but the connection breaks before orders gets the response."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.waiting import until

from .catalogue import FakeCatalogue
from .service import MakeSettings, get_document, serving
from .stock import Stock
from .topic import Topic

# A command as BSON begins with its name and its collection.
INSERT = b"\x02insert\x00\x07\x00\x00\x00orders\x00"
UPDATE = b"\x02update\x00\x07\x00\x00\x00orders\x00"


class LossyForwarder:
    """Forwards connections to MongoDB. It breaks those on which a command in `lose` is sent, once it was applied.

    lose: commands as the bytes that they contain, and how many of them are forwarded with their response first
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.lose: list[tuple[bytes, int]] = []
        self.lost = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[LossyForwarder]:
        server = await asyncio.start_server(self._handle, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        loses_response = False

        async def forward_requests() -> None:
            nonlocal loses_response
            while request := await reader.read(1_000_000):
                loses_response = self._is_lost(request)
                server_writer.write(request)
            server_writer.close()

        async def forward_responses() -> None:
            while (response := await server_reader.read(1_000_000)) and not loses_response:
                writer.write(response)
            writer.transport.abort()

        with suppress(OSError):
            await asyncio.gather(forward_requests(), forward_responses())
        server_writer.close()

    def _is_lost(self, request: bytes) -> bool:
        for i, (command, skipped) in enumerate(self.lose):
            if command in request:
                if skipped == 0:
                    del self.lose[i]
                    self.lost += 1
                    return True
                self.lose[i] = (command, skipped - 1)
        return False


@pytest.mark.parametrize(
    "lose",
    [[(INSERT, 0)], [(UPDATE, 0)], [(UPDATE, 1)], [(INSERT, 0), (UPDATE, 0), (UPDATE, 1)]],
    ids=["intent", "confirmation", "removal of the event", "all three"],
)
async def test_an_order_is_placed_once_and_published_if_the_response_to_a_write_is_lost(
    isolated_settings: MakeSettings,
    mongodb: Any,
    catalogue: FakeCatalogue,
    stock: Stock,
    topic: Topic,
    lose: list[tuple[bytes, int]],
) -> None:
    product = catalogue.add()
    await stock.set(product, 5)
    async with LossyForwarder(urlsplit(mongodb.uri).port or 0).serving() as forwarder:
        settings = isolated_settings()
        settings["mongodb"]["uri"] = f"mongodb://127.0.0.1:{forwarder.port}/?directConnection=true"
        async with serving(settings, background=False) as service:
            forwarder.lose = list(lose)
            response = await service.place([(product, 2)])
            order = response.json()

            async def is_published() -> bool:
                return "outbox" not in await get_document(service, order["id"])

            await until(is_published, what="outbox empty")
            placed = await service.documents.count_documents({"items.product_id": product})

    assert (response.status_code, order["status"], forwarder.lost) == (201, "confirmed", len(lose))
    assert placed == 1
    assert await stock.reservation(order["id"]) == ("reserved", {product: 2})
    assert await stock.available(product) == 3
    assert len(await topic.wait_for(order["id"], "order.created")) == 1
