"""Who may do what: the table of permissions, and its enforcement by the HTTP edge and by gRPC servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import grpc.aio
import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from market.kit.auth.authenticator import Authenticator
from market.kit.auth.identity import ANONYMOUS, UNRESTRICTED, Identity, Role, identity, token
from market.kit.auth.permissions import Access, Permission, check_table
from market.kit.auth.rejection import TokenRejected
from market.kit.auth.token_cache import TokenCache
from market.kit.auth.verifier import Verified
from market.kit.config import Http
from market.kit.errors import Forbidden, Unauthenticated
from market.kit.http import edge
from market.kit.http.caller import caller
from market.kit.http.responses import json_response
from market.kit.rpc.server import endpoint

NO, OWN, YES = Permission.NO, Permission.OWN, Permission.YES
EVERYBODY = Access(anonymous=YES, buyer=YES, merchant=YES, operator=YES, service=YES)
ORDERS = Access(anonymous=NO, buyer=OWN, merchant=YES, operator=NO, service=NO)
ONLY_ORDERS = Access(anonymous=NO, buyer=NO, merchant=NO, operator=NO, service=YES, callers=frozenset({"orders"}))

ANN = Identity("ann", frozenset({Role.BUYER}), "ann@example.com")
OPERATOR = Identity("root", frozenset({Role.OPERATOR}))
BOTH = Identity("eve", frozenset({Role.OPERATOR, Role.MERCHANT}))
ORDER_SERVICE = Identity("orders-client", frozenset({Role.SERVICE}), service="orders")
PRODUCT_SERVICE = Identity("products-client", frozenset({Role.SERVICE}), service="products")
WITHOUT_NAME = Identity("batch", frozenset({Role.SERVICE}))


class Tokens:
    """A verifier whose tokens are the subjects of known identities."""

    def __init__(self) -> None:
        self.verified: list[str] = []
        self._known = {who.subject: who for who in (ANN, OPERATOR, BOTH, ORDER_SERVICE, PRODUCT_SERVICE, WITHOUT_NAME)}

    async def verify(self, text: str, now: float) -> Verified:
        self.verified.append(text)
        if text not in self._known:
            raise TokenRejected("signature", "has an invalid signature")
        return Verified(self._known[text], now + 60, "key")


def authenticator() -> Authenticator:
    return Authenticator(Tokens(), TokenCache(100, 1_000_000))


@pytest.mark.parametrize(
    ("access", "who", "permission"),
    [
        (ORDERS, ANONYMOUS, NO),
        (ORDERS, ANN, OWN),
        (ORDERS, OPERATOR, NO),
        (ORDERS, BOTH, YES),
        (ORDERS, ORDER_SERVICE, NO),
        (ORDERS, UNRESTRICTED, YES),
        (EVERYBODY, ANONYMOUS, YES),
        (EVERYBODY, WITHOUT_NAME, YES),
        (ONLY_ORDERS, ORDER_SERVICE, YES),
        (ONLY_ORDERS, PRODUCT_SERVICE, NO),
        (ONLY_ORDERS, WITHOUT_NAME, NO),
        (ONLY_ORDERS, BOTH, NO),
        (ONLY_ORDERS, UNRESTRICTED, YES),
    ],
)
def test_a_caller_has_the_widest_permission_of_its_roles(access: Access, who: Identity, permission: Permission) -> None:
    assert access.permission(who) is permission


def test_a_refusal_says_what_is_missing() -> None:
    with pytest.raises(Unauthenticated) as without_token:
        ORDERS.require(ANONYMOUS)
    assert without_token.value.challenge == 'Bearer realm="market"'
    with pytest.raises(Forbidden, match=r"^this requires the role buyer or merchant$") as without_role:
        ORDERS.require(OPERATOR)
    assert without_role.value.challenge == 'Bearer realm="market", error="insufficient_scope"'
    with pytest.raises(Forbidden, match=r"^this requires the identity of a service: orders$"):
        ONLY_ORDERS.require(PRODUCT_SERVICE)
    assert Forbidden("user must be the caller").challenge is None


def test_an_operation_without_an_entry_is_an_error() -> None:
    check_table({"GET /a": EVERYBODY}, ["GET /a"])
    with pytest.raises(ValueError, match="no entry for DELETE /a, POST /a"):
        check_table({"GET /a": EVERYBODY}, ["GET /a", "POST /a", "DELETE /a"])


async def who_am_i(request: Request) -> Response:
    who = identity.get()
    return json_response(
        {"subject": who.subject, "roles": sorted(who.roles), "token": token.get(), "caller": caller(request)}
    )


ROUTES = {"GET /open": who_am_i, "POST /orders": who_am_i}
TABLE = {"GET /open": EVERYBODY, "POST /orders": ORDERS}


@asynccontextmanager
async def client(table: Mapping[str, Access] | None = None, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    app = edge.application(
        ROUTES, Http(port=1, **settings), authenticator=None if table is None else authenticator(), access=table
    )
    transport = httpx.ASGITransport(app=app, client=("203.0.113.7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        yield http


def bearer(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


async def test_without_an_authenticator_everything_is_permitted_and_tokens_are_ignored() -> None:
    async with client() as http:
        response = await http.post("/orders", headers=bearer("anything"))
    assert response.json() == {
        "subject": "",
        "roles": ["buyer", "merchant", "operator", "service"],
        "token": "",
        "caller": "address:203.0.113.7",
    }


async def test_the_edge_knows_the_caller_by_its_token() -> None:
    async with client(TABLE) as http:
        response = await http.post("/orders", headers=bearer("ann"))
        anonymous = await http.get("/open")
    assert response.json() == {"subject": "ann", "roles": ["buyer"], "token": "ann", "caller": "subject:ann"}
    assert anonymous.json() == {"subject": "", "roles": [], "token": "", "caller": "address:203.0.113.7"}


async def test_the_edge_refuses_callers_whom_the_table_does_not_permit() -> None:
    async with client(TABLE) as http:
        nobody = await http.post("/orders")
        operator = await http.post("/orders", headers=bearer("root"))
    assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, 'Bearer realm="market"')
    assert nobody.json() == {
        "type": "urn:market:problem:unauthenticated",
        "title": "Unauthenticated",
        "status": 401,
        "detail": "this requires a bearer token",
    }
    assert operator.status_code == 403
    assert operator.headers["www-authenticate"] == 'Bearer realm="market", error="insufficient_scope"'
    assert operator.json()["type"] == "urn:market:problem:forbidden"


@pytest.mark.parametrize("path", ["/open", "/orders"])
async def test_an_invalid_token_is_refused_even_where_nobody_needs_one(path: str) -> None:
    async with client(TABLE) as http:
        response = await http.request("GET" if path == "/open" else "POST", path, headers=bearer("forged"))
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == (
        'Bearer realm="market", error="invalid_token", error_description="the token has an invalid signature"'
    )
    assert response.json()["detail"] == "the token has an invalid signature"


@pytest.mark.parametrize("value", ["Basic YTpi", "Bearer", "Bearer ", "ann"])
async def test_another_scheme_is_refused(value: str) -> None:
    async with client(TABLE) as http:
        response = await http.get("/open", headers={"authorization": value})
    assert response.status_code == 401
    assert response.json()["detail"] == "the token must be sent as Authorization: Bearer"


async def test_two_tokens_are_refused() -> None:
    async with client(TABLE) as http:
        headers = [("authorization", "Bearer ann"), ("authorization", "Bearer root")]
        response = await http.get("/open", headers=headers)
    assert response.status_code == 401
    assert response.json()["detail"] == "the token must be sent in a single Authorization header"


async def test_head_and_preflight_requests_follow_the_table() -> None:
    async with client({"GET /open": ORDERS, "POST /orders": ORDERS}, cors_origins=("https://shop.example",)) as http:
        assert (await http.head("/open")).status_code == 401
        assert (await http.head("/open", headers=bearer("ann"))).status_code == 200
        preflight = {"origin": "https://shop.example", "access-control-request-method": "POST"}
        assert (await http.options("/orders", headers=preflight)).status_code == 204
        assert (await http.delete("/orders")).status_code == 405


async def test_routes_without_an_entry_do_not_start() -> None:
    with pytest.raises(ValueError, match="no entry for POST /orders"):
        edge.application(ROUTES, Http(port=1), authenticator=authenticator(), access={"GET /open": EVERYBODY})


async def test_each_subject_has_its_own_rate_limit() -> None:
    async with client(TABLE, max_requests_per_second_per_caller=0.01, max_burst_per_caller=2) as http:
        statuses = [(await http.get("/open", headers=bearer("ann"))).status_code for _ in range(2)]
        refused = await http.get("/open", headers=bearer("ann"))
        other = await http.get("/open", headers=bearer("root"))
        nobody = await http.get("/open")
    assert statuses == [200, 200]
    assert refused.status_code == 429
    # A request each 100 s, less the time that has passed meanwhile.
    assert 1 <= int(refused.headers["retry-after"]) <= 100
    assert refused.json()["detail"] == "at most 0.01 requests per second are allowed for one caller"
    assert (other.status_code, nobody.status_code) == (200, 200)


async def test_refused_requests_are_limited_by_address_without_a_valid_token_and_else_by_subject() -> None:
    async with client(TABLE, max_requests_per_second_per_caller=0.01, max_burst_per_caller=2) as http:

        async def place(text: str | None) -> tuple[int, str | None]:
            response = await http.post("/orders", headers=bearer(text) if text else {})
            return response.status_code, response.headers.get("retry-after")

        assert [await place("forged"), await place(None)] == [(401, None)] * 2
        assert [await place("forged-again"), await place(None)] == [(429, "100")] * 2
        # Who has the same address and a valid token is served.
        assert [await place("ann") for _ in range(3)] == [(200, None), (200, None), (429, "100")]
        assert [await place("root") for _ in range(3)] == [(403, None), (403, None), (429, "100")]


async def test_a_service_that_calls_on_its_own_behalf_has_no_rate_limit() -> None:
    limits = {"max_requests_per_second_per_caller": 0.01, "max_burst_per_caller": 2}
    async with client(TABLE, **limits, trusted_proxies=("203.0.113.0/24",)) as http:
        assert {(await http.get("/open")).status_code for _ in range(5)} == {200}
        # Others have, even if their requests come from the same address.
        for headers in ({"x-forwarded-for": "198.51.100.1"}, bearer("ann")):
            statuses = [(await http.get("/open", headers=headers)).status_code for _ in range(3)]
            assert statuses == [200, 200, 429]
    async with client(TABLE, **limits, trusted_proxies=("198.51.100.0/24",)) as http:
        assert [(await http.get("/open")).status_code for _ in range(3)] == [200, 200, 429]


async def test_a_method_is_only_for_the_services_of_its_entry() -> None:
    handled: list[str | None] = []

    async def handle(_: object) -> str:
        handled.append(identity.get().service)
        return "done"

    method = endpoint("Reserve", handle, authenticator=authenticator(), access={"Reserve": ONLY_ORDERS})
    assert await method(None, Call("orders-client")) == "done"
    for text, code in [
        (None, grpc.StatusCode.UNAUTHENTICATED),
        ("forged", grpc.StatusCode.UNAUTHENTICATED),
        ("products-client", grpc.StatusCode.PERMISSION_DENIED),
        ("ann", grpc.StatusCode.PERMISSION_DENIED),
    ]:
        with pytest.raises(Aborted) as aborted:
            await method(None, Call(text))
        assert aborted.value.args[0] is code
    assert handled == ["orders"]


async def test_without_an_authenticator_every_service_may_call() -> None:
    async def handle(_: object) -> bool:
        return identity.get() is UNRESTRICTED

    assert await endpoint("Reserve", handle)(None, Call("forged"))


def test_methods_without_an_entry_do_not_start() -> None:
    async def handle(_: object) -> None: ...

    with pytest.raises(ValueError, match="no entry for GetStock"):
        endpoint("GetStock", handle, authenticator=authenticator(), access={"Reserve": ONLY_ORDERS})


class Aborted(Exception):
    """How gRPC ends a call that is aborted."""


class Call:
    """The context of a gRPC call with this token."""

    def __init__(self, text: str | None) -> None:
        self._metadata = () if text is None else (("authorization", f"Bearer {text}"),)

    def time_remaining(self) -> float:
        return 3.0

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    async def abort(self, *status: object) -> None:
        raise Aborted(*status)
