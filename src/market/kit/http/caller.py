"""Who sent a request: the client's address, also behind trusted proxies.

Idempotency keys and shares of capacity belong to a caller. A header that names the client is believed only from a
proxy in `http.trusted_proxies`; anybody else could name whom it likes.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Any

from starlette.requests import Request

from market.kit.config import ForwardedHeader, Http

# A longer text is not an address, and would fill the caches.
_MAX_ADDRESS_CHARACTERS = 64
# One subscriber usually has a whole /64 (RFC 6177), so a longer prefix would not tell callers apart.
_IPV6_PREFIX = 64


def caller(request: Request) -> str:
    """Return who sent the request: `address:203.0.113.7`, or `address:2001:db8:1:2::/64` for IPv6.

    All who share an address are one caller. Once requests can be signed, the signed-in subject is returned here
    instead, with a prefix of its own, so that it equals no address.
    """
    client = request.client
    return address_caller(client.host) if client is not None else "address:unknown"


@lru_cache(maxsize=4096)
def address_caller(address: str) -> str:
    """Return the caller of requests that are not signed, by the client's address."""
    if ":" in address:
        return f"address:{ipaddress.IPv6Network((address, _IPV6_PREFIX), strict=False)}"
    return f"address:{address}"


class ClientAddresses:
    """Finds the address of the client of each request."""

    def __init__(self, config: Http) -> None:
        self._trusted = config.trusted_networks
        self._header = config.forwarded_header.encode()
        # By address: whether it belongs to a trusted proxy.
        self._trusts = lru_cache(maxsize=1024)(self._is_trusted)

    def find(self, scope: Any) -> str:
        """Return the client's address without a port, "unknown" if the ASGI scope has none.

        It is the connection's or, if that is a trusted proxy's, the right-most address in the forwarded header that
        is not: each proxy appends the address of its own client, and what is to the left came from that client.
        """
        connection = scope.get("client")
        address = parse_address(connection[0]) if connection else None
        if address is None:
            return "unknown"
        if self._trusted and self._trusts(address):
            forwarded = b",".join(value for name, value in scope["headers"] if name == self._header)
            for element in reversed(forwarded.decode("latin-1").split(",")) if forwarded else ():
                previous = parse_address(element if self._header == b"x-forwarded-for" else _forwarded_for(element))
                if previous is None:
                    break
                address = previous
                if not self._trusts(address):
                    break
        return address

    def _is_trusted(self, address: str) -> bool:
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network in self._trusted)


def forwarded_value(header: ForwardedHeader, address: str) -> str:
    """Return the value of the header that tells an upstream the address of the client."""
    if header == "x-forwarded-for":
        return address
    # RFC 7239 section 6.
    return f'for="[{address}]"' if ":" in address else f"for={address}"


@lru_cache(maxsize=4096)
def _parse_address(text: str) -> str | None:
    text = text.strip().strip('"')
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def parse_address(text: str) -> str | None:
    """Return the IP address in its shortest form, without port, brackets and zone; None if the text is not one."""
    return _parse_address(text) if len(text) <= _MAX_ADDRESS_CHARACTERS else None


def _forwarded_for(element: str) -> str:
    """Return the node in the parameter `for` of an element of `Forwarded`, or "" (RFC 7239 section 4).

    Quotes are not paired: a client that opens one must not hide what the proxy appends.
    """
    for parameter in element.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "for":
            return value
    return ""
