"""gRPC clients: channels with keepalive, deadline propagation, and status codes mapped to errors."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from market.kit import context, errors
from market.kit.config import GrpcUpstream
from market.kit.errors import AlreadyExists, BadInput, Conflict, DeadlineExceeded, NotFound, Problem, Unavailable

T = TypeVar("T")

MAX_MESSAGE_BYTES = 16 * 1024 * 1024

# https://github.com/grpc/grpc/blob/master/include/grpc/impl/channel_arg_names.h
CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # An upstream that has recovered is used again within half a second, not after minutes of back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
    # Despite its name, the timeout of one connection attempt. A busy machine must be able to finish the handshake.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
]


def channel(config: GrpcUpstream) -> grpc.aio.Channel:
    """Return a channel that balances calls over every pod behind the target, and reconnects automatically."""
    return grpc.aio.insecure_channel(config.target, options=CHANNEL_OPTIONS)


async def call(method: Callable[..., Awaitable[T]], request: Any, timeout_seconds: float) -> T:
    """Call a stub's method and return its response. The request id and the trace are sent as metadata.

    The timeout is `timeout_seconds`, or less if the deadline comes sooner. Raises DeadlineExceeded, or the error that
    the status maps to.
    """
    timeout = context.require_remaining(timeout_seconds)
    headers = context.propagation_headers()
    try:
        return await method(request, timeout=timeout, metadata=tuple(headers.items()) if headers else None)
    except grpc.aio.AioRpcError as e:
        raise problem_from_status(e.code().value[0], e.details() or "") from None


class UpstreamNotFound(NotFound):
    """NotFound with the upstream's own detail, unchanged."""

    def __init__(self, detail: str) -> None:
        Problem.__init__(self, detail)


def problem_from_status(code: int, message: str) -> Problem:
    """Return the error that a gRPC status code maps to: Unavailable if the outcome is unknown."""
    if code == errors.GRPC_INVALID_ARGUMENT:
        field, separator, reason = message.partition(": ")
        return BadInput(field, reason) if separator else BadInput("", message)
    if code == errors.GRPC_NOT_FOUND:
        return UpstreamNotFound(message)
    if code == errors.GRPC_ALREADY_EXISTS:
        return AlreadyExists(message)
    if code == errors.GRPC_FAILED_PRECONDITION:
        return Conflict(message)
    if code == errors.GRPC_DEADLINE_EXCEEDED:
        return DeadlineExceeded("the upstream did not respond in time")
    if code in (errors.GRPC_CANCELLED, errors.GRPC_UNAVAILABLE, errors.GRPC_RESOURCE_EXHAUSTED, errors.GRPC_ABORTED):
        return Unavailable(message or "the upstream is unavailable")
    return Unavailable(f"the upstream failed: {message}"[:200])
