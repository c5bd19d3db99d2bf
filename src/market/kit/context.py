"""The request context that every hop passes on: request id, trace and deadline."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from uuid_utils.compat import uuid7

from market.kit.errors import DeadlineExceeded

REQUEST_ID_HEADER = "x-request-id"
DEADLINE_HEADER = "x-deadline-ms"
TRACE_HEADER = "traceparent"

request_id: ContextVar[str] = ContextVar("request_id", default="")
traceparent: ContextVar[str] = ContextVar("traceparent", default="")
# An instant of time.monotonic(), in seconds; None: no deadline.
deadline: ContextVar[float | None] = ContextVar("deadline", default=None)

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def new_request_id() -> str:
    """Return a new request id: 32 hexadecimal digits, sortable by time."""
    return uuid7().hex


def valid_request_id(text: str) -> bool:
    """Return whether a client's request id may go into logs and mail headers: 1 to 128 visible ASCII characters."""
    return _REQUEST_ID.fullmatch(text) is not None


def valid_traceparent(text: str) -> bool:
    """Return whether the text is a `traceparent` of W3C Trace Context, version 00."""
    return _TRACEPARENT.fullmatch(text) is not None


def remaining(limit: float) -> float:
    """Return the seconds that a call may take: `limit`, or less if the deadline comes sooner. Never below zero."""
    expires_at = deadline.get()
    return limit if expires_at is None else max(0.0, min(limit, expires_at - time.monotonic()))


def require_remaining(limit: float) -> float:
    """Return the seconds that a call may take, as `remaining` does. Raise DeadlineExceeded if none are left."""
    seconds = remaining(limit)
    if seconds <= 0:
        raise deadline_exceeded()
    return seconds


def deadline_exceeded() -> DeadlineExceeded:
    """Return the error of a caller whose deadline has passed."""
    return DeadlineExceeded("deadline exceeded")


@contextmanager
def deadline_in(seconds: float) -> Iterator[None]:
    """Set a deadline `seconds` from now for the calls inside the block; an earlier deadline stays in force."""
    expires_at = time.monotonic() + seconds
    outer = deadline.get()
    token = deadline.set(expires_at if outer is None else min(outer, expires_at))
    try:
        yield
    finally:
        deadline.reset(token)


def outgoing_headers(limit: float) -> dict[str, str]:
    """Return an HTTP call's headers: the deadline, at most `limit` seconds from now, the request id and the trace."""
    headers = outgoing_ids()
    headers[DEADLINE_HEADER] = str(int(remaining(limit) * 1000))
    return headers


def outgoing_ids() -> dict[str, str]:
    """Return the request id and the trace as headers or gRPC metadata; each is left out if it is not set."""
    ids: dict[str, str] = {}
    if own_id := request_id.get():
        ids[REQUEST_ID_HEADER] = own_id
    if trace := traceparent.get():
        ids[TRACE_HEADER] = trace
    return ids
