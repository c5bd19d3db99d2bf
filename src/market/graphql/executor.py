"""Runs a prepared document and writes the answer's JSON: by its plan, or by graphql-core where there is none."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from graphql import GraphQLSchema

from market.graphql import schema as core
from market.graphql.documents import Error, Prepared, request_error
from market.graphql.service import Ask, Shop


class Result(NamedTuple):
    """The response's JSON. Not `began`: a request error, without data."""

    began: bool
    body: bytes


def failed(errors: list[Error]) -> Result:
    """The answer to a request that did not begin."""
    return Result(False, msgspec.json.encode({"errors": errors}))


class Executor:
    """Runs operations against the shop."""

    def __init__(self, schema: GraphQLSchema, shop: Shop, *, list_items: int, compiled: bool) -> None:
        self._schema = schema
        self._shop = shop
        self._list_items = list_items
        self._compiled = compiled

    async def run(self, prepared: Prepared, variables: dict[str, Any]) -> Result:
        """The answer. What fails within it stands among its errors."""
        if prepared.errors:
            return failed(prepared.errors)
        assert prepared.document is not None
        assert prepared.operation is not None
        ask = Ask(self._list_items)
        name = prepared.operation.name.value if prepared.operation.name else None
        result = await core.run(self._schema, prepared.document, name, variables, self._shop, ask)
        errors = list(result.errors or [])
        if result.data is None:
            return failed([request_error(e) | {"extensions": {"code": "BAD_INPUT", "field": "variables"}} for e in errors])
        answer: dict[str, Any] = {"data": result.data}
        if errors:
            answer["errors"] = [e.formatted for e in errors]
        return Result(True, msgspec.json.encode(answer))
