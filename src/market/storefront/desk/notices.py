"""Notices, which a page shows once, about what the previous request has done: "Teapot was deleted."

A notice is in a signed cookie with the id of the session, so nobody can make the desk show a notice by a link, or by a
cookie of another session.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from starlette.responses import Response

from market.storefront.pages.visit import Visit, redirect

Kind = Literal["good", "warn"]

_PURPOSE = "notice"
# The next page is requested at once. If it is not, a later page must not show the notice.
_MAX_AGE_SECONDS = 60
# Three values of this length fit into a cookie, whatever their characters are.
_MAX_VALUE_CHARACTERS = 200


class Notice(Struct, frozen=True):
    """A notice. text: in English, marked with N_ for the catalogues. values: of its placeholders."""

    session_id: str
    kind: Kind
    text: str
    values: dict[str, str] = {}


def redirect_with_notice(visit: Visit, path: str, text: str, kind: Kind = "good", **values: str) -> Response:
    """Return a redirect to a page of the desk, which shows the text.

    text: in English, marked with N_. values: at most three; only their first 200 characters are shown.
    """
    shortened = {name: value[:_MAX_VALUE_CHARACTERS] for name, value in values.items()}
    response = redirect(path)
    notice = Notice(visit.session.id, kind, text, shortened)
    visit.site.cookies.write(response, _PURPOSE, notice, max_age=_MAX_AGE_SECONDS)
    return response


def read(visit: Visit) -> Notice | None:
    """Return the notice that this page must show; None if there is none."""
    notice = visit.site.cookies.read(visit.request, _PURPOSE, Notice, max_age=_MAX_AGE_SECONDS)
    return notice if notice is not None and notice.session_id == visit.session.id else None


def remove(visit: Visit, response: Response) -> None:
    """Remove the notice from the browser, after it was shown."""
    visit.site.cookies.remove(response, _PURPOSE)
