"""Parses the headers of requests, and decodes JSON bodies and query strings into structs (in msgspec's strict mode)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeVar
from urllib.parse import parse_qsl

import msgspec
from msgspec import inspect
from starlette.requests import Request

from market.kit.errors import MAX_INPUT_ERRORS, BadInput, InputErrors, Malformed, UnsupportedMediaType
from market.kit.validation import explain, explain_all

T = TypeVar("T")

# The maximum number of parameters in a query string. It is larger if a field is a list, because each item of the list
# may be sent as a parameter of its own.
_MAX_PARAMETERS, _MAX_PARAMETERS_WITH_LIST = 50, 150
_STRAY_PERCENT = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_WHOLE_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,18})")
_IDEMPOTENCY_KEY = re.compile(rb"[!-~]{1,255}")


def read_header(request: Request, name: bytes) -> bytes | None:
    """Return a header's value, or None. `name` is in lower case. Repeated headers are joined by commas (RFC 9110)."""
    found = [value for key, value in request.scope["headers"] if key == name]
    return b", ".join(found) if found else None


# If-Modified-Since is left out: a server ignores it if a resource has no modification date (RFC 9110, section 13.1.3).
_PRECONDITIONS = {
    b"if-match": "If-Match",
    b"if-none-match": "If-None-Match",
    b"if-unmodified-since": "If-Unmodified-Since",
}


def reject_unsupported_preconditions(request: Request, *supported: bytes) -> None:
    """Raise BadInput for a precondition header (RFC 9110, section 13.1) that the endpoint would ignore.

    supported: the precondition headers that the endpoint evaluates, in lower case.
    """
    for name, value in request.scope["headers"]:
        if name[:3] == b"if-" and name in _PRECONDITIONS and name not in supported:
            if name == b"if-none-match" and request.method in ("GET", "HEAD") and value.strip() != b"*":
                # The response has no entity tag, so the condition is true.
                continue
            raise BadInput(_PRECONDITIONS[name], f"is not supported for {request.method} {request.url.path}")


def parse_quality(parameters: list[str]) -> float:
    """Return the quality value `q` (RFC 9110, section 12.4.2) among the parameters of one entry in a header.

    The parameters must be in lower case. Return 1 if there is no `q`, and 0 if it is not a number. A number below 0 or
    above 1 is clamped.
    """
    for parameter in parameters:
        if parameter.startswith("q="):
            try:
                return min(1.0, max(0.0, float(parameter[2:])))
            except ValueError:
                return 0.0
    return 1.0


def idempotency_key(request: Request) -> str | None:
    """Return the Idempotency-Key, or None if there is none.

    Raises BadInput unless it is 1 to 255 visible ASCII characters.
    """
    value = read_header(request, b"idempotency-key")
    if value is None:
        return None
    if not _IDEMPOTENCY_KEY.fullmatch(value):
        raise BadInput("Idempotency-Key", "must have 1 to 255 visible ASCII characters")
    return value.decode("ascii")


async def read_body(
    request: Request,
    decoder: msgspec.json.Decoder[T],
    checks: Mapping[str, Callable[[Any], object]] = MappingProxyType({}),
) -> T:
    """Return the decoded JSON body. Raises Malformed, BadInput, UnsupportedMediaType, TooLarge.

    checks: by field, a function that raises BadInput for an invalid value. If the decoder finds an error, the functions
        are called for the other fields, so that the error lists all invalid fields. Otherwise they are not called.
    """
    content_type = read_header(request, b"content-type")
    if content_type != b"application/json":
        _check_content_type((content_type or b"").decode("latin-1"))
    if (read_header(request, b"content-encoding") or b"identity").lower() != b"identity":
        raise UnsupportedMediaType("Content-Encoding", "must be absent: compressed bodies are not supported")
    data = await request.body()
    try:
        try:
            return decoder.decode(data)
        except msgspec.ValidationError as e:
            # The decoder stops at the first invalid field. If the rest of the body is not JSON, Malformed is raised.
            raise _bad_input(e, decoder.type, msgspec.json.decode(data), checks) from None
    except UnicodeDecodeError:
        raise Malformed("body", "is not valid UTF-8") from None
    except RecursionError:
        raise Malformed("body", "is nested too deeply") from None
    except msgspec.DecodeError as e:
        raise Malformed("body", f"is not valid JSON: {str(e).removeprefix('JSON is malformed: ').lower()}") from None


def _check_content_type(content_type: str) -> None:
    media_type, *parameters = content_type.split(";")
    if media_type.strip().lower() != "application/json":
        raise UnsupportedMediaType("Content-Type", "must be application/json")
    for parameter in parameters:
        name, _, value = parameter.strip().lower().partition("=")
        if name == "charset" and value.strip('"') not in ("utf-8", "utf8"):
            raise UnsupportedMediaType("Content-Type", "charset must be utf-8")


def parse_pairs(query_string: bytes, max_pairs: int) -> list[tuple[str, str]]:
    """Return the names and values of a query string. Raises BadInput."""
    if _STRAY_PERCENT.search(query_string):
        raise BadInput("query", "must be percent-encoded: a % must be followed by two hexadecimal digits")
    try:
        return parse_qsl(query_string.decode(), keep_blank_values=True, errors="strict", max_num_fields=max_pairs)
    except ValueError:  # Includes UnicodeDecodeError.
        raise BadInput("query", f"must be a query string in UTF-8 with at most {max_pairs} parameters") from None


def parse_query(request: Request, query_type: type[T]) -> T:
    """Return the query string as a struct. Raises BadInput for unknown or repeated names and values out of bounds."""
    raw: bytes = request.scope["query_string"]
    values: dict[str, Any] = {}
    errors = InputErrors()
    if raw:
        lists = _lists(query_type)  # type: ignore[arg-type]
        max_parameters = _MAX_PARAMETERS_WITH_LIST if lists else _MAX_PARAMETERS
        pairs = parse_pairs(raw, max_parameters)
        parsers = _parsers(query_type)  # type: ignore[arg-type]
        for name, value in pairs:
            if name in lists:
                values.setdefault(name, []).append(value)
                continue
            with errors:
                if name in values:
                    raise BadInput(name, "must not be repeated")
                # Set it even if parsing fails, or the parameter would be reported as missing.
                values[name] = value
                if parse := parsers.get(name):
                    values[name] = parse(value)
    try:
        query = msgspec.convert(values, query_type)
    except msgspec.ValidationError as e:
        known = {field for field, _ in errors.collected}
        found = _bad_input(e, query_type, values).errors
        errors.collected += [(field, reason) for field, reason in found if field not in known]
    errors.raise_collected()
    return query


def _bad_input(
    error: msgspec.ValidationError,
    expected_type: Any,
    data: Any,
    checks: Mapping[str, Callable[[Any], object]] = MappingProxyType({}),
) -> BadInput:
    found = explain_all(expected_type, data) or [explain(error, expected_type, data)]
    errors = InputErrors([(field[:200] or "body", reason[:500]) for field, reason in found])
    wrong = {re.split(r"[.\[]", field)[0] for field, _ in found}
    for name, check in checks.items():
        if isinstance(data, dict) and name in data and name not in wrong:
            with errors:
                check(data[name])
    first, *others = errors.collected[:MAX_INPUT_ERRORS]
    return BadInput(*first, *others)


def _alternatives(field: inspect.Field) -> tuple[inspect.Type, ...]:
    return field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)


@lru_cache
def _lists(query_type: Any) -> frozenset[str]:
    """Return the names of the fields that are lists."""
    info = inspect.type_info(query_type)
    assert isinstance(info, inspect.StructType)
    return frozenset(
        field.encode_name
        for field in info.fields
        if any(isinstance(alternative, inspect.ListType) for alternative in _alternatives(field))
    )


@lru_cache
def _parsers(query_type: Any) -> dict[str, Callable[[str], Any]]:
    """Return the parsers of the fields that are not text, by field name.

    msgspec's lax mode is not used, because it accepts 1e2 and 20.0 as an int.
    """
    info = inspect.type_info(query_type)
    assert isinstance(info, inspect.StructType)
    parsers = {}
    for field in info.fields:
        for alternative in _alternatives(field):
            if parse := _parser(field.encode_name, alternative):
                parsers[field.encode_name] = parse
    return parsers


def _parser(name: str, field_type: inspect.Type, advice: str = "") -> Callable[[str], Any] | None:
    """Return the parser of a type, or None for text.

    advice: text to append to the error message for an invalid number.
    """
    if isinstance(field_type, inspect.Metadata):
        return _parser(name, field_type.type, (field_type.extra or {}).get("advice", ""))
    if isinstance(field_type, inspect.IntType):
        low, high = field_type.ge, field_type.le
        bounds = f" from {low} to {high}" if low is not None and high is not None else ""
        if advice:
            bounds += f"; {advice}"

        def whole_number(text: str) -> int:
            if not _WHOLE_NUMBER.fullmatch(text):
                raise BadInput(name, f"must be a whole number{bounds}")
            value = int(text)
            if (low is not None and value < low) or (high is not None and value > high):
                raise BadInput(name, f"must be a whole number{bounds}")
            return value

        return whole_number
    if isinstance(field_type, inspect.BoolType):
        return lambda text: _one_of(name, text, {"true": True, "false": False})
    if isinstance(field_type, inspect.LiteralType):
        allowed = {str(value): value for value in field_type.values}
        return lambda text: _one_of(name, text, allowed)
    return None


def _one_of(name: str, text: str, allowed: Mapping[str, Any]) -> Any:
    if text not in allowed:
        raise BadInput(name, f"must be one of {', '.join(allowed)}")
    return allowed[text]
