"""The gateway's configuration."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from market.kit.config import Base, Http, HttpUpstream, Section

Count = Annotated[int, Meta(ge=1)]


class Limits(Section, frozen=True, kw_only=True):
    """What one request may ask for. An order of 1,000 lines written into the document has some 8,000 tokens."""

    tokens: Count = 10_000
    # Selection sets within each other; the introspection of GraphiQL has 13.
    depth: Count = 16
    aliases: Count = 50
    # Fields after fragments are spread.
    fields: Count = 500
    # Things on all the pages that the request asks for, at the pages' own limits.
    list_items: Count = 2000


class Documents(Section, frozen=True, kw_only=True):
    """How many documents are kept parsed, validated and compiled, and how long a text may be for that."""

    count: Count = 500
    characters: Count = 8000


class Config(Base, frozen=True, forbid_unknown_fields=True, kw_only=True):
    http: Http
    products: HttpUpstream
    orders: HttpUpstream
    limits: Limits = Limits()
    documents: Documents = Documents()
    # A document is compiled once into a plan. Off: graphql-core executes everything.
    compile: bool = True
