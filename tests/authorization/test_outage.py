"""The issuer is unavailable while people use the shop; `make test-keycloak` stops Keycloak for a minute."""

from __future__ import annotations

import time

from tests.authorization.load import Load
from tests.authorization.shop import Shop
from tests.support.issuer import ON_KEYCLOAK
from tests.support.waiting import PATIENCE

KEYS_UNAVAILABLE = "the issuer's keys cannot be fetched"
# Longer than auth.refresh_seconds, so that the services look for the issuer and do not find it.
AWAY_SECONDS = 60 if ON_KEYCLOAK else 12


async def test_signed_in_callers_do_not_notice_that_the_issuer_is_unavailable(shop: Shop) -> None:
    issuer = shop.issuer
    logged = {service: len(log) for service, log in shop.logs.items()}
    async with Load(shop, issuer.token("ann")).running() as load:
        await load.handle(20)

        def is_noticed() -> bool:
            logs = shop.logs
            services = ("products", "orders", "inventory", "graphql")
            return all(KEYS_UNAVAILABLE in logs[service][logged[service] :] for service in services)

        async with issuer.away():
            before, ends = load.handled, time.monotonic() + AWAY_SECONDS
            # On a busy machine a service may look for the issuer later.
            while time.monotonic() < ends or (not is_noticed() and time.monotonic() < ends + PATIENCE):
                # A new token of a known key, unless Keycloak would have to make it.
                load.token = issuer.token("ann")
                await load.handle(10)
            print(f"{load.handled - before} requests in {AWAY_SECONDS} s without the issuer")
        await load.handle(20)
    print(f"{load.handled} requests, {len(load.failed)} failed, the slowest took {load.slowest_seconds:.2f} s")
    assert load.failed == []
    assert is_noticed()
