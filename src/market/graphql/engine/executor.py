"""The engine's entry: prepares documents and executes them by their plans."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from graphql import GraphQLError, get_variable_values

from market.graphql.config import DocumentCacheSize, Limits, TrustedDocuments
from market.graphql.domain import FieldError
from market.graphql.engine.compiler import compile_plan
from market.graphql.engine.documents import DocumentCache, PreparedDocument
from market.graphql.engine.errors import Error, field_error, request_error
from market.graphql.engine.plan import Plan, Resources
from market.graphql.engine.resolvers import load_schema
from market.graphql.engine.trusted import Trusted
from market.graphql.memory.budget import RequestMemory
from market.graphql.service import Deps
from market.kit.errors import BadInput, Problem

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

    def __init__(
        self,
        deps: Deps,
        limits: Limits,
        cache_size: DocumentCacheSize,
        trusted_documents: TrustedDocuments | None = None,
    ) -> None:
        """Load the schema and the trusted documents. Raises InvalidTrustedDocuments, which is an OSError."""
        self._deps = deps
        self._limits = limits
        self.schema = load_schema()
        self.documents = DocumentCache(self.schema, limits, cache_size)
        self._trusted = Trusted.load(trusted_documents, self.documents)

    async def prepare(
        self, text: str | None, operation_name: str | None, memory: RequestMemory, *, document_id: str | None = None
    ) -> PreparedDocument:
        """Return the document, ready to execute, or with its errors.

        text: None for the trusted document with the id `document_id`

        Raises BadInput, Overloaded.
        """
        try:
            prepared = self.documents.get(self._trusted.text(text, document_id), operation_name)
        except FieldError as e:
            return PreparedDocument(errors=[{"message": str(e), "extensions": e.extensions}])
        await memory.take(prepared.size)
        return prepared

    async def execute(
        self,
        prepared: PreparedDocument,
        variables: dict[str, Any],
        memory: RequestMemory,
        *,
        admit: Callable[[int], Awaitable[None]] | None = None,
    ) -> Result:
        """Return the response. A field that fails is null, and its error is in the response.

        `admit` is called with the number of items that the response's pages may have, before a field is executed.
        Raises what `admit` raises, and BadInput or Overloaded if the plan does not fit into the request's memory.
        """
        if prepared.errors:
            return _request_errors(prepared.errors)
        assert prepared.operation is not None
        coerced = get_variable_values(
            self.schema, prepared.operation.variable_definitions or (), variables, max_errors=_MAX_ERRORS
        )
        if isinstance(coerced, list):
            return _request_errors([request_error(e, "variables") for e in coerced])
        values: list[bool] = []
        for name in prepared.conditions:
            value = coerced.coerced.get(name)
            if not isinstance(value, bool):
                # A variable with a default may be nullable. By the specification the field fails, here the request.
                message = f"variables: ${name} must not be null, because @skip or @include depends on it"
                return _request_errors([request_error(GraphQLError(message), "variables")])
            values.append(value)
        plan = self._plan(prepared, tuple(values))
        if admit is not None:
            await admit(plan.page_items(coerced))
        await memory.take(plan.size)
        try:
            return Result(True, await plan.execute(Resources(self._deps, self._limits, memory), coerced))
        except BadInput as e:
            return _request_errors([request_error(GraphQLError(str(e)), e.field)])

    def _plan(self, prepared: PreparedDocument, values: tuple[bool, ...]) -> Plan:
        """Return the plan for these values of the document's conditions, compiled if it is not cached."""
        plan = prepared.plans.get(values)
        if plan is None:
            assert prepared.document is not None
            assert prepared.operation is not None
            decided = dict(zip(prepared.conditions, values, strict=True))
            plan = compile_plan(self.schema, prepared.document, prepared.operation, decided)
            self.documents.keep_plan(prepared, values, plan)
        return plan


def _request_errors(errors: list[Error]) -> Result:
    return Result(False, msgspec.json.encode({"errors": errors}))
