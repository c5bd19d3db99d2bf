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
from market.kit.rpc.tls import ReloadingChannel

if TYPE_CHECKING:
    from market.kit.auth.service_tokens import ServiceTokens
    from market.kit.rpc.identity_report import IdentityReport

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
    # Short, so that an upstream that has recovered is used again within half a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
    # Despite its name, this is the timeout of one connection attempt. It is long enough for a handshake on a busy
    # machine.
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_retries", 0),
]


def channel(
    config: GrpcUpstream, credentials: ServiceTokens | None = None, *, report: IdentityReport | None = None
) -> grpc.aio.Channel:
    """Return a channel that balances calls over all pods of the target, and reconnects automatically.

    credentials: provides this service's token, which is sent with every call. Calls must then have a timeout.
    report: is told whether the upstream accepts this service's identity.

    Raises OSError if the files of `config.tls` cannot be used.
    """
    plain = (
        grpc.aio.insecure_channel(config.target, options=CHANNEL_OPTIONS)
        if config.tls is None
        else cast(grpc.aio.Channel, ReloadingChannel(config.target, config.tls, CHANNEL_OPTIONS))
    )
    if credentials is None and report is None:
        return plain
    return cast(grpc.aio.Channel, _ChannelWithIdentity(plain, credentials, report))


class IdentityRefused(Unavailable):
    """The upstream does not accept this service's identity, or this service has no token.

    This service's caller gets Unavailable, not Unauthenticated, because signing in again would not help.
    """


class _ChannelWithIdentity:
    """A channel for unary calls. It sends this service's token, if any, and reports whether the upstream accepts it.

    This is not a gRPC interceptor, because an interceptor creates an asyncio task for each call.
    """

    def __init__(
        self, plain: grpc.aio.Channel, credentials: ServiceTokens | None, report: IdentityReport | None
    ) -> None:
        self._plain = plain
        self._credentials = credentials
        self._report = report

    async def __aenter__(self) -> _ChannelWithIdentity:
        await self._plain.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._plain.__aexit__(*error)

    async def close(self, grace: float | None = None) -> None:
        await self._plain.close(grace)

    def unary_unary(self, *args: Any, **settings: Any) -> Callable[..., Awaitable[Any]]:
        method: Any = self._plain.unary_unary(*args, **settings)
        credentials, report = self._credentials, self._report
        call = method if credentials is None else _with_token(method, credentials)
        if report is None:
            return call

        async def send(request: Any, *, timeout: float, metadata: Metadata | None = None) -> Any:
            try:
                response = await call(request, timeout=timeout, metadata=metadata)
            except grpc.aio.AioRpcError as e:
                if e.code() in _REFUSED:
                    report.refused(e.details() or e.code().name)
                raise
            except IdentityRefused as e:
                report.refused(str(e))
                raise
            report.accepted()
            return response

        return send


_REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


def _with_token(method: Any, credentials: ServiceTokens) -> Callable[..., Awaitable[Any]]:
    """Return a method that sends this service's token as metadata. It raises IdentityRefused if there is no token."""

    async def obtain(token: Awaitable[str]) -> str:
        try:
            return await token
        except Unavailable as e:
            raise IdentityRefused(str(e)) from None

    async def send(request: Any, *, timeout: float, metadata: Metadata | None = None) -> Any:
        expires_at = time.monotonic() + timeout
        token = await obtain(credentials.get(timeout))
        while True:
            seconds = max(0.0, expires_at - time.monotonic())
            authorization = ("authorization", f"Bearer {token}")
            try:
                return await method(request, timeout=seconds, metadata=(*(metadata or ()), authorization))
            except grpc.aio.AioRpcError as e:
                if e.code() is not grpc.StatusCode.UNAUTHENTICATED:
                    raise
                # The issuer may have withdrawn the key that signed the token. Try again with another token, if there is
                # one. This is safe, because the upstream has not executed the call.
                rejected, token = token, await obtain(credentials.replace(token, seconds))
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


async def check_identity(method: Callable[..., Awaitable[Any]], request: Any, timeout_seconds: float) -> None:
    """Make the call, and raise IdentityRefused if the upstream does not accept this service's identity.

    Other errors are ignored.
    """
    try:
        await call(method, request, timeout_seconds)
    except IdentityRefused:
        raise
    except Problem:
        pass


class UpstreamNotFound(NotFound):
    """NotFound with the upstream's own detail, unchanged."""

    def __init__(self, detail: str) -> None:
        Problem.__init__(self, detail)


def problem_from_status(code: int, message: str) -> Problem:
    """Return the error that a gRPC status code maps to. If the outcome of the call is unknown, this is Unavailable."""
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
        # The upstream has refused this service, not this service's caller.
        return IdentityRefused(f"the upstream does not accept this service's identity: {message}"[:200])
    if code in (errors.GRPC_CANCELLED, errors.GRPC_UNAVAILABLE, errors.GRPC_RESOURCE_EXHAUSTED, errors.GRPC_ABORTED):
        return Unavailable(message or "the upstream is unavailable")
    return Unavailable(f"the upstream failed: {message}"[:200])
