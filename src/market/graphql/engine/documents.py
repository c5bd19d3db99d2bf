"""Documents: parsed, checked and validated once, and cached."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    parse,
    validate,
)
from graphql.validation import recommended_rules, specified_rules

from market.graphql.config import DocumentCacheSize, Limits
from market.graphql.engine.errors import Error, request_error
from market.graphql.engine.limits import check_document
from market.graphql.metrics import DOCUMENT_CACHE_HITS, DOCUMENT_CACHE_MISSES
from market.kit.errors import BadInput

_RULES = [*specified_rules, *(r for r in recommended_rules if r not in specified_rules)]
_MAX_ERRORS = 20


@dataclass
class PreparedDocument:
    """A document with the operation to execute, or its errors."""

    document: DocumentNode | None = None
    operation: OperationDefinitionNode | None = None
    errors: list[Error] = field(default_factory=list)
    # What the executor caches beside it: the variables in `@skip` and `@include`, and the plans by their values.
    conditions: list[str] | None = None
    plans: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    @property
    def is_mutation(self) -> bool:
        return self.operation is not None and self.operation.operation is OperationType.MUTATION


class DocumentCache:
    """The least recently used documents are evicted. The key is the whole text and the operation's name."""

    def __init__(self, schema: GraphQLSchema, limits: Limits, size: DocumentCacheSize) -> None:
        self._schema = schema
        self._limits = limits
        self._size = size
        self._documents: OrderedDict[tuple[str, str | None], PreparedDocument] = OrderedDict()

    def __len__(self) -> int:
        return len(self._documents)

    def get(self, text: str, operation_name: str | None) -> PreparedDocument:
        """Return the document, ready to execute, or with its errors. Never raises for what a client sent."""
        key = (text, operation_name)
        cached = self._documents.get(key)
        if cached is not None:
            self._documents.move_to_end(key)
            DOCUMENT_CACHE_HITS.inc()
            return cached
        DOCUMENT_CACHE_MISSES.inc()
        prepared = self._prepare(text, operation_name)
        if len(text) <= self._size.characters:
            self._documents[key] = prepared
            if len(self._documents) > self._size.count:
                self._documents.popitem(last=False)
        return prepared

    def _prepare(self, text: str, operation_name: str | None) -> PreparedDocument:
        prepared = PreparedDocument()
        try:
            document = parse(text, max_lexical_tokens=self._limits.tokens, max_comments=self._limits.tokens)
            prepared.operation = _select_operation(document, operation_name)
            check_document(document, self._limits)
            errors = validate(self._schema, document, _RULES, max_errors=_MAX_ERRORS)
            if not errors:
                prepared.document = document
        except GraphQLError as e:
            errors = [e]
        except BadInput as e:
            errors = [GraphQLError(str(e), extensions={"field": e.field})]
        except RecursionError:
            errors = [GraphQLError("query: is nested too deeply")]
        prepared.errors = [request_error(e) for e in errors]
        return prepared


def _select_operation(document: DocumentNode, name: str | None) -> OperationDefinitionNode:
    operations = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
    if name is not None:
        operations = [d for d in operations if d.name is not None and d.name.value == name]
    if len(operations) == 1:
        return operations[0]
    if name is not None:
        many = "no operation" if not operations else f"{len(operations)} operations"
        raise BadInput("operationName", f"the document has {many} named {name}")
    if operations:
        raise BadInput("operationName", f"is required because the document has {len(operations)} operations")
    raise BadInput("operationName", "the document has no operation")
