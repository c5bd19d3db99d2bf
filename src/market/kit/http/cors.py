"""Cross-origin resource sharing: pages of the configured origins may call the API (https://fetch.spec.whatwg.org).

Without configured origins, no CORS headers are sent, and browsers do not let pages of other origins read responses.
"""

from __future__ import annotations

from collections.abc import Sequence

from starlette.responses import Response

_ANY_ORIGIN = b"*"

# The request headers that pages may send: those that the services read, and those that GraphQL clients add.
_REQUEST_HEADERS = ", ".join(
    [
        "Accept",
        "Accept-Language",
        "Apollo-Require-Preflight",
        "ApolloGraphQL-Client-Name",
        "ApolloGraphQL-Client-Version",
        "Authorization",
        "Baggage",
        "Cache-Control",
        "Content-Type",
        "Idempotency-Key",
        "If-Match",
        "If-Modified-Since",
        "If-None-Match",
        "If-Unmodified-Since",
        "Prefer",
        "Traceparent",
        "Tracestate",
        "X-Deadline-Ms",
        "X-Request-Id",
    ]
)
_RESPONSE_HEADERS = b", ".join(
    [
        b"Allow",
        b"ETag",
        b"Idempotency-Replayed",
        b"Location",
        b"Preference-Applied",
        b"Retry-After",
        b"WWW-Authenticate",
        b"X-Request-Id",
        b"Content-Encoding",
    ]
)
# How long a browser may cache the result of a preflight request. Chromium caches it for two hours at most.
_MAX_AGE_SECONDS = 7200


class Cors:
    """The headers for pages of the configured origins.

    If `*` is configured, every origin is allowed, but without credentials. Origins that are configured by name are
    allowed with credentials.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origin.encode() for origin in origins)
        self._allows_any = _ANY_ORIGIN in self._origins
        self._depends_on_origin = self._origins != {_ANY_ORIGIN}
        self.is_enabled = bool(origins)

    def is_preflight(self, method: str, headers: dict[bytes, bytes]) -> bool:
        """Return whether this is a browser's preflight request from an allowed origin."""
        return (
            method == "OPTIONS"
            and b"access-control-request-method" in headers
            and self._allowed_origin(headers) is not None
        )

    def preflight_response(self, methods: str) -> Response:
        """Return the response to a preflight request. `methods`: the methods of the path."""
        return Response(
            status_code=204,
            headers={
                "access-control-allow-methods": methods,
                "access-control-allow-headers": _REQUEST_HEADERS,
                "access-control-max-age": str(_MAX_AGE_SECONDS),
            },
        )

    def apply(self, response: Response, headers: dict[bytes, bytes]) -> None:
        """Add the CORS headers to a response. `headers`: the headers of the request."""
        response_headers = response.raw_headers
        if self._depends_on_origin:
            # Add it even if the request's origin is absent or not allowed. Otherwise a cache could return this
            # response, which has no CORS headers, to a page of an allowed origin.
            response_headers.append((b"vary", b"origin"))
        origin = self._allowed_origin(headers)
        if origin is None:
            return
        response_headers.append((b"access-control-allow-origin", origin))
        if origin != _ANY_ORIGIN:
            response_headers.append((b"access-control-allow-credentials", b"true"))
        if b"access-control-request-method" not in headers:
            response_headers.append((b"access-control-expose-headers", _RESPONSE_HEADERS))

    def _allowed_origin(self, headers: dict[bytes, bytes]) -> bytes | None:
        """Return the value of Access-Control-Allow-Origin, or None if the origin is absent or not allowed."""
        origin = headers.get(b"origin")
        if origin is None:
            return None
        if origin in self._origins:
            return origin
        return _ANY_ORIGIN if self._allows_any else None
