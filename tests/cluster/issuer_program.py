"""The issuer in its pod: tokens for clients by their credentials, and for people in browsers by a code.

Copied into the pod beside `tests.support.issuer`, so it imports nothing else of the tests. Parameter `person` of the
request to `/authorize` says who signs in, in place of a page with a login.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from tests.support.issuer import TOKEN, Client, Issuer, Response

PORT = 8096
URL = f"http://issuer:{PORT}"
SECRET = "only-for-tests"
STOREFRONT = "market-storefront"


class CodeIssuer(Issuer):
    """An issuer with the authorization code flow for the storefront, a public client. `people`: their roles."""

    def __init__(self, people: Mapping[str, list[str]]) -> None:
        super().__init__(PORT, URL)
        self.people = people
        self.clients = {name: Client(SECRET, {"roles": roles}) for name, roles in people.items()}
        # By code: the parameters of the request that asked for it.
        self._requested: dict[str, dict[str, str]] = {}

    def response(self, method: str, target: str, headers: Mapping[str, str], body: bytes) -> Response:
        url = urlsplit(target)
        if url.path == "/authorize":
            return self._authorize(_first(url.query))
        form = _first(body.decode())
        if url.path == TOKEN and form.get("grant_type") == "authorization_code":
            return *self._exchange(form), {}
        return super().response(method, target, headers, body)

    def _authorize(self, query: dict[str, str]) -> Response:
        if query["client_id"] != STOREFRONT or query.get("person") not in self.people:
            return 400, {"error": "invalid_request"}, {}
        code = secrets.token_hex(16)
        self._requested[code] = query
        answer = urlencode({"code": code, "state": query["state"]})
        return 302, b"", {"Location": f"{query['redirect_uri']}?{answer}"}

    def _exchange(self, form: Mapping[str, str]) -> tuple[int, Any]:
        asked = self._requested.pop(form["code"], None)
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        if asked is None or asked["code_challenge"] != challenge or asked["redirect_uri"] != form["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        person = asked["person"]
        email = f"{person}@example.test"
        return 200, {
            "access_token": self.token(person, roles=self.people[person], email=email, client_id=STOREFRONT),
            "id_token": self.token(person, email=email, audience=STOREFRONT, nonce=asked["nonce"], typ="JWT"),
            "token_type": "Bearer",
            "expires_in": 600,
        }


def _first(query: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(query).items()}


async def main() -> None:
    issuer = CodeIssuer(json.loads(Path("/srv/people.json").read_text()))
    await issuer.start("0.0.0.0")
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
