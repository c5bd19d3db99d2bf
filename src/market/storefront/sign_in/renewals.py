"""Renewing tokens: concurrent requests of a session, and those shortly after, share one request to the issuer."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Awaitable, Callable
from contextvars import Context
from dataclasses import dataclass

from market.kit.errors import Unavailable
from market.kit.process import logs
from market.storefront import metrics
from market.storefront.sign_in.issuer_client import Refused
from market.storefront.sign_in.records import Grant, Person

log = logs.get_logger("sign-in")

# How long a result is remembered for requests with the old cookie: browsers may have sent them before they got the new
# ones.
_REMEMBERED_SECONDS = 60.0
# How long a failure is remembered: the issuer is not called again in this time.
_RETRY_SECONDS = 5.0
# The maximum numbers of remembered results, about 4 kB each, and of concurrent renewals.
_MAX_REMEMBERED = 2000
_MAX_RUNNING = 200


@dataclass(frozen=True)
class Renewed:
    """The token was renewed."""

    grant: Grant


class RenewalRefused:
    """The issuer has refused the renewal permanently."""


class RenewalFailed:
    """The issuer did not respond in time, or responded with an error."""


Outcome = Renewed | RenewalRefused | RenewalFailed


class Renewals:
    """Renews tokens. There is one renewal at a time for each refresh token, and its result is shared.

    renew: requests a grant for a refresh token; raises Refused and Unavailable. clock: returns seconds.
    """

    def __init__(
        self, renew: Callable[[str, Person], Awaitable[Grant]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._renew = renew
        self._clock = clock
        # By the digest of the refresh token.
        self._running: dict[bytes, asyncio.Task[Outcome]] = {}
        self._remembered: dict[bytes, tuple[float, Outcome]] = {}

    async def renew(self, refresh_token: str, person: Person, seconds: float) -> Outcome:
        """Return the outcome; RenewalFailed after `seconds`, while the renewal continues in the background."""
        key = hashlib.sha256(refresh_token.encode()).digest()
        until, outcome = self._remembered.get(key, (0.0, RenewalFailed()))
        if self._clock() < until:
            return outcome
        task = self._running.get(key)
        if task is None:
            if len(self._running) >= _MAX_RUNNING:
                return RenewalFailed()
            # In an empty context and a task of its own, because it must outlive the request that starts it.
            work = self._run(key, refresh_token, person)
            task = self._running[key] = asyncio.get_running_loop().create_task(work, context=Context())
        try:
            async with asyncio.timeout(seconds):
                return await asyncio.shield(task)
        except TimeoutError:
            return RenewalFailed()

    async def close(self) -> None:
        """Cancel the renewals that are running."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, key: bytes, refresh_token: str, person: Person) -> Outcome:
        seconds = _REMEMBERED_SECONDS
        outcome: Outcome
        try:
            outcome = Renewed(await self._renew(refresh_token, person))
            metrics.RENEWALS.labels("renewed").inc()
        except Refused as e:
            log.info("token renewal refused", reason=str(e))
            metrics.RENEWALS.labels("refused").inc()
            outcome = RenewalRefused()
        except Unavailable as e:
            log.warning("token renewal failed", error=str(e))
            metrics.RENEWALS.labels("failed").inc()
            outcome, seconds = RenewalFailed(), _RETRY_SECONDS
        finally:
            del self._running[key]
        while len(self._remembered) >= _MAX_REMEMBERED:
            del self._remembered[next(iter(self._remembered))]
        # Insert it as the newest, because the oldest results are dropped first.
        self._remembered.pop(key, None)
        self._remembered[key] = (self._clock() + seconds, outcome)
        return outcome
