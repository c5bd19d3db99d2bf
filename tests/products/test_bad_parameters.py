"""Invalid paths, methods, parameters and headers: the status, and the name of the parameter."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest

from .conftest import LAMP, FakeInventory, RunningProducts, assert_problem

ID = str(uuid4())
HUGE = "9" * 400


@pytest.mark.parametrize(
    "id", ["1", "nonsense", ID[:-1], ID.replace("-", ""), f"{{{ID}}}", f"{ID}0", "%00", "%0a", "a%2fb", "é"]
)
async def test_a_path_id_that_is_not_a_uuid_is_404(products: RunningProducts, id):
    assert_problem(await products.http.get(f"/api/product/{id}"), 404)
    assert_problem(await products.http.delete(f"/api/product/{id}"), 404)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", v) for v in ("0", "101", "-1", "x", "", "1.0", "1e1", " 1", "+1", "01", "true", HUGE, "٣", "null")),
        *(("offset", v) for v in ("-1", "10001", "x", "", "1.5", HUGE)),
        *(("sort", v) for v in ("", "id", "--price", "NAME", "price,name")),
        *(("availability", v) for v in ("", "0", "1", "no", "False", "null")),
        *(("ids", v) for v in ("", ",", "x", ID + ",", f"{ID} ,{ID}", ID.replace("-", ""), "\x00")),
        *(("q", v) for v in ("", "x" * 201, "\x00", "a\nb")),
        ("nonsense", "1"),
        ("Limit", "1"),
    ],
    ids=lambda v: ascii(v)[:30],
)
async def test_an_invalid_parameter_is_named(products: RunningProducts, name, value):
    assert_problem(await products.http.get("/api/product", params={name: value}), 422, name)


async def test_errors_of_parameters_state_the_rule(products: RunningProducts):
    async def reason(query: str) -> str:
        return (await products.http.get(f"/api/product?{query}")).json()["detail"]

    assert await reason("limit=101") == "limit: must be a whole number from 1 to 100"
    assert await reason("sort=size") == "sort: must be one of -created_at, -name, -price, created_at, name, price"
    assert await reason("availability=maybe") == "availability: must be one of true, false"
    assert await reason("limit=1&limit=2") == "limit: must not be repeated"
    assert await reason("q=%ff") == "query: must be a query string in UTF-8 with at most 150 parameters"


@pytest.mark.parametrize("stray", ["100%", "%zz", "%u0041", "a%2"])
async def test_a_percent_sign_that_encodes_nothing_is_refused(products: RunningProducts, stray: str):
    # httpx would encode the percent sign.
    reader, writer = await asyncio.open_connection("127.0.0.1", products.config.http.port)
    writer.write(f"GET /api/product?q={stray} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())
    response = await reader.read()
    writer.close()
    assert response.startswith(b"HTTP/1.1 422 ")
    assert b'"detail":"query: must be percent-encoded: a % must be followed by two hexadecimal digits"' in response


async def test_an_empty_list_of_ids_gets_the_allowed_number(products: RunningProducts):
    problem = (await products.http.get("/api/product?ids=")).json()
    assert problem["errors"] == [{"field": "ids", "reason": "must be 1 to 100 UUIDs, separated by commas, got 0"}]


@pytest.mark.parametrize("other", ["q=lamp", "sort=name", "offset=1", "after=x"])
async def test_ids_cannot_be_combined_with_search_sort_or_offset(products: RunningProducts, other):
    assert_problem(await products.http.get(f"/api/product?ids={ID}&{other}"), 422, other.split("=")[0])


async def test_operations_without_parameters_reject_them(products: RunningProducts):
    assert_problem(await products.http.get(f"/api/product/{ID}?limit=1"), 422, "limit")
    assert_problem(await products.http.delete(f"/api/product/{ID}?force=true"), 422, "force")
    assert_problem(await products.http.post("/api/product?x=1", json=LAMP), 422, "x")


@pytest.mark.parametrize("key", ["", "x" * 256, "a b", "a\tb", "\xe9"])
async def test_an_invalid_idempotency_key_is_named(products_with_fake: RunningProducts, inventory: FakeInventory, key):
    response = await products_with_fake.http.post(
        "/api/product", json=LAMP, headers={"Idempotency-Key": key.encode("latin-1")}
    )
    assert_problem(response, 422, "Idempotency-Key")
    assert inventory.writes == []


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", "/api/product", "GET, HEAD, POST, PUT"),
        ("PATCH", "/api/product", "GET, HEAD, POST, PUT"),
        ("POST", f"/api/product/{ID}", "DELETE, GET, HEAD"),
        ("OPTIONS", "/api/product", "GET, HEAD, POST, PUT"),
    ],
)
async def test_other_methods_are_405_with_the_allowed_ones(products: RunningProducts, method, path, allowed):
    response = await products.http.request(method, path)
    assert_problem(response, 405)
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    "path",
    ["/", "/api", "/api/products", "/api/product/", f"/api/product/{ID}/", f"/api/product/{ID}/x", "//api/product"],
)
async def test_other_paths_are_404(products: RunningProducts, path):
    assert_problem(await products.http.request("GET", products.http.base_url.copy_with(raw_path=path.encode())), 404)


async def test_all_wrong_parameters_of_a_query_are_named(products: RunningProducts):
    query = "limit=0&offset=x&q=a&q=b&sort=size&availability=maybe&page=1"
    problem = (await products.http.get(f"/api/product?{query}")).json()
    fields = {e["field"] for e in problem["errors"]}
    assert fields == {"limit", "offset", "q", "sort", "availability", "page"}
    assert len(problem["errors"]) == 6
