"""Keycloak as the issuer of the tests' tokens (`make test-keycloak`)."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import rsa
from market_dev.stack.keycloak import server as keycloak
from market_dev.stack.keycloak.server import Keycloak
from market_dev.stack.sign_in import CALLERS, CLI, SHOP, TOOLS, SignIn

from tests.authorization.shop import SECRETS, SUBJECTS
from tests.support.issuer import AUDIENCE, LIFETIME_SECONDS, Issuer, SigningKey, sign
from tests.support.ports import free_port
from tests.support.servers import ServerHandle
from tests.support.waiting import PATIENCE, until

REALM, ANOTHER_REALM = "market", "elsewhere"
PASSWORD = "the-password-of-all-people"
# A service that inventory does not know.
UNKNOWN_SERVICE = "warehouse"
# Clients whose tokens are for another audience, expire after a second, or are not valid yet.
ANOTHER_AUDIENCE, SHORT_LIVED, NOT_YET_VALID = "another-audience", "short-lived", "not-yet-valid"
# Keycloak builds its database at the first start.
_START_SECONDS = 600


class KeycloakIssuer(Issuer):
    """A Keycloak whose realm is that of `market up --sign-in keycloak`, with more clients and with ids that are names.

    A subject is an account of the realm. All tokens are fetched before the first test. Those that no issuer would make
    are tokens of Keycloak that are signed again with a key of the test.
    """

    def __init__(self, directory: Path, logs: Path) -> None:
        port = free_port()
        super().__init__(port, f"http://127.0.0.1:{port}/realms/{REALM}")
        self.configuration = {"roles_claim": "realm_access.roles", "leeway_seconds": 0}
        secrets = {TOOLS: "the-secret-of-the-tools", SHOP: "the-secret-of-the-shop", **SECRETS}
        sign_in = SignIn(kind="keycloak", issuer=self.url, port_base=0, people=(), secrets=secrets, password=PASSWORD)
        realms = {name: json.dumps(_realm(name)) for name in (REALM, ANOTHER_REALM)}
        names = ("issuer management", "graphql", "storefront")
        ports = {"issuer": port} | {name: free_port() for name in names}
        self._server = ServerHandle(Keycloak(ports, directory, logs, sign_in, realms=realms))
        # By realm, client and subject.
        self._tokens: dict[tuple[str, str, str], str] = {}

    def token(
        self,
        subject: str | None = "ann",
        *,
        roles: Iterable[str] = (),
        email: str | None = None,
        audience: Any = AUDIENCE,
        issuer: str | None = None,
        expires_in: float = LIFETIME_SECONDS,
        not_before: float | None = None,
        key: SigningKey | None = None,
        kid: str | None = None,
        algorithm: str | None = None,
        typ: str | None = "at+jwt",
        **claims: Any,
    ) -> str:
        """Return a token of the account, of the client whose tokens are like that. Fails if there is none."""
        assert subject is not None
        realm, client = REALM if issuer is None else ANOTHER_REALM, CLI
        if audience != AUDIENCE:
            client = ANOTHER_AUDIENCE
        elif expires_in < 0:
            client = SHORT_LIVED
        elif not_before is not None:
            client = NOT_YET_VALID
        token = self._tokens[realm, client, subject]
        header, payload = (_decode(part) for part in token.split(".")[:2])
        assert set(roles) == set(payload["realm_access"]["roles"]) & {"merchant", "operator", "service"}
        if key is not None or algorithm is not None:
            token = sign({**header, "alg": algorithm or header["alg"]}, payload, key or self.signing_key)
            self.issued.append(token)
        return token

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[KeycloakIssuer]:
        await asyncio.to_thread(keycloak.prepare_distribution)
        try:
            self._server.start(_START_SECONDS)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE) as http:
                await self._fetch_key(http)
                await self._fetch_tokens(http)
            yield self
        finally:
            self._server.stop()

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        await asyncio.to_thread(self._server.stop)
        try:
            yield
        finally:
            self._server.launch()
            await until(
                lambda: asyncio.to_thread(self._server.server.probe),
                _START_SECONDS,
                "Keycloak is ready again",
                interval=0.5,
            )

    async def _fetch_key(self, http: httpx.AsyncClient) -> None:
        response = await http.get(f"/realms/{REALM}/protocol/openid-connect/certs")
        self.keys = [PublishedKey(jwk) for jwk in response.json()["keys"] if jwk["use"] == "sig"]

    async def _fetch_tokens(self, http: httpx.AsyncClient) -> None:
        for name in ("ann", "ben", "mia", "olga"):
            await self._fetch_token(http, REALM, CLI, name)
        for client in (ANOTHER_AUDIENCE, SHORT_LIVED, NOT_YET_VALID):
            await self._fetch_token(http, REALM, client, "mia")
        await self._fetch_token(http, ANOTHER_REALM, CLI, "mia")
        for client in (UNKNOWN_SERVICE, *SUBJECTS.values()):
            await self._fetch_token(http, REALM, client, None)
        # Until the short-lived one has expired.
        await asyncio.sleep(2)

    async def _fetch_token(self, http: httpx.AsyncClient, realm: str, client: str, person: str | None) -> None:
        """Fetch a token of a person, or of the client itself."""
        form = {"client_id": client, "grant_type": "client_credentials", "client_secret": _secret(client)}
        if person is not None:
            form = {"client_id": client, "grant_type": "password", "username": person, "password": PASSWORD}
        response = await http.post(f"/realms/{realm}/protocol/openid-connect/token", data=form)
        assert response.status_code == 200, f"{client}: {response.text}"
        token = response.json()["access_token"]
        subject = person or client
        assert _decode(token.split(".")[1])["sub"] == (subject if realm == REALM else f"{subject} of {realm}")
        self._tokens[realm, CLI if person is None else client, subject] = token
        self.issued.append(token)


class PublishedKey(SigningKey):
    """A key of Keycloak, as far as Keycloak publishes it."""

    def __init__(self, jwk: Mapping[str, str]) -> None:
        self.kid, self.algorithm = jwk["kid"], jwk["alg"]
        numbers = (int.from_bytes(base64.urlsafe_b64decode(jwk[name] + "==")) for name in ("e", "n"))
        self._public = rsa.RSAPublicNumbers(*numbers).public_key()

    @property
    def public_key(self) -> rsa.RSAPublicKey:
        return self._public


def _realm(name: str) -> dict[str, Any]:
    """Return the realm of `market up --sign-in keycloak`, with what the tests need in addition.

    The ids of accounts, which are the subjects of tokens, are their names: so they are those of the other issuer, too.
    """
    realm: dict[str, Any] = json.loads(keycloak.REALM.read_text("utf-8"))
    realm["realm"] = name
    clients = {client["clientId"]: client for client in realm["clients"]}
    for service in CALLERS:
        clients[service]["clientId"] = SUBJECTS[service]
        # Inventory has no other audience here: people's tokens must fail there because they are those of people.
        _set_audience(clients[service], AUDIENCE)
    warehouse = _copy(clients["products"], UNKNOWN_SERVICE)
    warehouse["secret"] = _secret(UNKNOWN_SERVICE)
    others = [_copy(clients[CLI], client) for client in (ANOTHER_AUDIENCE, SHORT_LIVED, NOT_YET_VALID)]
    _set_audience(others[0], UNKNOWN_SERVICE)
    others[1]["attributes"]["access.token.lifespan"] = "1"
    others[2]["protocolMappers"].append(
        {
            "name": "not before",
            "protocol": "openid-connect",
            "protocolMapper": "oidc-hardcoded-claim-mapper",
            "config": {
                "claim.name": "nbf",
                "claim.value": "4102444800",
                "jsonType.label": "long",
                "access.token.claim": "true",
            },
        }
    )
    realm["clients"] += [warehouse, *others]
    realm["users"].append(
        {"username": f"service-account-{UNKNOWN_SERVICE}", "enabled": True, "realmRoles": ["service"]}
    )
    realm["users"][-1]["serviceAccountClientId"] = UNKNOWN_SERVICE
    for user in realm["users"]:
        client = user.get("serviceAccountClientId")
        if client in CALLERS:
            user["serviceAccountClientId"] = client = SUBJECTS[client]
        # Ids are unique in the whole Keycloak.
        user["id"] = (client or user["username"]) + ("" if name == REALM else f" of {name}")
    return realm


def _copy(client: Mapping[str, Any], client_id: str) -> dict[str, Any]:
    return {**json.loads(json.dumps(client)), "clientId": client_id}


def _set_audience(client: Mapping[str, Any], audience: str) -> None:
    client["protocolMappers"][0]["config"]["included.custom.audience"] = audience


def _secret(client: str) -> str:
    secrets = {SUBJECTS[service]: secret for service, secret in SECRETS.items()}
    return secrets.get(client, f"the-client-secret-of-{client}")


def _decode(part: str) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return decoded
