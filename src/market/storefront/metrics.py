"""The storefront's metrics."""

from __future__ import annotations

from prometheus_client import Counter

SIGN_INS_STARTED = Counter("market_storefront_sign_ins_started_total", "Visitors sent to the issuer to sign in.")
SIGN_INS_COMPLETED = Counter("market_storefront_sign_ins_completed_total", "Visitors who have signed in.")
SIGN_INS_FAILED = Counter(
    "market_storefront_sign_ins_failed_total",
    "Visitors who returned from the issuer and were not signed in, by reason: attempt (not started in this browser, or "
    "too long ago), no_code (the issuer has refused, or the visitor has cancelled), refused (code or tokens are "
    "invalid), size (the tokens are too large for cookies) or unavailable (the issuer does not respond).",
    ["reason"],
)
RENEWALS = Counter(
    "market_storefront_renewals_total",
    "Renewals of tokens, by result: renewed, refused (the session ends) or failed (the issuer does not respond).",
    ["result"],
)
# Create all series at start, so that their first increase is visible to rate().
for _reason in ("attempt", "no_code", "refused", "size", "unavailable"):
    SIGN_INS_FAILED.labels(_reason)
for _result in ("renewed", "refused", "failed"):
    RENEWALS.labels(_result)
