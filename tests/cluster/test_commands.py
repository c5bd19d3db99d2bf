"""The commands of docs/operations.md that only look at something: they work as they are printed there."""

from __future__ import annotations

import re

import pytest

from tests.cluster import cluster

_CONSOLE = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(*beginnings: str) -> list[str]:
    """Return the commands of the page that begin in one of these ways, with their continuation lines."""
    blocks = _CONSOLE.findall((cluster.ROOT / "docs/operations.md").read_text())
    found = [command.strip() for block in blocks for command in block.replace("\\\n", " ").split("$ ") if command]
    return [command for command in found if command.startswith(beginnings)]


LOOKING = commands("kubectl -n market exec")


@pytest.mark.parametrize("command", LOOKING)
def test_a_command_that_looks_at_something_succeeds(shop: str, command: str) -> None:
    done = cluster.run("bash", "-c", command, seconds=120)
    assert done.stdout.strip()


def test_the_page_has_such_commands() -> None:
    assert len(LOOKING) >= 2


def test_the_log_of_one_request_is_looked_for_in_the_pods_of_all_services(shop: str) -> None:
    [command] = [one for one in commands("kubectl -n market logs") if "grep" in one]
    # All lines of all pods, which have been ready once.
    log = cluster.run("bash", "-c", command.split("|")[0].replace("--since=10m", "")).stdout
    for name in cluster.SERVICES:
        for pod in cluster.names(name):
            assert f"[pod/{pod}/service]" in log
