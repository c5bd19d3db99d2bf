"""gRPC with mutual TLS: who is let in, and certificates that are replaced while both sides run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from cryptography import x509
from google.protobuf.wrappers_pb2 import StringValue
from structlog.testing import capture_logs

from market.kit.config import GrpcUpstream, MutualTls
from market.kit.errors import Unavailable
from market.kit.process.health import Health
from market.kit.rpc import client as rpc
from market.kit.rpc.server import GrpcServer
from market.kit.rpc.tls import Certificates
from tests.support.certificates import make_authority, make_certificate
from tests.support.ports import free_port
from tests.support.waiting import until

# The longest that a call may take; a refused one takes as long as its retries of the connection.
SECONDS = 10.0


@dataclass
class Pki:
    """Two authorities, each of which has signed a certificate for this host and one for a client."""

    directory: Path
    authorities: dict[str, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("old", "new"):
            folder = self.directory / name
            folder.mkdir()
            self.authorities[name] = make_authority(folder, name)
            for host in ("localhost", "client"):
                make_certificate(self.authorities[name], host)

    def files(self, side: str, host: str, authority: str) -> MutualTls:
        """Put a side's files into its own folder: it trusts both authorities, and was signed by this one."""
        folder = self.directory / side
        folder.mkdir(exist_ok=True)
        trusted = "".join(file.read_text() for file in self.authorities.values())
        _replace(folder / "ca.crt", trusted)
        # As programs do it that know nothing of each other: the key is not that of the certificate for a moment.
        _replace(folder / "tls.crt", (self.directory / authority / f"{host}.crt").read_text())
        _replace(folder / "tls.key", (self.directory / authority / f"{host}.key").read_text())
        return MutualTls(
            ca_file=str(folder / "ca.crt"), cert_file=str(folder / "tls.crt"), key_file=str(folder / "tls.key")
        )


def _replace(file: Path, text: str) -> None:
    new = file.with_suffix(".next")
    new.write_text(text)
    new.rename(file)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@dataclass
class Echo:
    """A server that notes the common name of the authority of each caller's certificate."""

    port: int
    callers: list[str] = field(default_factory=list)

    async def handle(self, request: StringValue, call: grpc.aio.ServicerContext[Any, Any]) -> StringValue:
        self.callers.append(_issuer_of(call.auth_context()["x509_pem_cert"][0]))
        return request


def _issuer_of(pem: bytes) -> str:
    return str(x509.load_pem_x509_certificate(pem).issuer.rdns[0].rfc4514_string())


@asynccontextmanager
async def serving(tls: MutualTls) -> AsyncIterator[Echo]:
    echo = Echo(free_port())
    method = grpc.unary_unary_rpc_method_handler(echo.handle, StringValue.FromString, StringValue.SerializeToString)
    services = {"test.Echo": grpc.method_handlers_generic_handler("test.Echo", {"Echo": method})}
    server = GrpcServer("127.0.0.1", echo.port, Health(), services, tls=tls)
    await server.start()
    try:
        yield echo
    finally:
        await server.stop(0)


def call_of(channel: grpc.aio.Channel) -> Any:
    return channel.unary_unary("/test.Echo/Echo", StringValue.SerializeToString, StringValue.FromString)


def upstream(echo: Echo, tls: MutualTls | None) -> GrpcUpstream:
    return GrpcUpstream(target=f"dns:///localhost:{echo.port}", tls=tls)


async def test_a_client_with_a_certificate_of_the_authority_is_served(pki: Pki) -> None:
    async with (
        serving(pki.files("server", "localhost", "old")) as echo,
        rpc.channel(upstream(echo, pki.files("client-side", "client", "old"))) as channel,
    ):
        response = await rpc.call(call_of(channel), StringValue(value="hello"), SECONDS)
    assert (response.value, echo.callers) == ("hello", ["CN=old"])


async def test_clients_without_encryption_or_of_another_authority_are_refused(pki: Pki, tmp_path: Path) -> None:
    stranger = make_authority(tmp_path, "stranger")
    certificate, key = make_certificate(stranger, "client")
    ours = pki.files("server", "localhost", "old")
    foreign = MutualTls(ca_file=ours.ca_file, cert_file=str(certificate), key_file=str(key))
    async with serving(ours) as echo:
        for tls in (None, foreign):
            async with rpc.channel(upstream(echo, tls)) as channel:
                with pytest.raises(Unavailable):
                    await rpc.call(call_of(channel), StringValue(), SECONDS)
    assert echo.callers == []


async def test_a_client_calls_no_server_of_another_name_or_another_authority(pki: Pki, tmp_path: Path) -> None:
    stranger = make_authority(tmp_path, "stranger")
    ours = pki.files("client-side", "client", "old")
    trusting_others = MutualTls(ca_file=str(stranger), cert_file=ours.cert_file, key_file=ours.key_file)
    for host, tls in (("client", ours), ("localhost", trusting_others)):
        async with serving(pki.files("server", host, "old")) as echo, rpc.channel(upstream(echo, tls)) as channel:
            with pytest.raises(Unavailable):
                await rpc.call(call_of(channel), StringValue(), SECONDS)
        assert echo.callers == []


async def test_certificates_are_replaced_while_calls_go_on(pki: Pki) -> None:
    client = pki.files("client-side", "client", "old")
    async with serving(pki.files("server", "localhost", "old")) as echo, rpc.channel(upstream(echo, client)) as channel:
        call = call_of(channel)

        async def caller() -> str:
            await rpc.call(call, StringValue(), SECONDS)
            return echo.callers[-1]

        assert await caller() == "CN=old"
        pki.files("client-side", "client", "new")
        await until(lambda: _equals(caller, "CN=new"), what="calls with the new certificate")
        pki.files("server", "localhost", "new")
        # A client that trusts only the new authority sees that the server has its new certificate.
        new_only = MutualTls(ca_file=str(pki.authorities["new"]), cert_file=client.cert_file, key_file=client.key_file)
        async with rpc.channel(upstream(echo, new_only)) as other:
            # On a busy machine, a connection attempt may time out before the handshake is complete.
            await until(lambda: _succeeds(call_of(other)), what="a call that trusts only the new certificate")
        assert await caller() == "CN=new"


async def _succeeds(call: Any) -> bool:
    try:
        await rpc.call(call, StringValue(), SECONDS)
    except Unavailable:
        return False
    return True


async def _equals(caller: Any, expected: str) -> bool:
    return bool(await caller() == expected)


def test_files_that_do_not_belong_together_are_not_used_until_they_do(pki: Pki) -> None:
    files = pki.files("client-side", "client", "old")
    certificates = Certificates(files)
    old = certificates.certificate
    assert not certificates.reload()
    new = pki.directory / "new"
    _replace(Path(files.key_file), (new / "client.key").read_text())
    assert (certificates.reload(), certificates.certificate) == (False, old)
    _replace(Path(files.cert_file), (new / "client.crt").read_text())
    assert (certificates.reload(), certificates.certificate) == (True, (new / "client.crt").read_bytes())
    assert certificates.key == (new / "client.key").read_bytes()


def test_why_files_cannot_be_used_is_logged_once_until_they_can_be_used_again(pki: Pki) -> None:
    files = pki.files("client-side", "client", "old")
    certificates = Certificates(files)
    key = Path(files.key_file)
    old = key.read_text()

    def reasons(text: str | None) -> list[str]:
        """Replace the key, or delete it if the text is None, check three times, and return the reasons in the log."""
        if text is None:
            key.unlink()
        else:
            _replace(key, text)
        with capture_logs() as lines:
            for _ in range(3):
                certificates.reload()
        return [line["reason"] for line in lines if line["event"] == "certificates not reloaded"]

    for _ in range(2):
        [mismatch] = reasons((pki.directory / "new/client.key").read_text())
        [absent] = reasons(None)
        assert ("KEY_VALUES_MISMATCH" in mismatch, files.key_file in absent) == (True, True)
        assert reasons(old) == []


def test_files_that_cannot_be_used_are_an_error_at_the_start(pki: Pki) -> None:
    files = pki.files("client-side", "client", "old")
    mixed = MutualTls(ca_file=files.ca_file, cert_file=files.cert_file, key_file=str(pki.directory / "new/client.key"))
    with pytest.raises(OSError, match="KEY_VALUES_MISMATCH") as mismatch:
        rpc.channel(GrpcUpstream(target="localhost:1", tls=mixed))
    # What the log of a process says that cannot serve.
    assert f"cannot use {mixed.cert_file}, {mixed.key_file} and {mixed.ca_file}" in mismatch.value.args[1]
    absent = MutualTls(ca_file="/nowhere/ca.crt", cert_file=files.cert_file, key_file=files.key_file)
    with pytest.raises(OSError, match="No such file") as missing:
        rpc.channel(GrpcUpstream(target="localhost:1", tls=absent))
    assert "'/nowhere/ca.crt'" in missing.value.args[1]
