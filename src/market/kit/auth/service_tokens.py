"""The token that this service sends to others: from a file that rotates, or from the issuer.

async with service_tokens(config.service_identity, config.auth) as tokens:
    token = await tokens.get(seconds=2.5)
"""

from __future__ import annotations

import asyncio
import random
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote, urlencode

import msgspec

from market.kit.auth import metrics
from market.kit.auth.config import Auth, ServiceIdentity
from market.kit.auth.fetch import FetchError, fetch, tls_context_source
from market.kit.errors import Unavailable
from market.kit.process import logs

if TYPE_CHECKING:
    from market.kit.auth.issuer import Issuer

log = logs.get_logger("auth")

_MAX_TOKEN_BYTES = 65_536
# The minimum time between two reads of the file, unless an upstream has rejected the token. Kubernetes replaces a
# projected token when a fifth of its lifetime is left.
_FILE_SECONDS = 1.0
# A token is renewed in the background after this fraction of its lifetime.
_RENEW_AFTER = 0.8
# The assumed lifetime of a token if the response has no `expires_in` (RFC 6749 section 5.1).
_DEFAULT_LIFETIME_SECONDS = 60.0
_MIN_RETRY_SECONDS, _MAX_RETRY_SECONDS = 0.5, 30.0


class ServiceTokens(Protocol):
    """Where this service's own token comes from."""

    async def get(self, seconds: float) -> str:
        """Return a valid token. Raises Unavailable if there is none within `seconds`."""

    async def replace(self, rejected: str, seconds: float) -> str:
        """Return a token other than the one that an upstream has rejected, or the same one if there is no other yet.

        Raises Unavailable if there is none within `seconds`.
        """


class FileTokens:
    """A token in a file.

    The file is read again at most once a second, because it may have changed. It is also read again whenever an
    upstream has rejected the token.

    clock: returns seconds, like time.monotonic.
    """

    def __init__(self, path: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = Path(path)
        self._clock = clock
        self._token = ""
        self._checked_at = -float("inf")
        self._reported_unreadable = False

    async def get(self, seconds: float) -> str:  # noqa: ARG002
        now = self._clock()
        if now - self._checked_at >= _FILE_SECONDS:
            self._read()
            self._checked_at = now
        if not self._token:
            raise Unavailable("this service has no token: its token file cannot be read")
        return self._token

    async def replace(self, rejected: str, seconds: float) -> str:
        if self._token == rejected:
            self._checked_at = -float("inf")
        return await self.get(seconds)

    def _read(self) -> None:
        """Read the file. If that fails, keep the current token, because it may still be valid."""
        try:
            with self._path.open("rb") as file:
                token = file.read(_MAX_TOKEN_BYTES + 1).decode("ascii").strip()
            if not token or len(token) > _MAX_TOKEN_BYTES or not token.isprintable() or " " in token:
                raise ValueError("not a token")
        except (OSError, ValueError) as e:
            if not self._reported_unreadable:
                log.warning("the service's token cannot be read", file=str(self._path), error=type(e).__name__)
            self._reported_unreadable = True
        else:
            self._token = token
            self._reported_unreadable = False


class _TokenResponse(msgspec.Struct, frozen=True):
    access_token: str
    expires_in: float | None = None


class ClientCredentials:
    """Tokens that the issuer's token endpoint issues for a client id and its secret (RFC 6749 section 4.4).

    A new token is fetched before the current one expires. Concurrent calls share one fetch. A failed fetch is retried
    with back-off, and the current token is used until it expires.

    endpoint: returns the URL of the token endpoint; raises FetchError. clock: like time.monotonic.
    """

    def __init__(
        self,
        config: ServiceIdentity,
        endpoint: Callable[[], Awaitable[str]],
        *,
        ca_file: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._endpoint = endpoint
        self._tls = tls_context_source(ca_file)
        self._clock = clock
        self._token = ""
        self._renew_at = self._expires_at = -float("inf")
        self._retry_at = -float("inf")
        self._failures = 0
        self._error = ""
        self._fetching: asyncio.Task[None] | None = None

    async def get(self, seconds: float) -> str:
        now = self._clock()
        if now < self._renew_at:
            return self._token
        if self._fetching is None and now >= self._retry_at:
            self._start()
        if now >= self._expires_at:
            await self._await_fetch(seconds)
        return self._token

    async def replace(self, rejected: str, seconds: float) -> str:
        if self._token == rejected:
            if self._fetching is None and self._clock() >= self._retry_at:
                # Pause before the next fetch, in case the upstream rejects every token.
                self._retry_at = self._clock() + _MIN_RETRY_SECONDS
                self._start()
            # Wait for the fetch, even if another call has started it.
            await self._await_fetch(seconds)
        return self._token

    async def close(self) -> None:
        """Cancel a fetch in flight."""
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)

    async def _await_fetch(self, seconds: float) -> None:
        if self._fetching is not None:
            try:
                async with asyncio.timeout(seconds):
                    await asyncio.shield(self._fetching)
            except TimeoutError:
                raise Unavailable("this service has no token: the issuer has not responded in time") from None
        if self._clock() >= self._expires_at:
            raise Unavailable(f"this service has no token: {self._error}")

    def _start(self) -> None:
        # In an empty context, because the fetch does not belong to the request that starts it.
        self._fetching = asyncio.get_running_loop().create_task(self._fetch(), context=Context())

    async def _fetch(self) -> None:
        try:
            response = await self._request()
        except Exception as e:
            metrics.TOKEN_FETCHES.labels("failed").inc()
            self._failures += 1
            # Errors other than FetchError are unexpected, and could contain the secret.
            self._error = str(e) if isinstance(e, FetchError) else type(e).__name__
            pause = min(_MAX_RETRY_SECONDS, _MIN_RETRY_SECONDS * 2 ** min(self._failures - 1, 10))
            self._retry_at = self._clock() + pause * random.uniform(0.5, 1)
            if self._failures == 1:
                log.warning("the service's token cannot be fetched", error=self._error)
        else:
            metrics.TOKEN_FETCHES.labels("ok").inc()
            if self._failures:
                log.info("fetched the service's token", failures=self._failures)
            self._failures = 0
            lifetime = _DEFAULT_LIFETIME_SECONDS if response.expires_in is None else response.expires_in
            now = self._clock()
            self._token = response.access_token
            self._expires_at = now + lifetime
            self._renew_at = now + lifetime * _RENEW_AFTER
        finally:
            self._fetching = None

    async def _request(self) -> _TokenResponse:
        config = self._config
        url = config.token_url or await self._endpoint()
        form = {"grant_type": "client_credentials", "scope": config.scope, "audience": config.audience}
        # Both parts must be form-encoded (RFC 6749 section 2.3.1). Spaces are encoded as %20, because some issuers do
        # not decode "+".
        pair = f"{quote(config.client_id or '', safe='')}:{quote(config.client_secret or '', safe='')}"
        response = await fetch(
            url,
            method="POST",
            headers={
                "authorization": f"Basic {b64encode(pair.encode()).decode()}",
                "content-type": "application/x-www-form-urlencoded",
            },
            body=urlencode({name: value for name, value in form.items() if value is not None}).encode(),
            tls=self._tls,
            seconds=config.timeout_seconds,
            max_bytes=_MAX_TOKEN_BYTES,
        )
        if response.status != 200:
            raise FetchError(f"the token endpoint responds with status {response.status}")
        try:
            found = msgspec.json.decode(response.body, type=_TokenResponse)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise FetchError("the token endpoint's response is not a token") from None
        token = found.access_token
        if found.expires_in is not None and found.expires_in <= 0:
            raise FetchError("the token in the token endpoint's response has expired")
        if not token or not token.isascii() or not token.isprintable() or " " in token:
            raise FetchError("the token endpoint's response is not a token")
        return found


@asynccontextmanager
async def service_tokens(config: ServiceIdentity | None, auth: Auth) -> AsyncIterator[ServiceTokens | None]:
    """Yield the source of this service's own tokens; None if no identity is configured.

    auth: names the issuer whose token endpoint is used, unless `token_url` is set.
    """
    if config is None:
        yield None
        return
    if config.token_file is not None:
        yield FileTokens(config.token_file)
        return
    # Imported here, because it loads the cryptography library, which is not needed otherwise.
    from market.kit.auth.issuer import Issuer

    issuer: Issuer | None = None if auth.issuer is None else Issuer(auth)

    async def endpoint() -> str:
        if issuer is None:
            raise FetchError("neither auth.issuer nor service_identity.token_url is set")
        return await issuer.token_endpoint()

    tokens = ClientCredentials(config, endpoint, ca_file=auth.issuer_ca_file)
    try:
        yield tokens
    finally:
        await tokens.close()
