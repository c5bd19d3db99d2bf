"""A section of the desk: its place in the navigation, its pages, and who may use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from market.kit.auth.permissions import Access, Permission
from market.storefront.pages.visit import STAFF, Page, Visit


def roles_of(access: Access) -> tuple[str, ...]:
    """Return the roles that have the access for everybody's data, not only for their own."""
    return tuple(role for role in STAFF if getattr(access, role) is Permission.YES)


def may(visit: Visit, access: Access) -> bool:
    """Return whether the visitor has the access for everybody's data. In mode `open`, everybody has it."""
    if visit.site.is_open:
        return True
    return visit.person is not None and not set(roles_of(access)).isdisjoint(visit.person.roles)


@dataclass(frozen=True)
class Section:
    """A section.

    path: of its first page
    title, explanation: in English, marked with N_ for the catalogues
    access: who may use it, from market.contracts.access. The services enforce it; the desk only hides the section.
    routes: its pages by method and path: {"GET /desk/products": list_products}
    slow: those of its routes that may take longer than other pages
    takes_files: those of its routes to which files, and forms larger than others, may be sent
    """

    path: str
    title: str
    explanation: str
    access: Access
    routes: Mapping[str, Page]
    slow: frozenset[str] = frozenset()
    takes_files: frozenset[str] = frozenset()
