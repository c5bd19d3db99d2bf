"""The tables of docs/faults/README.md: no failure point without a test that arms it, no difference of reconcile left out, and no
test in them that is not there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from market.inventory.domain import POINTS as INVENTORY
from market.notifications.domain import POINTS as NOTIFICATIONS
from market.orders.differences import Kind
from market.orders.domain import POINTS as ORDERS
from market.orders.mending import MENDING
from market.products.domain import POINTS as PRODUCTS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "faults" / "README.md").read_text("utf-8")
POINTS = (*ORDERS, *INVENTORY, *PRODUCTS, *NOTIFICATIONS)
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


@cache
def module(path: str) -> ast.Module:
    return ast.parse((ROOT / path).read_text("utf-8"))


def names_in(path: str) -> set[str]:
    return {node.name for node in module(path).body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def texts_in(path: str) -> set[str]:
    """The string constants of a file, but those of `test_every_failure_point_is_known`, which arms nothing."""
    found: set[str] = set()
    for node in module(path).body:
        if getattr(node, "name", "") != "test_every_failure_point_is_known":
            found |= {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    return found


def rows() -> dict[str, list[tuple[str, str]]]:
    """The tests of each point, from the page."""
    lines = (line for line in PAGE.splitlines() if re.match(r"\| `\w+\.[\w-]+` \|", line))
    return {line.split("`")[1]: NAMED.findall(line) for line in lines}


def test_the_page_has_every_point_in_order_and_no_other() -> None:
    assert tuple(rows()) == POINTS


@pytest.mark.parametrize("point", POINTS)
def test_every_point_has_a_test_that_arms_it(point: str) -> None:
    named = rows()[point]
    assert named
    for path, _ in named:
        assert point in texts_in(path), f"{path} does not name {point}"


def test_every_point_is_in_the_code_where_it_is_reached() -> None:
    code = "\n".join(p.read_text("utf-8") for p in (ROOT / "src" / "market").rglob("*.py") if p.name != "domain.py")
    assert [point for point in POINTS if f'"{point}"' not in code] == []


def test_the_page_has_every_difference_of_reconcile_and_says_which_are_mended() -> None:
    found = re.findall(r"^\| `([\w-]+)` \| ([^|]+) \|", PAGE, re.MULTILINE)
    assert [name for name, _ in found] == [kind.value for kind in Kind]
    assert {name for name, mended in found if mended != "no"} == set(MENDING)


def test_every_test_that_the_page_names_is_there() -> None:
    assert [f"{path}::{name}" for path, name in NAMED.findall(PAGE) if name not in names_in(path)] == []
