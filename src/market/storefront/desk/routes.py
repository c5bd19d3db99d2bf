"""The routes of the desk's pages, and what these pages have in common.

Each module of pages has a tuple SECTIONS, which is part of the one below. The navigation and the start page are built
from it. Templates of the desk extend desk/layout.html.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from market.kit.errors import Forbidden, Problem, Unauthenticated
from market.storefront.desk import dead_letters, importing, notices, operations, orders, products, start
from market.storefront.desk.sections import Section, may, roles_of
from market.storefront.pages.visit import STAFF, Page, Visit

SECTIONS: tuple[Section, ...] = (
    *products.SECTIONS,
    *importing.SECTIONS,
    *orders.SECTIONS,
    *operations.SECTIONS,
    *dead_letters.SECTIONS,
)


def _page_of(section: Section | None, page: Page) -> Page:
    """Return the page with a check of access to its section, and with the desk's navigation.

    section: None for the start page
    """

    async def respond(visit: Visit) -> Response:
        notice = notices.read(visit)
        sections = tuple(s for s in SECTIONS if may(visit, s.access))
        visit.context = {"sections": sections, "section": section, "notice": notice}
        try:
            may_enter = visit.may_enter_desk if section is None else may(visit, section.access)
            response = await page(visit) if may_enter else _forbidden_page(visit, section)
        except Unauthenticated:
            raise
        except Forbidden:
            response = _forbidden_page(visit, section)
        except Problem as e:
            response = _problem_page(visit, e)
        response.headers["x-robots-tag"] = "noindex"
        if notice is not None and response.media_type == "text/html":
            notices.remove(visit, response)
        return response

    return respond


def _forbidden_page(visit: Visit, section: Section | None) -> Response:
    """Return the page that says who may do this."""
    roles: Any = STAFF if section is None else roles_of(section.access)
    return visit.page("desk/forbidden.html", status=403, roles=roles)


def _problem_page(visit: Visit, problem: Problem) -> Response:
    status = 400 if problem.status == 422 else problem.status
    return visit.page("desk/problem.html", status=status, problem=problem)


ROUTES: Mapping[str, Page] = {
    "GET /desk": _page_of(None, start.get_start),
    **{key: _page_of(section, page) for section in SECTIONS for key, page in section.routes.items()},
}

SLOW: frozenset[str] = frozenset().union(*(section.slow for section in SECTIONS))
TAKES_FILES: frozenset[str] = frozenset().union(*(section.takes_files for section in SECTIONS))
