"""Authentication by bearer tokens (RFC 6750).

async with authenticator(config.auth) as authentication:
    identity = await authentication.authenticate(bearer_token(request.headers["authorization"]))
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from market.kit.auth import metrics
from market.kit.auth.config import Auth
from market.kit.auth.identity import Identity
from market.kit.auth.rejection import TokenRejected
from market.kit.auth.token_cache import TokenCache
from market.kit.errors import Unauthenticated
from market.kit.process.tasks import periodic_tasks

if TYPE_CHECKING:
    from market.kit.auth.verifier import Verifier


class Authenticator:
    """Verifies tokens, and caches valid ones until they expire, but for at most 24 hours.

    If the cache is full, the least recently used tokens are dropped from it.

    clock: returns the time in seconds since 1970.
    """

    def __init__(self, verifier: Verifier, cache: TokenCache, *, clock: Callable[[], float] = time.time) -> None:
        self._verifier = verifier
        self._cache = cache
        self._clock = clock

    async def authenticate(self, token: str) -> Identity:
        """Return the identity that the token proves.

        Raises Unauthenticated if the token is not valid. Raises Unavailable if the token's key is unknown and the
        issuer's keys cannot be fetched now.
        """
        now = self._clock()
        # The cache contains digests instead of tokens, because anybody who can read this process's memory could use the
        # tokens.
        digest = hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
        if cached := self._cache.get(digest, now):
            return cached
        try:
            verified = await self._verifier.verify(token, now)
        except TokenRejected as e:
            metrics.INVALID_TOKENS.labels(e.rule).inc()
            raise Unauthenticated(e.reason) from None
        self._cache.put(digest, verified.identity, verified.expires_at, verified.thumbprint)
        return verified.identity


@asynccontextmanager
async def authenticator(
    config: Auth, *, callers: Mapping[str, str] | None = None, clock: Callable[[], float] = time.time
) -> AsyncIterator[Authenticator | None]:
    """Yield an Authenticator whose keys are kept up to date; None in mode `open`.

    callers: maps the subject of each known service's token to the service's name.

    A failed fetch of the keys is logged and retried. Until the first fetch succeeds, requests with a token get
    Unavailable.
    """
    if not config.is_required:
        yield None
        return
    # Imported here, because loading the cryptography library takes a tenth of a second and 12 MB, and mode `open` does
    # not need it.
    from market.kit.auth.issuer import Issuer
    from market.kit.auth.keys import Keys
    from market.kit.auth.verifier import Verifier

    cache = TokenCache(config.max_cached_tokens, config.max_cached_token_bytes)
    keys = Keys(
        Issuer(config).fetch_keys,
        on_removed=cache.remove_signed_by,
        refresh_seconds=config.refresh_seconds,
        min_refetch_seconds=config.min_refetch_seconds,
    )
    try:
        seconds_until_refresh: float | None = await keys.refresh()

        async def refresh() -> float:
            # The keys have just been fetched, so the first run fetches nothing.
            nonlocal seconds_until_refresh
            seconds, seconds_until_refresh = seconds_until_refresh, None
            return await keys.refresh() if seconds is None else seconds

        async with periodic_tasks({"issuer-keys": refresh}):
            yield Authenticator(Verifier(config, keys, callers or {}), cache, clock=clock)
    finally:
        await keys.close()
