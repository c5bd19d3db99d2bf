"""docs/clients.md names the versions of the clients' lock files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CLIENTS = ROOT / "tests" / "clients"
# | client | package version, ... | `folder` | what to know |
_ROW = re.compile(r"^\| [^|]+ \| ([^|]+) \| `([\w/-]+)` \| [^|]+ \|$", re.MULTILINE)
ROWS = {folder: versions for versions, folder in _ROW.findall((ROOT / "docs" / "clients.md").read_text("utf-8"))}


def locked_versions(folder: Path) -> dict[str, str]:
    """Return the versions by package, artifact or module, from the folder's lock file."""
    if (lock := folder / "package-lock.json").exists():
        packages = json.loads(lock.read_text("utf-8"))["packages"]
        return {name.removeprefix("node_modules/"): package.get("version", "") for name, package in packages.items()}
    if (lock := folder / "requirements.lock").exists():
        return dict(re.findall(r"^([\w.-]+)==([^\s;]+)", lock.read_text("utf-8"), re.MULTILINE))
    if (lock := folder / "go.mod").exists():
        return dict(re.findall(r"^(?:require)?\s*([\w./-]+\.[\w./-]+) v(\S+)", lock.read_text("utf-8"), re.MULTILINE))
    artifact = r"<artifactId>([^<]+)</artifactId>\s*<version>([^<]+)</version>"
    return dict(re.findall(artifact, (folder / "pom.xml").read_text("utf-8")))


def test_every_client_has_a_row() -> None:
    locks = ("package.json", "requirements.in", "go.mod", "pom.xml")
    folders = {str(path.parent.relative_to(CLIENTS)) for lock in locks for path in CLIENTS.rglob(lock)}
    assert folders == set(ROWS)


@pytest.mark.parametrize("folder", sorted(ROWS))
def test_the_versions_are_those_of_the_lock_file(folder: str) -> None:
    locked = locked_versions(CLIENTS / folder)
    for stated in ROWS[folder].split(", "):
        name, version = stated.strip("`").rsplit(" ", 1)
        assert locked.get(name) == version, name
