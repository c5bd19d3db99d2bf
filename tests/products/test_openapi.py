"""The OpenAPI document: up to date, and true of the running service."""

from __future__ import annotations

import json
from pathlib import Path

from market.products.openapi import products as document
from tests.support.schemathesis import check_with_schemathesis

from .conftest import RunningProducts

FILE = Path(__file__).parents[2] / "openapi" / "products.json"


def test_the_file_is_up_to_date():
    assert json.loads(FILE.read_text()) == document(), "run make generate"


def test_times_have_a_format_and_problems_declare_their_members():
    schemas = document()["components"]["schemas"]
    times = {name: schemas["Product"]["properties"][name]["format"] for name in ("created_at", "updated_at")}
    assert times == {"created_at": "date-time", "updated_at": "date-time"}
    members = schemas["Problem"]["properties"]
    assert {"errors", "fields", "stock", "etag"} <= set(members)
    assert members["stock"]["enum"] == ["replaced", "unchanged", "unknown"]
    assert schemas["Problem"]["required"] == ["type", "title", "status", "detail"]


def test_prices_are_text_and_optional_fields_have_no_default():
    schemas = document()["components"]["schemas"]
    for name in ("Product", "NewProduct", "ChangedProduct"):
        price = schemas[name]["properties"]["price"]
        assert (price["type"], price.get("format")) == ("string", None), name
        assert not [field for field, schema in schemas[name]["properties"].items() if "default" in schema], name
    assert schemas["NewProduct"]["properties"]["stock"]["description"] == "the units to sell; 0 if absent"


def test_the_document_names_the_server_of_the_local_stack():
    assert [server["url"] for server in document()["servers"]] == ["http://127.0.0.1:8081"]


async def test_schemathesis_finds_no_500_and_no_undocumented_response(products: RunningProducts, tmp_path):
    for _ in range(3):
        await products.create(stock=1)
    await check_with_schemathesis(FILE, str(products.http.base_url), tmp_path)
