"""`market up` as a user runs it: a process of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.ports import free_port_base
from tests.support.processes import MarketUp


@pytest.fixture(scope="session")
def make_up(server_directory: Path) -> Iterator[Callable[..., MarketUp]]:
    """Make a `market up` with its own ports and, by default, its own data; it is stopped at the end."""
    made: list[MarketUp] = []

    def make(*options: str, data: Path | None = None, port_base: int | None = None) -> MarketUp:
        up = MarketUp(data or server_directory / f"up-{len(made)}", port_base or free_port_base(), *options)
        made.append(up)
        return up

    yield make
    for up in made:
        up.stop()
        shutil.rmtree(up.data, ignore_errors=True)
