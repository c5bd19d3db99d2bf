"""Documents: parsed, checked and validated once, and cached."""

from __future__ import annotations

import gc
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from graphql import (
    DocumentNode,
    GraphQLError,
    GraphQLSchema,
    OperationDefinitionNode,
    OperationType,
    ValidationRule,
    parse,
    validate,
)
from graphql.validation import recommended_rules, specified_rules

from market.graphql.config import DocumentCacheSize, Limits
from market.graphql.engine.errors import Error, request_error
from market.graphql.engine.limits import check_document
from market.graphql.engine.plan import Plan
from market.graphql.engine.selections import conditions
from market.graphql.metrics import DOCUMENT_CACHE_BYTES, DOCUMENT_CACHE_HITS, DOCUMENT_CACHE_MISSES
from market.kit.errors import BadInput

_RULES = [*specified_rules, *(r for r in recommended_rules if r not in specified_rules)]
_MAX_ERRORS = 20
# Upper bounds of the memory of parsed documents, which tests/graphql/test_memory.py compares with measurements.
_TOKEN_BYTES = 640
# The text as a key, as the source of locations, and in tokens.
_TEXT_COPIES = 3
_DOCUMENT_BYTES = 2048
_ERROR_BYTES = 3000
# One document, with its plans, may take an eighth of the cache.
_MAX_SHARE = 8


@dataclass(eq=False)
class PreparedDocument:
    """A document with the operation to execute, or its errors."""

    document: DocumentNode | None = None
    operation: OperationDefinitionNode | None = None
    errors: list[Error] = field(default_factory=list)
    # The variables in `@skip` and `@include`, and the plans by their values.
    conditions: list[str] = field(default_factory=list)
    plans: dict[tuple[bool, ...], Plan] = field(default_factory=dict)
    is_mutation: bool = False
    # Upper bounds in bytes: of the document alone, and of all that is cached with it.
    size: int = 0
    cached_size: int = 0


_Key = tuple[str, str | None]


class DocumentCache:
    """Documents by their whole text and the operation's name, with their plans.

    The size of the cache is limited in bytes; the least recently used documents are evicted.
    """

    def __init__(self, schema: GraphQLSchema, limits: Limits, size: DocumentCacheSize) -> None:
        self._schema = schema
        self._limits = limits
        self._size = size
        self._documents: OrderedDict[_Key, PreparedDocument] = OrderedDict()
        self.bytes = 0

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
        prepared = self.prepare(text, operation_name)
        size = prepared.size + (sys.getsizeof(operation_name) if operation_name else 0)
        characters = len(text) + len(operation_name or "")
        if characters <= self._size.characters and size <= self._size.bytes // _MAX_SHARE:
            self._documents[key] = prepared
            self._add(prepared, size)
            self._evict()
        return prepared

    def keep_plan(self, prepared: PreparedDocument, values: tuple[bool, ...], plan: Plan) -> None:
        """Cache a plan with its document, unless the document is not cached itself.

        If the plans of a document become too large together, the older ones are dropped.
        """
        if not prepared.cached_size:
            return
        if prepared.cached_size + plan.size > self._size.bytes // _MAX_SHARE:
            self._add(prepared, -sum(p.size for p in prepared.plans.values()))
            prepared.plans.clear()
        if prepared.cached_size + plan.size <= self._size.bytes // _MAX_SHARE:
            prepared.plans[values] = plan
            self._add(prepared, plan.size)
            self._evict()

    def _add(self, prepared: PreparedDocument, size: int) -> None:
        prepared.cached_size += size
        self.bytes += size
        DOCUMENT_CACHE_BYTES.set(self.bytes)

    def _evict(self) -> None:
        while len(self._documents) > self._size.count or self.bytes > self._size.bytes:
            _, evicted = self._documents.popitem(last=False)
            self._add(evicted, -evicted.cached_size)

    def validate(self, text: str) -> str | None:
        """Return why the document cannot be executed; None if each of its operations can."""
        try:
            names = [d.name.value if d.name else None for d in _operations(parse(text))]
        except (GraphQLError, RecursionError):
            names = []
        for name in names or [None]:
            if errors := self.prepare(text, name).errors:
                return str(errors[0]["message"])
        return None

    def prepare(self, text: str, operation_name: str | None) -> PreparedDocument:
        """Return the document as `get` does, without the cache."""
        prepared = PreparedDocument()
        tokens = 0
        try:
            if len(text) > self._limits.characters:
                raise BadInput("query", f"must have at most {self._limits.characters} characters, got {len(text)}")
            document = parse(text, max_lexical_tokens=self._limits.tokens, max_comments=self._limits.tokens)
            tokens = document.token_count
            operation = _select_operation(document, operation_name)
            prepared.is_mutation = operation.operation is OperationType.MUTATION
            check_document(document, self._limits)
            with _no_garbage_collection():
                rules = [_time_limit(self._limits.validation_seconds), *_RULES]
                errors = validate(self._schema, document, rules, max_errors=_MAX_ERRORS)
            if not errors:
                prepared.document, prepared.operation = document, operation
                prepared.conditions = conditions(document)
        except GraphQLError as e:
            errors = [e]
        except BadInput as e:
            errors = [GraphQLError(str(e), extensions={"field": e.field})]
        except RecursionError:
            errors = [GraphQLError("query: is nested too deeply")]
        prepared.errors = [request_error(e) for e in errors]
        contents = len(errors) * _ERROR_BYTES if errors else tokens * _TOKEN_BYTES
        prepared.size = _DOCUMENT_BYTES + _TEXT_COPIES * sys.getsizeof(text) + contents
        return prepared


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep the cyclic garbage collector off, so that the time limit counts the validation alone.

    A full collection takes as long as the process has objects: a short document would be refused for it.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _time_limit(seconds: float) -> type[ValidationRule]:
    """Return a rule that ends a validation which has taken this much CPU time."""
    end = time.thread_time() + seconds

    class TimeLimit(ValidationRule):
        def enter(self, *_: Any) -> None:
            if time.thread_time() > end:
                raise BadInput("query", f"must be simpler: its validation would take more than {seconds:g} s")

    return TimeLimit


def _select_operation(document: DocumentNode, name: str | None) -> OperationDefinitionNode:
    operations = _operations(document)
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


def _operations(document: DocumentNode) -> list[OperationDefinitionNode]:
    return [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
