"""Rendering of pages: templates with autoescaping, in the visitor's language, and the headers of each page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from starlette.responses import Response

from market.storefront.rendering.assets import Assets
from market.storefront.texts.languages import Language

# Scripts, styles and forms of this host only, and no inline scripts or styles. Pictures may be on any https host:
# merchants may enter such addresses.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' https:; connect-src 'self'; "
    "base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
)
_HEADERS = {
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    # Not no-referrer: then browsers would send forms with the origin null.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    # Every page contains the visitor's basket and form token.
    "cache-control": "private, no-store",
    "vary": "accept-language, cookie",
}
_STRICT_TRANSPORT = "max-age=31536000"


class Renderer:
    """Renders the templates of `templates/`. One environment per language, so that each has its own texts.

    secure: whether browsers reach the shop by https
    sign_out_origin: scheme and host of the issuer, to which the sign-out form redirects; None in mode `open`
    """

    def __init__(
        self,
        languages: Mapping[str, Language],
        assets: Assets,
        *,
        secure: bool = False,
        sign_out_origin: str | None = None,
    ) -> None:
        self.languages = languages
        self.assets = assets
        # Browsers apply form-action to the redirect after a form, too.
        policy = _POLICY if sign_out_origin is None else f"{_POLICY} {sign_out_origin}"
        self._headers = {**_HEADERS, "content-security-policy": policy}
        if secure:
            self._headers["strict-transport-security"] = _STRICT_TRANSPORT
        self._environments = {code: _environment(language, assets) for code, language in languages.items()}

    def page(self, template: str, language: Language, values: Mapping[str, Any], *, status: int = 200) -> Response:
        """Render the template with the values, and return the page."""
        html = self._environments[language.code].get_template(template).render(values)
        headers = {**self._headers, "content-language": language.code}
        return Response(html, status, headers, media_type="text/html")


def _environment(language: Language, assets: Assets) -> Environment:
    environment = Environment(
        loader=PackageLoader("market.storefront", "rendering/templates"),
        autoescape=True,
        auto_reload=False,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.i18n"],
    )
    # The extension adds these methods to the environment.
    environment.install_gettext_translations(language.translations, newstyle=True)  # type: ignore[attr-defined]
    environment.filters["day"] = language.day
    environment.filters["time"] = language.time
    environment.filters["number"] = language.number
    environment.globals["money"] = language.money
    environment.globals["asset"] = assets.path
    environment.globals["language"] = language
    return environment
