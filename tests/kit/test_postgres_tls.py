"""TLS to PostgreSQL. The server of the wheel has none, so a proxy in front of it does what a server with TLS does."""

from __future__ import annotations

import asyncio
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from market.kit.config import Tls
from market.kit.postgres import Connector, DatabaseUnreachable
from tests.support.certificates import make_authority, make_certificate
from tests.support.databases import configuration
from tests.support.servers import PostgresHandle

SSL_REQUEST = struct.pack(">ii", 8, 80877103)


class TlsProxy:
    """Speaks TLS with clients as PostgreSQL does, after the client's SSLRequest, and plain text with the server."""

    def __init__(self, server: PostgresHandle, tls: ssl.SSLContext) -> None:
        self._server = server
        self.tls = tls
        self.port = 0
        # The common name of each client's certificate; None for a client without one.
        self.clients: list[str | None] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[TlsProxy]:
        async with await asyncio.start_server(self._handle, "127.0.0.1", 0) as server:
            self.port = server.sockets[0].getsockname()[1]
            yield self

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            assert await reader.readexactly(8) == SSL_REQUEST
            writer.write(b"S")
            await writer.start_tls(self.tls)
            certificate: dict[str, Any] = writer.get_extra_info("ssl_object").getpeercert() or {}
            names = {key: value for ((key, value),) in certificate.get("subject", ())}
            self.clients.append(names.get("commonName"))
            server_reader, server_writer = await asyncio.open_connection(self._server.host, self._server.port)
            await asyncio.gather(_copy(reader, server_writer), _copy(server_reader, writer))
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    return make_authority(tmp_path, "authority")


@pytest.fixture
async def proxy(postgres: PostgresHandle, authority: Path) -> AsyncIterator[TlsProxy]:
    """A server with TLS, whose certificate is for `localhost`."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*make_certificate(authority, "localhost"))
    async with TlsProxy(postgres, tls).serving() as proxy:
        yield proxy


async def connect(server: PostgresHandle, port: int, *, host: str = "localhost", **tls: Any) -> int:
    """Connect, run a statement, and return its result. Raises DatabaseUnreachable."""
    connector = Connector(configuration(server, host=host, port=port, tls=Tls(**tls)))
    conn = await connector()
    try:
        result: int = await conn.fetchval("SELECT 42")
        return result
    finally:
        await conn.close()


@pytest.mark.parametrize("mode", ["require", "verify-ca", "verify-full"])
async def test_a_server_without_tls_is_refused_if_tls_is_demanded(postgres: PostgresHandle, mode: str) -> None:
    assert await connect(postgres, postgres.port, host="127.0.0.1") == 42
    assert await connect(postgres, postgres.port, host="127.0.0.1", mode="disable") == 42
    with pytest.raises(DatabaseUnreachable, match="rejected SSL upgrade"):
        await connect(postgres, postgres.port, host="127.0.0.1", mode=mode)


async def test_the_server_is_verified_as_far_as_the_mode_says(
    postgres: PostgresHandle, proxy: TlsProxy, authority: Path
) -> None:
    stranger = str(make_authority(authority.parent, "stranger"))
    trusted = str(authority)
    for host, tls in (
        ("localhost", {}),
        ("localhost", {"mode": "require"}),
        ("127.0.0.1", {"mode": "verify-ca", "ca_file": trusted}),
        ("localhost", {"mode": "verify-full", "ca_file": trusted}),
    ):
        assert await connect(postgres, proxy.port, host=host, **tls) == 42
    assert proxy.clients == [None] * 4
    for host, tls, reason in (
        ("localhost", {"mode": "verify-ca", "ca_file": stranger}, "certificate verify failed"),
        # By default the authorities of the system are trusted.
        ("localhost", {"mode": "verify-full"}, "certificate verify failed"),
        ("127.0.0.1", {"mode": "verify-full", "ca_file": trusted}, "IP address mismatch"),
        ("localhost", {"mode": "verify-full", "ca_file": f"{trusted}.absent"}, "No such file"),
    ):
        with pytest.raises(DatabaseUnreachable, match=reason):
            await connect(postgres, proxy.port, host=host, **tls)


async def test_a_changed_authority_is_read_again(postgres: PostgresHandle, proxy: TlsProxy, authority: Path) -> None:
    trusted = authority.with_name("trusted.pem")
    trusted.write_bytes(make_authority(authority.parent, "stranger").read_bytes())
    tls = Tls(mode="verify-full", ca_file=str(trusted))
    connector = Connector(configuration(postgres, host="localhost", port=proxy.port, tls=tls))
    with pytest.raises(DatabaseUnreachable, match="certificate verify failed"):
        await connector()
    trusted.write_bytes(authority.read_bytes())
    await (await connector()).close()


async def test_the_client_presents_its_certificate(postgres: PostgresHandle, proxy: TlsProxy, authority: Path) -> None:
    proxy.tls.load_verify_locations(authority)
    proxy.tls.verify_mode = ssl.CERT_REQUIRED
    cert, key = map(str, make_certificate(authority, "products"))
    tls = {"mode": "verify-full", "ca_file": str(authority)}
    assert await connect(postgres, proxy.port, **tls, cert_file=cert, key_file=key) == 42
    assert proxy.clients == ["products"]
    with pytest.raises(DatabaseUnreachable):
        await connect(postgres, proxy.port, **tls)
