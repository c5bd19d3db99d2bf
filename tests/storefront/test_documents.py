"""The storefront's GraphQL documents, compared with the published schema."""

from __future__ import annotations

from pathlib import Path

import pytest
from graphql import build_schema, parse, validate

from market.storefront.documents import operations

SCHEMA = build_schema((Path(__file__).parents[2] / "graphql/schema.graphql").read_text("utf-8"))
DOCUMENTS = {name: text for name, text in vars(operations).items() if name.isupper() and not name.startswith("_")}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_is_valid_by_the_published_schema(name: str) -> None:
    assert validate(SCHEMA, parse(DOCUMENTS[name])) == []


def test_the_documents_are_found() -> None:
    assert len(DOCUMENTS) == 9
