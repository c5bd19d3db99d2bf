"""The tokens with which the commands sign in, and the client of the shop that sends them."""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from market_dev import tokens
from market_dev.shop_client import RequestRejected, ShopClient, ShopUnavailable, SignInRequired
from market_dev.stack import sign_in as stack_sign_in
from market_dev.stack.sign_in import SignIn
from market_dev.stack.topology import ports
from market_dev.tokens import Credentials, SignInFailed


def claims(token: str) -> dict[str, Any]:
    payload = token.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return decoded


class Shop:
    """A shop that requires a token of the subject `market-tools`; the next `refusals` tokens are refused as well."""

    def __init__(self) -> None:
        self.url = ""
        self.received: list[str | None] = []
        self.refusals = 0

    async def create_product(self, request: web.Request) -> web.StreamResponse:
        authorization = request.headers.get("Authorization")
        self.received.append(authorization)
        if authorization is None or self.refusals:
            self.refusals = max(0, self.refusals - 1)
            problem = {"type": "urn:market:problem:unauthenticated", "status": 401, "detail": "the token has expired"}
            return web.json_response(problem, status=401)
        if claims(authorization.removeprefix("Bearer "))["sub"] != "market-tools":
            return web.json_response({"type": "urn:market:problem:forbidden", "detail": "no"}, status=403)
        return web.json_response({"id": "p"}, status=201)


@pytest.fixture
async def shop() -> AsyncIterator[Shop]:
    shop = Shop()
    app = web.Application()
    app.router.add_post("/api/product", shop.create_product)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    shop.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield shop
    await runner.cleanup()


async def test_market_token_gets_the_token_of_a_person(sign_in: SignIn) -> None:
    assert claims(await tokens.person_token(sign_in, "mia"))["roles"] == ["merchant"]
    with pytest.raises(SignInFailed, match="nobody is called eve: ann, ben, mia, olga can sign in"):
        await tokens.person_token(sign_in, "eve")


async def test_an_issuer_that_does_not_respond_is_reported(sign_in: SignIn, stopped_issuer: str) -> None:
    with pytest.raises(SignInFailed, match="no response from the issuer"):
        await tokens.person_token(msgspec.structs.replace(sign_in, issuer=stopped_issuer), "ann")


@pytest.mark.parametrize("issuer", ["http://issuer.test", "ftp://127.0.0.1", "issuer.test", "http://127.0.0.1.test"])
def test_no_secret_is_sent_to_an_issuer_without_https(issuer: str) -> None:
    with pytest.raises(SignInFailed, match="issuer must be"):
        Credentials(issuer, "market-tools", "s").tokens()


def test_the_credentials_come_from_the_environment_or_the_data_directory(sign_in: SignIn, tmp_path: Path) -> None:
    port_base = sign_in.port_base
    assert Credentials.find(tmp_path, port_base, None, {}) is None
    sign_in.write(tmp_path)
    assert stat.S_IMODE((tmp_path / "sign-in.json").stat().st_mode) == 0o600
    assert Credentials.find(tmp_path, port_base, None, {}) == Credentials.of_stack(sign_in)
    # Those of the local stack are for the local stack alone.
    assert Credentials.find(tmp_path, port_base + 1, None, {}) is None
    assert Credentials.find(tmp_path, port_base, "https://shop.example", {}) is None
    environ = {"MARKET_ISSUER": "https://i.example", "MARKET_CLIENT_ID": "c", "MARKET_CLIENT_SECRET": "s"}
    expected = Credentials("https://i.example", "c", "s")
    assert Credentials.find(tmp_path, port_base, "https://shop.example", environ) == expected
    assert Credentials.find(tmp_path, port_base, None, environ) == expected
    del environ["MARKET_CLIENT_SECRET"]
    with pytest.raises(SignInFailed, match="MARKET_CLIENT_SECRET must be set, too"):
        Credentials.find(tmp_path, port_base, None, environ)
    stack_sign_in.remove(tmp_path)
    assert stack_sign_in.read(tmp_path, port_base) is None


def test_secrets_are_kept_and_are_in_no_representation(sign_in: SignIn, tmp_path: Path) -> None:
    again = SignIn.of_stack("local", tmp_path, {"issuer": 1}, 1)
    assert again.secrets == sign_in.secrets
    assert stat.S_IMODE((tmp_path / "client-secrets.json").stat().st_mode) == 0o600
    shown = repr(sign_in) + repr(sign_in.provider_settings(ports(8080))) + repr(Credentials.of_stack(sign_in))
    assert not any(secret in shown for secret in sign_in.secrets.values())


async def test_the_client_of_the_shop_signs_in(sign_in: SignIn, shop: Shop) -> None:
    async with ShopClient(shop.url, shop.url, credentials=Credentials.of_stack(sign_in)) as client:
        assert (await client.create_product({}, "k")).id == "p"
        # The issuer may have new keys: the request is repeated once, with another token.
        shop.refusals = 1
        assert (await client.create_product({}, "k")).id == "p"
        assert len(set(shop.received)) == 2
        shop.refusals = 2
        with pytest.raises(SignInRequired, match="the shop refuses the token: the token has expired"):
            await client.create_product({}, "k")


async def test_the_client_of_the_shop_without_credentials_says_that_it_needs_them(shop: Shop) -> None:
    async with ShopClient(shop.url, shop.url) as client:
        with pytest.raises(SignInRequired, match=r"^the shop requires sign-in$"):
            await client.create_product({}, "k")
    assert shop.received == [None]


async def test_a_client_that_may_not_do_it_is_rejected(sign_in: SignIn, shop: Shop) -> None:
    credentials = Credentials.of_stack(sign_in, "orders")
    async with ShopClient(shop.url, shop.url, credentials=credentials) as client:
        with pytest.raises(RequestRejected, match="403 forbidden"):
            await client.create_product({}, "k")


async def test_a_wrong_secret_is_reported_without_the_secret(sign_in: SignIn, shop: Shop) -> None:
    credentials = Credentials(sign_in.issuer, "market-tools", "a-wrong-secret")
    async with ShopClient(shop.url, shop.url, retry_seconds=0, credentials=credentials) as client:
        with pytest.raises(ShopUnavailable) as refused:
            await client.create_product({}, "k")
    assert "cannot sign in: this service has no token: the token endpoint responds with status 401" in str(
        refused.value
    )
    assert "a-wrong-secret" not in str(refused.value)
    assert shop.received == []
