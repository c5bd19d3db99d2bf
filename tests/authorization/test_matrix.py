"""Every operation of the contracts, called by everybody: what is permitted comes from market.contracts.access alone.

After each refusal the stores are read directly, and nothing has changed. After each permitted call its effect is there.
"""

from __future__ import annotations

from typing import Any

import pytest

from market.contracts.access import Permission
from market.kit.auth.identity import Role
from tests.authorization import gateway_calls, grpc_calls, rest_calls
from tests.authorization.callers import CALLERS, NOBODY, OWNER, Caller
from tests.authorization.calls import Call, Outcome, Reply, Target, create_target
from tests.authorization.operations import TABLES, Operation, operations
from tests.authorization.shop import Shop

OPERATIONS = operations()
CALLS: dict[str, Call] = {**rest_calls.CALLS, **gateway_calls.CALLS, **grpc_calls.CALLS}


def expected_outcome(operation: Operation, call: Call, caller: Caller) -> Outcome:
    """Return what the table says of the call. Raises KeyError if it has no entry."""
    access = operation.access
    if not call.reads_token:
        caller = NOBODY
    if not caller.has_valid_token:
        return Outcome.UNAUTHENTICATED
    permission = access.anonymous if caller.role is None else Permission(getattr(access, caller.role.value))
    if caller.role is Role.SERVICE and access.callers and caller.service not in access.callers:
        permission = Permission.NO
    if permission is Permission.NO:
        return Outcome.UNAUTHENTICATED if caller.role is None else Outcome.FORBIDDEN
    if permission is Permission.OWN and caller.subject != OWNER:
        return call.other
    return Outcome.ALLOWED


class Watched:
    """The shop's stores as they were after the last permitted change, and what refused calls are sent for."""

    def __init__(self, shop: Shop, target: Target, state: dict[str, Any]) -> None:
        self.shop = shop
        self.target = target
        self.state = state

    async def assert_unchanged(self, *, except_cache: bool = False) -> None:
        """Fail if anything has changed. `except_cache`: reads may fill the cache of availability."""
        before, self.state = self.state, await self.shop.stores.everything()
        changed = {name for name in before if before[name] != self.state[name]}
        assert changed <= ({"redis"} if except_cache else set())


@pytest.fixture(scope="module")
async def watched(shop: Shop) -> Watched:
    target = await create_target(shop)
    # The entries of the cache that reads by everybody would add.
    await shop.rest("products", "GET", f"/api/product/{target.product_id}")
    return Watched(shop, target, await shop.stores.settled())


@pytest.mark.parametrize("caller", CALLERS, ids=str)
@pytest.mark.parametrize("operation", OPERATIONS, ids=str)
async def test_everybody_may_do_what_the_table_permits_and_nothing_else(
    watched: Watched, operation: Operation, caller: Caller
) -> None:
    shop, call = watched.shop, CALLS[str(operation)]
    expected = expected_outcome(operation, call, caller)
    creates = call.changes and expected is Outcome.ALLOWED
    target = await create_target(shop) if creates else watched.target
    token = caller.make_token(shop.issuer)

    reply = await call.send(shop, target, token)

    assert reply.outcome is expected, reply.text
    if expected is Outcome.ALLOWED:
        await call.check(shop, target, reply.value)
    else:
        assert_is_refusal(reply, caller, token)
    if creates:
        watched.state = await shop.stores.settled()
    else:
        await watched.assert_unchanged(except_cache=expected is Outcome.ALLOWED)


def assert_is_refusal(reply: Reply, caller: Caller, token: str | None) -> None:
    """Fail unless the refusal says which rule was broken (RFC 6750) and nothing else."""
    if token is not None:
        assert token not in reply.text + reply.challenge
    if reply.challenge and reply.outcome is Outcome.UNAUTHENTICATED:
        if token is None:
            assert reply.challenge == 'Bearer realm="market"'
        else:
            assert reply.challenge.startswith('Bearer realm="market", error="invalid_token", error_description="')
    if reply.challenge and reply.outcome is Outcome.FORBIDDEN:
        assert 'error="insufficient_scope"' in reply.challenge
    assert OWNER not in reply.text or reply.outcome is Outcome.FORBIDDEN


def test_every_operation_of_the_contracts_is_in_the_table() -> None:
    assert [str(operation) for operation in OPERATIONS if operation.key not in TABLES[operation.surface]] == []


def test_the_table_has_no_operation_that_the_contracts_do_not_have() -> None:
    entries = {Operation(surface, key) for surface, table in TABLES.items() for key in table}
    assert sorted(map(str, entries - set(OPERATIONS))) == []


async def test_head_requests_need_what_get_requests_need(watched: Watched) -> None:
    shop, target = watched.shop, watched.target
    for service, path in (
        ("products", f"/api/product/{target.product_id}?stock=true"),
        ("products", "/api/product?stock=true"),
        ("orders", f"/api/order/{target.order_id}"),
        ("orders", "/api/order"),
    ):
        assert (await shop.rest(service, "HEAD", path)).status_code == 401
        assert (await shop.rest(service, "HEAD", path, shop.token("mia", "merchant"))).status_code == 200


async def test_admin_ports_have_no_other_route(shop: Shop) -> None:
    for url in shop.admin.values():
        for path in ("/", "/reconcile", "/repair", "/dead-letters", "/replay", "/migrate", "/debug", "/config"):
            for method in ("GET", "POST"):
                assert (await shop.http.request(method, url + path)).status_code == 404
