"""gRPC, both ends: channels that notice a dead neighbour, errors as statuses and back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio

from market.kit import context, errors
from market.kit.config import GrpcUpstream
from market.kit.errors import AlreadyExists, BadInput, Conflict, DeadlineExceeded, NotFound, Problem, Unavailable

T = TypeVar("T")

MAX_MESSAGE = 16 * 1024 * 1024

CHANNEL_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.lb_policy_name", "round_robin"),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # A neighbour that is back is used within half a second, not after minutes of back-off.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
    # Despite its name the time that one attempt may take: a busy machine must be able to answer the handshake in it.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.enable_retries", 0),
]


def channel(config: GrpcUpstream) -> grpc.aio.Channel:
    """A channel to every pod behind the name. Connects by itself, and again."""
    return grpc.aio.insecure_channel(config.target, options=CHANNEL_OPTIONS)


async def call(method: Callable[..., Awaitable[T]], request: Any, seconds: float) -> T:
    """The answer, within `seconds` or what the caller has left. Raises what the status stands for."""
    left = context.remaining(seconds)
    if left <= 0:
        raise DeadlineExceeded("the caller's time is over")
    metadata = []
    if id := context.request_id.get():
        metadata.append((context.REQUEST_ID_HEADER, id))
    if trace := context.traceparent.get():
        metadata.append((context.TRACE_HEADER, trace))
    try:
        return await method(request, timeout=left, metadata=metadata or None)
    except grpc.aio.AioRpcError as e:
        raise problem_from_status(e.code().value[0], e.details() or "") from None


def problem_from_status(code: int, message: str) -> Problem:
    """The error that a gRPC status stands for. Whatever leaves the outcome open is Unavailable."""
    if code == errors.GRPC_INVALID_ARGUMENT:
        field, separator, reason = message.partition(": ")
        return BadInput(field, reason) if separator else BadInput("", message)
    if code == errors.GRPC_NOT_FOUND:
        return NotFound(message)
    if code == errors.GRPC_ALREADY_EXISTS:
        return AlreadyExists(message)
    if code == errors.GRPC_FAILED_PRECONDITION:
        return Conflict(message)
    if code == errors.GRPC_DEADLINE_EXCEEDED:
        return DeadlineExceeded("the neighbour did not answer in time")
    if code in (errors.GRPC_UNAVAILABLE, errors.GRPC_RESOURCE_EXHAUSTED, errors.GRPC_ABORTED, 1):
        return Unavailable(message or "the neighbour is not there")
    return Unavailable(f"the neighbour failed: {message}"[:200])
