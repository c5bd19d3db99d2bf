"""The issuer's keys change, or the issuer responds wrongly, while people use the shop."""

from __future__ import annotations

import asyncio
import time

import grpc
import pytest

from tests.authorization.grpc_calls import inventory_code
from tests.authorization.load import Load
from tests.authorization.shop import SUBJECTS, Shop
from tests.support.issuer import ELSEWHERE, JWKS, Fault, SigningKey
from tests.support.waiting import until

KEYS_UNAVAILABLE = "the issuer's keys cannot be fetched"
# Sockets on both sides buffer this much of a response that nobody reads.
BUFFERED_BYTES = 16 * 1024 * 1024


async def test_keys_rotate_under_load_without_a_failed_request(shop: Shop) -> None:
    issuer = shop.issuer
    async with Load(shop, issuer.token("ann")).running() as load:
        await load.handle(100)
        for algorithm in ("ES256", "RS256", "PS256", "EdDSA"):
            # Longer than auth.min_refetch_seconds.
            await asyncio.sleep(0.5)
            # The first that the services hear of the new key is a token.
            issuer.rotate(algorithm)
            load.token = issuer.token("ann")
            await load.handle(100)
        # Tokens of people have the new key alone, so the old keys may go. Those of the services are fetched again.
        del issuer.keys[1:]
        await until_known(shop, issuer.rotate())
        await load.handle(100)
    assert load.failed == []


async def test_a_token_of_a_key_that_the_issuer_no_longer_has_is_refused(shop: Shop) -> None:
    leaked = shop.issuer.rotate("ES256")
    stolen = shop.issuer.token("mia", roles=["merchant"])
    path = "/api/product?limit=1&stock=true"
    assert (await shop.rest("products", "GET", path, stolen)).status_code == 200

    shop.issuer.rotate("ES256")
    shop.issuer.keys.remove(leaked)
    await asyncio.sleep(0.5)
    # A token of the new key makes the service fetch the keys.
    assert (await shop.rest("products", "GET", path, shop.issuer.token("mia", roles=["merchant"]))).status_code == 200
    assert (await shop.rest("products", "GET", path, stolen)).status_code == 401


async def test_two_published_keys_with_the_same_kid_are_both_accepted_and_a_third_is_not(shop: Shop) -> None:
    issuer = shop.issuer
    first = issuer.rotate()
    second, third = (SigningKey(first.algorithm, kid=first.kid) for _ in range(2))
    issuer.keys.append(second)
    await until_known(shop, issuer.rotate())
    for key, status in ((first, 200), (second, 200), (third, 401)):
        response = await shop.rest("orders", "GET", "/api/order", issuer.token("ann", key=key))
        assert response.status_code == status
    issuer.keys.remove(second)


async def until_known(shop: Shop, key: SigningKey) -> None:
    """Send tokens of the key to every service until it accepts them. So each has fetched the issuer's current keys."""
    token = shop.issuer.token("ann", key=key)
    service_token = shop.issuer.token(SUBJECTS["orders"], key=key)

    async def is_known() -> bool:
        responses = [
            await shop.rest("products", "GET", "/api/product?limit=1", token),
            await shop.rest("orders", "GET", "/api/order?limit=1", token),
            await shop.graphql("{__typename}", token),
        ]
        code = await inventory_code(shop, service_token)
        return code is grpc.StatusCode.OK and {response.status_code for response in responses} == {200}

    await until(is_known, what="the key is known")


@pytest.mark.parametrize("fault", Fault, ids=str)
async def test_a_faulty_issuer_is_bounded_and_logged_and_the_old_keys_serve_on(shop: Shop, fault: Fault) -> None:
    issuer = shop.issuer
    # A new key makes the services fetch the keys, after which they count the issuer as available.
    await until_known(shop, issuer.rotate())
    token, unknown = issuer.token("ann"), issuer.token("ann", key=SigningKey())
    logged = len(shop.logs["orders"])
    elsewhere, fetched = issuer.requests[ELSEWHERE], sum(issuer.requests.values())
    async with Load(shop, token).running(4) as load:
        # So that each service has called inventory with its own token.
        await load.handle(8)
        async with issuer.faulty(fault):
            started = time.monotonic()
            refused = await shop.rest("orders", "GET", "/api/order", unknown)
            # The issuer may have such a key.
            assert (refused.status_code, int(refused.headers["retry-after"]) >= 1) == (503, True), refused.text
            assert time.monotonic() - started < 30
            assert sum(issuer.requests.values()) > fetched
            await load.handle(40)
            await until(lambda: KEYS_UNAVAILABLE in shop.logs["orders"][logged:], what="the failure is logged")
    assert load.failed == []
    assert issuer.max_sent_bytes <= BUFFERED_BYTES
    assert issuer.requests[ELSEWHERE] == elsewhere

    # When the issuer is well again, so is the service.
    await until_known(shop, issuer.rotate())


async def test_tokens_of_unknown_keys_do_not_flood_the_issuer(shop: Shop) -> None:
    before, started = shop.issuer.requests[JWKS], time.monotonic()
    responses = await asyncio.gather(
        *(shop.rest("orders", "GET", "/api/order", shop.issuer.token(key=SigningKey("EdDSA"))) for _ in range(100))
    )
    # 503: so many wait for the next fetch that it was not decided whether the issuer has the key.
    assert {response.status_code for response in responses} in ({401}, {401, 503})
    # At most one request per auth.min_refetch_seconds, and the periodic ones of the four services that verify tokens.
    assert shop.issuer.requests[JWKS] - before <= 5 + (time.monotonic() - started) / 0.2
