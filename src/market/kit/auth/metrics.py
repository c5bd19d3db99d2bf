"""Metrics of sign-in."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

REFUSED = Counter(
    "market_auth_refused_total",
    "Requests refused, by reason: no_token (no token, 401), token (invalid token, 401) or role (missing role, 403).",
    ["reason"],
)
INVALID_TOKENS = Counter("market_auth_invalid_tokens_total", "Tokens refused, by the rule that they break.", ["rule"])
KEY_FETCHES = Counter(
    "market_auth_key_fetches_total", "Fetches of the issuer's keys, by result: ok or failed.", ["result"]
)
KEYS_AGE = Gauge(
    "market_auth_keys_age_seconds", "Time since the issuer's keys were last fetched; -1 before the first time."
)
CACHED_TOKENS = Gauge("market_auth_cached_tokens", "Verified tokens in the cache.")
TOKEN_FETCHES = Counter(
    "market_auth_service_token_fetches_total",
    "Fetches of this service's own token, by result: ok or failed.",
    ["result"],
)
