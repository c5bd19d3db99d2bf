"""The gateway's own metrics."""

from __future__ import annotations

from prometheus_client import Counter

_DOCUMENT_CACHE = Counter(
    "market_graphql_document_cache_requests_total", "Lookups of documents in the document cache.", ["result"]
)
DOCUMENT_CACHE_HITS = _DOCUMENT_CACHE.labels("hit")
DOCUMENT_CACHE_MISSES = _DOCUMENT_CACHE.labels("miss")
