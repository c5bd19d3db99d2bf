"""The switch between the languages."""

from __future__ import annotations

from starlette.responses import Response

from market.storefront.pages.visit import LANGUAGE_COOKIE, Visit, redirect

_MAX_AGE_SECONDS = 365 * 24 * 3600


async def choose_language(visit: Visit) -> Response:
    """Remember the language, and return to the page on which it was chosen."""
    response = redirect(visit.value("next"))
    code = visit.value("language")
    if code in visit.site.renderer.languages:
        response.set_cookie(
            LANGUAGE_COOKIE,
            code,
            max_age=_MAX_AGE_SECONDS,
            secure=visit.site.cookies.secure,
            httponly=True,
            samesite="lax",
        )
    return response
