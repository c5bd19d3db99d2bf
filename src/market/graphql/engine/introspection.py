"""Introspection, by graphql-core: the fields `__schema` and `__type` of an operation, within a limit."""

from __future__ import annotations

from typing import Any

import graphql
from graphql import (
    DocumentNode,
    ExecutionResult,
    FragmentDefinitionNode,
    GraphQLSchema,
    OperationDefinitionNode,
    SelectionSetNode,
)
from graphql.execution.executor import Executor

from market.graphql.engine.selections import SelectedField
from market.kit.errors import BadInput


class _LimitReached(BaseException):
    """Ends an execution. Not an Exception, which graphql-core would turn into an error of one field."""


def introspection_document(
    document: DocumentNode, operation: OperationDefinitionNode, selected: list[SelectedField]
) -> DocumentNode:
    """Return the document with nothing but these fields in its operation."""
    reduced = OperationDefinitionNode(
        operation=operation.operation,
        name=None,
        variable_definitions=operation.variable_definitions,
        directives=(),
        selection_set=SelectionSetNode(selections=tuple(node for f in selected for node in f.nodes)),
    )
    fragments = [d for d in document.definitions if isinstance(d, FragmentDefinitionNode)]
    return DocumentNode(definitions=(reduced, *fragments))


def introspect(
    schema: GraphQLSchema, document: DocumentNode, variables: dict[str, Any], max_fields: int
) -> ExecutionResult:
    """Execute a document of `introspection_document`. Raises BadInput if its response has too many fields."""
    executed = 0

    class LimitedExecutor(Executor[Any]):
        def execute_field(self, *arguments: Any) -> Any:
            nonlocal executed
            executed += 1
            if executed > max_fields:
                raise _LimitReached
            return super().execute_field(*arguments)

    try:
        result = graphql.execute(schema, document, variable_values=variables, executor_class=LimitedExecutor)
    except _LimitReached:
        raise BadInput("query", f"must select at most {max_fields} fields of the schema, got more") from None
    assert isinstance(result, ExecutionResult)
    return result
