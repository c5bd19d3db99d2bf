from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from aiohttp import web
from market_dev.stack import processes as spawn
from shop_of_paper import PaperShop, Running

HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"


@pytest.fixture
async def paper() -> AsyncIterator[Running]:
    shop = PaperShop()
    runner = web.AppRunner(shop.app(), shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield Running(shop, f"http://127.0.0.1:{runner.addresses[0][1]}")
    await runner.cleanup()


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a file of the format; a line is what stands in it, with InvoiceDate and Country left out."""

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
def unused() -> int:
    """A port base where nobody listens."""
    return next(spawn.free_ports()) - 1
