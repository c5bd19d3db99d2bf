"""The gateway's own metrics."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

_DOCUMENT_CACHE = Counter(
    "market_graphql_document_cache_requests_total", "Lookups of documents in the document cache.", ["result"]
)
DOCUMENT_CACHE_HITS = _DOCUMENT_CACHE.labels("hit")
DOCUMENT_CACHE_MISSES = _DOCUMENT_CACHE.labels("miss")
DOCUMENT_CACHE_BYTES = Gauge("market_graphql_document_cache_bytes", "Estimated memory of cached documents and plans.")
MEMORY_HELD = Gauge(
    "market_graphql_request_memory_bytes", "Upper bound of the memory of the requests in flight.", ["size"]
)
MEMORY_REFUSALS = Counter(
    "market_graphql_request_memory_refusals_total", "Times that a request was refused memory beyond a limit."
)
