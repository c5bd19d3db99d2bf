"""GraphQL errors as a response writes them: message, locations, path, and extensions with a code."""

from __future__ import annotations

from typing import Any

from graphql import GraphQLError

from market.graphql.domain import FieldError, camel_case_keys
from market.kit.errors import INTERNAL_ERROR, BadInput, Problem, Unavailable
from market.kit.process import logs

log = logs.get_logger("graphql")

Error = dict[str, Any]

_MAX_MESSAGE_LENGTH = 500
_MAX_LOCATIONS = 10


def field_error(e: Exception) -> FieldError:
    """Return any exception of a use case as a FieldError.

    An exception that is not a Problem is logged, and its text is not disclosed.
    """
    if isinstance(e, FieldError):
        return e
    if isinstance(e, BadInput):
        return FieldError(str(e), e.code(), {"field": e.field, **e.extension_members()})
    if isinstance(e, Unavailable):
        return FieldError(str(e), e.code(), {"retryAfter": e.retry_after, **camel_case_keys(e.extension_members())})
    if isinstance(e, Problem):
        return FieldError(str(e), e.code(), camel_case_keys(e.extension_members()))
    log.error("resolving a field failed", exc_info=e)
    return FieldError(INTERNAL_ERROR, "INTERNAL")


def request_error(e: GraphQLError, field: str = "query") -> Error:
    """Return a document's or the variables' error; `field` is the parameter of the request that is wrong."""
    error: Error = dict(e.formatted)
    if "locations" in error:
        error["locations"] = error["locations"][:_MAX_LOCATIONS]
    if len(error["message"]) > _MAX_MESSAGE_LENGTH:
        error["message"] = error["message"][:_MAX_MESSAGE_LENGTH] + "..."
    error["extensions"] = {"code": "BAD_INPUT", "field": field, **(e.extensions or {})}
    return error


def execution_error(e: GraphQLError) -> Error:
    """Return graphql-core's error at a path."""
    error: Error = dict(e.formatted)
    cause: Exception | None = e
    while isinstance(cause, GraphQLError):
        cause = cause.original_error
    # An error that graphql-core itself raised is about an argument whose variable does not fit.
    error.setdefault("extensions", {"code": "BAD_INPUT" if cause is None else "INTERNAL"})
    return error
