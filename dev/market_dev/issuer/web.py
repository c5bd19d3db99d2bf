"""The provider over HTTP: discovery, keys, the page on which a person is chosen, and tokens."""

from __future__ import annotations

from html import escape
from importlib.resources import files
from string import Template
from urllib.parse import urlsplit

from authlib.oauth2 import OAuth2Error
from joserfc.jwk import KeySet
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from market_dev.issuer.grants import GRANT_TYPES, SCOPES, Registry
from market_dev.issuer.keys import ALGORITHM
from market_dev.issuer.server import FormRequest, Provider, TooLarge
from market_dev.issuer.settings import Person, Settings
from market_dev.issuer.sign_out import InvalidSignOut, end_session


def app(settings: Settings, keys: KeySet, issuer: str) -> Starlette:
    """Return the application. `issuer`: its own URL, which the tokens name."""
    registry = Registry(settings)
    provider = Provider(issuer, keys, registry)
    page = Template((files("market_dev.issuer") / "page.html").read_text("utf-8"))

    async def discovery(_: Request) -> Response:
        # https://openid.net/specs/openid-connect-discovery-1_0.html#ProviderMetadata
        return JSONResponse(
            {
                "issuer": issuer,
                "authorization_endpoint": f"{issuer}/authorize",
                "token_endpoint": f"{issuer}/token",
                "end_session_endpoint": f"{issuer}/sign-out",
                "jwks_uri": f"{issuer}/keys",
                "response_types_supported": ["code"],
                "response_modes_supported": ["query"],
                "grant_types_supported": GRANT_TYPES,
                "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": [ALGORITHM],
                "token_endpoint_auth_methods_supported": ["none", "client_secret_basic", "client_secret_post"],
                "code_challenge_methods_supported": ["S256"],
                "scopes_supported": SCOPES,
                "claims_supported": ["sub", "name", "roles", "email", "email_verified"],
            }
        )

    async def public_keys(_: Request) -> Response:
        return JSONResponse(keys.as_dict(private=False))

    async def choose(request: Request) -> Response:
        """Show who can sign in."""
        try:
            grant = provider.get_consent_grant(await FormRequest.read(request))
        except (OAuth2Error, TooLarge) as e:
            return _refused(e)
        client = grant.client.id
        people = "\n".join(_button(person) for person in settings.people)
        # Browsers apply form-action to the redirect that follows the form, too.
        target = urlsplit(grant.redirect_uri)
        policy = (
            "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; "
            f"form-action 'self' {target.scheme}://{target.netloc}"
        )
        return HTMLResponse(
            page.substitute(client=escape(client), people=people),
            headers={"Content-Security-Policy": policy, "Cache-Control": "no-store"},
        )

    async def sign_in(request: Request) -> Response:
        """Send the chosen person back to the client, with a code."""
        try:
            read = await FormRequest.read(request)
            grant = provider.get_consent_grant(read)
        except (OAuth2Error, TooLarge) as e:
            return _refused(e)
        user = registry.users.get(read.form.get("person", [""])[-1])
        response: Response = provider.create_authorization_response(read, grant_user=user, grant=grant)
        response.headers["Cache-Control"] = "no-store"
        return response

    async def token(request: Request) -> Response:
        try:
            response: Response = provider.create_token_response(await FormRequest.read(request))
        except TooLarge:
            return JSONResponse({"error": "invalid_request", "error_description": "The form is too large."}, 400)
        return response

    async def sign_out(request: Request) -> Response:
        """Forget the refresh tokens of a person, and send them back (OpenID Connect RP-Initiated Logout 1.0)."""
        try:
            return end_session((await FormRequest.read(request)).query, registry, issuer, keys)
        except (InvalidSignOut, TooLarge) as e:
            return _refused(e)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    routes = [
        Route("/.well-known/openid-configuration", discovery),
        Route("/keys", public_keys),
        Route("/authorize", choose, methods=["GET"]),
        Route("/authorize", sign_in, methods=["POST"]),
        Route("/token", token, methods=["POST"]),
        Route("/sign-out", sign_out, methods=["GET"]),
        Route("/healthz", healthz),
    ]
    middleware = [
        # So that no page of another host, whose name resolves to this machine, can use the provider.
        Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"]),
        Middleware(CORSMiddleware, allow_origins=_origins(settings), allow_methods=["GET", "POST"]),
    ]
    return Starlette(routes=routes, middleware=middleware)


def _origins(settings: Settings) -> list[str]:
    """Return the origins of the pages that request tokens: those of public clients."""
    parts = [urlsplit(uri) for client in settings.clients if client.secret is None for uri in client.redirect_uris]
    return sorted({f"{p.scheme}://{p.netloc}" for p in parts if p.port is not None})


def _button(person: Person) -> str:
    address = f" &lt;{escape(person.email)}&gt;" if person.email else ""
    roles = escape(", ".join(person.roles)) or "no roles"
    return (
        f'<button name="person" value="{escape(person.name)}"><b>{escape(person.name)}</b>{address}'
        f"<span>{roles}</span></button>"
    )


def _refused(error: OAuth2Error | InvalidSignOut | TooLarge) -> Response:
    """Respond with the reason why the request is invalid. Do not redirect, because the target may be invalid."""
    if isinstance(error, OAuth2Error):
        reason = error.description or error.error
    else:
        reason = str(error) or "The request is too large."
    return HTMLResponse(f"<!doctype html><title>Sign-in</title><p>{escape(str(reason))}</p>", 400)
