"""An issuer at which people sign in with a browser: OAuth 2.0's authorization code with PKCE, for one public client."""

from __future__ import annotations

import base64
import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.support.issuer import TOKEN, Issuer, Response

AUTHORIZE = "/authorize"
CLIENT_ID = "market-graphiql"


@dataclass
class Person:
    """Who signs in, and the claims of their tokens."""

    subject: str
    name: str
    claims: Mapping[str, Any] = field(default_factory=dict)


ANN = Person("ann", "Ann Example", {"email": "ann@example.test"})


class SignInIssuer(Issuer):
    """The issuer. Its page asks nothing: `person` is who signs in, and None refuses.

    origin: that of the shop, whose page may call the token endpoint.
    wrong: parameters of the response to the page, and claims of the ID token, that a test replaces.
    """

    def __init__(self, origin: str) -> None:
        super().__init__()
        self.origin = origin
        self.headers = {"Access-Control-Allow-Origin": origin}
        self.person: Person | None = ANN
        self.wrong_response: dict[str, str] = {}
        self.wrong_claims: dict[str, Any] = {}
        # Status and body, by path, in place of the issuer's own.
        self.replaced: dict[str, tuple[int, Any]] = {}
        # What the page has sent to the two endpoints.
        self.authorizations: list[dict[str, str]] = []
        self.exchanges: list[dict[str, str]] = []
        self._codes: dict[str, tuple[Person, dict[str, str]]] = {}

    def response(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Response:
        parts = urlsplit(target)
        if parts.path == AUTHORIZE:
            return self._authorize(_parameters(parts.query))
        if parts.path == TOKEN and TOKEN not in self.replaced:
            return self._exchange(_parameters(body.decode()))
        if parts.path in self.replaced:
            return *self.replaced[parts.path], {}
        return super().response(method, target, headers, body)

    def _authorize(self, request: dict[str, str]) -> Response:
        self.authorizations.append(request)
        redirect_uri = f"{self.origin}/graphql"
        if (request.get("client_id"), request.get("redirect_uri")) != (CLIENT_ID, redirect_uri):
            return 400, b"an unknown client or redirect URI", {}
        response = {"state": request["state"], "iss": self.url}
        if self.person is None:
            response |= {"error": "access_denied", "error_description": "the person has declined"}
        else:
            assert (request["response_type"], request["code_challenge_method"]) == ("code", "S256")
            response["code"] = secrets.token_urlsafe(24)
            self._codes[response["code"]] = self.person, request
        return 303, b"", {"Location": f"{redirect_uri}?{urlencode(response | self.wrong_response)}"}

    def _exchange(self, form: dict[str, str]) -> Response:
        self.exchanges.append(form)
        # Each code works once.
        person, request = self._codes.pop(form.get("code", ""), (None, {}))
        verifier = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
        expected = (request.get("client_id"), request.get("redirect_uri"), request.get("code_challenge"))
        challenge = base64.urlsafe_b64encode(verifier).rstrip(b"=").decode()
        if person is None or (form.get("client_id"), form.get("redirect_uri"), challenge) != expected:
            return 400, {"error": "invalid_grant", "error_description": "the code is not valid"}, {}
        claims = {"nonce": request["nonce"], "name": person.name, "audience": CLIENT_ID, "typ": "JWT"}
        return (
            200,
            {
                "access_token": self.token(person.subject, client_id=CLIENT_ID, **person.claims),
                "id_token": self.token(person.subject, **{**claims, **self.wrong_claims}),
                "token_type": "Bearer",
                "expires_in": 600,
            },
            {},
        )


def _parameters(text: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(text).items()}
