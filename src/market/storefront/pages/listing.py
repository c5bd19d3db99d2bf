"""The products of the sitemap, cached for five minutes, because reading them takes up to ten calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from market.storefront.domain import ListedProduct

_MAX_AGE_SECONDS = 300.0


class Listing:
    """Caches the products for five minutes. Concurrent requests share one read.

    read: returns the products. clock: a monotonic clock, in seconds.
    """

    def __init__(
        self, read: Callable[[], Awaitable[Sequence[ListedProduct]]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._products: Sequence[ListedProduct] = ()
        self._read_at = -_MAX_AGE_SECONDS
        self._reading: asyncio.Future[Sequence[ListedProduct]] | None = None

    async def get(self) -> Sequence[ListedProduct]:
        """Return the products. Raises what `read` raises, in all requests that share it."""
        if self._clock() - self._read_at < _MAX_AGE_SECONDS:
            return self._products
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read_all())
            self._reading.add_done_callback(self._finish)
        # Shielded, so that a caller that is cancelled does not cancel the read for the others.
        return await asyncio.shield(self._reading)

    async def _read_all(self) -> Sequence[ListedProduct]:
        return await self._read()

    def _finish(self, reading: asyncio.Future[Sequence[ListedProduct]]) -> None:
        self._reading = None
        if not reading.cancelled() and reading.exception() is None:
            self._products, self._read_at = reading.result(), self._clock()
