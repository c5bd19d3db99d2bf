"""The lists of files that go into the images."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.utils import canonicalize_name

from tests.deploy.conftest import ROOT

TESTBED = (ROOT / "deploy/image/testbed.files").read_text().split()


def modules(name: str) -> list[Path]:
    path = ROOT / "dev" / name
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


@pytest.mark.parametrize("name", [name for name in TESTBED if (ROOT / "dev" / name).suffix in ("", ".py")])
def test_the_testbed_has_every_module_of_market_dev_that_it_imports(name: str) -> None:
    for path in modules(name):
        for module in imported(path):
            if module.startswith("market_dev."):
                file = module.replace(".", "/")
                assert any(f"{file}.py" == f or file == f or file.startswith(f"{f}/") for f in contained()), (
                    path,
                    module,
                )


@pytest.mark.parametrize(
    "image", ["products", "orders", "inventory", "notifications", "graphql", "storefront", "testbed"]
)
def test_every_package_that_an_image_imports_is_in_its_lock(image: str) -> None:
    lock = (ROOT / "requirements" / f"{image}.lock").read_text()
    locked = {canonicalize_name(name) for name in re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE)}
    distributions = packages_distributions()
    entries = [f"market.{image}.__main__"]
    if image == "testbed":
        entries = ["market_dev.commands.demo", "market_dev.mailcatcher.__main__"]
    missing = {}
    for module, importer in reachable(entries).items():
        top = module.partition(".")[0]
        # compression.zstd is in the standard library since Python 3.14. Earlier versions have another package.
        if top in ("market", "market_dev", "compression") or top in sys.stdlib_module_names:
            continue
        if not {canonicalize_name(name) for name in distributions.get(top, [])} & locked:
            missing[module] = importer
    assert missing == {}


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports, also inside functions, but not those for type checkers only."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            # A name may be a module of the package.
            submodules = {f"{node.module}.{alias.name}" for alias in node.names}
            own = {module for module in submodules if source(module) is not None}
            found |= own or {node.module}
    return found


def source(module: str) -> Path | None:
    """Return the file of a module of the project, or None if it is not one."""
    path = Path(*module.split("."))
    candidates = [ROOT / folder / file for folder in ("src", "dev") for file in (f"{path}.py", path / "__init__.py")]
    return next((file for file in candidates if file.exists()), None)


def reachable(entries: list[str]) -> dict[str, str]:
    """Return every module that the entries import, directly or not, with a module that imports it."""
    importers = dict.fromkeys(entries, "")
    pending = list(entries)
    while pending:
        module = pending.pop()
        if (path := source(module)) is not None:
            for found in imported(path) - importers.keys():
                importers[found] = module
                pending.append(found)
    return importers


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


def test_on_docker_every_service_has_its_configuration_finds_the_hosts_in_it_and_may_finish() -> None:
    services = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
    networks = [service["networks"]["default"] for service in services.values() if "networks" in service]
    known = {*services, *(alias for network in networks for alias in network["aliases"])}
    for path in (ROOT / "deploy/base/services/config").iterdir():
        volumes = services[path.stem]["volumes"]
        assert f"./deploy/base/services/config/{path.name}:/etc/market/config.yaml:ro" in volumes
        found = re.findall(r"([a-z][a-z0-9.-]*):\d|host: ([a-z][a-z0-9.-]*)", path.read_text())
        assert {host or name for host, name in found} <= known, path.stem
        shutdown = yaml.safe_load(path.read_text())["shutdown"]
        grace_seconds = int(services[path.stem]["stop_grace_period"].removesuffix("s"))
        assert grace_seconds > shutdown["drain_seconds"] + shutdown["grace_seconds"], path.stem
