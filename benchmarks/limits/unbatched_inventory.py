"""Inventory without batching: each Reserve makes its own call of the SQL function.

A lone caller is compared with it. Configured and started like `python -m market.inventory`.
"""

from market.inventory import app
from market.inventory.config import Config
from market.inventory.domain import Reservation, Shortages
from market.inventory.service import Inventory
from market.kit.process.lifecycle import run


class Unbatched(Inventory):
    async def reserve(self, wanted: Reservation) -> Shortages:
        self._make_room()
        [outcome] = await self._decide([wanted])
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome


if __name__ == "__main__":
    app.Inventory = Unbatched  # type: ignore[misc]
    run("inventory", Config, app.build)
