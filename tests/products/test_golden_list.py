"""The search by the golden list (tests/products/golden): what each of its searches must and must not find."""

from __future__ import annotations

import pytest

from .conftest import RunningProducts
from .golden.golden_list import Expectation, read_catalogue, read_expectations

EXPECTATIONS = read_expectations()


@pytest.fixture(scope="module")
async def keys(products: RunningProducts) -> dict[str, str]:
    """The key of each product of the catalogue by its id."""
    await products.db.execute("TRUNCATE products")
    return {
        (await products.create(name=name, description=description))["id"]: key
        for key, (name, description) in read_catalogue().items()
    }


def test_the_list_has_at_least_150_searches_and_knows_each_product_it_names():
    assert len(EXPECTATIONS) >= 150
    assert len({e.search for e in EXPECTATIONS}) == len(EXPECTATIONS)
    named = {key for e in EXPECTATIONS for key in [*e.found, *e.not_found]}
    assert named <= set(read_catalogue())


@pytest.mark.parametrize("expected", EXPECTATIONS, ids=[repr(e.search) for e in EXPECTATIONS])
async def test_a_search_finds_what_it_must_and_nothing_that_it_must_not(
    products: RunningProducts, keys: dict[str, str], expected: Expectation
):
    response = await products.http.get(
        "/api/product", params={"q": expected.search, "limit": 100, "availability": "false"}
    )
    assert response.status_code == 200, response.text
    page = response.json()
    found = [keys[item["id"]] for item in page["items"]]
    assert expected.differences(found, suggested=page["suggested"]) == []
    assert page["total"] == len(found)
