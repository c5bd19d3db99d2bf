"""The token with which a service calls others: from a file that rotates, or from the issuer for client credentials."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from google.protobuf import wrappers_pb2

from market.kit.auth.authenticator import authenticator
from market.kit.auth.config import Auth, ServiceIdentity
from market.kit.auth.identity import identity
from market.kit.auth.permissions import Access, Permission
from market.kit.auth.service_tokens import ClientCredentials, FileTokens, ServiceTokens, service_tokens
from market.kit.config import GrpcUpstream
from market.kit.errors import Unavailable
from market.kit.process.health import Health
from market.kit.rpc import client as rpc
from market.kit.rpc.server import GrpcServer, endpoint
from tests.support.issuer import DISCOVERY, TOKEN, Client, Fault, Issuer
from tests.support.ports import free_port
from tests.support.waiting import until

CREDENTIALS = ServiceIdentity(client_id="orders", client_secret="a secret/with+signs")


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as running:
        running.clients["orders"] = Client("a secret/with+signs", {"subject": "orders-client"})
        yield running


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def credentials(issuer: Issuer, clock: Clock, identity: ServiceIdentity = CREDENTIALS) -> ClientCredentials:
    async def endpoint() -> str:
        return issuer.url + TOKEN

    return ClientCredentials(identity, endpoint, clock=clock)


def test_the_secret_does_not_show() -> None:
    assert "with+signs" not in repr(CREDENTIALS)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"client_id": "orders"},
        {"client_secret": "secret"},
        {"token_file": "/token", "client_id": "orders", "client_secret": "secret"},
    ],
)
def test_an_identity_is_a_file_or_credentials(settings: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"must have either token_file, or client_id|must be set together"):
        ServiceIdentity(**settings)


async def test_without_an_identity_there_are_no_tokens() -> None:
    async with service_tokens(None, Auth()) as tokens:
        assert tokens is None


async def test_a_token_in_a_file_is_read_again_when_it_rotates(tmp_path: Path) -> None:
    clock = Clock()
    file = tmp_path / "token"
    file.write_text("first\n")
    tokens = FileTokens(str(file), clock=clock)
    assert await tokens.get(1) == "first"
    # As Kubernetes does it: the new file takes the place of the old one.
    (tmp_path / "new").write_text("second\n")
    (tmp_path / "new").rename(file)
    assert await tokens.get(1) == "first"
    clock.now = 1.5
    assert await tokens.get(1) == "second"
    file.write_text("third")
    assert await tokens.replace("second", 1) == "third"


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe", b"two words", b"a\nb", b"x" * 70_000])
async def test_a_file_without_a_token_leaves_the_last_one_in_use(tmp_path: Path, content: bytes | None) -> None:
    clock = Clock()
    file = tmp_path / "token"
    file.write_text("first")
    tokens = FileTokens(str(file), clock=clock)
    await tokens.get(1)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    clock.now = 2.0
    assert await tokens.get(1) == "first"
    with pytest.raises(Unavailable, match="this service has no token: its token file cannot be read"):
        await FileTokens(str(file), clock=clock).get(1)


async def test_concurrent_calls_share_one_fetch(issuer: Issuer) -> None:
    tokens = credentials(issuer, Clock())
    found = await asyncio.gather(*(tokens.get(5) for _ in range(50)))
    assert found == issuer.issued * 50
    assert issuer.requests == {TOKEN: 1}


async def test_a_token_is_renewed_before_it_expires_and_nobody_waits_for_it(issuer: Issuer) -> None:
    clock = Clock()
    tokens = credentials(issuer, clock)
    first = await tokens.get(5)
    clock.now = 479
    assert await tokens.get(5) == first
    assert issuer.requests[TOKEN] == 1
    # After 80 % of its 600 s.
    clock.now = 481
    assert await tokens.get(5) == first

    async def renewed() -> bool:
        return await tokens.get(5) != first

    await until(renewed, what="another token")
    assert issuer.requests[TOKEN] == 2
    await tokens.close()


async def test_the_last_token_is_used_until_it_expires_while_the_issuer_is_unavailable(issuer: Issuer) -> None:
    clock = Clock()
    tokens = credentials(issuer, clock)
    first = await tokens.get(5)
    async with issuer.away():
        for clock.now in (500, 550, 599):
            assert await tokens.get(5) == first
            await asyncio.sleep(0.05)
        clock.now = 601
        with pytest.raises(Unavailable, match=r"this service has no token: 127.0.0.1: cannot connect"):
            await tokens.get(5)
    clock.now = 640
    assert await tokens.get(5) not in (first, "")


async def test_failed_fetches_are_repeated_with_back_off(issuer: Issuer) -> None:
    clock = Clock()
    tokens = credentials(issuer, clock)
    async with issuer.faulty(Fault.ERROR):
        for clock.now in (n / 10 for n in range(600)):
            with pytest.raises(Unavailable, match="the token endpoint responds with status 500"):
                await tokens.get(5)
    # Every half to full 0.5, 1, 2, 4, 8, 16 and 30 s.
    assert 6 <= issuer.requests[TOKEN] <= 10


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.SLOW, "no response within 0.3 s"),
        (Fault.HUGE, "larger than 65536 bytes"),
        (Fault.GARBAGE, "is not a token"),
        (Fault.WRONG_TYPES, "is not a token"),
        (Fault.REDIRECT, "the redirect is not followed"),
    ],
)
async def test_a_faulty_endpoint_is_bounded_and_said(issuer: Issuer, fault: Fault, error: str) -> None:
    seconds = 0.3 if fault is Fault.SLOW else 60
    identity = ServiceIdentity(client_id="orders", client_secret="secret", timeout_seconds=seconds)
    async with issuer.faulty(fault):
        with pytest.raises(Unavailable, match=error) as unavailable:
            await credentials(issuer, Clock(), identity).get(60)
    assert "secret" not in str(unavailable.value)


async def test_a_call_waits_for_a_token_until_its_deadline(issuer: Issuer) -> None:
    tokens = credentials(issuer, Clock())
    async with issuer.faulty(Fault.SLOW):
        with pytest.raises(Unavailable, match="this service has no token: the issuer has not responded in time"):
            async with asyncio.timeout(20):
                await tokens.get(0.2)
    await tokens.close()


@pytest.mark.parametrize("expires_in", [0, -5])
async def test_a_token_that_has_expired_is_a_failed_fetch(issuer: Issuer, expires_in: int) -> None:
    issuer.expires_in = expires_in
    tokens = credentials(issuer, Clock())
    for _ in range(50):
        with pytest.raises(Unavailable, match=r"this service has no token: the token .* has expired"):
            await tokens.get(5)
    assert issuer.requests[TOKEN] == 1


async def test_a_wrong_secret_is_said(issuer: Issuer) -> None:
    wrong = ServiceIdentity(client_id="orders", client_secret="wrong")
    with pytest.raises(Unavailable, match="the token endpoint responds with status 401"):
        await credentials(issuer, Clock(), wrong).get(5)


async def test_the_endpoint_comes_from_the_discovery_document(issuer: Issuer) -> None:
    async with service_tokens(CREDENTIALS, Auth(issuer=issuer.url)) as tokens:
        assert tokens is not None
        assert await tokens.get(5) == issuer.issued[-1]
    assert issuer.requests == {DISCOVERY: 1, TOKEN: 1}
    async with service_tokens(CREDENTIALS, Auth()) as tokens:
        assert tokens is not None
        with pytest.raises(Unavailable, match=r"neither auth.issuer nor service_identity.token_url is set"):
            await tokens.get(5)


NO = Permission.NO
ONLY_ORDERS = Access(
    anonymous=NO, buyer=NO, merchant=NO, operator=NO, service=Permission.YES, callers=frozenset({"orders"})
)


class Server:
    """A gRPC server with one method, which returns the name of the calling service."""

    def __init__(self, target: str) -> None:
        self.target = target

    async def call(self, tokens: ServiceTokens | None, timeout: float = 5.0) -> str:
        async with rpc.channel(GrpcUpstream(target=self.target), tokens) as channel:
            method: Any = channel.unary_unary(
                "/test.Names/Own",
                request_serializer=wrappers_pb2.StringValue.SerializeToString,
                response_deserializer=wrappers_pb2.StringValue.FromString,
            )
            return str((await rpc.call(method, wrappers_pb2.StringValue(), timeout)).value)


@asynccontextmanager
async def serving(issuer: Issuer, callers: dict[str, str]) -> AsyncIterator[Server]:
    async def own(_: Any) -> Any:
        return wrappers_pb2.StringValue(value=identity.get().service or "")

    auth = Auth(mode="required", issuer=issuer.url, min_refetch_seconds=0.1)
    async with authenticator(auth, callers=callers) as authentication:
        serve = endpoint("Own", own, authenticator=authentication, access={"Own": ONLY_ORDERS})
        handler = grpc.unary_unary_rpc_method_handler(
            serve,
            request_deserializer=wrappers_pb2.StringValue.FromString,
            response_serializer=wrappers_pb2.StringValue.SerializeToString,
        )
        port = free_port()
        services = {"test.Names": grpc.method_handlers_generic_handler("test.Names", {"Own": handler})}
        # Reflection reads descriptors, which this service does not have.
        server = GrpcServer("127.0.0.1", port, Health(), services)
        await server.start()
        try:
            yield Server(f"127.0.0.1:{port}")
        finally:
            await server.stop(0)


class Fixed:
    """A token that stays the same."""

    def __init__(self, text: str) -> None:
        self.text = text

    async def get(self, seconds: float) -> str:
        return self.text

    async def replace(self, rejected: str, seconds: float) -> str:
        return self.text


async def test_a_server_knows_the_calling_service_by_its_token(issuer: Issuer) -> None:
    async with serving(issuer, {"orders-client": "orders", "products-client": "products"}) as server:
        assert await server.call(Fixed(issuer.token("orders-client"))) == "orders"
        async with service_tokens(CREDENTIALS, Auth(issuer=issuer.url)) as tokens:
            assert await server.call(tokens) == "orders"
        for token, reason in [
            (issuer.token("products-client"), "this requires the identity of a service: orders"),
            (issuer.token("ann"), "this requires the identity of a service: orders"),
            (issuer.token("orders-client", expires_in=-300), "the token has expired"),
            ("x" * 9000, "the token is longer than 8192 bytes"),
        ]:
            with pytest.raises(Unavailable, match=f"does not accept this service's identity: {reason}"):
                await server.call(Fixed(token))
        with pytest.raises(Unavailable, match="this requires a bearer token"):
            await server.call(None)


async def test_a_rejected_token_is_replaced_and_the_call_repeated(issuer: Issuer) -> None:
    async with serving(issuer, {"orders-client": "orders"}) as server:
        async with service_tokens(CREDENTIALS, Auth(issuer=issuer.url)) as tokens:
            assert tokens is not None
            assert await server.call(tokens) == "orders"
            # The issuer replaces all its keys, and inventory has learned that from somebody else's token.
            issuer.rotate(keep=False)
            await server.call(Fixed(issuer.token("orders-client")))
            assert await server.call(tokens) == "orders"
    assert issuer.requests[TOKEN] == 2


async def test_a_rejected_token_without_a_replacement_is_a_refused_identity(issuer: Issuer) -> None:
    """The upstream is available, so its circuit breaker and its callers must not be told otherwise."""

    class WithoutReplacement(Fixed):
        async def replace(self, rejected: str, seconds: float) -> str:
            raise Unavailable("this service has no token: the issuer has not responded in time")

    async with serving(issuer, {"orders-client": "orders"}) as server:
        with pytest.raises(rpc.IdentityRefused, match=r"^this service has no token: the issuer has not responded"):
            await server.call(WithoutReplacement(issuer.token("orders-client", expires_in=-300)))


async def test_concurrent_calls_whose_token_was_rejected_share_one_new_token(issuer: Issuer) -> None:
    clock = Clock()
    tokens = credentials(issuer, clock)
    rejected = await tokens.get(5)
    clock.now += 1
    found = await asyncio.gather(*(tokens.replace(rejected, 5) for _ in range(20)))
    assert len(set(found)) == 1
    assert rejected not in found
    assert issuer.requests[TOKEN] == 2


async def test_a_call_fails_in_time_if_there_is_no_token(issuer: Issuer) -> None:
    async with serving(issuer, {"orders-client": "orders"}) as server, issuer.faulty(Fault.SLOW):
        async with service_tokens(CREDENTIALS, Auth(issuer=issuer.url)) as tokens:
            with pytest.raises(Unavailable, match="this service has no token"):
                async with asyncio.timeout(20):
                    await server.call(tokens, timeout=0.3)
