"""The offer of a request to upgrade the connection to another protocol, which a server may ignore (RFC 9110 7.8)."""

from __future__ import annotations

from collections.abc import Iterable

_OPTIONS = (b"upgrade", b"http2-settings")


def head_without_offer(request_line: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the bytes of a request up to its body, without the headers and connection options of the offer.

    request_line: without its line end
    headers: names in lower case, and values
    """
    lines = [request_line]
    for name, value in headers:
        if name == b"connection":
            options = [option.strip() for option in value.split(b",")]
            value = b", ".join(option for option in options if option.lower() not in _OPTIONS)
        if name not in _OPTIONS:
            lines.append(name + b": " + value)
    return b"\r\n".join([*lines, b"", b""])
