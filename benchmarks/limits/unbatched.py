"""Inventory without gathering: each Reserve is one call of the function. What a lone caller is compared with.

python -m benchmarks.limits.unbatched PORT DATABASE_URL
"""

import asyncio
import sys
from typing import Any

import asyncpg
import grpc.aio
import uvloop

from market.contracts import inventory_pb2 as pb
from market.contracts.inventory_pb2_grpc import InventoryServicer, add_InventoryServicer_to_server
from market.inventory import store
from market.inventory.api import parse_reservation
from market.inventory.app import SETTINGS
from market.inventory.domain import Outcome
from market.kit.postgres import _no_reset


class Servicer(InventoryServicer):
    def __init__(self, pool: Any) -> None:
        self.pool = pool

    async def Reserve(self, request: Any, _context: Any) -> Any:
        async with self.pool.acquire() as conn:
            outcome, _ = await store.reserve(conn, parse_reservation(request))
        return pb.ReserveResponse(reserved=outcome is Outcome.DONE)


async def main(port: int, url: str) -> None:
    pool = await asyncpg.create_pool(url, min_size=1, max_size=16, server_settings=SETTINGS, reset=_no_reset)
    server = grpc.aio.server()
    add_InventoryServicer_to_server(Servicer(pool), server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
