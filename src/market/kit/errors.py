"""Errors with their HTTP status, gRPC status and GraphQL code.

A service's errors are subclasses of these, each with a stable `type`. The statuses are attributes of the class, so code
that raises an error does not mention them. The servers and clients in market.kit translate errors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

TYPE_PREFIX = "urn:market:problem:"

# The detail that clients of REST, gRPC and GraphQL get for an error that is not a Problem.
INTERNAL_ERROR = "internal error; the server log has the details"

# The numeric values of grpc.StatusCode, written here so that services without gRPC do not need grpcio.
GRPC_CANCELLED, GRPC_INVALID_ARGUMENT, GRPC_DEADLINE_EXCEEDED, GRPC_NOT_FOUND, GRPC_ALREADY_EXISTS = 1, 3, 4, 5, 6
GRPC_RESOURCE_EXHAUSTED, GRPC_FAILED_PRECONDITION, GRPC_ABORTED, GRPC_INTERNAL, GRPC_UNAVAILABLE = 8, 9, 10, 13, 14
GRPC_PERMISSION_DENIED, GRPC_UNAUTHENTICATED = 7, 16

# The beginning of the header WWW-Authenticate.
_CHALLENGE = 'Bearer realm="market"'

# The maximum number of invalid fields that an error lists.
MAX_INPUT_ERRORS = 20


class Problem(Exception):
    """Base class of all errors that are reported to the caller. `str(problem)` is the `detail` that the caller gets."""

    type: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    grpc_status: ClassVar[int] = GRPC_INTERNAL

    def extension_members(self) -> dict[str, Any]:
        """Return the extension members of the problem document: JSON values, keys in snake_case."""
        return {}

    @classmethod
    def code(cls) -> str:
        """Return the GraphQL `extensions.code`, such as OUT_OF_STOCK for the type `out-of-stock`.

        Related errors share a code, such as BAD_INPUT.
        """
        return cls.type.upper().replace("-", "_")

    def document(self) -> dict[str, Any]:
        """Return the problem document (RFC 9457)."""
        return {
            "type": TYPE_PREFIX + self.type,
            "title": self.title,
            "status": self.status,
            "detail": str(self) or self.title,
            **self.extension_members(),
        }


class BadInput(Problem):
    """A field is missing, unknown, of the wrong type or out of bounds.

    `reason` is worded to follow the field's name: "is missing", "must be a UUID".
    """

    type = "bad-input"
    title = "Bad input"
    status = 422
    grpc_status = GRPC_INVALID_ARGUMENT

    def __init__(self, field: str, reason: str, *others: tuple[str, str]) -> None:
        """`others`: further invalid fields, each with its reason."""
        self.errors = ((field, reason), *others)
        super().__init__("; ".join(f"{f}: {r}" if f else r for f, r in self.errors))
        self.field = field
        self.reason = reason

    @classmethod
    def code(cls) -> str:
        return "BAD_INPUT"

    def extension_members(self) -> dict[str, Any]:
        return {"errors": [{"field": field, "reason": reason} for field, reason in self.errors]}


class InputErrors:
    """Collects the errors of several fields, so that a client gets all of them together.

    errors = InputErrors()
    with errors:
        validate_name(name)
    with errors:
        validate_price(price)
    errors.raise_collected()
    """

    def __init__(self, collected: Sequence[tuple[str, str]] = ()) -> None:
        # (field, reason) of each error.
        self.collected = list(collected)

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> bool:
        # Subclasses are not collected, because their status or type is different.
        if type(error) is not BadInput:
            return False
        self.collected += error.errors
        return True

    def raise_collected(self) -> None:
        """Raise BadInput if there are errors; at most MAX_INPUT_ERRORS are listed."""
        if self.collected:
            raise BadInput(*self.collected[0], *self.collected[1:MAX_INPUT_ERRORS])


class Malformed(BadInput):
    """The request is not valid HTTP, or its body is not valid JSON."""

    type = "malformed"
    title = "Malformed request"
    status = 400


class Unauthenticated(Problem):
    """The request has no token, or a token that is not valid.

    reason: what is wrong with the token, worded to follow "the token": "has expired". None if there is no token.
    """

    type = "unauthenticated"
    title = "Unauthenticated"
    status = 401
    grpc_status = GRPC_UNAUTHENTICATED

    def __init__(self, reason: str | None = None) -> None:
        super().__init__("this requires a bearer token" if reason is None else f"the token {reason}")
        self.reason = reason

    @property
    def challenge(self) -> str:
        """The value of the header WWW-Authenticate (RFC 6750 section 3)."""
        if self.reason is None:
            return _CHALLENGE
        return f'{_CHALLENGE}, error="invalid_token", error_description="{self}"'


class Forbidden(Problem):
    """The caller has signed in, but may not do this.

    role_is_missing: True if a caller with another role may do it.
    """

    type = "forbidden"
    title = "Forbidden"
    status = 403
    grpc_status = GRPC_PERMISSION_DENIED

    def __init__(self, detail: str, *, role_is_missing: bool = False) -> None:
        super().__init__(detail)
        self.role_is_missing = role_is_missing

    @property
    def challenge(self) -> str | None:
        """The value of the header WWW-Authenticate (RFC 6750 section 3.1), if a role is missing."""
        return f'{_CHALLENGE}, error="insufficient_scope"' if self.role_is_missing else None


class NotFound(Problem):
    """There is no such resource. `kind` is a noun in the singular: "product"."""

    type = "not-found"
    title = "Not found"
    status = 404
    grpc_status = GRPC_NOT_FOUND

    def __init__(self, kind: str, identifier: object = None) -> None:
        super().__init__(f"there is no {kind}" + (f" {identifier}" if identifier is not None else ""))


class MethodNotAllowed(Problem):
    """The path exists, but not with this method."""

    type = "method-not-allowed"
    title = "Method not allowed"
    status = 405
    grpc_status = GRPC_INVALID_ARGUMENT

    @classmethod
    def code(cls) -> str:
        return "BAD_INPUT"


class Conflict(Problem):
    """The request is well formed, but the current state of the resource does not allow it."""

    type = "conflict"
    title = "Conflict"
    status = 409
    grpc_status = GRPC_FAILED_PRECONDITION


class AlreadyExists(Conflict):
    """The id is taken by a resource with different content."""

    type = "already-exists"
    title = "Already exists"
    grpc_status = GRPC_ALREADY_EXISTS


class PreconditionFailed(Problem):
    """The resource's current version is not the one in the request's If-Match."""

    type = "precondition-failed"
    title = "Precondition failed"
    status = 412
    grpc_status = GRPC_FAILED_PRECONDITION


class TooLarge(BadInput):
    """The body has more bytes than the service accepts."""

    type = "too-large"
    title = "Content too large"
    status = 413


class HeadersTooLarge(BadInput):
    """The request line and the headers have more bytes, or there are more headers, than the server accepts."""

    type = "headers-too-large"
    title = "Request header fields too large"
    status = 431


class MisdirectedRequest(BadInput):
    """The request names a host that is not this server's (RFC 9110 section 15.5.20)."""

    type = "misdirected-request"
    title = "Misdirected request"
    status = 421


class RequestTimeout(Problem):
    """The client did not send its request in time."""

    type = "request-timeout"
    title = "Request timeout"
    status = 408
    grpc_status = GRPC_DEADLINE_EXCEEDED


class NotImplementedByServer(Problem):
    """The request uses a method or a transfer coding that this server does not know."""

    type = "not-implemented"
    title = "Not implemented"
    status = 501
    grpc_status = GRPC_INVALID_ARGUMENT


class UnsupportedMediaType(BadInput):
    """The body has a media type or content encoding that the service does not support."""

    type = "unsupported-media-type"
    title = "Unsupported media type"
    status = 415


class IdempotencyKeyReused(BadInput):
    """The Idempotency-Key was used before, with a different request."""

    type = "idempotency-key-reused"
    title = "Idempotency key reused"

    def __init__(self) -> None:
        super().__init__("Idempotency-Key", "was already used with a different request")


class Unavailable(Problem):
    """Nothing was done, or the outcome is unknown. The request may be retried later with the same ids.

    retry_after: seconds, sent as Retry-After.
    extension_members: additional members of the problem document.
    """

    type = "unavailable"
    title = "Unavailable"
    status = 503
    grpc_status = GRPC_UNAVAILABLE

    def __init__(self, detail: str, *, retry_after: int = 1, **extension_members: Any) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        self._extension_members = extension_members

    @classmethod
    def code(cls) -> str:
        return "UNAVAILABLE"

    def extension_members(self) -> dict[str, Any]:
        return self._extension_members


class Overloaded(Unavailable):
    """More requests are in flight or waiting than this process accepts; nothing was done."""

    type = "overloaded"
    title = "Overloaded"
    grpc_status = GRPC_RESOURCE_EXHAUSTED


class TooManyRequests(Overloaded):
    """The caller has exceeded a limit: on requests in flight, waiting, or per second. Nothing was done."""

    type = "too-many-requests"
    title = "Too many requests"
    status = 429

    @classmethod
    def code(cls) -> str:
        return "TOO_MANY_REQUESTS"


class DeadlineExceeded(Unavailable):
    """The deadline, or the timeout of a call to a dependency, passed before the outcome was known."""

    type = "deadline-exceeded"
    title = "Deadline exceeded"
    grpc_status = GRPC_DEADLINE_EXCEEDED
