"""Documents compiled into plans: what to fetch, how to read REST's JSON, and how to write the answer's.

graphql-core walks the answer field by field, in Python, for each request anew. But the shape of an answer is
known once the document is. So compiler.py makes, per selection set, a struct that msgspec reads out of REST's
JSON (the members selected, nothing else), a struct that it writes (the response's names in the response's
order), and one expression that makes the second from the first. Reading and writing are then C, and what is
left is one Python expression per thing. This file runs such a plan.

The answers are graphql-core's, errors included; a test holds the two together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from graphql import FieldNode, GraphQLError, GraphQLField
from graphql.execution import get_argument_values
from graphql.execution.values import VariableValues

from market.graphql.problems import explained
from market.graphql.service import Ask, Shop

Path = list[str | int]
Error = dict[str, Any]


@dataclass(frozen=True)
class Step:
    """A list on the way from a root field's answer to its order lines: the member, and its key in the response."""

    items: Callable[[Any], list[Any]]
    key: str


@dataclass(frozen=True)
class Join:
    """A selection of `OrderItem.product`: found by the lines' ids, in products' pages."""

    key: str
    locations: list[dict[str, int]]
    steps: tuple[Step, ...]
    availability: bool
    decode: Callable[[bytes], Any]
    write: Callable[[Any], Any]

    def lines(self, answer: Any) -> Iterable[Any]:
        """The order lines of a root field's answer."""
        level = [answer]
        for step in self.steps:
            level = [thing for outer in level for thing in step.items(outer)]
        return level

    def places(self, answer: Any, path: Path, depth: int = 0) -> Iterator[tuple[Path, Any]]:
        """The same, each with the path of its product."""
        if depth == len(self.steps):
            yield [*path, self.key], answer
            return
        step = self.steps[depth]
        for i, thing in enumerate(step.items(answer)):
            yield from self.places(thing, [*path, step.key, i], depth + 1)


@dataclass(frozen=True)
class Root:
    """A root field. `call` is its use case; `decode` is None where that answers the value itself."""

    key: str
    name: str
    locations: list[dict[str, int]]
    call: Callable[..., Any]
    extra: dict[str, Any]
    definition: GraphQLField
    node: FieldNode
    # The arguments, where no variable takes part.
    fixed: dict[str, Any] | None
    arguments: Callable[[dict[str, Any]], dict[str, Any]]
    decode: Callable[[bytes], Any] | None
    # Takes the answer, and per join the products by their ids.
    write: Callable[..., Any]
    joins: tuple[Join, ...]


class Plan:
    """An operation, compiled."""

    def __init__(self, roots: list[Root], constants: dict[str, str], keys: list[str], *, serial: bool) -> None:
        self._roots = roots
        # `__typename` of the operation's type, by its keys.
        self._constants = constants
        self._keys = keys
        self._serial = serial

    async def run(self, shop: Shop, ask: Ask, variables: VariableValues) -> bytes:
        """The response's JSON: data, and errors where there are any."""
        run = Run(shop, ask, variables)
        if self._serial:
            # A mutation's answer is whole, its products too, before the next one begins.
            for root in self._roots:
                await run.fetch(root)
                await run.join([root])
        else:
            if len(self._roots) == 1:
                await run.fetch(self._roots[0])
            else:
                await asyncio.gather(*map(run.fetch, self._roots))
            await run.join(self._roots)
        data = run.data
        if len(self._keys) > 1:
            data = {key: self._constants.get(key) or data.get(key) for key in self._keys}
        elif self._constants:
            data = self._constants
        return msgspec.json.encode({"data": data, "errors": run.errors} if run.errors else {"data": data})


class Run:
    """One request's way through a plan."""

    def __init__(self, shop: Shop, ask: Ask, variables: VariableValues) -> None:
        self._shop = shop
        self._ask = ask
        self._variables = variables
        self._answers: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.errors: list[Error] = []

    async def fetch(self, root: Root) -> None:
        """Gets the root field's answer, and writes it if nothing is joined to it. What fails is null and an error."""
        try:
            args = root.fixed
            if args is None:
                args = root.arguments(get_argument_values(root.definition, root.node, self._variables))
            self._ask.take(root.name, args)
            answer = await root.call(self._shop, **args, **root.extra)
            if root.decode is not None:
                answer = root.decode(answer)
            if root.joins:
                self._answers[root.key] = answer
                self.data[root.key] = None
            else:
                self.data[root.key] = root.write(answer)
        except Exception as e:
            self.data[root.key] = None
            self._failed(e, [root.key], root.locations)

    async def join(self, roots: list[Root]) -> None:
        """Gets the products that the answers' lines name, in one call per 100 distinct ids, and writes the answers."""
        joined = [root for root in roots if root.key in self._answers]
        if not joined:
            return
        ids = [
            line.product_id for root in joined for join in root.joins for line in join.lines(self._answers[root.key])
        ]
        availability = any(join.availability for root in joined for join in root.joins)
        batches = await self._shop.joined(ids, availability=availability) if ids else []
        for root in joined:
            answer = self._answers.pop(root.key)
            found = [self._found(join, answer, [root.key], batches) for join in root.joins]
            self.data[root.key] = root.write(answer, *found)

    def _found(
        self, join: Join, answer: Any, path: Path, batches: list[tuple[list[str], bytes | Exception]]
    ) -> dict[str, Any]:
        """The join's products as they are written, by id; for each line whose batch failed, an error."""
        products: dict[str, Any] = {}
        missing: dict[str, Exception] = {}
        for ids, page in batches:
            try:
                if isinstance(page, Exception):
                    raise page
                products.update({product.id: join.write(product) for product in join.decode(page).items})
            except Exception as e:
                missing.update(dict.fromkeys(ids, explained(e)))
        if missing:
            for place, line in join.places(answer, path):
                if line.product_id in missing:
                    self._failed(missing[line.product_id], place, join.locations)
        return products

    def _failed(self, e: Exception, path: Path, locations: list[dict[str, int]]) -> None:
        if isinstance(e, GraphQLError):
            # An argument that does not fit once its variable is known: it says itself where it stands.
            where = [{"line": at.line, "column": at.column} for at in e.locations or ()] or locations
            self.errors.append(
                {"message": e.message, "locations": where, "path": path, "extensions": {"code": "BAD_INPUT"}}
            )
            return
        told = explained(e)
        self.errors.append({"message": str(told), "locations": locations, "path": path, "extensions": told.extensions})
