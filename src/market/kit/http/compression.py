"""Compression of responses (RFC 9110, section 8.4) with gzip or zstd (RFC 8878), if the client accepts it.

A compressed body has its own entity tag: if the body is compressed with gzip, the tag `"3"` becomes `"3-gzip"`. The
response's header `Vary` includes Accept-Encoding.
"""

from __future__ import annotations

import asyncio
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Literal, get_args

from starlette.requests import Request
from starlette.responses import Response

from market.kit import context
from market.kit.config import Compression as Config
from market.kit.http.requests import parse_quality

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Coding = Literal["zstd", "gzip"]
# Takes a response and a number of bytes, and reserves that much memory for compressing the response. Returns False if
# the request may not use more memory.
Reserve = Callable[[Response, int], bool]
Compressor = Callable[[bytes, Coding], bytes]

# In order of preference: zstd takes less time than gzip, and its output is smaller. A client's preference comes first.
CODINGS: tuple[Coding, ...] = get_args(Coding)
# Higher levels produce a tenth fewer bytes, but take several times as long.
_GZIP_LEVEL, _ZSTD_LEVEL = 1, 3
_GZIP_WINDOW_BITS = 31
# A body up to this size is compressed in the event loop, in about a millisecond. A larger body is compressed in a
# thread.
_MAX_INLINE_BYTES = 65_536
_MAX_THREADS = 2
# If a larger body has waited this long for a thread, it is sent uncompressed.
_MAX_WAIT_SECONDS = 2.0
# The maximum total size of the larger bodies that wait for a thread or are being compressed. A body that would exceed
# it is sent uncompressed, unless it is the only one.
_MAX_WAITING_BYTES = 16 * 1024 * 1024
# How much memory compression needs, as a multiple of the body's size: the compressor collects the output in buffers,
# and then joins them.
_MEMORY_FACTOR = 2
_MAX_CACHED_LENGTH = 256
_SUFFIX = re.compile(rf'-(?:{"|".join(CODINGS)})(?="$)')


def accepted_codings(request: Request) -> Sequence[Coding]:
    """Return the codings that the client accepts, best first. Empty if it forbids compression with `no-transform`."""
    return _accepted(request.scope["headers"])


def etag_for_coding(etag: str, coding: Coding) -> str:
    """Return the entity tag of the body in this coding. `etag`: the entity tag of the uncompressed body."""
    return f'{etag[:-1]}-{coding}"'


def etag_without_coding(etag: str) -> str:
    """Return the entity tag of the uncompressed body. `etag`: the entity tag of the body in any coding."""
    return _SUFFIX.sub("", etag)


def compress(body: bytes, coding: Coding) -> bytes:
    """Return the body in this coding."""
    if coding == "gzip":
        return zlib.compress(body, _GZIP_LEVEL, _GZIP_WINDOW_BITS)
    return zstd.compress(body, _ZSTD_LEVEL)


class Compression:
    """Compresses the responses of one HTTP server.

    reserve: called before a response is compressed; if it returns False, the response is sent uncompressed.
    compressor: compresses the larger bodies, in a thread
    """

    def __init__(
        self, config: Config, reserve: Reserve = lambda _, __: True, compressor: Compressor = compress
    ) -> None:
        self._min_bytes = config.min_bytes
        self._is_enabled = config.enabled
        self._reserve = reserve
        self._compressor = compressor
        self._threads = asyncio.Semaphore(_MAX_THREADS)
        self._waiting_bytes = 0

    async def apply(self, response: Response, request_headers: list[tuple[bytes, bytes]]) -> None:
        """Compress the response, if it is large enough and the client accepts one of our codings."""
        size = len(response.body)
        if not self._is_enabled or size < self._min_bytes:
            return
        headers = dict(response.raw_headers)
        if b"content-encoding" in headers or b"no-transform" in headers.get(b"cache-control", b""):
            return
        vary = headers.get(b"vary", b"")
        _set(response, b"vary", vary + b", accept-encoding" if vary else b"accept-encoding")
        codings = _accepted(request_headers)
        if not codings or not self._reserve(response, _MEMORY_FACTOR * size):
            return
        coding = codings[0]
        compressed = await self._compress(bytes(response.body), coding)
        if compressed is None or len(compressed) >= size:
            return
        response.body = compressed
        _set(response, b"content-length", b"%d" % len(compressed))
        _set(response, b"content-encoding", coding.encode())
        if tag := headers.get(b"etag"):
            _set(response, b"etag", etag_for_coding(tag.decode("latin-1"), coding).encode("latin-1"))

    async def _compress(self, body: bytes, coding: Coding) -> bytes | None:
        """Return the compressed body, or None if no thread is free in time or too many bytes are waiting."""
        if len(body) <= _MAX_INLINE_BYTES:
            return compress(body, coding)
        if not await self._acquire_thread(len(body)):
            return None
        thread = asyncio.get_running_loop().run_in_executor(None, self._compressor, body, coding)
        # A thread cannot be interrupted. If the request is cancelled, the thread counts as used until it has finished.
        thread.add_done_callback(lambda _: self._release_thread(len(body)))
        return await asyncio.shield(thread)

    async def _acquire_thread(self, size: int) -> bool:
        """Wait for a free thread. Return False if none is free in time or too many bytes are waiting."""
        if self._waiting_bytes and self._waiting_bytes + size > _MAX_WAITING_BYTES:
            return False
        self._waiting_bytes += size
        acquired = False
        try:
            async with asyncio.timeout(context.remaining(_MAX_WAIT_SECONDS)):
                acquired = await self._threads.acquire()
        except TimeoutError:
            pass
        finally:
            if not acquired:
                self._waiting_bytes -= size
        return acquired

    def _release_thread(self, size: int) -> None:
        self._threads.release()
        self._waiting_bytes -= size


def _set(response: Response, name: bytes, value: bytes) -> None:
    response.raw_headers = [(n, v) for n, v in response.raw_headers if n != name] + [(name, value)]


def _accepted(headers: list[tuple[bytes, bytes]]) -> Sequence[Coding]:
    accepted: list[bytes] = []
    for name, value in headers:
        if name == b"accept-encoding":
            accepted.append(value)
        elif name == b"cache-control" and b"no-transform" in value.lower():
            return ()
    if not accepted:
        return ()
    text = b",".join(accepted).decode("latin-1").lower()
    # Longer headers are rare, and caching them could take megabytes.
    return _parse_cached(text) if len(text) <= _MAX_CACHED_LENGTH else _parse(text)


def _parse(text: str) -> Sequence[Coding]:
    """Return the codings of an Accept-Encoding header, best first (RFC 9110, section 12.5.3)."""
    qualities: dict[str, float] = {}
    for part in text.split(","):
        name, *parameters = (p.strip() for p in part.split(";"))
        qualities["gzip" if name == "x-gzip" else name] = parse_quality(parameters)
    others = qualities.get("*", 0.0)
    found: list[tuple[float, Coding]] = [(-qualities.get(coding, others), coding) for coding in CODINGS]
    # "identity" is the uncompressed body. A client that does not mention it is assumed to prefer a compressed one.
    identity = qualities.get("identity", 0.0)
    return [coding for quality, coding in sorted(found, key=lambda f: f[0]) if quality < 0 and -quality >= identity]


_parse_cached = lru_cache(maxsize=256)(_parse)
