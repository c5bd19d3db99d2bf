"""What a page says once about what the page before it has done: "Teapot was deleted."

The notice is in a signed cookie with the id of the session, so nobody can make the desk say something by a link, or by
a cookie of another session.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from starlette.responses import Response

from market.storefront.pages.visit import Visit, redirect

Kind = Literal["good", "warn"]

_PURPOSE = "notice"
# The next page is requested at once. If it never is, the notice would surprise later.
_MAX_AGE_SECONDS = 60
# Three values of this length fit into a cookie, whatever their characters are.
_MAX_VALUE_CHARACTERS = 200


class Notice(Struct, frozen=True):
    """A notice. text: in English, marked with N_ for the catalogues. values: those of its placeholders."""

    session_id: str
    kind: Kind
    text: str
    values: dict[str, str] = {}


def redirect_with_notice(visit: Visit, path: str, text: str, kind: Kind = "good", **values: str) -> Response:
    """Return a redirection to a page of the desk, which shows the text.

    text: in English, marked with N_. values: at most three; only their first 200 characters are shown.
    """
    shortened = {name: value[:_MAX_VALUE_CHARACTERS] for name, value in values.items()}
    response = redirect(path)
    notice = Notice(visit.session.id, kind, text, shortened)
    visit.site.cookies.write(response, _PURPOSE, notice, max_age=_MAX_AGE_SECONDS)
    return response


def read(visit: Visit) -> Notice | None:
    """Return the notice that the page has to show."""
    notice = visit.site.cookies.read(visit.request, _PURPOSE, Notice, max_age=_MAX_AGE_SECONDS)
    return notice if notice is not None and notice.session_id == visit.session.id else None


def remove(visit: Visit, response: Response) -> None:
    """Remove the notice from the browser, once it was shown."""
    visit.site.cookies.remove(response, _PURPOSE)
