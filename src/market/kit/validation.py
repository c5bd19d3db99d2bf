"""Validation errors in plain words. (msgspec's messages name Python types and quote regular expressions.)

    field, reason = explain(error, Order, data)     # ("items[0].quantity", "must be between 1 and 1000000, got 0")

A pattern is explained by the `rule` in its metadata: `Meta(pattern=..., extra={"rule": "must be a UUID"})`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import msgspec
from msgspec import inspect

from market.kit.errors import MAX_INPUT_ERRORS
from market.kit.text import pluralize

_PATH = re.compile(r" - at `(?:key in )?\$(.*)`$", re.DOTALL)
_PATH_SEGMENT = re.compile(r"\[(\d+|\.\.\.)\]|\.([^.\[\]]+)")
_FIELD = re.compile(r"Object (contains unknown|missing required) field `(.*)`", re.DOTALL)
_TYPES = re.compile(r"Expected `([^`]*)`, got `([^`]*)`")
_ENUM = re.compile(r"Invalid enum value (.*)", re.DOTALL)

_UNKNOWN = object()
_MAX_SHOWN = 40
_TYPE_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
    "uuid": "a UUID",
    "decimal": "a decimal number",
    "datetime": "a date and time",
    "date": "a date",
    "bytes": "a base64 string",
}
_FORMATS = {"uuid": "must be a UUID", "email": "must be an e-mail address"}


def explain(error: msgspec.ValidationError, expected_type: Any, data: Any, at: str = "") -> tuple[str, str]:
    """Return (path, reason): the path of the invalid field, empty for the top level, and what is wrong with it.

    data: JSON values. The reason may quote a number from it, or the length of a text or list.
    at: the path of the part of `data` whose validation raised `error`, such as ".items[0]"; "" for all of it.
    """
    message = str(error)
    found = _PATH.search(message)
    path, message = (found[1], message[: found.start()]) if found else ("", message)
    path = at + path
    field = path.lstrip(".")
    if named := _FIELD.fullmatch(message):
        return (f"{field}.{named[2]}" if field else named[2]), "is unknown" if "unknown" in named[1] else "is missing"
    if types := _TYPES.fullmatch(message):
        return field, f"must be {_in_words(types[1])}, got {'a boolean' if types[2] == 'bool' else _in_words(types[2])}"
    candidates = list(_types_at(_type_info(expected_type), path))
    value = _value_at(data, path)
    if unlisted := _ENUM.fullmatch(message):
        allowed = [v for node, _ in candidates for v in _choices(node)]
        return field, f"must be one of {', '.join(map(str, allowed))}, got {unlisted[1][:_MAX_SHOWN]}"
    if "matching regex" in message:
        return field, next((rule for node, rule in candidates if rule and _has_pattern(node)), "has the wrong format")
    if message.startswith("Expected `"):
        for node, _ in candidates:
            if reason := _bounds(node, value):
                return field, reason
        return field, "is out of range"
    if message.startswith(("Invalid UUID", "Invalid RFC3339", "Invalid date", "Invalid decimal")):
        kind = "UUID" if "UUID" in message else "decimal number" if "decimal" in message else "date or time (RFC 3339)"
        return field, f"must be a {kind}"
    # A struct's `__post_init__` raised the error, so it is already in plain words.
    return field, message[:1].lower() + message[1:]


def explain_all(expected_type: Any, data: Any, limit: int = MAX_INPUT_ERRORS) -> list[tuple[str, str]]:
    """Return (path, reason) of each invalid field, up to `limit` of them. msgspec itself stops at the first one.

    data: JSON values that are not valid as `expected_type`. They are validated again, field by field.
    """
    return list(islice(_failures(expected_type, data, expected_type, data, ""), limit))


def _failures(whole_type: Any, whole: Any, value_type: Any, value: Any, at: str) -> Iterator[tuple[str, str]]:
    """Yield (path, reason) of each invalid field in `value`.

    whole: the data that contains the value, for `explain`.
    at: the path of the value in it.
    """
    try:
        msgspec.convert(value, value_type)
        return
    except msgspec.ValidationError as e:
        error = e
    found = False
    for failure in _failures_inside(whole_type, whole, value_type, value, at):
        found = True
        yield failure
    if not found:
        # The value itself is wrong: its type, its length, or the combination of its fields.
        yield explain(error, whole_type, whole, at)


def _failures_inside(whole_type: Any, whole: Any, value_type: Any, value: Any, at: str) -> Iterator[tuple[str, str]]:
    """Yield the failures of a struct's fields, or of a list's items."""
    struct, item_type = _parts(value_type)
    if struct is not None and isinstance(value, dict):
        fields = {field.encode_name: field for field in msgspec.structs.fields(struct)}
        for name in value:
            if name in fields:
                yield from _failures(whole_type, whole, fields[name].type, value[name], f"{at}.{name}")
            elif struct.__struct_config__.forbid_unknown_fields:
                yield f"{at}.{name}".lstrip("."), "is unknown"
        for name, field in fields.items():
            if field.required and name not in value:
                yield f"{at}.{name}".lstrip("."), "is missing"
    elif item_type is not None and isinstance(value, list):
        for i, item in enumerate(value):
            yield from _failures(whole_type, whole, item_type, item, f"{at}[{i}]")


def _parts(value_type: Any) -> tuple[type[msgspec.Struct] | None, Any]:
    """Return (struct, item type). Either may be None.

    struct: `value_type` itself or, if it is a union, its first struct
    item type: the type of the items, if `value_type` is a list or a union with a list
    """
    origin, arguments = get_origin(value_type), get_args(value_type)
    if origin is Annotated:
        return _parts(arguments[0])
    if origin is list:
        return None, arguments[0]
    if origin in (Union, UnionType):
        parts = [_parts(alternative) for alternative in arguments]
        return next((s for s, _ in parts if s), None), next((i for _, i in parts if i), None)
    return (value_type if isinstance(value_type, type) and issubclass(value_type, msgspec.Struct) else None), None


@lru_cache(maxsize=64)
def _type_info(expected_type: Any) -> inspect.Type:
    return inspect.type_info(expected_type)


def _in_words(names: str) -> str:
    """Return "a whole number or null" for `int | null`."""
    return " or ".join(_TYPE_WORDS.get(name, name) for name in names.split(" | "))


def _alternatives(node: inspect.Type, rule: str | None = None) -> Iterator[tuple[inspect.Type, str | None]]:
    """Yield (type, rule) for each alternative of a union. `rule` is from the type's metadata, or None."""
    if isinstance(node, inspect.Metadata):
        stated = (node.extra or {}).get("rule") or _FORMATS.get((node.extra_json_schema or {}).get("format", ""))
        yield from _alternatives(node.type, stated or rule)
    elif isinstance(node, inspect.UnionType):
        for each in node.types:
            yield from _alternatives(each, rule)
    else:
        yield node, rule


def _types_at(node: inspect.Type, path: str) -> Iterator[tuple[inspect.Type, str | None]]:
    """Yield (type, rule) for each type that is allowed at the path."""
    nodes = list(_alternatives(node))
    for segment in _PATH_SEGMENT.finditer(path):
        inner: list[tuple[inspect.Type, str | None]] = []
        for each, _ in nodes:
            if isinstance(each, inspect.StructType) and segment[2]:
                inner += [u for f in each.fields if f.encode_name == segment[2] for u in _alternatives(f.type)]
            elif isinstance(each, (inspect.ListType, inspect.SetType, inspect.VarTupleType)) and segment[1]:
                inner += _alternatives(each.item_type)
            elif isinstance(each, inspect.DictType):
                inner += [*_alternatives(each.value_type), *_alternatives(each.key_type)]
        nodes = inner
    yield from nodes


def _value_at(data: Any, path: str) -> Any:
    for segment in _PATH_SEGMENT.finditer(path):
        try:
            data = data[int(segment[1])] if segment[1] else data[segment[2]]
        except (KeyError, IndexError, TypeError, ValueError):
            return _UNKNOWN
    return data


def _choices(node: inspect.Type) -> list[Any]:
    if isinstance(node, inspect.LiteralType):
        return sorted(node.values, key=str)
    return [member.value for member in node.cls] if isinstance(node, inspect.EnumType) else []


def _has_pattern(node: inspect.Type) -> bool:
    return isinstance(node, inspect.StrType) and node.pattern is not None


def _bounds(node: inspect.Type, value: Any) -> str | None:
    """Return the type's limits in words, and the number or length that violates them. None if it has no limits."""
    if isinstance(node, (inspect.IntType, inspect.FloatType)):
        got = f", got {value}" if isinstance(value, (int, float)) and len(str(value)) <= _MAX_SHOWN else ""
        if node.multiple_of is not None and isinstance(value, (int, float)) and _within_bounds(node, value):
            return f"must be a multiple of {node.multiple_of}{got}"
        if node.ge is not None and node.le is not None:
            return f"must be between {node.ge} and {node.le}{got}"
        limits = {"at least": node.ge, "more than": node.gt, "at most": node.le, "less than": node.lt}
        stated = " and ".join(f"{words} {limit:.15g}" for words, limit in limits.items() if limit is not None)
        return f"must be {stated}{got}" if stated else None
    unit = "character" if isinstance(node, inspect.StrType) else "item"
    minimum, maximum = getattr(node, "min_length", None), getattr(node, "max_length", None)
    got = f", got {len(value)}" if isinstance(value, (str, list, dict)) else ""
    if minimum is not None and maximum is not None:
        return f"must have {minimum} to {pluralize(maximum, unit)}{got}"
    if minimum is not None:
        return f"must have at least {pluralize(minimum, unit)}{got}"
    return None if maximum is None else f"must have at most {pluralize(maximum, unit)}{got}"


def _within_bounds(node: inspect.IntType | inspect.FloatType, value: float) -> bool:
    return (
        (node.ge is None or value >= node.ge)
        and (node.gt is None or value > node.gt)
        and (node.le is None or value <= node.le)
        and (node.lt is None or value < node.lt)
    )
