"""Products and orders that decide by the caller's token, and a gateway over them that asks for sign-in."""

from __future__ import annotations

import base64
import json
from contextlib import AbstractAsyncContextManager
from typing import Any

from market.kit.auth.config import Auth
from tests.graphql.graphql_gateway import FakeUpstream, Gateway, running_gateway
from tests.support.issuer import Issuer

Response = tuple[int, Any, dict[str, str]]


class ProtectedUpstream(FakeUpstream):
    """A fake that shows a buyer their own orders, and stock to merchants. It believes every token."""

    def respond(
        self, method: str, path: str, query: dict[str, str], body: Any, headers: dict[str, str]
    ) -> tuple[int, Any, dict[str, str]]:
        if self.failures or self.fail_always:
            return super().respond(method, path, query, body, headers)
        claims = claims_of(headers.get("authorization", ""))
        is_merchant = "merchant" in (claims or {}).get("roles", ())
        if self.kind == "product":
            if (method != "GET" or query.get("stock") == "true") and not is_merchant:
                return _refusal(claims, "this requires the role merchant")
            return super().respond(method, path, query, body, headers)
        if claims is None:
            return _refusal(claims, "")
        if method == "POST":
            body["user"] = body.get("user", claims["sub"])
            if body["user"] != claims["sub"] and not is_merchant:
                return _refusal(claims, "user must be the one who has signed in")
        elif not is_merchant and not path.removeprefix("/api/order").strip("/"):
            query["user"] = claims["sub"]
        return super().respond(method, path, query, body, headers)

    def tokens(self) -> list[str | None]:
        """Return the header Authorization of each request."""
        return [headers.get("authorization") for _, _, _, headers in self.calls]


def claims_of(authorization: str) -> dict[str, Any] | None:
    """Return the claims of a token, without verifying it; None if there is no token."""
    if not authorization:
        return None
    payload = authorization.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


def _refusal(claims: dict[str, Any] | None, detail: str) -> Response:
    if claims is None:
        document = {"type": "urn:market:problem:unauthenticated", "status": 401, "detail": "orders: sign in first"}
        return 401, document, {"www-authenticate": 'Bearer realm="market"'}
    return 403, {"type": "urn:market:problem:forbidden", "status": 403, "detail": detail}, {}


def protected_gateway(issuer: Issuer, **changes: Any) -> AbstractAsyncContextManager[Gateway]:
    """Run a gateway that accepts the issuer's tokens, over products and orders that decide by them."""
    auth = {"mode": "required", "issuer": issuer.url, **changes.pop("auth", {})}
    return running_gateway(ProtectedUpstream, auth=Auth(**auth), **changes)


def bearer(token: str) -> dict[str, str]:
    """Return the header with the token."""
    return {"authorization": f"Bearer {token}"}
