"""The limits of one request: the size of its document, and the items on its pages."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    InlineFragmentNode,
    OperationDefinitionNode,
    SelectionSetNode,
)

from market.graphql.config import Limits
from market.kit.errors import BadInput

# The page limits of the REST contract: default and maximum.
PAGE_LIMITS = {"products": (20, 100), "orders": (100, 1000)}


def page_items(root_field: str, arguments: dict[str, Any]) -> int:
    """Return how many items the root field's page may have; 0 if the field is not a page."""
    if root_field not in PAGE_LIMITS:
        return 0
    default, maximum = PAGE_LIMITS[root_field]
    ids, limit = arguments.get("ids"), arguments.get("limit")
    requested = len(ids) if ids is not None else default if limit is None else limit
    # A limit out of range is rejected by the upstream, which has a more precise message.
    return min(max(requested, 1), maximum)


class ItemBudget:
    """The number of items that all pages of one request may contain together."""

    def __init__(self, items: int) -> None:
        self._items = items
        self._spent = 0

    def spend(self, root_field: str, arguments: dict[str, Any]) -> None:
        """Count the items that the root field's page may contain. Raises BadInput if they exceed the budget."""
        self._spent += page_items(root_field, arguments)
        if self._spent > self._items:
            reason = f"the pages of one request must have at most {self._items} items in total, got {self._spent}"
            raise BadInput("limit", reason)


class _Size(NamedTuple):
    depth: int
    fields: int
    aliases: int
    # The maximum number of fields of one name in one selection set.
    repeats: int
    # The number of fields of this selection set by their name in the response.
    names: Counter[str]


_NOTHING = _Size(0, 0, 0, 0, Counter())


def check_document(document: DocumentNode, limits: Limits) -> None:
    """Raise BadInput if the document, with its fragments spread, exceeds the limits, or a fragment spreads itself."""
    fragments = {d.name.value: d for d in document.definitions if isinstance(d, FragmentDefinitionNode)}
    sizes: dict[str, _Size | None] = {}
    written = 0

    def fragment_size(name: str) -> _Size:
        if name not in fragments:
            return _NOTHING  # Validation reports it.
        if name not in sizes:
            sizes[name] = None
            sizes[name] = selection_size(fragments[name].selection_set)
        size = sizes[name]
        if size is None:
            raise BadInput("query", f"fragment {name} must not spread itself")
        return size

    def selection_size(selections: SelectionSetNode) -> _Size:
        nonlocal written
        depth = fields = aliases = repeats = 0
        names: Counter[str] = Counter()
        for node in selections.selections:
            written += 1
            if isinstance(node, FieldNode):
                inner = selection_size(node.selection_set) if node.selection_set else _NOTHING
                inner_depth = inner.depth + 1
                fields += 1
                aliases += node.alias is not None
                names[(node.alias or node.name).value] += 1
            else:
                assert isinstance(node, InlineFragmentNode | FragmentSpreadNode)
                if isinstance(node, InlineFragmentNode):
                    inner = selection_size(node.selection_set)
                else:
                    inner = fragment_size(node.name.value)
                inner_depth = inner.depth
                if fields + inner.fields <= limits.fields:
                    names.update(inner.names)
            depth = max(depth, inner_depth)
            fields += inner.fields
            aliases += inner.aliases
            repeats = max(repeats, inner.repeats)
        repeats = max(repeats, max(names.values(), default=0))
        return _Size(depth, fields, aliases, repeats, names)

    for definition in document.definitions:
        if isinstance(definition, OperationDefinitionNode):
            _check_size(selection_size(definition.selection_set), limits)
        elif isinstance(definition, FragmentDefinitionNode):
            _check_size(fragment_size(definition.name.value), limits)
    # Validation compares all written selections with each other, whether they are spread or not.
    if written > 2 * limits.fields:
        raise BadInput("query", f"must have at most {2 * limits.fields} selections, got {written}")


def _check_size(size: _Size, limits: Limits) -> None:
    for what, value, limit in (
        ("levels of fields", size.depth, limits.depth),
        ("fields", size.fields, limits.fields),
        ("aliases", size.aliases, limits.aliases),
        ("fields of one name in one selection set", size.repeats, limits.repeats),
    ):
        if value > limit:
            # Fragments that spread each other twice make the number grow exponentially.
            got = f"{value}" if value < 10**9 else "more than a billion"
            raise BadInput("query", f"must have at most {limit} {what}, got {got}")
