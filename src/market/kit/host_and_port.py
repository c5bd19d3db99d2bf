"""Parses `host:port`."""

from __future__ import annotations

import re

_BRACKETED = re.compile(r"\[([^\[\]]+)\](?::(.*))?", re.DOTALL)


def parse_host_and_port(text: str, default_port: int) -> tuple[str, int]:
    """Return host and port of `host`, `host:port`, `[IPv6]:port` or a plain IPv6 address. Raises ValueError."""
    if found := _BRACKETED.fullmatch(text):
        host, port = found[1], found[2]
    elif text.count(":") == 1:
        host, port = text.split(":")
    else:
        host, port = text, None
    if not host or "[" in host or "]" in host:
        raise ValueError(f"host must contain host names or addresses, got {text!r}")
    if port is None:
        return host, default_port
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"host: the port of {host} must be between 1 and 65535, got {port!r}")
    return host, int(port)
