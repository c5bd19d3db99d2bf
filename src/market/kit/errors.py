"""Errors that carry facts, and the one table that says how each kind is answered.

A service's errors are subclasses of the kinds below. They name a stable `type`; only this
file and the edges know of 409 or FAILED_PRECONDITION.
"""

from __future__ import annotations

from typing import Any, ClassVar

TYPE_PREFIX = "urn:market:problem:"

# Numbers of grpc.StatusCode, so that services without gRPC need not have it installed.
GRPC_INVALID_ARGUMENT, GRPC_DEADLINE_EXCEEDED, GRPC_NOT_FOUND, GRPC_ALREADY_EXISTS = 3, 4, 5, 6
GRPC_RESOURCE_EXHAUSTED, GRPC_FAILED_PRECONDITION, GRPC_ABORTED, GRPC_INTERNAL, GRPC_UNAVAILABLE = 8, 9, 10, 13, 14


class Problem(Exception):
    """An answer that is not the wished one. `str()` is a sentence for the caller."""

    type: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"
    status: ClassVar[int] = 500
    grpc_status: ClassVar[int] = GRPC_INTERNAL

    def facts(self) -> dict[str, Any]:
        """Extension members of the problem document: JSON values, snake_case."""
        return {}

    @classmethod
    def code(cls) -> str:
        """The GraphQL `extensions.code`: OUT_OF_STOCK for the type `out-of-stock`."""
        return cls.type.upper().replace("-", "_")

    def document(self) -> dict[str, Any]:
        """The RFC 9457 document."""
        return {
            "type": TYPE_PREFIX + self.type,
            "title": self.title,
            "status": self.status,
            "detail": str(self) or self.title,
            **self.facts(),
        }


class BadInput(Problem):
    """A field that is missing, unknown, of the wrong type or out of bounds."""

    type = "bad-input"
    title = "Bad input"
    status = 422
    grpc_status = GRPC_INVALID_ARGUMENT

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason

    @classmethod
    def code(cls) -> str:
        return "BAD_INPUT"

    def facts(self) -> dict[str, Any]:
        return {"errors": [{"field": self.field, "reason": self.reason}]}


class Malformed(BadInput):
    """Not even JSON."""

    type = "malformed"
    title = "Malformed request"
    status = 400


class NotFound(Problem):
    type = "not-found"
    title = "Not found"
    status = 404
    grpc_status = GRPC_NOT_FOUND

    def __init__(self, what: str, id: object = None) -> None:
        super().__init__(f"there is no {what}" + (f" {id}" if id is not None else ""))


class MethodNotAllowed(Problem):
    type = "method-not-allowed"
    title = "Method not allowed"
    status = 405
    grpc_status = GRPC_INVALID_ARGUMENT

    @classmethod
    def code(cls) -> str:
        return "BAD_INPUT"


class Conflict(Problem):
    """The request is well formed, and the state of things does not allow it."""

    type = "conflict"
    title = "Conflict"
    status = 409
    grpc_status = GRPC_FAILED_PRECONDITION


class AlreadyExists(Conflict):
    """The same id with another content."""

    type = "already-exists"
    title = "Already exists"
    grpc_status = GRPC_ALREADY_EXISTS


class PreconditionFailed(Problem):
    type = "precondition-failed"
    title = "Precondition failed"
    status = 412
    grpc_status = GRPC_FAILED_PRECONDITION


class TooLarge(BadInput):
    type = "too-large"
    title = "Content too large"
    status = 413


class UnsupportedMediaType(BadInput):
    type = "unsupported-media-type"
    title = "Unsupported media type"
    status = 415


class IdempotencyKeyReused(BadInput):
    """An Idempotency-Key that was used with another body."""

    type = "idempotency-key-reused"
    title = "Idempotency key reused"

    def __init__(self) -> None:
        super().__init__("Idempotency-Key", "was used before with another request")


class Unavailable(Problem):
    """It could not be decided now. Asking again later, with the same ids, is right."""

    type = "unavailable"
    title = "Unavailable"
    status = 503
    grpc_status = GRPC_UNAVAILABLE

    def __init__(self, detail: str, *, retry_after: int = 1, **facts: Any) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
        self._facts = facts

    @classmethod
    def code(cls) -> str:
        return "UNAVAILABLE"

    def facts(self) -> dict[str, Any]:
        return self._facts


class Overloaded(Unavailable):
    """More requests are under way than this process takes."""

    type = "overloaded"
    title = "Overloaded"
    grpc_status = GRPC_RESOURCE_EXHAUSTED


class DeadlineExceeded(Unavailable):
    """The caller's time ran out before the answer was there."""

    type = "deadline-exceeded"
    title = "Deadline exceeded"
    grpc_status = GRPC_DEADLINE_EXCEEDED
