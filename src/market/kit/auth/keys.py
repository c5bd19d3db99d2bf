"""The issuer's keys. They are kept while the issuer is unavailable, and fetched again for an unknown key id."""

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

# The maximum number of requests that wait for the next fetch, and of key ids that are remembered as absent.
_MAX_WAITING = 64
_MAX_ABSENT = 1024
# The Retry-After, in seconds, for requests with a token until the first keys have been fetched.
_RETRY_AFTER_WITHOUT_KEYS = 5
# The pauses after a failed fetch: if no keys have been fetched so far, and if there are keys from an earlier fetch.
_RETRY_SECONDS = 1.0
_RETRY_WITH_KEYS_SECONDS = 15.0


class Keys:
    """Keys by `kid`.

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
        # Requested key ids that were not found by the last fetch, which may have failed.
        self._absent: set[str | None] = set()
        self._fetching: asyncio.Task[None] | None = None
        self._waiting = 0
        # When the last fetch for an unknown key id started, and when the keys were last fetched.
        self._refetched_at = -float("inf")
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

        Concurrent requests share one fetch, and there is a minimum pause between two fetches. During the pause, a
        request waits for the next fetch. But if the last fetch did not find the id, the result is empty immediately.

        Raises Unavailable if it is not known whether the issuer has such a key: the last fetch has failed, 64 requests
        are already waiting for the next fetch, or the fetch takes longer than `seconds`.
        """
        if found := self.find(kid):
            return found
        pause = self._refetched_at + self._min_refetch_seconds - self._clock()
        if self._fetching is None and pause > 0:
            if kid in self._absent:
                return self._absent_or_unknown()
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
        if len(self._absent) < _MAX_ABSENT:
            self._absent.add(kid)
        return self._absent_or_unknown()

    def _absent_or_unknown(self) -> list[SigningKey]:
        """Return no keys, because the issuer does not have the key. Raises Unavailable if the last fetch has failed."""
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
            # This fetch may have started before the issuer published the key. Then another fetch is needed.
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
        """Return the fetch in flight, or start one. It does not end with the request that started it."""
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
            self._absent.clear()
            if removed:
                log.info("the issuer has withdrawn keys", removed=len(removed), keys=len(keys))
                self._on_removed(removed)
        finally:
            self._fetching = None


def _thumbprints(keys: Iterable[SigningKey]) -> frozenset[str]:
    return frozenset(key.thumbprint for key in keys)
