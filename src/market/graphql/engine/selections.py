"""What an operation selects: its fields in the response's order, with fragments spread and conditions decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graphql import (
    BooleanValueNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    SelectionNode,
    VariableNode,
    Visitor,
    get_location,
    get_named_type,
    visit,
)

from market.graphql.domain import snake_case

# The field that is joined: its products come from another service than its parent.
JOIN = ("OrderItem", "product")
# Upper bounds of the memory of a plan: the structs of a selection set with their functions, and what each field adds.
_SELECTION_BYTES = 8000
_FIELD_BYTES = 700


def conditions(document: DocumentNode) -> list[str]:
    """Return the variables in `@skip` and `@include`. A plan is valid for one combination of their values."""
    found: dict[str, None] = {}

    class Conditions(Visitor):
        def enter_directive(self, node: Any, *_: Any) -> None:
            for argument in node.arguments or ():
                if isinstance(argument.value, VariableNode):
                    found[argument.value.name.value] = None

    visit(document, Conditions())
    return list(found)


@dataclass
class SelectedField:
    """A field of the response. It has several nodes if the document selects it several times."""

    parent: str
    key: str
    name: str
    nodes: list[FieldNode]
    # The named type, without its list and non-null wrappers.
    type_name: str = ""
    # None for a leaf.
    fields: list[SelectedField] | None = None

    @property
    def member(self) -> str:
        """The REST member, or `__typename`."""
        return snake_case(self.name)

    @property
    def size(self) -> int:
        """The memory that a plan needs for this field and those below it, in bytes."""
        return _FIELD_BYTES + (0 if self.fields is None else _SELECTION_BYTES + sum(f.size for f in self.fields))

    @property
    def is_join(self) -> bool:
        return (self.parent, self.name) == JOIN

    @property
    def locations(self) -> list[dict[str, int]]:
        found = [get_location(n.loc.source, n.loc.start) for n in self.nodes if n.loc]
        return [{"line": at.line, "column": at.column} for at in found]


class Selections:
    """The selections of a document, for one combination of the values of its conditions."""

    def __init__(self, schema: GraphQLSchema, document: DocumentNode, values: Mapping[str, bool]) -> None:
        self._schema = schema
        self._fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
        self._values = values

    def fields(self, object_type: GraphQLObjectType, nodes: list[Any]) -> list[SelectedField]:
        """Return the fields below these nodes, in the response's order."""
        found: dict[str, list[FieldNode]] = {}
        spread: set[str] = set()
        for node in nodes:
            self._collect(node.selection_set.selections, found, spread)
        return [self._selected(object_type, key, field_nodes) for key, field_nodes in found.items()]

    def _selected(self, parent: GraphQLObjectType, key: str, nodes: list[FieldNode]) -> SelectedField:
        name = nodes[0].name.value
        selected = SelectedField(parent.name, key, name, nodes)
        if name.startswith("__"):
            return selected
        named_type = get_named_type(parent.fields[name].type)
        selected.type_name = named_type.name
        if isinstance(named_type, GraphQLObjectType):
            selected.fields = self.fields(named_type, nodes)
        return selected

    def _collect(
        self, selections: tuple[SelectionNode, ...], found: dict[str, list[FieldNode]], spread: set[str]
    ) -> None:
        # The schema has no interfaces and no unions: a valid fragment's type is the type that it is spread in.
        for node in selections:
            if not self._is_included(node):
                continue
            if isinstance(node, FieldNode):
                found.setdefault((node.alias or node.name).value, []).append(node)
            elif isinstance(node, InlineFragmentNode):
                self._collect(node.selection_set.selections, found, spread)
            elif (name := node.name.value) not in spread:  # type: ignore[attr-defined]
                spread.add(name)
                self._collect(self._fragments[name].selection_set.selections, found, spread)

    def _is_included(self, node: SelectionNode) -> bool:
        for directive in node.directives or ():
            [argument] = directive.arguments or ()
            condition = argument.value
            if isinstance(condition, VariableNode):
                value = self._values[condition.name.value]
            else:
                assert isinstance(condition, BooleanValueNode)
                value = condition.value
            if value is (directive.name.value == "skip"):
                return False
        return True
