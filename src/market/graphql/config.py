"""The gateway's configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from market.kit.config import Base, Http, HttpUpstream, Section

Count = Annotated[int, Meta(ge=1)]


class Limits(Section, frozen=True, kw_only=True):
    """The most that one request may ask for."""

    # An order of 1,000 lines written into the document has some 8,000 tokens.
    tokens: Count = 10_000
    # Nested selection sets. GraphiQL's introspection query has 13.
    depth: Count = 16
    aliases: Count = 50
    # Fields after fragments are spread.
    fields: Count = 500
    # Items on all pages of the request together, counted at the pages' own limits.
    list_items: Count = 2000


class DocumentCacheSize(Section, frozen=True, kw_only=True):
    """How many documents are cached, parsed, validated and compiled, and the longest text that is cached."""

    count: Count = 500
    characters: Count = 8000


class Config(Base, frozen=True, forbid_unknown_fields=True, kw_only=True):
    http: Http
    products: HttpUpstream
    orders: HttpUpstream
    limits: Limits = Limits()
    documents: DocumentCacheSize = DocumentCacheSize()
    # Compile each document into a plan on first use. If off, graphql-core executes every document.
    compile: bool = True
