"""What the tests of the whole shop share: the running system, its commands, its mail."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

ROOT = Path(__file__).parents[2]
MARKET = Path(sys.executable).with_name("market")
PORTS = 16


@dataclass
class System:
    """A running shop: `urls` and `pids` as `market up --json` writes them."""

    urls: dict[str, Any]
    pids: dict[str, int]
    port_base: int

    def market(self, *args: object) -> subprocess.CompletedProcess[str]:
        """Runs a command of `market` against this shop. What went wrong is shown."""
        command = [str(MARKET), *map(str, args), "--port-base", str(self.port_base)]
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "120"}
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done


def free_base() -> int:
    """The first of as many neighbouring ports as the stack takes, all free, away from those that the system hands out."""
    for base in range(17_000 + os.getpid() % 100 * 100, 32_000, PORTS):
        if all(_free(port) for port in range(base, base + PORTS)):
            return base
    raise AssertionError("no free ports")


def _free(port: int) -> bool:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass
class Mails:
    """Reads the mail as a customer's mail program would, through the sink's JSON API."""

    http: httpx.AsyncClient
    url: str

    async def to(self, address: str | None = None) -> list[dict[str, Any]]:
        """All mails to the address, newest first."""
        items: list[dict[str, Any]] = []
        while True:
            params = {"limit": 100, "offset": len(items)} | ({"to": address} if address else {})
            page = (await self.http.get(f"{self.url}/api/messages", params=params)).raise_for_status().json()
            items += page["items"]
            if len(items) >= page["total"] or not page["items"]:
                return items

    async def count(self) -> int:
        """How many mails there are, to anybody."""
        return int(
            (await self.http.get(f"{self.url}/api/messages", params={"limit": 1})).raise_for_status().json()["total"]
        )

    async def wait_for(self, address: str, count: int = 1, seconds: float = 60) -> list[dict[str, Any]]:
        until = time.monotonic() + seconds
        while len(found := await self.to(address)) < count:
            assert time.monotonic() < until, f"{len(found)} of {count} mails to {address} after {seconds} s"
            await asyncio.sleep(0.05)
        return found


async def patiently(ask: Callable[[], Awaitable[httpx.Response]], *again: int) -> httpx.Response:
    """The answer, asked for again for a minute where it is one of `again`: a machine that stands still for some seconds is no
    fault of the shop, which says 503 then, or 202 to a cancellation."""
    until = time.monotonic() + 60
    while (answer := await ask()).status_code in again and time.monotonic() < until:
        await asyncio.sleep(0.2)
    return answer


async def place(http: httpx.AsyncClient, shop: System, body: dict[str, Any], **headers: str) -> httpx.Response:
    """The final answer to an order: 200 where it was decided only after a 503."""
    headers = {"Idempotency-Key": uuid4().hex, **headers}
    return await patiently(lambda: http.post(f"{shop.urls['orders']}/api/order", json=body, headers=headers), 503)


async def make_product(http: httpx.AsyncClient, shop: System, **fields: Any) -> dict[str, Any]:
    """A product made through REST."""
    body = {"name": "Enamel mug", "description": "", "price": "12.50", "currency": "GBP", "stock": 100, **fields}
    headers = {"Idempotency-Key": uuid4().hex}
    made = await patiently(lambda: http.post(f"{shop.urls['products']}/api/product", json=body, headers=headers), 503)
    return dict(made.raise_for_status().json())
