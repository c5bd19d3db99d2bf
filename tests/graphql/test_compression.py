"""Compressed responses of the gateway, whose memory is counted."""

from __future__ import annotations

from prometheus_client import REGISTRY

from tests.graphql.graphql_gateway import Gateway

QUERY = "{ products(limit: 100) { items { id name description price createdAt } } }"


def held() -> float:
    sizes = ("small", "large")
    return sum(REGISTRY.get_sample_value("market_graphql_request_memory_bytes", {"size": s}) or 0 for s in sizes)


async def test_a_large_response_is_compressed_and_its_memory_released(gateway: Gateway) -> None:
    headers = {"accept": "application/json"}
    plain = await gateway.http.post(
        gateway.url, json={"query": QUERY}, headers={**headers, "accept-encoding": "identity"}
    )
    assert plain.headers["content-length"] == str(len(plain.content))
    assert plain.headers["vary"] == "accept, accept-encoding"
    zipped = await gateway.http.post(gateway.url, json={"query": QUERY}, headers={**headers, "accept-encoding": "gzip"})
    assert (zipped.headers["content-encoding"], zipped.headers["vary"]) == ("gzip", "accept, accept-encoding")
    assert int(zipped.headers["content-length"]) < len(plain.content) / 3
    assert zipped.json() == plain.json()
    small = await gateway.http.post(gateway.url, json={"query": "{ __typename }"}, headers={"accept-encoding": "gzip"})
    assert "content-encoding" not in small.headers
    assert held() == 0
