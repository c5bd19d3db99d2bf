"""Checks the Host header of requests, in services where nobody signs in and only this machine can connect.

A web page in a browser on this machine can send requests to 127.0.0.1, but it can neither read the responses nor send
JSON, because 127.0.0.1 is another origin than the page's. An attacker can get around this by making the name of the
page resolve to 127.0.0.1 (DNS rebinding). The requests of such a page have the attacker's name in the header Host.

With sign-in, the check is not needed, because such a page has no token. If other machines can connect, the check is not
possible, because they may use any name for the service.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from functools import lru_cache

from market.kit.errors import MisdirectedRequest


class Hosts:
    """Accepts IP addresses, localhost and its subdomains, and `names`, with any port.

    names: in lower case, without a port
    """

    def __init__(self, names: Collection[str] = ()) -> None:
        self._names = frozenset(names)
        self._is_allowed = lru_cache(maxsize=64)(self._is_known)

    def check(self, host: bytes | None) -> None:
        """Raise MisdirectedRequest if the host is not accepted. None is accepted: a browser always sends the header."""
        if host is not None and not self._is_allowed(host):
            raise MisdirectedRequest(
                "Host",
                "must be localhost or an IP address, because this shop does not require sign-in; other names must be "
                "listed in http.allowed_hosts",
            )

    def _is_known(self, host: bytes) -> bool:
        name = host.decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0].removesuffix(".")
        if name == "localhost" or name.endswith(".localhost") or name in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
