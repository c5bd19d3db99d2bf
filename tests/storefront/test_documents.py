"""The storefront's GraphQL documents, compared with the published schema."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import pytest
from graphql import build_schema, parse, validate

from market.storefront import documents

SCHEMA = build_schema((Path(__file__).parents[2] / "graphql/schema.graphql").read_text("utf-8"))
MODULES = [import_module(f"{documents.__name__}.{module.name}") for module in iter_modules(documents.__path__)]
DOCUMENTS = {
    f"{module.__name__.rpartition('.')[2]}.{name}": text
    for module in MODULES
    for name, text in vars(module).items()
    if name.isupper() and not name.startswith("_")
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_valid_by_the_published_schema(name: str) -> None:
    assert validate(SCHEMA, parse(DOCUMENTS[name])) == []


def test_the_documents_are_found() -> None:
    assert {"operations.LIST_PRODUCTS", "operations.CANCEL_ORDER", "desk_products.LIST_PRODUCTS"} <= DOCUMENTS.keys()
