"""The table of permissions beside the roles of the shop as they were decided, and beside what offers its operations."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from market.contracts import access
from market.kit.auth.permissions import Access
from tests.authorization.operations import SERVICES, TABLES

ROOT = Path(__file__).parents[2]

# Written by hand. By row: anonymous, buyer, merchant, operator.
DECIDED: dict[str, tuple[str, str, str, str]] = {
    "read products": ("yes", "yes", "yes", "yes"),
    "change products, see stock": ("no", "no", "yes", "no"),
    "place an order": ("no", "own", "yes", "no"),
    "read, list an order": ("no", "own", "yes", "yes"),
    "cancel an order": ("no", "own", "yes", "no"),
    "see what could not be sold and what is unfinished": ("no", "no", "yes", "yes"),
    "list dead letters": ("no", "no", "yes", "yes"),
    "reconcile, settle dead letters": ("no", "no", "no", "yes"),
}
OPERATIONS: dict[str, tuple[str, ...]] = {
    "read products": (
        "products GET /api/product",
        "products GET /api/product/{id}",
        "graphql Query.product",
        "graphql Query.products",
    ),
    "change products, see stock": (
        "products POST /api/product",
        "products PUT /api/product",
        "products DELETE /api/product/{id}",
        "products GET /api/product?stock=true",
        "products GET /api/product/{id}?stock=true",
        "graphql Mutation.createProduct",
        "graphql Mutation.updateProduct",
        "graphql Mutation.deleteProduct",
        "graphql Product.stock",
    ),
    "place an order": ("orders POST /api/order", "graphql Mutation.createOrder"),
    "read, list an order": (
        "orders GET /api/order",
        "orders GET /api/order/{id}",
        "graphql Query.order",
        "graphql Query.orders",
    ),
    "cancel an order": ("orders DELETE /api/order/{id}", "graphql Mutation.deleteOrder"),
    "list dead letters": ("notifications GET /api/dead-letters",),
    "see what could not be sold and what is unfinished": (
        "orders GET /api/shortages",
        "orders GET /api/unfinished-orders",
    ),
    "reconcile, settle dead letters": (
        "notifications POST /api/dead-letters/{id}/replay",
        "notifications POST /api/dead-letters/{id}/drop",
        "orders POST /api/unfinished-orders/{id}/retry",
        "commands orders reconcile",
        "commands notifications dead-letters",
        "commands orders migrate",
        "commands products migrate",
        "commands inventory migrate",
    ),
}
CALLERS: dict[str, set[str]] = {
    "products": {"CheckAvaliable", "GetStock", "SetStock", "AddDelivery"},
    "orders": {"Reserve", "ReserveMany", "CancelReserve", "GetStock", "ListReservations"},
}
_BY_NAME = {
    **{name: TABLES[name] for name in ("products", "orders", "notifications", "graphql")},
    "commands": access.COMMANDS,
}


def columns(entry: Access) -> tuple[str, str, str, str]:
    return entry.anonymous.value, entry.buyer.value, entry.merchant.value, entry.operator.value


def test_the_table_grants_each_role_what_was_decided() -> None:
    granted = {
        row: {columns(_BY_NAME[name.split(" ", 1)[0]][name.split(" ", 1)[1]]) for name in names}
        for row, names in OPERATIONS.items()
    }
    assert granted == {row: {decided} for row, decided in DECIDED.items()}


def test_every_entry_about_data_of_the_shop_belongs_to_a_decision() -> None:
    entries = {f"{name} {key}" for name, table in _BY_NAME.items() for key in table}
    assert entries == {name for names in OPERATIONS.values() for name in names}


def test_services_may_read_products_and_nothing_else_over_http() -> None:
    allowed = {
        f"{name} {key}" for name, table in _BY_NAME.items() for key, entry in table.items() if entry.service != "no"
    }
    assert allowed == set(OPERATIONS["read products"])


def test_inventory_is_called_by_the_services_that_were_decided_and_by_no_person() -> None:
    for service, methods in CALLERS.items():
        assert {method for method, entry in access.INVENTORY.items() if service in entry.callers} == methods
    assert {caller for entry in access.INVENTORY.values() for caller in entry.callers} == set(CALLERS)
    assert {columns(entry) for entry in access.INVENTORY.values()} == {("no", "no", "no", "no")}
    # A method without callers is closed to services, too.
    assert all((entry.service == "yes") is bool(entry.callers) for entry in access.INVENTORY.values())


def test_the_table_has_every_command_of_the_services() -> None:
    commands = {f"{service} {name}" for service in SERVICES for name in _commands(service)}
    assert commands == set(access.COMMANDS)


def _commands(service: str) -> list[str]:
    """Return the names of the commands that the service's `__main__` passes to `run`."""
    tree = ast.parse((ROOT / f"src/market/{service}/__main__.py").read_text("utf-8"))
    given: Any = [k.value for node in ast.walk(tree) if isinstance(node, ast.Call) for k in node.keywords]
    return [key.value for value in given if isinstance(value, ast.Dict) for key in value.keys]
