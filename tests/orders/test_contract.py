"""openapi/orders.json is up to date and describes the running service."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from market.orders import openapi

from .catalogue import FakeCatalogue
from .service import Service
from .stock import Stock

FILE = Path(__file__).parents[2] / "openapi" / "orders.json"


def test_the_published_document_is_up_to_date() -> None:
    assert json.loads(FILE.read_text("utf-8")) == openapi.build(), "run make generate"


async def test_schemathesis_finds_no_500_and_no_undocumented_response(
    service: Service, catalogue: FakeCatalogue, stock: Stock, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    assert (await service.place([(lamp, 1)])).status_code == 201
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
        # A schema cannot express all rules: the product must exist, with enough units in stock.
        "--checks",
        "all",
        "--exclude-checks",
        "positive_data_acceptance",
        "--generation-database",
        "none",
        "--no-color",
        # The machine may stand still for a moment.
        "--request-timeout",
        "120",
        "--suppress-health-check",
        "too_slow",
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await run.communicate()
    assert run.returncode == 0, output.decode()[-6000:]
