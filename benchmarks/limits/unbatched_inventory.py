"""Inventory without batching: each Reserve makes its own call of the SQL function.

A lone caller is compared with it. Configured and started like `python -m market.inventory`.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from market.inventory import app
from market.inventory.config import Config
from market.inventory.domain import Reservation, Shortages
from market.kit.batching import Batcher
from market.kit.process.lifecycle import Process, run
from market.kit.rpc.server import GrpcServer


class Unbatched(Batcher[Reservation, Shortages]):
    async def __call__(self, item: Reservation) -> Shortages:
        [outcome] = await self._flush([item])
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


@asynccontextmanager
async def build(config: Config, process: Process) -> AsyncIterator[GrpcServer]:
    async with app.open_deps(config, process) as deps:
        deps.batcher.reservations = Unbatched(deps.batcher.reserve_batch, name="inventory.reserve")
        yield app.server(config, process, deps)


if __name__ == "__main__":
    run("inventory", Config, build)
