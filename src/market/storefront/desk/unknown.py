"""The page after a form whose outcome is not known, because the shop did not respond in time."""

from __future__ import annotations

from starlette.responses import Response

from market.storefront.pages.visit import Visit


def outcome_unknown(visit: Visit, *, look_path: str) -> Response:
    """Return the page that says so, with a button that sends the same form again.

    Only for forms that are safe to send again. look_path: the page that shows the current state.
    """
    fields = [(name, value) for name, values in visit.form.items() if name != "form_token" for value in values]
    return visit.page(
        "desk/unknown.html", status=503, action=visit.request.scope["path"], fields=fields, look_path=look_path
    )
