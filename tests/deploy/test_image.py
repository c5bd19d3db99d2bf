"""The lists of files that go into the images."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest
import yaml

from tests.deploy.conftest import ROOT

TESTBED = (ROOT / "deploy/image/testbed.files").read_text().split()


def modules(name: str) -> list[Path]:
    path = ROOT / "dev" / name
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


@pytest.mark.parametrize("name", [name for name in TESTBED if (ROOT / "dev" / name).suffix in ("", ".py")])
def test_the_testbed_has_every_module_of_market_dev_that_it_imports(name: str) -> None:
    for path in modules(name):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("market_dev"):
                module = (node.module or "").replace(".", "/")
                assert any(f"{module}.py" == f or module == f or module.startswith(f"{f}/") for f in contained()), path


def contained() -> list[str]:
    """Return the modules and packages of the image."""
    return [name for name in TESTBED if not name.endswith("__init__.py")]


def test_every_file_of_the_testbed_exists() -> None:
    assert [name for name in TESTBED if not (ROOT / "dev" / name).exists()] == []


def programs() -> list[str]:
    job = next(yaml.safe_load_all((ROOT / "deploy/demo/job.yaml").read_text()))
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    containers = [*job["spec"]["template"]["spec"]["containers"], compose["services"]["demo-catalogue"]]
    return [c["command"][2] for c in containers]


def test_the_programs_in_the_manifests_import_functions_that_exist() -> None:
    kubernetes, docker = programs()
    assert kubernetes == docker
    imports = [node for node in ast.walk(ast.parse(kubernetes)) if isinstance(node, ast.ImportFrom)]
    assert [(node.module, [name.name for name in node.names]) for node in imports] == [
        ("market_dev.commands.demo", ["create_catalogue"])
    ]
    assert callable(importlib.import_module("market_dev.commands.demo").create_catalogue)
