"""Signing out at the provider (OpenID Connect RP-Initiated Logout 1.0).

The provider has no sessions with browsers. Signing out revokes the person's refresh tokens at the client.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlencode

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import KeySet
from starlette.responses import RedirectResponse, Response

from market_dev.issuer.grants import Registry
from market_dev.issuer.keys import ALGORITHM


class InvalidSignOut(Exception):
    """The request is invalid; the text says why."""


def end_session(query: Mapping[str, list[str]], registry: Registry, issuer: str, keys: KeySet) -> Response:
    """Forget the refresh tokens of the person whom the ID token names, and send the browser back to the client.

    Raises InvalidSignOut.
    """
    parameters = {name: values[-1] for name, values in query.items()}
    client = registry.clients.get(parameters.get("client_id", ""))
    target = parameters.get("post_logout_redirect_uri", "")
    if client is None or target not in client.settings.sign_out_uris:
        raise InvalidSignOut("The client, or its post_logout_redirect_uri, is not known.")
    if hint := parameters.get("id_token_hint"):
        person = _person(hint, client.id, issuer, keys)
        registry.refresh_tokens.remove_if(lambda token: (token.client_id, token.person) == (client.id, person))
    state = parameters.get("state")
    return RedirectResponse(f"{target}?{urlencode({'state': state})}" if state else target, 303)


def _person(id_token: str, client_id: str, issuer: str, keys: KeySet) -> str:
    """Return the subject of an ID token. An expired one is accepted, too. Raises InvalidSignOut."""
    try:
        claims = jwt.decode(id_token, keys, algorithms=[ALGORITHM]).claims
    except (JoseError, ValueError):
        raise InvalidSignOut("The id_token_hint is not an ID token of this provider.") from None
    audience = claims.get("aud")
    if claims.get("iss") != issuer or client_id not in (audience if isinstance(audience, list) else [audience]):
        raise InvalidSignOut("The id_token_hint was issued for another client.")
    return str(claims.get("sub", ""))
