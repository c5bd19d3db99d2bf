"""What the peers require beside the shop, and whether it is installed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec

from benchmarks.load import ROOT

PYTHON = "the packages of requirements/bench.lock"
NODE = "Node and npm"
MERCURIUS = ROOT / "benchmarks" / "peers" / "mercurius"
_MODULES = (
    *("fastapi", "litestar", "advanced_alchemy", "oscar", "sqlalchemy", "psycopg", "aiokafka"),
    *("strawberry", "ariadne", "aiodataloader"),
)


@cache
def is_installed(requirement: str) -> bool:
    """Return whether PYTHON or NODE is installed. The packages of Node are fetched when they are needed."""
    if requirement == PYTHON:
        return all(find_spec(name) for name in _MODULES)
    return shutil.which("node") is not None and shutil.which("npm") is not None


def missing(requirements: Iterable[str], is_installed: Callable[[str], bool] = is_installed) -> list[str]:
    """Return what is not installed, without duplicates."""
    return [r for r in dict.fromkeys(requirements) if not is_installed(r)]
