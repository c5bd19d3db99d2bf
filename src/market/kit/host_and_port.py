"""Parses `host:port`, and checks URLs."""

from __future__ import annotations

import ipaddress
import re
from urllib.parse import urlsplit

_BRACKETED = re.compile(r"\[([^\[\]]+)\](?::(.*))?", re.DOTALL)
# Letters and digits of any alphabet, because a host name may be internationalized.
_HOST_NAME = re.compile(r"[\w.-]+")


def parse_host_and_port(text: str, default_port: int) -> tuple[str, int]:
    """Return host and port of `host`, `host:port`, `[IPv6]:port` or a plain IPv6 address. Raises ValueError.

    The host may also be the directory of a Unix socket, which begins with a slash.
    """
    found = _BRACKETED.fullmatch(text)
    if found:
        host, port = found[1], found[2]
    elif text.count(":") == 1:
        host, port = text.split(":")
    else:
        host, port = text, None
    # Brackets are for IPv6 addresses only.
    if not _is_host(host) or (found and ":" not in host):
        raise ValueError(f"host must contain host names or addresses, got {text!r}")
    if port is None:
        return host, default_port
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise ValueError(f"host: the port of {host} must be between 1 and 65535, got {port!r}")
    return host, int(port)


def _is_host(text: str) -> bool:
    if ":" not in text:
        return text.startswith("/") or _HOST_NAME.fullmatch(text) is not None
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def check_url(url: str, *schemes: str) -> None:
    """Raise ValueError unless the URL has one of the schemes, a host and a valid port.

    The error does not contain the URL, which may contain a password.
    """
    try:
        parts = urlsplit(url)
        valid = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise ValueError(f"url must be a URL such as {schemes[0]}://host:port")
