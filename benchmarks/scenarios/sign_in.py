"""What verifying a token costs: the same requests to two copies of the services, of which one requires sign-in."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml
from joserfc import jwt
from joserfc.jwk import RSAKey
from market_dev.stack.topology import config_directory

from benchmarks.measurements import Measurement, Row
from benchmarks.scenario import FEWER_ROUNDS, Contestants, Measurements, Scenario, compare_costs, values
from benchmarks.scenarios.gateway import LIST
from benchmarks.testbed import Testbed, outbox_drained

MAX_RATIO = 1.15
# As many people as take turns; each has a token.
PEOPLE = 100
_TOKEN_SECONDS = 86_400
# In the order in which they are started: each calls only earlier ones.
_SERVICES = ("inventory", "products", "orders", "graphql")


class Issuer:
    """An issuer of tokens whose documents are files: a web server serves them."""

    def __init__(self, testbed: Testbed) -> None:
        self.port = testbed.peer_port(16)
        self.url = f"http://127.0.0.1:{self.port}"
        self._directory = testbed.directory / "issuer"
        (self._directory / ".well-known").mkdir(parents=True, exist_ok=True)
        # Scenarios share the services, and so the key.
        file = testbed.directory / "issuer.pem"
        if not file.exists():
            file.write_bytes(RSAKey.generate_key(2048).as_pem(private=True))
        self._key = RSAKey.import_key(file.read_bytes(), {"kid": "benchmark", "use": "sig", "alg": "RS256"})
        discovery = {"issuer": self.url, "jwks_uri": f"{self.url}/keys.json"}
        (self._directory / ".well-known" / "openid-configuration").write_text(json.dumps(discovery))
        (self._directory / "keys.json").write_text(json.dumps({"keys": [self._key.as_dict(private=False)]}))

    async def start(self, testbed: Testbed) -> None:
        server = [sys.executable, "-m", "http.server", str(self.port), "--bind", "127.0.0.1", "-d", self._directory]
        await testbed.start("issuer", server, self.port)

    def token(self, subject: str, *roles: str) -> str:
        now = int(time.time())
        claims = {
            "iss": self.url,
            "sub": subject,
            "aud": "market",
            "iat": now,
            "exp": now + _TOKEN_SECONDS,
            "roles": list(roles),
        }
        return jwt.encode({"alg": "RS256", "kid": self._key.kid, "typ": "at+jwt"}, claims, self._key)


async def start_signed_in(testbed: Testbed, issuer: Issuer) -> dict[str, int]:
    """Start a copy of each service that requires sign-in. Return their ports."""
    await issuer.start(testbed)
    ports = {name: testbed.peer_port(8 + 2 * n) for n, name in enumerate(_SERVICES)}
    for service in _SERVICES:
        config = yaml.safe_load((config_directory() / f"{service}.yaml").read_text())
        config["auth"] = {"mode": "required", "issuer": issuer.url}
        if service == "inventory":
            config["auth"]["callers"] = {"products-service": "products", "orders-service": "orders"}
        if service in ("products", "orders"):
            token = testbed.directory / f"{service}.token"
            token.write_text(issuer.token(f"{service}-service"))
            config["service_identity"] = {"token_file": str(token)}
        if "http" in config:
            # The generator sends more than any person would.
            config["http"]["max_requests_per_second_per_caller"] = 1_000_000
        file = testbed.directory / f"signed-in-{service}.yaml"
        file.write_text(yaml.safe_dump(config))
        env = {
            **testbed.stack.environment(service),
            "MARKET_PORT": str(ports[service]),
            "MARKET_ADMIN_PORT": str(ports[service] + 1),
            **{f"MARKET_{name.upper()}_PORT": str(port) for name, port in ports.items() if name != service},
            "CONFIG_PATH": str(file),
        }
        await testbed.start(f"signed-in {service}", [sys.executable, "-m", f"market.{service}"], ports[service], env)
    return ports


@dataclass(frozen=True)
class Request:
    """One kind of request.

    services: those that handle it, whose CPU time counts; it is sent to the first
    load: arguments of `closed_loop`
    roles: of the people who send it
    """

    title: str
    services: tuple[str, ...]
    load: Callable[[list[str]], dict[str, Any]]
    roles: tuple[str, ...] = ()


REQUESTS = {
    "product": Request(
        "product PUT",
        ("products", "inventory"),
        lambda ids: {"workload": "replaced_products", "params": {"ids": ids}},
        roles=("merchant",),
    ),
    "order": Request(
        "order POST",
        ("orders", "products", "inventory"),
        lambda ids: {"workload": "orders", "params": {"ids": ids}},
    ),
    "graphql": Request(
        "GraphQL list",
        ("graphql", "products", "inventory"),
        lambda _: {"workload": "graphql", "params": {"query": LIST}},
    ),
}


def _prepare(request: Request) -> Any:
    async def prepare(testbed: Testbed) -> Contestants:
        ids = await testbed.fill()
        # Its mails are not what is measured.
        testbed.stack.pause("notifications")
        issuer = Issuer(testbed)
        ports = await start_signed_in(testbed, issuer)
        opened = request.load(ids)
        tokens = [issuer.token(f"person-{n}", *request.roles) for n in range(PEOPLE)]
        signed_in = {**opened, "params": {**opened["params"], "tokens": tokens}}
        service = request.services[0]
        # Each token is verified once. A person meets that once in the life of a token.
        await testbed.load(port=ports[service], **signed_in, connections=1, count=2 * PEOPLE)
        testbed.pin()

        def contestant(prefix: str, port: int, load: dict[str, Any]) -> Any:
            async def measure() -> Measurement:
                measured = await testbed.closed_loop(port=port, **load)
                await outbox_drained(testbed.urls["mongodb"])
                measured.value = sum(measured.cpu_ms.get(f"{prefix}{name}", 0.0) for name in request.services)
                return measured

            return measure

        return {
            "open": contestant("", testbed.port(service), opened),
            "signed in": contestant("signed-in ", ports[service], signed_in),
        }

    return prepare


def _judge(request: Request) -> Any:
    def judge(measurements: Measurements) -> list[Row]:
        signed_in, opened = measurements["signed in"], measurements["open"]
        return [
            compare_costs(
                f"{request.title} with a verified token",
                "CPU ms per request",
                f"<= {MAX_RATIO}x the CPU without sign-in",
                ours=values(signed_in),
                limit=values(opened),
                max_ratio=MAX_RATIO,
                remark=f"the limit is the same without sign-in; CPU of {', '.join(request.services)}; {PEOPLE} people",
            )
        ]

    return judge


SCENARIOS = [
    Scenario(
        name=f"sign-in-{name}",
        title=f"{request.title} with sign-in",
        goal=f"<= {MAX_RATIO}x the CPU without sign-in",
        prepare=_prepare(request),
        judge=_judge(request),
        group="sign-in",
        unit="ms",
        rounds=FEWER_ROUNDS,
    )
    for name, request in REQUESTS.items()
]
