"""Compressed responses of the gateway, whose memory is counted."""

from __future__ import annotations

from prometheus_client import REGISTRY

from tests.graphql.graphql_gateway import running_gateway
from tests.support.waiting import until

QUERY = "{ products(limit: 100) { items { id name description price createdAt } } }"


def held() -> float:
    """Return the bytes that requests hold in the gateway that was built last."""
    sizes = ("small", "large")
    return sum(REGISTRY.get_sample_value("market_graphql_request_memory_bytes", {"size": s}) or 0 for s in sizes)


async def test_a_large_response_is_compressed_and_its_memory_released() -> None:
    async with running_gateway() as gateway:
        call, headers = {"query": QUERY}, {"accept": "application/json"}
        plain = await gateway.http.post("/graphql", json=call, headers={**headers, "accept-encoding": "identity"})
        assert plain.headers["content-length"] == str(len(plain.content))
        assert plain.headers["vary"] == "accept, accept-encoding"
        zipped = await gateway.http.post("/graphql", json=call, headers={**headers, "accept-encoding": "gzip"})
        assert (zipped.headers["content-encoding"], zipped.headers["vary"]) == ("gzip", "accept, accept-encoding")
        assert int(zipped.headers["content-length"]) < len(plain.content) / 3
        assert zipped.json() == plain.json()
        small = await gateway.http.post(
            "/graphql", json={"query": "{ __typename }"}, headers={"accept-encoding": "gzip"}
        )
        assert "content-encoding" not in small.headers
        # A response may arrive before its request has given its memory back.
        await until(lambda: held() == 0)
