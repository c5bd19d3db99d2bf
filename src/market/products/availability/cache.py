"""Availability in Redis: `avail:{product id}` is 1 or 0."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from market.kit.optional_imports import without
from market.kit.process import logs
from market.kit.resilience import CircuitBreaker, CircuitOpen

# For redis-py's own metrics, which are not used here.
with without("opentelemetry.sdk"):
    import redis.asyncio
    import redis.exceptions
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

log = logs.get_logger("availability")

# What the driver raises if Redis is unavailable or slow.
_ERRORS = (redis.exceptions.RedisError, OSError, TimeoutError)
# The error of a write to a replica, and of a read from a replica that has lost its primary.
_DEMOTED = (redis.exceptions.ReadOnlyError, redis.exceptions.MasterDownError)
_VALUES = {b"1": True, b"0": False}


class _TlsConnection(redis.asyncio.SSLConnection):
    """A TLS connection that reads its certificates and its key again each time it connects."""

    def _connection_arguments(self) -> Mapping[str, Any]:
        self.ssl_context.context = None
        arguments: Mapping[str, Any] = super()._connection_arguments()
        return arguments


def connect(url: str) -> redis.asyncio.Redis:
    """Return a client that connects when it is first used.

    It retries once, for a connection that the server has closed. It has no timeouts of its own, which would cost a task
    per command: AvailabilityCache limits each access. The host name is resolved again for each connection.
    """
    client: redis.asyncio.Redis = redis.asyncio.Redis.from_url(
        url, socket_timeout=None, socket_connect_timeout=None, retry=Retry(NoBackoff(), 1), protocol=2
    )
    if client.connection_pool.connection_class is redis.asyncio.SSLConnection:
        client.connection_pool.connection_class = _TlsConnection
    return client


class AvailabilityCache:
    """The cached availability of products. If Redis is unavailable, nothing is found and nothing is stored.

    ttl_seconds: the life of an entry, plus or minus a fifth.
    timeout_seconds: the limit of one access.
    max_connection_age_seconds: how long connections are used, plus or minus a tenth. All are replaced together.
    """

    def __init__(
        self,
        client: redis.asyncio.Redis,
        *,
        ttl_seconds: float,
        timeout_seconds: float,
        max_connection_age_seconds: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._redis = client
        self._ttl_seconds = ttl_seconds
        self._timeout_seconds = timeout_seconds
        self._max_connection_age_seconds = max_connection_age_seconds
        self._clock = clock
        self._replace_at = self._next_replacement()
        # After five failures in a row Redis is not used for a second.
        self._circuit = CircuitBreaker("redis", open_seconds=1.0, failure_types=_ERRORS, clock=clock)
        self._reported_unavailable = False

    async def get_many(self, product_ids: Sequence[str]) -> dict[str, bool]:
        """Return the entries that exist: one MGET."""
        found = await self._access(lambda: self._redis.mget([f"avail:{product_id}" for product_id in product_ids]))
        if not found:
            return {}
        entries = zip(product_ids, found, strict=True)
        return {product_id: _VALUES[value] for product_id, value in entries if value in _VALUES}

    async def fill(self, entries: dict[str, bool]) -> None:
        """Store the entries that do not exist yet: one pipeline."""
        await self._store(entries, only_absent=True)

    async def overwrite(self, entries: dict[str, bool]) -> None:
        """Store the entries in place of existing ones, for a caller that has just set the stock: one pipeline."""
        await self._store(entries, only_absent=False)

    async def _store(self, entries: dict[str, bool], *, only_absent: bool) -> None:
        async def store() -> list[Any]:
            pipeline = self._redis.pipeline(transaction=False)
            for product_id, available in entries.items():
                # Jitter, so that entries stored together do not expire together.
                milliseconds = round(1000 * random.uniform(0.8, 1.2) * self._ttl_seconds)
                pipeline.set(f"avail:{product_id}", b"1" if available else b"0", px=milliseconds, nx=only_absent)
            return await pipeline.execute()

        await self._access(store)

    async def _access(self, call: Callable[[], Awaitable[list[Any]]]) -> list[Any] | None:
        """Return the call's result, or None if Redis is unavailable."""

        async def limited() -> list[Any]:
            async with asyncio.timeout(self._timeout_seconds):
                if self._clock() >= self._replace_at:
                    await self._replace_connections()
                try:
                    return await call()
                except _DEMOTED as e:
                    await self._replace_connections()
                    result = await call()
                    log.warning("left a demoted cache server", reason=type(e).__name__)
                    return result

        try:
            result = await self._circuit(limited)
        except CircuitOpen:
            return None
        except _ERRORS as e:
            # One slow access is not worth a log line; several in a row are worth one.
            if self._circuit.is_open and not self._reported_unavailable:
                log.warning("availability cache unavailable", reason=type(e).__name__)
                self._reported_unavailable = True
            return None
        if self._reported_unavailable:
            log.info("availability cache recovered")
            self._reported_unavailable = False
        return result

    async def _replace_connections(self) -> None:
        """Close the idle connections now, and those in use when they are released."""
        self._replace_at = self._next_replacement()
        pool = self._redis.connection_pool
        await pool.update_active_connections_for_reconnect()  # type: ignore[no-untyped-call]
        await pool.disconnect(inuse_connections=False)

    def _next_replacement(self) -> float:
        return self._clock() + random.uniform(0.9, 1.1) * self._max_connection_age_seconds
