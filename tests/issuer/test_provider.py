"""The local OpenID Connect provider: who gets which token, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import aiohttp
import msgspec
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet
from market_dev.issuer import keys
from market_dev.issuer.memory import MAX_ENTRIES, Expiring
from market_dev.stack.sign_in import CLI, TOOLS, WEB, SignIn
from market_dev.stack.topology import ports

from tests.support.clocks import FakeClock

VERIFIER = "a-verifier-of-at-least-forty-three-characters-0123"
CHALLENGE = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).decode().rstrip("=")
REDIRECT = "http://127.0.0.1:5000/"


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def request(**changes: str | None) -> dict[str, str]:
    """Return a valid authorization request of `market token`, with changes; None removes a parameter."""
    parameters = {
        "response_type": "code",
        "client_id": CLI,
        "redirect_uri": REDIRECT,
        "scope": "openid email",
        "state": "s",
        "code_challenge": CHALLENGE,
        "code_challenge_method": "S256",
        **changes,
    }
    return {name: value for name, value in parameters.items() if value is not None}


async def choose(http: aiohttp.ClientSession, sign_in: SignIn, person: str, **changes: str | None) -> dict[str, Any]:
    """Choose a person on the page, and return the parameters of the redirect."""
    url = f"{sign_in.issuer}/authorize"
    async with http.post(url, params=request(**changes), data={"person": person}, allow_redirects=False) as response:
        assert response.status == 302
        location = urlsplit(response.headers["Location"])
    assert location._replace(query="").geturl() == (changes.get("redirect_uri") or REDIRECT)
    return {name: values[0] for name, values in parse_qs(location.query).items()}


async def post(
    http: aiohttp.ClientSession, sign_in: SignIn, authorization: str = "", **form: str
) -> tuple[int, dict[str, Any]]:
    async with http.post(
        f"{sign_in.issuer}/token", data=form, headers={"Authorization": authorization} if authorization else None
    ) as response:
        assert response.headers["Cache-Control"] == "no-store"
        return response.status, await response.json()


async def exchange(
    http: aiohttp.ClientSession, sign_in: SignIn, code: str, **changes: str
) -> tuple[int, dict[str, Any]]:
    form = {
        "grant_type": "authorization_code",
        "client_id": CLI,
        "code": code,
        "redirect_uri": REDIRECT,
        "code_verifier": VERIFIER,
    }
    return await post(http, sign_in, **{**form, **changes})


async def verified(http: aiohttp.ClientSession, sign_in: SignIn, token: str) -> jwt.Token:
    """Return the token, verified with the keys that the discovery document names."""
    async with http.get(f"{sign_in.issuer}/.well-known/openid-configuration") as response:
        discovery = await response.json()
    assert discovery["issuer"] == sign_in.issuer
    async with http.get(discovery["jwks_uri"]) as response:
        document = await response.json()
    assert all("d" not in key for key in document["keys"])
    return jwt.decode(token, KeySet.import_key_set(document), algorithms=["RS256"])


async def test_a_person_gets_an_access_token_for_the_shop(http: aiohttp.ClientSession, sign_in: SignIn) -> None:
    before = int(time.time())
    chosen = await choose(http, sign_in, "ann")
    assert chosen["state"] == "s"
    status, response = await exchange(http, sign_in, chosen["code"])
    assert (status, response["token_type"], response["expires_in"]) == (200, "Bearer", 3600)
    token = await verified(http, sign_in, response["access_token"])
    assert token.header["typ"] == "at+jwt"
    claims = token.claims
    issued_at = claims.pop("iat")
    assert before <= issued_at <= time.time()
    assert claims.pop("exp") == issued_at + 3600
    assert claims.pop("jti")
    assert claims == {
        "iss": sign_in.issuer,
        "aud": "market",
        "sub": "ann",
        "client_id": CLI,
        "scope": "openid email",
        "name": "ann",
        "roles": ["buyer"],
        "email": "ann@example.test",
        "email_verified": True,
    }


async def test_the_id_token_is_for_the_client_and_has_its_nonce(http: aiohttp.ClientSession, sign_in: SignIn) -> None:
    chosen = await choose(http, sign_in, "olga", nonce="n")
    _, response = await exchange(http, sign_in, chosen["code"])
    claims = (await verified(http, sign_in, response["id_token"])).claims
    assert (claims["aud"], claims["sub"], claims["nonce"], claims["roles"]) == ([CLI], "olga", "n", ["operator"])


async def test_a_code_is_used_once(http: aiohttp.ClientSession, sign_in: SignIn) -> None:
    code = (await choose(http, sign_in, "ann"))["code"]
    assert (await exchange(http, sign_in, code))[0] == 200
    status, response = await exchange(http, sign_in, code)
    assert (status, response["error"]) == (400, "invalid_grant")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"code_verifier": VERIFIER.upper()}, "invalid_grant"),
        ({"code_verifier": ""}, "invalid_request"),
        ({"redirect_uri": "http://127.0.0.1:5001/"}, "invalid_grant"),
        ({"client_id": WEB}, "invalid_grant"),
    ],
)
async def test_a_code_needs_its_verifier_its_redirect_uri_and_its_client(
    http: aiohttp.ClientSession, sign_in: SignIn, changes: dict[str, str], error: str
) -> None:
    code = (await choose(http, sign_in, "ann"))["code"]
    status, response = await exchange(http, sign_in, code, **changes)
    assert (status, response["error"]) == (400, error)
    # Nobody can try again with the same code.
    assert (await exchange(http, sign_in, code))[0] == 400


@pytest.mark.parametrize(
    "changes",
    [
        {"code_challenge": None, "code_challenge_method": None},
        {"code_challenge_method": "plain"},
        {"code_challenge_method": None},
        {"redirect_uri": "http://127.0.0.1.evil.test/"},
        {"redirect_uri": "http://evil.test/"},
        {"redirect_uri": "http://[::1"},
        {"redirect_uri": None},
        {"client_id": WEB},
        {"client_id": TOOLS},
        {"client_id": "unknown"},
        {"client_id": None},
        {"response_type": "token"},
    ],
)
async def test_an_invalid_authorization_request_redirects_nobody(
    http: aiohttp.ClientSession, sign_in: SignIn, changes: dict[str, str | None]
) -> None:
    for method in ("GET", "POST"):
        async with http.request(
            method,
            f"{sign_in.issuer}/authorize",
            params=request(**changes),
            data={"person": "ann"} if method == "POST" else None,
            allow_redirects=False,
        ) as response:
            assert response.status == 400
            assert "Location" not in response.headers
            assert "code" not in parse_qs(urlsplit(str(response.url)).query)


async def test_somebody_unknown_cannot_sign_in(http: aiohttp.ClientSession, sign_in: SignIn) -> None:
    assert (await choose(http, sign_in, "eve"))["error"] == "access_denied"


async def test_a_refresh_token_renews_the_tokens_once(http: aiohttp.ClientSession, sign_in: SignIn) -> None:
    code = (await choose(http, sign_in, "ben"))["code"]
    _, first = await exchange(http, sign_in, code)
    form = {"grant_type": "refresh_token", "client_id": CLI, "refresh_token": first["refresh_token"]}
    status, second = await post(http, sign_in, **form)
    assert status == 200
    assert (await verified(http, sign_in, second["access_token"])).claims["sub"] == "ben"
    assert second["refresh_token"] != first["refresh_token"]
    assert await post(http, sign_in, **form) == (400, {"error": "invalid_grant"})
    assert (await post(http, sign_in, **{**form, "client_id": WEB, "refresh_token": second["refresh_token"]}))[0] == 400


@pytest.mark.parametrize(
    ("client", "audience", "role"),
    [
        (TOOLS, "market", "merchant"),
        ("products", "market-inventory", "service"),
        ("orders", "market-inventory", "service"),
    ],
)
async def test_a_program_signs_in_as_itself(
    http: aiohttp.ClientSession, sign_in: SignIn, client: str, audience: str, role: str
) -> None:
    auth = aiohttp.encode_basic_auth(client, sign_in.secrets[client])
    status, response = await post(http, sign_in, auth, grant_type="client_credentials")
    assert status == 200
    assert "refresh_token" not in response
    claims = (await verified(http, sign_in, response["access_token"])).claims
    assert (claims["sub"], claims["aud"], claims["roles"]) == (client, audience, [role])
    assert "email" not in claims


@pytest.mark.parametrize("client", [TOOLS, CLI, "unknown"])
async def test_a_program_without_its_secret_gets_no_token(
    http: aiohttp.ClientSession, sign_in: SignIn, client: str
) -> None:
    auth = aiohttp.encode_basic_auth(client, "guessed")
    status, response = await post(http, sign_in, auth, grant_type="client_credentials")
    assert (status, response["error"]) == (401, "invalid_client")
    status, response = await post(http, sign_in, grant_type="client_credentials", client_id=client)
    assert status in (400, 401)
    assert "access_token" not in response


async def test_the_page_names_everybody_who_can_sign_in(http: aiohttp.ClientSession, sign_in: SignIn) -> None:
    web = sign_in.provider_settings(ports(8080))
    (redirect_uri, _) = next(client for client in web.clients if client.id == WEB).redirect_uris
    assert redirect_uri == "http://127.0.0.1:8080/graphql"
    async with http.get(f"{sign_in.issuer}/authorize", params=request()) as response:
        text = await response.text()
        policy = response.headers["Content-Security-Policy"]
    for person in sign_in.people:
        assert f'value="{person.name}"' in text
    assert "form-action 'self' http://127.0.0.1:5000" in policy
    assert "frame-ancestors 'none'" in policy


async def test_only_the_page_of_the_gateway_may_request_tokens_from_a_browser(
    http: aiohttp.ClientSession, sign_in: SignIn
) -> None:
    async def allowed(origin: str) -> str | None:
        async with http.post(f"{sign_in.issuer}/token", headers={"Origin": origin}) as response:
            return response.headers.get("Access-Control-Allow-Origin")

    gateway = f"http://127.0.0.1:{sign_in.port_base}"
    assert await allowed(gateway) == gateway
    assert await allowed("http://evil.test") is None
    assert await allowed("http://127.0.0.1:5000") is None


async def test_another_host_name_is_refused(http: aiohttp.ClientSession, sign_in: SignIn) -> None:
    async with http.get(f"{sign_in.issuer}/keys", headers={"Host": "evil.test"}) as response:
        assert response.status == 400


async def test_a_large_form_is_refused(http: aiohttp.ClientSession, sign_in: SignIn) -> None:
    async with http.post(f"{sign_in.issuer}/token", data={"grant_type": "x" * 20_000}) as response:
        assert response.status == 400
        assert await response.json() == {"error": "invalid_request", "error_description": "The form is too large."}
    async with http.get(f"{sign_in.issuer}/authorize?" + "&".join(f"p{n}=1" for n in range(50))) as response:
        assert response.status == 400


def test_the_keys_are_kept_and_only_their_owner_can_read_them(tmp_path: Path) -> None:
    created = keys.load_or_create(tmp_path)
    assert keys.load_or_create(tmp_path).as_dict(private=True) == created.as_dict(private=True)
    assert stat.S_IMODE((tmp_path / "keys.json").stat().st_mode) == 0o600


def test_an_entry_is_forgotten_when_its_time_is_over_or_there_are_too_many(clock: FakeClock) -> None:
    entries: Expiring[int] = Expiring(60, clock=clock)
    entries.put("a", 1)
    clock.now += 59
    assert entries.get("a") == 1
    clock.now += 1
    assert entries.get("a") is None
    for number in range(MAX_ENTRIES + 1):
        entries.put(str(number), number)
    assert entries.get("0") is None
    assert entries.get("1") == 1


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.test"])
def test_it_refuses_to_listen_where_others_could_reach_it(tmp_path: Path, host: str) -> None:
    settings = tmp_path / "settings.json"
    settings.write_bytes(msgspec.json.encode({}))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "market_dev.issuer", "--host", host, "--port", "1"),
            *("--directory", tmp_path, "--settings", settings),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == f"issuer: --host must be a loopback address such as 127.0.0.1, got {host}\n"
