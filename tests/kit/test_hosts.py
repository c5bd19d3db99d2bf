"""Which hosts requests may name: in the mode open on this machine, and elsewhere."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response

from market.kit.auth.permissions import Access, Permission
from market.kit.config import Http
from market.kit.http import edge
from market.kit.http.responses import json_response

YES = Permission.YES
EVERYBODY = Access(anonymous=YES, buyer=YES, merchant=YES, operator=YES, service=YES)


async def respond(_: Request) -> Response:
    return json_response({})


async def send(host: str, app: Any) -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app)) as http:
        return await http.post("http://127.0.0.1/", headers={"Host": host})


def app(authenticator: Any = None, **http: Any) -> Any:
    return edge.application(
        {"POST /": respond}, Http(port=1, **http), authenticator=authenticator, access={"POST /": EVERYBODY}
    )


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8080",
        "shop.localhost:8080",
        "localhost.",
        "127.0.0.1",
        "127.8.0.1:8080",
        "[::1]",
        "[::1]:8080",
        # A name that an attacker controls cannot be an address.
        "192.168.49.2:30080",
    ],
)
async def test_requests_to_this_machine_are_handled(host: str) -> None:
    assert (await send(host, app())).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["attacker.example", "attacker.example:8080", "localhost.attacker.example", "127.0.0.1.attacker.example", ""],
)
async def test_another_name_is_refused_where_nobody_signs_in(host: str) -> None:
    for listener in ("127.0.0.1", "localhost", "::1"):
        response = await send(host, app(host=listener))
        assert response.status_code == 421
        assert response.json() == {
            "type": "urn:market:problem:misdirected-request",
            "title": "Misdirected request",
            "status": 421,
            "detail": "Host: must be localhost or an IP address, because this shop does not require sign-in; other "
            "names must be listed in http.allowed_hosts",
            "errors": [
                {
                    "field": "Host",
                    "reason": "must be localhost or an IP address, because this shop does not require sign-in; other "
                    "names must be listed in http.allowed_hosts",
                }
            ],
        }


async def test_configured_names_are_allowed() -> None:
    configured = app(allowed_hosts=("shop.example",))
    assert (await send("Shop.Example:8443", configured)).status_code == 200
    assert (await send("www.shop.example", configured)).status_code == 421


async def test_a_service_on_a_network_or_with_sign_in_has_any_name() -> None:
    """Such as product-service in a cluster, or the address of a pod that a probe names."""
    for other in (app(host="0.0.0.0"), app(host="10.0.0.1"), app(authenticator=object())):
        assert (await send("product-service:8080", other)).status_code == 200
