"""The HTTP edge: the pages and their files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.edge import Endpoint
from market.kit.process.health import Health
from market.kit.process.tracing import Tracer
from market.storefront.desk import routes as desk
from market.storefront.pages.routes import ROUTES, SHARED, needs_sign_in
from market.storefront.pages.visit import Page, Site, endpoint, stateless_problem_page

# Longer than the deadlines of the gateway's upstreams, so that the gateway can say which of them did not respond.
TIMEOUT_SECONDS = 6.0
# Placing an order takes longest; its own deadline is shorter than this. Signing in takes up to two calls to the issuer.
SLOW_TIMEOUT_SECONDS = 12.0
_SLOW = frozenset(
    {
        "POST /checkout",
        "GET /checkout/pending",
        "GET /sitemap.xml",
        "GET /sign-in",
        "GET /sign-in/callback",
        "POST /sign-out",
    }
)


def application(site: Site, config: Http, tracer: Tracer, health: Health) -> Any:
    """Return the ASGI application."""
    pages: Mapping[str, Page] = {**ROUTES, **desk.ROUTES}
    routes: dict[str, Endpoint] = {
        key: endpoint(
            site,
            page,
            needs_sign_in=needs_sign_in(key),
            is_shared=key in SHARED,
            takes_files=key in desk.TAKES_FILES,
            has_page=key.replace("POST ", "GET ", 1) in pages,
        )
        for key, page in pages.items()
    }
    routes["GET /static/{name}"] = site.renderer.assets.get
    timeouts = {key: SLOW_TIMEOUT_SECONDS if key in _SLOW | desk.SLOW else TIMEOUT_SECONDS for key in routes}
    return edge.application(
        routes,
        config,
        tracer=tracer,
        health=health,
        timeouts=timeouts,
        render_problem=partial(stateless_problem_page, site),
    )
