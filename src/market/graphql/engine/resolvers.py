"""The published schema with its resolvers, for graphql-core.

Plans (plan.py) return the same responses faster; the resolvers execute every valid document.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.resources import files
from operator import attrgetter
from typing import Any

import graphql
import msgspec
from graphql import (
    DocumentNode,
    ExecutionResult,
    GraphQLError,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLSchema,
    assert_valid_schema,
    build_schema,
    get_named_type,
)

from market.graphql import service
from market.graphql.domain import RESOURCES, Product, ProductPage, snake_case
from market.graphql.engine.errors import field_error
from market.graphql.engine.limits import ItemBudget
from market.graphql.service import Deps

_decode_products = msgspec.json.Decoder(ProductPage).decode


@dataclass(frozen=True)
class RootField:
    """A root field's use case, and the parameters whose name is not the argument's in snake_case."""

    use_case: Callable[..., Awaitable[Any]]
    parameters: dict[str, str] = field(default_factory=dict)

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return GraphQL's arguments by the names of the use case's parameters."""
        return {self.parameters.get(name) or snake_case(name): value for name, value in arguments.items()}


ROOT_FIELDS = {
    "product": RootField(service.get_product, {"id": "product_id"}),
    "products": RootField(service.list_products),
    "order": RootField(service.get_order, {"id": "order_id"}),
    "orders": RootField(service.list_orders),
    "createProduct": RootField(service.create_product, {"input": "product"}),
    "updateProduct": RootField(service.update_product, {"input": "product"}),
    "deleteProduct": RootField(service.delete_product, {"id": "product_id"}),
    "createOrder": RootField(service.create_order, {"input": "order"}),
    "deleteOrder": RootField(service.cancel_order, {"id": "order_id"}),
}


class ProductLoader:
    """A data loader: collects the products that order lines need while graphql-core walks the response, and
    fetches them together."""

    def __init__(self, deps: Deps) -> None:
        self._deps = deps
        self._requested: dict[str, asyncio.Future[Product | None]] = {}
        self._task: asyncio.Task[None] | None = None

    def load(self, product_id: str) -> asyncio.Future[Product | None]:
        """Return a future of the product, or of None if it has been deleted."""
        if not self._requested:
            self._task = asyncio.create_task(self._fetch())
        future = self._requested.get(product_id)
        if future is None:
            future = self._requested[product_id] = asyncio.get_running_loop().create_future()
        return future

    async def _fetch(self) -> None:
        requested, self._requested = self._requested, {}
        for ids, page in await service.products_by_id(self._deps, requested, stock=True):
            try:
                if isinstance(page, Exception):
                    raise page
                found = {p.id: p for p in _decode_products(page).items}
            except Exception as e:
                error = _graphql_error(e)
                for product_id in ids:
                    requested[product_id].set_exception(error)
            else:
                for product_id in ids:
                    requested[product_id].set_result(found.get(product_id))


@dataclass
class ResolverContext:
    """What the resolvers of one request share."""

    deps: Deps
    budget: ItemBudget
    products: ProductLoader = field(init=False)

    def __post_init__(self) -> None:
        self.products = ProductLoader(self.deps)


def load_schema() -> GraphQLSchema:
    """Return the published schema, schema.graphql, with resolvers that take a ResolverContext."""
    schema = build_schema(files("market.graphql").joinpath("schema.graphql").read_text("utf-8"))
    assert_valid_schema(schema)
    for root in (schema.query_type, schema.mutation_type):
        assert root is not None
        for name, definition in root.fields.items():
            definition.resolve = _root_resolver(name, get_named_type(definition.type).name)
    for name in RESOURCES:
        resource_type = schema.type_map[name]
        assert isinstance(resource_type, GraphQLObjectType)
        for member, definition in resource_type.fields.items():
            definition.resolve = _member_resolver(snake_case(member))
    item = schema.type_map["OrderItem"]
    assert isinstance(item, GraphQLObjectType)
    item.fields["product"].resolve = lambda source, info: info.context.products.load(source.product_id)
    return schema


async def execute(
    schema: GraphQLSchema,
    document: DocumentNode,
    operation_name: str | None,
    variables: dict[str, Any],
    context: ResolverContext,
) -> ExecutionResult:
    """Execute the operation by graphql-core. Its result's `data` is None only if the variables do not fit."""
    result = graphql.execute(
        schema, document, context_value=context, variable_values=variables, operation_name=operation_name
    )
    return await result if inspect.isawaitable(result) else result


def _root_resolver(name: str, type_name: str) -> Callable[..., Awaitable[Any]]:
    root_field = ROOT_FIELDS[name]
    decode = msgspec.json.Decoder(RESOURCES[type_name]).decode if type_name in RESOURCES else None

    async def resolve(_: Any, info: GraphQLResolveInfo[ResolverContext], **graphql_arguments: Any) -> Any:
        try:
            arguments = root_field.arguments(graphql_arguments)
            info.context.budget.spend(name, arguments)
            # Plans request the stock only if it is selected; the few operations without a plan always do.
            extra = {"stock": True} if type_name in ("Product", "ProductPage") else {}
            value = await root_field.use_case(info.context.deps, **arguments, **extra)
            return value if decode is None else decode(value)
        except Exception as e:
            raise _graphql_error(e) from None

    return resolve


def _member_resolver(name: str) -> Callable[[Any, GraphQLResolveInfo[Any]], Any]:
    get = attrgetter(name)
    return lambda source, _: get(source)


def _graphql_error(e: Exception) -> GraphQLError:
    error = field_error(e)
    return GraphQLError(str(error), extensions=error.extensions)
