"""Reading requests: headers, JSON bodies and query strings, parsed by msgspec in strict mode into the service's own structs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import inspect
from starlette.requests import Request

from market.kit.errors import BadInput, Malformed, UnsupportedMediaType

T = TypeVar("T")

JSON = "application/json"

# The field's name is the rest of the message: it may hold any character, a line break too.
_FIELD = re.compile(r" - at `(?:key in )?\$?\.?(.*)`$", re.DOTALL)
_QUOTED = re.compile(r"field `(.*)`$", re.DOTALL)
_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,18})")


def bad_input(e: msgspec.ValidationError) -> BadInput:
    """The decoder's complaint as ours: which field, and what is allowed."""
    text = str(e)
    where = _FIELD.search(text)
    field = where[1] if where else ""
    reason = text[: where.start()] if where else text
    if named := _QUOTED.search(reason):
        field = f"{field}.{named[1]}" if field else named[1]
    return BadInput(field[:200] or "body", (reason[0].lower() + reason[1:])[:500])


def read_header(request: Request, name: bytes) -> bytes | None:
    """A header's value; `name` in lower case. What came several times is joined by commas, as RFC 9110 has it."""
    found = [value for key, value in request.scope["headers"] if key == name]
    return b", ".join(found) if found else None


async def read_body(request: Request, decoder: msgspec.json.Decoder[T]) -> T:
    """The request's body. Raises Malformed, BadInput, UnsupportedMediaType, TooLarge."""
    content_type = read_header(request, b"content-type")
    if content_type != b"application/json":
        _check_type((content_type or b"").decode("latin-1"))
    if (read_header(request, b"content-encoding") or b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Content-Encoding", "must be absent: compressed bodies are not taken")
    data = await request.body()
    try:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError as e:
            # It stops at the first field that is wrong; what comes behind may not even be JSON.
            msgspec.json.decode(data)
            raise bad_input(e) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise Malformed("body", f"is not JSON: {e}") from None


def _check_type(content_type: str) -> None:
    kind, *parameters = content_type.split(";")
    if kind.strip().lower() != JSON:
        raise UnsupportedMediaType("Content-Type", "must be application/json")
    for parameter in parameters:
        name, _, value = parameter.strip().lower().partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8"):
            raise UnsupportedMediaType("Content-Type", "charset must be utf-8")


def parse_query(request: Request, type: type[T]) -> T:
    """The query string as a struct: unknown and repeated names, and values out of bounds, are BadInput."""
    raw: bytes = request.scope["query_string"]
    values: dict[str, Any] = {}
    if raw:
        try:
            pairs = parse_qsl(raw.decode(), keep_blank_values=True, errors="strict", max_num_fields=50)
        except ValueError:  # UnicodeDecodeError is one, too.
            raise BadInput("query", "is not a query string in UTF-8") from None
        readers = _readers(type)  # type: ignore[arg-type]
        for name, value in pairs:
            if name in values:
                raise BadInput(name, "is given twice")
            reader = readers.get(name)
            values[name] = reader(value) if reader else value
    try:
        return msgspec.convert(values, type)
    except msgspec.ValidationError as e:
        raise bad_input(e) from None


@lru_cache
def _readers(type: Any) -> dict[str, Callable[[str], Any]]:
    """Readers of the fields that are not plain text. msgspec's own lax mode takes 1e2 and 20.0 for an int."""
    info = inspect.type_info(type)
    assert isinstance(info, inspect.StructType)
    readers = {}
    for field in info.fields:
        kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        for kind in kinds:
            if made := _reader(field.encode_name, kind):
                readers[field.encode_name] = made
    return readers


def _reader(name: str, kind: inspect.Type) -> Callable[[str], Any] | None:
    if isinstance(kind, inspect.IntType):
        least, most = kind.ge, kind.le
        bounds = f" from {least} to {most}" if least is not None and most is not None else ""

        def whole(text: str) -> int:
            if not _WHOLE.fullmatch(text):
                raise BadInput(name, f"must be a whole number{bounds}")
            value = int(text)
            if (least is not None and value < least) or (most is not None and value > most):
                raise BadInput(name, f"must be a whole number{bounds}")
            return value

        return whole
    if isinstance(kind, inspect.BoolType):
        return lambda text: _one_of(name, text, {"true": True, "false": False})
    if isinstance(kind, inspect.LiteralType):
        allowed = {str(value): value for value in kind.values}
        return lambda text: _one_of(name, text, allowed)
    return None


def _one_of(name: str, text: str, allowed: Mapping[str, Any]) -> Any:
    if text not in allowed:
        raise BadInput(name, f"must be one of {', '.join(allowed)}")
    return allowed[text]
