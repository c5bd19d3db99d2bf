"""openapi/orders.json is up to date and describes the running service."""

from __future__ import annotations

import json
from pathlib import Path

from market.orders import openapi
from tests.support.schemathesis import check_with_schemathesis

from .catalogue import FakeCatalogue
from .service import Service
from .stock import Stock

FILE = Path(__file__).parents[2] / "openapi" / "orders.json"


def test_the_published_document_is_up_to_date() -> None:
    assert json.loads(FILE.read_text("utf-8")) == openapi.build(), "run make generate"


def test_generators_find_types_formats_and_the_members_of_problems() -> None:
    schemas = openapi.build()["components"]["schemas"]
    order = schemas["Order"]["properties"]
    assert order["status"]["type"] == "string"
    assert (order["id"]["format"], order["created_at"]["format"]) == ("uuid", "date-time")
    assert schemas["OrderLine"]["properties"]["product_id"]["format"] == "uuid"
    members = schemas["Problem"]["properties"]
    assert {"errors", "shortages", "total", "order_id"} <= set(members)
    assert members["shortages"]["items"]["required"] == ["product_id", "wanted", "left"]


def test_an_optional_field_of_a_request_has_no_default_and_a_nullable_one_keeps_its_description() -> None:
    create = openapi.build()["components"]["schemas"]["CreateOrder"]
    assert create["required"] == ["user", "items"]
    for name in ("email", "expected_total", "expected_currency"):
        field = create["properties"][name]
        assert "default" not in field, name
        assert field["description"], name
        assert "description" not in field["anyOf"][0], name


def test_the_document_names_the_server_of_the_local_stack() -> None:
    assert [server["url"] for server in openapi.build()["servers"]] == ["http://127.0.0.1:8082"]


async def test_schemathesis_finds_no_500_and_no_undocumented_response(
    service: Service, catalogue: FakeCatalogue, stock: Stock, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    assert (await service.place([(lamp, 1)])).status_code == 201
    await check_with_schemathesis(FILE, str(service.http.base_url), tmp_path)
