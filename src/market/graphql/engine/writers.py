"""Makes the structs of a plan, and the functions that turn what was read into what is written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import starmap
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct, defstruct

from market.graphql.domain import RESOURCES
from market.graphql.engine.costs import response_factor
from market.graphql.engine.plan import ListStep, ProductJoin, Write
from market.graphql.engine.selections import SelectedField

# The members that are lists of resources.
_LISTS = ("items", "shortages")
# The members of a resource that are read, each with the members of the objects in it.
Members = dict[str, "Members"]
# Replaces one member of each response object. The second argument is that of Write.
_Replace = Callable[[Sequence[Any], Sequence[dict[str, Any]]], None]


class Writer(NamedTuple):
    """A selection set's function, and the joins whose products it takes."""

    write: Write
    joins: tuple[ProductJoin, ...]


def members(fields: list[SelectedField]) -> Members:
    """Return the members to read for these fields. A line's product is found by its id."""
    found: Members = {}
    for f in fields:
        if f.name == "__typename":
            continue
        below = found.setdefault("product_id" if f.is_join else f.member, {})
        if f.fields is not None and not f.is_join:
            _merge(below, members(f.fields))
    return found


def _merge(into: Members, more: Members) -> None:
    for member, below in more.items():
        _merge(into.setdefault(member, {}), below)


def reader(type_name: str, needed: Members) -> type[Struct]:
    """Return the struct that decodes these members of a REST resource and skips the others."""
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for member in msgspec.structs.fields(RESOURCES[type_name]):
        if member.name in needed:
            item_type = member.type.__args__[0].__name__ if member.name in _LISTS else None
            kind = list[reader(item_type, needed[member.name])] if item_type else member.type  # type: ignore[misc]
            # A list that may be absent has a factory, not a default.
            default = member.default if item_type is None else msgspec.field(default_factory=list)
            fields.append((member.name, kind) if member.required else (member.name, kind, default))
    return defstruct(type_name, fields, frozen=True, gc=False, namespace={"__typename": type_name})


def response_struct(fields: list[SelectedField]) -> type[Struct]:
    """Return the struct that encodes these fields by their keys. Its members are f0, f1 and so on."""
    keys = {f"f{i}": f.key for i, f in enumerate(fields)}
    return defstruct("Response", [(member, Any) for member in keys], rename=keys, gc=False)


def product_join(
    selected: SelectedField, steps: tuple[ListStep, ...], make_writer: Callable[[SelectedField], Writer]
) -> ProductJoin:
    """Return the join of a selection of `OrderItem.product` that is below these lists."""
    assert selected.fields is not None
    needed = {**members(selected.fields), "id": {}}
    decode = msgspec.json.Decoder(reader("ProductPage", {"items": needed})).decode
    return ProductJoin(
        selected.key,
        selected.locations,
        steps,
        availability="available" in needed,
        stock="stock" in needed,
        decode=decode,
        write=make_writer(selected).write,
        response_factor=response_factor(selected),
    )


def object_writer(selected: SelectedField) -> Writer:
    """Return the writer of a field that is an object or a list of objects."""
    joins: list[ProductJoin] = []
    return Writer(_write_objects(selected, (), joins), tuple(joins))


def _write_objects(selected: SelectedField, steps: tuple[ListStep, ...], joins: list[ProductJoin]) -> Write:
    """Return the function of one selection set, and add its joins to `joins`.

    It makes each response object of its members' values as they were read, in C. Lists and joined products are not
    written as they were read: they are replaced afterwards.
    """
    assert selected.fields is not None
    response_type = response_struct(selected.fields)
    if not selected.fields:
        # Conditions have excluded all of them.
        return lambda items, _: [response_type() for _ in items]
    values = attrgetter(*["product_id" if f.is_join else f.member for f in selected.fields])
    # attrgetter returns a tuple, but of a single member its bare value.
    make = map if len(selected.fields) == 1 else starmap
    replacements: list[_Replace] = []
    for i, f in enumerate(selected.fields):
        if f.is_join:
            replacements.append(_replace_id(f"f{i}", len(joins)))
            joins.append(product_join(f, steps, object_writer))
        elif f.fields is not None:
            write_items = _write_objects(f, (*steps, ListStep(attrgetter(f.member), f.key)), joins)
            replacements.append(_replace_list(f"f{i}", write_items))

    def write(items: Sequence[Any], products: Sequence[dict[str, Any]]) -> Sequence[Any]:
        written = list(make(response_type, map(values, items)))
        for replace in replacements:
            replace(written, products)
        return written

    return write


def _replace_id(member: str, join: int) -> _Replace:
    """Return a function that replaces a product's id by the product, or by None if it has been deleted."""

    def replace(written: Sequence[Any], products: Sequence[dict[str, Any]]) -> None:
        find = products[join].get
        for item in written:
            setattr(item, member, find(getattr(item, member)))

    return replace


def _replace_list(member: str, write_items: Write) -> _Replace:
    """Return a function that replaces a list as it was read by the list to write."""

    def replace(written: Sequence[Any], products: Sequence[dict[str, Any]]) -> None:
        for item in written:
            setattr(item, member, write_items(getattr(item, member), products))

    return replace
