"""The calls of the gateway: GraphQL fields, and its HTTP routes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.authorization import effects
from tests.authorization.callers import OWNER
from tests.authorization.calls import Call, Outcome, Reply, Send, Target, http_reply
from tests.authorization.rest_calls import changed_product, new_product
from tests.authorization.shop import Shop

_CODES = {"UNAUTHENTICATED": Outcome.UNAUTHENTICATED, "FORBIDDEN": Outcome.FORBIDDEN, "NOT_FOUND": Outcome.NOT_FOUND}


def _graphql(document: str, given: Callable[[Target], Any] | None = None) -> Send:
    """Return a call of one root field, whose value is the reply's.

    In the document, `$product` and `$order` are the target's ids, and `$input` is given by the function.
    """

    async def send(shop: Shop, target: Target, token: str | None) -> Reply:
        variables = {"product": target.product_id, "order": target.order_id, "input": given(target) if given else None}
        used = {name: value for name, value in variables.items() if f"${name}:" in document}
        response = await shop.graphql(document, token, used)
        if response.status_code == 401:
            return http_reply(response)
        result = response.json()
        [value] = (result.get("data") or {"": None}).values()
        if "errors" not in result:
            return Reply(Outcome.ALLOWED, value, response.text)
        outcome = _CODES.get(result["errors"][0]["extensions"]["code"])
        assert outcome, response.text
        return Reply(outcome, value, response.text)

    return send


def _changed_input(target: Target) -> dict[str, Any]:
    fields = changed_product(target)
    return {name: fields[name] for name in ("id", "name", "description", "price", "currency", "stock")}


def _order_input(target: Target) -> dict[str, Any]:
    return {"user": OWNER, "items": [{"productId": target.product_id, "quantity": 3}]}


def _route(method: str, path: str, **request: Any) -> Send:
    async def send(shop: Shop, target: Target, token: str | None) -> Reply:
        return http_reply(await shop.rest("graphql", method, path, token, **request))

    return send


async def _shows_typename(shop: Shop, target: Target, value: Any) -> None:
    assert value == {"data": {"__typename": "Query"}}


CALLS: dict[str, Call] = {
    "graphql: Query.product": Call(
        _graphql("query($product: ID!) {product(id: $product) {id name}}"), effects.shows_product
    ),
    "graphql: Query.products": Call(
        _graphql("query($product: ID!) {products(ids: [$product]) {items {id name}}}"), effects.shows_products
    ),
    "graphql: Product.stock": Call(
        _graphql("query($product: ID!) {product(id: $product) {stock}}"), effects.shows_stock
    ),
    "graphql: Query.order": Call(
        _graphql("query($order: ID!) {order(id: $order) {id user}}"), effects.shows_order, other=Outcome.NOT_FOUND
    ),
    "graphql: Query.orders": Call(_graphql(f'{{orders(user: "{OWNER}") {{items {{id user}}}}}}'), effects.shows_orders),
    "graphql: Mutation.createProduct": Call(
        _graphql("mutation($input: CreateProductInput!) {createProduct(input: $input) {id}}", new_product),
        effects.product_is_created,
        changes=True,
    ),
    "graphql: Mutation.updateProduct": Call(
        _graphql("mutation($input: UpdateProductInput!) {updateProduct(input: $input) {id}}", _changed_input),
        effects.product_is_changed,
        changes=True,
    ),
    "graphql: Mutation.deleteProduct": Call(
        _graphql("mutation($product: ID!) {deleteProduct(id: $product)}"), effects.product_is_deleted, changes=True
    ),
    "graphql: Mutation.createOrder": Call(
        _graphql("mutation($input: CreateOrderInput!) {createOrder(input: $input) {id user}}", _order_input),
        effects.order_is_placed,
        changes=True,
    ),
    "graphql: Mutation.deleteOrder": Call(
        _graphql("mutation($order: ID!) {deleteOrder(id: $order) {id}}"),
        effects.order_is_cancelled,
        changes=True,
        other=Outcome.NOT_FOUND,
    ),
    "gateway: GET /": Call(_route("GET", "/"), effects.is_not_empty),
    "gateway: GET /graphiql/{name}": Call(_route("GET", "/graphiql/page.css"), effects.is_not_empty),
    "gateway: GET /images/{name}": Call(_route("GET", "/images/teapot.svg"), effects.is_not_empty),
    **{
        f"gateway: {method} {path}": Call(
            _route(method, path, **{argument: {"query": "{__typename}"}}), _shows_typename
        )
        for method, argument in (("GET", "params"), ("POST", "json"))
        for path in ("/graphql", "/graphql/")
    },
}
