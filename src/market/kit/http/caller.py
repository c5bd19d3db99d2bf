"""Who sent a request: the subject of its token or, without a token, the address of its client.

A proxy sends the client's address in a header. The header is trusted only if the proxy is in `http.trusted_proxies`,
because anybody else could forge it.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Any

from starlette.requests import Request

from market.kit.auth.identity import identity
from market.kit.config import ForwardedHeader, Http

# A longer text is not an address, and is kept out of the caches.
_MAX_ADDRESS_CHARACTERS = 64
# A subscriber usually has a whole /64 network (RFC 6177), and must not count as many callers.
_IPV6_PREFIX = 64


def caller(request: Request) -> str:
    """Return who sent the request: `subject:ann`, `address:203.0.113.7` or `address:2001:db8:1:2::/64` (IPv6).

    Clients that have not signed in are one caller if they share an address.
    """
    if subject := identity.get().subject:
        return subject_caller(subject)
    client = request.client
    return address_caller(client.host) if client is not None else "address:unknown"


def subject_caller(subject: str) -> str:
    """Return the caller for a token's subject."""
    return f"subject:{subject}"


@lru_cache(maxsize=4096)
def address_caller(address: str) -> str:
    """Return the caller for the client's address."""
    if ":" in address:
        return f"address:{ipaddress.IPv6Network((address, _IPV6_PREFIX), strict=False)}"
    return f"address:{address}"


class ClientAddresses:
    """Finds the address of the client that sent a request."""

    def __init__(self, config: Http) -> None:
        self._trusted = config.trusted_networks
        self._header = config.forwarded_header.encode()
        self._trusts = lru_cache(maxsize=1024)(self._is_trusted)

    def find(self, scope: Any) -> str:
        """Return the client's address without a port. Return "unknown" if the ASGI scope contains no address.

        This is the address of the peer. If the peer is a trusted proxy, it is the right-most address in the forwarded
        header that does not belong to a trusted proxy. The addresses to the left of it are ignored, because the client
        may have forged them.
        """
        connection = scope.get("client")
        address = parse_address(connection[0]) if connection else None
        if address is None:
            return "unknown"
        if self._trusted and self._trusts(address):
            forwarded = b",".join(value for name, value in scope["headers"] if name == self._header)
            for element in reversed(forwarded.decode("latin-1").split(",")):
                previous = parse_address(element if self._header == b"x-forwarded-for" else _forwarded_for(element))
                if previous is None:
                    break
                address = previous
                if not self._trusts(address):
                    break
        return address

    def trusts(self, address: str) -> bool:
        """Return whether the address belongs to a trusted proxy."""
        return bool(self._trusted) and address != "unknown" and self._trusts(address)

    def _is_trusted(self, address: str) -> bool:
        parsed = ipaddress.ip_address(address)
        return any(parsed in network for network in self._trusted)


def forwarded_value(header: ForwardedHeader, address: str) -> str:
    """Return the header's value for the client's address."""
    if header == "x-forwarded-for":
        return address
    # RFC 7239 section 6.
    return f'for="[{address}]"' if ":" in address else f"for={address}"


@lru_cache(maxsize=4096)
def _parse_cached(text: str) -> str | None:
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
    return _parse_cached(text) if len(text) <= _MAX_ADDRESS_CHARACTERS else None


def _forwarded_for(element: str) -> str:
    """Return the node in the parameter `for` of an element of `Forwarded`, or "" (RFC 7239 section 4).

    Quoted strings are not recognized. Otherwise a client could open a quote, to hide what the proxy appends.
    """
    for parameter in element.split(";"):
        name, _, value = parameter.strip().partition("=")
        if name.lower() == "for":
            return value
    return ""
