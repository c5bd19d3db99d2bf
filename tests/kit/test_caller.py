"""Who a request's caller is: the connection's address, or the one that a trusted proxy names."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from market.kit import context
from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.caller import caller, forwarded_value, parse_address
from market.kit.http.responses import json_response

PROXIES = ("10.0.0.0/8", "fd00::/8")


async def show(request: Request) -> Response:
    return json_response({"caller": caller(request), "address": context.client_address.get()})


async def seen(connection: str, *headers: tuple[str, str], **config: Any) -> dict[str, str]:
    """Return the caller and the address that an endpoint sees, for a connection from an address."""
    app = edge.application({"GET /": show}, Http(port=1, **config))
    transport = httpx.ASGITransport(app, client=(connection, 50_000))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        result: dict[str, str] = (await client.get("/", headers=list(headers))).json()
        return result


async def test_the_caller_is_the_address_of_the_connection_without_its_port() -> None:
    assert await seen("203.0.113.7") == {"caller": "address:203.0.113.7", "address": "203.0.113.7"}


async def test_a_public_client_cannot_name_another_address() -> None:
    forged = [("X-Forwarded-For", "198.51.100.1"), ("Forwarded", "for=198.51.100.1"), ("X-Real-IP", "198.51.100.1")]
    for config in ({}, {"trusted_proxies": PROXIES}, {"trusted_proxies": PROXIES, "forwarded_header": "forwarded"}):
        assert (await seen("203.0.113.7", *forged, **config))["caller"] == "address:203.0.113.7"


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("203.0.113.7:4711", "203.0.113.7"),
        # What is left of the client that the outermost proxy has seen was sent by that client.
        ("198.51.100.1, 203.0.113.7", "203.0.113.7"),
        ("198.51.100.1, 203.0.113.7, 10.1.1.1", "203.0.113.7"),
        ("garbage, 203.0.113.7,10.1.1.1", "203.0.113.7"),
        # A client inside the proxies' networks.
        ("10.7.7.7", "10.7.7.7"),
        ("10.7.7.7, 10.1.1.1", "10.7.7.7"),
        # Not an address: the proxy that sent it is the last that is known.
        ("203.0.113.7, unknown, 10.1.1.1", "10.1.1.1"),
        ("unknown", "10.0.0.1"),
        ("", "10.0.0.1"),
        (" , ", "10.0.0.1"),
        ("2" * 30_000, "10.0.0.1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:DB8:0:0:0:0:0:1", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
    ],
)
async def test_a_trusted_proxy_names_its_client(forwarded: str, expected: str) -> None:
    response = await seen("10.0.0.1", ("X-Forwarded-For", forwarded), trusted_proxies=PROXIES)
    assert response["address"] == expected


async def test_repeated_headers_are_one_list() -> None:
    headers = [("X-Forwarded-For", "198.51.100.1"), ("X-Forwarded-For", "203.0.113.7")]
    assert (await seen("10.0.0.1", *headers, trusted_proxies=PROXIES))["address"] == "203.0.113.7"


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        ("for=203.0.113.7;proto=https;by=10.0.0.1", "203.0.113.7"),
        ('proto=https; For="[2001:db8::1]:4711"', "2001:db8::1"),
        ('for=198.51.100.1, for="203.0.113.7:80", for=10.1.1.1', "203.0.113.7"),
        # An open quote does not hide what the proxy appends.
        ('for=", for=203.0.113.7', "203.0.113.7"),
        ("for=unknown", "10.0.0.1"),
        ("for=_hidden", "10.0.0.1"),
        ("proto=https", "10.0.0.1"),
    ],
)
async def test_a_trusted_proxy_may_use_the_header_of_rfc_7239(forwarded: str, expected: str) -> None:
    # A proxy extends one of the headers. The other one is the client's.
    headers = [("Forwarded", forwarded), ("X-Forwarded-For", "198.51.100.99")]
    response = await seen("10.0.0.1", *headers, trusted_proxies=PROXIES, forwarded_header="forwarded")
    assert response["address"] == expected
    assert (await seen("10.0.0.1", headers[0], trusted_proxies=PROXIES))["address"] == "10.0.0.1"


async def test_a_network_of_ipv6_is_one_caller() -> None:
    callers = {
        (await seen("fd00::1", ("X-Forwarded-For", address), trusted_proxies=PROXIES))["caller"]
        for address in ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", "[2001:db8:1:2::7%eth0]:80")
    }
    assert callers == {"address:2001:db8:1:2::/64"}
    assert (await seen("2001:db8:1:3::1"))["caller"] == "address:2001:db8:1:3::/64"


@pytest.mark.parametrize("header", ["x-forwarded-for", "forwarded"])
@pytest.mark.parametrize("address", ["203.0.113.7", "2001:db8::1", "10.7.7.7"])
async def test_an_upstream_reads_the_address_that_is_forwarded_to_it(header: Any, address: str) -> None:
    value = forwarded_value(header, address)
    response = await seen("10.0.0.1", (header, value), trusted_proxies=PROXIES, forwarded_header=header)
    assert response["address"] == address


def test_what_is_not_an_address_is_none() -> None:
    for text in ("", "unknown", "1.2.3", "1.2.3.4.5", "example.com", "[", "1:2", "\0", "٣.1.1.1", "1.1.1.1 , "):
        assert parse_address(text) is None, text
