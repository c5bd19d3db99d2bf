#!/usr/bin/env python3
"""Check that the tables of files in docs/architecture.md describe every service.

Fails for a file or sub-package that the tables do not have, for a row that no service has, for an `__init__.py` that is
not empty, and for an import that enters a sub-package through another module than the table's (except in app.py).

scripts/check_layout.py [ROOT]   # ROOT: the checkout, by default the one of this script
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

SERVICES = ("products", "orders", "inventory", "notifications", "graphql", "storefront")
_FRONT_FILE = re.compile(r"^\| `([\w.]+/?)` \|", re.MULTILINE)
_SUB_PACKAGE = re.compile(r"^\| (\w+) \| `(\w+)/` \| ((?:`\w+\.py`(?:, )?)+) \|", re.MULTILINE)


def check(root: Path) -> list[str]:
    """Return one line for each difference between the tables and the services."""
    text = (root / "docs" / "architecture.md").read_text("utf-8")
    front_files = set(_FRONT_FILE.findall(text))
    entries = {(service, name): re.findall(r"(\w+)\.py", cell) for service, name, cell in _SUB_PACKAGE.findall(text)}
    errors, found = [], set()
    for service in SERVICES:
        folder = root / "src" / "market" / service
        for path in sorted(folder.iterdir()):
            name = f"{path.name}/" if path.is_dir() else path.name
            if name in ("__pycache__/", "__init__.py"):
                continue
            found.add(name)
            if (service, path.name) in entries:
                errors += _entered_elsewhere(folder, path.name, entries[service, path.name])
            elif name not in front_files:
                errors.append(f"{path.relative_to(root)}: not in the tables of docs/architecture.md")
        for path in sorted(folder.rglob("__init__.py")):
            if path.read_text("utf-8").strip():
                errors.append(f"{path.relative_to(root)}: must be empty")
    errors += [f"docs/architecture.md: no service has {name}" for name in sorted(front_files - found)]
    for (service, name), modules in sorted(entries.items()):
        for module in modules:
            if not (root / "src" / "market" / service / name / f"{module}.py").exists():
                errors.append(f"docs/architecture.md: {service} has no {name}/{module}.py")
    return errors


def _entered_elsewhere(service: Path, package: str, entries: list[str]) -> list[str]:
    """Return the imports from outside the sub-package, other than those of app.py, that bypass its entry modules."""
    prefix = f"market.{service.name}.{package}"
    errors = []
    for path in sorted(service.rglob("*.py")):
        if path.is_relative_to(service / package) or path == service / "app.py":
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom | ast.Import):
                continue
            base = (node.module or "") if isinstance(node, ast.ImportFrom) else ""
            for name in node.names:
                full = f"{base}.{name.name}".lstrip(".")
                if full.startswith(f"{prefix}.") and full.removeprefix(f"{prefix}.").split(".")[0] not in entries:
                    errors.append(
                        f"{path.relative_to(service.parent)}:{node.lineno}: imports {full}, "
                        f"but {package}/ is entered through {' and '.join(entries)}"
                    )
    return errors


def main() -> int:
    errors = check(Path(sys.argv[1]) if sys.argv[1:] else Path(__file__).parents[1])
    print(*errors, sep="\n", end="\n" if errors else "")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
