"""Plans: compiled documents. A plan says what to fetch, how to read REST's JSON, and how to write the response's.

graphql-core walks a response field by field, in Python, for each request. But the shape of a response is known once the
document is. The compiler makes, per selection set, a struct that msgspec decodes from REST's JSON (the selected members
only) and a struct that it encodes (the response's names in the response's order), and a function that makes the second
from the first. Decoding and encoding are then C. This file executes such a plan.

The responses are the same as graphql-core's, errors included; tests/graphql/test_plan.py compares the two.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

import msgspec
from graphql import DocumentNode, FieldNode, GraphQLError, GraphQLField, GraphQLSchema
from graphql.execution import get_argument_values
from graphql.execution.values import VariableValues

from market.graphql import service
from market.graphql.config import Limits
from market.graphql.engine.errors import Error, execution_error, field_error
from market.graphql.engine.introspection import introspect
from market.graphql.engine.limits import PAGE_LIMITS, ItemBudget, page_items
from market.graphql.memory.budget import RequestMemory, ResponseCharge, charge
from market.graphql.service import Deps, ProductBatch
from market.kit.errors import Problem

Path = list[str | int]
# Makes response objects from objects that were read. The second argument has, per join, the products by id.
Write = Callable[[Sequence[Any], Sequence[dict[str, Any]]], Sequence[Any]]

_product_id = attrgetter("id")
_encode = msgspec.json.encode
# More errors of order lines than this are counted, not listed.
_MAX_LINE_ERRORS = 1000
# Upper bounds in bytes: of one such error, and of a line without a product.
_ERROR_BYTES = 1500
_NULL_BYTES = 4
# The encoder's buffer grows by half of its size.
_BUFFER_FACTOR = 1.5


@dataclass(frozen=True)
class ListStep:
    """A list on the way from a root field's value to its order lines: its items, and its key in the response."""

    items: Callable[[Any], list[Any]]
    key: str


@dataclass(frozen=True)
class ProductJoin:
    """A selection of `OrderItem.product`. The products are found by the lines' ids, in pages of products."""

    key: str
    locations: list[dict[str, int]]
    steps: tuple[ListStep, ...]
    availability: bool
    stock: bool
    decode: Callable[[bytes], Any]
    write: Write
    # Bytes of memory per byte of a page of products.
    response_factor: float

    def lines(self, value: Any) -> Iterable[Any]:
        """Return the order lines in a root field's value."""
        level = [value]
        for step in self.steps:
            level = [item for outer in level for item in step.items(outer)]
        return level

    def lines_with_paths(self, value: Any, path: Path, depth: int = 0) -> Iterator[tuple[Path, Any]]:
        """Yield the path of each line's product in the response, and the line."""
        if depth == len(self.steps):
            yield [*path, self.key], value
            return
        step = self.steps[depth]
        for i, item in enumerate(step.items(value)):
            yield from self.lines_with_paths(item, [*path, step.key, i], depth + 1)


@dataclass(frozen=True)
class FieldPlan:
    """The plan of one root field."""

    key: str
    name: str
    locations: list[dict[str, int]]
    use_case: Callable[..., Any]
    # Arguments of the use case that follow from the selection.
    extra_arguments: dict[str, Any]
    definition: GraphQLField
    node: FieldNode
    # The arguments, if they use no variable.
    constant_arguments: dict[str, Any] | None
    translate: Callable[[dict[str, Any]], dict[str, Any]]
    # None if the use case returns the value itself.
    decode: Callable[[bytes], Any] | None
    write: Write
    joins: tuple[ProductJoin, ...]
    # Bytes of memory per byte of the upstream's response.
    response_factor: float

    def arguments(self, variables: VariableValues) -> dict[str, Any]:
        """Return the arguments of the use case that come from the request. Raises GraphQLError."""
        if self.constant_arguments is not None:
            return self.constant_arguments
        return self.translate(get_argument_values(self.definition, self.node, variables))


@dataclass(frozen=True)
class IntrospectionPlan:
    """The introspection of an operation: a document with only these fields, and their keys in the response."""

    schema: GraphQLSchema
    document: DocumentNode
    keys: list[str]


@dataclass(frozen=True)
class Resources:
    """The resources of an execution: the use cases' dependencies, the limits, and the request's memory."""

    deps: Deps
    limits: Limits
    memory: RequestMemory


class Plan:
    """The plan of an operation. `size` is an upper bound of its own memory in bytes."""

    def __init__(
        self,
        fields: list[FieldPlan],
        typenames: dict[str, str],
        keys: list[str],
        introspection: IntrospectionPlan | None = None,
        *,
        serial: bool,
        size: int = 0,
    ) -> None:
        """`typenames` has the operation type's `__typename` by its keys, `keys` all keys in the response's order."""
        self.size = size
        self._introspection = introspection
        self._fields = fields
        self._typenames = typenames
        self._keys = keys
        self._serial = serial

    def page_items(self, variables: VariableValues) -> int:
        """Return how many items the pages of the response may have together."""
        pages = [field for field in self._fields if field.name in PAGE_LIMITS]
        try:
            return sum(page_items(field.name, field.arguments(variables)) for field in pages)
        except GraphQLError:
            # The invalid arguments are reported as an error of the field.
            return 0

    async def execute(self, resources: Resources, variables: VariableValues) -> bytes:
        """Return the response's JSON: data, and errors if there are any.

        Raises BadInput or Overloaded if the schema that it selects does not fit into the limits.
        """
        execution = _Execution(resources, variables)
        if self._introspection is not None:
            await execution.introspect(self._introspection)
        if self._serial:
            # A mutation's response is complete, with its products, before the next mutation starts.
            for field in self._fields:
                await execution.fetch(field)
                await execution.join([field])
        else:
            if len(self._fields) == 1:
                await execution.fetch(self._fields[0])
            else:
                await asyncio.gather(*map(execution.fetch, self._fields))
            await execution.join(self._fields)
        data = execution.data
        if len(self._keys) > 1:
            data = {key: self._typenames.get(key) or data.get(key) for key in self._keys}
        elif self._typenames:
            data = self._typenames
        errors = execution.errors
        return _encode({"data": data, "errors": errors} if errors else {"data": data})


class _Execution:
    """One request's execution of a plan."""

    def __init__(self, resources: Resources, variables: VariableValues) -> None:
        self._deps = resources.deps
        self._limits = resources.limits
        self._memory = resources.memory
        self._budget = ItemBudget(resources.limits.list_items)
        self._variables = variables
        self._line_errors = self._unlisted_errors = 0
        # Values that wait for the products of their order lines, by the root field's key.
        self._values: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.errors: list[Error] = []

    async def introspect(self, plan: IntrospectionPlan) -> None:
        """Execute the introspection."""
        result = introspect(plan.schema, plan.document, self._variables.coerced, self._limits.introspection_fields)
        for key in plan.keys:
            encoded = _encode(None if result.data is None else result.data[key])
            await self._memory.take(2 * len(encoded))
            self.data[key] = msgspec.Raw(encoded)
        self.errors += [execution_error(e) for e in result.errors or ()]

    async def fetch(self, field: FieldPlan) -> None:
        """Fetch the root field's value, and write it if it has no joins. If that fails it is null, with an error."""
        try:
            arguments = field.arguments(self._variables)
            self._budget.spend(field.name, arguments)
            charge.set(ResponseCharge(self._memory, field.response_factor))
            value = await field.use_case(self._deps, **arguments, **field.extra_arguments)
            if field.decode is not None:
                value = field.decode(value)
            if field.joins:
                self._values[field.key] = value
                self.data[field.key] = None
            else:
                self.data[field.key] = field.write((value,), ())[0]
        except Exception as e:
            self.data[field.key] = None
            self._add_error(e, [field.key], field.locations)

    async def join(self, fields: list[FieldPlan]) -> None:
        """Fetch the products of all order lines together, and write the values that wait for them."""
        waiting = [field for field in fields if field.key in self._values]
        if not waiting:
            return
        ids = [
            line.product_id for field in waiting for join in field.joins for line in join.lines(self._values[field.key])
        ]
        joins = [join for field in waiting for join in field.joins]
        availability, stock = any(join.availability for join in joins), any(join.stock for join in joins)
        charge.set(ResponseCharge(self._memory, sum(join.response_factor for join in joins)))
        limit = self._limits.joined_products
        batches: list[ProductBatch] = []
        if ids:
            batches = await service.products_by_id(self._deps, ids, limit, availability=availability, stock=stock)
        for field in waiting:
            value = self._values.pop(field.key)
            products = [await self._products(join, value, [field.key], batches) for join in field.joins]
            self.data[field.key] = field.write((value,), products)[0]
        if self._unlisted_errors:
            message = f"the products of {self._unlisted_errors} more order lines are null because of errors"
            self.errors.append({"message": message, "extensions": self.errors[-1]["extensions"]})
            self._unlisted_errors = 0

    async def _products(self, join: ProductJoin, value: Any, path: Path, batches: list[ProductBatch]) -> dict[str, Any]:
        """Return the join's products as JSON, by id. Each line whose batch failed gets an error.

        If the request may not have the memory for the lines with their products, there are none, with one error.
        """
        products: dict[str, Any] = {}
        sizes: dict[str, int] = {}
        failures: dict[str, Exception] = {}
        for ids, page in batches:
            try:
                if isinstance(page, Exception):
                    raise page
                items = join.decode(page).items
                for product_id, product in zip(map(_product_id, items), join.write(items, ()), strict=True):
                    # Encoded only once for all its lines, and so that its size is known before the lines are written.
                    encoded = _encode(product)
                    products[product_id] = msgspec.Raw(encoded)
                    sizes[product_id] = len(encoded)
            except Exception as e:
                failures.update(dict.fromkeys(ids, field_error(e)))
        max_errors = _MAX_LINE_ERRORS
        try:
            size_of = sizes.get
            size = sum(size_of(line.product_id, _NULL_BYTES) for line in join.lines(value))
            await self._memory.take(int(size * _BUFFER_FACTOR))
            if failures:
                await self._memory.take(_ERROR_BYTES * _MAX_LINE_ERRORS)
        except Problem as e:
            # The orders are returned nevertheless: those of a mutation have been placed.
            products, max_errors = {}, 1
            failures = dict.fromkeys((line.product_id for line in join.lines(value)), field_error(e))
        if failures:
            for line_path, line in join.lines_with_paths(value, path):
                if line.product_id in failures:
                    self._line_errors += 1
                    if self._line_errors <= max_errors:
                        self._add_error(failures[line.product_id], line_path, join.locations)
                    else:
                        self._unlisted_errors += 1
        return products

    def _add_error(self, e: Exception, path: Path, locations: list[dict[str, int]]) -> None:
        if isinstance(e, GraphQLError):
            # An argument whose variable does not fit; the error has its own locations.
            where = [{"line": at.line, "column": at.column} for at in e.locations or ()] or locations
            message, extensions = e.message, {"code": "BAD_INPUT"}
        else:
            error = field_error(e)
            where, message, extensions = locations, str(error), error.extensions
        self.errors.append({"message": message, "locations": where, "path": path, "extensions": extensions})
