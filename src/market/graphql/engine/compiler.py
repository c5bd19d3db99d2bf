"""Compiles an operation into a plan. Introspection in it is executed by graphql-core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from graphql import (
    DocumentNode,
    GraphQLObjectType,
    GraphQLSchema,
    Node,
    OperationDefinitionNode,
    OperationType,
    Visitor,
    visit,
)
from graphql.execution import get_argument_values

from market.graphql.engine.costs import response_factor
from market.graphql.engine.introspection import introspection_document
from market.graphql.engine.plan import FieldPlan, IntrospectionPlan, Plan
from market.graphql.engine.resolvers import ROOT_FIELDS
from market.graphql.engine.selections import SelectedField, Selections
from market.graphql.engine.writers import Writer, members, object_writer, reader

_PLAN_BYTES = 4000
# Of arguments that use no variable, per token of the document.
_TOKEN_BYTES = 32


def compile_plan(
    schema: GraphQLSchema,
    document: DocumentNode,
    operation: OperationDefinitionNode,
    values: Mapping[str, bool],
    *,
    make_writer: Callable[[SelectedField], Writer] = object_writer,
) -> Plan:
    """Return the operation's plan for these values of the document's conditions.

    The document must be valid. `make_writer` is a parameter so that benchmarks/plan_writers.py can compare two.
    """
    serial = operation.operation is OperationType.MUTATION
    root_type = schema.mutation_type if serial else schema.query_type
    assert root_type is not None
    selected = Selections(schema, document, values).fields(root_type, [operation])
    introspection = [f for f in selected if f.name in ("__schema", "__type")]
    return Plan(
        [_field_plan(root_type, f, make_writer) for f in selected if not f.name.startswith("__")],
        {f.key: root_type.name for f in selected if f.name == "__typename"},
        [f.key for f in selected],
        IntrospectionPlan(
            schema, introspection_document(document, operation, introspection), [f.key for f in introspection]
        )
        if introspection
        else None,
        serial=serial,
        size=_PLAN_BYTES + _TOKEN_BYTES * document.token_count + sum(f.size for f in selected),
    )


def _field_plan(
    root_type: GraphQLObjectType, selected: SelectedField, make_writer: Callable[[SelectedField], Writer]
) -> FieldPlan:
    definition = root_type.fields[selected.name]
    root_field = ROOT_FIELDS[selected.name]
    node = selected.nodes[0]
    extra: dict[str, Any] = {}
    decode, writer = None, Writer(lambda items, _: items, ())
    if selected.fields is not None:
        writer = make_writer(selected)
        needed = members(selected.fields)
        decode = msgspec.json.Decoder(reader(selected.type_name, needed)).decode
        if selected.name in ("product", "products"):
            of_product = needed if selected.name == "product" else needed.get("items", {})
            extra["availability"] = "available" in of_product
            extra["stock"] = "stock" in of_product
        elif selected.name in ("createProduct", "updateProduct"):
            extra["stock"] = "stock" in needed
    return FieldPlan(
        key=selected.key,
        name=selected.name,
        locations=selected.locations,
        use_case=root_field.use_case,
        extra_arguments=extra,
        definition=definition,
        node=node,
        constant_arguments=(
            None if _uses_variables(node) else root_field.arguments(get_argument_values(definition, node))
        ),
        translate=root_field.arguments,
        decode=decode,
        write=writer.write,
        joins=writer.joins,
        response_factor=response_factor(selected),
    )


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
