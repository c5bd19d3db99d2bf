"""Documents, parsed, limited and validated once, and kept for the next time."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    InlineFragmentNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    parse,
    validate,
)
from graphql.validation import recommended_rules, specified_rules
from prometheus_client import Counter

from market.graphql import config
from market.kit.errors import BadInput

SEEN = Counter("market_graphql_documents_total", "Documents by whether they were known.", ["known"])
_KNOWN, _NEW = SEEN.labels("yes"), SEEN.labels("no")
_RULES = [*specified_rules, *(r for r in recommended_rules if r not in specified_rules)]
_MOST_MESSAGE = 500
_MOST_LOCATIONS = 10

Error = dict[str, Any]


@dataclass
class Prepared:
    """A document with the operation to run, or what is wrong with it."""

    document: DocumentNode | None = None
    operation: OperationDefinitionNode | None = None
    errors: list[Error] = field(default_factory=list)
    # What the executor keeps beside it: the variables in `@skip` and `@include`, and the plans by their values.
    conditions: list[str] | None = None
    plans: dict[tuple[Any, ...], Any] = field(default_factory=dict)

    @property
    def is_mutation(self) -> bool:
        return self.operation is not None and self.operation.operation is OperationType.MUTATION


class Documents:
    """The documents seen of late, by their whole text and the operation's name."""

    def __init__(self, schema: GraphQLSchema, limits: config.Limits, keep: config.Documents) -> None:
        self._schema = schema
        self._limits = limits
        self._keep = keep
        self._kept: OrderedDict[tuple[str, str | None], Prepared] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, text: str, operation: str | None) -> Prepared:
        """The document, ready to run, or with its errors; never raises for what a client sent."""
        key = (text, operation)
        known = self._kept.get(key)
        if known is not None:
            self._kept.move_to_end(key)
            _KNOWN.inc()
            return known
        _NEW.inc()
        prepared = self._prepare(text, operation)
        if len(text) <= self._keep.characters:
            self._kept[key] = prepared
            if len(self._kept) > self._keep.count:
                self._kept.popitem(last=False)
        return prepared

    def _prepare(self, text: str, name: str | None) -> Prepared:
        prepared = Prepared()
        try:
            document = parse(text, max_lexical_tokens=self._limits.tokens, max_comments=self._limits.tokens)
            prepared.operation = _operation(document, name)
            check(document, self._limits)
            wrong = validate(self._schema, document, _RULES, max_errors=20)
            if not wrong:
                prepared.document = document
        except GraphQLError as e:
            wrong = [e]
        except BadInput as e:
            wrong = [GraphQLError(str(e), extensions={"field": e.field})]
        except RecursionError:
            wrong = [GraphQLError("query: is nested too deeply")]
        prepared.errors = [request_error(e) for e in wrong]
        return prepared


def request_error(e: GraphQLError, field: str = "query") -> Error:
    """A complaint about the request itself, as the answer says it."""
    error: Error = dict(e.formatted)
    if "locations" in error:
        error["locations"] = error["locations"][:_MOST_LOCATIONS]
    if len(error["message"]) > _MOST_MESSAGE:
        error["message"] = error["message"][:_MOST_MESSAGE] + "..."
    error["extensions"] = {"code": "BAD_INPUT", "field": field, **(e.extensions or {})}
    return error


def _operation(document: DocumentNode, name: str | None) -> OperationDefinitionNode:
    operations = [d for d in document.definitions if isinstance(d, OperationDefinitionNode)]
    if name is not None:
        operations = [d for d in operations if d.name is not None and d.name.value == name]
    if len(operations) == 1:
        return operations[0]
    if name is not None:
        raise BadInput(
            "operationName",
            "names no operation of the document" if not operations else "names two operations of the document",
        )
    raise BadInput(
        "operationName", "must say which operation to run" if operations else "the document has no operation"
    )


class _Size(NamedTuple):
    depth: int
    fields: int
    aliases: int


def check(document: DocumentNode, limits: config.Limits) -> None:
    """Raises BadInput for a document that asks for more than `limits`, with its fragments spread."""
    fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
    known: dict[str, _Size | None] = {}
    written = 0

    def of_fragment(name: str) -> _Size:
        if name not in fragments:
            return _Size(0, 0, 0)  # Validation says so.
        if name not in known:
            known[name] = None
            known[name] = of(fragments[name].selection_set)
        size = known[name]
        if size is None:
            raise BadInput("query", f"fragment {name} spreads itself")
        return size

    def of(selections: SelectionSetNode) -> _Size:
        nonlocal written
        depth = fields = aliases = 0
        for node in selections.selections:
            written += 1
            if isinstance(node, FieldNode):
                inner = of(node.selection_set) if node.selection_set else _Size(0, 0, 0)
                below = inner.depth + 1
                fields += 1
                aliases += node.alias is not None
            else:
                assert isinstance(node, InlineFragmentNode | FragmentSpreadNode)
                inner = of(node.selection_set) if isinstance(node, InlineFragmentNode) else of_fragment(node.name.value)
                below = inner.depth
            depth = max(depth, below)
            fields += inner.fields
            aliases += inner.aliases
        return _Size(depth, fields, aliases)

    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            _within(of(definition.selection_set), limits)
        elif isinstance(definition, FragmentDefinitionNode):
            _within(of_fragment(definition.name.value), limits)
    # What is written, spread or not, is what validation has to compare.
    if written > 2 * limits.fields:
        raise BadInput("query", f"has {written} selections; at most {2 * limits.fields} are allowed")


def _within(size: _Size, limits: config.Limits) -> None:
    for name, is_, most in (
        ("levels of fields", size.depth, limits.depth),
        ("fields", size.fields, limits.fields),
        ("aliases", size.aliases, limits.aliases),
    ):
        if is_ > most:
            raise BadInput("query", f"has {is_ if is_ < 10**9 else 'countless'} {name}; at most {most} are allowed")
