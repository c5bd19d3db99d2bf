"""Sign-in over real HTTP: forwarding the caller's token, its share of the server, and the audit log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import structlog
from starlette.requests import Request
from starlette.responses import Response
from structlog.testing import capture_logs

from market.kit import context
from market.kit.auth import audit
from market.kit.auth.authenticator import authenticator
from market.kit.auth.config import Auth
from market.kit.auth.identity import Identity, Role, identity, token
from market.kit.auth.permissions import Access, Permission
from market.kit.batching import Batcher
from market.kit.config import Http, HttpUpstream
from market.kit.errors import TooManyRequests
from market.kit.http import edge
from market.kit.http.client import HttpClient
from market.kit.http.rate_limit import RateLimit
from market.kit.http.responses import json_response
from market.kit.http.server import HttpServer
from tests.support.issuer import Issuer
from tests.support.ports import free_port

YES = Permission.YES
EVERYBODY = Access(anonymous=YES, buyer=YES, merchant=YES, operator=YES, service=YES)


@pytest.fixture(scope="module")
async def issuer() -> AsyncIterator[Issuer]:
    async with Issuer().serving() as running:
        yield running


@asynccontextmanager
async def serving(issuer: Issuer | None, endpoint: Any, **http: Any) -> AsyncIterator[str]:
    """Serve GET / where callers sign in, or in mode open without an issuer, and yield the URL."""
    auth = Auth() if issuer is None else Auth(mode="required", issuer=issuer.url)
    config = Http(port=free_port(), **http)
    async with authenticator(auth) as authentication:
        app = edge.application({"GET /": endpoint}, config, authenticator=authentication, access={"GET /": EVERYBODY})
        server = HttpServer(app, config.host, config.port, limits=config)
        await server.start()
        try:
            yield f"http://{config.host}:{config.port}"
        finally:
            await server.stop(1)


async def show(request: Request) -> Response:
    return json_response({"subject": identity.get().subject, "authorization": request.headers.get("authorization")})


async def test_the_callers_token_is_forwarded_only_where_that_is_configured(issuer: Issuer) -> None:
    async with serving(issuer, show) as upstream:
        clients = {
            forward: HttpClient("upstream", HttpUpstream(url=upstream), forward_token=forward)
            for forward in (True, False)
        }

        async def forward(request: Request) -> Response:
            chosen = clients["forward" in request.query_params]
            return json_response((await chosen.request("GET", "/")).body)

        async with (
            clients[True],
            clients[False],
            serving(issuer, forward) as gateway,
            httpx.AsyncClient(timeout=60) as http,
        ):
            text = issuer.token("ann")
            headers = {"authorization": f"Bearer {text}"}
            forwarded = await http.get(gateway, params={"forward": ""}, headers=headers)
            assert forwarded.json() == {"subject": "ann", "authorization": f"Bearer {text}"}
            kept = await http.get(gateway, headers=headers)
            assert kept.json() == {"subject": "", "authorization": None}
            anonymous = await http.get(gateway, params={"forward": ""})
            assert anonymous.json() == {"subject": "", "authorization": None}


async def test_in_mode_open_no_token_is_forwarded(issuer: Issuer) -> None:
    async with (
        serving(None, show) as upstream,
        HttpClient("up", HttpUpstream(url=upstream), forward_token=True) as client,
    ):

        async def forward(_: Request) -> Response:
            return json_response((await client.request("GET", "/")).body)

        async with serving(None, forward) as gateway, httpx.AsyncClient(timeout=60) as http:
            response = await http.get(gateway, headers={"authorization": f"Bearer {issuer.token()}"})
    assert response.json() == {"subject": "", "authorization": None}


async def test_subjects_behind_one_address_have_separate_shares(issuer: Issuer) -> None:
    release = asyncio.Event()
    handled = 0

    async def wait(_: Request) -> Response:
        nonlocal handled
        handled += 1
        await release.wait()
        return json_response({})

    async with serving(issuer, wait, max_in_flight_per_caller=2) as url, httpx.AsyncClient(timeout=60) as http:

        async def get(subject: str) -> int:
            headers = {"authorization": f"Bearer {issuer.token(subject)}"}
            return (await http.get(url, headers=headers)).status_code

        running = []
        for subject in ("ann", "bob", "ann", "bob"):
            running.append(asyncio.create_task(get(subject)))
            async with asyncio.timeout(10):
                while handled < len(running):
                    await asyncio.sleep(0.01)
        assert await get("ann") == 429
        release.set()
        assert await asyncio.gather(*running) == [200] * 4
        assert await get("ann") == 200


async def test_a_token_larger_than_the_headers_may_be_gets_431(issuer: Issuer) -> None:
    async with serving(issuer, show) as url, httpx.AsyncClient(timeout=60) as http:
        statuses = [
            (await http.get(url, headers={"authorization": f"Bearer {'x' * size}"})).status_code
            for size in (9_000, 100_000)
        ]
    assert statuses == [401, 431]


async def test_pages_of_other_origins_can_read_why_they_were_refused(issuer: Issuer) -> None:
    async with (
        serving(issuer, show, cors_origins=("https://shop.example",)) as url,
        httpx.AsyncClient(timeout=60) as http,
    ):
        response = await http.get(url, headers={"authorization": "Bearer x", "origin": "https://shop.example"})
    assert "WWW-Authenticate" in response.headers["access-control-expose-headers"]
    assert response.headers["www-authenticate"].startswith('Bearer realm="market", error="invalid_token"')


async def test_a_batch_belongs_to_nobody(issuer: Issuer) -> None:
    """Items of several callers share a call, which must not run as one of them."""
    seen: list[tuple[str, str]] = []

    async def flush(items: list[str]) -> list[str]:
        seen.append((identity.get().subject, token.get()))
        await asyncio.sleep(0.02)
        return items

    batcher = Batcher(flush, name="test")

    async def call(_: Request) -> Response:
        return json_response({"subject": await batcher(identity.get().subject)})

    async with serving(issuer, call) as url, httpx.AsyncClient(timeout=60) as http:
        subjects = [f"user-{n}" for n in range(64)]
        responses = await asyncio.gather(
            *(http.get(url, headers={"authorization": f"Bearer {issuer.token(subject)}"}) for subject in subjects)
        )
    assert [response.json()["subject"] for response in responses] == subjects
    assert set(seen) == {("", "")}
    assert len(seen) < 64


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_burst_is_allowed_and_then_a_rate() -> None:
    clock = Clock()
    limit = RateLimit(8, 5, clock=clock)
    for _ in range(5):
        limit.check("ann")
    with pytest.raises(TooManyRequests) as refused:
        limit.check("ann")
    assert refused.value.retry_after == 1
    for _ in range(30):
        clock.now += 0.125
        limit.check("ann")
    clock.now += 3600
    for _ in range(5):
        limit.check("ann")
    with pytest.raises(TooManyRequests):
        limit.check("ann")


def test_a_slow_rate_says_how_long_to_wait() -> None:
    clock = Clock()
    limit = RateLimit(0.1, 1, clock=clock)
    limit.check("ann")
    clock.now += 3
    with pytest.raises(TooManyRequests) as refused:
        limit.check("ann")
    assert refused.value.retry_after == 7
    clock.now += 7
    limit.check("ann")


def test_the_table_of_rates_is_bounded() -> None:
    limit = RateLimit(1, 1, max_callers=100, clock=Clock())
    limit.check("ann")
    for n in range(99):
        limit.check(f"user-{n}")
    with pytest.raises(TooManyRequests):
        limit.check("ann")
    limit.check("one-more")
    # Its place was that of the caller that was seen longest ago.
    limit.check("user-0")
    with pytest.raises(TooManyRequests):
        limit.check("ann")


def test_the_audit_log_says_who_did_what() -> None:
    reset = identity.set(Identity("eve", frozenset({Role.MERCHANT}), "eve@example.com"))
    hidden = token.set("a-secret-token")
    request = context.request_id.set("request-1")
    try:
        with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
            audit.record("price changed", target="product 7", before="1.00", after="2.00")
    finally:
        identity.reset(reset)
        token.reset(hidden)
        context.request_id.reset(request)
    assert lines == [
        {
            "component": "audit",
            "event": "price changed",
            "log_level": "info",
            "subject": "eve",
            "roles": ["merchant"],
            "target": "product 7",
            "before": "1.00",
            "after": "2.00",
        }
    ]
