"""Authlib's authorization server on Starlette's requests and responses."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

from authlib.oauth2.rfc6749 import AuthorizationServer, OAuth2Payload, OAuth2Request
from joserfc.jwk import KeySet
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from market_dev.issuer.grants import (
    AccessTokens,
    ClientCredentials,
    IdTokens,
    KnownClient,
    Registry,
    RequiredCodeChallenge,
    authorization_code_grant,
    refresh_token_grant,
)
from market_dev.issuer.memory import RefreshToken

_MAX_FIELDS = 32
_MAX_BODY_BYTES = 16 * 1024
_REFRESH_TOKEN_BYTES = 36


class TooLarge(Exception):
    """The form of a request has too many bytes or fields."""


class FormRequest:
    """A request whose form was read. Raises TooLarge."""

    def __init__(self, request: Request, query: Mapping[str, list[str]], form: Mapping[str, list[str]]) -> None:
        self.request = request
        self.query = query
        self.form = form

    @classmethod
    async def read(cls, request: Request) -> FormRequest:
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > _MAX_BODY_BYTES:
                raise TooLarge
        try:
            query = parse_qs(request.url.query, max_num_fields=_MAX_FIELDS)
            form = parse_qs(body.decode("utf-8", "replace"), max_num_fields=_MAX_FIELDS)
        except ValueError:
            raise TooLarge from None
        return cls(request, query, form)


class _Payload(OAuth2Payload):
    """The parameters of query and form together."""

    def __init__(self, request: FormRequest) -> None:
        self._lists = {
            name: [*request.query.get(name, ()), *request.form.get(name, ())]
            for name in request.query.keys() | request.form.keys()
        }

    @property
    def data(self) -> dict[str, str]:
        return {name: values[-1] for name, values in self._lists.items()}

    @property
    def datalist(self) -> dict[str, list[str]]:
        return self._lists


class _Request(OAuth2Request):
    def __init__(self, request: FormRequest) -> None:
        super().__init__(request.request.method, str(request.request.url), headers=request.request.headers)
        self.payload = _Payload(request)
        self._form = {name: values[-1] for name, values in request.form.items()}

    @property
    def form(self) -> dict[str, str]:
        return self._form


class Provider(AuthorizationServer):
    """The authorization endpoint and the token endpoint."""

    def __init__(self, issuer: str, keys: KeySet, registry: Registry) -> None:
        super().__init__()
        self._registry = registry
        self.register_grant(authorization_code_grant(registry), [RequiredCodeChallenge(), IdTokens(issuer, keys)])
        self.register_grant(refresh_token_grant(registry))
        self.register_grant(ClientCredentials)
        settings = registry.settings
        self.register_token_generator("default", AccessTokens(issuer, keys, settings.token_seconds, _refresh_token))

    def query_client(self, client_id: str) -> KnownClient | None:
        return self._registry.clients.get(client_id)

    def save_token(self, token: dict[str, Any], request: OAuth2Request) -> None:
        """Store the refresh token. Access tokens are verified by their signature, so they are not stored."""
        if value := token.get("refresh_token"):
            person, client = request.user.get_user_id(), request.client.id
            self._registry.refresh_tokens.put(value, RefreshToken(value, client, person, token.get("scope", "")))

    def create_oauth2_request(self, request: FormRequest) -> OAuth2Request:
        return _Request(request)

    def handle_response(self, status: int, body: Any, headers: Sequence[tuple[str, str]]) -> Response:
        fields = dict(headers)
        return JSONResponse(body, status, fields) if isinstance(body, dict) else Response(body, status, fields)

    def send_signal(self, name: str, *args: Any, **kwargs: Any) -> None:
        """Do nothing: there are no listeners."""


def _refresh_token(**_: Any) -> str:
    return secrets.token_urlsafe(_REFRESH_TOKEN_BYTES)
