"""openapi/orders.json: up to date, and true of the running service."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from market.orders import openapi

from .parts import Catalogue, Service, Stock

FILE = Path(__file__).parents[2] / "openapi" / "orders.json"


def test_the_published_document_is_what_the_code_says() -> None:
    assert json.loads(FILE.read_text("utf-8")) == openapi.build(), "make generate"


async def test_schemathesis_finds_no_500_and_no_undocumented_answer(
    service: Service, catalogue: Catalogue, stock: Stock, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    assert (await service.order([(lamp, 1)])).status_code == 201
    run = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).with_name("schemathesis")),
        "run",
        str(FILE),
        "--url",
        str(service.http.base_url),
        "--max-examples",
        "10",
        "--seed",
        "1",
        "--phases",
        "coverage,fuzzing,stateful",
        "--continue-on-failure",
        "--no-shrink",
        # Some rules are beyond a schema: there must be such a product, and enough of it.
        "--checks",
        "all",
        "--exclude-checks",
        "positive_data_acceptance",
        "--generation-database",
        "none",
        "--no-color",
        # A machine that stands still for a moment says nothing of the service.
        "--request-timeout",
        "120",
        "--suppress-health-check",
        "too_slow",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await run.communicate()
    assert run.returncode == 0, said.decode()[-6000:]
