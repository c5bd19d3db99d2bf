"""Every operation of the shop, read from its contracts, and the table's entry for each."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from graphql import GraphQLObjectType, build_schema
from grpc_health.v1 import health_pb2

from market.contracts import access
from market.contracts import inventory_pb2 as pb
from market.graphql import api as gateway_api
from market.graphql.graphiql.files import StaticFiles
from market.kit.auth.permissions import Access

ROOT = Path(__file__).parents[2]
SERVICES = ("products", "orders", "inventory", "notifications", "graphql")
# A query that needs more than its route does.
STOCK = "?stock=true"
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")

TABLES: Mapping[str, Mapping[str, Access]] = {
    "products": access.PRODUCTS,
    "orders": access.ORDERS,
    "notifications": access.NOTIFICATIONS,
    "graphql": access.GRAPHQL_FIELDS,
    "gateway": access.GRAPHQL_ROUTES,
    "inventory": access.INVENTORY,
    "grpc": access.GRPC_STANDARD,
    **{f"admin of {service}": access.ADMIN for service in SERVICES},
}


@dataclass(frozen=True)
class Operation:
    """An operation. `surface` names the table's part that must have the entry `key`."""

    surface: str
    key: str

    def __str__(self) -> str:
        return f"{self.surface}: {self.key}"

    @property
    def access(self) -> Access:
        """The table's entry. Raises KeyError if there is none."""
        return TABLES[self.surface][self.key]


def operations() -> list[Operation]:
    """Return every operation of the contracts, which know nothing of the table."""
    keys = {
        "products": _rest("products"),
        "orders": _rest("orders"),
        "notifications": _rest("notifications"),
        "graphql": _graphql_fields(),
        "gateway": (*StaticFiles.routes, *(f"{method} {path}" for method in ("GET", "POST") for path in _paths())),
        "inventory": (method.name for method in pb.DESCRIPTOR.services_by_name["Inventory"].methods),
        "grpc": _standard_methods(),
        **{f"admin of {service}": ("GET /healthz", "GET /readyz", "GET /metrics") for service in SERVICES},
    }
    return [Operation(surface, key) for surface, found in keys.items() for key in found]


def _rest(service: str) -> Iterator[str]:
    """Yield the operations of an OpenAPI document; one with the parameter `stock` counts as two."""
    document = json.loads((ROOT / f"openapi/{service}.json").read_text("utf-8"))
    for path, item in document["paths"].items():
        for method in item.keys() & _METHODS:
            yield f"{method.upper()} {path}"
            if any(parameter.get("name") == "stock" for parameter in item[method].get("parameters", ())):
                yield f"{method.upper()} {path}{STOCK}"


def _graphql_fields() -> Iterator[str]:
    """Yield the root fields, and the field of a product that not everybody may see."""
    schema = build_schema((ROOT / "graphql/schema.graphql").read_text("utf-8"))
    for root in (schema.query_type, schema.mutation_type, schema.subscription_type):
        if root is not None:
            yield from (f"{root.name}.{field}" for field in root.fields)
    product = schema.get_type("Product")
    assert isinstance(product, GraphQLObjectType)
    yield from (f"Product.{field}" for field in product.fields if field == "stock")


def _paths() -> tuple[str, str]:
    return gateway_api.PATH, f"{gateway_api.PATH}/"


def _standard_methods() -> Iterator[str]:
    health = health_pb2.DESCRIPTOR.services_by_name["Health"]
    yield from (f"{health.full_name}/{method.name}" for method in health.methods)
    yield from (f"grpc.reflection.{v}.ServerReflection/ServerReflectionInfo" for v in ("v1", "v1alpha"))
