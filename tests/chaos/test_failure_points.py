"""The tables of docs/chaos/README.md are complete: every failure point with a test that arms it, every difference of
reconcile, and no test that does not exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from market.inventory.domain import FAILURE_POINTS as INVENTORY
from market.notifications.domain import FAILURE_POINTS as NOTIFICATIONS
from market.orders.domain import FAILURE_POINTS as ORDERS
from market.orders.reconciliation.differences import DifferenceType
from market.orders.reconciliation.repairs import REPAIRS
from market.products.domain import FAILURE_POINTS as PRODUCTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "chaos" / "README.md").read_text("utf-8")
POINTS = (*ORDERS, *INVENTORY, *PRODUCTS, *NOTIFICATIONS)
TEST_REFERENCE = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def parse(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"))


def functions_in(path: str) -> set[str]:
    """The top-level functions of a file; none if it does not exist."""
    if not (ROOT / path).is_file():
        return set()
    return {node.name for node in parse(path).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def strings_in(path: str) -> set[str]:
    """The string constants of a file, except in `test_every_failure_point_is_known`, which arms nothing."""
    found: set[str] = set()
    for node in parse(path).body:
        if getattr(node, "name", "") != "test_every_failure_point_is_known":
            found |= {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return found


def listed_tests() -> dict[str, list[tuple[str, str]]]:
    """The (file, function) of each point's tests, from the page."""
    lines = (line for line in PAGE.splitlines() if re.match(r"\| `\w+\.[\w-]+` \|", line))
    return {line.split("`")[1]: TEST_REFERENCE.findall(line) for line in lines}


def test_the_page_lists_every_failure_point_in_order_and_no_other() -> None:
    assert tuple(listed_tests()) == POINTS


@pytest.mark.parametrize("point", POINTS)
def test_every_failure_point_has_a_test_that_arms_it(point: str) -> None:
    tests = listed_tests()[point]
    assert tests
    for path, _ in tests:
        assert point in strings_in(path), f"{path} does not contain {point}"


def test_every_failure_point_is_in_the_code() -> None:
    code = "\n".join(p.read_text("utf-8") for p in (ROOT / "src" / "market").rglob("*.py") if p.name != "domain.py")
    assert [point for point in POINTS if f'"{point}"' not in code] == []


def test_the_page_lists_every_difference_of_reconcile_and_which_are_repaired() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", PAGE, re.MULTILINE)
    assert [name for name, _ in rows] == [kind.value for kind in DifferenceType]
    assert {name for name, repair in rows if repair != "no"} == set(REPAIRS)


def test_every_test_that_the_page_names_exists() -> None:
    missing = [f"{path}::{name}" for path, name in TEST_REFERENCE.findall(PAGE) if name not in functions_in(path)]
    assert missing == []
