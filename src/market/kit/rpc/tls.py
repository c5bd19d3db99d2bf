"""Mutual TLS for gRPC: both sides present a certificate, and read their files again when the files change.

A server checks at each handshake whether its files have changed. A channel cannot change its certificate, so a client
opens a new channel. Open connections keep the old certificates until the server closes them, at an age of about a
minute (see server.py).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import grpc
import grpc.aio

from market.kit.config import MutualTls
from market.kit.process import logs
from market.kit.tls import FileVersion, file_version

log = logs.get_logger("grpc")
# How often a client checks whether its files have changed.
_CHECK_SECONDS = 1.0
# How long calls in flight on a replaced channel may take. All calls have shorter deadlines.
_GRACE_SECONDS = 30.0


class Certificates:
    """The contents of the files, in PEM: CA certificates for the other side, and this side's key and certificate."""

    def __init__(self, config: MutualTls) -> None:
        """Read the files. Raises OSError if one is unreadable, or if certificate and key do not belong together."""
        self._config = config
        try:
            self._versions = self._current_versions()
            self.authorities, self.key, self.certificate = self._read()
        except OSError as e:
            # OpenSSL's errors do not name the files.
            raise OSError(0, f"cannot use {config.cert_file}, {config.key_file} and {config.ca_file}: {e}") from None
        # The logged reason why the files cannot be used now. Empty if they can be used.
        self._logged_reason = ""

    def reload(self) -> bool:
        """Read the files again if one has changed. Return whether there are new contents.

        If the files cannot be used now, keep the old contents and log the reason, but not twice in a row. This happens,
        for example, while a new certificate has been written, but not its key.
        """
        try:
            versions = self._current_versions()
            if versions != self._versions:
                self.authorities, self.key, self.certificate = self._read()
        except OSError as e:
            if str(e) != self._logged_reason:
                self._logged_reason = str(e)
                log.error("certificates not reloaded", file=self._config.cert_file, reason=self._logged_reason)
            return False
        self._logged_reason = ""
        if versions == self._versions:
            return False
        self._versions = versions
        log.info("certificates reloaded", file=self._config.cert_file)
        return True

    def _current_versions(self) -> list[FileVersion]:
        return [file_version(Path(file)) for file in self._files]

    @property
    def _files(self) -> tuple[str, str, str]:
        return self._config.ca_file, self._config.key_file, self._config.cert_file

    def _read(self) -> tuple[bytes, bytes, bytes]:
        # Check the files, because gRPC would accept a key that belongs to another certificate, and fail at each
        # handshake. ssl.SSLError is an OSError.
        context = ssl.create_default_context(cafile=self._config.ca_file)
        context.load_cert_chain(self._config.cert_file, self._config.key_file)
        authorities, key, certificate = (Path(file).read_bytes() for file in self._files)
        return authorities, key, certificate


def server_credentials(config: MutualTls) -> grpc.ServerCredentials:
    """Return the credentials of a server that accepts only clients whose certificate a CA in `ca_file` has signed.

    Raises OSError if the files cannot be used.
    """
    certificates = Certificates(config)

    def configuration() -> grpc.ServerCertificateConfiguration:
        return grpc.ssl_server_certificate_configuration(
            [(certificates.key, certificates.certificate)], root_certificates=certificates.authorities
        )

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        return configuration() if certificates.reload() else None

    # If `fetch` returns None, gRPC keeps the old certificates. The type stubs do not permit None.
    fetcher = cast(Callable[[], grpc.ServerCertificateConfiguration], fetch)
    return grpc.dynamic_ssl_server_credentials(configuration(), fetcher, require_client_authentication=True)


class ReloadingChannel:
    """A channel for unary calls with mutual TLS. Calls after a change of the files use a new connection."""

    def __init__(self, target: str, config: MutualTls, options: list[tuple[str, Any]]) -> None:
        """Read the files, but do not connect. Raises OSError if the files cannot be used."""
        self._target = target
        self._options = options
        self._certificates = Certificates(config)
        self._channel = self._open()
        self._next_check = time.monotonic() + _CHECK_SECONDS
        self._closing: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ReloadingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        await self._channel.close(grace)
        for task in self._closing:
            task.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)

    def unary_unary(self, *args: Any, **settings: Any) -> Callable[..., Awaitable[Any]]:
        channel = self._channel
        method: Any = channel.unary_unary(*args, **settings)

        def send(request: Any, **call: Any) -> Awaitable[Any]:
            nonlocal channel, method
            self._reload()
            if channel is not self._channel:
                channel = self._channel
                method = channel.unary_unary(*args, **settings)
            sent: Awaitable[Any] = method(request, **call)
            return sent

        return send

    def _open(self) -> grpc.aio.Channel:
        credentials = grpc.ssl_channel_credentials(
            self._certificates.authorities, self._certificates.key, self._certificates.certificate
        )
        return grpc.aio.secure_channel(self._target, credentials, options=self._options)

    def _reload(self) -> None:
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + _CHECK_SECONDS
        if self._certificates.reload():
            old, self._channel = self._channel, self._open()
            task = asyncio.create_task(old.close(_GRACE_SECONDS))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
