"""The engine's entry: prepares documents and executes them, by their plan, or by graphql-core if there is none."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from graphql import get_variable_values

from market.graphql.config import DocumentCacheSize, Limits
from market.graphql.engine import resolvers
from market.graphql.engine.compiler import MAX_CONDITIONS, compile_plan
from market.graphql.engine.documents import DocumentCache, PreparedDocument
from market.graphql.engine.errors import Error, execution_error, field_error, request_error
from market.graphql.engine.limits import ItemBudget
from market.graphql.engine.plan import Plan
from market.graphql.engine.selections import conditions
from market.graphql.service import Deps
from market.kit.errors import Problem

_MAX_ERRORS = 20


class Result(NamedTuple):
    """A response's JSON. `executed` is false for a request error: the response then has no data."""

    executed: bool
    body: bytes


def rejected(problem: Problem) -> Result:
    """Return the response to a request that could not be read as a GraphQL request."""
    error = field_error(problem)
    return _request_errors([{"message": str(error), "extensions": error.extensions}])


class Executor:
    """Executes the operations of the published schema."""

    def __init__(self, deps: Deps, limits: Limits, cache_size: DocumentCacheSize, *, compile_plans: bool) -> None:
        self._deps = deps
        self._schema = resolvers.load_schema()
        self._list_items = limits.list_items
        self._documents = DocumentCache(self._schema, limits, cache_size)
        self._compile_plans = compile_plans

    def prepare(self, text: str, operation_name: str | None) -> PreparedDocument:
        """Return the document, ready to execute, or with its errors."""
        return self._documents.get(text, operation_name)

    async def execute(self, prepared: PreparedDocument, variables: dict[str, Any]) -> Result:
        """Return the response. A field that fails is null, and its error is in the response."""
        if prepared.errors:
            return _request_errors(prepared.errors)
        assert prepared.document is not None
        assert prepared.operation is not None
        coerced = get_variable_values(
            self._schema, prepared.operation.variable_definitions or (), variables, max_errors=_MAX_ERRORS
        )
        if isinstance(coerced, list):
            return _request_errors([request_error(e, "variables") for e in coerced])
        budget = ItemBudget(self._list_items)
        plan = self._plan(prepared, coerced.coerced) if self._compile_plans else None
        if plan is not None:
            return Result(True, await plan.execute(self._deps, budget, coerced))
        name = prepared.operation.name.value if prepared.operation.name else None
        context = resolvers.ResolverContext(self._deps, budget)
        result = await resolvers.execute(self._schema, prepared.document, name, variables, context)
        response: dict[str, Any] = {"data": result.data}
        if result.errors:
            response["errors"] = [execution_error(e) for e in result.errors]
        return Result(True, msgspec.json.encode(response))

    def _plan(self, prepared: PreparedDocument, variables: dict[str, Any]) -> Plan | None:
        """Return the plan for these values of the document's conditions, compiled if it is not cached, or None."""
        assert prepared.document is not None
        assert prepared.operation is not None
        if prepared.conditions is None:
            prepared.conditions = conditions(prepared.document)
        values = tuple([variables.get(name) for name in prepared.conditions])
        if values in prepared.plans:
            cached: Plan | None = prepared.plans[values]
            return cached
        plan = None
        # A null condition is an error, which graphql-core reports. It also executes what would need too many plans.
        if len(values) <= MAX_CONDITIONS and not any(v is None for v in values):
            decided = {name: bool(value) for name, value in zip(prepared.conditions, values, strict=True)}
            plan = prepared.plans[values] = compile_plan(self._schema, prepared.document, prepared.operation, decided)
        return plan


def _request_errors(errors: list[Error]) -> Result:
    return Result(False, msgspec.json.encode({"errors": errors}))
