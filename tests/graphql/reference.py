"""The published schema with resolvers for graphql-core: the reference for what plans return.

It resolves a response field by field, as the specification describes it, without the limits on memory.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import graphql
import msgspec
from graphql import (
    GraphQLError,
    GraphQLObjectType,
    GraphQLResolveInfo,
    GraphQLSchema,
    get_named_type,
    get_variable_values,
)

from market.graphql import service
from market.graphql.config import DocumentCacheSize, Limits
from market.graphql.domain import RESOURCES, Product, ProductPage, snake_case
from market.graphql.engine.documents import DocumentCache
from market.graphql.engine.errors import execution_error, field_error, request_error
from market.graphql.engine.executor import Result
from market.graphql.engine.limits import ItemBudget
from market.graphql.engine.resolvers import ROOT_FIELDS, load_schema
from market.graphql.service import Deps

_decode_products = msgspec.json.Decoder(ProductPage).decode


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
        for ids, page in await service.products_by_id(self._deps, requested, 2000, stock=True):
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


def executable_schema() -> GraphQLSchema:
    """Return the published schema with resolvers that take a ResolverContext."""
    schema = load_schema()
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


async def execute_request(deps: Deps, limits: Limits, text: str, variables: dict[str, Any]) -> Result:
    """Return the response to a document with one operation."""
    prepared = DocumentCache(SCHEMA, limits, DocumentCacheSize()).prepare(text, None)
    errors = prepared.errors
    if not errors:
        assert prepared.operation is not None
        coerced = get_variable_values(SCHEMA, prepared.operation.variable_definitions or (), variables, max_errors=20)
        if isinstance(coerced, list):
            errors = [request_error(e, "variables") for e in coerced]
        elif missing := [name for name in prepared.conditions if coerced.coerced.get(name) is None]:
            message = f"variables: ${missing[0]} must not be null, because @skip or @include depends on it"
            errors = [request_error(GraphQLError(message), "variables")]
    if errors:
        return Result(False, msgspec.json.encode({"errors": errors}))
    assert prepared.document is not None
    context = ResolverContext(deps, ItemBudget(limits.list_items))
    result = graphql.execute(SCHEMA, prepared.document, context_value=context, variable_values=variables)
    if inspect.isawaitable(result):
        result = await result
    response: dict[str, Any] = {"data": result.data}
    if result.errors:
        response["errors"] = [execution_error(e) for e in result.errors]
    return Result(True, msgspec.json.encode(response))


def _root_resolver(name: str, type_name: str) -> Callable[..., Awaitable[Any]]:
    root_field = ROOT_FIELDS[name]
    decode = msgspec.json.Decoder(RESOURCES[type_name]).decode if type_name in RESOURCES else None

    async def resolve(_: Any, info: GraphQLResolveInfo[ResolverContext], **graphql_arguments: Any) -> Any:
        try:
            arguments = root_field.arguments(graphql_arguments)
            info.context.budget.spend(name, arguments)
            # Plans request the stock only if it is selected.
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


SCHEMA = executable_schema()
