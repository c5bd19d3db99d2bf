"""The issuer's keys. They are fetched periodically, and when a token has an unknown key id."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextvars import Context

from market.kit.auth import metrics
from market.kit.auth.fetch import FetchError
from market.kit.auth.issuer import SigningKey
from market.kit.errors import Unavailable
from market.kit.process import logs

log = logs.get_logger("auth")

# The maximum number of requests that wait until another fetch is allowed.
_MAX_WAITING = 64
# The maximum number of key ids in `Keys._not_found`.
_MAX_NOT_FOUND = 1024
# The Retry-After, in seconds, for requests with a token until the first keys have been fetched.
_RETRY_AFTER_WITHOUT_KEYS = 5
# How long to wait after a failed fetch, without any keys and with the keys of an earlier fetch.
_RETRY_SECONDS = 1.0
_RETRY_WITH_KEYS_SECONDS = 15.0


class Keys:
    """Finds keys by `kid`. If the issuer is unavailable, the keys of the last successful fetch are kept.

    fetch: returns the issuer's current keys; raises FetchError.
    on_removed: called with the thumbprints of keys that the issuer no longer has.
    refresh_seconds, min_refetch_seconds: as in the configuration. clock: returns seconds, like time.monotonic.
    """

    def __init__(
        self,
        fetch: Callable[[], Awaitable[Sequence[SigningKey]]],
        *,
        on_removed: Callable[[frozenset[str]], None],
        refresh_seconds: float,
        min_refetch_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._fetch = fetch
        self._on_removed = on_removed
        self._refresh_seconds = refresh_seconds
        self._min_refetch_seconds = min_refetch_seconds
        self._clock = clock
        self._keys: tuple[SigningKey, ...] = ()
        # Key ids that were looked up without success since the last successful fetch.
        self._not_found: set[str | None] = set()
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0
        # When the last fetch for an unknown key id started.
        self._refetched_at = -float("inf")
        # When the last successful fetch ended.
        self._fetched_at: float | None = None
        self._is_failing = False
        metrics.KEYS_AGE.set_function(lambda: -1.0 if self._fetched_at is None else self._clock() - self._fetched_at)

    def find(self, kid: str | None) -> list[SigningKey]:
        """Return the keys with this id. If `kid` is None, return the issuer's only key; none if it has several."""
        if kid is None:
            return list(self._keys) if len(self._keys) == 1 else []
        return [key for key in self._keys if key.kid == kid]

    async def find_or_fetch(self, kid: str | None, seconds: float) -> list[SigningKey]:
        """Return the keys with this id. If none is known, fetch the issuer's keys again, for at most `seconds`.

        Concurrent requests share one fetch. Between two fetches, there is a pause of at least `min_refetch_seconds`. A
        request that comes during the pause waits for the next fetch, unless the id was looked up before. Then the
        result is empty immediately.

        Raises Unavailable if the issuer may have the key: the last fetch has failed, the fetch takes longer than
        `seconds`, or 64 other requests already wait during the pause.
        """
        if found := self.find(kid):
            return found
        pause = self._refetched_at + self._min_refetch_seconds - self._clock()
        if self._fetching is None and pause > 0:
            if kid in self._not_found:
                return self._no_keys()
            if self._waiting >= _MAX_WAITING:
                raise self._unavailable()
        self._waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._await_fetch(kid)
        except TimeoutError:
            if found := self.find(kid):
                return found
            raise self._unavailable() from None
        finally:
            self._waiting -= 1
        if found := self.find(kid):
            return found
        if len(self._not_found) < _MAX_NOT_FOUND:
            self._not_found.add(kid)
        return self._no_keys()

    def _no_keys(self) -> list[SigningKey]:
        """Return an empty list. Raises Unavailable if the last fetch has failed: then the issuer may have the key."""
        if self._is_failing:
            raise self._unavailable()
        return []

    def _unavailable(self) -> Unavailable:
        if not self._keys:
            return Unavailable("the keys of the issuer are not available yet", retry_after=_RETRY_AFTER_WITHOUT_KEYS)
        pause = self._refetched_at + self._min_refetch_seconds - self._clock()
        return Unavailable(
            "it is not known yet whether the issuer has the key of this token", retry_after=max(1, math.ceil(pause))
        )

    async def _await_fetch(self, kid: str | None) -> None:
        if self._fetching is not None:
            # If this fetch started before the issuer published the key, another fetch is needed.
            await asyncio.shield(self._fetching)
            if self.find(kid):
                return
        pause = self._refetched_at + self._min_refetch_seconds - self._clock()
        if pause > 0:
            await asyncio.sleep(pause)
        if self._fetching is None and not self.find(kid):
            self._refetched_at = self._clock()
            self._start()
        if self._fetching is not None:
            await asyncio.shield(self._fetching)

    async def refresh(self) -> float:
        """Fetch the keys, and return the seconds until they should be fetched again. Failures are logged."""
        await asyncio.shield(self._start())
        if not self._is_failing:
            return self._refresh_seconds * random.uniform(0.9, 1.1)
        return min(self._refresh_seconds, _RETRY_WITH_KEYS_SECONDS if self._keys else _RETRY_SECONDS)

    async def close(self) -> None:
        """Cancel a fetch in flight."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    def _start(self) -> asyncio.Task[None]:
        """Return the fetch in flight, or start one.

        The fetch has a task of its own, so it continues if the request that started it is cancelled.
        """
        if self._fetching is None:
            self._fetching = asyncio.get_running_loop().create_task(self._replace(), context=Context())
        return self._fetching

    async def _replace(self) -> None:
        try:
            keys = await self._fetch()
        except Exception as e:
            metrics.KEY_FETCHES.labels("failed").inc()
            if not self._is_failing:
                # Errors other than FetchError are unexpected, but must not fail the requests that wait for the fetch.
                error = str(e) if isinstance(e, FetchError) else repr(e)
                log.warning("the issuer's keys cannot be fetched", error=error, known_keys=len(self._keys))
            self._is_failing = True
        else:
            metrics.KEY_FETCHES.labels("ok").inc()
            if self._is_failing or not self._keys:
                log.info("fetched the issuer's keys", keys=len(keys))
            self._is_failing = False
            self._fetched_at = self._clock()
            removed = _thumbprints(self._keys) - _thumbprints(keys)
            self._keys = tuple(keys)
            self._not_found.clear()
            if removed:
                log.info("the issuer has withdrawn keys", removed=len(removed), keys=len(keys))
                self._on_removed(removed)
        finally:
            self._fetching = None


def _thumbprints(keys: Iterable[SigningKey]) -> frozenset[str]:
    return frozenset(key.thumbprint for key in keys)
