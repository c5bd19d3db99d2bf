"""Cross-origin requests: which origins may read what, by configuration."""

from __future__ import annotations

import httpx
import msgspec
import pytest
from starlette.requests import Request
from starlette.responses import Response

from market.kit.config import Http
from market.kit.errors import Unavailable
from market.kit.http.responses import json_response

from .http_app import serving

SHOP = "https://www.example.com"
PREFLIGHT = {"access-control-request-method": "PUT", "access-control-request-headers": "content-type,if-match"}


async def one(_: Request) -> Response:
    return json_response({"id": 1}, 200, {"ETag": '"3"', "Vary": "accept"})


async def fail(_: Request) -> Response:
    raise Unavailable("unavailable")


ROUTES = {"GET /one": one, "PUT /one": one, "GET /fail": fail}


def cors(response: httpx.Response) -> dict[str, str]:
    return {n: v for n, v in response.headers.items() if n.startswith("access-control-")}


async def test_by_default_no_origin_is_allowed() -> None:
    async with serving(ROUTES) as http:
        response = await http.get("/one", headers={"origin": SHOP})
        assert (response.status_code, cors(response), response.headers["vary"]) == (200, {}, "accept")
        assert (await http.options("/one", headers={"origin": SHOP, **PREFLIGHT})).status_code == 405


async def test_a_configured_origin_may_read_the_response_and_its_headers() -> None:
    async with serving(ROUTES, cors_origins=("https://other.example.com:8443", SHOP)) as http:
        response = await http.get("/one", headers={"origin": SHOP})
        exposed = response.headers["access-control-expose-headers"].split(", ")
        assert {"ETag", "Location", "Retry-After", "Idempotency-Replayed", "X-Request-Id"} <= set(exposed)
        assert response.headers["access-control-allow-origin"] == SHOP
        assert response.headers["access-control-allow-credentials"] == "true"
        assert response.headers.get_list("vary", split_commas=True) == ["accept", "origin"]
        # Errors too, or a page would see only that the request failed.
        for path, status in (("/fail", 503), ("/none", 404)):
            response = await http.get(path, headers={"origin": SHOP})
            assert (response.status_code, response.headers["access-control-allow-origin"]) == (status, SHOP)


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", "https://www.example.com.evil.example", "http://www.example.com", f"{SHOP}:8443", "null"],
)
async def test_another_origin_is_not_allowed(origin: str) -> None:
    async with serving(ROUTES, cors_origins=(SHOP,)) as http:
        response = await http.get("/one", headers={"origin": origin})
        # A cache must not send this response to an origin that is allowed.
        assert (cors(response), response.headers.get_list("vary", split_commas=True)) == ({}, ["accept", "origin"])
        refused = await http.options("/one", headers={"origin": origin, **PREFLIGHT})
        assert (refused.status_code, cors(refused)) == (405, {})
        assert "origin" in (await http.get("/one")).headers.get_list("vary", split_commas=True)


async def test_a_preflight_request_gets_methods_and_headers() -> None:
    async with serving(ROUTES, cors_origins=(SHOP,)) as http:
        response = await http.options("/one", headers={"origin": SHOP, **PREFLIGHT})
        assert (response.status_code, response.content) == (204, b"")
        assert response.headers["access-control-allow-origin"] == SHOP
        assert response.headers["access-control-allow-methods"] == "GET, HEAD, PUT"
        allowed = {h.lower() for h in response.headers["access-control-allow-headers"].split(", ")}
        assert {"content-type", "idempotency-key", "if-match", "if-none-match", "traceparent"} <= allowed
        assert response.headers["access-control-max-age"] == "7200"
        assert response.headers["access-control-allow-credentials"] == "true"
        assert (await http.options("/none", headers={"origin": SHOP, **PREFLIGHT})).status_code == 404
        # OPTIONS itself is not a method of the API.
        assert (await http.options("/one", headers={"origin": SHOP})).status_code == 405


async def test_any_origin_is_allowed_only_without_credentials() -> None:
    async with serving(ROUTES, cors_origins=("*",)) as http:
        for response in (
            await http.get("/one", headers={"origin": "https://anyone.example"}),
            await http.options("/one", headers={"origin": "null", **PREFLIGHT}),
        ):
            assert response.headers["access-control-allow-origin"] == "*"
            assert "access-control-allow-credentials" not in response.headers
            assert "origin" not in response.headers.get_list("vary", split_commas=True)
    async with serving(ROUTES, cors_origins=("*", SHOP)) as http:
        listed = await http.get("/one", headers={"origin": SHOP})
        assert listed.headers["access-control-allow-origin"] == SHOP
        other = await http.get("/one", headers={"origin": "https://anyone.example"})
        assert other.headers["access-control-allow-origin"] == "*"
        assert "access-control-allow-credentials" not in other.headers
        assert "origin" in other.headers.get_list("vary", split_commas=True)


@pytest.mark.parametrize(
    "origin",
    [
        "www.example.com",
        "https://www.example.com/",
        "https://WWW.example.com",
        "https://www.example.com:443",
        "http://localhost:80",
        "https://*.example.com",
        "null",
        "https://a.example https://b.example",
    ],
)
def test_what_no_browser_sends_as_an_origin_is_a_configuration_error(origin: str) -> None:
    with pytest.raises(msgspec.ValidationError, match="cors_origins must be \\* or origins such as"):
        msgspec.convert({"port": 1, "cors_origins": [origin]}, Http)


@pytest.mark.parametrize("origin", ["*", SHOP, "http://localhost:3000", "http://127.0.0.1:8080", "http://[::1]:8080"])
def test_origins_as_browsers_send_them_are_accepted(origin: str) -> None:
    assert msgspec.convert({"port": 1, "cors_origins": [origin]}, Http).cors_origins == (origin,)
