"""The published schema with its resolvers: graphql-core's way through a request.

The compiler of plan.py takes another way to the same answers; this one covers everything.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from importlib.resources import files
from operator import attrgetter
from typing import Any

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
    execute,
    get_named_type,
)

from market.graphql.domain import TYPES, Product, ProductPage, snake
from market.graphql.problems import explained
from market.graphql.service import Ask, Shop

Call = Callable[..., Awaitable[Any]]

_page = msgspec.json.Decoder(ProductPage)


def load() -> GraphQLSchema:
    """The schema of graphql/schema.graphql, executable by graphql-core with a Context."""
    schema = build_schema(files("market.graphql").joinpath("schema.graphql").read_text("utf-8"))
    assert_valid_schema(schema)
    for root in (schema.query_type, schema.mutation_type):
        assert root is not None
        for name, definition in root.fields.items():
            definition.resolve = _root(name, get_named_type(definition.type).name)
    for name in TYPES:
        type = schema.type_map[name]
        assert isinstance(type, GraphQLObjectType)
        for member, definition in type.fields.items():
            definition.resolve = _member(snake(member))
    item = schema.type_map["OrderItem"]
    assert isinstance(item, GraphQLObjectType)
    item.fields["product"].resolve = lambda source, info: info.context.join.load(source.product_id)
    return schema


def use_case(name: str) -> Call:
    """The root field's function in service.py: takes a Shop and the arguments."""
    call: Call = getattr(Shop, snake(name))
    return call


def arguments(args: dict[str, Any]) -> dict[str, Any]:
    """GraphQL's arguments as the use cases name them."""
    return {snake(k): v for k, v in args.items()}


def _root(name: str, type: str) -> Callable[..., Awaitable[Any]]:
    call = use_case(name)
    decode = msgspec.json.Decoder(TYPES[type]).decode if type in TYPES else None

    async def resolve(_: Any, info: GraphQLResolveInfo[Context], **args: Any) -> Any:
        try:
            given = arguments(args)
            info.context.ask.take(name, given)
            answer = await call(info.context.shop, **given)
            return answer if decode is None else decode(answer)
        except Exception as e:
            raise _error(e) from None

    return resolve


def _member(name: str) -> Callable[[Any, GraphQLResolveInfo[Any]], Any]:
    get = attrgetter(name)
    return lambda source, _: get(source)


def _error(e: Exception) -> GraphQLError:
    told = explained(e)
    return GraphQLError(str(told), extensions=told.extensions)


class Join:
    """Gathers the products that order lines ask for while the answer is walked, and fetches them together."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._asked: dict[str, asyncio.Future[Product | None]] = {}
        self._task: asyncio.Task[None] | None = None

    def load(self, id: str) -> asyncio.Future[Product | None]:
        """The product to come; None where it has been deleted."""
        if not self._asked:
            self._task = asyncio.create_task(self._fetch())
        future = self._asked.get(id)
        if future is None:
            future = self._asked[id] = asyncio.get_running_loop().create_future()
        return future

    async def _fetch(self) -> None:
        asked, self._asked = self._asked, {}
        for ids, page in await self._shop.joined(asked):
            try:
                if isinstance(page, Exception):
                    raise page
                found = {p.id: p for p in _page.decode(page).items}
            except Exception as e:
                error = _error(e)
                for id in ids:
                    asked[id].set_exception(error)
            else:
                for id in ids:
                    asked[id].set_result(found.get(id))


@dataclass
class Context:
    """What the resolvers of one request share."""

    shop: Shop
    ask: Ask
    join: Join = field(init=False)

    def __post_init__(self) -> None:
        self.join = Join(self.shop)


async def run(
    schema: GraphQLSchema,
    document: DocumentNode,
    operation: str | None,
    variables: dict[str, Any],
    shop: Shop,
    ask: Ask,
) -> ExecutionResult:
    """The operation's result by graphql-core. `data` is None only where it could not begin: the variables do not fit."""
    result = execute(
        schema, document, context_value=Context(shop, ask), variable_values=variables, operation_name=operation
    )
    return await result if inspect.isawaitable(result) else result
