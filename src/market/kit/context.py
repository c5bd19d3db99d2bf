"""The context of a request, which is propagated with every call: request id, trace and deadline."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from uuid_utils.compat import uuid7

from market.kit.errors import DeadlineExceeded

REQUEST_ID_HEADER = "x-request-id"
DEADLINE_HEADER = "x-deadline-ms"
TRACE_HEADER = "traceparent"
TRACE_STATE_HEADER = "tracestate"
BAGGAGE_HEADER = "baggage"
TRACE_HEADERS = (TRACE_HEADER, TRACE_STATE_HEADER, BAGGAGE_HEADER)

request_id: ContextVar[str] = ContextVar("request_id", default="")
traceparent: ContextVar[str] = ContextVar("traceparent", default="")
# Data that callers attach to a trace. Both headers are forwarded unchanged.
tracestate: ContextVar[str] = ContextVar("tracestate", default="")
baggage: ContextVar[str] = ContextVar("baggage", default="")
# The address of the client whose request is being handled; empty outside of requests.
client_address: ContextVar[str] = ContextVar("client_address", default="")
# In seconds of time.monotonic(). None: no deadline.
deadline: ContextVar[float | None] = ContextVar("deadline", default=None)

_REQUEST_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+=@~-]{0,127}")
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
# The flags that Trace Context Level 2 defines: sampled, and random trace id.
_KNOWN_TRACE_FLAGS = 0x03
# Services must forward values up to these limits: https://www.w3.org/TR/trace-context/#tracestate-header and
# https://www.w3.org/TR/baggage
_TRACESTATE = re.compile(r"[ -~]{1,512}")
_MAX_TRACESTATE_MEMBERS = 32
_BAGGAGE = re.compile(r"[ -~]{1,8192}")
_MAX_BAGGAGE_MEMBERS = 64


def new_request_id() -> str:
    """Return a new request id: 32 hexadecimal digits, sortable by time."""
    return uuid7().hex


def valid_request_id(text: str) -> bool:
    """Return whether a client's request id may go into logs and mail headers.

    It has 1 to 128 ASCII letters, digits and characters of `._:/+=@~-`, and begins with a letter or a digit.
    """
    return _REQUEST_ID.fullmatch(text) is not None


def parse_traceparent(text: str) -> str:
    """Return a caller's `traceparent` in version 00, or "" if it is invalid.

    In a later version, only the fields that version 00 defines are read
    (https://www.w3.org/TR/trace-context/#versioning-of-traceparent).
    """
    match = _TRACEPARENT.fullmatch(text)
    if match is None:
        return ""
    version, trace_id, parent_id, flags, rest = match.groups()
    if version == "ff" or (version == "00" and rest) or not trace_id.strip("0") or not parent_id.strip("0"):
        return ""
    return f"00-{trace_id}-{parent_id}-{int(flags, 16) & _KNOWN_TRACE_FLAGS:02x}"


def set_trace(parent: str, state: str = "", bag: str = "") -> None:
    """Set the caller's `traceparent`, `tracestate` and `baggage`.

    An invalid value is dropped. So are `tracestate` and `baggage` if there is no valid `traceparent`, or if they are
    longer than what a service must forward.
    """
    parent = parse_traceparent(parent) if parent else ""
    traceparent.set(parent)
    valid = parent and _TRACESTATE.fullmatch(state) and state.count(",") < _MAX_TRACESTATE_MEMBERS
    tracestate.set(state if valid else "")
    valid = parent and _BAGGAGE.fullmatch(bag) and bag.count(",") < _MAX_BAGGAGE_MEMBERS
    baggage.set(bag if valid else "")


class Trace(NamedTuple):
    """The three headers of a trace; each is "" if it is not set."""

    traceparent: str = ""
    tracestate: str = ""
    baggage: str = ""


def current_trace() -> Trace:
    """Return the trace of the current request."""
    return Trace(traceparent.get(), tracestate.get(), baggage.get())


def remaining(limit: float) -> float:
    """Return the seconds that a call may take: `limit`, or the time until the deadline if that is less; at least 0."""
    expires_at = deadline.get()
    return limit if expires_at is None else max(0.0, min(limit, expires_at - time.monotonic()))


def require_remaining(limit: float) -> float:
    """Return the seconds that a call may take, as `remaining` does. Raise DeadlineExceeded if none are left."""
    seconds = remaining(limit)
    if seconds <= 0:
        raise deadline_exceeded()
    return seconds


def deadline_exceeded() -> DeadlineExceeded:
    """Return the error for a caller whose deadline has passed."""
    return DeadlineExceeded("deadline exceeded")


@contextmanager
def deadline_in(seconds: float) -> Iterator[None]:
    """Set a deadline `seconds` from now for the calls inside the block, unless there is an earlier deadline."""
    expires_at = time.monotonic() + seconds
    outer = deadline.get()
    token = deadline.set(expires_at if outer is None else min(outer, expires_at))
    try:
        yield
    finally:
        deadline.reset(token)


def outgoing_headers(limit: float) -> dict[str, str]:
    """Return the headers of an HTTP call: request id, trace, and the deadline (at most `limit` seconds from now)."""
    headers = propagation_headers()
    headers[DEADLINE_HEADER] = str(int(remaining(limit) * 1000))
    return headers


def propagation_headers() -> dict[str, str]:
    """Return the request id and the trace as HTTP headers or gRPC metadata. Values that are not set are left out."""
    headers: dict[str, str] = {}
    if current_request_id := request_id.get():
        headers[REQUEST_ID_HEADER] = current_request_id
    if trace := traceparent.get():
        headers[TRACE_HEADER] = trace
        if state := tracestate.get():
            headers[TRACE_STATE_HEADER] = state
        if bag := baggage.get():
            headers[BAGGAGE_HEADER] = bag
    return headers
