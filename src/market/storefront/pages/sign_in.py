"""Signing in at the issuer and signing out."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from starlette.responses import Response

from market.kit.errors import NotFound, Unavailable
from market.kit.process import logs
from market.storefront import metrics
from market.storefront.pages.visit import Visit, local_path, redirect
from market.storefront.session.session import Session
from market.storefront.sign_in.records import NotSignedIn

if TYPE_CHECKING:
    from market.storefront.sign_in.sign_in import SignIn

log = logs.get_logger("sign-in")

_CALLBACK = "/sign-in/callback"
# No page of this shop has a longer path.
_MAX_PATH_CHARACTERS = 1024


async def begin(visit: Visit) -> Response:
    """Send the visitor to the issuer."""
    next_path = local_path(visit.query("next"))
    if len(next_path) > _MAX_PATH_CHARACTERS:
        next_path = "/"
    sign_in = _sign_in(visit)
    url, attempt = await sign_in.begin(visit.origin + _CALLBACK, next_path)
    metrics.SIGN_INS_STARTED.inc()
    response = _redirect_away(url)
    sign_in.keep_attempt(response, attempt)
    return response


async def finish(visit: Visit) -> Response:
    """Sign in a visitor who returns from the issuer, and redirect to the page where they were."""
    sign_in = _sign_in(visit)
    attempt = sign_in.find_attempt(visit.request)
    next_path = "/" if attempt is None else attempt.next
    try:
        grant = await sign_in.finish(
            attempt,
            state=visit.query("state"),
            code=visit.query("code"),
            issuer=visit.query("iss"),
            error=visit.query("error"),
            redirect_uri=visit.origin + _CALLBACK,
        )
        # A new session, so that nobody who knows the earlier one shares it (session fixation).
        session = Session(id=secrets.token_urlsafe(18))
        response = redirect(next_path)
        sign_in.start_session(response, grant, session.id)
        visit.session = session
        metrics.SIGN_INS_COMPLETED.inc()
    except Unavailable:
        metrics.SIGN_INS_FAILED.labels("unavailable").inc()
        raise
    except NotSignedIn as e:
        metrics.SIGN_INS_FAILED.labels(e.reason).inc()
        log.info("sign-in failed", reason=str(e))
        response = visit.page("sign_in.html", status=400, reason="failed", next_path=next_path)
    sign_in.forget_attempt(response)
    return response


async def sign_out(visit: Visit) -> Response:
    """Sign the visitor out, here and at the issuer."""
    sign_in = _sign_in(visit)
    try:
        url = await sign_in.sign_out_url(visit.request, visit.session.id, f"{visit.origin}/")
    except Unavailable as e:
        log.warning("sign-out at the issuer failed", error=str(e))
        url = None
    # A new session makes the tokens, and the forms of pages that are still open, invalid.
    visit.session = Session(id=secrets.token_urlsafe(18))
    visit.person = None
    response = _redirect_away(url) if url is not None else visit.page("sign_in.html", reason="signed_out")
    sign_in.end_session(response)
    return response


def _sign_in(visit: Visit) -> SignIn:
    if visit.site.sign_in is None:
        raise NotFound("such page")
    return visit.site.sign_in


def _redirect_away(url: str) -> Response:
    """Return a redirection to the issuer."""
    return Response(status_code=303, headers={"location": url, "cache-control": "no-store"})
