"""The issuer's keys: fetched, kept, rotated and withdrawn, by an issuer that may be unavailable or faulty."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from joserfc.jwk import ECKey

from market.kit import context
from market.kit.auth.authenticator import Authenticator, authenticator
from market.kit.auth.config import Auth
from market.kit.auth.fetch import FetchError
from market.kit.auth.identity import Identity, Role
from market.kit.auth.issuer import Issuer as IssuerClient
from market.kit.auth.issuer import SigningKey as PublicKey
from market.kit.auth.keys import Keys
from market.kit.auth.token_cache import TokenCache
from market.kit.errors import Unauthenticated, Unavailable
from tests.support.certificates import make_authority, make_certificate
from tests.support.issuer import DISCOVERY, JWKS, Fault, Issuer, SigningKey
from tests.support.waiting import until

UNDECIDED = "it is not known yet whether the issuer has the key of this token"


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as running:
        yield running


def auth(issuer: Issuer, **settings: Any) -> Auth:
    return Auth(**{"mode": "required", "issuer": issuer.url, "min_refetch_seconds": 0.1, **settings})


@asynccontextmanager
async def verifying(issuer: Issuer, **settings: Any) -> AsyncIterator[Authenticator]:
    async with authenticator(auth(issuer, **settings)) as authentication:
        assert authentication is not None
        yield authentication


async def subject(authentication: Authenticator, token: str) -> str:
    return (await authentication.authenticate(token)).subject


async def test_keys_are_fetched_once_and_tokens_verified_once(issuer: Issuer) -> None:
    async with verifying(issuer) as authentication:
        tokens = [issuer.token(f"user-{n}") for n in range(20)]
        for _ in range(3):
            assert [await subject(authentication, token) for token in tokens] == [f"user-{n}" for n in range(20)]
    assert issuer.requests == {DISCOVERY: 1, JWKS: 1}


async def test_keys_that_are_served_as_a_key_set_only_are_fetched(issuer: Issuer) -> None:
    """Kubernetes' API server responds with 406 to a client that accepts application/json alone."""
    async with httpx.AsyncClient() as client:
        assert (await client.get(issuer.url + JWKS, headers={"accept": "application/json"})).status_code == 406
    async with verifying(issuer) as authentication:
        assert await subject(authentication, issuer.token("ann")) == "ann"


async def test_a_new_key_is_fetched_when_its_first_token_comes(issuer: Issuer) -> None:
    async with verifying(issuer) as authentication:
        old = issuer.token("before")
        issuer.rotate()
        new = [issuer.token(f"after-{n}") for n in range(50)]
        subjects = await asyncio.gather(*(subject(authentication, token) for token in [old, *new]))
    assert subjects == ["before", *(f"after-{n}" for n in range(50))]
    assert issuer.requests == {DISCOVERY: 2, JWKS: 2}


async def test_keys_that_rotate_quickly_fail_no_request(issuer: Issuer) -> None:
    """A second rotation within the pause between two fetches: its first requests wait for the next fetch."""
    async with verifying(issuer, min_refetch_seconds=0.3) as authentication:
        for n in range(4):
            issuer.rotate()
            assert await subject(authentication, issuer.token(f"user-{n}")) == f"user-{n}"


async def test_unknown_keys_cause_few_fetches(issuer: Issuer) -> None:
    async with verifying(issuer, min_refetch_seconds=0.5) as authentication:

        async def refused(token: str) -> None:
            with pytest.raises(Unauthenticated, match="unknown key"):
                await subject(authentication, token)

        started = time.monotonic()
        await asyncio.gather(*(refused(issuer.token(kid=f"unknown-{n}")) for n in range(500)))
        fetches = 1 + (time.monotonic() - started) / 0.5
        assert 2 <= issuer.requests[JWKS] <= 1 + fetches


async def test_a_key_that_is_known_to_be_absent_is_refused_at_once(issuer: Issuer) -> None:
    async with verifying(issuer, min_refetch_seconds=30) as authentication:
        for _ in range(3):
            with pytest.raises(Unauthenticated, match="unknown key"):
                async with asyncio.timeout(20):
                    await subject(authentication, issuer.token(kid="unknown"))
    assert issuer.requests[JWKS] == 2


async def test_in_a_flood_of_unknown_keys_a_token_of_a_new_key_is_not_called_invalid(issuer: Issuer) -> None:
    async with verifying(issuer, min_refetch_seconds=30, timeout_seconds=60) as authentication:
        with pytest.raises(Unauthenticated, match="unknown key"):
            await subject(authentication, issuer.token(kid="unknown"))
        flood = [asyncio.create_task(subject(authentication, issuer.token(kid=f"unknown-{n}"))) for n in range(64)]
        # Each of them waits for the next fetch now.
        await asyncio.sleep(0)
        issuer.rotate()
        with pytest.raises(Unavailable, match=UNDECIDED) as refused:
            await subject(authentication, issuer.token("ann"))
        assert 1 <= refused.value.retry_after <= 30
        # Of this one, the last fetch has said that it does not exist.
        with pytest.raises(Unauthenticated, match="unknown key"):
            await subject(authentication, issuer.token(kid="unknown"))
        for task in flood:
            task.cancel()
        await asyncio.gather(*flood, return_exceptions=True)


async def test_requests_with_a_known_key_never_wait_for_a_fetch(issuer: Issuer) -> None:
    async with verifying(issuer, timeout_seconds=20) as authentication:
        async with issuer.faulty(Fault.SLOW):
            unknown = asyncio.create_task(subject(authentication, issuer.token(key=SigningKey())))
            await until(lambda: issuer.requests[DISCOVERY] == 2)
            async with asyncio.timeout(2):
                assert await subject(authentication, issuer.token("ann")) == "ann"
            assert not unknown.done()
            unknown.cancel()


async def test_a_request_does_not_wait_for_keys_beyond_its_deadline(issuer: Issuer) -> None:
    async with verifying(issuer, timeout_seconds=20) as authentication:
        async with issuer.faulty(Fault.SLOW):
            with context.deadline_in(0.4), pytest.raises(Unavailable, match=UNDECIDED):
                async with asyncio.timeout(5):
                    await subject(authentication, issuer.token(key=SigningKey()))


async def test_keys_stay_in_use_while_the_issuer_is_unavailable(issuer: Issuer) -> None:
    async with verifying(issuer, refresh_seconds=10) as authentication:
        async with issuer.away():
            for n in range(20):
                assert await subject(authentication, issuer.token(f"user-{n}")) == f"user-{n}"
            for _ in range(2):
                with pytest.raises(Unavailable, match=UNDECIDED):
                    await subject(authentication, issuer.token(key=SigningKey()))
            assert await subject(authentication, issuer.token("last")) == "last"


@pytest.mark.parametrize("fault", list(Fault))
async def test_keys_serve_on_while_the_issuer_is_faulty(issuer: Issuer, fault: Fault) -> None:
    # Only the slow issuer needs a time limit that ends.
    async with verifying(issuer, timeout_seconds=3 if fault is Fault.SLOW else 60) as authentication:
        async with issuer.faulty(fault):
            with pytest.raises(Unavailable, match=UNDECIDED):
                async with asyncio.timeout(60):
                    await subject(authentication, issuer.token(key=SigningKey()))
            assert await subject(authentication, issuer.token("ann")) == "ann"
        issuer.rotate()
        assert await subject(authentication, issuer.token("bob")) == "bob"
    assert issuer.max_sent_bytes < 8_000_000


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault.SLOW, "127.0.0.1: no response within 0.5 s"),
        (Fault.HUGE, "127.0.0.1: the response is larger than 262144 bytes"),
        (Fault.GARBAGE, "127.0.0.1: the document does not follow the specification"),
        (Fault.WRONG_TYPES, "127.0.0.1: the document does not follow the specification"),
        (Fault.REDIRECT, "127.0.0.1: the redirect is not followed (status 302)"),
        (Fault.ERROR, "127.0.0.1: status 500"),
    ],
)
async def test_what_is_wrong_with_the_issuer_is_said(issuer: Issuer, fault: Fault, error: str) -> None:
    seconds = 0.5 if fault is Fault.SLOW else 60
    async with issuer.faulty(fault):
        for settings in ({}, {"keys_url": issuer.url + JWKS}):
            with pytest.raises(FetchError) as failed:
                await IssuerClient(auth(issuer, timeout_seconds=seconds, **settings)).fetch_keys()
            assert str(failed.value) == error
    assert issuer.requests["/elsewhere"] == 0


async def test_a_service_starts_without_its_issuer_and_fetches_the_keys_later(issuer: Issuer) -> None:
    async with issuer.away():
        async with verifying(issuer) as authentication:
            with pytest.raises(Unavailable, match="the keys of the issuer are not available yet"):
                await subject(authentication, issuer.token())

            async def has_keys() -> bool:
                try:
                    return await subject(authentication, issuer.token("ann")) == "ann"
                except Unavailable:
                    return False

            await issuer.start()
            await until(has_keys, what="the issuer's keys")
            assert issuer.requests[JWKS] == 1
            await issuer.stop()


async def test_a_withdrawn_key_ends_the_tokens_that_it_has_signed(issuer: Issuer) -> None:
    async with verifying(issuer) as authentication:
        old = issuer.token("ann")
        assert await subject(authentication, old) == "ann"
        issuer.rotate(keep=False)
        assert await subject(authentication, issuer.token("bob")) == "bob"
        with pytest.raises(Unauthenticated, match="unknown key"):
            await subject(authentication, old)


async def test_another_key_with_the_same_id_ends_the_tokens_of_the_first(issuer: Issuer) -> None:
    async with verifying(issuer) as authentication:
        old = issuer.token("ann")
        assert await subject(authentication, old) == "ann"
        issuer.keys = [SigningKey(kid=issuer.signing_key.kid), SigningKey()]
        assert await subject(authentication, issuer.token("bob", key=issuer.keys[1])) == "bob"
        with pytest.raises(Unauthenticated, match="invalid signature"):
            await subject(authentication, old)


async def test_the_issuer_must_be_the_one_that_the_document_names(issuer: Issuer) -> None:
    with pytest.raises(FetchError, match="the discovery document belongs to another issuer"):
        await IssuerClient(Auth(mode="required", issuer=f"{issuer.url}/")).fetch_keys()


async def test_keys_that_cannot_verify_tokens_are_ignored(issuer: Issuer) -> None:
    good = SigningKey()
    bad = [
        {"kty": "oct", "kid": "a", "k": "c2VjcmV0"},
        {"kty": "RSA", "kid": "b", "n": "AQAB", "e": "AQAB"},
        {"kty": "RSA", "kid": "c", "n": "not base64!", "e": []},
        {"kty": "EC", "kid": "d", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "AKP", "kid": "e", "alg": "ML-DSA-44", "pub": "AA"},
        {**SigningKey().jwk, "use": "enc"},
        {**SigningKey().jwk, "kid": 7},
        {"kid": "f"},
        {},
    ]
    issuer.keys = [Published(jwk) for jwk in bad]
    with pytest.raises(FetchError, match="the issuer has no key that can verify tokens"):
        await IssuerClient(auth(issuer)).fetch_keys()
    issuer.keys.append(good)
    assert [key.kid for key in await IssuerClient(auth(issuer)).fetch_keys()] == [good.kid]
    issuer.keys = [good] * 101
    with pytest.raises(FetchError, match="the issuer has more than 100 keys"):
        await IssuerClient(auth(issuer)).fetch_keys()


async def test_a_private_key_is_not_kept_even_if_the_issuer_publishes_it(issuer: Issuer) -> None:
    private = ECKey.generate_key("P-256", {"kid": "a"})
    issuer.keys = [Published(private.as_dict(private=True))]
    [key] = await IssuerClient(auth(issuer)).fetch_keys()
    assert not key.key.is_private


async def test_an_issuer_over_tls_must_have_a_certificate_of_the_configured_authority(tmp_path: Path) -> None:
    authority = make_authority(tmp_path, "authority")
    other = make_authority(tmp_path, "other")
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(*make_certificate(authority, "localhost"))
    async with IssuerOverTls(server).serving() as issuer:
        [key, *_] = await IssuerClient(auth(issuer, issuer_ca_file=str(authority))).fetch_keys()
        assert key.kid == issuer.signing_key.kid
        for file in (str(other), None):
            with pytest.raises(FetchError, match=r"localhost: cannot connect: .*certificate verify failed"):
                await IssuerClient(auth(issuer, issuer_ca_file=file)).fetch_keys()
        missing = str(tmp_path / "missing.pem")
        with pytest.raises(FetchError, match=r"localhost: .*No such file"):
            await IssuerClient(auth(issuer, issuer_ca_file=missing)).fetch_keys()


async def test_the_token_for_the_keys_is_sent_to_the_configured_host_only(issuer: Issuer, tmp_path: Path) -> None:
    seen: dict[str, str | None] = {}
    (tmp_path / "token").write_text("for-the-issuer\n")

    def watch(running: Issuer) -> None:
        respond = running._response

        def response(method: str, path: str, headers: Any, body: bytes) -> Any:
            seen[f"{running is issuer} {path}"] = headers.get("authorization")
            status, document = respond(method, path, headers, body)
            return status, {**document, "jwks_uri": other.url + JWKS} if path == DISCOVERY else document

        running._response = response  # type: ignore[method-assign]

    async with Issuer().serving() as other:
        watch(issuer)
        watch(other)
        await IssuerClient(auth(issuer, issuer_token_file=str(tmp_path / "token"))).fetch_keys()
        keys_url = other.url + JWKS
        configured = auth(issuer, issuer_token_file=str(tmp_path / "token"), keys_url=keys_url)
        assert seen == {f"True {DISCOVERY}": "Bearer for-the-issuer", f"False {JWKS}": None}
        await IssuerClient(configured).fetch_keys()
        assert seen[f"False {JWKS}"] == "Bearer for-the-issuer"


async def test_failed_fetches_are_repeated_soon(issuer: Issuer) -> None:
    results: list[list[PublicKey] | Exception] = [FetchError("unavailable"), RuntimeError("a bug")]
    good = await IssuerClient(auth(issuer)).fetch_keys()

    async def fetch() -> list[PublicKey]:
        result = results.pop(0) if results else good
        if isinstance(result, Exception):
            raise result
        return result

    keys = Keys(fetch, on_removed=lambda _: None, refresh_seconds=300, min_refetch_seconds=5)
    assert [await keys.refresh() for _ in range(2)] == [1.0, 1.0]
    assert not keys.find(issuer.signing_key.kid)
    assert 270 <= await keys.refresh() <= 330
    assert keys.find(issuer.signing_key.kid)
    results.append(FetchError("unavailable"))
    assert await keys.refresh() == 15.0
    assert keys.find(issuer.signing_key.kid)


def test_the_cache_of_tokens_is_bounded_in_number_and_bytes() -> None:
    cache = TokenCache(3, 1_000_000)
    for n in range(5):
        cache.put(bytes([n]), Identity(f"user-{n}", frozenset({Role.BUYER})), 100.0, "key")
        cache.get(bytes([0]), 1.0)
    found = [cache.get(bytes([n]), 1.0) is not None for n in range(5)]
    assert found == [True, False, False, True, True]
    cache = TokenCache(1000, 10_000)
    for n in range(100):
        cache.put(bytes([n]), Identity("u" * 200, frozenset({Role.BUYER})), 100.0, "key")
    assert sum(cache.get(bytes([n]), 1.0) is not None for n in range(100)) == 5
    cache = TokenCache(0, 10_000)
    cache.put(b"0", Identity("ann", frozenset({Role.BUYER})), 100.0, "key")
    assert cache.get(b"0", 1.0) is None


class IssuerOverTls(Issuer):
    """The issuer over HTTPS, at localhost."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.url = f"https://localhost:{self.port}"
        self._context = context

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._handle, "localhost", self.port, ssl=self._context)


class Published:
    """A key of an issuer that publishes any document as a key."""

    def __init__(self, jwk: Any) -> None:
        self.jwk = jwk
