"""The table of all limits in docs/operations.md, compared with the defaults of the configuration."""

from __future__ import annotations

import importlib
import re
import types
import typing
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import UNSET, Struct
from msgspec.structs import NODEFAULT, FieldInfo

SERVICES = ("products", "orders", "inventory", "notifications", "graphql", "storefront")
ROOT = Path(__file__).parents[2]
OPERATIONS = ROOT / "docs/operations.md"
# Numbers that are addresses, not limits.
ADDRESSES = {"port"}


def numbers(config_type: type[Struct], instance: Any = UNSET, prefix: str = "") -> dict[str, Any]:
    """Return the default of each numeric key; UNSET if it has none, None if the default is no limit."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(config_type, include_extras=True)
    for field in msgspec.structs.fields(config_type):
        key = f"{prefix}{field.encode_name}"
        default = default_of(field) if instance is UNSET else getattr(instance, field.name)
        alternatives = [plain(alternative) for alternative in members(hints[field.name])]
        sections = [a for a in alternatives if isinstance(a, type) and issubclass(a, Struct)]
        if sections:
            section = default if isinstance(default, Struct) else UNSET
            section_type = sections[0] if section is UNSET else type(section)
            found |= numbers(section_type, section, f"{key}.")
        elif (int in alternatives or float in alternatives) and field.name not in ADDRESSES:
            found[key] = default
    return found


def members(annotation: Any) -> tuple[Any, ...]:
    is_union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if is_union else (annotation,)


def plain(annotation: Any) -> Any:
    """Return the type without its constraints."""
    return typing.get_args(annotation)[0] if typing.get_origin(annotation) is typing.Annotated else annotation


def default_of(field: FieldInfo) -> Any:
    if field.default_factory is not NODEFAULT:
        return field.default_factory()
    return UNSET if field.default is NODEFAULT else field.default


def configured() -> dict[str, dict[str, Any]]:
    """Return the default of each numeric key by service."""
    found: dict[str, dict[str, Any]] = {}
    for service in SERVICES:
        config_type = importlib.import_module(f"market.{service}.config").Config
        for key, default in numbers(config_type).items():
            found.setdefault(key, {})[service] = default
    return found


def as_text(key: str, value: Any) -> str:
    """Return a default as the table has it."""
    if value is UNSET:
        return "must be set"
    if value is None:
        return "none"
    if key.endswith("bytes") and value >= 1024 and value % 1024 == 0:
        return f"{value >> 20} MiB" if value % (1 << 20) == 0 else f"{value >> 10} KiB"
    if key.endswith("seconds"):
        return f"{value:g} s" if value < 10_000 else f"{value:,.0f} s"
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


def cells(key: str, defaults: dict[str, Any]) -> tuple[str, str]:
    """Return the services that have the key, and its default, with those of services that differ."""
    texts = {service: as_text(key, default) for service, default in defaults.items()}
    [(common, _)] = Counter(texts.values()).most_common(1)
    others = [f"{service} {text}" for service, text in texts.items() if text != common]
    return "all" if len(texts) == len(SERVICES) else ", ".join(texts), "; ".join([common, *others])


def documented() -> dict[str, tuple[str, str]]:
    """Return services and default of each key in the table."""
    section = OPERATIONS.read_text().partition("\n## All limits\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z_.]+)` \| ([^|]+) \| ([^|]+) \| [^|]+ \| [^|]+ \|$", section, re.MULTILINE)
    return {key: (services, default) for key, services, default in rows}


def metrics() -> set[str]:
    sources = "".join(path.read_text() for path in (ROOT / "src/market").rglob("*.py"))
    return set(re.findall(r'"(market_[a-z_]+)"', sources))


def test_the_table_has_every_number_of_the_configuration_with_its_default() -> None:
    expected = {key: cells(key, defaults) for key, defaults in configured().items()}
    found = documented()
    wrong = {key: expected[key] for key in expected if found.get(key) != expected[key]}
    assert not wrong, "\n".join(f"| `{key}` | {services} | {default} |" for key, (services, default) in wrong.items())
    assert set(found) == set(expected)


def test_every_metric_that_the_documentation_names_exists() -> None:
    named = set(re.findall(r"`(market_[a-z_]+)", OPERATIONS.read_text()))
    assert named - metrics() == set()


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("a.max_bytes", 16_777_216, "16 MiB"),
        ("a.max_bytes", 32_768, "32 KiB"),
        ("a.max_bytes", 1000, "1,000"),
        ("a_seconds", 0.05, "0.05 s"),
        ("a_seconds", 86_400.0, "86,400 s"),
        ("a", 4096, "4,096"),
        ("a", None, "none"),
    ],
)
def test_defaults_are_written_with_units(key: str, value: Any, text: str) -> None:
    assert as_text(key, value) == text


def test_a_default_that_differs_between_services_is_named() -> None:
    assert cells("n", {"products": 1, "orders": 2, "graphql": 1}) == ("products, orders, graphql", "1; orders 2")
