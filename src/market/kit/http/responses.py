"""Responses: JSON, and problem documents (RFC 9457)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.responses import Response

from market.kit.errors import Problem, Unavailable


class _Encoded(Response):
    """An answer whose bytes are there: Starlette's, without its rendering."""

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
    body: Any, status: int = 200, headers: Mapping[str, str] | None = None, *, content_type: bytes = b"application/json"
) -> Response:
    """A JSON answer, or another type's; the body is anything msgspec encodes, or bytes that are written already."""
    return _Encoded(body if isinstance(body, bytes) else msgspec.json.encode(body), status, content_type, headers)


def problem_response(problem: Problem) -> Response:
    """The RFC 9457 answer."""
    headers = {"Retry-After": str(problem.retry_after)} if isinstance(problem, Unavailable) else None
    return _Encoded(msgspec.json.encode(problem.document()), problem.status, b"application/problem+json", headers)
