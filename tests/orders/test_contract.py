"""openapi/orders.json is up to date and describes the running service."""

from __future__ import annotations

import json
from pathlib import Path

from market.orders import openapi
from tests.support.schemathesis import check_with_schemathesis

from .catalogue import FakeCatalogue
from .service import Service
from .sign_in import Shop
from .stock import Stock

FILE = Path(__file__).parents[2] / "openapi" / "orders.json"
# A cancelled order stays readable.
STAYS_READABLE = ("use_after_free",)


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
    assert create["required"] == ["items"]
    for name in ("user", "email", "expected_total", "expected_currency"):
        field = create["properties"][name]
        assert "default" not in field, name
        assert field["description"], name
        assert "description" not in field["anyOf"][0], name


def test_the_document_names_the_server_of_the_local_stack() -> None:
    assert [server["url"] for server in openapi.build()["servers"]] == ["http://127.0.0.1:8082"]


def test_each_operation_names_the_token_and_its_refusals() -> None:
    document = openapi.build()
    operations = {o["operationId"]: o for path in document["paths"].values() for o in path.values()}
    assert sorted(operations) == [
        "cancelOrder",
        "createOrder",
        "getOrder",
        "listOrders",
        "listShortages",
        "listUnfinishedOrders",
        "retryUnfinishedOrder",
    ]
    for name, operation in operations.items():
        assert operation["security"] == [{"bearer": []}], name
        for status in ("401", "403"):
            schema = operation["responses"][status]["content"]["application/problem+json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/Problem"}
    [user] = [p for p in operations["listOrders"]["parameters"] if p["name"] == "user"]
    assert user["required"] is False
    assert operations["cancelOrder"]["description"] == (
        "Where sign-in is required: for buyers (only their own data) and merchants."
    )


async def test_schemathesis_finds_no_500_and_no_undocumented_response(
    service: Service, catalogue: FakeCatalogue, stock: Stock, tmp_path: Path
) -> None:
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    assert (await service.place([(lamp, 1)])).status_code == 201
    await check_with_schemathesis(FILE, str(service.http.base_url), tmp_path, exclude=STAYS_READABLE)


async def test_schemathesis_finds_no_undocumented_response_where_sign_in_is_required(
    shop: Shop, catalogue: FakeCatalogue, stock: Stock, tmp_path: Path
) -> None:
    """It also sends requests without the token, and with invalid ones, and checks that each is refused."""
    lamp = catalogue.add()
    await stock.set(lamp, 5)
    ann = shop.sign_in("ann")
    assert (await ann.place([(lamp, 1)])).status_code == 201
    await check_with_schemathesis(FILE, str(ann.http.base_url), tmp_path, token=ann.token, exclude=STAYS_READABLE)
