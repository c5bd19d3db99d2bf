"""Inventory without gathering: all as it is, but each Reserve makes its own call of the function.

What a lone caller is compared with. Configured and started as `python -m market.inventory`.
"""

from market.inventory import app
from market.inventory.config import Config
from market.inventory.domain import Reservation, Shortages
from market.inventory.service import Inventory
from market.kit.process.lifecycle import run


class Unbatched(Inventory):
    async def reserve(self, wanted: Reservation) -> Shortages:
        self._make_room()
        [answer] = await self._decide([wanted])
        if isinstance(answer, BaseException):
            raise answer
        return answer


if __name__ == "__main__":
    app.Inventory = Unbatched  # type: ignore[misc]
    run("inventory", Config, app.build)
