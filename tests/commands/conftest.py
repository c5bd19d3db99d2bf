"""A shop in memory, and files in the Online Retail format."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web

from tests.commands.in_memory_shop import InMemoryShop
from tests.support.ports import free_port

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"


@pytest.fixture
async def shop() -> AsyncIterator[InMemoryShop]:
    """A shop in memory at `url`."""
    shop = InMemoryShop()
    runner = web.AppRunner(shop.app(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    shop.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield shop
    await runner.cleanup()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Write a file in the Online Retail format. A line has all columns but InvoiceDate and Country, joined by `;`."""

    def file(*lines: str, name: str = "retail.csv", header: str = HEADER) -> Path:
        whole = []
        for line in lines:
            invoice, code, description, quantity, price, customer = line.split(";")
            whole.append(f'{invoice},{code},"{description}",{quantity},2010-12-01T08:26:00,{price},{customer},France')
        path = tmp_path / name
        path.write_text("\n".join([header, *whole]) + "\n")
        return path

    return file


@pytest.fixture
def unused_port_base() -> int:
    """A port base where no shop listens."""
    return free_port() - 1
