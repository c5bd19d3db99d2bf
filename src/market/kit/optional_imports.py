"""Importing a library without the optional packages that it would import, too, because they are installed.

They would take memory and start-up time in every process, for functions that the services do not use.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without(package: str) -> Iterator[None]:
    """Let imports in the block find the package not installed, unless it was imported before."""
    if package in sys.modules:
        yield
        return
    # Python's own way to say that a module cannot be imported.
    sys.modules[package] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[package]
