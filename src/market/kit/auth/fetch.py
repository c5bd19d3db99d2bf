"""Fetches documents from the issuer, with limits on time and size, and without following redirects."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from market.kit.http.pool import ConnectError, ConnectionPool, HttpResponse, ProtocolError, ResponseTooLarge
from market.kit.tls import ReloadingContext

# Returns the context that verifies the issuer's certificate.
TlsContext = Callable[[], ssl.SSLContext]


class FetchError(Exception):
    """The document could not be fetched. The text says why, and contains neither secrets nor the document."""


def tls_context_source(ca_file: str | None) -> TlsContext:
    """Return a source of TLS contexts that trust the CA certificates in the file, or the system's trust store."""
    return ReloadingContext(lambda: ssl.create_default_context(cafile=ca_file), ca_file).get


async def fetch(
    url: str,
    *,
    tls: TlsContext,
    seconds: float,
    max_bytes: int,
    method: str = "GET",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
) -> HttpResponse:
    """Return the response, whose body has at most `max_bytes`. Raises FetchError.

    A redirect raises FetchError, too. It is not followed, because it could lead to a host that nobody has configured.
    """
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        context = tls() if parts.scheme == "https" else None
        pool = ConnectionPool(f"{parts.scheme}://{parts.netloc}", 1, tls=context, connect_timeout_seconds=seconds)
    except (OSError, ValueError) as e:
        raise FetchError(f"{parts.hostname}: {e}") from None
    try:
        response = await pool.request(
            method, path, lambda: {"accept": "application/json", **(headers or {})}, body, seconds, max_bytes.__ge__
        )
    except ConnectError as e:
        raise FetchError(f"{parts.hostname}: cannot connect: {e}") from None
    except TimeoutError:
        raise FetchError(f"{parts.hostname}: no response within {seconds:g} s") from None
    except ResponseTooLarge:
        raise FetchError(f"{parts.hostname}: the response is larger than {max_bytes} bytes") from None
    except (ProtocolError, ValueError) as e:
        raise FetchError(f"{parts.hostname}: {e}") from None
    finally:
        pool.close()
    if 300 <= response.status < 400:
        raise FetchError(f"{parts.hostname}: the redirect is not followed (status {response.status})")
    return response
