"""Storefronts at which people sign in at the local provider, with a gateway that notes whose token each call has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
from market_dev.issuer import keys
from market_dev.issuer.web import app as provider
from market_dev.stack.sign_in import SHOP, SignIn
from market_dev.stack.topology import ports
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from market.kit.auth.config import Auth
from market.kit.clock import utc_now
from market.kit.config import Http, HttpUpstream, Listen
from market.kit.http.server import HttpServer
from market.kit.process.lifecycle import Process
from market.storefront.app import build
from market.storefront.config import Config, Cookies
from market.storefront.config import SignIn as SignInSettings
from tests.storefront.visitor import Document, Form
from tests.support.ports import free_port, free_port_base

OLD_SECRET, NEW_SECRET = "o" * 40, "n" * 40
_PRODUCTS = {"items": [], "total": 0, "totalExact": True, "next": None, "suggested": False}
_ORDERS = {"items": [], "next": None}


class Clock:
    """The time, which a test moves forwards."""

    def __init__(self) -> None:
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        return utc_now() + self._ahead

    def advance(self, seconds: float) -> None:
        self._ahead += timedelta(seconds=seconds)


class Provider:
    """The local provider, in this process. `renewals` counts the requests for a renewal; `held` lets them wait."""

    def __init__(self, sign_in: SignIn, port_of: dict[str, int], directory: Path) -> None:
        self._settings = sign_in.provider_settings(port_of)
        self._keys = keys.load_or_create(directory)
        self._url = sign_in.issuer
        self._port = port_of["issuer"]
        self._app: ASGIApp = self._new_app()
        self._server: HttpServer | None = None
        self.renewals = 0
        self.arrived = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/token":
            message = await receive()
            if b"grant_type=refresh_token" in message["body"]:
                self.renewals += 1
                self.arrived.set()
                await self.may_answer.wait()

            async def again() -> Any:
                return message

            await self._app(scope, again, send)
        else:
            await self._app(scope, receive, send)

    async def start(self) -> None:
        self._server = HttpServer(self, "127.0.0.1", self._port)
        await self._server.start()

    async def stop(self) -> None:
        if self._server is not None:
            await self._server.stop(0)
            self._server = None

    def forget(self) -> None:
        """Forget what was granted, as a provider that was restarted has."""
        self._app = self._new_app()

    def _new_app(self) -> ASGIApp:
        return provider(self._settings, self._keys, self._url)


@dataclass
class Gateway:
    """Responds to every query with empty lists, or with the error `code`. `authorizations`: the header of each call."""

    authorizations: list[str | None] = field(default_factory=list)
    code: str | None = None

    async def respond(self, request: Request) -> Response:
        self.authorizations.append(request.headers.get("authorization"))
        if self.code is not None:
            return JSONResponse({"errors": [{"message": "refused", "extensions": {"code": self.code}}]})
        query = (await request.json())["query"]
        return JSONResponse({"data": {"orders": _ORDERS} if "orders(" in query else {"products": _PRODUCTS}})


@dataclass
class SigningIn:
    """A provider, a gateway and storefronts, in this process."""

    provider: Provider
    gateway: Gateway
    clock: Clock
    port_of: dict[str, int]
    url: str
    _sign_in: SignIn
    _gateway_url: str
    _directory: Path
    _stack: AsyncExitStack

    @property
    def issuer(self) -> str:
        """The provider's address."""
        return self._sign_in.issuer

    def config(
        self, port: int, secrets: tuple[str, ...], *, public_url: str | None = None, max_session_seconds: int = 43_200
    ) -> Config:
        file = self._directory / f"secrets-{port}"
        file.write_text("\n".join(secrets))
        return Config(
            admin=Listen(port=free_port()),
            http=Http(port=port),
            gateway=HttpUpstream(url=self._gateway_url),
            notifications=HttpUpstream(url=f"http://127.0.0.1:{self.port_of['notifications']}"),
            auth=Auth(mode="required", issuer=self._sign_in.issuer),
            sign_in=SignInSettings(
                client_id=SHOP,
                client_secret=self._sign_in.secrets[SHOP],
                max_session_seconds=max_session_seconds,
            ),
            cookies=Cookies(secrets_file=str(file)),
            public_url=public_url,
        )

    async def add_storefront(self, *secrets: str, **settings: Any) -> str:
        """Start another copy of the storefront, and return its URL. `settings`: as `config` has them."""
        port = free_port()
        await self.start_storefront(self.config(port, secrets, **settings))
        return f"http://127.0.0.1:{port}"

    async def start_storefront(self, config: Config) -> None:
        server = await self._stack.enter_async_context(build(config, Process(clock=self.clock)))
        await server.start()
        self._stack.push_async_callback(server.stop, 0)

    @asynccontextmanager
    async def new_browser(self, url: str | None = None) -> AsyncIterator[Browser]:
        async with httpx.AsyncClient(base_url=url or self.url, timeout=60) as http:
            yield Browser(http)


@asynccontextmanager
async def signing_in(directory: Path, *, gateway_url: str | None = None) -> AsyncIterator[SigningIn]:
    """Yield a provider, a gateway and a storefront at the address that the provider knows.

    gateway_url: of another gateway, which the storefront uses instead.
    """
    base = free_port_base()
    port_of = ports(base)
    sign_in = SignIn.of_stack("local", directory, port_of, base)
    gateway = Gateway()
    async with AsyncExitStack() as stack:
        gateway_app = Starlette(routes=[Route("/graphql", gateway.respond, methods=["POST"])])
        gateway_server = HttpServer(gateway_app, "127.0.0.1", port_of["graphql"])
        issuer = Provider(sign_in, port_of, directory)
        await gateway_server.start()
        stack.push_async_callback(gateway_server.stop, 0)
        await issuer.start()
        stack.push_async_callback(issuer.stop)
        url = f"http://127.0.0.1:{port_of['storefront']}"
        gateway_url = gateway_url or f"http://127.0.0.1:{port_of['graphql']}"
        world = SigningIn(issuer, gateway, Clock(), port_of, url, sign_in, gateway_url, directory, stack)
        await world.start_storefront(world.config(port_of["storefront"], (OLD_SECRET,)))
        yield world


@dataclass
class Browser:
    """Somebody's browser, without JavaScript."""

    http: httpx.AsyncClient

    async def get(self, path: str) -> httpx.Response:
        return await self.http.get(path)

    async def follow(self, response: httpx.Response) -> httpx.Response:
        """Return what a redirection leads to."""
        assert response.status_code in (302, 303), response.text
        return await self.http.get(response.headers["location"])

    async def reach_provider(self, path: str) -> str:
        """Return the address of the provider's page, to which a page of the shop leads."""
        response = await self.get(path)
        while response.headers["location"].startswith("/"):
            response = await self.follow(response)
        return str(response.headers["location"])

    async def choose(self, address: str, person: str) -> httpx.Response:
        """Choose a person on the provider's page, and return its redirection to the shop."""
        page = Document((await self.http.get(address)).text)
        assert ("person", person) in page.forms[0].buttons
        return await self.http.post(address, data={"person": person})

    async def sign_in(self, path: str = "/orders", person: str = "ann") -> httpx.Response:
        """Sign in on the way to a page, and return the shop's response to the provider's redirect."""
        return await self.follow(await self.choose(await self.reach_provider(path), person))

    async def send(self, form: Form, **values: str) -> httpx.Response:
        origin = str(self.http.base_url).rstrip("/")
        return await self.http.post(form.action, data=dict(form.filled(**values)), headers={"origin": origin})
