"""Makes a plan of an operation. Introspection has none: graphql-core answers that."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import msgspec
from graphql import (
    BooleanValueNode,
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    GraphQLObjectType,
    GraphQLSchema,
    InlineFragmentNode,
    Node,
    OperationDefinitionNode,
    OperationType,
    SelectionNode,
    VariableNode,
    Visitor,
    get_location,
    get_named_type,
    visit,
)
from graphql.execution import get_argument_values
from msgspec import Struct, defstruct

from market.graphql.domain import TYPES, snake
from market.graphql.engine.plan import Join, Plan, Root, Step
from market.graphql.engine.resolvers import arguments, use_case

# A document with more conditions than this would need too many plans.
MOST_CONDITIONS = 4
JOIN = ("OrderItem", "product")

# The members to read of a type, each with those of what is in it.
Needs = dict[str, "Needs"]


def conditions(document: DocumentNode) -> list[str]:
    """The variables that `@skip` and `@include` ask; a plan holds for given values of them."""
    found: dict[str, None] = {}

    class Conditions(Visitor):
        def enter_directive(self, node: Any, *_: Any) -> None:
            for argument in node.arguments or ():
                if isinstance(argument.value, VariableNode):
                    found[argument.value.name.value] = None

    visit(document, Conditions())
    return list(found)


def compiled(
    schema: GraphQLSchema, document: DocumentNode, operation: OperationDefinitionNode, values: Mapping[str, bool]
) -> Plan | None:
    """The operation's plan for these values of the conditions; None where there is none. The document is valid."""
    type = schema.mutation_type if operation.operation is OperationType.MUTATION else schema.query_type
    assert type is not None
    fields = Selections(schema, document, values).of(type, [operation])
    roots = [f for f in fields if f.name != "__typename"]
    if any(f.name.startswith("__") for f in roots):
        return None
    return Plan(
        [_root(type, f) for f in roots],
        {f.key: type.name for f in fields if f.name == "__typename"},
        [f.key for f in fields],
        serial=operation.operation is OperationType.MUTATION,
    )


@dataclass
class Selected:
    """A field of the response; it has several nodes where the document selects it several times."""

    parent: str
    key: str
    name: str
    nodes: list[FieldNode]
    # None: a leaf. `type` is the named type, its list or not.
    type: str = ""
    fields: list[Selected] | None = field(default=None)

    @property
    def member(self) -> str:
        return snake(self.name)

    @property
    def is_join(self) -> bool:
        return (self.parent, self.name) == JOIN

    @property
    def locations(self) -> list[dict[str, int]]:
        found = [get_location(n.loc.source, n.loc.start) for n in self.nodes if n.loc]
        return [{"line": at.line, "column": at.column} for at in found]


class Selections:
    """What a document selects, with its fragments spread and its conditions decided."""

    def __init__(self, schema: GraphQLSchema, document: DocumentNode, values: Mapping[str, bool]) -> None:
        self._schema = schema
        self._fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
        self._values = values

    def of(self, type: GraphQLObjectType, nodes: list[Any]) -> list[Selected]:
        """The response's fields below these nodes, in the response's order."""
        found: dict[str, list[FieldNode]] = {}
        spread: set[str] = set()
        for node in nodes:
            self._collect(node.selection_set.selections, found, spread)
        return [self._selected(type, key, nodes) for key, nodes in found.items()]

    def _selected(self, parent: GraphQLObjectType, key: str, nodes: list[FieldNode]) -> Selected:
        name = nodes[0].name.value
        selected = Selected(parent.name, key, name, nodes)
        if name.startswith("__"):
            return selected
        type = get_named_type(parent.fields[name].type)
        selected.type = type.name
        if isinstance(type, GraphQLObjectType):
            selected.fields = self.of(type, nodes)
        return selected

    def _collect(
        self, selections: tuple[SelectionNode, ...], found: dict[str, list[FieldNode]], spread: set[str]
    ) -> None:
        # No interfaces and no unions: in a valid document each fragment's type is the type it stands in.
        for node in selections:
            if not self._included(node):
                continue
            if isinstance(node, FieldNode):
                found.setdefault((node.alias or node.name).value, []).append(node)
            elif isinstance(node, InlineFragmentNode):
                self._collect(node.selection_set.selections, found, spread)
            elif (name := node.name.value) not in spread:  # type: ignore[attr-defined]
                spread.add(name)
                self._collect(self._fragments[name].selection_set.selections, found, spread)

    def _included(self, node: SelectionNode) -> bool:
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


def _root(type: GraphQLObjectType, selected: Selected) -> Root:
    definition = type.fields[selected.name]
    node = selected.nodes[0]
    fixed = None if _uses_variables(node) else arguments(get_argument_values(definition, node))
    extra: dict[str, Any] = {}
    decode, write, joins = None, _itself, []
    if selected.fields is not None:
        writer = Writer()
        write = writer.function(selected)
        joins = writer.joins
        needs = _needs(selected.fields)
        decode = msgspec.json.Decoder(_reader(selected.type, needs)).decode
        if selected.name in ("product", "products"):
            extra["availability"] = "available" in (needs if selected.name == "product" else needs.get("items", {}))
    return Root(
        selected.key,
        selected.name,
        selected.locations,
        use_case(selected.name),
        extra,
        definition,
        node,
        fixed,
        arguments,
        decode,
        write,
        tuple(joins),
    )


def _itself(value: Any) -> Any:
    return value


def _uses_variables(node: Node) -> bool:
    found = False

    class Variables(Visitor):
        def enter_variable(self, *_: Any) -> None:
            nonlocal found
            found = True

        def enter_selection_set(self, *_: Any) -> Any:
            return self.SKIP

    visit(node, Variables())
    return found


def _needs(fields: list[Selected]) -> Needs:
    """The members to read for these fields; a line's product is found by its id."""
    needs: Needs = {}
    for f in fields:
        if f.name == "__typename":
            continue
        below = needs.setdefault("product_id" if f.is_join else f.member, {})
        if f.fields is not None and not f.is_join:
            _merge(below, _needs(f.fields))
    return needs


def _merge(into: Needs, more: Needs) -> None:
    for member, below in more.items():
        _merge(into.setdefault(member, {}), below)


def _reader(type: str, needs: Needs) -> type[Struct]:
    """The struct that reads these members of a REST document, and passes over the rest."""
    members: list[tuple[str, Any]] = []
    for member in msgspec.structs.fields(TYPES[type]):
        if member.name in needs:
            listed = member.type.__args__[0].__name__ if member.name == "items" else None
            members.append((member.name, list[_reader(listed, needs[member.name])] if listed else member.type))  # type: ignore[misc]
    return defstruct(type, members, frozen=True, gc=False)


class Writer:
    """Makes the expression that turns what was read into what is written.

    For `orders(user: "ann") { items { id items { quantity product { name } } } }` it is

        lambda x0, j0: W2([W1(x1.id, [W0(x2.quantity, j0.get(x2.product_id)) for x2 in x1.items]) for x1 in x0.items])

    The W are structs of the response's names, j0 has the products. No text of the document gets into it: members
    are the schema's, and the response's names are the structs' alone.
    """

    def __init__(self) -> None:
        self.joins: list[Join] = []
        self._names: dict[str, Any] = {}

    def function(self, selected: Selected) -> Callable[..., Any]:
        """Takes what was read, and for each of `joins` the products by id."""
        expression = self._expression(selected, "x0", 0, ())
        parameters = ", ".join(["x0", *(f"j{i}" for i in range(len(self.joins)))])
        made: Callable[..., Any] = eval(f"lambda {parameters}: {expression}", self._names)  # noqa: S307
        return made

    def _expression(self, selected: Selected, x: str, depth: int, steps: tuple[Step, ...]) -> str:
        assert selected.fields is not None
        values: list[str] = []
        for f in selected.fields:
            if f.name == "__typename":
                values.append(repr(selected.type))
            elif f.is_join:
                values.append(f"j{self._join(f, steps)}.get({x}.product_id)")
            elif f.fields is not None:
                below = self._expression(f, f"x{depth + 1}", depth + 1, (*steps, Step(attrgetter(f.member), f.key)))
                values.append(f"[{below} for x{depth + 1} in {x}.{f.member}]")
            else:
                values.append(f"{x}.{f.member}")
        name = f"W{len(self._names)}"
        members = {f"f{i}": f.key for i, f in enumerate(selected.fields)}
        self._names[name] = defstruct(name, [(m, Any) for m in members], rename=members, gc=False)
        return f"{name}({', '.join(values)})"

    def _join(self, selected: Selected, steps: tuple[Step, ...]) -> int:
        assert selected.fields is not None
        needs = {**_needs(selected.fields), "id": {}}
        page = _reader("ProductPage", {"items": needs})
        write = Writer().function(selected)
        decode = msgspec.json.Decoder(page).decode
        self.joins.append(Join(selected.key, selected.locations, steps, "available" in needs, decode, write))
        return len(self.joins) - 1
