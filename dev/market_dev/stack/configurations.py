"""The configuration files of the services in a stack."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from market_dev.stack.sign_in import SignIn
from market_dev.stack.topology import SERVICES, config_directory


class Configurations:
    """The files of the package; where values are merged into one, the result is in the data directory."""

    def __init__(self, directory: Path, overrides: Mapping[str, Any], sign_in: SignIn | None) -> None:
        """`overrides`: by service, values that take precedence over those of the sign-in."""
        self._directory = directory / "config"
        signing_in = {} if sign_in is None else {name: sign_in.configuration(name) for name in SERVICES}
        self._overrides: dict[str, Any] = _merged({k: v for k, v in signing_in.items() if v}, dict(overrides))

    def path(self, service: str) -> Path:
        """Return the configuration file of the service."""
        return (self._directory if service in self._overrides else config_directory()) / f"{service}.yaml"

    def write(self) -> None:
        """Write the files into which values are merged."""
        for service, overrides in self._overrides.items():
            tree = yaml.safe_load((config_directory() / f"{service}.yaml").read_text("utf-8"))
            path = self.path(service)
            path.parent.mkdir(exist_ok=True)
            path.write_text(yaml.safe_dump(_merged(tree, overrides), allow_unicode=True), "utf-8")


def _merged(tree: Any, overrides: Any) -> Any:
    if isinstance(tree, dict) and isinstance(overrides, dict):
        return {**tree, **{key: _merged(tree.get(key), value) for key, value in overrides.items()}}
    return overrides
