"""The products of the sitemap, kept for some minutes, because reading them takes up to ten calls."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence

from market.storefront.domain import ListedProduct

_MAX_AGE_SECONDS = 300.0


class Listing:
    """Reads the products at most once in five minutes, however many requests want them at the same time.

    read: returns the products. clock: returns the time in seconds, from any beginning.
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
        """Return the products. Raises what `read` raises, to all callers that wait for it."""
        if self._clock() - self._read_at < _MAX_AGE_SECONDS:
            return self._products
        if self._reading is None:
            self._reading = asyncio.ensure_future(self._read_all())
            self._reading.add_done_callback(self._finish)
        # Shielded, so that a caller who leaves does not stop the others.
        return await asyncio.shield(self._reading)

    async def _read_all(self) -> Sequence[ListedProduct]:
        return await self._read()

    def _finish(self, reading: asyncio.Future[Sequence[ListedProduct]]) -> None:
        self._reading = None
        if not reading.cancelled() and reading.exception() is None:
            self._products, self._read_at = reading.result(), self._clock()
