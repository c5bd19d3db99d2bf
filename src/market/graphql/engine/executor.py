"""Runs a prepared document and writes the answer's JSON: by its plan, or by graphql-core where there is none."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from graphql import GraphQLError, GraphQLSchema, get_variable_values

from market.graphql.engine import resolvers as core
from market.graphql.engine.compiler import MOST_CONDITIONS, compiled, conditions
from market.graphql.engine.documents import Error, Prepared, request_error
from market.graphql.engine.plan import Plan
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
        coerced = get_variable_values(
            self._schema, prepared.operation.variable_definitions or (), variables, max_errors=20
        )
        if isinstance(coerced, list):
            return failed([request_error(e, "variables") for e in coerced])
        ask = Ask(self._list_items)
        plan = self._plan(prepared, coerced.coerced) if self._compiled else None
        if plan is not None:
            return Result(True, await plan.run(self._shop, ask, coerced))
        name = prepared.operation.name.value if prepared.operation.name else None
        result = await core.run(self._schema, prepared.document, name, variables, self._shop, ask)
        answer: dict[str, Any] = {"data": result.data}
        if result.errors:
            answer["errors"] = [field_error(e) for e in result.errors]
        return Result(True, msgspec.json.encode(answer))

    def _plan(self, prepared: Prepared, variables: dict[str, Any]) -> Plan | None:
        """The plan for these values of the document's conditions, made where it is not there yet."""
        assert prepared.document is not None
        assert prepared.operation is not None
        if prepared.conditions is None:
            prepared.conditions = conditions(prepared.document)
        values = tuple([variables.get(name) for name in prepared.conditions])
        if values in prepared.plans:
            known: Plan | None = prepared.plans[values]
            return known
        plan = None
        # A condition that is null is an error of its own; the many are graphql-core's.
        if len(values) <= MOST_CONDITIONS and not any(v is None for v in values):
            asked = {name: bool(value) for name, value in zip(prepared.conditions, values, strict=True)}
            plan = prepared.plans[values] = compiled(self._schema, prepared.document, prepared.operation, asked)
        return plan


def field_error(e: GraphQLError) -> Error:
    """graphql-core's error at a path. One of its own is about an argument whose variable does not fit."""
    error: Error = dict(e.formatted)
    cause: Exception | None = e
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    error.setdefault("extensions", {"code": "BAD_INPUT" if cause is None else "INTERNAL"})
    return error
