"""What the peers need beside the shop, and whether it is here."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec

from benchmarks.lab import ROOT

PYTHON = "the packages of requirements/bench.lock"
NODE = "Node and npm"
_MODULES = ("fastapi", "sqlalchemy", "psycopg", "aiokafka", "strawberry", "ariadne", "aiodataloader")
MERCURIUS = ROOT / "benchmarks" / "peers" / "mercurius"


@cache
def there(need: str) -> bool:
    """Whether that is installed. Node's packages are fetched when they are needed."""
    if need == PYTHON:
        return all(find_spec(name) for name in _MODULES)
    return shutil.which("node") is not None and shutil.which("npm") is not None


def missing(needs: Iterable[str]) -> list[str]:
    """What is not here, each once."""
    return [need for need in dict.fromkeys(needs) if not there(need)]
