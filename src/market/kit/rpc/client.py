"""gRPC clients: channels with keepalive, deadline propagation, and status codes mapped to errors."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import grpc
import grpc.aio

from market.kit import context, errors
from market.kit.config import GrpcUpstream
from market.kit.errors import AlreadyExists, BadInput, Conflict, DeadlineExceeded, NotFound, Problem, Unavailable

if TYPE_CHECKING:
    from market.kit.auth.service_tokens import ServiceTokens

T = TypeVar("T")
Metadata = tuple[tuple[str, str], ...]

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


def channel(config: GrpcUpstream, credentials: ServiceTokens | None = None) -> grpc.aio.Channel:
    """Return a channel that balances calls over every pod behind the target, and reconnects automatically.

    credentials: this service's own tokens, of which one is sent with every call. Calls must have a timeout.
    """
    plain = grpc.aio.insecure_channel(config.target, options=CHANNEL_OPTIONS)
    return plain if credentials is None else cast(grpc.aio.Channel, _ChannelWithToken(plain, credentials))


class _ChannelWithToken:
    """A channel for unary calls that sends a token. gRPC's own interceptors take a task for each call."""

    def __init__(self, plain: grpc.aio.Channel, credentials: ServiceTokens) -> None:
        self._plain = plain
        self._credentials = credentials

    async def __aenter__(self) -> _ChannelWithToken:
        await self._plain.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._plain.__aexit__(*error)

    async def close(self, grace: float | None = None) -> None:
        await self._plain.close(grace)

    def unary_unary(self, *args: Any, **settings: Any) -> Callable[..., Awaitable[Any]]:
        method: Any = self._plain.unary_unary(*args, **settings)

        async def send(request: Any, *, timeout: float, metadata: Metadata | None = None) -> Any:
            expires_at = time.monotonic() + timeout
            token = await self._credentials.get(timeout)
            while True:
                seconds = max(0.0, expires_at - time.monotonic())
                authorization = ("authorization", f"Bearer {token}")
                try:
                    return await method(request, timeout=seconds, metadata=(*(metadata or ()), authorization))
                except grpc.aio.AioRpcError as e:
                    if e.code() is not grpc.StatusCode.UNAUTHENTICATED:
                        raise
                    # The key that has signed it may have been withdrawn. The call was refused, so it may be repeated.
                    rejected, token = token, await self._credentials.replace(token, seconds)
                    if token == rejected:
                        raise

        return send


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
    if code in (errors.GRPC_UNAUTHENTICATED, errors.GRPC_PERMISSION_DENIED):
        # It is this service that was refused. Its own caller can do nothing about that.
        return Unavailable(f"the upstream does not accept this service's identity: {message}"[:200])
    if code in (errors.GRPC_CANCELLED, errors.GRPC_UNAVAILABLE, errors.GRPC_RESOURCE_EXHAUSTED, errors.GRPC_ABORTED):
        return Unavailable(message or "the upstream is unavailable")
    return Unavailable(f"the upstream failed: {message}"[:200])
