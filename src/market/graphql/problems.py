"""What went wrong, as a GraphQL error says it: a message, a code, the facts, names in camelCase."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from market.graphql.domain import camel, camel_keys
from market.kit.errors import TYPE_PREFIX, BadInput, Problem, Unavailable
from market.kit.http.client import HttpResponse
from market.kit.process import logs

log = logs.get_logger("graphql")

# Members of every problem document; what is beside them are facts.
_STANDARD = {"type", "title", "status", "detail", "instance", "errors"}
_QUOTED = re.compile(r"`[^`]*`")


def _kinds(kind: type[Problem] = Problem) -> Iterator[tuple[str, str]]:
    yield kind.type, kind.code()
    for narrower in kind.__subclasses__():
        yield from _kinds(narrower)


class Refused(Exception):
    """A GraphQL error without its place: `str()` is the message, `extensions` has the code and the facts."""

    def __init__(self, message: str, code: str, facts: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.extensions: dict[str, Any] = {"code": code, **(facts or {})}


def refused(answer: HttpResponse, neighbour: str, prefix: str = "") -> Refused:
    """What a neighbour's problem document says. Fields are named below `prefix`, the argument that they came in."""
    if answer.headers.get("content-type", "").partition(";")[0].strip() != "application/problem+json":
        return Refused(f"{neighbour} answered {answer.status}", "UNAVAILABLE" if answer.status >= 502 else "INTERNAL")
    try:
        document = msgspec.json.decode(answer.body, type=dict[str, Any])
    except msgspec.DecodeError:
        return Refused(f"{neighbour} answered {answer.status}", "INTERNAL")
    type = str(document.get("type", "")).removeprefix(TYPE_PREFIX)
    code = dict(_kinds()).get(type) or type.upper().replace("-", "_") or "INTERNAL"
    facts = {k: camel_keys(v) for k, v in ((camel(k), v) for k, v in document.items() if k not in _STANDARD)}
    if (after := answer.headers.get("retry-after", "")).isdigit():
        facts["retryAfter"] = int(after)
    message = str(document.get("detail") or document.get("title") or f"{neighbour} answered {answer.status}")
    errors = document.get("errors")
    if code == "BAD_INPUT" and isinstance(errors, list) and errors:
        named = [
            {"field": field_name(str(e.get("field", "")), prefix), "reason": _words(str(e.get("reason", "")))}
            for e in errors
        ]
        facts = {"field": named[0]["field"], "errors": named, **facts}
        message = "; ".join(f"{e['field']}: {e['reason']}" if e["field"] else e["reason"] for e in named)
    return Refused(message, code, facts)


def field_name(field: str, prefix: str) -> str:
    """A REST field by the name of the argument or input field that it came from."""
    if field == "Idempotency-Key":
        return "idempotencyKey"
    if field in ("", "body", "query"):
        return prefix or field
    return f"{prefix}.{camel(field)}" if prefix else camel(field)


def _words(reason: str) -> str:
    return _QUOTED.sub(lambda m: camel(m[0]), reason)


def explained(e: Exception) -> Refused:
    """Any exception of a use case as Refused; a defect is logged, and nothing of it is told."""
    if isinstance(e, Refused):
        return e
    if isinstance(e, BadInput):
        return Refused(str(e), e.code(), {"field": e.field, "errors": [{"field": e.field, "reason": e.reason}]})
    if isinstance(e, Unavailable):
        return Refused(str(e), e.code(), {"retryAfter": e.retry_after, **camel_keys(e.facts())})
    if isinstance(e, Problem):
        return Refused(str(e), e.code(), camel_keys(e.facts()))
    log.error("field failed", exc_info=e)
    return Refused("this is a defect of ours; the log has it under the request id", "INTERNAL")
