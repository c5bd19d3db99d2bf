"""Sign-in: recognising visitors by their encrypted cookies, signing in, and signing out."""

from __future__ import annotations

import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import Response

from market.kit import context
from market.kit.auth.config import Auth
from market.kit.process import logs
from market.storefront.config import SignIn as Settings
from market.storefront.session.cookies import CookieJar
from market.storefront.session.sealed import SealedCookies
from market.storefront.sign_in.issuer_client import IssuerClient, Refused, issuer_client
from market.storefront.sign_in.records import Access, Attempt, Grant, NotSignedIn, Person, Renewal
from market.storefront.sign_in.renewals import RenewalRefused, Renewals, Renewed

log = logs.get_logger("sign-in")

_ACCESS, _RENEWAL, _ATTEMPT = "access", "renewal", "attempt"
# How long signing in at the issuer may take.
_ATTEMPT_SECONDS = 900
_MAX_CODE_CHARACTERS = 4096
# How long a request waits for a renewal while its token is still valid.
_EARLY_RENEWAL_SECONDS = 2.0
_SECRET_BYTES = 32


@dataclass(frozen=True)
class Recognised:
    """Who a visitor is.

    person, token: None and "" if they are not signed in
    has_ended: their session has just ended, so the cookies must be removed
    is_unknown: whether they are signed in is unknown, because the issuer does not respond
    access, renewal: new cookies, which replace those of the request; None if there are none
    """

    person: Person | None = None
    token: str = ""
    has_ended: bool = False
    is_unknown: bool = False
    access: Access | None = None
    renewal: Renewal | None = None


NOBODY = Recognised()
_ENDED = Recognised(has_ended=True)


class SignIn:
    """Signs visitors in and out. Their tokens are in cookies that only the storefront can read (docs/decisions/0021).

    timeout_seconds: how long a request waits for a renewal once its token has expired
    clock: returns the time in seconds since 1970
    """

    def __init__(
        self,
        client: IssuerClient,
        renewals: Renewals,
        cookies: SealedCookies,
        settings: Settings,
        *,
        timeout_seconds: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._renewals = renewals
        self._cookies = cookies
        self._max_session_seconds = settings.max_session_seconds
        self._timeout_seconds = timeout_seconds
        self._clock = clock

    # Signing in.

    async def begin(self, redirect_uri: str, next_path: str) -> tuple[str, Attempt]:
        """Return the address at which a visitor signs in, and the attempt, which their browser must keep.

        redirect_uri: where the issuer redirects them afterwards. next_path: the page to return to. Raises Unavailable.
        """
        attempt = Attempt(
            state=secrets.token_urlsafe(_SECRET_BYTES),
            nonce=secrets.token_urlsafe(_SECRET_BYTES),
            verifier=secrets.token_urlsafe(_SECRET_BYTES),
            next=next_path,
        )
        return await self._client.authorization_url(attempt, redirect_uri), attempt

    def keep_attempt(self, response: Response, attempt: Attempt) -> None:
        """Store the attempt in the browser, without the path to return to if that is too long for a cookie."""
        text = self._cookies.seal(_ATTEMPT, attempt)
        if text is None:
            short = Attempt(state=attempt.state, nonce=attempt.nonce, verifier=attempt.verifier, next="/")
            text = self._cookies.seal(_ATTEMPT, short)
        self._cookies.write(response, _ATTEMPT, text or "", max_age=_ATTEMPT_SECONDS)

    def find_attempt(self, request: Request) -> Attempt | None:
        """Return the attempt that was started in this browser; None if there is none."""
        return self._cookies.read(request, _ATTEMPT, Attempt, max_age=_ATTEMPT_SECONDS)

    def forget_attempt(self, response: Response) -> None:
        """Remove the attempt from the browser: it is valid for one authorization response."""
        self._cookies.remove(response, _ATTEMPT)

    async def finish(
        self, attempt: Attempt | None, *, state: str, code: str, issuer: str, error: str, redirect_uri: str
    ) -> Grant:
        """Return the grant for an authorization response. Raises NotSignedIn and Unavailable."""
        if attempt is None or not secrets.compare_digest(attempt.state.encode(), state.encode("utf-8", "replace")):
            raise NotSignedIn("the authorization response does not belong to an attempt of this browser", "attempt")
        try:
            self._client.check_issuer(issuer)
            if error or not code or len(code) > _MAX_CODE_CHARACTERS:
                raise NotSignedIn(f"the authorization response has no code; error: {error[:64] or 'none'}", "no_code")
            return await self._client.exchange(code, attempt, redirect_uri)
        except Refused as e:
            raise NotSignedIn(str(e), "refused") from None

    def start_session(self, response: Response, grant: Grant, session_id: str) -> None:
        """Store the tokens in the browser, for this session. Raises NotSignedIn if they are too large for cookies."""
        ends_at = self._clock() + self._max_session_seconds
        access, renewal = _cookies_of(grant, session_id, ends_at, grant.id_token)
        if not self._keep(response, access, renewal):
            raise NotSignedIn("the tokens of the issuer are too large for cookies", "size")

    # Signed in.

    def peek(self, request: Request, session_id: str) -> Person | None:
        """Return who a visitor is, without renewing anything."""
        access = self._access(request, session_id)
        return access.person if access is not None and self._clock() < access.expires_at else None

    async def recognise(self, request: Request, session_id: str) -> Recognised:
        """Return who a visitor is. Renew the token if it is due; the session ends if the issuer refuses that."""
        access = self._access(request, session_id)
        if access is None:
            return NOBODY
        now = self._clock()
        if now >= access.ends_at:
            return _ENDED
        valid = Recognised(access.person, access.token)
        if now < access.renew_at:
            return valid
        renewal = self._cookies.read(request, _RENEWAL, Renewal, max_age=self._max_session_seconds)
        is_valid = now < access.expires_at
        if renewal is None or renewal.session_id != session_id or not renewal.refresh_token:
            return valid if is_valid else _ENDED
        seconds = context.remaining(_EARLY_RENEWAL_SECONDS if is_valid else self._timeout_seconds)
        outcome = await self._renewals.renew(renewal.refresh_token, access.person, seconds)
        if isinstance(outcome, Renewed):
            grant = outcome.grant
            new_access, new_renewal = _cookies_of(grant, session_id, access.ends_at, renewal.id_token)
            return Recognised(grant.person, grant.token, access=new_access, renewal=new_renewal)
        if is_valid:
            # Another copy of the storefront may just have used the refresh token; the browser will get its cookies.
            return valid
        return _ENDED if isinstance(outcome, RenewalRefused) else Recognised(is_unknown=True)

    def keep(self, response: Response, recognised: Recognised) -> None:
        """Store new cookies in the browser, or remove them if the session has ended."""
        if recognised.has_ended:
            self.end_session(response)
        elif (
            recognised.access is not None
            and recognised.renewal is not None
            and not self._keep(response, recognised.access, recognised.renewal)
        ):
            log.warning("renewed tokens are too large for cookies")

    def end_session(self, response: Response) -> None:
        """Remove the tokens from the browser."""
        self._cookies.remove(response, _ACCESS)
        self._cookies.remove(response, _RENEWAL)

    async def sign_out_url(self, request: Request, session_id: str, return_uri: str) -> str | None:
        """Return the address at which the person signs out at the issuer; None if it has none. Raises Unavailable."""
        renewal = self._cookies.read(request, _RENEWAL, Renewal, max_age=self._max_session_seconds)
        is_own = renewal is not None and renewal.session_id == session_id
        return await self._client.sign_out_url(renewal.id_token if renewal is not None and is_own else "", return_uri)

    def _access(self, request: Request, session_id: str) -> Access | None:
        access = self._cookies.read(request, _ACCESS, Access, max_age=self._max_session_seconds)
        return access if access is not None and access.session_id == session_id else None

    def _keep(self, response: Response, access: Access, renewal: Renewal) -> bool:
        """Set both cookies, without the ID token if it does not fit. Return whether the others fit."""
        texts = (self._cookies.seal(_ACCESS, access), self._cookies.seal(_RENEWAL, renewal))
        if texts[1] is None:
            short = Renewal(session_id=renewal.session_id, refresh_token=renewal.refresh_token)
            texts = (texts[0], self._cookies.seal(_RENEWAL, short))
        if texts[0] is None or texts[1] is None:
            return False
        max_age = max(0, int(access.ends_at - self._clock()))
        for purpose, text in zip((_ACCESS, _RENEWAL), texts, strict=True):
            self._cookies.write(response, purpose, text or "", max_age=max_age)
        return True


def _cookies_of(grant: Grant, session_id: str, ends_at: float, id_token: str) -> tuple[Access, Renewal]:
    access = Access(
        session_id=session_id,
        person=grant.person,
        token=grant.token,
        expires_at=grant.expires_at,
        renew_at=grant.renew_at,
        ends_at=ends_at,
    )
    return access, Renewal(session_id=session_id, refresh_token=grant.refresh_token, id_token=id_token)


@asynccontextmanager
async def sign_in(
    auth: Auth, settings: Settings, jar: CookieJar, *, clock: Callable[[], float] = time.time
) -> AsyncIterator[SignIn]:
    """Yield the sign-in at the issuer that `auth` names."""
    async with issuer_client(auth, settings, clock=clock) as client:
        renewals = Renewals(client.renew, clock=clock)
        try:
            yield SignIn(
                client,
                renewals,
                SealedCookies(jar, clock=clock),
                settings,
                timeout_seconds=auth.timeout_seconds,
                clock=clock,
            )
        finally:
            await renewals.close()
