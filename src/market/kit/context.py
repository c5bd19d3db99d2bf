"""What travels with a request through every hop: its id, its trace, its deadline."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from uuid_utils.compat import uuid7

REQUEST_ID_HEADER = "x-request-id"
DEADLINE_HEADER = "x-deadline-ms"
TRACE_HEADER = "traceparent"

request_id: ContextVar[str] = ContextVar("request_id", default="")
traceparent: ContextVar[str] = ContextVar("traceparent", default="")
# A point of time.monotonic().
deadline: ContextVar[float | None] = ContextVar("deadline", default=None)

_REQUEST_ID = re.compile(r"[!-~]{1,128}")
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def new_request_id() -> str:
    return uuid7().hex


def valid_request_id(text: str) -> bool:
    """Whether it may go into logs and mail headers as it came: 1..128 visible ASCII characters."""
    return _REQUEST_ID.fullmatch(text) is not None


def valid_traceparent(text: str) -> bool:
    """W3C Trace Context, version 00."""
    return _TRACEPARENT.fullmatch(text) is not None


def remaining(limit: float) -> float:
    """Seconds that a call may take: `limit`, or less where the caller has less left. Never below zero."""
    at = deadline.get()
    return limit if at is None else max(0.0, min(limit, at - time.monotonic()))


@contextmanager
def deadline_in(seconds: float) -> Iterator[None]:
    """Within this block no call may end later than `seconds` from now; a nearer deadline stays."""
    at = time.monotonic() + seconds
    old = deadline.get()
    token = deadline.set(at if old is None else min(old, at))
    try:
        yield
    finally:
        deadline.reset(token)


def outgoing_headers(limit: float) -> dict[str, str]:
    """Headers (or gRPC metadata) for a call to a neighbour that may take `limit` seconds."""
    headers = {DEADLINE_HEADER: str(int(remaining(limit) * 1000))}
    if id := request_id.get():
        headers[REQUEST_ID_HEADER] = id
    if trace := traceparent.get():
        headers[TRACE_HEADER] = trace
    return headers
