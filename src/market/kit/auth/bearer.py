"""Bearer tokens in the header Authorization (RFC 6750 section 2.1)."""

from __future__ import annotations

from market.kit.auth import metrics
from market.kit.errors import Unauthenticated


def bearer_token(authorization: str) -> str:
    """Return the token in the header's value. Raises Unauthenticated if there is none, or the scheme is not Bearer."""
    scheme, _, token = authorization.partition(" ")
    token = token.strip(" ")
    if scheme.lower() != "bearer" or not token:
        metrics.INVALID_TOKENS.labels("scheme").inc()
        raise Unauthenticated("must be sent as Authorization: Bearer")
    return token
