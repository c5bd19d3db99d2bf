"""A buyer who tries everything cannot change or see anything of another buyer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.authorization.shop import Shop

VICTIM = "ann"
ADDRESS = f"{VICTIM}@people.example"
# Subjects that might be taken for the victim.
STRANGERS = ["bob", "Ann", "ANN", "ann2", ADDRESS, "a", "ann\u0301", "\uff41\uff4e\uff4e", "{ann}", '"ann"', "$ne"]
# Of the product in each of the victim's orders.
QUANTITY = 1_723


@dataclass(repr=False)
class Belongings:
    """What the victim has: orders of one product, their keys, and the cursor of its own list."""

    product_id: str
    orders: list[dict[str, Any]]
    keys: list[str]
    cursor: str
    state: list[dict[str, Any]]

    def traces(self, stranger: str, step: Step) -> list[str]:
        """Return texts that only a response about the victim's orders has, whatever the stranger has sent."""
        found = [ADDRESS, *(order["created_at"] for order in self.orders)]
        if step.kind not in NAMING_AN_ORDER:
            found += [order["id"] for order in self.orders]
        return [trace for trace in found if trace != stranger]


@dataclass(frozen=True)
class Step:
    """One call of the stranger: which kind, and which of the victim's things it is about."""

    kind: str
    number: int
    names_victim: bool
    quantity: int


NAMING_AN_ORDER = ("get", "cancel", "g-get", "g-cancel", "g-mixed")
steps = st.builds(
    Step,
    st.sampled_from(["place", "list", "page", "g-place", "g-list", *NAMING_AN_ORDER]),
    number=st.integers(0, 2),
    names_victim=st.booleans(),
    # The victim's own quantity makes the request the same as the victim's.
    quantity=st.sampled_from([1, QUANTITY]),
)


@pytest.fixture(scope="module")
async def belongings(shop: Shop) -> Belongings:
    product_id = (await shop.create_product(stock=1_000_000_000))["id"]
    token, keys = shop.token(VICTIM), [uuid4().hex for _ in range(3)]
    items = [{"product_id": product_id, "quantity": QUANTITY}]
    orders = [await shop.place_order(token, product_id, key=key, items=items) for key in keys]
    page = await shop.rest("orders", "GET", "/api/order?limit=1", token)
    await shop.stores.settled()
    return Belongings(product_id, orders, keys, page.json()["next"], await shop.stores.orders_of(VICTIM))


@settings(max_examples=60)
@given(subject=st.sampled_from(STRANGERS), sequence=st.lists(steps, min_size=1, max_size=8))
async def test_no_sequence_of_calls_changes_or_shows_anything_of_another_buyer(
    shop: Shop, belongings: Belongings, subject: str, sequence: list[Step]
) -> None:
    token = shop.issuer.token(subject, email="stranger@elsewhere.example")
    for step in sequence:
        response = await take(shop, belongings, token, step)
        assert response.status_code < 500, response.text
        assert [trace for trace in belongings.traces(subject, step) if trace in response.text] == []
        assert_is_about(subject, response)
    assert await shop.stores.orders_of(VICTIM) == belongings.state


async def take(shop: Shop, belongings: Belongings, token: str, step: Step) -> httpx.Response:
    """Make the call."""
    order_id, key = belongings.orders[step.number]["id"], belongings.keys[step.number]
    user = {"user": VICTIM} if step.names_victim else {}
    product_id = belongings.product_id
    match step.kind:
        case "place":
            # With the victim's own key.
            body = {**user, "items": [{"product_id": product_id, "quantity": step.quantity}]}
            headers = {"Idempotency-Key": key}
            return await shop.rest("orders", "POST", "/api/order", token, json=body, headers=headers)
        case "get":
            return await shop.rest("orders", "GET", f"/api/order/{order_id}", token)
        case "list":
            return await shop.rest("orders", "GET", "/api/order", token, params={**user, "limit": 5})
        case "cancel":
            return await shop.rest("orders", "DELETE", f"/api/order/{order_id}", token)
        case "page":
            params = {**user, "limit": 1, "after": belongings.cursor}
            return await shop.rest("orders", "GET", "/api/order", token, params=params)
    input_user = f'user: "{VICTIM}", ' if step.names_victim else ""
    items = f'items: [{{productId: "{product_id}", quantity: {step.quantity}}}]'
    everything = "{id user email total createdAt items {name quantity}}"
    fields = {
        "g-place": f'mutation {{createOrder(input: {{{input_user}{items}}}, idempotencyKey: "{key}") {everything}}}',
        "g-get": f'{{order(id: "{order_id}") {everything}}}',
        "g-list": f"{{orders({input_user}limit: 5) {{items {everything}}}}}",
        "g-cancel": f'mutation {{deleteOrder(id: "{order_id}") {everything}}}',
        # Own and foreign things in one document.
        "g-mixed": f"""{{
            own: orders(limit: 1) {{items {everything}}}
            foreign: order(id: "{order_id}") {everything}
            page: orders({input_user}limit: 1, after: "{belongings.cursor}") {{items {everything}}}
        }}""",
    }
    return await shop.graphql(fields[step.kind], token)


def assert_is_about(subject: str, response: httpx.Response) -> None:
    """Fail if the response has an order of somebody else."""
    for order in _orders(response.json() if response.content else None):
        assert order["user"] == subject


def _orders(value: Any) -> list[dict[str, Any]]:
    """Return every order in a JSON value."""
    if isinstance(value, list):
        return [order for item in value for order in _orders(item)]
    if isinstance(value, dict):
        found = [value] if "user" in value and "total" in value else []
        return found + [order for item in value.values() for order in _orders(item)]
    return []
