"""A visitor's session, and the token that binds forms to it (against cross-site request forgery)."""

from __future__ import annotations

import secrets
from typing import Annotated

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response

from market.storefront.session.cookies import CookieJar

_PURPOSE = "session"
_MAX_AGE_SECONDS = 30 * 24 * 3600
# The maximum lengths that an order accepts, in characters.
MAX_NAME, MAX_EMAIL = 200, 254


class Session(Struct, frozen=True, kw_only=True):
    """A visitor's session, which the browser keeps in a signed cookie.

    name, email: in mode `open`, what the buyer has entered at the last checkout
    placed: the idempotency key of the last order, whose lines were removed from the basket
    """

    id: Annotated[str, Meta(min_length=16, max_length=64)]
    name: Annotated[str, Meta(max_length=MAX_NAME)] = ""
    email: Annotated[str, Meta(max_length=MAX_EMAIL)] = ""
    placed: Annotated[str, Meta(max_length=64)] = ""


class Sessions:
    """Reads and writes the sessions of visitors."""

    def __init__(self, cookies: CookieJar) -> None:
        self._cookies = cookies

    def read(self, request: Request) -> tuple[Session, bool]:
        """Return the visitor's session, or a new one, and whether it is new."""
        found = self._cookies.read(request, _PURPOSE, Session, max_age=_MAX_AGE_SECONDS)
        return (found, False) if found is not None else (Session(id=secrets.token_urlsafe(18)), True)

    def write(self, response: Response, session: Session) -> None:
        """Store the session in the visitor's browser."""
        self._cookies.write(response, _PURPOSE, session, max_age=_MAX_AGE_SECONDS)

    def form_token(self, session: Session) -> str:
        """Return the token that the forms of this session must contain."""
        return self._cookies.digests("form", session.id)[0]

    def is_form_token(self, session: Session, token: str) -> bool:
        """Return whether the token is one of this session."""
        accepted = self._cookies.digests("form", session.id)
        return any(secrets.compare_digest(digest.encode(), token.encode()) for digest in accepted)
