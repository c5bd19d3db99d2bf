"""A package can be left out of another one's import, and is imported as usual afterwards."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from market.kit.optional_imports import without


def test_a_package_is_left_out_of_the_import_of_another_one_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "optional_package.py").write_text("value = 1\n")
    (tmp_path / "user_of_it.py").write_text(
        "try:\n    import optional_package as found\nexcept ImportError:\n    found = None\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with without("optional_package"):
            assert importlib.import_module("user_of_it").found is None
        assert importlib.import_module("optional_package").value == 1
        del sys.modules["user_of_it"]
        with without("optional_package"):
            assert importlib.import_module("user_of_it").found.value == 1
        assert sys.modules["optional_package"].value == 1
    finally:
        sys.modules.pop("user_of_it", None)
        sys.modules.pop("optional_package", None)
