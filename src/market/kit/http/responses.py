"""Responses: JSON, and problem documents (RFC 9457)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from market.kit.errors import Problem, Unavailable

# The elements of a list separated by commas. A quoted text may contain commas, and quotes after a backslash.
_PREFERENCES = re.compile(rb'(?:"(?:[^"\\]|\\.)*"?|[^",])+')


class _Encoded(Response):
    """A Starlette response whose body is encoded already; it skips Starlette's rendering."""

    def __init__(self, body: bytes, status: int, content_type: bytes, headers: Mapping[str, str] | None) -> None:
        self.body = body
        self.status_code = status
        self.background = None
        self.raw_headers = [(b"content-type", content_type), (b"content-length", b"%d" % len(body))]
        if headers:
            self.raw_headers += [
                (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()
            ]


def json_response(
    body: Any,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    *,
    content_type: bytes = b"application/json",
) -> Response:
    """Return a response with the body encoded as JSON.

    A body of type bytes is sent unchanged, and may have any `content_type`.
    """
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return _Encoded(data, status, content_type, headers)


def prefers_representation(request: Request) -> bool:
    """Return whether the client prefers a response with the changed resource (`Prefer: return=representation`).

    Other preferences, and parameters, are ignored. If `return` is repeated, the first one counts.

    Source: RFC 7240, sections 2 and 4.2
    """
    header = b",".join(value for name, value in request.scope["headers"] if name == b"prefer")
    for preference in _PREFERENCES.findall(header):
        name, _, value = preference.partition(b";")[0].partition(b"=")
        if name.strip().lower() == b"return":
            return bool(value.strip().strip(b'"').lower() == b"representation")
    return False


def problem_response(problem: Problem) -> Response:
    """Return the problem document (RFC 9457) with its status, and Retry-After if the request may be repeated."""
    headers = {"Retry-After": str(problem.retry_after)} if isinstance(problem, Unavailable) else None
    return _Encoded(msgspec.json.encode(problem.document()), problem.status, b"application/problem+json", headers)
