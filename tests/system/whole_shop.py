"""What the tests of the whole shop share: the running system, its commands and its mails."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from tests.support.waiting import PATIENCE, until

ROOT = Path(__file__).parents[2]
MARKET = Path(sys.executable).with_name("market")


@dataclass
class System:
    """A running shop: `urls` and `pids` as `market up --json` writes them."""

    urls: dict[str, Any]
    pids: dict[str, int]
    port_base: int

    def market(self, *args: object) -> subprocess.CompletedProcess[str]:
        """Run a command of `market` against this shop; its output is shown if it fails."""
        command = [str(MARKET), *map(str, args), "--port-base", str(self.port_base)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "120"}
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done


@dataclass
class Mails:
    """Reads mails through the JSON API of the mail catcher."""

    http: httpx.AsyncClient
    url: str

    async def to(self, address: str | None = None) -> list[dict[str, Any]]:
        """Return all mails to the address (default: to any address), newest first."""
        items: list[dict[str, Any]] = []
        while True:
            params = {"limit": 100, "offset": len(items)} | ({"to": address} if address else {})
            page = (await self.http.get(f"{self.url}/api/messages", params=params)).raise_for_status().json()
            items += page["items"]
            if len(items) >= page["total"] or not page["items"]:
                return items

    async def count(self) -> int:
        """Return the number of mails to any address."""
        page = (await self.http.get(f"{self.url}/api/messages", params={"limit": 1})).raise_for_status().json()
        return int(page["total"])

    async def wait_for(self, address: str, count: int = 1, seconds: float = PATIENCE) -> list[dict[str, Any]]:
        """Return the mails to the address, newest first, once there are `count` of them."""
        found: list[dict[str, Any]] = []

        async def have_arrived() -> bool:
            found[:] = await self.to(address)
            return len(found) >= count

        await until(have_arrived, seconds, lambda: f"{count} mails to {address}, only {len(found)}")
        return found


async def retried(request: Callable[[], Awaitable[httpx.Response]], *statuses: int) -> httpx.Response:
    """Return the response, repeating the request for a minute while its status is one of `statuses`.

    A machine that stands still for some seconds is not a failure of the shop, which then returns 503, or 202 to a
    cancellation.
    """

    async def response() -> httpx.Response | None:
        made = await request()
        return None if made.status_code in statuses else made

    return await until(response, PATIENCE, f"a status other than {statuses}", interval=0.2)


async def place(http: httpx.AsyncClient, shop: System, body: dict[str, Any], **headers: str) -> httpx.Response:
    """Return the final response to an order: status 200 if a repeated request found it placed."""
    headers = {"Idempotency-Key": uuid4().hex, **headers}
    return await retried(lambda: http.post(f"{shop.urls['orders']}/api/order", json=body, headers=headers), 503)


async def create_product(http: httpx.AsyncClient, shop: System, **fields: Any) -> dict[str, Any]:
    """Create a product through REST and return it."""
    body = {"name": "Enamel mug", "description": "", "price": "12.50", "currency": "GBP", "stock": 100, **fields}
    headers = {"Idempotency-Key": uuid4().hex}
    response = await retried(lambda: http.post(f"{shop.urls['products']}/api/product", json=body, headers=headers), 503)
    return dict(response.raise_for_status().json())
