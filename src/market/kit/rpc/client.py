"""gRPC, both ends: channels that notice a dead neighbour, errors as statuses and back."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import grpc
import grpc.aio
from prometheus_client import Counter, Histogram

from market.kit import context, errors
from market.kit.config import Rpc
from market.kit.errors import AlreadyExists, BadInput, Conflict, DeadlineExceeded, NotFound, Problem, Unavailable
from market.kit.process import logs
from market.kit.process.tracing import Tracer

T = TypeVar("T")
log = logs.get("rpc")

HANDLED = Counter("market_grpc_handled_total", "Calls answered.", ["method", "code"])
SECONDS = Histogram(
    "market_grpc_seconds",
    "Time to the answer.",
    ["method"],
    buckets=[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5],
)

MAX_MESSAGE = 16 * 1024 * 1024
_CODES = {code.value[0]: code for code in grpc.StatusCode}

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

SERVER_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_connection_age_grace_ms", 15_000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
]


def channel(config: Rpc) -> grpc.aio.Channel:
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
        raise from_status(e.code().value[0], e.details() or "") from None


def from_status(code: int, message: str) -> Problem:
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


Handler = Callable[[Any], Awaitable[Any]]


def endpoint(name: str, handler: Handler, tracer: Tracer | None = None) -> Callable[[Any, Any], Awaitable[Any]]:
    """A servicer method from `handler(request)`: deadline, request id, figures, errors as statuses."""
    spans = tracer or Tracer()
    seconds = SECONDS.labels(name)
    handled: dict[str, Any] = {}

    async def serve(request: Any, rpc_context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        started = time.perf_counter()
        left = rpc_context.time_remaining()
        context.deadline.set(None if left is None else time.monotonic() + left)
        context.request_id.set("")
        context.traceparent.set("")
        for key, value in rpc_context.invocation_metadata() or ():
            if key == context.REQUEST_ID_HEADER and context.valid_request_id(str(value)):
                context.request_id.set(str(value))
            elif key == context.TRACE_HEADER and context.valid_traceparent(str(value)):
                context.traceparent.set(str(value))
        status, detail = grpc.StatusCode.OK, ""
        try:
            with spans.span(name):
                return await handler(request)
        except Problem as e:
            status, detail = _CODES[e.grpc_status], str(e)
        except Exception:
            log.exception("call failed", method=name)
            status, detail = grpc.StatusCode.INTERNAL, "this is a defect of ours; the log has it"
        finally:
            seconds.observe(time.perf_counter() - started)
            if status.name not in handled:
                handled[status.name] = HANDLED.labels(name, status.name)
            handled[status.name].inc()
            log.debug("answered", method=name, code=status.name)
        return await rpc_context.abort(status, detail)

    return serve
