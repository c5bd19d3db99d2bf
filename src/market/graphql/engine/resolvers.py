"""The published schema, and the use case behind each of its root fields."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from graphql import GraphQLSchema, assert_valid_schema, build_schema

from market.graphql import service
from market.graphql.domain import snake_case


@dataclass(frozen=True)
class RootField:
    """A root field's use case, and the parameters whose name is not the argument's in snake_case."""

    use_case: Callable[..., Awaitable[Any]]
    parameters: dict[str, str] = field(default_factory=dict)

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return GraphQL's arguments by the names of the use case's parameters."""
        return {self.parameters.get(name) or snake_case(name): value for name, value in arguments.items()}


ROOT_FIELDS = {
    "product": RootField(service.get_product, {"id": "product_id"}),
    "products": RootField(service.list_products),
    "order": RootField(service.get_order, {"id": "order_id"}),
    "orders": RootField(service.list_orders),
    "createProduct": RootField(service.create_product, {"input": "product"}),
    "updateProduct": RootField(service.update_product, {"input": "product"}),
    "deleteProduct": RootField(service.delete_product, {"id": "product_id"}),
    "createOrder": RootField(service.create_order, {"input": "order"}),
    "deleteOrder": RootField(service.cancel_order, {"id": "order_id"}),
}


def load_schema() -> GraphQLSchema:
    """Return the published schema, schema.graphql."""
    schema = build_schema(files("market.graphql").joinpath("schema.graphql").read_text("utf-8"))
    assert_valid_schema(schema)
    return schema
